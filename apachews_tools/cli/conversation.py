"""The conversation of ``apachews connect`` on one open connection.

Contract: ``await Conversation(…).run(…)`` sends and shows messages until the connection has
ended, and returns the exit status.  A cancelled run closes the connection with 1001.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any, Final

from apachews_tools.terminal.console import Console
from apachews_tools.terminal.terminal import (
    CYAN,
    GREEN,
    RED,
    YELLOW,
    describe_bytes,
    message_members,
    paint,
    printable,
)

from .close_codes import NORMAL_CODES, describe_close
from .event_loop import first_result
from .websocket_client import Answered, Closed, Message, WebSocketClient

PING_INTERVAL_S: Final = 1.0


class Conversation:
    """What both sides say on one connection.

    Args:
        client: an open connection; it is closed at the end.
        arguments: those of the command.
        timeout_s: for each message that is expected, and for the answer to a close frame.
    """

    def __init__(
        self, client: WebSocketClient, arguments: argparse.Namespace, timeout_s: float
    ) -> None:
        self._client = client
        self._arguments = arguments
        self._timeout_s = timeout_s
        self._console = Console(reads=arguments.message is None)
        self._is_typed = self._console.is_typed and arguments.message is None
        self._input_ended = False
        self._sent = self._received = 0
        self._sent_bytes = self._received_bytes = 0
        self._latencies: list[float] = []
        self._opened_at = time.monotonic()
        self._status = 0
        self._has_closed = False  # with the first close frame
        self._timed_out = False
        self._timer: asyncio.TimerHandle | None = None

    async def run(self, took_s: float) -> int:
        """Talk until the connection has ended; return the exit status.

        Args:
            took_s: how long connecting took.
        """
        self._show_open(took_s)
        self._close_if_complete()  # --count 0
        try:
            closed = await first_result(self._receive(), self._send_input(), self._ping())
        except asyncio.CancelledError:
            self._client.close(1001)
            raise
        finally:
            self._stop_timer()
            await self._client.finish()
        if closed and not self._timed_out:
            self._show_close(closed)
        self._show_stats()
        return self._status

    # The three tasks; only the first one ends

    async def _receive(self) -> Closed | None:
        async for event in self._client.events():
            if isinstance(event, Message):
                self._show_message(event.data)
                if self._timer and not self._has_closed:
                    self._start_timer()
                self._close_if_complete()
            elif isinstance(event, Answered):
                self._latencies.append(event.latency_s)
                if self._arguments.json:
                    self._show_json("pong", seconds=round(event.latency_s, 6))
            else:
                return event
        return None

    async def _send_input(self) -> None:
        if self._arguments.message is not None:
            for message in self._arguments.message:
                self._send(message)
        else:
            async for line in self._console.lines():
                self._send(line)
                await self._client.drain()  # reads no more than the server takes
        self._input_ended = True
        if self._is_typed:
            self._close()
        elif self._arguments.count is None or self._arguments.timeout is not None:
            self._start_timer()
        self._close_if_complete()
        await asyncio.Event().wait()

    async def _ping(self) -> None:
        while self._arguments.stats:
            self._client.ping()
            await asyncio.sleep(PING_INTERVAL_S)
        await asyncio.Event().wait()

    def _send(self, text: str) -> None:
        data = text.encode()
        self._client.send(data if self._arguments.binary else text)
        self._sent += 1
        self._sent_bytes += len(data)

    # The end

    def _expected(self) -> int | None:
        """Return how many messages are expected; None: any number."""
        if self._arguments.count is not None:
            return int(self._arguments.count)
        return self._sent if self._input_ended and not self._is_typed else None

    def _close_if_complete(self) -> None:
        expected = self._expected()
        if expected is not None and self._received >= expected and self._client.is_open:
            self._close()

    def _close(self) -> None:
        self._has_closed = True
        self._client.close()
        self._start_timer()

    def _start_timer(self) -> None:
        self._stop_timer()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._timeout_s, self._on_timeout)

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()

    def _on_timeout(self) -> None:
        self._status = 1
        if self._client.is_open:
            missing = _missing((self._expected() or 0) - self._received)
            self._console.note(f"no message for {self._timeout_s:g} s; {missing}", RED)
            self._close()
            return
        self._timed_out = True
        self._console.note(
            f"the server did not answer the close frame within {self._timeout_s:g} s", RED
        )
        self._client.abort()

    # Output

    def _show_open(self, took_s: float) -> None:
        client = self._client
        if self._arguments.json:
            self._show_json(
                "open",
                url=self._arguments.url,
                subprotocol=client.subprotocol,
                extensions=client.extensions,
                seconds=round(took_s, 6),
            )
        elif self._console.is_interactive:
            details = [f"connected in {took_s * 1000:.0f} ms", *client.extensions]
            if client.subprotocol:
                details.append(f"subprotocol {printable(client.subprotocol)}")
            self._console.note(f"{', '.join(details)}; Ctrl-D ends")

    def _show_message(self, data: str | bytes) -> None:
        self._received += 1
        self._received_bytes += len(data.encode() if isinstance(data, str) else data)
        console = self._console
        if self._arguments.json:
            self._show_json("message", **message_members(data))
        elif not console.is_interactive:
            # Into a pipe or a file text goes as it is.
            text = describe_bytes(data, None) if isinstance(data, bytes) else data
            console.show(printable(text) if console.is_shown else text)
        else:
            text = printable(data) if isinstance(data, str) else describe_bytes(data)
            colour = GREEN if isinstance(data, str) else CYAN
            mark = paint("<", colour) if console.colours else "<"
            console.show(f"{mark} {text}".replace("\n", "\n  "))

    def _show_close(self, closed: Closed) -> None:
        expected = self._expected()
        if self._arguments.json:
            self._show_json("close", code=closed.code, reason=closed.reason)
        how = describe_close(closed.code, closed.reason)
        if self._has_closed and closed.code != 1006:
            colour, text = GREEN, f"closed, {how}"
        else:
            colour, text = YELLOW, f"the server closed the connection, {how}"
            if closed.code == 1006 and not closed.reason:
                colour, text = RED, "the connection broke off without a close frame"
            if closed.code not in NORMAL_CODES:
                self._status = 1
        missing = "" if expected is None else _missing(expected - self._received)
        if missing and not self._has_closed:
            self._status = 1
            text = f"{text}; {missing}"
        if self._status or (self._console.is_interactive and not self._arguments.json):
            self._console.note(text, colour)

    def _show_stats(self) -> None:
        if not self._arguments.stats:
            return
        seconds = time.monotonic() - self._opened_at
        ms = [latency * 1000 for latency in self._latencies]
        low, mean, high = (min(ms), sum(ms) / len(ms), max(ms)) if ms else (0.0, 0.0, 0.0)
        if self._arguments.json:
            latency = {"min": round(low, 3), "mean": round(mean, 3), "max": round(high, 3)}
            self._show_json(
                "stats",
                seconds=round(seconds, 3),
                sent={"messages": self._sent, "bytes": self._sent_bytes},
                received={"messages": self._received, "bytes": self._received_bytes},
                pings=len(ms),
                latency_ms=latency if ms else {},
            )
            return
        pings = f"; {len(ms)} pings, min/mean/max {low:.1f}/{mean:.1f}/{high:.1f} ms" if ms else ""
        self._console.note(
            f"sent {self._sent} messages ({self._sent_bytes} bytes), received"
            f" {self._received} ({self._received_bytes} bytes) in {seconds:.1f} s{pings}"
        )

    def _show_json(self, event: str, **members: Any) -> None:
        self._console.show_json({"event": event, **members})


def _missing(count: int) -> str:
    if count <= 0:
        return ""
    return "1 message is missing" if count == 1 else f"{count} messages are missing"
