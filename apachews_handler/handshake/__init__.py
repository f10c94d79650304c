"""On Apache's worker: the recipe of a handshake, and its steps."""
