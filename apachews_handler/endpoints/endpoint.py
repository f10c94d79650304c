"""One attempt to connect to an endpoint that was opened, for the handshake and for the bridge.

Contract: ``connect_once(name)`` never blocks and keeps the GIL.  The outcomes of a failure are
the library's (``apachews._listening.endpoint``); the call itself is ``syscalls.connect``, which
is faster under many threads than ``socket.connect``.
"""

from __future__ import annotations

import os
import socket
import stat

from apachews._listening.endpoint import Outcome, Unreachable
from apachews._listening.loopback import Address, NotAnAddress
from apachews_handler.native import syscalls


def connect_once(name: str) -> socket.socket | Address:
    """Connect to a producer.

    Args:
        name: of its socket file, from ``endpoint_access.opened``.

    Returns:
        A connected, non-blocking socket, which the caller closes; or, for the file of a loopback
        socket, the address to connect to.

    Raises:
        Unreachable: ``Outcome.BUSY`` if the backlog is full, among others.
    """
    try:
        return syscalls.connect(name)
    except OSError as error:
        failure = Unreachable(error)
    # connect(2) reports a regular file as a socket on which no producer listens, or as one that
    # Apache's user may not write to: a loopback file needs the right to read only.
    if failure.outcome not in (Outcome.REFUSED, Outcome.FORBIDDEN):
        raise failure
    try:
        mode = os.stat(name).st_mode
        if stat.S_ISREG(mode):
            return Address.read(name)
        if not stat.S_ISSOCK(mode):
            raise NotAnAddress("it is neither a socket nor a regular file")
    except (OSError, NotAnAddress) as error:
        raise Unreachable(error) from error
    raise failure
