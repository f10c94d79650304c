"""OpenSSL, through ctypes: the only module that touches it.

Contract: ``TlsSession.share`` takes a second reference to the ``SSL`` of a
connection that Apache's mod_ssl set up; ``take_over`` moves it from Apache's
filters to a socket of our own.  From then on it is a transport: non-blocking
``recv`` and ``send``, on one thread at a time.  It owns the socket and closes it.
Nothing here knows httpd: what it is given is numbers.

How this works: mod_ssl's ``SSL`` reads and writes through httpd's filters, and
its ex_data 0 points to the connection.  Both are replaced, so that nothing of
the connection's pool is reached through it after Apache has freed that.
Renegotiation is switched off: it would run mod_ssl's callbacks, which expect the
connection.

Short calls keep the GIL (``PyDLL``): handing it over costs more than they do, and
none of them blocks, the socket being non-blocking.

Sources: OpenSSL's manual (SSL_read(3), SSL_set_mode(3), SSL_get_error(3));
openssl/ssl.h for the constants, which a test compares.
"""

from __future__ import annotations

import ctypes
import socket
from collections.abc import Callable
from ctypes import c_char_p, c_int, c_long, c_uint, c_uint64, c_ulong, c_void_p
from typing import Any, ClassVar, Final

# openssl/ssl.h
SSL_CTRL_MODE: Final = 33
SSL_MODE_ENABLE_PARTIAL_WRITE: Final = 0x1
SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER: Final = 0x2
SSL_MODE_RELEASE_BUFFERS: Final = 0x10
SSL_OP_NO_RENEGOTIATION: Final = 1 << 30
SSL_SENT_SHUTDOWN: Final = 1
SSL_RECEIVED_SHUTDOWN: Final = 2
SSL_ERROR_WANT_READ: Final = 2
SSL_ERROR_WANT_WRITE: Final = 3
# SSL_OP_NO_RENEGOTIATION, without which callbacks could run, came with 1.1.0h;
# SSL_set_options, SSL_up_ref and SSL_has_pending are functions since 1.1.0.
OLDEST_OPENSSL: Final = 0x1010008F
# mod_ssl's SSL_set_app_data(ssl, c): ex_data 0 is the conn_rec.
_APP_DATA: Final = 0
# RFC 8446 5.1
RECORD_BYTES: Final = 16384

_SIGNATURES: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "OpenSSL_version_num": (c_ulong, ()),
    "ERR_clear_error": (None, ()),
    "SSL_up_ref": (c_int, (c_void_p,)),
    "SSL_free": (None, (c_void_p,)),
    "SSL_get_ex_data": (c_void_p, (c_void_p, c_int)),
    "SSL_set_ex_data": (c_int, (c_void_p, c_int, c_void_p)),
    "SSL_set_quiet_shutdown": (None, (c_void_p, c_int)),
    "SSL_set_shutdown": (None, (c_void_p, c_int)),
    "SSL_set_options": (c_uint64, (c_void_p, c_uint64)),
    "SSL_ctrl": (c_long, (c_void_p, c_int, c_long, c_void_p)),
    "SSL_set_fd": (c_int, (c_void_p, c_int)),
    "SSL_set_read_ahead": (None, (c_void_p, c_int)),
    "SSL_has_pending": (c_int, (c_void_p,)),
    "SSL_get_session": (c_void_p, (c_void_p,)),
    "SSL_SESSION_set1_id": (c_int, (c_void_p, c_char_p, c_uint)),
    "SSL_read": (c_int, (c_void_p, c_void_p, c_int)),
    "SSL_write": (c_int, (c_void_p, c_char_p, c_int)),
    "SSL_shutdown": (c_int, (c_void_p,)),
    "SSL_get_error": (c_int, (c_void_p, c_int)),
}


class TlsError(Exception):
    """OpenSSL is not what the code was written for, or refused a call."""


class _Library:
    """The libssl that mod_ssl uses, found as a dependency of that file."""

    def __init__(self, path: str | None) -> None:
        library = self._file = ctypes.PyDLL(path)
        for name, (result, arguments) in _SIGNATURES.items():
            try:
                function = getattr(library, name)
            except AttributeError as error:
                raise TlsError(f"libssl has no {name}: OpenSSL 1.1.1 or newer is needed") from error
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        version = self.OpenSSL_version_num()
        if version < OLDEST_OPENSSL:
            raise TlsError(f"OpenSSL is {version:#x}: 1.1.1 or newer is needed")

    def address_of(self, name: str) -> int:
        """Return where a function is, for C.

        Raises:
            TlsError: neither libssl nor libcrypto has it.
        """
        try:
            function = getattr(self._file, name)
        except AttributeError as error:
            raise TlsError(f"libssl has no {name}") from error
        return ctypes.cast(function, c_void_p).value or 0

    def __getattr__(self, name: str) -> Any:  # for mypy: set in __init__
        raise AttributeError(name)


