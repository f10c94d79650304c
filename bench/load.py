"""The load generator: a process of its own, on picows and uvloop.

Run as ``python -m bench.load``; ``generator.py`` drives it.  It reads commands from its
standard input, one JSON object a line, and answers each with one line.  It ends when its
input does.

How this works.  Every client keeps ``window`` messages under way: it sends the next one after each
answer.  It checks the length of every answer, and the content of the first and of every 64th,
which contains the number of the message and thus proves its place.  ``mark`` returns the counts so
far and the processor time of this process; a window of time is the difference between two marks.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import ssl
import sys
import time
import zlib
from collections.abc import Awaitable, Callable
from typing import Any, Final

import uvloop
from picows import WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from .limits import MAX_MESSAGE_BYTES, raise_descriptor_limit

# One of so many messages has a content of its own, which is compared.
CHECK_EVERY: Final = 64
# If thousands connect at once, some wait until the kernel tries again: after 1, 3, 7, 15 s.
HANDSHAKE_TIMEOUT_S: Final = 60.0


# Different JSON messages, which are sent in turn.
JSON_MESSAGES: Final = 32
# The receive buffer of a client that stops reading, in bytes: the kernel keeps little for it.
STALLED_BUFFER_BYTES: Final = 4096


def json_message(rng: random.Random, size: int) -> bytes:
    """Return records as JSON, cut at a size: a third of the size when it is compressed."""
    records: list[dict[str, Any]] = []
    while len(text := json.dumps(records)) < size:
        records.append(
            {
                "id": rng.randrange(10**6),
                "symbol": "".join(rng.choices("ABCDEFGHIJKLMNOP", k=4)),
                "price": round(rng.uniform(1, 1000), 2),
                "state": rng.choice(["open", "closed", "suspended"]),
                "changed": f"2026-{rng.randrange(1, 13):02}-{rng.randrange(1, 29):02}T12:00:00Z",
            }
        )
    return text.encode()[:size]


class Messages:
    """What is sent: a few contents in turn, with their number in every 64th message."""

    def __init__(self, size: int, text: bool, is_json: bool = False) -> None:
        self.size = size
        self.type = WSMsgType.TEXT if text else WSMsgType.BINARY
        rng = random.Random(size)
        if is_json:
            self._usual = [json_message(rng, size) for _ in range(JSON_MESSAGES)]
        else:
            self._usual = [b"x" * size if text else rng.randbytes(size)]

    def number(self, number: int) -> bytes:
        """Return the message that has this number among one client's."""
        usual = self._usual[number % len(self._usual)]
        if number % CHECK_EVERY:
            return usual
        return (b"%012d" % number)[:12] + usual[12:]


class Counters:
    """The counters of all clients of this process."""

    def __init__(self) -> None:
        self.sent = 0
        self.received = 0
        self.wrong = 0  # answers of another length or content
        self.extra = 0  # answers without a message
        self.dropped = 0  # connections that ended without a close from this side
        self.is_sending = False
        self.is_closing = False
        self.round_trips_ns: list[int] | None = None


class Client(WSListener):
    """One connection, which expects an echo of every message."""

    def __init__(self, counters: Counters, messages: Messages) -> None:
        self.counters = counters
        self.messages = messages
        self.type = messages.type
        self.sent = 0
        self.received = 0
        self.sent_at_ns = 0
        self.transport: WSTransport
        self._part_bytes = 0
        self._parts: list[bytes] = []

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Keep the transport."""
        self.transport = transport

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """Count an end that the server began."""
        if not self.counters.is_closing:
            self.counters.dropped += 1

    def send(self) -> None:
        """Send the next message."""
        number = self.sent
        self.sent = number + 1
        self.counters.sent += 1
        if self.counters.round_trips_ns is not None:
            self.sent_at_ns = time.perf_counter_ns()
        self.transport.send(self.type, self.messages.number(number))

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Check an answer; send the next message."""
        if frame.fin and frame.msg_type == self.type:
            number = self.received
            if frame.payload_size != self.messages.size or (
                number % CHECK_EVERY == 0
                and frame.get_payload_as_bytes() != self.messages.number(number)
            ):
                self.counters.wrong += 1
        elif not self._is_whole_with(frame):
            return
        self.on_message()

    def _is_whole_with(self, frame: WSFrame) -> bool:
        """Take a fragment or a control frame; return whether it completes a message."""
        if frame.msg_type not in (WSMsgType.BINARY, WSMsgType.TEXT, WSMsgType.CONTINUATION):
            if frame.msg_type == WSMsgType.CLOSE:
                self.transport.disconnect()
            return False
        self._parts.append(frame.get_payload_as_bytes())
        if not frame.fin:
            return False
        if b"".join(self._parts) != self.messages.number(self.received):
            self.counters.wrong += 1
        self._parts.clear()
        return True

    def on_message(self) -> None:
        """Count an answer, and send the next message."""
        counters = self.counters
        if self.received >= self.sent:
            counters.extra += 1
        self.received += 1
        counters.received += 1
        if counters.round_trips_ns is not None:
            counters.round_trips_ns.append(time.perf_counter_ns() - self.sent_at_ns)
        if counters.is_sending:
            self.send()


