"""Registration without learning: one file a method."""
