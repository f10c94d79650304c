"""Changing a system's Apache, and undoing that."""
