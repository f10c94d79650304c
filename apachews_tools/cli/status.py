"""``apachews status``: the WebSockets of this machine's Apaches, or those of a status page."""

from __future__ import annotations

import argparse
import http.client
import queue
import shutil
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import Final

from apachews.exceptions import StatusError
from apachews.monitoring.collect import MAX_STATUS_BYTES, RunningApache, find_apaches
from apachews.monitoring.snapshot import (
    CUSTODIAN,
    HELD,
    ConnectionStatus,
    EndpointStatus,
    ProcessStatus,
    Status,
)
from apachews_tools.httpd.shell import this_program
from apachews_tools.terminal.terminal import has_cursor, printable_line, uses_colour

from .command import CommandError, number, seconds
from .figures import count, size, span, table

SUMMARY: Final = "show Apache's WebSockets"

DESCRIPTION: Final = """\
Show Apache's processes, endpoints and connections, with their traffic and queues.

Without --apache, show every Apache on this machine.  Its processes answer to root, and to
the user they run as.  A URL is that of a status page (WSGIScriptAlias to status_page.py),
on any machine.

"in" is from clients, "out" is to clients; bytes are those of uncompressed messages."""

EXAMPLES: Final = """\
examples:
  sudo apachews status
  sudo apachews status --watch                          with rates, every 2 s
  apachews status --apache https://example.org/websocket-status
  sudo apachews status --json | jq .processes[].connections_count

exit status: 0 success; 1 the status is not available"""

INTERVAL_S: Final = 2.0
MIN_INTERVAL_S: Final = 0.1
CONNECTIONS: Final = 20
# Of a status page.
TIMEOUT_S: Final = 10.0
# ECMA-48: SGR.
_BOLD: Final = "\033[1m"
_PLAIN: Final = "\033[0m"

