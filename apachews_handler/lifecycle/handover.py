"""Connections move from one custodian to an older one of the same Apache.

Contract: every custodian has a ``Taker``, which listens in the run directory and adds what
it accepts to its loop, and a ``Giver``, whose ``run`` is called from time to time and moves
what is at rest (``portable``) to the oldest custodian that accepts it.  On the loop's
thread; nothing blocks.  A connection has exactly one process that reads and writes it at
any moment, whichever of the two ends, and however.

How this works: ten reloads would leave ten custodians otherwise, each with a Python of its
own.  Connections move towards older custodians only, so none moves in a circle, and the
oldest one collects them all.  An older custodian that runs other code (``FORMAT``), has
another user, or is too busy refuses, and the next older one is asked.

One connection at a time, over a socket that keeps messages apart::

    giver                              taker
    HELLO  format, load         -->    ACCEPT or REFUSE
    OFFER  document, descriptors -->   ACCEPT or REFUSE; does not touch the descriptors
    COMMIT                      -->    adds the connection to its loop
    (closes its descriptors)

The descriptors are the client's and the producer's, the TCP connection of a client with TLS, and
those of the log and of the places, if there are any.

The TLS of a client stays in the giver's process, for OpenSSL exports no connection.  The taker
gets one end of a pair of Unix sockets instead of the client's socket, and the giver's relay
(``native.tls_relay``) passes bytes between the other end and the client.  The taker asks the TCP
connection's descriptor how much the client has acknowledged, and never reads or writes it.

The giver takes the connection out of its loop before the OFFER.  Without an ACCEPT it takes
the connection back, and the taker closes what it has as soon as the giver closes the
socket.  With COMMIT sent the connection is the taker's.

Sources: unix(7), SOCK_SEQPACKET, SCM_RIGHTS and SO_PEERCRED.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import struct
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from apachews.monitoring.collect import fitting_path
from apachews_handler.bridge.connection import Connection, Log, Permit
from apachews_handler.bridge.loop import Loop
from apachews_handler.bridge.transport import PlainTransport
from apachews_handler.monitoring.log_file import FileLog, Syslog
from apachews_handler.native import tls_relay
from apachews_handler.native.openssl import TlsError, TlsSession
from apachews_handler.native.tls_relay import Relay
from apachews_handler.shared import slots

from . import portable
from .offer import Offer, TlsOffer, let_go
from .portable import NotPortable

SUFFIX: Final = ".handover"
# How long a taker has for an answer: a turn of a busy loop takes some milliseconds.  The
# clients of an offered connection wait meanwhile.
ANSWER_S: Final = 2.0
# One process has one core: a taker takes no more than this share of it, its own and the
# giver's load together.
MAX_LOAD: Final = 0.5
# Custodians that give at a time; one reload makes as many as Apache has children.
MAX_GIVERS: Final = 64
# The largest document; a connection whose request is longer does not move.  (Half of what the
# kernel lets a socket send by default, net.core.wmem_default.)
MAX_DOCUMENT_BYTES: Final = 100_000
_MAX_DESCRIPTORS: Final = 5
_UCRED: Final = struct.Struct("iII")  # unix(7), struct ucred
_HELLO, _OFFER, _COMMIT = b"H", b"O", b"C"
_ACCEPT, _REFUSE = b"y", b"n"


class Taker:
    """Accepts the connections of younger custodians.

    Args:
        loop: gets them.
        directory: the run directory.
        name: of this custodian's generation, without its suffix.
        load: returns which share of a core this process uses.

    Raises:
        OSError: the socket cannot be made.
    """

    def __init__(self, loop: Loop, directory: str, name: str, load: Callable[[], float]) -> None:
        self._loop = loop
        self._load = load
        self._givers: dict[int, _Conversation] = {}
        self._logs: dict[tuple[int, int, str, int], FileLog] = {}
        self._places: dict[str, slots.LentSlots] = {}
        self._path = os.path.join(directory, name + SUFFIX)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.setblocking(False)
            with fitting_path(directory, name + SUFFIX) as path:
                self._socket.bind(path)
            self._socket.listen(MAX_GIVERS)
            loop.add_reader(self._socket.fileno(), self._on_giver)
        except OSError:
            self._socket.close()
            raise

    def close(self) -> None:
        """Accept nothing more; again does nothing."""
        if self._socket.fileno() == -1:
            return
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        with contextlib.suppress(OSError):  # the directory was cleaned
            os.unlink(self._path)
        for conversation in list(self._givers.values()):
            self._end(conversation)

    def _on_giver(self) -> None:
        try:
            sock, _ = self._socket.accept()
        except BlockingIOError:
            return  # the giver has left
        except OSError:
            # No file descriptor is left for it.  Epoll would report it in every turn.
            self.close()
            return
        if len(self._givers) >= MAX_GIVERS or not _is_same_user(sock):
            sock.close()
            return
        sock.setblocking(False)
        conversation = _Conversation(sock)
        try:
            self._loop.add_reader(sock.fileno(), lambda: self._read(conversation))
        except OSError:
            sock.close()
            return
        self._givers[sock.fileno()] = conversation

    def _read(self, conversation: _Conversation) -> None:
        try:
            data, fds, flags, _ = socket.recv_fds(
                conversation.sock, MAX_DOCUMENT_BYTES + 1, _MAX_DESCRIPTORS
            )
        except BlockingIOError:
            return
        except OSError:
            data, fds, flags = b"", [], 0
        kind, body = data[:1], data[1:]
        try:
            if kind == _HELLO and not fds:
                self._answer(conversation, self._is_welcome(body))
            elif kind == _OFFER and conversation.is_welcome and not conversation.offered:
                # Without a free file descriptor the kernel cuts the list (MSG_CTRUNC).
                if flags & socket.MSG_CTRUNC:
                    raise NotPortable("too few file descriptors")
                conversation.offered = self._unpack(portable.decode(body), fds)
                fds = []  # the connection's
                self._answer(conversation, True)
            elif kind == _COMMIT and conversation.offered:
                connection, conversation.offered = conversation.offered, None
                self._loop.adopt(connection)
            else:
                self._end(conversation)  # the giver has ended, or speaks something else
        except NotPortable:
            self._answer(conversation, False)
        finally:
            for fd in fds:
                os.close(fd)

    def _is_welcome(self, hello: bytes) -> bool:
        """Tell whether this process can and wants to take over what the giver has."""
        try:
            format_, load = hello.decode("ascii").split()
            return int(format_) == portable.FORMAT and self._load() + float(load) <= MAX_LOAD
        except ValueError:
            return False

    def _answer(self, conversation: _Conversation, is_accepted: bool) -> None:
        conversation.is_welcome = is_accepted
        try:
            conversation.sock.send(_ACCEPT if is_accepted else _REFUSE)
        except OSError:
            self._end(conversation)

    def _end(self, conversation: _Conversation) -> None:
        """Close the socket; what was offered and not committed is the giver's."""
        if self._givers.pop(conversation.sock.fileno(), None) is None:
            return
        self._loop.remove_reader(conversation.sock.fileno())
        conversation.sock.close()
        if conversation.offered:
            let_go(conversation.offered)
            conversation.offered = None

    def _unpack(self, document: dict[str, Any], fds: list[int]) -> Connection:
        """Return the connection, which owns the descriptors then.

        Raises:
            NotPortable: the document and its descriptors do not fit; nothing was closed.
        """
        log, places = document["log"], document["places"]
        sockets_count = 2 + (document["is_relayed"] is True)
        if len(fds) != sockets_count + (log is not None) + (places is not None):
            raise NotPortable(f"{len(fds)} descriptors")
        if not all(stat.S_ISSOCK(os.fstat(fd).st_mode) for fd in fds[:sockets_count]):
            raise NotPortable("the descriptors are not sockets")
        sockets = [socket.socket(fileno=fd) for fd in fds[:sockets_count]]
        further = fds[sockets_count:]
        try:
            connection = portable.restore(
                document,
                sockets[0],
                sockets[1],
                self._log(log, further[0]) if log else Syslog(),
                None,
                *sockets[2:],
            )
            if document["is_relayed"]:
                connection.transport.limit_unsent(connection.settings.max_buffer_bytes)
            if places is not None:
                connection.admission = self._admission(places, fds[-1])
        except Exception as error:
            for sock in sockets:
                sock.detach()
            if isinstance(error, NotPortable):
                raise
            raise NotPortable(f"{type(error).__name__}: {error}") from error
        for fd in further:
            os.close(fd)
        return connection

    def _log(self, style: list[Any], fd: int) -> Log:
        """Return the log of a descriptor: one for all connections of a virtual host."""
        module, threshold = str(style[0]), int(style[1])
        status = os.fstat(fd)
        key = (status.st_dev, status.st_ino, module, threshold)
        if key not in self._logs:
            self._logs[key] = FileLog(os.dup(fd), module, threshold)
        return self._logs[key]

    def _admission(self, places: dict[str, Any], fd: int) -> Permit:
        token = str(places["token"])
        lent = self._places.get(token)
        if lent is None or lent.is_closed:
            lent = self._places[token] = slots.LentSlots(os.dup(fd), token)
        return lent.permit([int(position) for position in places["positions"]])


