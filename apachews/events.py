"""The events that ``Server.dequeue()`` returns.

Contract: immutable data and shortcuts to the client; every method returns at once.  For the
thread that calls ``dequeue()``.

Long because programs match over all types of event together, with their examples.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Any, ClassVar, Final

from . import wire
from .client import Client
from .exceptions import ApachewsError


class EventType(enum.Enum):
    """The types of event; ``Event.Accept`` and so on name the same objects.

    They are neither strings nor numbers, so that no message of a client equals one of
    them.

    Example:
        >>> event.type() is EventType.IO is Event.IO
        True
    """

    Accept = "a client connected, or waits to be accepted (APACHEWS_ACCEPT producer)"
    IO = "a message arrived"
    NoData = "an empty message arrived"
    Close = "the client sent a CLOSE; ConnectionClosed follows"
    ConnectionClosed = "the connection has ended"
    Error = "an error occurred; Event.reason describes it"
    Pong = "the client answered Client.ping(); latency_s is the time that it took"
    Invalid = "a program connected that does not speak the wire"
    RelayLost = "the relay to other producers is lost; Event.reason says why"
    RelayBack = "the relay is back; messages of gap_s seconds may be missing"
    Join = "a member has joined a group, here or at another producer"
    Leave = "a member has left a group, with its last client"
    Gap = "messages of the history of a group are lost for a client, or for all members here"

    def __repr__(self) -> str:
        return f"Event.{self.name}"


# Hoisted: access to an Enum member costs about a function call on Python 3.11.
_IO: Final = EventType.IO
_NO_DATA: Final = EventType.NoData


class Event:
    """An event of a client or of the server.

    Every client causes one ``Accept``; then ``IO`` and ``NoData`` in the order of its
    messages; then exactly one ``ConnectionClosed``, for whatever reason the connection
    ended.  A ``Close`` (the client closed the connection) or an ``Error`` (the client
    sent invalid data) may precede it.  An ``Error`` without a client is about the server
    itself, an ``Invalid`` about a connection that never became a client, a ``RelayLost``
    or ``RelayBack`` about the relay, a ``Join`` or ``Leave`` about a member of a group, a
    ``Gap`` about the history of a group.

    A client of a producer that handed it over (``Server.drain()``) or died causes an
    ``Accept`` at the next producer, with ``resumed`` True.

    Each type has a class of its own, for ``match``.  An event never changes.

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
    RelayLost: ClassVar = EventType.RelayLost
    RelayBack: ClassVar = EventType.RelayBack
    Join: ClassVar = EventType.Join
    Leave: ClassVar = EventType.Leave
    Gap: ClassVar = EventType.Gap

    _type: ClassVar[EventType]
    # What read() returns without a message.
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

        1006: the connection broke off; 1005: the client gave none; 1012: the client moved
        to another producer (``Server.drain()``); 0 for all other events.

        Example:
            >>> client.close(1000)
            >>> server.dequeue().code
            1000
        """
        return self._code

    @property
    def reason(self) -> str:
        """Text of the code, or ``""``.

        Example:
            >>> client.close(4000, "the room is closed")
            >>> server.dequeue().reason
            'the room is closed'
        """
        return self._reason

    def type(self) -> EventType:
        """Return the type: ``Event.Accept`` and so on.

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
            ApachewsError: an ``Invalid``, an ``Error`` of the server itself, an event of
                the relay, a ``Join`` or a ``Leave``: they have none.

        Example:
            >>> event.client().request.user
            'ann'
        """
        if self._client is None:
            raise ApachewsError(f"{self.type()!r} ({self.reason}) has no client")
        return self._client

    def client_or_none(self) -> Client | None:
        """Return the client of the event, or None.

        Example:
            >>> event.client_or_none() is client
            True
        """
        return self._client

    def read(self) -> Any:
        """Return the message: str for text, bytes for binary.

        An event without a message returns ``Event.ConnectionClosed`` (also a ``Close``),
        ``Event.Error`` (also an ``Invalid``), or ``Event.NoData`` (all other events).
        Reading twice returns the same.

        (Any, not a union: only ``type()`` tells which it is, and programs pass the
        result for an ``IO`` straight to ``write()``.)

        Example:
            >>> event.read()
            'hello'
        """
        return self._read

    def json(self) -> Any:
        """Return the value of a message that is a JSON text.

        Raises:
            ValueError: it is not one; json.JSONDecodeError has the position.
            ApachewsError: the event has no message.

        Example:
            >>> event.read()
            '{"x": 1}'
            >>> event.json()
            {'x': 1}
        """
        raise ApachewsError(f"{self.type()!r} has no message")

    def write(self, data: str | bytes | bytearray | memoryview) -> bool:
        """Send a message to the client of the event; see ``Client.send``.

        Example:
            >>> event.write("hello to you, too")
            True
        """
        client = self._client
        return (client if client is not None else self.client()).send(data)

    def respond(self, data: str | bytes | bytearray | memoryview) -> bool:
        """Send an answer in the type of the message, as the first apachews did.

        Bytes that are UTF-8 are sent as text, unless they answer a binary message; anything
        else as ``write`` sends it, bytes as binary.  For programs that were written for the
        first apachews, which had bytes only and sent them to the page as text.

        Returns and raises: see ``Client.send``.

        Example:
            >>> event.respond(b"hello, as text")
            True
        """
        # An event without a message has an empty str.
        if isinstance(self._data, str) and not isinstance(data, str):
            data = _text_if_utf8(data)
        return self.write(data)

    def accept(
        self, subprotocol: str | None = None, headers: Iterable[tuple[str, str]] = ()
    ) -> bool:
        """Accept the client of the event; see ``Client.accept``.

        Example:
            >>> event.accept(subprotocol="chat")
            True
        """
        return self.client().accept(subprotocol, headers)

    def reject(
        self, status: int = 403, body: str = "", headers: Iterable[tuple[str, str]] = ()
    ) -> bool:
        """Reject the client of the event; see ``Client.reject``.

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
    """Return the text of bytes that are UTF-8, and other bytes as they are."""
    try:
        return bytes(memoryview(data)).decode()
    except UnicodeDecodeError:
        return data


