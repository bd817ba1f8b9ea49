"""The images that ship with the course; README.md has their origin, notices and citations."""
