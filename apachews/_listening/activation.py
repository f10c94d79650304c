"""Sockets that systemd made and passed: LISTEN_FDS, see sd_listen_fds(3).

Contract: ``inherited_socket(path)`` returns a duplicate of the socket that listens on the path,
or None; the caller closes it.  The inherited descriptors stay open, so that the program can
close its server and open it again, and the runner can start a successor with them.

Such a socket outlives the producer: connections wait in it until the next producer runs.  So only
systemd may remove its file.
"""

from __future__ import annotations

import fcntl
import os
import socket
import stat
from typing import Final

# SD_LISTEN_FDS_START: systemd counts from here.
FIRST_FD: Final = 3


def inherited_descriptors() -> range:
    """Return the descriptors that were passed to this very process."""
    count = os.environ.get("LISTEN_FDS", "")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal():
        return range(0)
    return range(FIRST_FD, FIRST_FD + int(count))


def inherited_socket(path: str) -> socket.socket | None:
    """Return a duplicate, non-blocking, of the inherited socket that listens on the path."""
    for fd in inherited_descriptors():
        try:
            # The sockets were passed to this process and not to its children.
            os.set_inheritable(fd, False)
            if not stat.S_ISSOCK(os.fstat(fd).st_mode):
                continue
            sock = socket.socket(fileno=fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 0))
        except OSError:
            continue  # closed by the program
        if _listens_on(sock, path):
            sock.setblocking(False)
            return sock
        sock.close()
    return None


def _listens_on(sock: socket.socket, path: str) -> bool:
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM:
        return False
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return False
    bound = sock.getsockname()
    if not bound or not isinstance(bound, str):
        return False  # without a name, or with an abstract one
    try:
        # The unit and the program may name the file by different paths.
        return bound == path or os.path.samefile(bound, path)
    except OSError:
        return False
