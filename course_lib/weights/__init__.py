"""Weights that ship with the course; ``README.md`` in this folder tells how they were made."""