class Listener(Client):
    """A client of a fan-out: it gets each message that the first of them sends."""

    crowd: Crowd

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Take the answer to a greeting, which is a text, or a delivery."""
        if frame.msg_type == WSMsgType.TEXT:
            self.crowd.met()
        else:
            super().on_ws_frame(transport, frame)

    def on_message(self) -> None:
        """Count a delivery; when one message has reached all, send the next."""
        crowd = self.crowd
        if self.received >= crowd.published:
            self.counters.extra += 1
        self.received += 1
        self.counters.received += 1
        crowd.time_one()
        if self.counters.received >= crowd.due and self.counters.is_sending and not crowd.is_paced:
            crowd.publish()

    def greet(self) -> None:
        """Send a text, which the program answers to this client alone."""
        self.transport.send(WSMsgType.TEXT, b"hello")

    def publish(self, message: bytes) -> None:
        """Send a message, which the program sends to all."""
        self.transport.send(self.type, message)

    def stall(self) -> None:
        """Stop reading, with a small receive buffer."""
        tcp = self.transport.underlying_transport
        tcp.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVBUF, STALLED_BUFFER_BYTES
        )
        tcp.pause_reading()


class Inflating(Listener):
    """A listener with permessage-deflate: checks the content of every message."""

    def __init__(self, counters: Counters, messages: Messages) -> None:
        super().__init__(counters, messages)
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Count a connection without compression as a wrong answer."""
        super().on_ws_connected(transport)
        agreed = transport.response.headers.get("Sec-WebSocket-Extensions", "")
        self.counters.wrong += "permessage-deflate" not in agreed

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Inflate a delivery in one frame, and compare it."""
        if frame.msg_type != WSMsgType.BINARY or not frame.rsv1:
            super().on_ws_frame(transport, frame)
            return
        # RFC 7692 7.2.2: the end of the last block is not sent.
        data = self._inflater.decompress(frame.get_payload_as_bytes() + b"\0\0\xff\xff")
        self.counters.wrong += not frame.fin or data != self.messages.number(self.received)
        self.on_message()


class SocketIo(Listener):
    """A listener that speaks Socket.IO 5 over Engine.IO 4: a message is a text in an event."""

    _BEGIN: Final = b'42["m","'
    _END: Final = b'"]'

    def on_ws_connected(self, transport: WSTransport) -> None:
        """Connect to the default namespace."""
        super().on_ws_connected(transport)
        transport.send(WSMsgType.TEXT, b"40")

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Take a delivery, the answer to a greeting, or a ping."""
        payload = frame.get_payload_as_bytes()
        if payload.startswith(self._BEGIN):
            number = self.received
            self.counters.wrong += len(payload) != self.messages.size + len(
                self._BEGIN + self._END
            ) or (number % CHECK_EVERY == 0 and payload != self._packet(number))
            self.on_message()
        elif payload == b'42["hello"]':
            self.crowd.met()
        elif payload == b"2":
            transport.send(WSMsgType.TEXT, b"3")

    def greet(self) -> None:
        """Send an event, which the program answers."""
        self.transport.send(WSMsgType.TEXT, b'42["hello"]')

    def publish(self, message: bytes) -> None:
        """Send an event with the message."""
        self.transport.send(WSMsgType.TEXT, self._BEGIN + message + self._END)

    def _packet(self, number: int) -> bytes:
        return self._BEGIN + self.messages.number(number) + self._END


