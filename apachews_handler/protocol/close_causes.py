"""Why a connection closes: who closes it, with which close code, at which log level.

Contract: one table.  ``session`` picks a row and ``bridge`` logs it.
``docs/reference/close-codes.md`` documents the table; a test compares the two.

Sources: RFC 6455 7.4.1 and the IANA registry of close codes (1012, 1013).
"""

from __future__ import annotations

import enum

from apachews import wire


@enum.unique
class CloseCause(enum.Enum):
    """One reason to close.

    Attributes:
        by: which side closes: ``client``, ``producer`` or ``bridge``.
        code: close code for the client; 0: the code that the closing side sent; 1006: no CLOSE
            can be sent.
        level: of the line in the error log.
        reason: text of the CLOSE; "": the text that the closing side sent, or none.
    """

    CLIENT_CLOSED = ("client", 0, "info", "")
    CLIENT_LEFT = ("client", wire.ABNORMAL, "info", "the connection was lost")
    PRODUCER_CLOSED = ("producer", 0, "info", "")
    PRODUCER_LEFT = ("producer", wire.SERVICE_RESTART, "info", "the producer is gone")
    PRODUCER_ENDED = ("producer", wire.NORMAL, "info", "")
    PRODUCER_CUT_OFF = ("producer", wire.ABNORMAL, "warn", "the producer died inside a frame")
    PRODUCER_ERROR = ("bridge", wire.INTERNAL_ERROR, "warn", "")
    GOING_AWAY = ("bridge", wire.GOING_AWAY, "info", "the server is shutting down")
    DRAINED = ("bridge", wire.SERVICE_RESTART, "info", "the server was restarted")
    IDLE = ("bridge", wire.GOING_AWAY, "info", "idle")
    MAX_AGE = ("bridge", wire.POLICY_VIOLATION, "info", "connect again")
    LOGIN_ENDED = ("bridge", wire.POLICY_VIOLATION, "info", "the login has ended")
    PROTOCOL_ERROR = ("bridge", wire.PROTOCOL_ERROR, "warn", "")
    INVALID_DATA = ("bridge", wire.INVALID_DATA, "warn", "")
    TOO_MANY_MESSAGES = ("bridge", wire.POLICY_VIOLATION, "warn", "")
    TOO_BIG = ("bridge", wire.TOO_BIG, "warn", "")
    NO_PONG = ("bridge", wire.INTERNAL_ERROR, "info", "no answer to a ping")
    TOO_SLOW = ("bridge", wire.TRY_AGAIN_LATER, "warn", "too slow")
    FAILED = ("bridge", wire.ABNORMAL, "error", "internal error in the bridge")

    def __init__(self, by: str, code: int, level: str, reason: str) -> None:
        self.by = by
        self.code = code
        self.level = level
        self.reason = reason

    @classmethod
    def of_violation(cls, code: int) -> CloseCause:
        """Return the row for a client's violation.

        Args:
            code: 1002, 1007, 1008 or 1009.
        """
        return _VIOLATIONS[code]


_VIOLATIONS = {
    cause.code: cause
    for cause in (
        CloseCause.PROTOCOL_ERROR,
        CloseCause.INVALID_DATA,
        CloseCause.TOO_MANY_MESSAGES,
        CloseCause.TOO_BIG,
    )
}
