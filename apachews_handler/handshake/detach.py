"""Taking a connection away from Apache: the worker is free, the client stays.

Contract: ``detach(request, head)`` writes the head of the 101 to the client and
returns the client's transport, which the caller owns and closes.  It raises before
anything was sent (``CheckFailed``, ``Refusal``, ``HttpdError``: Apache can still answer), or
``ClientGone``.  On the request's thread.

How this works: Apache knows a file descriptor, not a client.  The client's
socket is duplicated, the 101 goes out through Apache's own filters (and so
through mod_ssl), and then /dev/null replaces the socket in Apache's descriptor.  Apache
writes its own response head into that and logs 101.  /dev/null is not a socket, so Apache has
nothing to shut down and does not linger: it closes the descriptor, and the worker goes back
to its pool.

With TLS, mod_ssl must release the session first and send nothing to the client: a quiet
shutdown, and the bucket that ends a connection (``flush_connection``).  Its
pointer reads NULL afterwards; the reference that was taken before keeps the session.

The order matters: whatever can fail (descriptors above all) comes before the
first byte, because after it an HTTP answer is not possible.

Roads not taken: one end of a socket pair instead of /dev/null.  Apache shuts that down and
lingers on it as with any client, and the other end must be kept until then: some twenty
system calls more, and a second worker, for every handshake (bench/run --profile --case
handshakes counts them).
"""

from __future__ import annotations

import os
import socket
import threading

from apachews._listening.endpoint import OUT_OF_RESOURCES
from apachews.monitoring import refusals
from apachews_handler.bridge.transport import PlainTransport, Transport
from apachews_handler.exceptions import CheckFailed, ClientGone, Refusal, no_descriptors
from apachews_handler.native import httpd, openssl, syscalls

_NON_BLOCKING = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
# A program uses Multipath TCP (RFC 8684) exactly as TCP.
_STREAMS = frozenset((socket.IPPROTO_TCP, socket.IPPROTO_MPTCP))


def detach(request: httpd.Request, head: bytes) -> Transport:
    """Answer a request with the 101 and take its connection.

    Args:
        request: the request, checked by ``httpd.Request.from_capsule``.
        head: the 101 response's head.

    Raises:
        Refusal: the client sent more than the request (400), or the process has no
            descriptor left (503).  Nothing was sent.
        CheckFailed, HttpdError: a premise about httpd or OpenSSL does not hold.  Nothing was
            sent, or, for the one check that can only be made afterwards, Apache
            will close the connection.
        ClientGone: the client has closed; Apache will close the connection.
    """
    try:
        return _detach(request, head)
    except openssl.TlsError as error:
        raise CheckFailed("OpenSSL does as mod_ssl needs", str(error)) from error
    except httpd.WriteFailed as error:
        request.abandon()
        raise ClientGone from error


def _detach(request: httpd.Request, head: bytes) -> Transport:
    if request.is_secondary:
        # mod_http2 runs the request on a connection without a socket of its own.
        raise CheckFailed("the connection is HTTP/1.1", "a stream of HTTP/2")
    descriptor = request.client_socket()
    sink = _sink()  # before the first byte: opening it may fail
    client = session = None
    try:
        if request.is_tls:
            # A reference of our own: mod_ssl drops its reference below.
            session = _share_session(request)
        # Bytes that httpd or OpenSSL has read already would be lost with their buffers.
        if request.has_early_data() or (session and session.has_pending()):
            raise Refusal(refusals.EARLY_DATA)
        client = _duplicate(descriptor)
        request.write(head)
        # From here on an HTTP answer is not possible: success, or a closed connection.
        try:
            if session:
                # mod_ssl would send close_notify when it ends the session.
                session.set_quiet(True)
                request.flush_connection()
                # mod_ssl clears its pointer when it has released the session.
                if request.ssl_address():
                    raise CheckFailed("mod_ssl lets go of the connection", "it still has its SSL")
                session.take_over(client)
            # Apache's own descriptor refers to /dev/null now: its response head goes there.
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
    # No keep-alive: Apache closes /dev/null and frees the worker after this request.
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
        raise no_descriptors(error) from error
    try:
        # (setblocking() releases the GIL.)
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
    """Return the descriptor of /dev/null, open as long as the child lives.

    Raises:
        Refusal: the process has no descriptor left.
        CheckFailed: /dev/null cannot be opened, for example in a chroot.
    """
    global _sink_fd
    if _sink_fd == -1:
        with _sink_lock:
            if _sink_fd == -1:  # another worker may have opened it meanwhile
                try:
                    _sink_fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
                except OSError as error:
                    if error.errno in OUT_OF_RESOURCES:
                        raise no_descriptors(error) from error
                    raise CheckFailed(f"{os.devnull} can be opened", f"{error.strerror}") from error
    return _sink_fd


_sink_fd = -1
_sink_lock = threading.Lock()
