"""Settings that all peers share, and the limit of descriptors of a process."""

from __future__ import annotations

import resource
from typing import Final

# The longest message, everywhere: apachews' default and that of websockets.
MAX_MESSAGE_BYTES: Final = 1024 * 1024
# Connections that may wait for accept(): the kernel's own default for the most
# (net.core.somaxconn), so that no server loses handshakes to its loop's default of 100.
BACKLOG: Final = 4096


class TooFewDescriptors(Exception):
    """A process may not open as many descriptors as a case needs."""

    def __init__(self, needed: int, allowed: int) -> None:
        self.needed = needed
        self.allowed = allowed
        super().__init__(
            f"a process would need {needed:,} descriptors and may have {allowed:,}:"
            " raise the hard limit (ulimit -Hn, LimitNOFILE= of the unit, or"
            " /etc/security/limits.conf), or leave this case out with --case"
        )


def raise_descriptor_limit() -> int:
    """Raise the soft limit to the hard one; return it.  Children inherit it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def require_descriptors(needed: int) -> None:
    """Check what a process may open.

    Raises:
        TooFewDescriptors
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if needed > soft:
        raise TooFewDescriptors(needed, soft)
