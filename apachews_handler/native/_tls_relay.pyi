from typing import NoReturn

def open(*functions: int) -> int:
    """Prepare; return the descriptor of an epoll.  ``tls_relay`` has the order of the functions."""

def add(ssl: int, tcp: int, pair: int) -> int:
    """Reserve what a client needs; return its handle."""

def start(handle: int) -> None:
    """Own the client's SSL and its two descriptors, and serve it."""

def withdraw(handle: int) -> None:
    """Undo ``add``."""

def turn() -> int:
    """Serve the clients that are ready; return within how many ms the next turn is due, or -1."""

def count() -> int:
    """Return how many clients there are."""

def descriptors() -> list[int]:
    """Return the descriptors of all clients."""

def run(signals: int, is_stopping: bool) -> NoReturn:
    """Serve the clients until the last one has left, and end the process."""
