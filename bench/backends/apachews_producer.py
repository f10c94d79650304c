"""The producer of ``ours``: echo, or each message to all, with the library's plain API.

(In fan-out a text is a greeting, which is answered: with all peers alike.)

Run as ``python -m bench.backends.apachews_producer echo|fan-out PATH``.
"""

from __future__ import annotations

import sys

from apachews import Event, Server


def main() -> None:
    """Serve until killed."""
    _, mode, path = sys.argv
    # 0o666: Apache's children run as another user where root starts them.
    server = Server(path, mode=0o666)
    print("listening", path, flush=True)
    if mode == "fan-out":
        while True:
            event = server.dequeue()
            if event.type() != Event.IO:
                continue
            message = event.read()
            if isinstance(message, str):
                event.write(message)
            else:
                server.broadcast(message)
    while True:
        event = server.dequeue()
        if event.type() == Event.IO:
            event.write(event.read())


main()