class _Conversation:
    """A giver, as its taker sees it.

    Attributes:
        is_welcome: its HELLO was accepted.
        offered: accepted, and not committed yet.
    """

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.is_welcome = False
        self.offered: Connection | None = None


class Giver:
    """Moves the connections of this custodian to an older one.

    Args:
        loop: has them.
        directory: the run directory.
        name: of this custodian's generation, without its suffix.
        load: returns which share of a core this process uses.
        relay: gets the TLS of connections that move.

    Attributes:
        is_needed: connections may leave soon: an older custodian accepts them, or was not
            asked yet.  False for the oldest custodian.
    """

    def __init__(
        self, loop: Loop, directory: str, name: str, load: Callable[[], float], relay: Relay
    ) -> None:
        self._loop = loop
        self._directory = directory
        self._name = name
        self._load = load
        self._relay = relay
        self._socket: socket.socket | None = None
        self._takers: list[str] = []  # names that were not asked yet, the oldest last
        self._going: deque[Connection] = deque()
        self._offer: Offer | None = None
        self._answer_by = 0.0
        self.is_needed = True

    @property
    def is_busy(self) -> bool:
        """True while a taker is to answer; a connection may be in neither loop."""
        return self._socket is not None

    def run(self, now: float) -> None:
        """Begin to move what is at rest, or give up a taker that does not answer.

        Args:
            now: ``time.monotonic()``.
        """
        if self._socket is not None:
            if now >= self._answer_by:
                self._close()
                self._ask_next()
            return
        self._going.extend(
            connection
            for connection in self._loop.connections()
            if isinstance(connection.transport, PlainTransport)
            or (tls_relay.is_available and isinstance(connection.transport, TlsSession))
        )
        self._takers = self._older() if self._going else []
        self.is_needed = bool(self._takers)
        if self._takers:
            # One that is on a channel for groups comes to rest when it has left it.
            self._loop.channels.dismiss(self._going)
        self._ask_next()

    def stop(self) -> None:
        """Take back what was offered, and move nothing more."""
        self._takers.clear()
        self._close()
        self._going.clear()

    def _older(self) -> list[str]:
        """Return the names of the sockets of older custodians, the oldest last."""
        prefix = self._name.partition(".")[0] + "."
        try:
            names = os.listdir(self._directory)
        except OSError:
            return []
        return sorted(
            (
                name
                for name in names
                if name.startswith(prefix) and name.endswith(SUFFIX) and name < self._name + SUFFIX
            ),
            reverse=True,
        )

    def _ask_next(self) -> None:
        """Say HELLO to the oldest custodian that was not asked yet."""
        while self._takers:
            name = self._takers.pop()
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            try:
                sock.setblocking(False)
                with fitting_path(self._directory, name) as path:
                    sock.connect(path)
                if not _is_same_user(sock):
                    raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
                sock.send(_HELLO + f"{portable.FORMAT} {self._load():.3f}".encode())
                self._loop.add_reader(sock.fileno(), self._on_answer)
            except ConnectionRefusedError:
                sock.close()
                with contextlib.suppress(OSError):  # its process was killed
                    os.unlink(os.path.join(self._directory, name))
                continue
            except OSError:
                sock.close()
                continue
            self._socket = sock
            self._answer_by = time.monotonic() + ANSWER_S
            return
        if self._going:  # no custodian accepts them now
            self._loop.channels.readmit(self._going)
            self._going.clear()
            self.is_needed = False

    def _on_answer(self) -> None:
        assert self._socket
        try:
            answer = self._socket.recv(16)
        except BlockingIOError:
            return
        except OSError:
            answer = b""
        if answer == _ACCEPT and self._commit():
            self._offer_next()
        else:
            self._close()
            self._ask_next()

    def _commit(self) -> bool:
        """Leave what was offered to the taker; False if the taker has ended."""
        assert self._socket
        if self._offer:
            try:
                self._socket.send(_COMMIT)
            except OSError:
                return False
            offer, self._offer = self._offer, None
            offer.complete()
        return True

    def _offer_next(self) -> None:
        assert self._socket
        while self._going:
            connection = self._going.popleft()
            document = None if connection.is_closed else portable.encode(connection)
            if document is None or len(document) > MAX_DOCUMENT_BYTES:
                continue
            try:
                offer = self._prepare(connection)
            except (OSError, TlsError):
                continue  # no descriptor or no memory is left: it does not move
            self._loop.release(connection)
            self._offer = offer
            self._answer_by = time.monotonic() + ANSWER_S
            try:
                socket.send_fds(self._socket, [_OFFER + document], offer.descriptors())
            except OSError:
                self._take_back()  # the taker has ended, or cannot be sent so much
                continue
            return
        self._close()

    def _prepare(self, connection: Connection) -> Offer:
        if isinstance(connection.transport, TlsSession):
            return TlsOffer(connection, connection.transport, self._relay)
        return Offer(connection)

    def _take_back(self) -> None:
        offer, self._offer = self._offer, None
        if offer:
            offer.withdraw()
            self._loop.adopt(offer.connection)

    def _close(self) -> None:
        """End the conversation; the taker closes its copies of what was not committed."""
        sock, self._socket = self._socket, None
        if sock is not None:
            self._loop.remove_reader(sock.fileno())
            sock.close()
        self._take_back()


def _is_same_user(sock: socket.socket) -> bool:
    """Tell whether the other end is a process of this user's."""
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return bool(_UCRED.unpack(data)[1] == os.geteuid())
