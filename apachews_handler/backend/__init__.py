"""On Apache's worker: the handshake of a tunnel with its backend."""
