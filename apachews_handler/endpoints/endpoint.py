"""From a request to the producer's socket.

Contract: ``script_filename(environ)`` names the file that httpd found itself;
``locate(root, path_info)`` names a socket file inside a directory;
``connect(path, timeout_s, directories, place)`` yields a connected, non-blocking socket,
which the caller closes; ``ask(producer, open_, timeout_s)`` gives the producer's own answer;
``user_of(producer, path, directories)`` tells who runs it.
All but the first raise ``Refusal`` with the HTTP answer.  ``connect`` and ``ask`` may block
for the timeout; called on Apache's worker threads.  ``connect`` enters ``place`` before it
blocks, and the caller of ``ask`` does (``waiting``).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from apachews import wire
from apachews._listening import loopback
from apachews.exceptions import WireError
from apachews.wire.answer import MAX_ANSWER_BYTES, Answer
from apachews_handler.exceptions import NotSetUp, Refusal, Unavailable
from apachews_handler.native import syscalls

from . import endpoint_access

# errno where the process has no descriptor, or the kernel no memory, for one more.
OUT_OF_RESOURCES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# errno if a file does not exist.
ABSENT: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG})
NOT_FOUND: Final = "404 Not Found"
# What bounds the handshakes that wait at a time; called with the id of the producer's user.
Place = Callable[[int], contextlib.AbstractContextManager[object]]
# struct ucred: pid, uid, gid.
_UCRED: Final = struct.Struct("iII")
# An answer is mostly one read; what follows it in the same is messages.
ANSWER_READ_BYTES: Final = 16384


def script_filename(environ: Mapping[str, Any]) -> str:
    """Return the path of the file that httpd found.

    Args:
        environ: of the request.  It has the bytes of this variable as ISO 8859-1, as of
            all others; but mod_wsgi from 6 on decodes it as Python does file names.
    """
    path: str = environ["SCRIPT_FILENAME"]
    if environ.get("mod_wsgi.version", (0,)) >= (6,):
        return path
    return os.fsdecode(path.encode("latin-1"))


def locate(root: str, path_info: str) -> str:
    """Return the path of the socket that ``/chat`` names: ``chat.ws`` in the root.

    Args:
        root: absolute path of a directory, or "" where none is set.
        path_info: rest of the URL's path, decoded by httpd.

    Raises:
        Refusal: 500 without a root; 404 for a name that is empty, or that leads
            out of the root, be it by ``..`` or by a symbolic link.
    """
    if not root:
        raise NotSetUp(
            "WSGIScriptAlias needs SetEnv APACHEWS_ROOT, the directory of the sockets",
        )
    name = path_info.strip("/")
    # WSGI gives bytes as ISO 8859-1, httpd's variables too; file names are bytes.
    base = root.encode("latin-1")
    wanted = os.path.join(base, name.encode("latin-1") + b".ws")
    inside = os.path.realpath(base).rstrip(b"/") + b"/"
    if not name or "\0" in name or not os.path.realpath(wanted).startswith(inside):
        raise Refusal(
            NOT_FOUND,
            "There is no WebSocket here.",
            f"{path_info!r:.200} names no socket inside {root}",
        )
    return os.fsdecode(wanted)


def connect(
    path: str,
    timeout_s: float,
    directories: tuple[str, ...] = (),
    place: Place = contextlib.nullcontext,
) -> socket.socket:
    """Connect to a producer.

    Args:
        path: of its socket file.
        timeout_s: how long to wait for a full backlog, or for a loopback port.
        directories: those whose sockets any symbolic link may lead to.
        place: entered for as long as the call blocks.

    Raises:
        Refusal: 404 no such file, 403 not a socket, or a link that may not lead to it, 503
            the producer does not listen or the backlog stays full or no descriptor is left,
            500 no permission; and what ``place`` raises.
    """
    try:
        with endpoint_access.opened(path, directories) as name:
            return syscalls.connect(name)
    except OSError:
        pass  # what is wrong with it, or whether only the backlog is full, is found out below
    try:
        # Again: a producer that takes over may have replaced the file meanwhile.
        with endpoint_access.opened(path, directories) as name:
            return _connect_patiently(path, name, timeout_s, directories, place)
    except OSError as error:
        if error.errno in ABSENT:
            raise Refusal(NOT_FOUND, "There is no WebSocket here.", _absent(path)) from error
        raise _refusal(path, timeout_s, error) from error


def _absent(path: str) -> str:
    """Return what the log says of a file that does not exist."""
    length = len(os.fsencode(path))
    if length > syscalls.MAX_PATH_BYTES:
        return (
            f"{path!r:.400} does not exist: it has {length} bytes, and a producer can make a"
            f" Unix socket of at most {syscalls.MAX_PATH_BYTES}; choose a shorter path"
        )
    return f"{path!r} does not exist: is the producer running?"


def _connect_patiently(
    path: str, name: str, timeout_s: float, directories: tuple[str, ...], place: Place
) -> socket.socket:
    """Do what ``connect`` does, and wait if the backlog is full.

    Args:
        name: of the file that was opened; the path is for the log.

    Raises:
        Refusal, OSError
    """
    status = os.stat(name)
    mode = status.st_mode
    if stat.S_ISREG(mode):
        with place(status.st_uid):
            return _connect_loopback(path, timeout_s, directories)
    if not stat.S_ISSOCK(mode):
        raise Refusal(
            "403 Forbidden",
            "There is no WebSocket here.",
            f"{path!r} is not a socket: a producer must create it",
        )
    try:
        return syscalls.connect(name)
    except BlockingIOError:
        with place(status.st_uid):
            return _wait_for_backlog(path, name, timeout_s)
    except OSError as error:
        raise _refusal(path, timeout_s, error) from error


def _wait_for_backlog(path: str, name: str, timeout_s: float) -> socket.socket:
    """Connect to a Unix socket whose backlog is full.

    Args:
        name: of the file that was opened; the path is for the log.

    Raises:
        Refusal
    """
    try:
        producer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except OSError as error:
        raise Unavailable(out_of_descriptors(error)) from error
    try:
        # A blocking connect() waits while the backlog is full, for as long as the
        # socket may wait to send; a non-blocking one fails at once (unix(7)).
        producer.setsockopt(
            socket.SOL_SOCKET,
            socket.SO_SNDTIMEO,
            struct.pack("ll", int(timeout_s), int(timeout_s % 1 * 1_000_000)),
        )
        producer.connect(name)
        producer.setblocking(False)
    except OSError as error:
        producer.close()
        raise _refusal(path, timeout_s, error) from error
    return producer


def _connect_loopback(path: str, timeout_s: float, directories: tuple[str, ...]) -> socket.socket:
    """Connect to a producer whose file is not a socket, but says where it listens.

    Raises:
        Refusal, OSError
    """
    try:
        producer = loopback.dial(path, timeout_s, lambda path: read_address(path, directories))
    except loopback.NotAnAddress as error:
        raise Refusal(
            "403 Forbidden",
            "There is no WebSocket here.",
            f"{path!r} is not a socket, which a producer must create: {error}",
        ) from error
    except loopback.NotProven as error:
        raise Unavailable(
            f"whoever listens on the port that {path!r} names is not its producer ({error}):"
            " start that again"
        ) from error
    except TimeoutError as error:
        raise Unavailable(
            f"the producer of {path!r} did not answer within {timeout_s:g} s"
        ) from error
    producer.setblocking(False)
    return producer


def read_address(path: str, directories: tuple[str, ...]) -> loopback.Address:
    """Return where the producer of a loopback socket's file listens.

    Raises:
        NotAnAddress, OSError: as ``Address.read``.
        Refusal: as ``endpoint_access.opened``.
    """
    with endpoint_access.opened(path, directories) as name:
        return loopback.Address.read(name)


def user_of(producer: socket.socket, path: str, directories: tuple[str, ...]) -> int:
    """Return the id of the user that runs a producer.

    Args:
        producer: connected.
        path, directories: as of ``connect``.

    Raises:
        Refusal: 404, its loopback socket's file was removed meanwhile; or as ``connect``.
    """
    if producer.family == socket.AF_UNIX:
        # Of the process that called listen(), as the kernel knows it (unix(7)).
        peer = producer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
        return int(_UCRED.unpack(peer)[1])
    try:
        with endpoint_access.opened(path, directories) as name:
            return os.stat(name).st_uid
    except OSError as error:
        raise Refusal(NOT_FOUND, "There is no WebSocket here.", _absent(path)) from error


def ask(producer: socket.socket, open_: wire.Open, timeout_s: float) -> tuple[Answer, bytes]:
    """Send OPEN and wait for the producer's ANSWER.

    Args:
        producer: connected and non-blocking, and so again afterwards.
        open_: what it is told.
        timeout_s: how long all of that may take.

    Returns:
        The answer, and what the producer has sent after it.

    Raises:
        Refusal: 503 no answer in time, or the producer is gone; 500 an answer
            that is none.
    """
    deadline = time.monotonic() + timeout_s
    try:
        producer.settimeout(timeout_s)
        producer.sendall(open_.encode())
        data = b""
        while (answer := _split_answer(data)) is None:
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                raise TimeoutError
            producer.settimeout(remaining_s)
            more = producer.recv(ANSWER_READ_BYTES)
            if not more:
                raise Unavailable("the producer closed the connection instead of answering")
            data += more
        return answer
    except TimeoutError as error:
        raise Unavailable(
            f"the producer did not answer within {timeout_s:g} s: it must accept() or reject(),"
            " for SetEnv APACHEWS_ACCEPT is producer; see APACHEWS_CONNECT_TIMEOUT"
        ) from error
    except OSError as error:
        raise Unavailable(f"the producer is gone: {error.strerror or error}") from error
    except WireError as error:
        raise NotSetUp(f"the producer does not answer as it must: {error.reason}") from error
    finally:
        producer.settimeout(0)


def _split_answer(data: bytes) -> tuple[Answer, bytes] | None:
    """Return the ANSWER at the beginning, and what follows; None until it is whole."""
    header = wire.decode_header(data, 0)
    if header is None:
        return None
    first, length, start = header
    if first != wire.FIN | wire.ANSWER:
        raise WireError(f"its first frame begins with {first:#x}, and is no ANSWER")
    if length > MAX_ANSWER_BYTES:
        raise WireError(f"its ANSWER has {length} bytes; at most {MAX_ANSWER_BYTES} go")
    if len(data) < start + length:
        return None
    return Answer.decode(data[start : start + length]), data[start + length :]


def out_of_descriptors(error: OSError) -> str:
    """Return what the log says where no socket can be made."""
    return (
        f"no descriptor for another WebSocket ({error.strerror}): raise Apache's limit"
        " (LimitNOFILE= of its systemd unit, or ulimit -n)"
    )


def _refusal(path: str, timeout_s: float, error: OSError) -> Refusal:
    """Return the answer to a failed connect."""
    if error.errno in (errno.ECONNREFUSED, errno.ENOENT, errno.ECONNRESET):
        return Unavailable(f"nobody listens on {path!r}: start its producer")
    if error.errno in OUT_OF_RESOURCES:
        return Unavailable(out_of_descriptors(error))
    if error.errno == errno.EADDRNOTAVAIL:
        return Unavailable(
            f"no port of 127.0.0.1 is left for another WebSocket to {path!r}: see"
            " net.ipv4.ip_local_port_range, or serve by a Unix socket"
        )
    if error.errno in (errno.EAGAIN, errno.ETIMEDOUT):
        return Unavailable(
            f"the producer on {path!r} accepts no connection: its backlog"
            f" stayed full for {timeout_s:g} s"
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        if os.path.isfile(path):
            return NotSetUp(
                f"no permission to read {path!r}, which says where its producer listens: user"
                f" {_user()} needs the right to; see group of Server()"
            )
        return NotSetUp(
            f"no permission to connect to {path!r}: user {_user()} needs the right to write"
            " to the socket and to enter its directories; see mode and group of Server()"
        )
    if error.errno == errno.ELOOP:
        return NotSetUp(
            f"too many symbolic links on the way to {path!r}: the path and the targets of its"
            f" links may have {endpoint_access.MAX_STEPS} components; link to the socket directly"
        )
    return NotSetUp(f"cannot connect to {path!r}: {error.strerror or error}")


def _user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
