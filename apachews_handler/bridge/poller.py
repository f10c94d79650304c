"""The epoll of a loop, the connection of each file descriptor, and the state of a turn.

Contract: ``Loop`` polls and dispatches; ``relay`` registers the legs of connections and sets
their masks.  For the loop's thread, except that ``epoll`` itself is thread-safe.

How this works: epoll is level-triggered.  Each connection has two registered descriptors, one
per leg, and ``Leg.mask`` mirrors what epoll has, so an unchanged mask costs no system call.
"""

from __future__ import annotations

import select
import time
from typing import Final

from .connection import NOT_WATCHED, Connection

_IN: Final = select.EPOLLIN


class Poller:
    """The registered descriptors of a loop.

    Attributes:
        epoll: the kernel's object.
        clients, producers: the connection of each registered descriptor.
        pending: connections whose client is to be read in the next turn even if epoll does
            not report it: its TLS session holds bytes, or its reader paused.  A dict, because
            that keeps an order.
        now: when the turn began, ``time.monotonic()``.  One reading per turn.
        busy: how many connections were pending when the turn began, at least 1; they share
            the time of the turn.
    """

    def __init__(self) -> None:
        self.epoll = select.epoll()
        self.clients: dict[int, Connection] = {}
        self.producers: dict[int, Connection] = {}
        self.pending: dict[Connection, None] = {}
        self.now = time.monotonic()
        self.busy = 1

    def add_client(self, connection: Connection) -> None:
        """Register the client's leg for reading.

        Raises:
            OSError: the kernel has no room; the connection is in ``clients`` all the same.
        """
        leg = connection.client
        # First, so that ``remove_client`` finds it if epoll refuses it.
        self.clients[leg.fd] = connection
        self.epoll.register(leg.fd, _IN)
        leg.mask = _IN

    def add_producer(self, connection: Connection) -> None:
        """Register the producer's leg for reading.

        Raises:
            OSError: the kernel has no room; the connection is in ``producers`` all the same.
        """
        leg = connection.producer
        self.producers[leg.fd] = connection
        self.epoll.register(leg.fd, _IN)
        leg.mask = _IN

    def watch(self, connection: Connection) -> bool:
        """Register both legs of a new connection for reading; any thread may call this.

        Until the loop's thread has the connection in its tables, it ignores their events.

        Returns:
            False if the kernel has no room: neither leg is registered.
        """
        client, producer = connection.client, connection.producer
        try:
            self.epoll.register(client.fd, _IN)
            try:
                self.epoll.register(producer.fd, _IN)
            except OSError:
                self.epoll.unregister(client.fd)
                raise
        except OSError:
            return False
        client.mask = producer.mask = _IN
        return True

    def unwatch_producer(self, connection: Connection) -> None:
        """Take the producer's leg out of epoll, and leave it open."""
        self.epoll.unregister(connection.producer.fd)
        connection.producer.mask = NOT_WATCHED

    def remove_client(self, connection: Connection) -> None:
        """Remove the client's leg; its descriptor is still open."""
        self.unregister(connection.client.fd)
        self.clients.pop(connection.client.fd, None)

    def remove_producer(self, connection: Connection) -> None:
        """Remove the producer's leg; its descriptor is still open."""
        self.unregister(connection.producer.fd)
        self.producers.pop(connection.producer.fd, None)

    def unregister(self, fd: int) -> None:
        """Take a descriptor out of epoll, if epoll has it."""
        try:
            self.epoll.unregister(fd)
        except FileNotFoundError:
            pass  # ENOENT: the leg is not watched, or the kernel had no room to register it

    def reopen(self) -> None:
        """Register all legs with a new epoll: this process was forked, and shares the old one.

        Descriptors of readers are not registered again.
        """
        self.epoll.close()
        self.epoll = select.epoll()
        for fd, connection in self.clients.items():
            self.epoll.register(fd, connection.client.mask)
        for fd, connection in self.producers.items():
            # A dead producer that is not watched would be reported in every turn.
            if connection.producer.mask != NOT_WATCHED:
                self.epoll.register(fd, connection.producer.mask)
