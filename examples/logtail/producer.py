"""A live log: the last lines of a file, and every line that is written from then on.

Run it with the path of its socket file and the log's as the arguments, as a user who may
read the log.  Who may read it in a browser is Apache's to say (``Require``, in
apache.conf): this program shows it to whoever is let in.

A client sends a text to see only the lines that contain it, in any case; the empty
message shows all again.  It receives JSON objects: ``{"of": "error", "lines": […]}`` with
the last lines that contain it, after each change and, of ``""``, at first; then
``{"lines": […]}``.  Where it was too slow, ``{"skipped": 1200}`` stands in for what it
missed.  The next version of this program knows no filter any more, and begins anew with
``{"of": ""}``: a client that wants another one says so again.
"""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from apachews import Client, Event, Group, Server

LOOK_EVERY_S = 0.25
# Where there was more than READ_BYTES. So a burst is passed on at 5 MB a second, which no
# person reads, but a page can.
LOOK_AGAIN_S = 0.05
FIRST_LINES = 200  # for whoever comes
REMEMBERED_LINES = 5000  # among which these are looked for, with a filter
MAX_FILTER = 200  # characters
# Who has more to read than this gets no more lines until he has read it all. (A client
# for whom Server's max_queue_bytes wait, 4 MiB, would be closed.)
SLOW_BYTES = 512 * 1024

# What is read of a file at once, so that a burst holds nobody up.
READ_BYTES = 256 * 1024
# A line that is longer is cut.
MAX_LINE_BYTES = 8192
# How long a file that was rotated away is read on.
ROTATED_S = 30.0


@dataclass
class View:
    """What a client wants to see, and how many lines it has missed."""

    text: str = ""
    skipped: int = 0

    def select(self, lines: list[str]) -> list[str]:
        """Return the lines that it wants."""
        wanted = self.text.casefold()
        return [line for line in lines if wanted in line.casefold()]


def main(socket_path: str, log_path: str) -> None:
    """Serve the log on a socket file until the server is closed."""
    tail = Tail(log_path, REMEMBERED_LINES)
    remembered = deque(tail.next_lines(), maxlen=REMEMBERED_LINES)
    with Server(socket_path) as server:
        viewers = server.group("viewers")
        look_at = time.monotonic()
        while True:
            event = server.dequeue(max(0.0, look_at - time.monotonic()))
            if event is not None:
                take(event, viewers, remembered)
            if time.monotonic() >= look_at:
                lines = tail.next_lines()
                wait_s = LOOK_AGAIN_S if tail.is_behind else LOOK_EVERY_S
                look_at = time.monotonic() + wait_s
                remembered += lines
                for client in viewers:
                    pass_on(client, lines)


def take(event: Event, viewers: Group, remembered: deque[str]) -> None:
    """Do what an event asks for: show what is there already."""
    if event.type() is Event.Accept:
        event.client().state = View()
        viewers.add(event.client())
    elif event.type() in (Event.IO, Event.NoData):
        event.client().state = View(str(event.read())[:MAX_FILTER])
    else:
        return
    view: View = event.client().state
    lines = view.select(list(remembered))
    event.client().send_json({"of": view.text, "lines": lines[-FIRST_LINES:]})


def pass_on(client: Client, lines: list[str]) -> None:
    """Send a client the lines that it wants, unless it has enough to read."""
    view: View = client.state
    lines = view.select(lines)
    if client.queued_bytes > (0 if view.skipped else SLOW_BYTES):
        view.skipped += len(lines)
        return
    if view.skipped:
        client.send_json({"skipped": view.skipped})
        view.skipped = 0
    if lines:
        client.send_json({"lines": lines})


class Tail:
    """The lines of a file as they come, through rotation.

    The file is kept open and read to its end.  Where the path names another file by then,
    the old one is read on for some seconds, because whoever writes it has it open as well:
    Apache's children have, until their last request is over.  Where it has become shorter
    (``copytruncate``), reading begins again at its start.

    Args:
        path: the file; need not be there yet.
        before: how many of the lines that it has already come first.
        clock: seconds that only go up.
    """

    def __init__(
        self, path: str, before: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._clock = clock
        self._rotated: list[tuple[OpenFile, float]] = []  # and when to let go of each
        self._file = OpenFile.at(path)
        self._first = self._file.last_lines(before) if self._file else []

    def next_lines(self) -> list[str]:
        """Return at once the whole lines that came since the last call, oldest first.

        Raises:
            OSError: the file may not be read.
        """
        lines, self._first = self._first, []
        for file, _ in self._rotated:
            lines += file.next_lines()
        self._let_go()
        if self._file is not None:
            lines += self._file.next_lines()
            if self._file.is_at(self._path):
                return lines
        newer = OpenFile.at(self._path)
        if newer is not None:
            if self._file is not None:
                self._rotated.append((self._file, self._clock() + ROTATED_S))
            self._file = newer
            lines += newer.next_lines()
        return lines

    @property
    def is_behind(self) -> bool:
        """True where there is more already."""
        return self._file is not None and self._file.is_behind

    def close(self) -> None:
        """Close what is open."""
        for file, _ in self._rotated:
            file.close()
        if self._file is not None:
            self._file.close()
        self._rotated, self._file = [], None

    def _let_go(self) -> None:
        now = self._clock()
        for file, until in self._rotated:
            if until <= now:
                file.close()
        self._rotated = [(file, until) for file, until in self._rotated if until > now]


class OpenFile:
    """One file, whatever it is called by now.

    Attributes:
        is_behind: the last read gave all that it may.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.is_behind = False
        self._file = file
        self._rest = b""  # the begin of a line whose end is not written yet

    @classmethod
    def at(cls, path: str) -> OpenFile | None:
        """Open the file of this name, if there is one."""
        try:
            return cls(open(path, "rb", buffering=0))
        except FileNotFoundError:
            return None

    def last_lines(self, count: int) -> list[str]:
        """Return the last lines of what there is, of READ_BYTES at most."""
        size = os.fstat(self._file.fileno()).st_size
        start = max(0, size - READ_BYTES)
        self._file.seek(start)
        lines = self.next_lines()
        if start:
            del lines[:1]  # its begin is not among it
        return lines[-count:] if count else []

    def next_lines(self) -> list[str]:
        """Return the whole lines that come next."""
        if os.fstat(self._file.fileno()).st_size < self._file.tell():
            self._file.seek(0)
            self._rest = b""
        data = self._file.read(READ_BYTES)
        self.is_behind = len(data) == READ_BYTES
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[:MAX_LINE_BYTES]
        return [line[:MAX_LINE_BYTES].decode(errors="replace") for line in lines]

    def is_at(self, path: str) -> bool:
        """Tell whether the path names this file, or none."""
        try:
            return os.path.samestat(os.stat(path), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return True

    def close(self) -> None:
        """Close it."""
        self._file.close()


if __name__ == "__main__":
    main(*sys.argv[1:3])