class AcceptEvent(Event):
    """A client connected, or waits to be accepted: ``AcceptEvent(client)``.

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
    """A message arrived: ``MessageEvent(client, data)``; an empty one has type ``NoData``.

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
        return wire.decode_json(self._data)


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
    """The client closed the connection: ``CloseEvent(client, code, reason)``.

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
    """The connection has ended: ``ConnectionClosedEvent(client, code, reason)``.

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
    """An error: ``ErrorEvent(client, code, reason)``; client None: of the server.

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
    """A program connected that does not speak the wire: ``InvalidEvent(code, reason)``.

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


class RelayLostEvent(Event):
    """The relay is lost: ``RelayLostEvent(reason)``; local clients notice nothing.

    Example:
        >>> match event:
        ...     case RelayLostEvent(reason):
        ...         print("other machines are out of reach:", reason)
        other machines are out of reach: Connection refused
    """

    __slots__ = ()
    __match_args__ = ("reason",)
    _type = EventType.RelayLost
    _read = EventType.NoData


class RelayBackEvent(Event):
    """The relay is back, every subscription is proven: ``RelayBackEvent(gap_s)``.

    Example:
        >>> match event:
        ...     case RelayBackEvent(gap_s):
        ...         print(server.broadcast_json({"reload": gap_s}), "clients")
        1 clients
    """

    __slots__ = ("_gap_s",)
    __match_args__ = ("gap_s",)
    _type = EventType.RelayBack
    _read = EventType.NoData

    def __init__(self, gap_s: float) -> None:
        super().__init__(None)
        self._gap_s = gap_s

    @property
    def gap_s(self) -> float:
        """Seconds in which messages of other producers may have been missed.

        Example:
            >>> event.gap_s
            2.5
        """
        return self._gap_s


class _MemberEvent(Event):
    __slots__ = ("_group", "_member")
    __match_args__ = ("group", "member")
    _read = EventType.NoData

    def __init__(self, group: str, member: str) -> None:
        super().__init__(None)
        self._group = group
        self._member = member

    @property
    def group(self) -> str:
        """The name of the group.

        Example:
            >>> event.group
            'room'
        """
        return self._group

    @property
    def member(self) -> str:
        """The member, as ``Group.add`` was given it, or the user.

        Example:
            >>> event.member
            'ann'
        """
        return self._member


class JoinEvent(_MemberEvent):
    """A member has joined a group: ``JoinEvent(group, member)``; with its first client.

    With ``Server(presence=True)``, at every producer with a client in the group.

    Example:
        >>> match event:
        ...     case JoinEvent(group, member):
        ...         print(member, "entered", group)
        ann entered room
    """

    __slots__ = ()
    _type = EventType.Join


class LeaveEvent(_MemberEvent):
    """A member has left a group: ``LeaveEvent(group, member)``; with its last client.

    Example:
        >>> match event:
        ...     case LeaveEvent(group, member):
        ...         print(member, "left", group)
        ann left room
    """

    __slots__ = ()
    _type = EventType.Leave


class GapEvent(Event):
    """Messages of a history are lost: ``GapEvent(client, group)``; the client needs a new start.

    With a client: what lies between the position of ``Group.add(since=...)`` and the kept
    messages is lost.  Without one (``client_or_none()`` is None): all members of this process
    have missed messages, because the store has lost them.

    Example:
        >>> match event:
        ...     case GapEvent(client, group):
        ...         client.send_json({"reload": group})
        True
    """

    __slots__ = ("_group",)
    __match_args__ = ("_client", "group")
    _type = EventType.Gap
    _read = EventType.NoData

    def __init__(self, client: Client | None, group: str) -> None:
        super().__init__(client)
        self._group = group

    @property
    def group(self) -> str:
        """The name of the group.

        Example:
            >>> event.group
            'room'
        """
        return self._group
