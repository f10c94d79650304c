"""What ``Server.dequeue()`` returns.

Contract: plain data and short-cuts to the client; every method returns at once.
For the thread that runs ``dequeue()``.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar

from . import wire
from .exceptions import ApachewsError

if TYPE_CHECKING:
    from .client import Client


class EventType(enum.Enum):
    """The types of event; ``Event.Accept`` and so on name the same objects.

    They are no strings and no numbers, so that nothing a client sends can equal
    one of them.
    """

    Accept = "a client connected, or asks to (APACHEWS_ACCEPT producer)"
    IO = "a message came"
    NoData = "an empty message came"
    Close = "the other side sent a CLOSE; ConnectionClosed follows"
    ConnectionClosed = "the connection is gone"
    Error = "something went wrong; Event.reason says what"
    Pong = "the client answered Client.ping(); its latency_s says how fast"
    Invalid = "somebody connected who does not speak the wire"

    def __repr__(self) -> str:
        return f"Event.{self.name}"


class Event:
    """One thing that happened.

    Of every client the events are: one ``Accept``; then ``IO`` and ``NoData`` in
    the order in which it sent its messages; then exactly one
    ``ConnectionClosed``, however the connection ended.  A ``Close`` (somebody
    said goodbye) or an ``Error`` (something was wrong with what came) may stand
    before it.  ``Error`` without a client is about the server itself, ``Invalid``
    about a connection that never became a client.

    A client that a producer handed on (``Server.drain()``), or left behind when it
    died, is an ``Accept`` at the next one, with ``resumed`` True.

    Each kind has a class of its own, for ``match``::

        match server.dequeue():
            case AcceptEvent(client):
                client.send("welcome")
            case MessageEvent(client, data):
                client.send(data)
            case ConnectionClosedEvent(client, code):
                print(client, "left with", code)

    An event never changes.
    """

    __slots__ = ("_client", "_code", "_data", "_reason")

    Accept: ClassVar = EventType.Accept
    IO: ClassVar = EventType.IO
    NoData: ClassVar = EventType.NoData
    Close: ClassVar = EventType.Close
    ConnectionClosed: ClassVar = EventType.ConnectionClosed
    Error: ClassVar = EventType.Error
    Pong: ClassVar = EventType.Pong
    Invalid: ClassVar = EventType.Invalid

    _type: ClassVar[EventType]
    # What read() gives where there is no message.
    _read: ClassVar[EventType]

    def __init__(
        self, client: Client | None, data: str | bytes = "", code: int = 0, reason: str = ""
    ) -> None:
        self._client = client
        self._data = data
        self._code = code
        self._reason = reason

    def __repr__(self) -> str:
        client = f" of {self._client.guid()}" if self._client else ""
        code = f" {self.code} {self.reason!r}" if self.code else ""
        return f"<{self.type()!r}{client}{code}>"

    @property
    def code(self) -> int:
        """Close code of a ``Close``, ``ConnectionClosed``, ``Error`` or ``Invalid``.

        1006 where the connection broke off, 1005 where the client gave none, 1012
        where it went to another producer (``Server.drain()``), 0 for all other events.
        """
        return self._code

    @property
    def reason(self) -> str:
        """Text that goes with the code, or ""."""
        return self._reason

    def type(self) -> EventType:
        """Return what happened, one of ``Event.Accept`` and so on."""
        return self._type

    @property
    def resumed(self) -> bool:
        """True for the Accept of a client that another producer had before."""
        return False

    def client(self) -> Client:
        """Return the client of the event.

        Raises:
            ApachewsError: an ``Invalid``, or an ``Error`` of the server itself,
                which have none.
        """
        if self._client is None:
            raise ApachewsError(f"{self.type()!r} ({self.reason}) has no client")
        return self._client

    def client_or_none(self) -> Client | None:
        """Return the client of the event, None for one that has none."""
        return self._client

    def read(self) -> Any:
        """Return the message: str for text, bytes for binary.

        Events that carry no message give ``Event.ConnectionClosed`` (also for a
        ``Close``), ``Event.Error`` (also for an ``Invalid``), or ``Event.NoData``
        for an ``Accept``.  Reading twice gives the same.

        (Any, not a union, because only ``type()`` tells which it is, and what
        comes of an ``IO`` may go straight into ``write()``.)
        """
        return self._read

    def json(self) -> Any:
        """Return the value of a message that is a JSON text.

        Raises:
            ValueError: it is not; json.JSONDecodeError says where.
            ApachewsError: the event is no message.
        """
        raise ApachewsError(f"{self.type()!r} is no message")

    def write(self, data: str | bytes | bytearray | memoryview) -> bool:
        """Send a message to the client of the event; see ``Client.send``."""
        return self.client().send(data)

    respond = write

    def accept(
        self, subprotocol: str | None = None, headers: Iterable[tuple[str, str]] = ()
    ) -> bool:
        """Let the client of the event in; see ``Client.accept``."""
        return self.client().accept(subprotocol, headers)

    def reject(
        self, status: int = 403, body: str = "", headers: Iterable[tuple[str, str]] = ()
    ) -> bool:
        """Refuse the client of the event; see ``Client.reject``."""
        return self.client().reject(status, body, headers)

    def close(self, code: int = wire.NORMAL, reason: str = "") -> None:
        """Close the client of the event; see ``Client.close``."""
        self.client().close(code, reason)


def decode_json(message: str | bytes) -> Any:
    """Return the value of a JSON text, in UTF-8 where it is binary.

    Raises:
        ValueError: it is none, or nested too deeply.
    """
    try:
        # (json would take other encodings for bytes as well.)
        text = message if isinstance(message, str) else message.decode()
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("the JSON text is nested too deeply") from error


def _refuse_constant(name: str) -> None:
    """Refuse NaN and Infinity, which Python's module takes and RFC 8259 does not have."""
    raise ValueError(f"{name} is no JSON")


