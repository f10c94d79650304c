"""The thread that talks to a broker: publishes, receives, and reconnects.

Contract: ``publish``, ``subscribe``, ``unsubscribe`` and ``close`` are for any thread and never
wait for the broker.  The callbacks run on this thread.

Bounds: at most ``MAX_QUEUE_BYTES`` and ``MAX_QUEUE_MESSAGES`` wait for the broker; the oldest ones
are dropped and counted.  A message whose PUBLISH broke off counts as dropped too, and is not
sent again, because it may have arrived: at most once.  A message for a history is sent again: the
broker stores it once.

A broker may reject single commands, as Redis does without memory or rights.  Then the messages
and questions of that history are held, and tried again after ``RETRY_S``; later messages for the
same history queue after them, and everything else goes on.

How this works: the thread waits in the engine's ``receive``, and a byte in a socket pair ends
the wait when there is something to publish or to subscribe to.  One thread for both directions
keeps the order of each sender, and no two threads share a connection.
"""

from __future__ import annotations

import logging
import random
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

from apachews._processes.board import Counters
from apachews.history import Reading

from .engine import Engine, EngineError, Message, Question, Rejection, Stored

# A message of the greatest length fits four times.  Not more than the queue of a client
# (``max_queue_bytes``): after an outage all of it arrives at once, and must not close the clients.
MAX_QUEUE_BYTES: Final = 4 * 1024 * 1024
MAX_QUEUE_MESSAGES: Final = 10_000
# The number and the bytes of messages that are published at once.
BATCH_MESSAGES: Final = 200
BATCH_BYTES: Final = 1024 * 1024
# The number of histories that are read at once.
BATCH_QUESTIONS: Final = 4
# A broker that does not answer a ping until the next one is due is lost.
PING_INTERVAL_S: Final = 2.0
# What the broker has rejected is tried again after this.
RETRY_S: Final = 1.0
# The time limit for the broker to confirm all subscriptions after a reconnection.
SUBSCRIBE_TIMEOUT_S: Final = 10.0
FIRST_DELAY_S: Final = 0.1
MAX_DELAY_S: Final = 5.0
# A connection that has lasted longer resets the delay.
SETTLED_S: Final = 5.0
# close() waits so long for the last messages to be published.
CLOSE_TIMEOUT_S: Final = 1.0

_logger: Final = logging.getLogger("apachews")


