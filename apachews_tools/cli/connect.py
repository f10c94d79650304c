"""``apachews connect``: a WebSocket client in the terminal."""

from __future__ import annotations

import argparse
import base64
import getpass
import os
import re
import select
import ssl
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from apachews_tools.httpd.answers import Answer, cause_of, joined, phrase, websocket_url
from apachews_tools.terminal.console import Console
from apachews_tools.terminal.terminal import (
    CYAN,
    GREEN,
    RED,
    YELLOW,
    describe_bytes,
    json_line,
    paint,
    printable,
)

from .close_codes import NORMAL_CODES, describe_close
from .command import CommandError, number, seconds, tidy_at_signals, utf8_text

if TYPE_CHECKING:
    from .websocket_client import Answered, Closed, Message, Refused, WebSocketClient

SUMMARY: Final = "open a WebSocket, and talk to it"

# For connecting, for an answer, and for the answer to the goodbye.
TIMEOUT_S: Final = 10.0
PING_INTERVAL_S: Final = 1.0
# Above that nothing more is read from standard input until the server has taken some.
MAX_QUEUED_BYTES: Final = 1 << 20
PASSWORD: Final = "APACHEWS_PASSWORD"

# RFC 9110 5.6.2, and 5.5: a header's name, and what its value may not have.
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NOT_IN_VALUE: Final = re.compile(r"[\0-\x08\x0a-\x1f\x7f]")
# What the handshake itself says.
_OWN_HEADERS: Final = ("connection", "upgrade", "content-length", "transfer-encoding")

DESCRIPTION: Final = """\
Open a WebSocket.  Each line typed is sent as a text message, and what comes is
shown.  Ctrl-D says goodbye and waits for the answer.

From a pipe, or with --message, it ends when as many messages have come as were
sent (or --count), and prints them as they are, one after the other."""

