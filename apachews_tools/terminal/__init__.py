"""Reading and writing at a terminal."""
