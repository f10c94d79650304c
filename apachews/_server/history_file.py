"""Histories in a file: they outlive the producer, and all workers share them.

Contract: a ``Store`` of ``histories``.  Every call takes some ten microseconds; one that another
process delays, at most ``BUSY_TIMEOUT_S``.  Imported only by a server with ``history_file=``, so
that others do not load SQLite.

How this works: one transaction gives a message the next offset of its group, inserts it, and drops
what is beyond the bounds.  Then the process reads on from its own position, and tells its sibling
workers to do the same.  A process that was not told (a producer that drains while its successor
runs, or a worker whose queue was full) notices the change within ``tick_s``.

A transaction is in the kernel when it returns, so that it survives the end of the process, however
that comes.  It need not be on the disk: after a restart of the machine the last ones may be
missing.  So the file belongs to one boot of the machine, and is emptied after the next one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from apachews._relay.envelope import NOWHERE, Envelope
from apachews.delivery import Delivery
from apachews.exceptions import HistoryError
from apachews.history import Bounds, Entry, Position, Reading, without_holes

from .histories import KEEP_S, History, new_epoch

# The time limit for a transaction of another process.
BUSY_TIMEOUT_S: Final = 1.0
# "AWsH", so that the file of another program is not touched.
APPLICATION_ID: Final = 0x41577348
SCHEMA_VERSION: Final = 1
# Old messages of groups that are not used any more are dropped after this number of messages.
SWEEP_MESSAGES: Final = 1000
# A new message drops so many old ones at most: its transaction takes the same time always.
DROP_MESSAGES: Final = 8
BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")

_logger: Final = logging.getLogger("apachews")

# ``total`` is the sum of the lengths of all messages of the group up to this one, so that the
# bound in bytes is one comparison.
_SCHEMA: Final = f"""
CREATE TABLE IF NOT EXISTS boot (id TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS groups (
    id INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE, epoch TEXT NOT NULL,
    top INTEGER NOT NULL, total INTEGER NOT NULL, used_at REAL NOT NULL,
    count INTEGER NOT NULL, seconds REAL NOT NULL, size_bytes INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS messages (
    serial INTEGER PRIMARY KEY AUTOINCREMENT,
    group_id INTEGER NOT NULL, offset INTEGER NOT NULL, at REAL NOT NULL,
    total INTEGER NOT NULL, opcode INTEGER NOT NULL, payload BLOB NOT NULL,
    UNIQUE (group_id, offset)
);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
"""


class FileStore:
    """Keeps messages in an SQLite file.

    Args:
        path: the file; created if it is missing.
        notify: tells the other workers that a group has a new message.

    Raises:
        HistoryError: it is not a history file, or not writable.
    """

    keeps_logs = False
    tick_s = 0.5

    def __init__(self, path: str, notify: Callable[[str], object]) -> None:
        self._path = path
        self._notify = notify
        self._appended = 0
        self._data_version = 0
        self._last_serial = 0
        self._is_closed = False
        # SQLite would let every local user read it; its other files get the same mode.
        try:
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            remedy = "this user needs a directory for it that it may write into"
            raise HistoryError(path, f"{error.strerror}; {remedy}") from error
        with self._translated():
            # No implicit transactions; the server's lock protects it from other threads.
            self._database = sqlite3.connect(
                path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            try:
                self._prepare()
            except BaseException:
                self._database.close()
                raise

    def _prepare(self) -> None:
        with self._transaction():  # another worker may be preparing it
            application = self._value("PRAGMA application_id")
            version = self._value("PRAGMA user_version")
            is_new = not application and not self._value("SELECT count(*) FROM sqlite_master")
        if not is_new and (application, version) != (APPLICATION_ID, SCHEMA_VERSION):
            raise HistoryError(self._path, "not a history of this version; use another path")
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")
        boot = BOOT_ID.read_text().strip()
        with self._transaction():
            for statement in _SCHEMA.split(";"):
                self._database.execute(statement)
            if self._value("SELECT id FROM boot") != boot:
                for table in ("messages", "groups", "boot"):
                    self._database.execute(f"DELETE FROM {table}")
                self._database.execute("INSERT INTO boot VALUES (?)", (boot,))
            self._drop_old(time.time())
            self._last_serial = self._value("SELECT max(serial) FROM messages") or 0

    def append(self, history: History, frame: bytes) -> tuple[Position | None, Delivery]:
        """Store a message, and deliver it after those of other workers."""
        if self._is_closed:
            return None, Delivery(0, 0)  # as a broadcast of a server without a history
        name, now = history.group.name, time.time()
        _, opcode, payload = Envelope.of_frame(NOWHERE, frame)
        with self._translated(), self._transaction():
            self._appended += 1
            if self._appended % SWEEP_MESSAGES == 0:
                self._drop_old(now)
            position = self._insert(name, history.log.bounds, opcode, payload, now)
        self._notify(name)
        if not history.is_active:
            return position, Delivery(0, 0)
        try:
            reading = self._read(history)
        except HistoryError as error:
            # It is stored: the members have it with the next one.
            _logger.warning("%s", error)
            return position, Delivery(0, 0)
        return position, history.receive_reading(reading, history.asked)

    def update(self, history: History, number: int) -> None:
        """Read what follows the log's position."""
        if not self._is_closed:
            history.receive_reading(self._read(history), number)

    def require_name(self, name: str) -> None:
        """Accept every name."""

    def find(self, name: str) -> Bounds | None:
        """Return the bounds of a group, if another worker has made it."""
        if self._is_closed:
            return None
        with self._translated():
            row = self._database.execute(
                "SELECT count, seconds, size_bytes FROM groups WHERE name = ?", (_key(name),)
            ).fetchone()
        return None if row is None else Bounds(*row)

    def changed(self) -> Sequence[str]:
        """Return the groups in which other processes have stored messages."""
        try:
            with self._translated():
                version = self._value("PRAGMA data_version")
                if version == self._data_version:
                    return ()
                rows = self._database.execute(
                    "SELECT name, max(serial) FROM messages JOIN groups ON id = group_id"
                    " WHERE serial > ? GROUP BY group_id",
                    (self._last_serial,),
                ).fetchall()
        except HistoryError as error:
            _logger.warning("%s", error)
            return ()
        self._data_version = version
        self._last_serial = max([self._last_serial, *(serial for _, serial in rows)])
        return [bytes(name).decode(errors="surrogatepass") for name, _ in rows]

    def refresh(self, history: History) -> None:
        """Note that a group is still used."""
        try:
            with self._translated():
                self._database.execute(
                    "UPDATE groups SET used_at = ? WHERE name = ?",
                    (time.time(), _key(history.group.name)),
                )
        except HistoryError as error:
            _logger.warning("%s", error)

    def close(self) -> None:
        """Close the file; what is broadcast afterwards is not stored."""
        self._is_closed = True
        self._database.close()

    def _insert(
        self, name: str, bounds: Bounds, opcode: int, payload: bytes, now: float
    ) -> Position:
        group, epoch, top, total = self._group(name, bounds, now)
        top, total = top + 1, total + len(payload)
        execute = self._database.execute
        execute(
            "INSERT INTO messages VALUES (NULL, ?, ?, ?, ?, ?, ?)",
            (group, top, now, total, opcode, payload),
        )
        execute(
            "UPDATE groups SET top = ?, total = ?, used_at = ? WHERE id = ?",
            (top, total, now, group),
        )
        # All up to the last one that is beyond a bound: a clock that was set back must not leave
        # a hole.  The newest message stays.
        execute(
            "DELETE FROM messages WHERE group_id = ? AND offset <= (SELECT max(offset) FROM"
            " (SELECT * FROM messages WHERE group_id = ? AND offset < ? ORDER BY offset LIMIT ?)"
            " WHERE offset <= ? OR at <= ? OR total - length(payload) < ?)",
            (
                *(group, group, top, DROP_MESSAGES),
                *(top - bounds.length, now - bounds.seconds, total - bounds.size_bytes),
            ),
        )
        return Position(epoch, top)

    def _group(self, name: str, bounds: Bounds, now: float) -> tuple[int, str, int, int]:
        """Return id, epoch, top and total of a group, which may be new."""
        row = self._database.execute(
            "SELECT id, epoch, top, total, count, seconds, size_bytes FROM groups WHERE name = ?",
            (_key(name),),
        ).fetchone()
        if row is None:
            epoch = new_epoch()
            done = self._database.execute(
                "INSERT INTO groups VALUES (NULL, ?, ?, 0, 0, ?, ?, ?, ?)",
                (_key(name), epoch, now, *bounds),
            )
            return int(done.lastrowid or 0), epoch, 0, 0
        if row[4:] != bounds:
            self._database.execute(
                "UPDATE groups SET count = ?, seconds = ?, size_bytes = ? WHERE id = ?",
                (*bounds, row[0]),
            )
        return int(row[0]), str(row[1]), int(row[2]), int(row[3])

    def _read(self, history: History) -> Reading:
        name, log, now = history.group.name, history.log, time.time()
        execute = self._database.execute
        with self._translated():
            # Of one moment, and without a lock for writing.
            with self._transaction("DEFERRED"):
                group, epoch, top = execute(
                    "SELECT id, epoch, top FROM groups WHERE name = ?", (_key(name),)
                ).fetchone() or (0, "", 0)
                rows = execute(
                    "SELECT offset, at, opcode, payload FROM messages"
                    " WHERE group_id = ? AND offset > ? ORDER BY offset",
                    (group, log.top if epoch == log.epoch else 0),
                ).fetchall()
            if not epoch:
                with self._transaction():
                    _, epoch, _, _ = self._group(name, log.bounds, now)
        # Ages, because the log has another clock.
        clock = time.monotonic()
        entries = [
            Entry(offset, clock - max(0.0, now - at), Envelope(NOWHERE, opcode, payload).message())
            for offset, at, opcode, payload in rows
        ]
        return Reading(epoch, top, without_holes(entries, top))

    def _drop_old(self, now: float) -> None:
        """Drop what is too old in groups that are not used any more."""
        execute = self._database.execute
        execute("DELETE FROM groups WHERE used_at < ? - max(seconds, ?)", (now, KEEP_S))
        execute("DELETE FROM messages WHERE group_id NOT IN (SELECT id FROM groups)")
        old = execute(
            "SELECT group_id, max(offset) FROM messages JOIN groups ON id = group_id"
            " WHERE at <= ? - seconds GROUP BY group_id",
            (now,),
        ).fetchall()
        self._database.executemany("DELETE FROM messages WHERE group_id = ? AND offset <= ?", old)

    def _value(self, query: str) -> Any:
        row = self._database.execute(query).fetchone()
        return None if row is None else row[0]

    @contextlib.contextmanager
    def _transaction(self, kind: str = "IMMEDIATE") -> Iterator[None]:
        # IMMEDIATE: two workers must not read the same top.
        self._database.execute(f"BEGIN {kind}")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:  # some errors end it
                self._database.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise HistoryError(self._path, str(error)) from error


def _key(name: str) -> bytes:
    # surrogatepass: a group may have any name that a program could give it before.
    return name.encode(errors="surrogatepass")
