"""The engine of ``Server``: its loop, its connections, what is published to it."""
