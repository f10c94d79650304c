"""Installing apachews in a system's Apache, and removing it."""
