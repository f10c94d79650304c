"""The timeouts of one connection: when the next one expires, and which one has.

Contract: the driver writes the times of events, on one clock, into the attributes;
``next_at()`` says when to call ``due(now)``, and that says what to do.  Sans-I/O; one object
per connection, on the bridge's thread.

How this works: a message costs one assignment, because no deadline is cancelled or moved
while messages flow.  The driver keeps one heap entry per connection.  When that expires, ``due``
looks at what happened meanwhile, and mostly the answer is to ask again later.
"""

from __future__ import annotations

import enum
import math
from typing import Any, Final

from apachews_handler.settings import Settings

# A producer that keeps a resumed client for longer works.  A producer that ends sooner may have
# crashed because of this client.
SETTLED_S: Final = 0.5
# Delay of the next attempt after such an end: as long as the longest delay between two attempts
# to reach a producer that does not listen (reconnect.MAX_DELAY_S).
CRASH_DELAY_S: Final = 0.5
# A connection may close before APACHEWS_MAX_AGE by up to this part of it, so that connections
# which opened together do not all connect again together.
AGE_SPREAD: Final = 0.1
# An end that sends on instead of closing is cut after so many times APACHEWS_CLOSE_TIMEOUT.
MAX_EXTENSION: Final = 10


class Due(enum.Enum):
    """What ``Timeouts.due`` asks for."""

    PING = "nothing came from the client for a while: send a PING"
    NO_PONG = "nothing came after the PING either: close, unless it still reads earlier messages"
    TOO_SLOW = "the client took nothing from its queue: close, unless it takes earlier bytes"
    IDLE = "no message passed: close"
    HOLD_EXPIRED = "no other producer came in time: close"
    LOGIN_ENDED = "the login of the client ends: close"
    MAX_AGE = "the connection is as old as it may become: close"
    DRAIN = "the connection is drained, and its time has come: close"
    OVERDUE = "the close has taken too long: drop the client, unless it still takes bytes"


