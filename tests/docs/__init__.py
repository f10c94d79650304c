"""Tests that run the documentation: its snippets, its tutorial, its links."""