class Crowd:
    """The messages to all listeners.

    Args:
        under_way: the number of messages at a time.
    """

    def __init__(self, counters: Counters, listeners: list[Listener], under_way: int = 2) -> None:
        self.counters = counters
        self.listeners = listeners
        self.under_way = under_way
        self.sent_at_ns = 0
        self.published = 0
        self.due = 0  # deliveries after which the next message is sent
        self.is_paced = False
        self._unmet = len(listeners)
        self._all_met = asyncio.Event()
        for listener in listeners:
            listener.crowd = self

    async def meet(self) -> None:
        """Greet the program on every connection, and wait for its answers.

        With Apache a client can get its 101 before the program knows it; a message to all
        does not reach it before that.

        Raises:
            TimeoutError
        """
        for listener in self.listeners:
            listener.greet()
        await asyncio.wait_for(self._all_met.wait(), HANDSHAKE_TIMEOUT_S)

    def met(self) -> None:
        """Count an answer."""
        self._unmet -= 1
        if not self._unmet:
            self._all_met.set()

    def publish(self) -> None:
        """Send the next message, which the program sends to all."""
        conductor = self.listeners[0]
        self.due = (self.published + 2 - self.under_way) * len(self.listeners)
        message = conductor.messages.number(self.published)
        self.published += 1
        self.counters.sent += len(self.listeners)
        self.sent_at_ns = time.perf_counter_ns()
        conductor.publish(message)

    def time_one(self) -> None:
        """Time the only message under way, if it has reached all."""
        if self.counters.received >= self.due and self.counters.round_trips_ns is not None:
            self.counters.round_trips_ns.append(time.perf_counter_ns() - self.sent_at_ns)

    async def publish_paced(self, rate: float) -> None:
        """Publish so many messages a second until halted, or as many as the servers deliver."""
        self.is_paced = True
        begun_at, number = time.monotonic(), 0
        while self.counters.is_sending:
            # One at a time, so that only the clients that stall have messages in buffers.
            if self.counters.received == self.counters.sent:
                self.publish()
            number += 1
            await asyncio.sleep(max(0.0, begun_at + number / rate - time.monotonic()))