Ask = Callable[[], Status]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument(
        "--watch",
        type=_interval,
        nargs="?",
        const=INTERVAL_S,
        metavar="SECONDS",
        help=f"repeat (default: every {INTERVAL_S:g} s), with rates, until Ctrl-C",
    )
    parser.add_argument(
        "--apache",
        metavar="PID|URL",
        help="only the Apache with this parent process or status page",
    )
    parser.add_argument(
        "--connections",
        type=number,
        default=CONNECTIONS,
        metavar="N",
        help=f"list the N connections with the most traffic (default {CONNECTIONS}; 0: none)",
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON per Apache")


def run(arguments: argparse.Namespace) -> int:
    """Show the status, once or until Ctrl-C."""
    rates = Rates()
    screen = Screen()
    is_first = True
    while True:
        try:
            found = [ask() for ask in _asks(arguments.apache)]
            if arguments.json:
                text = "".join(status.encode().decode() + "\n" for status in found)
            else:
                text = "\n".join(
                    "\n".join(render(status, rates, arguments.connections, screen.bold)) + "\n"
                    for status in found
                )
        except CommandError as error:
            if is_first:
                raise
            text = f"{error}\n"  # Apache may start again
        if arguments.watch is None:
            sys.stdout.write(text)
            return 0
        screen.show(text, is_redrawn=not arguments.json)
        is_first = False
        time.sleep(arguments.watch)


class Screen:
    """Standard output, which may be a terminal."""

    def __init__(self) -> None:
        self._is_terminal = has_cursor(sys.stdout)
        self._has_colours = uses_colour(sys.stdout)

    def bold(self, text: str) -> str:
        """Return a text in bold, if the terminal has styles."""
        return f"{_BOLD}{text}{_PLAIN}" if self._has_colours else text

    def show(self, text: str, is_redrawn: bool) -> None:
        """Show a text; on a terminal it replaces the previous one."""
        if self._is_terminal and is_redrawn:
            columns, lines = shutil.get_terminal_size()
            shown = [self._cut(line, columns) for line in text.splitlines()]
            text = "\033[H\033[J" + "\n".join(shown[: lines - 1]) + "\n"
        elif is_redrawn:
            text += "\n"
        sys.stdout.write(text)
        sys.stdout.flush()

    def _cut(self, line: str, columns: int) -> str:
        if line.startswith(_BOLD):
            return self.bold(line[len(_BOLD) : -len(_PLAIN)][:columns])
        return line[:columns]


class Rates:
    """Growth per second since the previous call."""

    def __init__(self) -> None:
        self._before: dict[object, tuple[float, tuple[float, ...]]] = {}

    def of(self, key: object, at: float, *numbers: float) -> list[float | None]:
        """Return the growth of each number per second; None at the first call."""
        before = self._before.get(key)
        self._before[key] = (at, numbers)
        if before is None or at <= before[0]:
            return [None] * len(numbers)
        seconds = at - before[0]
        return [
            max(0.0, now - then) / seconds for now, then in zip(numbers, before[1], strict=True)
        ]


def render(
    status: Status, rates: Rates, listed: int, bold: Callable[[str], str] = str
) -> Iterator[str]:
    """Yield the lines that show a status.

    Args:
        rates: the object that computes rates.
        listed: how many connections to list.
        bold: returns a line in bold.
    """
    total = status.total()
    custodians = sum(process.kind == CUSTODIAN for process in status.processes)
    yield bold(
        f"Apache {status.apache}: {_number_of(status.connections_count, 'connection')}"
        f" ({total.open} open, {total.held} held, {total.closing} closing) with"
        f" {_number_of(len(status.processes), 'process', 'processes')},"
        f" including {_number_of(custodians, 'custodian')}"
    )
    if status.silent:
        pids = ", ".join(map(str, status.silent))
        yield f"Process {pids} did not answer: its connections are missing here."
    if not status.processes:
        yield "This Apache has not had a WebSocket yet."
        return
    yield ""
    yield from _with_bold_head(bold, _processes(status, rates))
    yield ""
    yield from _with_bold_head(bold, _endpoints(status, rates))
    if status.relays:
        yield ""
        yield from _with_bold_head(bold, _relays(status))
    if listed and status.connections_count:
        yield ""
        yield from _with_bold_head(bold, _connections(status, listed))
        left = status.connections_count - min(listed, len(list(status.connections())))
        if left:
            yield f"and {left} more"


def _with_bold_head(bold: Callable[[str], str], lines: list[str]) -> Iterator[str]:
    yield bold(lines[0])
    yield from lines[1:]


def _number_of(number: int, name: str, names: str = "") -> str:
    return f"{number} {name if number == 1 else names or name + 's'}"


def _processes(status: Status, rates: Rates) -> list[str]:
    rows = []
    for process in status.processes:
        moved = [0, 0]
        for endpoint in process.endpoints:
            moved[0] += endpoint.messages_in
            moved[1] += endpoint.messages_out
        key = (status.apache, process.pid, process.started)
        busy, *grown = rates.of(key, status.time, process.cpu_s, *moved)
        rows.append(
            [
                str(process.pid),
                printable_line(process.kind),
                span(max(0.0, status.time - process.started)),
                str(process.connections_count),
                str(process.channel_clients),
                *map(count, grown),
                "-" if busy is None else f"{busy:.1%}",
                size(process.memory_bytes or None),
                span(process.longest_turn_s) if process.longest_turn_s else "< 1 ms",
                _mean(process),
            ]
        )
    heads = ["PROCESS", "<KIND", "AGE", "CONNECTIONS", "ON CHANNELS", "IN/S", "OUT/S", "CPU"]
    return table([*heads, "MEMORY", "LONGEST TURN", "ROUND TRIP"], rows)


def _mean(process: ProcessStatus) -> str:
    trips = process.round_trips
    return span(trips.sum_s / trips.count if trips.count else None)


def _endpoints(status: Status, rates: Rates) -> list[str]:
    grown: dict[str, list[float | None]] = {}
    for process in status.processes:
        for endpoint in process.endpoints:
            key = (status.apache, process.pid, process.started, endpoint.path)
            numbers = (endpoint.messages_in, endpoint.messages_out)
            more = rates.of(key, status.time, *numbers)
            before = grown.get(endpoint.path, [None, None])
            grown[endpoint.path] = [_add(a, b) for a, b in zip(before, more, strict=True)]
    rows = [
        [
            printable_line(endpoint.path),
            *(count(n) for n in (endpoint.open, endpoint.held, endpoint.closing, endpoint.total)),
            *map(count, grown[endpoint.path]),
            size(endpoint.bytes_in),
            size(endpoint.bytes_out),
            size(endpoint.queued_in),
            size(endpoint.queued_out),
            _closes(endpoint),
        ]
        for endpoint in status.endpoints()
    ]
    heads = ["<ENDPOINT", "OPEN", "HELD", "CLOSING", "EVER", "IN/S", "OUT/S", "BYTES IN", "OUT"]
    return table([*heads, "QUEUED IN", "OUT", "<CLOSED, BY CODE"], rows)


def _relays(status: Status) -> list[str]:
    rows = [
        [
            printable_line(relay.endpoint),
            printable_line(relay.address),
            printable_line(relay.name),
            "up" if relay.is_up else "lost",
            *map(count, (relay.published, relay.received, relay.dropped, relay.gaps)),
            span(relay.lag_s),
        ]
        for relay in status.relays
    ]
    heads = ["<ENDPOINT", "<RELAY", "<NAME", "<STATE", "PUBLISHED", "RECEIVED", "DROPPED", "GAPS"]
    return table([*heads, "ROUND TRIP"], rows)


def _add(first: float | None, second: float | None) -> float | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second


def _closes(endpoint: EndpointStatus) -> str:
    return ", ".join(f"{printable_line(code)}: {n}" for code, n in sorted(endpoint.closes.items()))


def _connections(status: Status, listed: int) -> list[str]:
    def weight(item: tuple[ProcessStatus, ConnectionStatus]) -> tuple[bool, int]:
        _, connection = item
        waits = connection.state == HELD or connection.queued_in + connection.queued_out > 0
        return waits, connection.bytes_in + connection.bytes_out

    found = sorted(status.connections(), key=weight, reverse=True)[:listed]
    rows = [
        [
            printable_line(_address(connection)),
            printable_line(connection.user) or "-",
            printable_line(connection.path),
            printable_line(connection.scheme),
            printable_line(connection.state),
            span(connection.age_s),
            count(connection.messages_in),
            count(connection.messages_out),
            size(connection.bytes_in),
            size(connection.bytes_out),
            size(connection.queued_in),
            size(connection.queued_out),
            span(connection.round_trip_s),
            str(process.pid),
        ]
        for process, connection in found
    ]
    heads = ["<CLIENT", "<USER", "<PATH", "<", "<STATE", "AGE", "MESSAGES IN", "OUT"]
    heads += ["BYTES IN", "OUT", "QUEUED IN", "OUT", "ROUND TRIP", "PROCESS"]
    return table(heads, rows)


def _address(connection: ConnectionStatus) -> str:
    host = f"[{connection.address}]" if ":" in connection.address else connection.address
    return f"{host}:{connection.port}" if connection.port else connection.address


def _asks(apache: str | None) -> list[Ask]:
    """Return a function per Apache that returns its status.

    Raises:
        CommandError: the Apache does not run.
    """
    if apache is not None and not apache.isdecimal():
        return [lambda: fetch(apache)]
    found = find_apaches()
    if not found:
        raise CommandError(
            "Apache httpd does not run on this machine; start it, or name a status page:"
            " --apache https://…/websocket-status"
        )
    if apache is not None:
        wanted = [one for one in found if one.pid == int(apache)]
        if not wanted:
            pids = ", ".join(str(one.pid) for one in found)
            raise CommandError(f"process {apache} is not an Apache parent process; running: {pids}")
        found = wanted
    return [lambda one=one: _ask(one) for one in found]  # type: ignore[misc]


def _ask(apache: RunningApache) -> Status:
    try:
        return apache.collect().with_relays()
    except PermissionError as error:
        raise CommandError(
            f"no permission to ask the processes of Apache {apache.pid} ({error.filename}:"
            f" {error.strerror}): run sudo {this_program()} status, or set up a"
            " status page (docs/howto/operations.md) and name it with --apache URL"
        ) from error


def fetch(url: str) -> Status:
    """Return the status from a status page.

    Raises:
        CommandError: the page did not return it within ``TIMEOUT_S``.
    """
    # A thread: the timeout of a socket starts again with every byte, so a slow server could
    # block the request for much longer.  The thread is a daemon, and is abandoned then.
    answers: queue.SimpleQueue[Status | CommandError] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(_fetch(url))
        except CommandError as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=TIMEOUT_S)
    except queue.Empty:
        raise CommandError(f"{url}: no complete answer within {TIMEOUT_S:g} s") from None
    if isinstance(answer, CommandError):
        raise answer
    return answer


