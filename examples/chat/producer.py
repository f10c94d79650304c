"""A chat with rooms: ``chat.ws?room=tea&name=Ann``.

Run it with the path of its socket file as the argument; on several machines also with the address
of a relay, ``redis://10.0.0.5:6379/0``.

A client sends plain text and receives JSON objects: first ``{"room": "tea", "said": […]}``
with the last messages, then ``{"name": "Ann", "text": "hello", "at": 1767225600}`` for each
message in the room, ``{"people": ["Ann", "Bob"]}`` when the list of members changes, and
``{"problem": "…"}`` if its own message was rejected.

A deploy does not interrupt the conversation: the URL has the room and the name, and Apache
gives the request to the next version of this program as well.  (The last messages are lost
then: store them elsewhere to keep them.  With a relay each machine has those of its own clients.)
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections import deque

from apachews import Event, JoinEvent, LeaveEvent, aio, wire

ROOM = re.compile(r"[a-z0-9-]{1,30}")
MAX_NAME = 30  # characters
MAX_TEXT = 1000
MAX_ROOMS = 1000
MAX_PEOPLE = 200  # in a room: each message is sent this many times
REMEMBERED = 30  # messages of a room, for clients that enter later
# Shortest time between two lists of members.  Otherwise a hundred clients that enter at once
# would each receive a hundred lists.
PEOPLE_EVERY_S = 0.2
# Bytes queued for a client that does not read, before it is closed with 1013.
MAX_QUEUE_BYTES = 256 * 1024


class Room:
    """A room: its members, which are a group of the server, and their last messages."""

    def __init__(self, name: str, server: aio.AsyncServer) -> None:
        self.name = name
        self.people = server.group(name)
        self.said: deque[dict[str, object]] = deque(maxlen=REMEMBERED)
        self._announcement: asyncio.TimerHandle | None = None

    def send(self, value: object) -> None:
        """Send a value to every member, without waiting for any of them."""
        self.people.broadcast_json(value)

    def schedule_announcement(self) -> None:
        """Send the list of members to every member after PEOPLE_EVERY_S."""
        if self._announcement is None:
            loop = asyncio.get_running_loop()
            self._announcement = loop.call_later(PEOPLE_EVERY_S, self._announce_people)

    def _announce_people(self) -> None:
        self._announcement = None
        # Every process has the events of a change, and tells its own clients.
        names = sorted(self.people.members(), key=str.casefold)
        self.people.broadcast_json({"people": names}, scope="here")


rooms: dict[str, Room] = {}


async def chat(connection: aio.Connection) -> None:
    """Serve one client until it disconnects."""
    try:
        room, name = enter(connection)
    except ValueError as error:
        connection.close(wire.POLICY_VIOLATION, str(error))
        return
    # A client that is resumed after a deploy has seen these messages.
    if not connection.request.resumed:
        await connection.send_json({"room": room.name, "said": list(room.said)})
    room.schedule_announcement()
    async for message in connection:
        if not isinstance(message, str) or not message.strip():
            continue
        if len(message) > MAX_TEXT:
            await connection.send_json({"problem": f"At most {MAX_TEXT} characters, please."})
            continue
        room.said.append({"name": name, "text": message, "at": int(time.time())})
        room.send(room.said[-1])
    if not room.people:
        rooms.pop(room.name, None)


def announce(event: Event) -> None:
    """Tell the clients of a room that a member has entered or left, here or elsewhere."""
    if isinstance(event, (JoinEvent, LeaveEvent)) and event.group in rooms:
        rooms[event.group].schedule_announcement()


def enter(connection: aio.Connection) -> tuple[Room, str]:
    """Add a client to its room; return the room and the client's name.

    Raises:
        ValueError: invalid name or room, or the room is full; the text is for the client.
    """
    query = connection.request.query
    # If Apache requires a login, its name has precedence.
    name = " ".join((connection.request.user or query.get("name", [""])[0]).split())
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise ValueError(f"a name has 1 to {MAX_NAME} characters")
    key = query.get("room", ["lobby"])[0]
    if not ROOM.fullmatch(key):
        raise ValueError("a room's name is a-z, 0-9 and -, at most 30")
    if key not in rooms:
        if len(rooms) >= MAX_ROOMS:
            raise ValueError("there are too many rooms")
        rooms[key] = Room(key, connection.server)
    room = rooms[key]
    if len(room.people) >= MAX_PEOPLE:
        raise ValueError("the room is full")
    room.people.add(connection.client, member=name)
    return room, name


async def main(path: str, relay: str | None) -> None:
    """Serve on a socket file until the program is stopped."""
    async with aio.serve(
        path,
        chat,
        on_event=announce,
        presence=True,
        relay=relay,
        max_queue_bytes=MAX_QUEUE_BYTES,
    ) as server:
        await server.wait_closed()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None))
