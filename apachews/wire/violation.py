"""A broken rule of the protocol, as a value.

Contract: data.  The readers of both ends return a ``Violation`` as the last event of a
stream.  An exception (``WireError``) stays inside a reader: a peer's mistake is an expected
event and not an error of the program that reads it.

Sources: RFC 6455 7.4.1 (close codes).
"""

from __future__ import annotations

from dataclasses import dataclass

from apachews.exceptions import WireError


@dataclass(frozen=True, slots=True)
class Violation:
    """The peer broke a rule of the protocol or exceeded a limit; nothing follows.

    Attributes:
        code: the close code that answers the violation (RFC 6455 7.4.1).
        reason: the broken rule; fits into a CLOSE frame.
    """

    code: int
    reason: str

    @classmethod
    def from_error(cls, error: WireError) -> Violation:
        """Return the violation that an error inside a reader stands for."""
        return cls(error.code, error.reason)