class Load:
    """The state of this process, and the commands it knows."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.clients: list[Client] = []
        self.handshakers: list[asyncio.Task[None]] = []
        self.pacer: asyncio.Task[None] | None = None

    async def connect(
        self,
        url: str,
        count: int,
        at_once: int,
        size: int,
        text: bool = False,
        fan_out: bool = False,
        certificate: str = "",
        source: str = "",
        is_json: bool = False,
        compressed: bool = False,
        socket_io: bool = False,
    ) -> dict[str, Any]:
        """Open so many more connections; return the errors of those that failed."""
        messages = Messages(size, text, is_json)
        kind: type[Client] = Listener if fan_out else Client
        kind = Inflating if compressed else SocketIo if socket_io else kind
        failures: list[str] = []
        waiting = iter(range(count))
        context = _context(certificate)
        begun_at = time.monotonic()

        async def connect_some() -> None:
            for _ in waiting:
                client = kind(self.counters, messages)
                try:
                    await _dial(client, url, context, source, compressed)
                except Exception as error:  # any: the case fails with this text
                    failures.append(f"{type(error).__name__}: {error}"[:300])
                else:
                    self.clients.append(client)

        await asyncio.gather(*(connect_some() for _ in range(min(at_once, count))))
        return {
            "opened": count - len(failures),
            "failures": failures[:3],
            "seconds": time.monotonic() - begun_at,
        }

    async def echo(
        self, window: int, active: int | None = None, timed: bool = False
    ) -> dict[str, Any]:
        """Start the first so many clients, which send until halted."""
        self.counters.is_sending = True
        self.counters.round_trips_ns = [] if timed else None
        for client in self.clients[:active]:
            for _ in range(window):
                client.send()
        return {}

    async def echo_once(self) -> dict[str, Any]:
        """Send one message on every connection; ``halt`` waits for the answers."""
        for client in self.clients:
            client.send()
        return {}

    async def fan_out(self, greets: bool = True, timed: bool = False) -> dict[str, Any]:
        """Publish messages to all until halted.

        Args:
            greets: begin after every client was answered.
            timed: one message at a time, whose way is timed; two otherwise.
        """
        listeners = [c for c in self.clients if isinstance(c, Listener)]
        crowd = Crowd(self.counters, listeners, 1 if timed else 2)
        self.counters.round_trips_ns = [] if timed else None
        if greets:
            await crowd.meet()
        self.counters.is_sending = True
        for _ in range(crowd.under_way):
            crowd.publish()
        return {}

    async def fan_out_paced(self, stalled: int, rate: float) -> dict[str, Any]:
        """Stop reading on the last so many connections, and publish at a pace until halted."""
        listeners = [c for c in self.clients if isinstance(c, Listener)]
        await Crowd(self.counters, listeners).meet()
        for client in listeners[len(listeners) - stalled :]:
            client.stall()
        crowd = Crowd(self.counters, listeners[: len(listeners) - stalled])
        self.counters.is_sending = True
        self.pacer = asyncio.create_task(crowd.publish_paced(rate))
        return {}

    async def handshakes(self, url: str, at_once: int, certificate: str = "") -> dict[str, Any]:
        """Connect and close repeatedly, so many at once, until halted."""
        self.counters.is_sending = self.counters.is_closing = True
        messages = Messages(64, False)
        context = _context(certificate)

        async def connect_and_close() -> None:
            while self.counters.is_sending:
                client = Client(self.counters, messages)
                self.counters.sent += 1
                try:
                    await _dial(client, url, context)
                except Exception as error:  # counted as lost, and shown
                    print(f"{type(error).__name__}: {error}"[:300], file=sys.stderr, flush=True)
                    continue
                self.counters.received += 1
                client.transport.send_close(WSCloseCode.OK)
                await client.transport.wait_disconnected()

        self.handshakers = [asyncio.create_task(connect_and_close()) for _ in range(at_once)]
        return {}

    async def mark(self) -> dict[str, Any]:
        """Return the counts so far; start a new series of round trips."""
        result = {
            "received": self.counters.received,
            "processor_ns": time.process_time_ns(),
            "at_ns": time.monotonic_ns(),
        }
        if self.counters.round_trips_ns:
            ordered = sorted(self.counters.round_trips_ns)
            result["p50_ns"] = ordered[len(ordered) // 2]
            result["p99_ns"] = ordered[len(ordered) * 99 // 100]
            self.counters.round_trips_ns = []
        return result

    async def halt(self, timeout_s: float = 10.0) -> dict[str, Any]:
        """Stop sending, wait for the answers under way, and return the number of missing ones."""
        self.counters.is_sending = False
        if self.handshakers:
            await asyncio.wait(self.handshakers, timeout=timeout_s)
        deadline = time.monotonic() + timeout_s
        while self.counters.received < self.counters.sent and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)  # a surplus answer would arrive now
        return {
            "lost": max(0, self.counters.sent - self.counters.received),
            "extra": self.counters.extra,
            "wrong": self.counters.wrong,
            "dropped": self.counters.dropped,
        }

    async def close(self, timeout_s: float = 30.0) -> dict[str, Any]:
        """Close every connection, and wait until all have ended."""
        self.counters.is_closing = True
        for client in self.clients:
            if not client.transport.is_disconnected:
                client.transport.send_close(WSCloseCode.OK)
        ends = [asyncio.ensure_future(c.transport.wait_disconnected()) for c in self.clients]
        open_still = 0
        if ends:
            _, waiting = await asyncio.wait(ends, timeout=timeout_s)
            open_still = len(waiting)
        for client in self.clients:
            client.transport.disconnect(False)
        self.clients.clear()
        self.counters = Counters()
        return {"open_still": open_still}


async def _dial(
    client: Client,
    url: str,
    context: ssl.SSLContext | None,
    source: str = "",
    compressed: bool = False,
) -> WSTransport:
    offer = {"Sec-WebSocket-Extensions": "permessage-deflate"} if compressed else {}
    transport, _ = await ws_connect(
        lambda: client,
        url,
        ssl_context=context,
        websocket_handshake_timeout=HANDSHAKE_TIMEOUT_S,
        max_frame_size=MAX_MESSAGE_BYTES,
        extra_headers=offer,
        **({"local_addr": (source, 0)} if source else {}),
    )
    return transport


def _context(certificate: str) -> ssl.SSLContext | None:
    return ssl.create_default_context(cafile=certificate) if certificate else None


async def serve() -> None:
    """Run commands until the input ends."""
    load = Load()
    commands: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
        "connect": load.connect,
        "echo": load.echo,
        "echo_once": load.echo_once,
        "fan_out": load.fan_out,
        "fan_out_paced": load.fan_out_paced,
        "handshakes": load.handshakes,
        "mark": load.mark,
        "halt": load.halt,
        "close": load.close,
    }
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        command = json.loads(line)
        answer = await commands[command.pop("do")](**command)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    raise_descriptor_limit()
    uvloop.run(serve())