class AcceptEvent(Event):
    """A client connected, or asks to: ``AcceptEvent(client)``."""

    __slots__ = ()
    __match_args__ = ("_client",)
    _type = EventType.Accept
    _read = EventType.NoData

    @property
    def resumed(self) -> bool:
        """True for a client that another producer had before."""
        return self._client is not None and self._client.request.resumed


class MessageEvent(Event):
    """A message came: ``MessageEvent(client, data)``; an empty one is of type ``NoData``."""

    __slots__ = ()
    __match_args__ = ("_client", "data")

    def type(self) -> EventType:
        """Return ``Event.IO``, or ``Event.NoData`` for an empty message."""
        return EventType.IO if self._data else EventType.NoData

    @property
    def data(self) -> str | bytes:
        """The message: str for text, bytes for binary."""
        return self._data

    def read(self) -> Any:
        """Return the message: str for text, bytes for binary."""
        return self._data

    def json(self) -> Any:
        """Return the value of a message that is a JSON text, see ``Event.json``."""
        return decode_json(self._data)


class PongEvent(Event):
    """The client answered ``Client.ping()``: ``PongEvent(client, latency_s)``."""

    __slots__ = ("_latency_s",)
    __match_args__ = ("_client", "latency_s")
    _type = EventType.Pong
    _read = EventType.NoData

    def __init__(self, client: Client, latency_s: float) -> None:
        super().__init__(client)
        self._latency_s = latency_s

    @property
    def latency_s(self) -> float:
        """Seconds from the ping to its answer, both ways through Apache."""
        return self._latency_s


class CloseEvent(Event):
    """The other side said goodbye: ``CloseEvent(client, code, reason)``."""

    __slots__ = ()
    __match_args__ = ("_client", "code", "reason")
    _type = EventType.Close
    _read = EventType.ConnectionClosed


class ConnectionClosedEvent(Event):
    """The connection is gone: ``ConnectionClosedEvent(client, code, reason)``."""

    __slots__ = ()
    __match_args__ = ("_client", "code", "reason")
    _type = EventType.ConnectionClosed
    _read = EventType.ConnectionClosed


class ErrorEvent(Event):
    """Something went wrong: ``ErrorEvent(client, code, reason)``; client None: the server."""

    __slots__ = ()
    __match_args__ = ("_client", "code", "reason")
    _type = EventType.Error
    _read = EventType.Error


class InvalidEvent(Event):
    """Somebody connected who does not speak the wire: ``InvalidEvent(code, reason)``."""

    __slots__ = ()
    __match_args__ = ("code", "reason")
    _type = EventType.Invalid
    _read = EventType.Error
