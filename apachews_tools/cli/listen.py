"""``apachews listen``: a producer in the terminal."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import os
import stat
import sys
from collections.abc import Callable
from typing import Any, Final

from apachews.client import Client
from apachews.events import Event, PongEvent
from apachews.exceptions import ServerClosed
from apachews.server import Server
from apachews_tools.httpd.private_apache import APACHE_USER
from apachews_tools.httpd.shell import this_program, word
from apachews_tools.terminal.console import Console
from apachews_tools.terminal.readable import wait_readable
from apachews_tools.terminal.terminal import (
    CYAN,
    FAINT,
    GREEN,
    RED,
    YELLOW,
    describe_bytes,
    message_members,
    paint,
    printable,
)

from .close_codes import describe_close
from .command import CommandError, utf8_text
from .event_loop import first_result, run_until_signal

SUMMARY: Final = "be a producer: show clients and their messages, and answer by hand"

# Of the client's id, a UUID: enough to distinguish the clients on a terminal.
SHOWN_ID: Final = 8

DESCRIPTION: Final = """\
Listen on PATH for the WebSockets that Apache bridges to it.  Clients and their
messages are shown; each typed line is sent to all clients.  Ctrl-D ends."""

HELP: Final = """\
/to ID TEXT              send to one client; the beginning of its id is sufficient
/close ID [CODE [WHY]]   close the connection of one client
/ping ID                 measure the round trip to one client
/who                     list the clients
/help                    show these commands
//TEXT                   send /TEXT to all"""