# One for all sessions: a child has one bridge thread, and the GIL is not let go
# between a read and the copy.  Five records: a message of 64 KiB and its header, which is
# as much as a plain connection gives at once by default.
READ_BYTES: Final = 5 * RECORD_BYTES
_buffer = ctypes.create_string_buffer(READ_BYTES)
_buffer_at: Final = ctypes.addressof(_buffer)

_libraries: dict[str | None, _Library] = {}


class TlsSession:
    """A TLS connection, first shared with Apache, then our own.

    ``share`` makes one; ``release`` or ``close`` ends it.
    """

    buffers_input: ClassVar = True
    __slots__ = ("_has_ended", "_is_drained", "_library", "_socket", "_ssl", "needs_writing")

    def __init__(self, library: _Library, ssl: int) -> None:
        self._library = library
        self._ssl = ssl
        self._socket: socket.socket | None = None
        self._has_ended = False  # recv() has met the end
        self._is_drained = False  # recv() has taken what is there, but for a part of a record
        self.needs_writing = False  # recv() waits until the socket can be written

    @classmethod
    def share(cls, ssl: int, connection: int, mod_ssl_path: str | None) -> TlsSession:
        """Take a reference to mod_ssl's ``SSL``.

        Args:
            ssl: address of the ``SSL``, read from mod_ssl's record.
            connection: address of the ``conn_rec`` it must belong to.
            mod_ssl_path: the file of mod_ssl, which is linked with the libssl to use; None if
                mod_ssl is linked into httpd.

        Raises:
            TlsError: the libssl is too old, or the ``SSL`` does not belong to
                the connection.  Nothing was changed.
        """
        library = _libraries.get(mod_ssl_path)
        if library is None:
            library = _libraries[mod_ssl_path] = _Library(mod_ssl_path)
        owner = library.SSL_get_ex_data(ssl, _APP_DATA)
        if owner != connection:
            raise TlsError("the SSL of mod_ssl's record does not belong to this connection")
        if not library.SSL_up_ref(ssl):
            raise TlsError("SSL_up_ref failed")
        return cls(library, ssl)

    def has_pending(self) -> bool:
        """Tell whether ``recv`` has something that the descriptor does not show."""
        if not self._ssl:
            return False
        if self._has_ended:
            return True
        # Of a record that has not all arrived SSL_has_pending says yes; the rest of it will
        # show at the descriptor.
        return not self._is_drained and bool(self._library.SSL_has_pending(self._ssl))

    def set_quiet(self, is_quiet: bool) -> None:
        """Let a shutdown by Apache pass without a word to the client, or not."""
        self._library.SSL_set_quiet_shutdown(self._ssl, int(is_quiet))

    def take_over(self, sock: socket.socket) -> None:
        """Move the session from Apache's filters to a socket, and own that.

        Args:
            sock: a duplicate of the client's, non-blocking.

        Raises:
            TlsError: OpenSSL had no memory; the session is of no use any more.
        """
        library, ssl = self._library, self._ssl
        library.SSL_set_ex_data(ssl, _APP_DATA, None)  # mod_ssl's callbacks return on NULL
        library.SSL_set_shutdown(ssl, 0)
        library.SSL_set_quiet_shutdown(ssl, 0)
        library.SSL_set_options(ssl, SSL_OP_NO_RENEGOTIATION)
        library.SSL_ctrl(
            ssl,
            SSL_CTRL_MODE,
            SSL_MODE_ENABLE_PARTIAL_WRITE
            | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER
            | SSL_MODE_RELEASE_BUFFERS,
            None,
        )
        # A record's head and body in one read of the socket.  (Whatever else that takes
        # shows in SSL_has_pending.)
        library.SSL_set_read_ahead(ssl, 1)
        if not library.SSL_set_fd(ssl, sock.fileno()):
            raise TlsError("SSL_set_fd failed")
        self._socket = sock

    def fileno(self) -> int:
        """Return the socket's descriptor, -1 before ``take_over`` and after ``close``."""
        return -1 if self._socket is None else self._socket.fileno()

    def forget_cache(self) -> None:
        """Never take the session out of mod_ssl's cache: this process was forked.

        The cache is shared memory, and the lock that guards it is not this process's
        any more.  A session without an id is in no cache.
        """
        if self._ssl:
            session = self._library.SSL_get_session(self._ssl)
            if session:
                self._library.SSL_SESSION_set1_id(session, b"", 0)

    def recv(self, max_bytes: int) -> bytes | None:
        """Return received bytes, b"" at the end of file, None if nothing has arrived.

        A connection that breaks off, in whatever way, ends: b"".

        Args:
            max_bytes: at most so many, and ``READ_BYTES``.  SSL_read gives at most one
                TLS record, 16 KiB; several are gathered.
        """
        library, ssl = self._library, self._ssl
        if not ssl or self._has_ended:
            return b""
        size, end = 0, min(max_bytes, READ_BYTES)
        while size < end:
            library.ERR_clear_error()
            count = library.SSL_read(ssl, _buffer_at + size, min(RECORD_BYTES, end - size))
            if count <= 0:
                error = library.SSL_get_error(ssl, count)
                # TLS 1.3: the answer to a client's KeyUpdate does not fit into the
                # socket, and nothing is read before it does.
                self.needs_writing = error == SSL_ERROR_WANT_WRITE
                self._is_drained = error == SSL_ERROR_WANT_READ
                if not self.needs_writing and error != SSL_ERROR_WANT_READ:
                    self._has_ended = True
                    if not size:
                        return b""
                break
            self.needs_writing = self._is_drained = False
            size += count
            if count < RECORD_BYTES:
                # A client that sends much fills its records.  After a small record another
                # call would mostly be a wasted system call.
                break
        return _buffer[:size] if size else None  # type: ignore[return-value]  # chars are bytes

    def send(self, data: bytes | memoryview) -> int:
        """Send some of the bytes; return how many, 0 where the socket is full.

        What was not taken must be offered again, first and unchanged.

        Raises:
            ConnectionError: the connection is gone.
        """
        if not self._ssl:
            raise ConnectionAbortedError("the TLS connection is closed")
        if len(data) <= RECORD_BYTES:
            return self._write(data)
        # Several records go to the client as one, as a plain connection's bytes do.
        self._set_option(socket.TCP_CORK, 1)
        try:
            return self._write(data)
        finally:
            self._set_option(socket.TCP_CORK, 0)

    def sender(self) -> Callable[[bytes], int]:
        """See ``Transport``."""
        return self.send

    def _write(self, data: bytes | memoryview) -> int:
        library, ssl = self._library, self._ssl
        sent, length = 0, len(data)
        while sent < length:
            record = bytes(data[sent : sent + RECORD_BYTES])
            library.ERR_clear_error()
            count = library.SSL_write(ssl, record, len(record))
            if count <= 0:
                if library.SSL_get_error(ssl, count) == SSL_ERROR_WANT_WRITE:
                    break
                raise ConnectionAbortedError("the TLS connection is gone")
            sent += count
        return sent

    def limit_unsent(self, size: int) -> None:
        """Let the kernel hold no more than so many bytes that it could not send yet."""
        self._set_option(socket.TCP_NOTSENT_LOWAT, size)

    def _set_option(self, option: int, value: int) -> None:
        """Set an option of TCP, tcp(7)."""
        if self._socket is not None:
            try:
                self._socket.setsockopt(socket.IPPROTO_TCP, option, value)
            except OSError:
                pass  # the connection is closed: the next read or write reports it

    def shutdown(self) -> None:
        """Say that nothing more will be sent: close_notify, then FIN."""
        if self._ssl:
            self._library.ERR_clear_error()
            self._library.SSL_shutdown(self._ssl)
        if self._socket is not None:
            try:
                self._socket.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # the client has gone first

    @property
    def library(self) -> _Library:
        """The libssl that has the session."""
        return self._library

    @property
    def address(self) -> int:
        """Address of the ``SSL``; 0 after ``close``."""
        return self._ssl

    def detach(self) -> None:
        """Leave the ``SSL`` and the socket to others, who own them from here on."""
        self._ssl = 0
        if self._socket is not None:
            self._socket.detach()
            self._socket = None

    def release(self) -> None:
        """Give the reference back, and leave the socket alone; again does nothing."""
        ssl, self._ssl = self._ssl, 0
        if ssl:
            self._library.SSL_free(ssl)

    def abandon(self) -> None:
        """Close the socket, and leave the session as it is: another process has both."""
        if self._socket is not None:
            self._socket.close()

    def close(self) -> None:
        """End the session and close the socket; again does nothing."""
        if self._ssl:
            # An SSL that was not shut down takes its session out of mod_ssl's
            # cache when it is freed, and its client could not resume it.
            self._library.SSL_set_shutdown(self._ssl, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN)
        self.release()
        if self._socket is not None:
            self._socket.close()