EXAMPLES: Final = f"""\
examples:
  apachews connect ws://localhost/ws/chat.ws
  apachews connect wss://example.org/ws/echo.ws -m hello
  apachews connect wss://localhost:8443/news.ws --insecure --count 5 --json
  seq 3 | apachews connect ws://localhost/ws/echo.ws

environment: {PASSWORD} the password that goes with --user

exit status: 0 closed by this side, or with a normal code, and every message
that was waited for has come; 1 anything else; 2 arguments; 130 Ctrl-C"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument("url", metavar="URL", type=utf8_text, help="ws://… or wss://…")
    request = parser.add_argument_group("the request")
    request.add_argument(
        "--header",
        metavar="'NAME: VALUE'",
        type=_header,
        action="append",
        default=[],
        help="a header; may be repeated",
    )
    request.add_argument(
        "--cookie",
        metavar="NAME=VALUE",
        type=_value,
        action="append",
        default=[],
        help="a cookie; may be repeated",
    )
    request.add_argument(
        "--origin", type=_value, help="the page that connects: https://example.org"
    )
    request.add_argument(
        "--subprotocol",
        metavar="NAME",
        type=_token,
        action="append",
        default=[],
        help="offer a subprotocol",
    )
    request.add_argument(
        "--user",
        metavar="NAME",
        type=_user,
        help=f"log in; asks for the password, or takes {PASSWORD}",
    )
    request.add_argument(
        "--no-compression",
        dest="deflate",
        action="store_false",
        help="do not offer permessage-deflate",
    )
    trust = parser.add_argument_group("TLS").add_mutually_exclusive_group()
    trust.add_argument("--cafile", metavar="FILE", help="trust the certificates in this file")
    trust.add_argument("--insecure", action="store_true", help="trust any certificate")
    parser.add_argument(
        "-m",
        "--message",
        metavar="TEXT",
        type=utf8_text,
        action="append",
        help="send this, and end with its answer; may be repeated",
    )
    parser.add_argument("--binary", action="store_true", help="send binary messages")
    parser.add_argument("--count", type=number, metavar="N", help="end when N messages have come")
    parser.add_argument(
        "--timeout",
        type=seconds,
        metavar="SECONDS",
        help="for connecting, for the goodbye, and for each message that is waited for"
        f" (default {TIMEOUT_S:g}; with --count none for messages)",
    )
    parser.add_argument("--json", action="store_true", help="an object a line, of all that happens")
    parser.add_argument(
        "--stats", action="store_true", help="ping every second; say what passed at the end"
    )


def run(arguments: argparse.Namespace) -> int:
    """Connect, and talk until an end."""
    try:
        from . import websocket_client
    except ModuleNotFoundError as error:
        if error.name not in ("wsproto", "h11"):
            raise
        raise CommandError(
            f"{error.name} is not installed: pip install 'apachews[bridge]'"
        ) from None
    address = websocket_client.Address.parse(arguments.url)
    headers = _headers(arguments)
    tls = _tls_context(arguments) if address.is_secure else None
    started_at = time.monotonic()
    try:
        client = websocket_client.WebSocketClient(
            address,
            headers=headers,
            subprotocols=arguments.subprotocol,
            deflate=arguments.deflate,
            tls=tls,
            timeout_s=arguments.timeout or TIMEOUT_S,
        )
    except websocket_client.Refused as refused:
        return _report_refusal(refused, arguments)
    took_s = time.monotonic() - started_at
    try:
        with tidy_at_signals(), Console() as console:
            session = _Session(client, console, arguments)
            session.begin(took_s)
            return session.run()
    except KeyboardInterrupt:
        # Goodbye, without waiting for the answer.
        client.close(1001)
        for _ in client.progress_nowait():
            pass
        raise
    finally:
        client.abort()


class _Session:
    """What happens on one connection."""

    def __init__(
        self, client: WebSocketClient, console: Console, arguments: argparse.Namespace
    ) -> None:
        self._client = client
        self._console = console
        self._arguments = arguments
        self._is_typed = sys.stdin is not None and sys.stdin.isatty()
        self._timeout_s: float = arguments.timeout or TIMEOUT_S
        self._sent = self._received = 0
        self._sent_bytes = self._received_bytes = 0
        self._latencies: list[float] = []
        self._begun_at = time.monotonic()
        self._status = 0
        self._was_closed_here = False
        self._must_answer_by: float | None = None  # the server: a message, or its goodbye
        self._next_ping_at = self._begun_at if arguments.stats else None

    def begin(self, took_s: float) -> None:
        """Say that the connection is open; send what is to be sent."""
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
        self._watch_time()  # a first ping
        if self._arguments.message is not None:
            for message in self._arguments.message:
                self._send(message)
            self._expect_answers()

    def run(self) -> int:
        """Talk until the connection has ended; return the exit status."""
        while True:
            for event in self._client.progress_nowait():
                if (status := self._take(event)) is not None:
                    return status
            if not self._client.is_open and self._must_answer_by is None:
                # The server says goodbye, and is to close the connection (7.1.1).
                self._must_answer_by = time.monotonic() + self._timeout_s
            if self._client.is_open and self._has_all_messages():
                self._close()
            self._wait()
            if self._must_read_input():
                for line in self._console.read_lines_nowait():
                    self._send(line)
                if self._console.has_ended:
                    self._end_input()
            if (status := self._watch_time()) is not None:
                return status

    # What comes

    def _take(self, event: Message | Answered | Closed) -> int | None:
        from .websocket_client import Answered, Message

        if isinstance(event, Message):
            self._show_message(event.data)
        elif isinstance(event, Answered):
            self._latencies.append(event.latency_s)
            if self._arguments.json:
                self._show_json("pong", seconds=round(event.latency_s, 6))
        else:
            return self._finish(event)
        return None

    def _show_message(self, data: str | bytes) -> None:
        self._received += 1
        size = len(data.encode() if isinstance(data, str) else data)
        self._received_bytes += size
        if self._arguments.json:
            if isinstance(data, str):
                self._show_json("message", text=data)
            else:
                self._show_json("message", bytes=size, base64=base64.b64encode(data).decode())
        elif not self._console.is_shown:
            self._console.show(data if isinstance(data, str) else describe_bytes(data, None))
        elif not self._console.is_interactive:
            self._console.show(
                printable(data) if isinstance(data, str) else describe_bytes(data, None)
            )
        else:
            text = printable(data) if isinstance(data, str) else describe_bytes(data)
            mark = paint("<", GREEN if isinstance(data, str) else CYAN)
            text = text.replace("\n", "\n  ")
            self._console.show(f"{mark if self._console.colours else '<'} {text}")
        if self._must_answer_by is not None and not self._was_closed_here:
            self._must_answer_by = time.monotonic() + self._timeout_s

    def _finish(self, closed: Closed) -> int:
        waited_for = self._expected()
        if self._arguments.json:
            self._show_json("close", code=closed.code, reason=closed.reason)
        how = describe_close(closed.code, closed.reason)
        if self._was_closed_here and closed.code != 1006:
            colour, text = GREEN, f"closed, {how}"
        else:
            colour, text = YELLOW, f"the server has closed the connection, {how}"
            if closed.code == 1006 and not closed.reason:
                colour, text = RED, "the connection was broken off, without a goodbye"
            if closed.code not in NORMAL_CODES:
                self._status = 1
        missing = "" if waited_for is None else _missing(waited_for - self._received)
        if missing and not self._was_closed_here:
            self._status = 1
            text = f"{text}; {missing}"
        if self._status or (self._console.is_interactive and not self._arguments.json):
            self._console.note(text, colour)
        self._show_stats()
        return self._status

    def _show_stats(self) -> None:
        if not self._arguments.stats:
            return
        seconds = time.monotonic() - self._begun_at
        ms = [latency * 1000 for latency in self._latencies]
        if self._arguments.json:
            self._show_json(
                "stats",
                seconds=round(seconds, 3),
                sent={"messages": self._sent, "bytes": self._sent_bytes},
                received={"messages": self._received, "bytes": self._received_bytes},
                pings=len(ms),
                latency_ms=ms
                and {
                    "min": round(min(ms), 3),
                    "mean": round(sum(ms) / len(ms), 3),
                    "max": round(max(ms), 3),
                },
            )
            return
        pings = ""
        if ms:
            pings = (
                f"; {len(ms)} pings, min/mean/max"
                f" {min(ms):.1f}/{sum(ms) / len(ms):.1f}/{max(ms):.1f} ms"
            )
        self._console.note(
            f"sent {self._sent} messages ({self._sent_bytes} bytes), received"
            f" {self._received} ({self._received_bytes} bytes) in {seconds:.1f} s{pings}"
        )

    def _show_json(self, event: str, **members: Any) -> None:
        self._console.show_json({"event": event, **members})

    # What goes

    def _send(self, text: str) -> None:
        data = text.encode()
        self._client.send(data if self._arguments.binary else text)
        self._sent += 1
        self._sent_bytes += len(data)

    def _must_read_input(self) -> bool:
        return (
            self._arguments.message is None
            and not self._console.has_ended
            and self._client.is_open
            and self._client.queued_bytes < MAX_QUEUED_BYTES
        )

    def _end_input(self) -> None:
        if self._is_typed:
            self._close()
        else:
            self._expect_answers()

    def _expected(self) -> int | None:
        """Return how many messages are waited for, None: any number."""
        if self._arguments.count is not None:
            return int(self._arguments.count)
        if self._arguments.message is not None:
            return self._sent
        return self._sent if self._console.has_ended and not self._is_typed else None

    def _has_all_messages(self) -> bool:
        expected = self._expected()
        return expected is not None and self._received >= expected

    def _expect_answers(self) -> None:
        if self._arguments.count is None or self._arguments.timeout is not None:
            self._must_answer_by = time.monotonic() + self._timeout_s

    def _close(self) -> None:
        self._was_closed_here = True
        self._client.close()
        self._must_answer_by = time.monotonic() + self._timeout_s

    # Time

    def _wait(self) -> None:
        if self._client.has_more:
            return
        reading: list[Any] = [self._client]
        if self._must_read_input():
            reading.append(self._console)
        writing = [self._client] if self._client.queued_bytes else []
        due = [at for at in (self._must_answer_by, self._next_ping_at) if at is not None]
        wait_s = max(0.0, min(due) - time.monotonic()) if due else None
        select.select(reading, writing, [], wait_s)

    def _watch_time(self) -> int | None:
        now = time.monotonic()
        if self._next_ping_at is not None and now >= self._next_ping_at:
            self._client.ping()
            self._next_ping_at = now + PING_INTERVAL_S
        if self._must_answer_by is None or now < self._must_answer_by:
            return None
        self._status = 1
        if self._client.is_open:
            missing = _missing((self._expected() or 0) - self._received)
            self._console.note(f"no message for {self._timeout_s:g} s; {missing}", RED)
            self._close()
            return None
        self._console.note(
            f"the server has not answered the goodbye within {self._timeout_s:g} s", RED
        )
        self._show_stats()
        return 1


def _missing(count: int) -> str:
    if count <= 0:
        return ""
    return "1 message is missing" if count == 1 else f"{count} messages are missing"


def _report_refusal(refused: Refused, arguments: argparse.Namespace) -> int:
    if arguments.json:
        document = {
            "event": "refused",
            "status": refused.status,
            "headers": refused.headers,
            "body": refused.body,
        }
        print(json_line(document, sys.stdout), flush=True)
    lines = [f"apachews connect: the server answers {phrase(refused.status)}"]
    # An error page of Apache's own is HTML, and says no more than the status.
    if refused.body.strip() and not refused.body.lstrip().startswith("<"):
        lines += [f"  {line}" for line in printable(refused.body.strip()).splitlines()]
    if retry_after := refused.header("retry-after"):
        lines.append(f"  (again after {printable(retry_after)} s)")
    if hint := _hint(refused, has_user=arguments.user is not None):
        lines.append(hint)
    print("\n".join(lines), file=sys.stderr)
    return 1


def _hint(refused: Refused, *, has_user: bool) -> str:
    """Return the cause of a refusal and what to do, "" if it is not known."""
    location = printable(refused.header("location"))
    if 300 <= refused.status < 400 and location:
        return f"Connect to {websocket_url(location)} instead."
    answer = Answer(refused.status, joined(refused.headers), refused.body)
    if refused.status == 401 and has_user and not answer.refusal():
        return "Apache does not know this name, or the password is wrong."
    cause = cause_of(answer)
    return cause.hint() if cause else ""


def _headers(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    headers: list[tuple[str, str]] = list(arguments.header)
    if arguments.origin is not None:
        headers.append(("Origin", arguments.origin))
    if arguments.cookie:
        headers.append(("Cookie", "; ".join(arguments.cookie)))
    if arguments.user is not None:
        try:
            login = f"{arguments.user}:{_password(arguments.user)}".encode()
        except UnicodeEncodeError:
            raise CommandError("the password is not UTF-8") from None
        headers.append(("Authorization", f"Basic {base64.b64encode(login).decode()}"))
    return headers


def _password(user: str) -> str:
    """Return the password, from the environment or the terminal.

    Not from the command line, which every user of the machine can read.
    """
    if (password := os.environ.get(PASSWORD)) is not None:
        return password
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        raise CommandError(f"there is no terminal to ask for a password: set {PASSWORD}") from None
    try:
        return getpass.getpass(f"Password of {user}: ")
    except EOFError:
        raise CommandError(f"no password was given; type one, or set {PASSWORD}") from None


def _tls_context(arguments: argparse.Namespace) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=arguments.cafile)
    except ssl.SSLError:
        raise CommandError(f"{arguments.cafile}: has no certificate in PEM form") from None
    except OSError as error:
        raise CommandError(f"{arguments.cafile}: {error.strerror}") from None
    if arguments.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    value = value.strip()
    if not colon or not _NAME.fullmatch(name) or _NOT_IN_VALUE.search(value):
        raise argparse.ArgumentTypeError(f"{text!r} is no header: 'NAME: VALUE'")
    if name.lower() in _OWN_HEADERS or name.lower().startswith("sec-websocket-"):
        raise argparse.ArgumentTypeError(f"{name} is what the handshake itself sends")
    return name, utf8_text(value)


def _value(text: str) -> str:
    return _header(f"X: {text}")[1]


def _token(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} has characters that a subprotocol cannot have")
    return text


def _user(text: str) -> str:
    if ":" in text:
        raise argparse.ArgumentTypeError("a name cannot have a colon (RFC 7617), nor a password")
    return utf8_text(text)
