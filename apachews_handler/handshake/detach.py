"""Taking a connection away from Apache: the worker is free, the client stays.

Contract: ``detach(request, head)`` writes the head of the 101 to the client and
returns the client's transport, which the caller owns and closes.  Raises before
anything was sent (``CheckFailed``, ``Refusal``: Apache can still answer), or
``ClientGone``.  On the request's thread.

How this works: Apache believes in a descriptor, not in a client.  The client's
socket is duplicated, the 101 goes out through Apache's own filters (and so
through mod_ssl), and then /dev/null is put in the place of Apache's descriptor.  Apache
writes its own response head into that and logs 101.  As it is not a socket there is nothing
to shut down, and nobody to wait for at the end: Apache closes it, and the worker goes back
to its pool.

With TLS, mod_ssl must let go first, without a word to the client: a quiet
shutdown, and the bucket that ends a connection (``flush_connection``).  Its
pointer reads NULL afterwards; the session lives on by the reference taken before.

The order matters: whatever can fail (descriptors above all) comes before the
first byte, because after it no HTTP answer is possible.

The road not taken: one end of a socket pair in that place.  Apache shuts that down and
lingers on it as with any client, and the other end must be kept until then: some twenty
system calls more, and a second worker, for every handshake (bench/run --profile --case
handshakes has them counted).
"""

from __future__ import annotations

import os
import socket
import threading

from apachews import wire
from apachews_handler.bridge.transport import PlainTransport, Transport
from apachews_handler.endpoints.endpoint import OUT_OF_RESOURCES, out_of_descriptors
from apachews_handler.exceptions import CheckFailed, ClientGone, Refusal, Unavailable
from apachews_handler.native import httpd, openssl, syscalls
from apachews_handler.native.httpd_process import HttpdError

_NON_BLOCKING = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
# Multipath TCP (RFC 8684) is to its user what TCP is.
_STREAMS = frozenset((socket.IPPROTO_TCP, socket.IPPROTO_MPTCP))
# mod_ssl's names of what ``tls_facts`` returns.
_TLS_VARIABLES = (
    b"SSL_PROTOCOL",
    b"SSL_CIPHER",
    b"SSL_TLS_SNI",
    b"SSL_CLIENT_VERIFY",
    b"SSL_CLIENT_S_DN",
)


def local_address(request: httpd.Request) -> tuple[str, int]:
    """Return address and port of Apache that the client is connected to.

    Raises:
        CheckFailed: the connection has none.
    """
    try:
        host, port = request.local_address()
    except HttpdError as error:
        raise CheckFailed(error.check, error.found) from error
    # An IPv4 client of a socket that listens on both is ::ffff:192.0.2.1.
    return host.removeprefix("::ffff:"), port


def client_address(request: httpd.Request) -> tuple[str, int]:
    """Return address and port of the client; port 0 if only its address is known.

    Raises:
        CheckFailed: the connection has none.
    """
    try:
        return request.client_address()
    except HttpdError as error:
        raise CheckFailed(error.check, error.found) from error


def tls_facts(request: httpd.Request) -> wire.TLS | None:
    """Return how the request's connection is encrypted, None where it is not.

    Raises:
        CheckFailed: what mod_ssl has of it is not to be read.
    """
    try:
        if not request.is_tls:
            return None
        version, cipher, server_name, verified, subject = map(request.ssl_variable, _TLS_VARIABLES)
    except HttpdError as error:
        raise CheckFailed(error.check, error.found) from error
    return wire.TLS(
        version or "", cipher or "", server_name, subject if verified == "SUCCESS" else None
    )


def detach(request: httpd.Request, head: bytes) -> Transport:
    """Answer a request with the 101 and take its connection.

    Args:
        request: the request, checked by ``httpd.Request.from_capsule``.
        head: the 101 response's head.

    Raises:
        Refusal: the client sent more than the request (400), or there is no
            descriptor left (503).  Nothing was sent.
        CheckFailed: a premise about httpd or OpenSSL does not hold.  Nothing was
            sent, or, for the one check that can only be made afterwards, Apache
            will close the connection.
        ClientGone: the client is gone; Apache will close the connection.
    """
    try:
        return _detach(request, head)
    except HttpdError as error:
        raise CheckFailed(error.check, error.found) from error
    except openssl.TlsError as error:
        raise CheckFailed("OpenSSL does as mod_ssl needs", str(error)) from error
    except httpd.WriteFailed as error:
        request.abandon()
        raise ClientGone from error


def _detach(request: httpd.Request, head: bytes) -> Transport:
    if request.is_secondary:
        raise CheckFailed("the connection is HTTP/1.1", "a stream of HTTP/2")
    descriptor = request.client_socket()
    sink = _sink()
    client = session = None
    try:
        if request.is_tls:
            session = _share_session(request)
        if request.has_early_data() or (session and session.has_pending()):
            raise Refusal(
                "400 Bad Request",
                "Send nothing before the 101.",
                "the client sent data before it had the 101 (RFC 6455 4.1)",
            )
        client = _duplicate(descriptor)
        request.write(head)
        # From here on there is no HTTP answer, only success or an end.
        try:
            if session:
                session.set_quiet(True)
                request.flush_connection()
                if request.ssl_address():
                    raise CheckFailed("mod_ssl lets go of the connection", "it still has its SSL")
                session.take_over(client)
            syscalls.dup2(sink, descriptor)
        except BaseException:
            request.abandon()
            raise
    except BaseException:
        if client:
            client.close()
        if session:
            session.release()
        raise
    request.end_after_request()
    return session or PlainTransport(client)


def _share_session(request: httpd.Request) -> openssl.TlsSession:
    ssl = request.ssl_address()
    if not ssl:
        raise CheckFailed("mod_ssl encrypts the connection", "no SSL in its record")
    return openssl.TlsSession.share(ssl, request.connection_address, request.mod_ssl_path())


def _duplicate(descriptor: int) -> socket.socket:
    """Return the client's socket, which the caller closes."""
    try:
        fd = syscalls.dup(descriptor)
    except OSError as error:
        raise Unavailable(out_of_descriptors(error)) from error
    try:
        # (setblocking() lets go of the GIL.)
        syscalls.set_nonblocking(fd)
        client = socket.socket(type=_NON_BLOCKING, fileno=fd)
    except OSError as error:
        os.close(fd)
        raise CheckFailed("the connection is a socket", f"{error.strerror}") from error
    if client.proto not in _STREAMS:
        client.close()
        raise CheckFailed("the connection is TCP", f"{client.family!r}, protocol {client.proto}")
    return client


def _sink() -> int:
    """Return the descriptor of what takes the clients' places, open as long as the child lives.

    Raises:
        Refusal: there is no descriptor left.
        CheckFailed: /dev/null cannot be opened, in a chroot say.
    """
    global _sink_fd
    if _sink_fd == -1:
        with _sink_lock:
            if _sink_fd == -1:
                try:
                    _sink_fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                except OSError as error:
                    if error.errno in OUT_OF_RESOURCES:
                        raise Unavailable(out_of_descriptors(error)) from error
                    raise CheckFailed(f"{os.devnull} can be opened", f"{error.strerror}") from error
    return _sink_fd


_sink_fd = -1
_sink_lock = threading.Lock()