class Timeouts:
    """The times of one connection.

    Args:
        settings: for the intervals.
        now: the clock's reading, seconds.

    Attributes:
        has_client: False once the client is gone, and only a producer is to be told:
            ``held_until`` and ``close_by`` are the only deadlines then.
        heard_at: when bytes last came from the client.
        is_heard: False while the client is not read because its producer is slow; its
            silence means nothing then.
        passed_at: when bytes of a message last passed in either direction; a client for which
            bytes wait is not idle.
        way_s: how long a PONG may be on its way, in addition to ``ping_timeout_s``.
        waiting_since: when the client last took some of its queue; 0.0 while that is empty.
        held_until: when another producer must have come; 0.0 while there is one.
        hold_ends_at: the last value of ``held_until``.
        resumed_at: when the last producer came; 0.0 for the first one.
        said_before: what earlier producers had said then, see ``start_hold``.
        drain_at: when it is closed because all connections are drained; else 0.0.
        ages_out_at: when it is closed because of its age; else 0.0.
        login_ends_at: when it is closed because the login of the client ends; else 0.0.
        close_by: when the client must be gone, once it is being closed; else 0.0.
        cut_at: as of when progress extends ``close_by`` no more, unless all that is to be sent
            is queued; set together with it.
    """

    __slots__ = (
        "_asked_at",
        "_settings",
        "ages_out_at",
        "close_by",
        "cut_at",
        "drain_at",
        "has_client",
        "heard_at",
        "held_until",
        "hold_ends_at",
        "is_heard",
        "login_ends_at",
        "passed_at",
        "resumed_at",
        "said_before",
        "waiting_since",
        "way_s",
    )

    def __init__(self, settings: Settings, now: float) -> None:
        self._settings = settings
        self._asked_at = 0.0  # when the PING without an answer was due; else 0.0
        self.has_client = True
        self.heard_at = now
        self.is_heard = True
        self.passed_at = now
        self.waiting_since = 0.0
        self.way_s = 0.0
        self.held_until = 0.0
        self.hold_ends_at = 0.0
        self.resumed_at = 0.0
        self.said_before = 0
        self.drain_at = 0.0
        self.ages_out_at = self.login_ends_at = 0.0
        self.close_by = self.cut_at = 0.0

    def limit_age(self, now: float, spread: float, login_ends_at: float) -> None:
        """Set when the connection is closed, whatever passes.

        Args:
            now: the clock's reading at the handshake.
            spread: 0 to 1, different for each connection.
            login_ends_at: of the client, on the same clock; 0.0: never.
        """
        if self._settings.max_age_s:
            self.ages_out_at = now + self._settings.max_age_s * (1 - AGE_SPREAD * spread)
        self.login_ends_at = login_ends_at

    def export_state(self) -> dict[str, Any] | None:
        """Return the state that another process continues with, as values of JSON.

        The clock is the machine's.  None while a deadline runs other than that of a PING, a
        PONG or an idle client.  The caller exports ``hold_ends_at``, ``resumed_at`` and
        ``said_before``.
        """
        if (
            not self.has_client
            or not self.is_heard
            or self.waiting_since
            or self.held_until
            or self.drain_at
            or self.close_by
        ):
            return None
        return {
            "ages_out_at": self.ages_out_at,
            "heard_at": self.heard_at,
            "login_ends_at": self.login_ends_at,
            "passed_at": self.passed_at,
            "asked_at": self._asked_at,
            "way_s": self.way_s,
        }

    def import_state(self, state: dict[str, Any]) -> None:
        """Continue with the state that another process exported."""
        self.ages_out_at = float(state["ages_out_at"])
        self.heard_at = float(state["heard_at"])
        self.login_ends_at = float(state["login_ends_at"])
        self.passed_at = float(state["passed_at"])
        self._asked_at = float(state["asked_at"])
        self.way_s = float(state["way_s"])

    def start_close(self, now: float) -> None:
        """Start the timeout of a connection that is being closed."""
        timeout_s = self._settings.close_timeout_s
        self.close_by = now + timeout_s
        self.cut_at = now + MAX_EXTENSION * timeout_s

    def next_at(self) -> float:
        """Return when ``due`` may return something; inf for never."""
        if self.close_by:
            return self.close_by
        if not self.has_client:
            return self.held_until or math.inf
        settings = self._settings
        ends = (self.held_until, self.drain_at, self.ages_out_at, self.login_ends_at)
        times = [at for at in ends if at]
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
        """Return what is due; None if nothing is."""
        settings = self._settings
        if self.close_by:
            return Due.OVERDUE if now >= self.close_by else None
        if self.held_until and now >= self.held_until:
            return Due.HOLD_EXPIRED
        if not self.has_client:
            return None
        if self.drain_at and now >= self.drain_at:
            return Due.DRAIN
        if self.login_ends_at and now >= self.login_ends_at:
            return Due.LOGIN_ENDED
        if self.ages_out_at and now >= self.ages_out_at:
            return Due.MAX_AGE
        if self._has_passed(self.waiting_since, settings.send_timeout_s, now):
            return Due.TOO_SLOW
        if not self.waiting_since and self._has_passed(
            self.passed_at, settings.idle_timeout_s, now
        ):
            return Due.IDLE
        if not self.is_heard or self.waiting_since:
            # Its PONG could not be read, or the PING would wait in the queue: ask later.
            self.postpone_ping(now)
            return None
        if self.heard_at > self._asked_at:
            self._asked_at = 0.0
        if self._asked_at and settings.ping_timeout_s:
            return Due.NO_PONG if self._has_passed(self._asked_at, self._pong_s(), now) else None
        if self._has_passed(self._asked_at or self.heard_at, settings.ping_interval_s, now):
            self._asked_at = now
            return Due.PING
        return None

    def ping_early(self, now: float) -> bool:
        """Tell whether to send the PING now that is due within half an interval.

        If True, it counts as sent.  Clients that get their PINGs together answer together, so
        their process wakes up less often.
        """
        interval_s = self._settings.ping_interval_s
        is_quiet = bool(interval_s) and now - self.heard_at >= interval_s / 2
        if not is_quiet or self._asked_at or not self.is_heard or not self.has_client:
            return False
        if self.waiting_since or self.held_until or self.drain_at or self.close_by:
            return False
        self._asked_at = now
        return True

    def postpone_ping(self, now: float) -> None:
        """Note that the PING could not be sent; the next one is due an interval later."""
        self.heard_at, self._asked_at = now, 0.0

    def await_pong(self, now: float) -> None:
        """Give the PONG the whole timeout again, from now on."""
        self._asked_at = now

    def start_hold(self, now: float, said: int, *, is_moving: bool) -> float:
        """Hold the client for another producer; return when to look for it.

        A producer that crashes right after it was given the client may have crashed because of
        this client.  The next attempt is delayed then, so that producers do not crash in a
        row.  Nor is the hold extended, unless a producer has sent something since: otherwise
        such a client would be held forever.

        Args:
            now: the clock's reading, seconds.
            said: a number that grows with what producers send (``Session.producer_said``).
            is_moving: the producer asked for a successor, and so did not crash.
        """
        is_crash = not is_moving and now - self.resumed_at < SETTLED_S
        if not is_crash or said != self.said_before:
            self.hold_ends_at = now + self._settings.hold_s
        self.held_until = self.hold_ends_at
        return now + CRASH_DELAY_S if is_crash else now

    def end_hold(self, now: float, said: int) -> None:
        """Note that another producer has come.

        Args:
            now, said: as in ``start_hold``.
        """
        self.held_until = 0.0
        self.resumed_at = now
        self.said_before = said

    def _pong_s(self) -> float:
        timeout_s = self._settings.ping_timeout_s
        return timeout_s + self.way_s if timeout_s else 0.0

    @staticmethod
    def _has_passed(since: float, limit_s: float, now: float) -> bool:
        # The same sum as in next_at(): ``now - since >= limit_s`` may be rounded the other way.
        return bool(since and limit_s) and now >= since + limit_s
