"""``apachews connect``: a WebSocket client in the terminal."""

from __future__ import annotations

import argparse
import base64
import getpass
import os
import re
import ssl
import sys
import time
from typing import TYPE_CHECKING, Final

from apachews_tools.httpd.address import Address
from apachews_tools.httpd.answers import Answer, cause_of, joined, phrase, websocket_url
from apachews_tools.terminal.terminal import json_line, printable

from .command import CommandError, number, seconds, utf8_text
from .event_loop import run_until_signal

if TYPE_CHECKING:
    from .websocket_client import Refused

SUMMARY: Final = "open a WebSocket in the terminal"

# For connecting, for each message that is expected, and for the answer to a close frame.
TIMEOUT_S: Final = 10.0
PASSWORD: Final = "APACHEWS_PASSWORD"

# RFC 9110 5.6.2 and 5.5: the name of a header, and characters forbidden in its value.
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_NOT_IN_VALUE: Final = re.compile(r"[\0-\x08\x0a-\x1f\x7f]")
# Headers that the handshake itself sends.
_OWN_HEADERS: Final = ("connection", "upgrade", "content-length", "transfer-encoding")

DESCRIPTION: Final = """\
Open a WebSocket.  Each typed line is sent as a text message, and received messages
are shown.  Ctrl-D closes the connection and waits for the answer.

From a pipe, or with --message, the command prints messages as they are, and ends
when it has received as many as it sent (or --count)."""

EXAMPLES: Final = f"""\
examples:
  apachews connect ws://localhost/ws/chat.ws
  apachews connect wss://example.org/ws/echo.ws -m hello
  apachews connect wss://localhost:8443/news.ws --insecure --count 5 --json
  seq 3 | apachews connect ws://localhost/ws/echo.ws

environment: {PASSWORD} the password for --user

exit status: 0 closed by this side, or with a normal code, and every expected
message has arrived; 1 anything else; 2 arguments; 130 Ctrl-C"""


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
        help="a header of the request; may be repeated",
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
        "--origin", type=_value, help="connect like a page of this origin: https://example.org"
    )
    request.add_argument(
        "--subprotocol",
        metavar="NAME",
        type=_token,
        action="append",
        default=[],
        help="offer a subprotocol; may be repeated",
    )
    request.add_argument(
        "--user",
        metavar="NAME",
        type=_user,
        help=f"log in; the password is that of {PASSWORD}, or is asked for",
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
        help="send this, and end after the answer; may be repeated",
    )
    parser.add_argument("--binary", action="store_true", help="send binary messages")
    parser.add_argument("--count", type=number, metavar="N", help="end after N received messages")
    parser.add_argument(
        "--timeout",
        type=seconds,
        metavar="SECONDS",
        help="for connecting, for each expected message, and for the answer to the close"
        f" frame (default {TIMEOUT_S:g}; with --count none for messages)",
    )
    parser.add_argument(
        "--json", action="store_true", help="print events as JSON objects, one per line"
    )
    parser.add_argument(
        "--stats", action="store_true", help="ping every second; print statistics at the end"
    )


def run(arguments: argparse.Namespace) -> int:
    """Connect, and talk until the connection has ended."""
    try:
        from .conversation import Conversation
        from .websocket_client import Refused, WebSocketClient
    except ModuleNotFoundError as error:
        if error.name not in ("wsproto", "h11"):
            raise
        raise CommandError(
            f"{error.name} is not installed: pip install 'apachews[cli]' (Debian: python3-wsproto"
            " and python3-prompt-toolkit)"
        ) from None
    address = Address.parse(arguments.url)
    headers = _headers(arguments)
    tls = _tls_context(arguments) if address.is_secure else None
    timeout_s = arguments.timeout or TIMEOUT_S

    async def connect_and_talk() -> int:
        started_at = time.monotonic()
        try:
            client = await WebSocketClient.connect(
                address,
                headers=headers,
                subprotocols=arguments.subprotocol,
                deflate=arguments.deflate,
                tls=tls,
                timeout_s=timeout_s,
            )
        except Refused as refused:
            return _report_refusal(refused, arguments)
        took_s = time.monotonic() - started_at
        return await Conversation(client, arguments, timeout_s).run(took_s)

    return run_until_signal(connect_and_talk())


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
    # An HTML body is Apache's own error page, which only repeats the status.
    if refused.body.strip() and not refused.body.lstrip().startswith("<"):
        lines += [f"  {line}" for line in printable(refused.body.strip()).splitlines()]
    if retry_after := refused.header("retry-after"):
        lines.append(f"  (retry after {printable(retry_after)} s)")
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

    A command-line option would be visible to every user of the machine.
    """
    if (password := os.environ.get(PASSWORD)) is not None:
        return password
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        raise CommandError(f"no terminal to ask for a password; set {PASSWORD}") from None
    try:
        return getpass.getpass(f"Password of {user}: ")
    except EOFError:
        raise CommandError(f"no password given; type one, or set {PASSWORD}") from None


def _tls_context(arguments: argparse.Namespace) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=arguments.cafile)
    except ssl.SSLError:
        raise CommandError(f"{arguments.cafile}: expected certificates in PEM form") from None
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
        raise argparse.ArgumentTypeError(f"{text!r}: expected 'NAME: VALUE'")
    if name.lower() in _OWN_HEADERS or name.lower().startswith("sec-websocket-"):
        raise argparse.ArgumentTypeError(f"{name}: the handshake itself sends this header")
    return name, utf8_text(value)


def _value(text: str) -> str:
    return _header(f"X: {text}")[1]


def _token(text: str) -> str:
    if not _NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r}: not a valid name of a subprotocol")
    return text


def _user(text: str) -> str:
    if ":" in text:
        raise argparse.ArgumentTypeError("expected a name without colon (RFC 7617) and password")
    return utf8_text(text)
