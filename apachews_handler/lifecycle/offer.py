"""What a custodian offers to an older one: a connection, and what becomes of it here.

Contract: an offer is made when its connection is at rest.  While another process decides, the
connection is in no loop.  Then either ``complete``, which closes what the other process has, or
``withdraw``, after which the connection is as it was.  ``handover`` has the conversation.
"""

from __future__ import annotations

import socket

from apachews_handler.bridge.connection import Connection
from apachews_handler.bridge.transport import RelayedTransport
from apachews_handler.native.openssl import TlsSession
from apachews_handler.native.tls_relay import Relay
from apachews_handler.shared import slots


class Offer:
    """A connection without TLS that is in no loop until the taker answers."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def descriptors(self) -> list[int]:
        """Return those that the taker gets, in the order that it expects."""
        places = self.connection.admission
        further = (
            self.connection.log.descriptor(),
            places.descriptor() if isinstance(places, slots.Permit) else None,
        )
        return [*self._sockets(), *(fd for fd in further if fd is not None)]

    def _sockets(self) -> list[int]:
        connection, transport = self.connection, self.connection.transport
        relayed = [transport.tcp_fileno()] if isinstance(transport, RelayedTransport) else []
        return [connection.client.fd, connection.producer.fd, *relayed]

    def complete(self) -> None:
        """Close what the other process has."""
        let_go(self.connection)

    def withdraw(self) -> None:
        """Close what was only made for the offer."""


class TlsOffer(Offer):
    """The same for a client with TLS: only its plain side is offered.

    Raises:
        OSError, TlsError: the relay cannot take the TLS; nothing has changed.
    """

    def __init__(self, connection: Connection, session: TlsSession, relay: Relay) -> None:
        super().__init__(connection)
        self._session = session
        self._relay = relay
        self._ours, self._theirs = socket.socketpair()
        try:
            for sock in (self._ours, self._theirs):
                sock.setblocking(False)
            self._handle = relay.reserve(session, self._ours)
        except BaseException:
            self._ours.close()
            self._theirs.close()
            raise

    def _sockets(self) -> list[int]:
        return [self._theirs.fileno(), self.connection.producer.fd, self._session.fileno()]

    def complete(self) -> None:
        """See ``Offer``."""
        self._theirs.close()
        self._relay.start(self._handle, self._session, self._ours)
        super().complete()

    def withdraw(self) -> None:
        """See ``Offer``."""
        self._relay.withdraw(self._handle)
        self._ours.close()
        self._theirs.close()


def let_go(connection: Connection) -> None:
    """Close the descriptors of a connection that the other process has."""
    connection.abandon()
    if isinstance(connection.admission, slots.Permit):
        connection.admission.forget()
