"""A small chat room: everybody reads what anybody writes.

Messages are JSON.  A client sends ``{"name": "Ann", "text": "hello"}``; it receives
such objects, and ``{"count": 3}`` whenever somebody comes or goes.
"""

from __future__ import annotations

import json
import sys

from apachews import Event, Server

MAX_NAME = 40  # characters
MAX_TEXT = 2000


def main(path: str) -> None:
    """Serve the room on a socket file until the server is closed."""
    with Server(path) as server:
        for event in server:
            if event.type() in (Event.Accept, Event.ConnectionClosed):
                server.broadcast(json.dumps({"count": len(server.clients())}))
            elif event.type() is Event.IO:
                said = parse(event.read())
                if said is None:
                    event.close(1008, 'expected {"name": "…", "text": "…"}')
                else:
                    server.broadcast(json.dumps(said))


def parse(data: object) -> dict[str, str] | None:
    """Return what somebody said, None for anything else."""
    try:
        said = json.loads(str(data))
        name, text = said["name"], said["text"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not isinstance(name, str) or not isinstance(text, str):
        return None
    return {"name": name[:MAX_NAME], "text": text[:MAX_TEXT]}


if __name__ == "__main__":
    main(sys.argv[1])
