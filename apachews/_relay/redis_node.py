"""The two connections to one Redis: one that publishes, one that receives.

Contract: for ``RedisEngine``, which translates the exceptions of redis-py.  Imported only with
it, because ``redis`` is not part of the standard library.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import redis
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from .engine import EngineError, discard_unsent

# The number of channels in one command: some ten KB.
CHANNELS_AT_ONCE: Final = 500
# What ``receive`` returns at most, so that publishing is not held up, and memory is bounded: the
# last message may exceed it.
MESSAGES_AT_ONCE: Final = 500
BYTES_AT_ONCE: Final = 4 * 1024 * 1024

# Errors about the server, and not about a command.  Redis 6 has that of a replica within the text
# of the script's error.
_OF_SERVER: Final = (
    AskError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    ReadOnlyError,
    TryAgainError,
)

VERSION: Final = tuple(int(part) for part in redis.__version__.split(".")[:2] if part.isdigit())
# redis-py 5 knows RESP3, and reads its messages only if asked to.  Older versions know neither.
_READ_OPTIONS: Final[dict[str, Any]] = {"push_request": True} if VERSION >= (5,) else {}


class RedisNode:
    """One server.

    Args:
        pool: that makes its connections.
        is_sharded: it is a node of a cluster.

    Attributes:
        pinged_at: when a ping was sent that was not answered yet; None without one.
        heard_at: when something was received last.
        has_more: messages wait in redis-py's buffer, of which poll() knows nothing.
    """

    def __init__(self, pool: Any, is_sharded: bool) -> None:
        # The connections of a Sentinel refer to their pool weakly.
        self._pool = pool
        self.commands = pool.make_connection()
        self.events = pool.make_connection()
        self._prefix = "S" if is_sharded else ""
        self._has_scripts = False
        self._may_store: bool | None = None  # not known yet
        self.pinged_at: float | None = None
        self.heard_at = time.monotonic()
        self.has_more = False

    def connect(self) -> None:
        """Connect both."""
        self.commands.connect()
        # Now and not before a close: redis-py closes the socket itself after a time limit.
        discard_unsent(self.commands._sock)
        self.events.connect()

    def close(self) -> None:
        """Close both; closing again does nothing."""
        for connection in (self.commands, self.events):
            with contextlib.suppress(RedisError, OSError):
                connection.disconnect()

    def fileno(self) -> int:
        """Return the descriptor of the receiving connection."""
        sock = self.events._sock
        if sock is None:
            raise EngineError("the connection is closed")
        return int(sock.fileno())

    def is_readable(self) -> bool:
        """Return whether something waits for ``receive``."""
        # redis-py may move it from the socket to its buffer.
        self.has_more = bool(self.events.can_read(timeout=0))
        return self.has_more

    def call(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send commands at once, and return their answers.

        Raises:
            ResponseError: of the first command that was rejected.
        """
        # All answers are read before an error among them is raised.
        answers = self.answers(commands)
        for answer in answers:
            if isinstance(answer, ResponseError):
                raise answer
        return answers

    def answers(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send commands at once, and return their answers: errors as well.

        Raises:
            ResponseError: the server rejects all commands, until another one takes over.
        """
        self.commands.send_packed_command(self.commands.pack_commands(commands))
        answers = [self._answer() for _ in commands]
        for answer in answers:
            if isinstance(answer, NoScriptError):
                self._has_scripts = False  # loaded again before the next one
            elif isinstance(answer, _OF_SERVER) or (
                isinstance(answer, ResponseError) and "READONLY" in str(answer)
            ):
                raise answer
        return answers

    def _answer(self) -> Any:
        try:
            return self.commands.read_response()
        except ResponseError as error:
            return error

    def load(self, scripts: Sequence[str]) -> None:
        """Load scripts, once."""
        if not self._has_scripts:
            self.call([("SCRIPT", "LOAD", script) for script in scripts])
            self._has_scripts = True

    def may_store(self, key: bytes) -> bool:
        """Return whether the rights of the user suffice for scripts and their keys."""
        if self._may_store is None:
            try:
                self.call([("EVAL", "return redis.call('EXISTS', KEYS[1])", 1, key)])
                self._may_store = True
            except NoPermissionError:
                self._may_store = False
        return self._may_store

    def subscribe(self, channels: Sequence[bytes], *, ends: bool = False) -> None:
        """Send SUBSCRIBE, or UNSUBSCRIBE (``ends``); ``receive`` yields the answers."""
        command = f"{self._prefix}{'UNSUBSCRIBE' if ends else 'SUBSCRIBE'}"
        # One channel a command in a cluster: those of one command must have the same slot.
        at_once = 1 if self._prefix else CHANNELS_AT_ONCE
        self.events.send_packed_command(
            self.events.pack_commands(
                [
                    (command, *channels[start : start + at_once])
                    for start in range(0, len(channels), at_once)
                ]
            )
        )

    def subscribers(self, channels: Sequence[bytes]) -> dict[bytes, int]:
        """Return the number of subscribers of each channel."""
        command = ("PUBSUB", "SHARDNUMSUB" if self._prefix else "NUMSUB")
        numbers: dict[bytes, int] = {}
        for start in range(0, len(channels), CHANNELS_AT_ONCE):
            answer = self.call([(*command, *channels[start : start + CHANNELS_AT_ONCE])])[0]
            numbers.update(zip(answer[::2], answer[1::2], strict=True))
        return numbers

    def ping(self) -> None:
        """Send a PING on the receiving connection."""
        self.events.send_packed_command(self.events.pack_commands([("PING",)]))
        self.pinged_at = time.monotonic()

    def receive(self) -> Iterator[Any]:
        """Yield what has arrived, without waiting, except for the rest of a message."""
        size = 0
        for _ in range(MESSAGES_AT_ONCE):
            if size >= BYTES_AT_ONCE or not self.is_readable():
                return
            item = self.events.read_response(**_READ_OPTIONS)
            self.heard_at = time.monotonic()
            if isinstance(item, (list, tuple)) and isinstance(item[-1], bytes):
                size += len(item[-1])
            yield item
