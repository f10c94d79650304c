"""When a connection must be looked at again, and what is then the matter.

Contract: the driver writes down what happens, as times of one clock, into the
attributes; ``next_at()`` says when to ask, ``due(now)`` what to do.  Sans-I/O; one
watch a connection, on the bridge's thread.

How this works: nothing is cancelled or moved while messages flow, which costs an
assignment each.  The driver keeps one entry a connection in its heap; when its
time comes, ``due`` looks at what happened meanwhile, and mostly the answer is to
ask again later.
"""

from __future__ import annotations

import enum
import math
from typing import Any

from apachews_handler.settings import Settings


class Due(enum.Enum):
    """What ``Timeouts.due`` asks for."""

    PING = "nothing came from the client for a while: ask it"
    NO_PONG = "nothing was read after the PING either: does it take what was sent before?"
    TOO_SLOW = "nothing of what waits for it could be sent: does it take none?"
    IDLE = "no message passed"
    NOBODY_CAME = "it was held for another producer, and none came in time"
    GOODBYE = "its turn has come: all clients are sent away"
    OVERDUE = "it was being closed and has not gone: does it still take what was sent?"


class Timeouts:
    """The times of one connection.

    Args:
        settings: for the intervals.
        now: the clock's reading.

    Attributes:
        has_client: False once the client is gone, and only the producer is still to
            be told: then ``held_until`` and ``leaves_at`` count alone.
        heard_at: when something last came from the client.  While it is not read,
            because its producer is slow, ``is_heard`` is False and nothing is
            made of its silence.
        passed_at: when bytes of a message last passed, either way; while some wait
            for the client it is not idle.
        way_s: how long a PONG may be on its way, in addition to ``ping_timeout_s``.
        waiting_since: when the client last took some of what waits for it; 0.0
            while nothing does.
        held_until: when another producer must have come; 0.0 while there is one.
        goodbye_at: when it is sent away, where all are; else 0.0.
        leaves_at: when it must be gone, once it is being closed; else 0.0.
    """

    __slots__ = (
        "_asked_at",
        "_settings",
        "goodbye_at",
        "has_client",
        "heard_at",
        "held_until",
        "is_heard",
        "leaves_at",
        "passed_at",
        "waiting_since",
        "way_s",
    )

    def __init__(self, settings: Settings, now: float) -> None:
        self._settings = settings
        self._asked_at = 0.0  # when the PING was due that is not answered; else 0.0
        self.has_client = True
        self.heard_at = now
        self.is_heard = True
        self.passed_at = now
        self.waiting_since = 0.0
        self.way_s = 0.0
        self.held_until = 0.0
        self.goodbye_at = 0.0
        self.leaves_at = 0.0

    def export_state(self) -> dict[str, Any] | None:
        """Return what a watch in another process needs to continue, as values of JSON.

        The clock is the machine's.  None while a deadline other than a PING's, a PONG's or
        an idle client's runs.
        """
        if (
            not self.has_client
            or not self.is_heard
            or self.waiting_since
            or self.held_until
            or self.goodbye_at
            or self.leaves_at
        ):
            return None
        return {
            "heard_at": self.heard_at,
            "passed_at": self.passed_at,
            "asked_at": self._asked_at,
            "way_s": self.way_s,
        }

    def import_state(self, state: dict[str, Any]) -> None:
        """Continue as the watch whose state this is."""
        self.heard_at = float(state["heard_at"])
        self.passed_at = float(state["passed_at"])
        self._asked_at = float(state["asked_at"])
        self.way_s = float(state["way_s"])

    def next_at(self) -> float:
        """Return when ``due`` may have something to say; inf for never."""
        if self.leaves_at:
            return self.leaves_at
        if not self.has_client:
            return self.held_until or math.inf
        settings = self._settings
        times = [at for at in (self.held_until, self.goodbye_at) if at]
        if self.waiting_since:
            if settings.send_timeout_s:
                times.append(self.waiting_since + settings.send_timeout_s)
        elif settings.idle_timeout_s:
            times.append(self.passed_at + settings.idle_timeout_s)
        if settings.ping_interval_s:
            if self._asked_at:
                times.append(self._asked_at + (self._pong_s() or settings.ping_interval_s))
            else:
                times.append(self.heard_at + settings.ping_interval_s)
        return min(times, default=math.inf)

    def due(self, now: float) -> Due | None:
        """Return what is due, None for nothing yet."""
        settings = self._settings
        if self.leaves_at:
            return Due.OVERDUE if now >= self.leaves_at else None
        if self.held_until and now >= self.held_until:
            return Due.NOBODY_CAME
        if not self.has_client:
            return None
        if self.goodbye_at and now >= self.goodbye_at:
            return Due.GOODBYE
        if self._lasts(self.waiting_since, settings.send_timeout_s, now):
            return Due.TOO_SLOW
        if not self.waiting_since and self._lasts(self.passed_at, settings.idle_timeout_s, now):
            return Due.IDLE
        if not self.is_heard or self.waiting_since:
            # It cannot be heard, or a PING would wait with the rest: ask later.
            self.postpone_ping(now)
            return None
        if self.heard_at > self._asked_at:
            self._asked_at = 0.0
        if self._asked_at and settings.ping_timeout_s:
            return Due.NO_PONG if self._lasts(self._asked_at, self._pong_s(), now) else None
        if self._lasts(self._asked_at or self.heard_at, settings.ping_interval_s, now):
            self._asked_at = now
            return Due.PING
        return None

    def ask_early(self, now: float) -> bool:
        """Tell whether to send a PING now that is due within half an interval; it counts as sent.

        Clients that are asked together answer together: their process wakes up less often.
        """
        interval_s = self._settings.ping_interval_s
        is_quiet = bool(interval_s) and now - self.heard_at >= interval_s / 2
        if not is_quiet or self._asked_at or not self.is_heard or not self.has_client:
            return False
        if self.waiting_since or self.held_until or self.goodbye_at or self.leaves_at:
            return False
        self._asked_at = now
        return True

    def postpone_ping(self, now: float) -> None:
        """Say that the PING could not be sent: one interval more."""
        self.heard_at, self._asked_at = now, 0.0

    def await_pong(self, now: float) -> None:
        """Say that the PONG has as long again from now on."""
        self._asked_at = now

    def _pong_s(self) -> float:
        timeout_s = self._settings.ping_timeout_s
        return timeout_s + self.way_s if timeout_s else 0.0

    @staticmethod
    def _lasts(since: float, limit_s: float, now: float) -> bool:
        # The very sum of next_at(): a difference may be rounded the other way.
        return bool(since and limit_s) and now >= since + limit_s
