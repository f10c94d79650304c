"""The documentation, run: its snippets, its tutorial, its links."""
