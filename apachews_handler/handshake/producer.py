"""From a request to the producer: its socket file, the connection, its answer.

Contract: ``found_by_httpd(environ, settings)`` and ``below_root(environ, settings)`` name the
socket file; ``connect(path, timeout_s, directories, place)`` yields a connected, non-blocking
socket, which the caller closes; ``ask(producer, open_, timeout_s)`` gives the producer's own
answer; ``user_of(producer, path, directories)`` tells which user runs it.
A failure is a ``Refusal``, which has the HTTP answer.  ``connect`` and ``ask`` may block for the
timeout; called on Apache's worker threads.  ``connect`` enters ``place`` before it blocks, and
the caller of ``ask`` does (``waiting``).
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import socket
import struct
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from apachews import wire
from apachews._listening import loopback
from apachews._listening.endpoint import (
    MAX_PATH_BYTES,
    Outcome,
    Unreachable,
    connect_unix,
)
from apachews.exceptions import WireError
from apachews.monitoring import refusals
from apachews.wire.answer import MAX_ANSWER_BYTES, Answer
from apachews_handler.endpoints import endpoint_access
from apachews_handler.endpoints.endpoint import connect_once
from apachews_handler.exceptions import Refusal, no_descriptors
from apachews_handler.native import syscalls
from apachews_handler.settings import Settings

# Bounds the handshakes that wait at a time; called with the id of the producer's user.
Place = Callable[[int], contextlib.AbstractContextManager[object]]
# struct ucred: pid, uid, gid.
_UCRED: Final = struct.Struct("iII")
# An answer is mostly one read; the bytes after it in the same read are messages.
ANSWER_READ_BYTES: Final = 16384


def found_by_httpd(environ: Mapping[str, Any], settings: Settings) -> str:
    """Return the path of the file that httpd found.

    Args:
        environ: of the request.  Its variables are bytes as ISO 8859-1; but mod_wsgi from 6 on
            decodes this one as Python decodes file names.
        settings: not used.
    """
    path: str = environ["SCRIPT_FILENAME"]
    if environ.get("mod_wsgi.version", (0,)) >= (6,):
        return path
    return os.fsdecode(path.encode("latin-1"))


def below_root(environ: Mapping[str, Any], settings: Settings) -> str:
    """Return the path of the socket that the rest of the URL's path names.

    Raises:
        Refusal: as ``locate``.
    """
    return locate(settings.root, environ.get("PATH_INFO", ""))


def locate(root: str, path_info: str) -> str:
    """Return the path of the socket that ``/chat`` names: ``chat.ws`` in the root.

    Args:
        root: absolute path of a directory, or "" if it is not set.
        path_info: rest of the URL's path, decoded by httpd.

    Raises:
        Refusal: 500 without a root; 404 for a name that is empty, or that leads
            out of the root by ``..`` or by a symbolic link.
    """
    if not root:
        raise Refusal(refusals.NO_ROOT, "WSGIScriptAlias needs SetEnv APACHEWS_ROOT")
    name = path_info.strip("/")
    # WSGI gives bytes as ISO 8859-1, and httpd's variables too; file names are bytes.
    base = root.encode("latin-1")
    wanted = os.path.join(base, name.encode("latin-1") + b".ws")
    inside = os.path.realpath(base).rstrip(b"/") + b"/"
    if not name or "\0" in name or not os.path.realpath(wanted).startswith(inside):
        fact = f"{path_info!r:.200} does not name a socket inside {root}"
        raise Refusal(refusals.NO_SUCH_ENDPOINT, fact)
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
        Refusal: 404 the file does not exist, 403 it is not a socket, or a link may not lead to
            it, 503 the producer does not listen or its backlog stays full or no file descriptor
            is left, 500 no permission; and what ``place`` raises.
    """
    try:
        # The fast path of almost every handshake: five short system calls that keep the GIL.
        with endpoint_access.opened(path, directories) as name:
            return syscalls.connect(name)
    except OSError:
        pass  # the second attempt finds the cause, or waits for a full backlog
    try:
        # The file is opened again: a producer that takes over may have replaced it meanwhile.
        with endpoint_access.opened(path, directories) as name:
            return _connect_patiently(path, name, timeout_s, directories, place)
    except Unreachable as failure:
        raise _refusal(path, timeout_s, failure) from failure
    except (OSError, loopback.NotAnAddress, loopback.NotProven) as error:
        raise _refusal(path, timeout_s, Unreachable(error)) from error


