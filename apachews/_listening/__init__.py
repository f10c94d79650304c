"""The endpoint: making a socket file, listening on it, accepting connections."""