EXAMPLES: Final = f"""\
examples:
  apachews listen /var/www/html/ws/test.ws --echo
  sudo apachews listen /var/www/html/ws/test.ws --group www-data
  apachews listen test.ws --json | jq 'select(.event == "message")'

lines that begin with / are commands:
  {HELP.replace(chr(10), chr(10) + "  ")}

At the end of a pipe or a file the command continues, until SIGTERM or Ctrl-C.
At its own end it closes every client with 1001.

exit status: 0 ended by Ctrl-D, Ctrl-C or SIGTERM; 1 it cannot listen on PATH;
2 arguments"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument("path", metavar="PATH", type=utf8_text, help="the socket file to make")
    parser.add_argument("--echo", action="store_true", help="send every message back")
    parser.add_argument(
        "--mode",
        type=_mode,
        default=0o660,
        help="permissions of the socket file (default 660); Apache's user must be able to write",
    )
    parser.add_argument("--group", help="group of the socket file, for example www-data")
    parser.add_argument(
        "--take-over",
        action="store_true",
        help="take the new clients of another producer that listens on PATH",
    )
    parser.add_argument(
        "--json", action="store_true", help="print events as JSON objects, one per line"
    )


def run(arguments: argparse.Namespace) -> int:
    """Listen until the end of what is typed, or until a signal."""
    if not arguments.path:
        raise CommandError("no socket file given; usage: apachews listen PATH")
    try:
        server = Server(
            arguments.path,
            mode=arguments.mode,
            group=arguments.group,
            exclusive=not arguments.take_over,
        )
    except LookupError:
        raise CommandError(f"unknown group {arguments.group!r}") from None
    except PermissionError as error:
        if error.errno != errno.EACCES:
            raise
        raise CommandError(
            f"{arguments.path}: no permission to create the socket file; run it as Apache's"
            f" user, sudo -u {APACHE_USER} {this_program()} listen {word(arguments.path)}, or as"
            f" root with --group {APACHE_USER}"
        ) from None
    if arguments.group is None and (advice := _advice(server.path)):
        print(f"apachews listen: {advice}", file=sys.stderr, flush=True)
    session = _Session(server, arguments)
    # SIGTERM and Ctrl-C are how it ends.
    with server, contextlib.suppress(KeyboardInterrupt, SystemExit):
        run_until_signal(session.run())
    session.show_end()
    return 0


def _advice(path: str) -> str:
    """Return a warning about a socket file for the group of root, "" for any other.

    Apache's children are not in that group.  Any other mode is the user's choice.
    """
    try:
        status = os.stat(path)
    except OSError:
        return ""  # it was moved
    is_groups = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) == stat.S_IWGRP
    if status.st_uid or status.st_gid or not is_groups:
        return ""
    return (
        f"{printable(path)} is root:root, mode {stat.S_IMODE(status.st_mode):04o}: Apache's user"
        f" cannot connect; use --group {APACHE_USER}"
    )


class _Session:
    """One server, its terminal and its commands."""

    def __init__(self, server: Server, arguments: argparse.Namespace) -> None:
        self._server = server
        self._console = Console()
        self._must_echo: bool = arguments.echo
        self._json: bool = arguments.json
        self._commands: dict[str, Callable[[list[str]], None]] = {
            "/to": self._send_to,
            "/close": self._close,
            "/ping": self._ping,
            "/who": self._show_clients,
            "/help": lambda words: self._console.note(HELP),
        }

    async def run(self) -> None:
        """Serve until the user ends the input; the end of a pipe or a file ends nothing."""
        if self._json:
            self._show_json("listening", path=self._server.path)
        else:
            end = "Ctrl-D ends, /help" if self._console.is_typed else "Ctrl-C ends"
            self._console.note(f"listening on {self._server.path}; {end}")
        await first_result(self._serve(), self._handle_input())

    async def _serve(self) -> None:
        while True:
            self._show_events()
            await wait_readable(self._server.fileno(), self._server.next_timer_s())

    async def _handle_input(self) -> None:
        async for line in self._console.lines():
            self._show_events()  # new clients can be written to
            self._handle_line(line)
        if not self._console.is_typed:
            await asyncio.Event().wait()

    def show_end(self) -> None:
        """Show the close of each client, after the server was closed."""
        with contextlib.suppress(ServerClosed):
            self._show_events()

    # Events

    def _show_events(self) -> None:
        while event := self._server.dequeue_nowait():
            self._show_event(event)

    def _show_event(self, event: Event) -> None:
        kind = event.type()
        if kind is Event.Accept:
            if event.client().request.answer_required:
                event.accept()
            self._show("accept", event, GREEN, "+", _describe(event.client()))
        elif kind in (Event.IO, Event.NoData):
            data = event.read()
            self._show("message", event, CYAN, "<", _describe_message(data))
            if self._must_echo:
                event.write(data)
        elif isinstance(event, PongEvent):
            self._show("pong", event, FAINT, "~", f"answered after {event.latency_s * 1000:.1f} ms")
        elif kind is Event.ConnectionClosed:
            how = describe_close(event.code, event.reason)
            self._show("close", event, YELLOW, "-", how)
        elif kind in (Event.Error, Event.Invalid):
            self._show("error", event, RED, "!", printable(event.reason))

    def _show(self, name: str, event: Event, colour: str, mark: str, text: str) -> None:
        client = event.client_or_none()
        if self._json:
            self._show_json(name, **_members(name, event))
            return
        mark = paint(mark, colour) if self._console.colours else mark
        who = f" {client.guid()[:SHOWN_ID]}" if client else ""
        margin = "\n" + " " * (SHOWN_ID + 4)
        self._console.show(f"{mark}{who}  {text.replace(chr(10), margin)}")

    def _show_json(self, event: str, **members: Any) -> None:
        self._console.show_json({"event": event, **members})

    # Input

    def _handle_line(self, line: str) -> None:
        if line.startswith("/") and not line.startswith("//"):
            words = line.split(" ", 2)
            try:
                command = self._commands.get(words[0])
                if command is None:
                    raise CommandError(f"unknown command {words[0]}; see /help; //… sends /…")
                command(words[1:])
            except (CommandError, ValueError) as error:
                self._console.note(str(error), RED)
            return
        reached = self._server.broadcast(line.removeprefix("/") if line[:2] == "//" else line)
        if not reached:
            self._console.note("no clients are connected")

    def _send_to(self, words: list[str]) -> None:
        if len(words) < 2:
            raise CommandError("expected /to ID TEXT")
        self._find(words).send(words[1])

    def _close(self, words: list[str]) -> None:
        client = self._find(words)
        code, _, reason = (words[1] if len(words) > 1 else "1000").strip().partition(" ")
        if not code.isdecimal():
            raise CommandError(f"{code!r}: expected a close code; /close ID [CODE [WHY]]")
        client.close(int(code), reason)

    def _ping(self, words: list[str]) -> None:
        self._find(words).ping()

    def _show_clients(self, words: list[str]) -> None:
        clients = self._server.clients()
        if self._json:
            self._show_json("who", clients=[client.guid() for client in clients])
            return
        for client in clients:
            self._console.show(f"  {client.guid()[:SHOWN_ID]}  {_describe(client)}")
        if not clients:
            self._console.note("no clients are connected")

    def _find(self, words: list[str]) -> Client:
        """Return the client with an id that begins with the first word."""
        if not words or not words[0]:
            raise CommandError("no client given; /who lists the clients")
        found = [client for client in self._server.clients() if client.guid().startswith(words[0])]
        if not found:
            raise CommandError(f"unknown client {words[0]}; /who lists the clients")
        if len(found) > 1:
            raise CommandError(f"{len(found)} ids begin with {words[0]}: type more of the id")
        return found[0]


def _describe(client: Client) -> str:
    request = client.request
    address, port = request.remote
    host = f"[{address}]" if ":" in address else address
    words = [f"{host}:{port}" if port else address or "-", request.uri]
    if request.user is not None:
        words.append(f"user {request.user}")
    if request.subprotocol:
        words.append(f"subprotocol {request.subprotocol}")
    if request.resumed:
        words.append("resumed")
    return printable("  ".join(words))


def _describe_message(data: str | bytes) -> str:
    return printable(data) if isinstance(data, str) else describe_bytes(data)


def _members(name: str, event: Event) -> dict[str, Any]:
    """Return the members of an event's JSON object."""
    client = event.client_or_none()
    members: dict[str, Any] = {"client": client.guid() if client else None}
    if name == "accept" and client:
        request = client.request
        members |= {
            "remote": list(request.remote),
            "uri": request.uri,
            "user": request.user,
            "subprotocol": request.subprotocol,
            "resumed": request.resumed,
        }
    elif name == "message":
        members |= message_members(event.read())
    elif isinstance(event, PongEvent):
        members["seconds"] = round(event.latency_s, 6)
    else:
        members |= {"code": event.code, "reason": event.reason}
    return members


def _mode(text: str) -> int:
    mode = int(text, 8)
    if not 0 <= mode <= 0o777:
        raise ValueError(text)
    return mode


# For argparse's "invalid … value".
_mode.__name__ = "mode (expected octal digits, for example 660)"
