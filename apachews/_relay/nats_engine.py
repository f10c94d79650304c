"""NATS as the relay's broker, by nats-py.

Contract: an ``Engine``.  Imported only by a program that uses such a relay: ``nats`` (the extra
``apachews[nats]``) is not part of the standard library.

How this works: nats-py is made for asyncio, so that the thread of the relay has an event loop,
which runs inside the methods of the engine.  It must not reconnect by itself: messages would be
lost and no gap reported.  NATS confirms no subscription and counts no subscribers.  It handles
what a connection sends in order, so that the answer to a ping confirms all subscriptions before
it, and a message to a subject of this engine alone proves that it is heard.

Sources: NATS's documentation of the client protocol; nats-py 2.16.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import time
import urllib.parse
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, Final, TypeVar

import nats
import nats.errors
from nats.aio.client import Client
from nats.aio.subscription import Subscription

from apachews.history import Position, Reading

from .address import Address
from .engine import EngineError, Message, Question, Rejection, discard_unsent

# The time limit for NATS to answer.
TIMEOUT_S: Final = 3.0
# So long does the next ping wait for the answer to the one before it, which may have arrived
# while this process did not run.
LAST_WAIT_S: Final = 0.5
# The default ``max_payload`` of a server is 1 MiB, and has room for the envelope as well.
MAX_MESSAGE_BYTES: Final = 1024 * 1024 - 64
# A command of more than 4,096 bytes ends the connection; it has two tokens.
MAX_TOKEN_CHARS: Final = 1000

T = TypeVar("T")


class NatsEngine:
    """See ``Engine``.

    Args:
        target: the address of a server, or of several of a cluster.
        name: the relay's, part of all subjects.
    """

    # JetStream numbers the messages of a stream, and not those of each subject: offsets of groups
    # would need a stream for each group, which its users would have to create and to limit.
    has_history = False
    max_message_bytes: int | None = MAX_MESSAGE_BYTES

    def __init__(self, target: Address, name: str) -> None:
        self._target = target
        self._base = f"apachews.{_token(name)}"
        self.address = target.shown
        self.wanted: set[str | None] = set()
        self.subscribed: set[str | None] = set()
        self.heard_at = time.monotonic()
        self.lag_s = 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: Client | None = None
        self._subscriptions: dict[str | None, Subscription] = {}
        self._messages: list[Message] = []
        self._wake = asyncio.Event()
        self._wake_fd = -1
        self._failure: str | None = None
        self._ping: asyncio.Future[Any] | None = None
        self._proof = ""
        self._is_proved = False

    def connect(self) -> None:
        self.close()
        self._loop = asyncio.new_event_loop()
        self._wake = asyncio.Event()
        self._failure = None
        self._proof = f"apachews-producer.{os.urandom(16).hex()}"
        self._run(self._connect())
        self.heard_at = time.monotonic()

    def close(self) -> None:
        if self._loop is None:
            return
        self._loop.run_until_complete(self._shut())
        self._loop.close()
        self._loop = self._client = self._ping = None
        self._wake_fd = -1
        self._subscriptions = {}
        self._messages = []
        self.wanted = set()
        self.subscribed = set()

    def publish(self, messages: Sequence[Message]) -> list[tuple[Message, Rejection]]:
        self._run(self._publish(messages))
        return []

    def publish_once(self, message: Message) -> tuple[int, Position | None]:
        """Publish one message; NATS does not say who receives it: return 1."""
        self._run(self._publish([message]))
        return 1, None

    def read(self, questions: Sequence[Question]) -> list[Reading | Rejection]:
        raise EngineError("NATS keeps no histories")

    def try_history(self, group: str) -> Rejection | None:
        return Rejection("NATS keeps no histories")

    def subscribe(self, groups: Iterable[str | None]) -> None:
        new = [group for group in groups if group not in self.wanted]
        if new:
            self.wanted.update(new)
            self._run(self._subscribe(new))
            self.subscribed.update(new)

    def unsubscribe(self, groups: Iterable[str | None]) -> None:
        old = [group for group in groups if group in self.wanted]
        self.wanted.difference_update(old)
        self.subscribed.difference_update(old)
        for group in old:
            self._run(self._subscriptions.pop(group).unsubscribe())

    def receive(self, timeout_s: float, wake_fd: int) -> list[Message]:
        assert self._loop, "connected"
        if wake_fd != self._wake_fd:
            self._loop.add_reader(wake_fd, self._wake.set)
            self._wake_fd = wake_fd
        if not self._messages:
            self._run(self._wait(timeout_s))
        self._wake.clear()
        messages, self._messages = self._messages, []
        return messages

    def ping(self) -> None:
        assert self._client, "connected"
        if self._ping is not None:
            if not self._ping.done():
                self._run(asyncio.wait([self._ping], timeout=LAST_WAIT_S))
            if not self._ping.done() or self._ping.exception():
                raise EngineError("no answer to a ping")
        assert self._loop, "connected"
        self._ping = self._loop.create_task(self._flush())

    def verify(self, groups: Sequence[str | None]) -> None:
        self._run(self._prove())

    def information(self) -> dict[str, dict[str, Any]]:
        """Return the version and the longest message of the server, by its address."""
        client = self._running()
        return {
            self.address: {
                "nats_version": str(client.connected_server_version),
                "max_payload": client.max_payload,
            }
        }

    async def _connect(self) -> None:
        async def lose(*reason: Exception) -> None:
            self._failure = self._failure or (str(reason[0]) if reason else "") or "connection lost"
            self._wake.set()

        connecting = nats.connect(
            self._target.url.split(","),
            error_cb=lose,
            disconnected_cb=lose,
            closed_cb=lose,
            allow_reconnect=False,
            # nats-py tries each server again before it gives up, also the first time.
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=int(TIMEOUT_S),
            ping_interval=3600,  # the thread of the relay sends pings
        )
        self._client = await asyncio.wait_for(connecting, 2 * TIMEOUT_S)
        self._failure = None  # of a server that was tried before
        # nats-py has no public name for it.
        discard_unsent(self._client._transport._io_writer.get_extra_info("socket"))  # type: ignore[union-attr]
        if self._client.max_payload < MAX_MESSAGE_BYTES + 64:
            raise EngineError(
                f"max_payload of the server is {self._client.max_payload}; a relay needs 1048576"
            )
        await self._client.subscribe(self._proof, cb=self._receive_proof)

    async def _shut(self) -> None:
        if self._client is not None:
            # Of a lost connection, or of a server that hangs.
            with contextlib.suppress(nats.errors.Error, OSError, asyncio.TimeoutError):
                await asyncio.wait_for(self._client.close(), 1.0)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _publish(self, messages: Sequence[Message]) -> None:
        client = self._running()
        for group, data, _ in messages:
            await client.publish(self._subject(group), data)
        await self._confirm()

    async def _subscribe(self, groups: Sequence[str | None]) -> None:
        client = self._running()
        for group in groups:

            async def receive(message: Any, group: str | None = group) -> None:
                self.heard_at = time.monotonic()
                self._messages.append(Message(group, message.data))
                self._wake.set()

            self._subscriptions[group] = await client.subscribe(self._subject(group), cb=receive)
        await self._confirm()

    async def _confirm(self) -> None:
        """Wait until the server has handled what was sent."""
        # A task of nats-py writes commands, and ``flush`` writes its ping at once: before them.
        await asyncio.sleep(0)
        deadline = time.monotonic() + TIMEOUT_S
        while self._running().pending_data_size:
            if time.monotonic() > deadline:
                raise EngineError("the server reads nothing")
            await asyncio.sleep(0.001)
        await self._running().flush(int(TIMEOUT_S))

    async def _flush(self) -> None:
        sent_at = time.monotonic()
        await self._running().flush(int(TIMEOUT_S))
        self.heard_at = time.monotonic()
        self.lag_s = self.heard_at - sent_at

    async def _prove(self) -> None:
        self._is_proved = False
        deadline = time.monotonic() + TIMEOUT_S
        await self._running().publish(self._proof, b"")
        while not self._is_proved:
            self._running()
            if time.monotonic() > deadline:
                raise EngineError("a message to this producer did not come back")
            await asyncio.sleep(0.001)

    async def _receive_proof(self, _: Any) -> None:
        self._is_proved = True

    async def _wait(self, timeout_s: float) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            # At least one turn of the loop, in which messages and answers arrive.
            await asyncio.wait_for(self._wake.wait(), max(0.001, timeout_s))

    def _running(self) -> Client:
        if self._failure is not None or self._client is None:
            raise EngineError(self._failure or "not connected")
        return self._client

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine; raise an ``EngineError`` if it or the connection fails."""
        assert self._loop, "connected"
        try:
            result = self._loop.run_until_complete(work)
        except (nats.errors.Error, OSError, asyncio.TimeoutError, ValueError) as error:
            raise EngineError(self._failure or str(error) or type(error).__name__) from error
        if self._failure is not None:
            raise EngineError(self._failure)
        return result

    def _subject(self, group: str | None) -> str:
        return f"{self._base}.all" if group is None else f"{self._base}.group.g{_token(group)}"


def _token(text: str) -> str:
    """Return a part of a subject: without blanks, dots, asterisks and controls, and not long."""
    data = text.encode(errors="surrogatepass")
    token = urllib.parse.quote(data, safe="").replace(".", "%2E")
    # No other token has an equals sign.
    return token if len(token) <= MAX_TOKEN_CHARS else f"sha256={hashlib.sha256(data).hexdigest()}"