def _connect_patiently(
    path: str, name: str, timeout_s: float, directories: tuple[str, ...], place: Place
) -> socket.socket:
    """Do what ``connect`` does, and wait if that can help.

    Args:
        name: of the file that was opened; a loopback socket's file is read by its path.

    Raises:
        Refusal: of ``place``, or of ``read_address``.
        Unreachable, OSError, NotAnAddress, NotProven
    """
    try:
        found = connect_once(name)
        if isinstance(found, socket.socket):
            return found
    except Unreachable as failure:
        if failure.outcome is not Outcome.BUSY:
            raise
        dial = functools.partial(connect_unix, name, timeout_s)
    else:
        # A producer that takes over changes the file: it is read again before a second attempt.
        dial = functools.partial(
            loopback.dial, path, timeout_s, lambda path: read_address(path, directories)
        )
    # From here on the worker waits, so it needs a place.
    with place(os.stat(name).st_uid):
        producer = dial()
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
        raise Refusal(refusals.NO_SUCH_ENDPOINT, _absent(path)) from error


def ask(producer: socket.socket, open_: wire.Open, timeout_s: float) -> tuple[Answer, bytes]:
    """Send OPEN and wait for the producer's ANSWER.

    Args:
        producer: connected and non-blocking, and so again afterwards.
        open_: the document that describes the connection.
        timeout_s: how long all of that may take.

    Returns:
        The answer, and the bytes that the producer sent after it.

    Raises:
        Refusal: 503 no answer in time, or the producer closed the connection; 500 an
            invalid answer.
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
                raise Refusal(refusals.PRODUCER_LEFT)
            data += more
        return answer
    except TimeoutError as error:
        fact = f"the producer did not answer within {timeout_s:g} s"
        raise Refusal(refusals.NO_ANSWER, fact) from error
    except OSError as error:
        fact = f"the connection to the producer failed: {error.strerror or error}"
        raise Refusal(refusals.PRODUCER_LEFT, fact) from error
    except WireError as error:
        fact = f"invalid ANSWER from the producer: {error.reason}"
        raise Refusal(refusals.BAD_ANSWER, fact) from error
    finally:
        producer.settimeout(0)  # non-blocking again, as the bridge needs it


def _split_answer(data: bytes) -> tuple[Answer, bytes] | None:
    """Return the ANSWER at the beginning, and the bytes after it; None until it is whole."""
    header = wire.decode_header(data, 0)
    if header is None:
        return None
    first, length, start = header
    if first != wire.FIN | wire.ANSWER:
        raise WireError(f"the first frame begins with {first:#x}; expected an ANSWER")
    if length > MAX_ANSWER_BYTES:
        raise WireError(f"{length} bytes; the limit is {MAX_ANSWER_BYTES}")
    if len(data) < start + length:
        return None
    return Answer.decode(data[start : start + length]), data[start + length :]


def _refusal(path: str, timeout_s: float, failure: Unreachable) -> Refusal:
    """Return the answer to a failed connect."""
    outcome, error = failure.outcome, failure.error
    if outcome is Outcome.OUT_OF_RESOURCES and isinstance(error, OSError):
        if error.errno == errno.EADDRNOTAVAIL:
            fact = f"no port of 127.0.0.1 is left for another WebSocket to {path!r}"
            return Refusal(refusals.NO_PORTS, fact)
        return no_descriptors(error)
    if outcome is Outcome.FORBIDDEN:
        verb = "read" if os.path.isfile(path) else "connect to"
        return Refusal(refusals.PERMISSION, f"user {_user()} has no permission to {verb} {path!r}")
    if isinstance(error, loopback.NotProven):
        fact = f"another program listens on the port that {path!r} names ({error})"
        return Refusal(refusals.WRONG_PRODUCER, fact)
    if isinstance(error, TimeoutError):
        fact = f"the producer of {path!r} did not answer within {timeout_s:g} s"
        return Refusal(refusals.NO_ANSWER, fact)
    reason, fact = {
        Outcome.NOT_THERE: (refusals.NO_SUCH_ENDPOINT, _absent(path)),
        Outcome.NOT_A_SOCKET: (refusals.NOT_A_SOCKET, f"{path!r} is not a socket: {failure}"),
        Outcome.REFUSED: (refusals.NO_PRODUCER, f"no producer listens on {path!r}"),
        Outcome.BUSY: (
            refusals.BACKLOG_FULL,
            f"the producer on {path!r} accepts no connection: its backlog stayed full for"
            f" {timeout_s:g} s",
        ),
    }.get(outcome, (refusals.CANNOT_CONNECT, f"cannot connect to {path!r}: {failure}"))
    return Refusal(reason, fact)


def _absent(path: str) -> str:
    """Return what the log says of a file that does not exist."""
    length = len(os.fsencode(path))
    if length > MAX_PATH_BYTES:
        return (
            f"{path!r:.400} does not exist: it has {length} bytes, and the path of a Unix socket"
            f" has at most {MAX_PATH_BYTES}"
        )
    return f"{path!r} does not exist"


def _user() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())
