"""The producer of ``ours``: echo, or each message to all, with the library's plain API.

(In fan-out a text is a greeting, which is answered, as with all peers.)

Run as ``python -m bench.backends.apachews_producer echo|fan-out|one-by-one PATH [RELAY]``.
``one-by-one`` sends to each client in a loop: the cost of a program that does not use
``broadcast``.  RELAY is the address of a Redis that it shares with another producer.
"""

from __future__ import annotations

import sys
import time

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
    mode, path, relay = [*sys.argv[1:], ""][:3]
    # 0o666: Apache's children run as another user where root starts them.
    server = Server(path, mode=0o666, relay=relay)
    while (status := server.relay_status()) and not status.is_up:
        time.sleep(0.01)
    print("listening", path, flush=True)
    if mode != "echo":
        fan_out(server, broadcasts=mode == "fan-out")
    while True:
        event = server.dequeue()
        if event.type() == Event.IO:
            event.write(event.read())


main()
