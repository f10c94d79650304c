"""What ``Server.dequeue()`` returns.

Contract: plain data and short-cuts to the client; every method returns at once.
For the thread that runs ``dequeue()``.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Final

from . import wire
from .exceptions import ApachewsError

if TYPE_CHECKING:
    from .client import Client


class EventType(enum.Enum):
    """The types of event; ``Event.Accept`` and so on name the same objects.

    They are no strings and no numbers, so that nothing a client sends can equal
    one of them.

    Example:
        >>> event.type() is EventType.IO is Event.IO
        True
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


# (To look a member of an Enum up costs as much as a call in Python 3.11.)
_IO: Final = EventType.IO
_NO_DATA: Final = EventType.NoData


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

    Each kind has a class of its own, for ``match``.  An event never changes.

    Example:
        >>> match event:
        ...     case AcceptEvent(client):
        ...         client.send("welcome")
        ...     case MessageEvent(client, data):
        ...         client.send(data)
        ...     case ConnectionClosedEvent(client, code):
        ...         print(client, "left with", code)
        True
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

        Example:
            >>> client.close(1000)
            >>> server.dequeue().code
            1000
        """
        return self._code

    @property
    def reason(self) -> str:
        """Text that goes with the code, or ``""``.

        Example:
            >>> client.close(4000, "the room is closed")
            >>> server.dequeue().reason
            'the room is closed'
        """
        return self._reason

    def type(self) -> EventType:
        """Return what happened, one of ``Event.Accept`` and so on.

        Example:
            >>> event.type()
            Event.IO
        """
        return self._type

    @property
    def resumed(self) -> bool:
        """True for the Accept of a client that another producer had before.

        Example:
            >>> event.resumed
            False
        """
        return False

    def client(self) -> Client:
        """Return the client of the event.

        Raises:
            ApachewsError: an ``Invalid``, or an ``Error`` of the server itself,
                which have none.

        Example:
            >>> event.client().request.user
            'ann'
        """
        if self._client is None:
            raise ApachewsError(f"{self.type()!r} ({self.reason}) has no client")
        return self._client

    def client_or_none(self) -> Client | None:
        """Return the client of the event, None for one that has none.

        Example:
            >>> event.client_or_none() is client
            True
        """
        return self._client

    def read(self) -> Any:
        """Return the message: str for text, bytes for binary.

        Events that carry no message give ``Event.ConnectionClosed`` (also for a
        ``Close``), ``Event.Error`` (also for an ``Invalid``), or ``Event.NoData``
        for an ``Accept``.  Reading twice gives the same.

        (Any, not a union, because only ``type()`` tells which it is, and what
        comes of an ``IO`` may go straight into ``write()``.)

        Example:
            >>> event.read()
            'hello'
        """
        return self._read

    def json(self) -> Any:
        """Return the value of a message that is a JSON text.

        Raises:
            ValueError: it is not; json.JSONDecodeError says where.
            ApachewsError: the event is no message.

        Example:
            >>> event.read()
            '{"x": 1}'
            >>> event.json()
            {'x': 1}
        """
        raise ApachewsError(f"{self.type()!r} is no message")

    def write(self, data: str | bytes | bytearray | memoryview) -> bool:
        """Send a message to the client of the event; see ``Client.send``.

        Example:
            >>> event.write("hello to you, too")
            True
        """
        client = self._client
        return (client if client is not None else self.client()).send(data)

    def respond(self, data: str | bytes | bytearray | memoryview) -> bool:
        """Send an answer in the kind of the message, as the first apachews did.

        Bytes that are UTF-8 are sent as text, unless they answer a binary message; all else
        as by ``write``, which sends bytes as binary.  For programs that were written for the
        first apachews: it knew bytes only, and its answers reached the page as text.

        Returns and raises: see ``Client.send``.

        Example:
            >>> event.respond(b"hello, as text")
            True
        """
        # (An event without a message has the empty str.)
        if isinstance(self._data, str) and not isinstance(data, str):
            data = _text_if_utf8(data)
        return self.write(data)

    def accept(
        self, subprotocol: str | None = None, headers: Iterable[tuple[str, str]] = ()
    ) -> bool:
        """Let the client of the event in; see ``Client.accept``.

        Example:
            >>> event.accept(subprotocol="chat")
            True
        """
        return self.client().accept(subprotocol, headers)

    def reject(
        self, status: int = 403, body: str = "", headers: Iterable[tuple[str, str]] = ()
    ) -> bool:
        """Refuse the client of the event; see ``Client.reject``.

        Example:
            >>> event.reject(403, "Members only.")
            True
        """
        return self.client().reject(status, body, headers)

    def close(self, code: int = wire.NORMAL, reason: str = "") -> None:
        """Close the client of the event; see ``Client.close``.

        Example:
            >>> event.close(1008, "not in this room")
        """
        self.client().close(code, reason)


def _text_if_utf8(data: bytes | bytearray | memoryview) -> str | bytes | bytearray | memoryview:
    """Return the text if the bytes are UTF-8, else the bytes."""
    try:
        return bytes(memoryview(data)).decode()
    except UnicodeDecodeError:
        return data


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
    """A client connected, or asks to: ``AcceptEvent(client)``.

    Example:
        >>> match event:
        ...     case AcceptEvent(client):
        ...         client.send(f"welcome, {client.request.user}")
        True
    """

    __slots__ = ()
    __match_args__ = ("_client",)
    _type = EventType.Accept
    _read = EventType.NoData

    @property
    def resumed(self) -> bool:
        """True for a client that another producer had before.

        Example:
            >>> if not event.resumed:
            ...     event.write("welcome")
            True
        """
        return self._client is not None and self._client.request.resumed


class MessageEvent(Event):
    """A message came: ``MessageEvent(client, data)``; an empty one is of type ``NoData``.

    Example:
        >>> match event:
        ...     case MessageEvent(client, data):
        ...         client.send(data)
        True
    """

    __slots__ = ()
    __match_args__ = ("_client", "data")

    def type(self) -> EventType:
        """Return ``Event.IO``, or ``Event.NoData`` for an empty message.

        Example:
            >>> event.type() in (Event.IO, Event.NoData)
            True
        """
        return _IO if self._data else _NO_DATA

    @property
    def data(self) -> str | bytes:
        """The message, str for text and bytes for binary.

        Example:
            >>> event.data
            'hello'
        """
        return self._data

    def read(self) -> Any:
        """Return the message: str for text, bytes for binary.

        Example:
            >>> event.read()
            'hello'
        """
        return self._data

    def json(self) -> Any:
        """Return the value of a message that is a JSON text, see ``Event.json``.

        Example:
            >>> event.json()["x"]
            1
        """
        return decode_json(self._data)


class PongEvent(Event):
    """The client answered ``Client.ping()``: ``PongEvent(client, latency_s)``.

    Example:
        >>> match event:
        ...     case PongEvent(client, latency_s):
        ...         client.state = latency_s
    """

    __slots__ = ("_latency_s",)
    __match_args__ = ("_client", "latency_s")
    _type = EventType.Pong
    _read = EventType.NoData

    def __init__(self, client: Client, latency_s: float) -> None:
        super().__init__(client)
        self._latency_s = latency_s

    @property
    def latency_s(self) -> float:
        """Seconds from the ping to its answer, both ways through Apache.

        Example:
            >>> event.latency_s < 10
            True
        """
        return self._latency_s


class CloseEvent(Event):
    """The other side said goodbye: ``CloseEvent(client, code, reason)``.

    Example:
        >>> match event:
        ...     case CloseEvent(client, code, reason):
        ...         print(client.request.user, "said", code, reason)
        ann said 1000 bye
    """

    __slots__ = ()
    __match_args__ = ("_client", "code", "reason")
    _type = EventType.Close
    _read = EventType.ConnectionClosed


class ConnectionClosedEvent(Event):
    """The connection is gone: ``ConnectionClosedEvent(client, code, reason)``.

    Example:
        >>> match event:
        ...     case ConnectionClosedEvent(client, code, reason):
        ...         print(client.request.user, "left with", code)
        ann left with 1006
    """

    __slots__ = ()
    __match_args__ = ("_client", "code", "reason")
    _type = EventType.ConnectionClosed
    _read = EventType.ConnectionClosed


class ErrorEvent(Event):
    """Something went wrong: ``ErrorEvent(client, code, reason)``; client None: the server.

    Example:
        >>> match event:
        ...     case ErrorEvent(client, code, reason):
        ...         print(code, reason)
        1009 message has more than 16777216 bytes
    """

    __slots__ = ()
    __match_args__ = ("_client", "code", "reason")
    _type = EventType.Error
    _read = EventType.Error


class InvalidEvent(Event):
    """Somebody connected who does not speak the wire: ``InvalidEvent(code, reason)``.

    Example:
        >>> match event:
        ...     case InvalidEvent(code, reason):
        ...         print(code, reason)
        1002 the first frame is not OPEN
    """

    __slots__ = ()
    __match_args__ = ("code", "reason")
    _type = EventType.Invalid
    _read = EventType.Error
