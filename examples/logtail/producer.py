"""A live log: the last lines of a file, and every new line.

Run it with the paths of its socket file and of the log as the arguments, as a user who may
read the log.  Apache decides which users may connect (``Require``, in apache.conf): this
program sends the log to every client.

A client sends a text to see only the lines that contain it, in upper or lower case; an empty
message removes the filter.  It receives JSON objects: ``{"of": "error", "lines": […]}`` with
the last lines that match, at first (with the filter ``""``) and after each change; then
``{"lines": […]}``.  If the client was too slow, ``{"skipped": 1200}`` replaces the missed lines.
After a deploy the new version does not know the filter, and begins with ``{"of": ""}``: a
client with a filter sends it again.
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

READ_EVERY_S = 0.25
# After a full read of READ_BYTES.  A burst is thus sent at 5 MB a second, which is too fast
# for a person, but not for a page.
READ_AGAIN_S = 0.05
FIRST_LINES = 200  # for a new client
REMEMBERED_LINES = 5000  # in which a filter searches
MAX_FILTER = 200  # characters
# A client with more bytes queued gets no more lines until its queue is empty.  (With
# max_queue_bytes of Server, 4 MiB, it would be closed.)
SLOW_BYTES = 512 * 1024

# Bytes per read of a file, so that a burst does not delay the clients.
READ_BYTES = 256 * 1024
# Longer lines are cut.
MAX_LINE_BYTES = 8192
# How long a rotated file is still read.
ROTATED_S = 30.0


@dataclass
class View:
    """The filter of a client, and the number of lines that it has missed."""

    text: str = ""
    skipped: int = 0

    def select(self, lines: list[str]) -> list[str]:
        """Return the lines that match the filter."""
        wanted = self.text.casefold()
        return [line for line in lines if wanted in line.casefold()]


def main(socket_path: str, log_path: str) -> None:
    """Serve the log on a socket file until the server is closed."""
    tail = Tail(log_path, REMEMBERED_LINES)
    remembered = deque(tail.next_lines(), maxlen=REMEMBERED_LINES)
    with Server(socket_path) as server:
        viewers = server.group("viewers")
        read_at = time.monotonic()
        while True:
            event = server.dequeue(max(0.0, read_at - time.monotonic()))
            if event is not None:
                handle_event(event, viewers, remembered)
            if time.monotonic() >= read_at:
                lines = tail.next_lines()
                wait_s = READ_AGAIN_S if tail.is_behind else READ_EVERY_S
                read_at = time.monotonic() + wait_s
                remembered += lines
                for client in viewers:
                    send_lines(client, lines)


def handle_event(event: Event, viewers: Group, remembered: deque[str]) -> None:
    """Set a client's filter, and send it the last lines that match."""
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


def send_lines(client: Client, lines: list[str]) -> None:
    """Send a client the lines that match its filter, unless its queue is too long."""
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
    """The new lines of a file, across rotation.

    The file stays open and is read to its end.  When the path names another file, the old one
    is read for some more seconds, because the writers still have it open: Apache's children do
    until their last request ends.  If the file has become shorter (``copytruncate``), reading
    starts again at its beginning.

    Args:
        path: the file, which may appear later.
        before: the number of existing lines to return first.
        clock: returns monotonic seconds.
    """

    def __init__(
        self, path: str, before: int = 0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._clock = clock
        self._rotated: list[tuple[OpenFile, float]] = []  # and when to close each
        self._file = OpenFile.at(path)
        self._first = self._file.last_lines(before) if self._file else []

    def next_lines(self) -> list[str]:
        """Return the complete lines since the last call, oldest first; does not wait.

        Raises:
            OSError: the file may not be read.
        """
        lines, self._first = self._first, []
        for file, _ in self._rotated:
            lines += file.next_lines()
        self._close_rotated()
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
        """True if the file has more unread data."""
        return self._file is not None and self._file.is_behind

    def close(self) -> None:
        """Close all files."""
        for file, _ in self._rotated:
            file.close()
        if self._file is not None:
            self._file.close()
        self._rotated, self._file = [], None

    def _close_rotated(self) -> None:
        now = self._clock()
        for file, until in self._rotated:
            if until <= now:
                file.close()
        self._rotated = [(file, until) for file, until in self._rotated if until > now]


class OpenFile:
    """One open file, independent of its present name.

    Attributes:
        is_behind: the last read was a full one, so more data may be there.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.is_behind = False
        self._file = file
        self._rest = b""  # beginning of an incomplete line

    @classmethod
    def at(cls, path: str) -> OpenFile | None:
        """Open the file of this name; return None if it does not exist."""
        try:
            return cls(open(path, "rb", buffering=0))
        except FileNotFoundError:
            return None

    def last_lines(self, count: int) -> list[str]:
        """Return the last lines of the existing data, from the last READ_BYTES."""
        size = os.fstat(self._file.fileno()).st_size
        start = max(0, size - READ_BYTES)
        self._file.seek(start)
        lines = self.next_lines()
        if start:
            del lines[:1]  # incomplete: its beginning was not read
        return lines[-count:] if count else []

    def next_lines(self) -> list[str]:
        """Return the next complete lines."""
        if os.fstat(self._file.fileno()).st_size < self._file.tell():
            self._file.seek(0)
            self._rest = b""
        data = self._file.read(READ_BYTES)
        self.is_behind = len(data) == READ_BYTES
        *lines, rest = (self._rest + data).split(b"\n")
        self._rest = rest[:MAX_LINE_BYTES]
        return [line[:MAX_LINE_BYTES].decode(errors="replace") for line in lines]

    def is_at(self, path: str) -> bool:
        """Return whether the path names this file, or no file."""
        try:
            return os.path.samestat(os.stat(path), os.fstat(self._file.fileno()))
        except FileNotFoundError:
            return True

    def close(self) -> None:
        """Close the file."""
        self._file.close()


if __name__ == "__main__":
    main(*sys.argv[1:3])
