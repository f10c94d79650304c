"""The producer of ``ours``: echo, or each message to all, with the library's plain API.

(In fan-out a text is a greeting, which is answered, as with all peers.)

Run as ``python -m bench.backends.apachews_producer echo|fan-out|one-by-one PATH``.  The last
one sends to each client in a loop: the cost of a program that does not use ``broadcast``.
"""

from __future__ import annotations

import sys

from apachews import Event, Server


def fan_out(server: Server, *, broadcasts: bool) -> None:
    """Send each message to all clients."""
    while True:
        event = server.dequeue()
        if event.type() != Event.IO:
            continue
        message = event.read()
        if isinstance(message, str):
            event.write(message)
        elif broadcasts:
            server.broadcast(message)
        else:
            for client in server.clients():
                client.send(message)


def main() -> None:
    """Serve until killed."""
    _, mode, path = sys.argv
    # 0o666: Apache's children run as another user where root starts them.
    server = Server(path, mode=0o666)
    print("listening", path, flush=True)
    if mode != "echo":
        fan_out(server, broadcasts=mode == "fan-out")
    while True:
        event = server.dequeue()
        if event.type() == Event.IO:
            event.write(event.read())


main()
