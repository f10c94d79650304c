"""A connected client and groups of clients, as the producer sees them.

Contract: ``Server`` makes both; every method returns at once, whatever the client does, and may
be called by any thread.  A client leaves its groups when its connection ends.

Long because ``Client``, ``Link`` and ``Group`` name each other in their interfaces, so that one
module defines them.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Protocol

from apachews.wire.answer import Answer

from . import wire
from .delivery import Delivery, Relay, Scope, relay_for
from .exceptions import ApachewsError, NotAsked
from .history import Position, Replay, position_of


class Link(Protocol):
    """What a client needs of its connection (``_server/connection.py``).

    Attributes:
        lock: the server's; the caller of a method holds it.
    """

    lock: threading.RLock

    @property
    def waiting_bytes(self) -> int: ...

    @property
    def has_ended(self) -> bool: ...

    def send_frame(self, frame: bytes) -> bool:
        """Send or queue one whole data frame; return False if it cannot be sent."""

    def send_answer(self, answer: Answer) -> bool:
        """Send the ANSWER; return False if the bridge does not wait for one."""

    def send_close(self, code: int, reason: str) -> None:
        """Send or queue a CLOSE, once."""

    def join_group(self, group: Group) -> None:
        """Note that the client is in a group."""

    def leave_group(self, group: Group) -> None:
        """Note that the client is in a group no more."""


class Presence(Protocol):
    """What a group needs to know its members over all producers (``_relay/presence.py``)."""

    def members(self, group: str) -> list[str]:
        """Return the members of a group."""

    def join(self, group: str, client: Client, member: str | None) -> None:
        """Add a client of a member; None: its user."""

    def leave(self, group: str, client: Client, *, at_once: bool) -> None:
        """Remove a client, which may come back soon unless ``at_once``."""


class History(Protocol):
    """What a group needs to keep its last messages (``_server/histories.py``)."""

    @property
    def has_waiting(self) -> bool: ...

    def broadcast(self, frame: bytes) -> Delivery:
        """Store a message, and send it to the members."""

    def add(
        self,
        client: Client,
        member: str | None,
        since: Position | None,
        on_replay: OnReplay | None,
    ) -> None:
        """Add a client to the group, now or once the store has answered."""

    def read(self, since: Position, function: Callable[[Replay], object]) -> None:
        """Call a function with the messages after a place, now or once the store has answered."""

    def cancel(self, client: Client) -> bool:
        """Forget a client that waits; return whether it did."""

    def leave(self) -> None:
        """Note that a client has left."""


class Client:
    """A connected client.

    Attributes:
        state: any value of the program's own about this client.

    Example:
        >>> client.state = {"name": "Ann"}
        >>> client.request.path, client.request.query, client.request.user
        ('/ws/chat.ws', {'room': ['1']}, 'ann')
        >>> client.send(f"hello, {client.state['name']}")
        True
    """

    __slots__ = ("__weakref__", "_groups", "_id", "_link", "_ping", "_request", "state")

    def __init__(self, link: Link, open_id: str, opening: bytes) -> None:
        self._link = link
        self._groups: set[Group] | None = None
        self._id = open_id
        self._ping: tuple[bytes, float] | None = None  # the last: payload, time
        # The payload of the OPEN until its first use: it takes a third of the memory of the
        # decoded request, which most programs never read, or for few clients.
        self._request: bytes | wire.Open = opening
        self.state: Any = None

    def __repr__(self) -> str:
        return f"<Client {self._id} {self.request.uri}>"

    @property
    def request(self) -> wire.Open:
        """The client's request.

        It has ``uri``, ``headers``, ``header(name)``, ``path``, ``query``, ``cookies``,
        ``remote``, ``user`` and more; see ``apachews.wire.Open``.

        Example:
            >>> client.request.path, client.request.query, client.request.user
            ('/ws/chat.ws', {'room': ['1']}, 'ann')
        """
        request = self._request
        if isinstance(request, bytes):
            request = self._request = wire.Open.decode(request)
        return request

    @property
    def queued_bytes(self) -> int:
        """Bytes in this process that wait for the client to read; 0 once it is gone.

        The kernel (some hundred KB) and Apache (``APACHEWS_MAX_BUFFER``) hold more.

        Example:
            >>> client.send("hello")
            True
            >>> client.queued_bytes  # it reads as fast as the program writes
            0
        """
        return self._link.waiting_bytes

    @property
    def has_ended(self) -> bool:
        """True once nothing can be sent any more, because it is gone or being closed.

        Example:
            >>> client.has_ended
            False
            >>> client.close()
            >>> client.has_ended
            True
        """
        return self._link.has_ended

    @property
    def groups(self) -> list[Group]:
        """The groups it is in.

        Example:
            >>> server.group("room").add(client)
            True
            >>> client.groups
            [<Group 'room' of 1>]
        """
        return list(self._groups or ())

    def guid(self) -> str:
        """Return the connection's id: unique, and safe as a dictionary key.

        Example:
            >>> clients = {client.guid(): client}
            >>> event.client().guid() in clients
            True
        """
        return self._id

    def accept(
        self, subprotocol: str | None = None, headers: Iterable[tuple[str, str]] = ()
    ) -> bool:
        """Accept the client, if Apache leaves the decision to the producer.

        It does with ``SetEnv APACHEWS_ACCEPT producer``.  Until then the client has
        no response, is not among ``Server.clients()``, and nothing can be sent.

        Args:
            subprotocol: one of ``request.offered``, or None.
            headers: names and values to add to the response.

        Returns:
            False if Apache does not wait for an answer: it was answered, Apache gave up
            (``APACHEWS_CONNECT_TIMEOUT``, 5 s), or Apache accepts by itself.

        Raises:
            NotAsked: Apache accepts by itself, and a subprotocol or a header would be
                lost.
            ValueError: a subprotocol that was not offered, or a header that is not
                allowed.

        Example:
            >>> client.request.offered
            ('chat',)
            >>> client.accept("chat", headers=[("Set-Cookie", "seen=1")])
            True
        """
        answer = Answer.accept(subprotocol, headers)
        if not self.request.answer_required and (subprotocol is not None or answer.headers):
            raise NotAsked("accept() with a subprotocol or headers")
        if subprotocol is not None and subprotocol not in self.request.offered:
            offered = ", ".join(self.request.offered) or "none"
            raise ValueError(
                f"the client did not offer the subprotocol {subprotocol!r:.80}; offered: {offered}"
            )
        with self._link.lock:
            return self._link.send_answer(answer)

    def reject(
        self, status: int = 403, body: str = "", headers: Iterable[tuple[str, str]] = ()
    ) -> bool:
        """Reject the client with an HTTP response, if Apache leaves the decision to the producer.

        A ConnectionClosed event follows.

        Args:
            status: 300 to 599.
            body: text; the response says it is text/plain, unless a header does.
            headers: names and values to add to the response.

        Returns:
            False if Apache does not wait for an answer: it was answered, or Apache gave up.

        Raises:
            NotAsked: Apache accepts by itself; the client is connected.
            ValueError: a status or a header that is not allowed, or an answer that is too
                large.

        Example:
            >>> client.reject(404, "This room does not exist.")
            True
        """
        answer = Answer.reject(status, headers, body)
        if not self.request.answer_required:
            raise NotAsked("reject()")
        with self._link.lock:
            return self._link.send_answer(answer)

    def send(self, data: str | bytes | bytearray | memoryview) -> bool:
        r"""Send a message: str as text, bytes-like objects as binary.

        Returns:
            True: sent, or queued for a slow client.  False: the client is gone or being
            closed; or more than ``max_queue_bytes`` were queued for it before this
            message, so that the server closes it with code 1013.  A ConnectionClosed
            event follows.

        Raises:
            TypeError: neither str nor bytes-like.
            UnicodeEncodeError: text with surrogates, which UTF-8 cannot carry.

        Example:
            >>> client.send("text")
            True
            >>> client.send(b"\x00\x01 binary")
            True
        """
        frame = wire.encode_message(data)
        link = self._link
        with link.lock:
            return link.send_frame(frame)

    def send_json(self, value: Any) -> bool:
        """Send a value as a JSON text; see ``send``.

        Raises:
            TypeError: a value in it has no JSON form.
            ValueError: it contains itself, or a number that is not finite.

        Example:
            >>> client.send_json({"count": 3})
            True
        """
        return self._send_frame(wire.encode_json(value))

    def _send_frame(self, frame: bytes) -> bool:
        """Send the frame that ``encode_message`` returned, as ``send`` does."""
        with self._link.lock:
            return self._link.send_frame(frame)

    def ping(self) -> bool:
        """Send a PING; a Pong event with the latency follows when the client answers.

        Browsers answer by themselves.  (Apache pings every client too, and closes those
        that do not answer: ``APACHEWS_PING_INTERVAL``.)

        Returns:
            False if the client is gone or being closed.

        Example:
            >>> client.ping()
            True
            >>> server.dequeue().latency_s < 10
            True
        """
        payload = os.urandom(8)
        with self._link.lock:
            self._ping = payload, time.monotonic()
            return self._link.send_frame(wire.encode_frame(wire.PING, payload))

    def _receive_pong(self, payload: bytes) -> float | None:
        """Return the seconds since the ping that a PONG answers; None if it answers none."""
        if self._ping is None or self._ping[0] != payload:
            return None
        latency_s, self._ping = time.monotonic() - self._ping[1], None
        return latency_s

    def _leave_groups(self, *, at_once: bool) -> None:
        """Leave all groups: the connection has ended; ``at_once``: it was closed on purpose."""
        for group in self.groups:
            group._remove(self, at_once=at_once)

    def close(self, code: int = wire.NORMAL, reason: str = "") -> None:
        """Close the connection; a ConnectionClosed event follows.

        Queued messages are sent first, as far as the client reads them within 10 s
        (``APACHEWS_CLOSE_TIMEOUT`` in Apache, ``CLOSE_TIMEOUT_S`` here).

        A client that was not accepted yet is rejected with 503.

        Closing again, or closing a client that is gone, does nothing.

        Raises:
            ValueError: a code that a CLOSE may not carry (use 1000-1003, 1007-1014 or
                3000-4999), or a reason of more than 123 bytes in UTF-8.

        Example:
            >>> client.close(4000, "the room is closed")
            >>> server.dequeue().code  # what the client answered
            4000
        """
        with self._link.lock:
            self._link.send_close(code, reason)


# What ``Group.add`` calls with what a client has missed.
OnReplay = Callable[[Client, Replay], object]


class Group:
    """Clients under one name: a room, a channel, a topic.

    Attributes:
        name: the name that ``Server.group`` was given.

    Example:
        >>> room = server.group("room")
        >>> room.add(client)
        True
        >>> len(room), client in room, [member.request.user for member in room]
        (1, True, ['ann'])
    """

    __slots__ = (
        "__weakref__",
        "_history",
        "_lock",
        "_members",
        "_presence",
        "_receive",
        "_relay",
        "_send",
        "name",
    )

    def __init__(
        self,
        name: str,
        lock: threading.RLock,
        send: Callable[[Group, Collection[Link], list[Link], bytes], int],
        relay: Relay | None = None,
        presence: Presence | None = None,
    ) -> None:
        """Use ``send`` for a frame to the first links and, of the members, not to the second.

        It returns how many clients the frame was sent to.
        """
        self.name = name
        self._lock = lock
        self._send = send
        self._relay = relay
        self._presence = presence
        self._history: History | None = None
        # Called with the messages of other processes; see ``on_message``.
        self._receive: Callable[[str | bytes], object] | None = None
        # In the order in which they were added, with their connections.
        self._members: dict[Client, Link] = {}

    def __repr__(self) -> str:
        return f"<Group {self.name!r} of {len(self)}>"

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, client: object) -> bool:
        return client in self._members

    def __iter__(self) -> Iterator[Client]:
        """Iterate over the present members, in the order in which they were added."""
        with self._lock:
            return iter(list(self._members))

    def add(
        self,
        client: Client,
        member: str | None = None,
        *,
        since: Sequence[object] | None = None,
        on_replay: OnReplay | None = None,
    ) -> bool:
        """Add a client, once; return False if its connection has ended.

        In a group with a history, ``since`` is the place up to which the client has the
        messages.  It receives those that follow, then all further ones, each once and in
        order.  If messages between them are lost, it receives the ones that are kept, and
        a ``GapEvent`` follows.

        With a history in the relay, the client becomes a member when the relay has
        answered, some milliseconds later, or once the relay is back.

        Args:
            client: the client.
            member: with ``Server(presence=True)``, as whom ``members()`` has it; clients
                with the same are one member.  None: the user whom Apache has
                authenticated, or without a login the client's own id.
            since: epoch and offset of the client's last message, as the formatter of
                ``Server.group`` was given them; ``("", 0)``: all kept messages; None: none.
            on_replay: sends the client what it has missed: called once with the client and
                a ``Replay``, before the client receives any further message, in ``add`` or
                in ``dequeue()``, and not for a client that is a member already; must not
                raise.  None: each is sent as a message.

        Raises:
            ValueError: ``since`` is not a position, or the group has no history.

        Example:
            >>> server.group(client.request.query["room"][0]).add(client)
            True
        """
        history = self._history
        if history is None and (since is not None or on_replay is not None):
            raise ValueError("since= and on_replay= need server.group(name, history=...)")
        position = None if since is None else position_of(since)
        with self._lock:
            if client.has_ended:
                return False
            if client not in self._members:
                if self._relay is not None and self._is_empty:
                    self._relay.subscribe(self.name)
                if client._groups is None:
                    client._groups = set()
                client._groups.add(self)
                if history is not None:
                    history.cancel(client)
                    history.add(client, member, position, on_replay)
                    return True
            self._join(client, member)
            return True

    def replay(self, since: Sequence[object], function: Callable[[Replay], object]) -> None:
        """Call a function with the kept messages after a position, without a client.

        With a history in the relay it is called in ``dequeue()``, when the relay has
        answered; otherwise at once.

        Args:
            since: as ``add``.
            function: called once, with a ``Replay``; must not raise.

        Raises:
            ValueError: ``since`` is not a position, or the group has no history.
            HistoryError: the file cannot be read.

        Example:
            >>> news = server.group("news", history=10)
            >>> news.broadcast("hello")
            Delivery(reached=0, skipped=0, position=...)
            >>> news.replay(("", 0), lambda replay: print(replay.messages))
            [PastMessage(offset=1, data='hello')]
        """
        history = self._history
        if history is None:
            raise ValueError("replay() needs server.group(name, history=...)")
        position = position_of(since)
        with self._lock:
            if self._relay is not None and self._is_empty:
                self._relay.subscribe(self.name)
            history.read(position, function)
            self._end_if_empty()

    def on_message(self, function: Callable[[str | bytes], object]) -> None:
        """Call a function with each message of the group that another process sends.

        These are messages of other workers, of other producers with the same relay, and of
        ``publish()``; not the broadcasts of this process.  It is called in ``dequeue()``, also
        without members here, as long as the program refers to the group, and must not raise.

        Args:
            function: called with the message.

        Raises:
            ValueError: the group has a history.

        Example:
            >>> staff = server.group("staff")
            >>> staff.on_message(print)
        """
        with self._lock:
            if self._history is not None:
                raise ValueError("on_message(): the group has a history")
            self._receive = function
            if self._relay is not None:
                self._relay.subscribe(self.name)

    def _end_if_empty(self) -> None:
        """Receive nothing any more, if the group has no clients here."""
        if self._history is not None:
            self._history.leave()
        if self._relay is not None and self._is_empty:
            self._relay.unsubscribe(self.name)

    @property
    def _is_empty(self) -> bool:
        """True without members, and clients and functions that wait for the store."""
        if self._members or self._receive is not None:
            return False
        return self._history is None or not self._history.has_waiting

    def _join(self, client: Client, member: str | None) -> None:
        """Make a client a member; ignore one that has left meanwhile."""
        if client._groups is None or self not in client._groups or client.has_ended:
            return
        if client not in self._members:
            self._members[client] = client._link
            client._link.join_group(self)
        if self._presence is not None:
            self._presence.join(self.name, client, member)

    def discard(self, client: Client) -> None:
        """Remove a client, if it is a member.

        Example:
            >>> room = server.group("room")
            >>> room.discard(client)
            >>> client in room
            False
        """
        with self._lock:
            self._remove(client, at_once=True)

    def _remove(self, client: Client, *, at_once: bool) -> None:
        if client._groups is not None:
            client._groups.discard(self)
        history = self._history
        if client not in self._members:
            if history is not None:
                history.cancel(client)
                self._end_if_empty()
            return
        del self._members[client]
        client._link.leave_group(self)
        if history is not None:
            history.leave()
        if self._presence is not None:
            # It ends the subscription, after the delay of a leave.
            self._presence.leave(self.name, client, at_once=at_once)
        elif self._relay is not None and self._is_empty:
            self._relay.unsubscribe(self.name)

    def members(self) -> list[str]:
        """Return the members over all workers and machines, each once.

        With ``Server(presence=True)``, and while at least one client of this process is in
        the group.  Changes cause ``JoinEvent`` and ``LeaveEvent``.

        Raises:
            ApachewsError: the server has no presence.

        Example:
            >>> try:
            ...     print(server.group("room").members())
            ... except ApachewsError as error:  # this server has no presence
            ...     print(error)
            members() needs Server(presence=True)
        """
        if self._presence is None:
            raise ApachewsError("members() needs Server(presence=True)")
        with self._lock:
            return self._presence.members(self.name)

    @property
    def is_relayed(self) -> bool:
        """True once messages of other producers arrive, some milliseconds after the first ``add``.

        Example:
            >>> server.group("room").is_relayed  # the server has no relay
            False
        """
        is_subscribed = self._relay is not None and self._relay.is_subscribed(self.name)
        return is_subscribed and not (self._history is not None and self._history.has_waiting)

    def broadcast(
        self,
        data: str | bytes | bytearray | memoryview,
        exclude: Client | Iterable[Client] = (),
        scope: Scope = "everywhere",
    ) -> Delivery:
        """Send a message to every member; it is encoded once.

        A group with a history stores it as well; ``Delivery.position`` is its place.

        Args:
            data: as ``Client.send``.
            exclude: one member or several that do not receive it, the sender for example;
                not in a group with a history, whose members all have the same messages.
            scope: ``here``: only to members in this process, and not through the relay; a
                history does not store it.

        Raises:
            TypeError, UnicodeEncodeError: as ``Client.send``.
            MessageTooLarge: the relay does not carry it; no member has received it.
            HistoryError: the history cannot store it; no member has received it.
            ValueError: ``exclude`` in a group with a history.

        Example:
            >>> room = server.group("room")
            >>> room.add(client)
            True
            >>> room.broadcast(event.read(), exclude=event.client())
            Delivery(reached=0, skipped=0)
        """
        return self._broadcast(wire.encode_message(data), exclude, scope)

    def broadcast_json(
        self,
        value: Any,
        exclude: Client | Iterable[Client] = (),
        scope: Scope = "everywhere",
    ) -> Delivery:
        """Send a value to every member as a JSON text; see ``broadcast``.

        Raises:
            TypeError, ValueError: as ``Client.send_json``.

        Example:
            >>> room = server.group("room")
            >>> room.add(client)
            True
            >>> room.broadcast_json({"count": len(room)})
            Delivery(reached=1, skipped=0)
        """
        return self._broadcast(wire.encode_json(value), exclude, scope)

    def _broadcast(
        self, frame: bytes, exclude: Client | Iterable[Client], scope: Scope
    ) -> Delivery:
        relay = relay_for(scope, self._relay)
        if relay is not None:
            relay.require_fitting(frame)
        if self._history is not None and scope == "everywhere":
            if isinstance(exclude, Client) or any(True for _ in exclude):
                raise ValueError("exclude=: a group with a history has the same messages for all")
            with self._lock:
                return self._history.broadcast(frame)
        if relay is None:
            return self._broadcast_frame(frame, exclude)
        # Under the lock: two threads must not publish in another order than they broadcast here.
        with self._lock:
            delivery = self._broadcast_frame(frame, exclude)
            return delivery._with_relayed(relay.publish(self.name, frame))

    def _deliver(self, frame: bytes) -> Delivery:
        """Send a frame of another process to the members, and give it to the function."""
        if self._receive is not None:
            first, length, start = wire.decode_header(frame, 0) or (0, 0, 0)
            payload = frame[start : start + length]
            self._receive(payload.decode() if first == wire.FIN | wire.TEXT else payload)
        return self._broadcast_frame(frame, ())

    def _broadcast_frame(self, frame: bytes, exclude: Client | Iterable[Client]) -> Delivery:
        skipped = {exclude} if isinstance(exclude, Client) else set(exclude)
        with self._lock:
            links: Collection[Link] = self._members.values()
            excluded: list[Link] = []
            if skipped:
                links = [client._link for client in self._members if client not in skipped]
                excluded = [client._link for client in skipped if client in self._members]
            count = len(links)  # before a client leaves that is sent too much
            reached = self._send(self, links, excluded, frame)
        return Delivery(reached, count - reached)
