"""A chat with rooms: ``chat.ws?room=tea&name=Ann``.

Run it with the path of its socket file as the argument.

A client sends plain text; it receives JSON objects: first ``{"room": "tea", "said":
[…]}`` with what was said last, then ``{"name": "Ann", "text": "hello", "at": 1767225600}``
for everything that anybody in the room says, ``{"people": ["Ann", "Bob"]}`` when somebody
came or went, and ``{"problem": "…"}`` where its own message was not passed on.

How a deploy goes unnoticed: who somebody is stands in the address, which Apache tells the
next version of this program as well.  So nothing has to be asked again.  (What was said
is forgotten: keep it elsewhere to keep it.)
"""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections import deque

from apachews import aio, wire

ROOM = re.compile(r"[a-z0-9-]{1,30}")
MAX_NAME = 30  # characters
MAX_TEXT = 1000
MAX_ROOMS = 1000
MAX_PEOPLE = 200  # in a room: each message is written as often
REMEMBERED = 30  # messages of a room, for whoever comes later
# Who is there is told at most so often: of a hundred people who come at once, each would
# otherwise be told a hundred times.
PEOPLE_EVERY_S = 0.2
# What may wait for somebody who does not read, before he is closed with 1013.
MAX_QUEUE_BYTES = 256 * 1024


class Room:
    """A room: who is in it, which is a group of the server's, and what they said."""

    def __init__(self, name: str, server: aio.AsyncServer) -> None:
        self.name = name
        self.people = server.group(name)
        self.said: deque[dict[str, object]] = deque(maxlen=REMEMBERED)
        self._telling: asyncio.TimerHandle | None = None

    def tell(self, value: object) -> None:
        """Send a value to everybody in the room; waits for nobody."""
        self.people.broadcast_json(value)

    def people_changed(self) -> None:
        """Tell everybody who is here, soon."""
        if self._telling is None:
            loop = asyncio.get_running_loop()
            self._telling = loop.call_later(PEOPLE_EVERY_S, self._tell_people)

    def _tell_people(self) -> None:
        self._telling = None
        names = [client.state for client in self.people]
        self.tell({"people": sorted(names, key=str.casefold)})


rooms: dict[str, Room] = {}


async def chat(connection: aio.Connection) -> None:
    """Serve one client, from its coming to its leaving."""
    try:
        room, name = enter(connection)
    except ValueError as error:
        connection.close(wire.POLICY_VIOLATION, str(error))
        return
    # Whoever was resumed after a deploy has seen this.
    if not connection.request.resumed:
        await connection.send_json({"room": room.name, "said": list(room.said)})
    room.people_changed()
    async for message in connection:
        if not isinstance(message, str) or not message.strip():
            continue
        if len(message) > MAX_TEXT:
            await connection.send_json({"problem": f"At most {MAX_TEXT} characters, please."})
            continue
        room.said.append({"name": name, "text": message, "at": int(time.time())})
        room.tell(room.said[-1])
    # 1012: gone to the next version of this program, and still in the room.
    if connection.close_code != wire.SERVICE_RESTART:
        room.people_changed()
        if not room.people:
            rooms.pop(room.name, None)


def enter(connection: aio.Connection) -> tuple[Room, str]:
    """Let a client into its room; return that, and the client's name.

    Raises:
        ValueError: there is no place, or no such room or name; the text is for the client.
    """
    query = connection.request.query
    # Where Apache asks for a login, that is the name.
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
    connection.client.state = name
    room.people.add(connection.client)
    return room, name


async def main(path: str) -> None:
    """Serve on a socket file until somebody ends it."""
    async with aio.serve(path, chat, max_queue_bytes=MAX_QUEUE_BYTES) as server:
        await server.wait_closed()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