def _fetch(url: str) -> Status:
    target = url
    try:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise CommandError(f"{url} is neither a process id nor an http or https URL")
        # As browsers do; percent-encoded characters stay as they are.
        path = urllib.parse.quote(parts.path or "/", safe="%/:=&!$'()*+,;@~-._")
        target = urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, "json", ""))
        with urllib.request.urlopen(target, timeout=TIMEOUT_S) as answer:
            return Status.decode(answer.read(MAX_STATUS_BYTES))
    except urllib.error.HTTPError as error:
        remedy = {
            403: "Require in its <Location> does not allow this machine",
            401: "it requires a login, which this command lacks: run it on that machine",
            404: "the status page is missing: docs/howto/operations.md has its lines",
        }.get(error.code, "see Apache's error log")
        error.close()
        raise CommandError(f"{target} answers {error.code}; {remedy}") from error
    except StatusError as error:
        raise CommandError(f"{target}: {error}; is it the status page of apachews?") from error
    except (OSError, http.client.HTTPException) as error:
        reason = printable_line(str(getattr(error, "reason", error)))
        raise CommandError(f"{target} cannot be read: {reason}") from error
    except ValueError as error:
        raise CommandError(f"{target} is not a URL: {error}") from error


def _interval(text: str) -> float:
    interval_s = seconds(text)
    if interval_s < MIN_INTERVAL_S:
        raise argparse.ArgumentTypeError(f"{text!r}: expected at least {MIN_INTERVAL_S:g} seconds")
    return interval_s