class RelayThread:
    """Runs an engine.

    Args:
        engine: the connection to the broker; closed here.
        counters: to update.
        on_messages: called with messages as they arrive.
        on_lost: called with the reason when the connection is lost, and at the start if it
            cannot be made.
        on_back: called when all subscriptions are proven after a loss, with the seconds in
            which messages may have been missed.
        on_counted: called when ``counters`` may have changed.
        on_answers: called with answers to ``ask``; returns whether there is room for more.
    """

    def __init__(
        self,
        engine: Engine,
        counters: Counters,
        on_messages: Callable[[list[Message]], None],
        on_lost: Callable[[str], None],
        on_back: Callable[[float], None],
        on_counted: Callable[[], None],
        on_answers: Callable[[list[tuple[Question, Reading]]], bool],
    ) -> None:
        self._engine = engine
        self._counters = counters
        self._on_messages = on_messages
        self._on_lost = on_lost
        self._on_back = on_back
        self._on_counted = on_counted
        self._on_answers = on_answers
        self._lock = threading.Lock()
        self._outbox: deque[Message] = deque()
        self._outbox_bytes = 0
        self._last_number = 0  # of a message for a history
        self._questions: dict[str, Question] = {}
        # Rejected, in order, with what came later for the same histories; they count for the
        # bounds of the outbox.
        self._held: deque[Message] = deque()
        self._held_questions: dict[str, Question] = {}
        # The groups of both; and those whose rejection is in the log.
        self._held_groups: set[str | None] = set()
        self._logged_groups: set[str | None] = set()
        self._retry_at = 0.0  # time.monotonic(); 0: nothing is held
        self._groups: set[str | None] = {None}
        self._has_new_groups = False
        self._is_woken = False
        self._is_closing = False
        self._closed = threading.Event()  # ends the wait before a reconnection
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        # When messages were received without a gap for the last time (time.monotonic()).
        self._complete_until = time.monotonic()
        self._is_lost = False
        self._thread = threading.Thread(target=self._run, name="apachews-relay", daemon=True)

    def start(self) -> None:
        """Start the thread; once, after the process has forked."""
        self._thread.start()

    def publish(self, group: str | None, data: bytes, stored: Stored | None = None) -> bool:
        """Queue a message; return whether the broker is connected."""
        with self._lock:
            if stored is not None and stored.bounds is not None:
                self._last_number += 1
                stored = stored._replace(number=self._last_number)
            self._outbox.append(Message(group, data, stored))
            self._outbox_bytes += len(data)
            while (
                self._outbox_bytes > MAX_QUEUE_BYTES
                or len(self._outbox) + len(self._held) > MAX_QUEUE_MESSAGES
            ) and len(self._outbox) + len(self._held) > 1:
                oldest = (self._held or self._outbox).popleft()
                self._outbox_bytes -= len(oldest.data)
                self._counters.dropped_out += 1
            self._wake()
            return self._counters.is_up

    def subscribe(self, group: str) -> None:
        """Receive the messages of a group."""
        with self._lock:
            self._groups.add(group)
            self._has_new_groups = True
            self._wake()

    def unsubscribe(self, group: str) -> None:
        """Receive the messages of a group no more."""
        with self._lock:
            self._groups.discard(group)
            self._questions.pop(group, None)
            self._held_questions.pop(group, None)
            self._has_new_groups = True
            self._wake()

    def ask(self, question: Question) -> None:
        """Ask for messages of a history, once its group is subscribed; replaces the last one."""
        with self._lock:
            self._held_questions.pop(question.group, None)
            self._questions[question.group] = question
            self._wake()

    def is_subscribed(self, group: str) -> bool:
        """Return whether the broker has confirmed the subscription of a group."""
        return self._counters.is_up and group in self._engine.subscribed

    def close(self) -> None:
        """Publish what is queued, as far as a second allows, and end the thread."""
        with self._lock:
            self._is_closing = True
            self._wake()
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_TIMEOUT_S)

    def _wake(self) -> None:
        if not self._is_woken:
            self._is_woken = True
            try:
                self._wake_writer.send(b"\0")
            except OSError:
                pass  # closed: the thread has ended

    def _run(self) -> None:
        delay_s = FIRST_DELAY_S
        while not self._is_closing:
            started_at = time.monotonic()
            try:
                self._connect()
                self._serve()
            except EngineError as error:
                self._lose(str(error))
            except Exception as error:
                # A fault of an engine must not end the relay of the program without a word.
                _logger.exception("the relay failed")
                self._lose(f"{type(error).__name__}: {error}")
            if time.monotonic() - started_at > SETTLED_S:
                delay_s = FIRST_DELAY_S
            if not self._is_closing:
                # Jitter: the producers of all machines must not return at the same moment.
                self._closed.wait(delay_s * random.uniform(0.5, 1.0))
                delay_s = min(2 * delay_s, MAX_DELAY_S)
        self._counters.is_up = False
        self._on_counted()
        self._engine.close()
        with self._lock:
            self._wake_reader.close()
            self._wake_writer.close()

    def _connect(self) -> None:
        """Connect, and return when all subscriptions are proven or ``close`` was called."""
        self._engine.connect()
        deadline = time.monotonic() + SUBSCRIBE_TIMEOUT_S
        groups = self._take_groups()
        self._engine.subscribe(groups)
        while not groups <= self._engine.subscribed:
            if (left_s := deadline - time.monotonic()) <= 0:
                raise EngineError("the subscriptions were not confirmed in time")
            self._deliver(self._engine.receive(left_s, self._wake_reader.fileno()))
            self._clear_wake()
            if self._is_closing:
                return
        self._engine.verify(list(groups))
        gap_s = time.monotonic() - self._complete_until
        self._counters.is_up = True
        if self._is_lost:
            self._is_lost = False
            self._counters.gaps += 1
            self._on_back(gap_s)

    def _serve(self) -> None:
        ping_at = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= ping_at:
                self._engine.ping()
                self._engine.verify([None])
                ping_at = now + PING_INTERVAL_S
            self._update_subscriptions()
            if self._retry_at and (now >= self._retry_at or self._is_closing):
                self._release_held()
            has_more = self._publish_batch()
            if self._is_closing and not has_more:
                return
            has_more |= self._read_batch()
            if not self._retry_at:
                self._logged_groups.clear()
            next_at = min(ping_at, self._retry_at or ping_at)
            wait_s = 0.0 if has_more else next_at - now
            self._deliver(self._engine.receive(wait_s, self._wake_reader.fileno()))
            self._counters.lag_s = self._engine.lag_s
            self._on_counted()
            self._clear_wake()

    def _publish_batch(self) -> bool:
        """Publish some queued messages; return whether more wait."""
        batch: list[Message] = []
        size = 0
        with self._lock:
            while self._outbox and len(batch) < BATCH_MESSAGES and size < BATCH_BYTES:
                message = self._outbox.popleft()
                if message.stored is not None and message.group in self._held_groups:
                    self._held.append(message)
                    continue
                size += len(message.data)
                batch.append(message)
            self._outbox_bytes -= size
            has_more = bool(self._outbox)
        if batch:
            try:
                rejected = self._engine.publish(batch)
            except BaseException:
                # Those of histories have numbers, and can be sent again.
                again = [one for one in batch if one.stored is not None and one.stored.number]
                with self._lock:
                    self._counters.dropped_out += len(batch) - len(again)
                    self._outbox.extendleft(reversed(again))
                    self._outbox_bytes += sum(len(one.data) for one in again)
                raise
            self._counters.published += len(batch) - len(rejected)
            for message, rejection in rejected:
                self._hold(message, rejection)
        return has_more

    def _hold(self, message: Message, rejection: Rejection) -> None:
        """Keep a message that the broker has rejected, if it may be sent again."""
        self._note_rejection(message.group, rejection)
        with self._lock:
            if message.stored is not None and message.stored.number:
                self._held.append(message)
                self._outbox_bytes += len(message.data)
            else:
                self._counters.dropped_out += 1

    def _note_rejection(self, group: str | None, rejection: Rejection) -> None:
        if group not in self._logged_groups:
            self._logged_groups.add(group)
            _logger.warning(
                "%s has rejected a command for the group %r: %s",
                self._engine.address,
                group,
                rejection.why,
            )
        self._held_groups.add(group)
        self._retry_at = self._retry_at or time.monotonic() + RETRY_S

    def _release_held(self) -> None:
        """Try again what the broker has rejected."""
        with self._lock:
            self._outbox.extendleft(reversed(self._held))
            self._held.clear()
            for group, question in self._held_questions.items():
                self._questions.setdefault(group, question)
            self._held_questions.clear()
        self._held_groups.clear()
        self._retry_at = 0.0

    def _read_batch(self) -> bool:
        """Read for some histories; return whether more wait."""
        with self._lock:
            # A message after the subscription arrives by itself, one before it is read.
            subscribed = [
                one for one in self._questions.values() if one.group in self._engine.subscribed
            ]
            if not subscribed or not self._on_answers([]):
                return False
            batch = subscribed[:BATCH_QUESTIONS]
            for question in batch:
                del self._questions[question.group]
        try:
            answers = self._engine.read(batch)
        except BaseException:
            with self._lock:
                for question in batch:
                    self._questions.setdefault(question.group, question)
            raise
        found: list[tuple[Question, Reading]] = []
        for question, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Rejection):
                self._note_rejection(question.group, answer)
                with self._lock:
                    if question.group in self._groups and question.group not in self._questions:
                        self._held_questions[question.group] = question
            else:
                found.append((question, answer))
        self._on_answers(found)
        return len(subscribed) > len(batch)

    def _take_groups(self) -> set[str | None]:
        with self._lock:
            self._has_new_groups = False
            return set(self._groups)

    def _update_subscriptions(self) -> None:
        if self._has_new_groups:
            groups = self._take_groups()
            self._engine.subscribe(groups)
            self._engine.unsubscribe(self._engine.wanted - groups)

    def _deliver(self, messages: list[Message]) -> None:
        if messages:
            self._on_messages(messages)
        if self._counters.is_up:
            self._complete_until = self._engine.heard_at

    def _clear_wake(self) -> None:
        with self._lock:
            if self._is_woken:
                self._is_woken = False
                self._wake_reader.recv(4096)

    def _lose(self, why: str) -> None:
        self._counters.is_up = False
        self._on_counted()
        self._engine.close()
        if not self._is_lost and not self._is_closing:
            self._is_lost = True
            self._on_lost(why)
