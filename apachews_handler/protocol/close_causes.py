"""How a connection can end: who, with which close code, at which level of the log.

Contract: one table and nothing else.  ``session`` picks a row, ``bridge`` logs it.
``docs/reference/close-codes.md`` has the same table for people; a test holds the two against
each other.

Sources: RFC 6455 7.4.1 and the IANA registry of close codes (1012, 1013).
"""

from __future__ import annotations

import enum

from apachews import wire


@enum.unique
class CloseCause(enum.Enum):
    """One way to end.

    Attributes:
        by: who began it: ``client``, ``producer`` or ``bridge``.
        code: what the client is closed with; 0 for whatever the one who closed
            gave, 1006 where nothing can be sent.
        level: of its line in the error log.
        reason: what goes with the code; "" where whoever closed gives one.
    """

    CLIENT_CLOSED = ("client", 0, "info", "")
    CLIENT_LEFT = ("client", wire.ABNORMAL, "info", "the connection broke off")
    PRODUCER_CLOSED = ("producer", 0, "info", "")
    PRODUCER_LEFT = ("producer", wire.SERVICE_RESTART, "info", "the producer is gone")
    PRODUCER_ENDED = ("producer", wire.NORMAL, "info", "")
    PRODUCER_CUT_OFF = ("producer", wire.ABNORMAL, "warn", "the producer died inside a frame")
    PRODUCER_ERROR = ("bridge", wire.INTERNAL_ERROR, "warn", "")
    GOING_AWAY = ("bridge", wire.GOING_AWAY, "info", "the server goes away")
    DRAINED = ("bridge", wire.SERVICE_RESTART, "info", "the server was restarted")
    IDLE = ("bridge", wire.GOING_AWAY, "info", "idle")
    PROTOCOL_ERROR = ("bridge", wire.PROTOCOL_ERROR, "warn", "")
    INVALID_DATA = ("bridge", wire.INVALID_DATA, "warn", "")
    TOO_MANY_MESSAGES = ("bridge", wire.POLICY_VIOLATION, "warn", "")
    TOO_BIG = ("bridge", wire.TOO_BIG, "warn", "")
    NO_PONG = ("bridge", wire.INTERNAL_ERROR, "info", "no answer to a ping")
    TOO_SLOW = ("bridge", wire.TRY_AGAIN_LATER, "warn", "too slow")
    FAILED = ("bridge", wire.ABNORMAL, "error", "an error in the bridge")

    def __init__(self, by: str, code: int, level: str, reason: str) -> None:
        self.by = by
        self.code = code
        self.level = level
        self.reason = reason

    @classmethod
    def of_violation(cls, code: int) -> CloseCause:
        """Return the row for a client's violation, by its close code."""
        return _VIOLATIONS[code]


_VIOLATIONS = {
    end.code: end
    for end in (
        CloseCause.PROTOCOL_ERROR,
        CloseCause.INVALID_DATA,
        CloseCause.TOO_MANY_MESSAGES,
        CloseCause.TOO_BIG,
    )
}
