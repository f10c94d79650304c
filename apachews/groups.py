"""Groups of clients: rooms, channels, topics.

Contract: made by ``Server.group(name)``; every method returns at once, for any thread.
A client leaves its groups by itself when its connection ends.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from .client import Client, encode_json, encode_message


class Delivery(NamedTuple):
    """What became of a broadcast.

    Attributes:
        reached: clients that it was sent to or queued for.
        skipped: clients that it was not: gone, being closed, or closed just now with
            1013 because more than ``max_queue_bytes`` waited for them already.

    Example:
        >>> reached, skipped = server.group("room").broadcast("anybody here?")
        >>> reached, skipped
        (0, 0)
    """

    reached: int
    skipped: int


class Group:
    """Clients under one name.

    Attributes:
        name: as it was asked for.

    Example:
        >>> room = server.group("room")
        >>> room.add(client)
        True
        >>> len(room), client in room, [member.request.user for member in room]
        (1, True, ['ann'])
    """

    __slots__ = ("__weakref__", "_lock", "_members", "name")

    def __init__(self, name: str, lock: threading.RLock) -> None:
        self.name = name
        self._lock = lock
        self._members: dict[Client, None] = {}  # in the order in which they came

    def __repr__(self) -> str:
        return f"<Group {self.name!r} of {len(self)}>"

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, client: object) -> bool:
        return client in self._members

    def __iter__(self) -> Iterator[Client]:
        """Give the members of this moment, in the order in which they came."""
        with self._lock:
            return iter(list(self._members))

    def add(self, client: Client) -> bool:
        """Add a client, once; False where its connection has ended.

        Example:
            >>> server.group(client.request.query["room"][0]).add(client)
            True
        """
        with self._lock:
            if client.has_ended:
                return False
            self._members[client] = None
            client.joined(self)
            return True

    def discard(self, client: Client) -> None:
        """Remove a client, if it is a member.

        Example:
            >>> room = server.group("room")
            >>> room.discard(client)
            >>> client in room
            False
        """
        with self._lock:
            self._members.pop(client, None)
            client.left(self)

    def broadcast(
        self,
        data: str | bytes | bytearray | memoryview,
        exclude: Client | Iterable[Client] = (),
    ) -> Delivery:
        """Send a message to every member; it is encoded once.

        Args:
            data: as ``Client.send``.
            without: a member, or members, who do not get it: who said it, perhaps.

        Raises:
            TypeError, UnicodeEncodeError: as ``Client.send``.

        Example:
            >>> room = server.group("room")
            >>> room.add(client)
            True
            >>> room.broadcast(event.read(), exclude=event.client())
            Delivery(reached=0, skipped=0)
        """
        return self._broadcast_frame(encode_message(data), exclude)

    def broadcast_json(self, value: Any, exclude: Client | Iterable[Client] = ()) -> Delivery:
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
        return self._broadcast_frame(encode_json(value), exclude)

    def _broadcast_frame(self, frame: bytes, exclude: Client | Iterable[Client]) -> Delivery:
        left_out = {exclude} if isinstance(exclude, Client) else set(exclude)
        with self._lock:
            members = [client for client in self._members if client not in left_out]
            reached = sum(client.send_frame(frame) for client in members)
        return Delivery(reached, len(members) - reached)
