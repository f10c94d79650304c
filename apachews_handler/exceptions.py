"""Everything the handler raises of its own.

::

    HandlerError
     +-- Refusal            an HTTP answer instead of the 101: a row of the table, and a fact
     |    +-- BadSetting     500: a SetEnv or Define has a value that is not allowed
     |    +-- Rejected       the producer rejects the connection, with a status of its own
     |    +-- Http11Required 403: a WebSocket over HTTP/2, which HTTP/1.1 can carry
     |    +-- CheckFailed    500: httpd or OpenSSL is not what the code was written for
     |    +-- ClientGone     400: the client left during the handshake; nothing reads the answer

``apachews.monitoring.refusals`` has the table: status, body, token and remedy of each refusal.
``wsgi`` makes an answer and a log line of a refusal.  A violation of the protocol by a peer is a
value, ``apachews.wire.Violation``, and not an exception.
"""

from __future__ import annotations

import http
from typing import Final

from apachews.monitoring import refusals
from apachews.monitoring.refusals import Reason

# Seconds that a producer, or a child of Apache, needs to start again.
RETRY_AFTER_S: Final = 5


class HandlerError(Exception):
    """Base of everything the handler raises of its own."""


class Refusal(HandlerError):
    """The request is answered with plain HTTP.

    Args:
        reason: row of the table of refusals.
        fact: what the log says of this case, with paths, users and values; None: the meaning
            that the table has.
        headers: more response headers.
        status: HTTP status, for a row without one.

    Attributes:
        status: code and phrase, as ``404 Not Found``.
        told: body of the answer: what the client may know.
        logged: what the log says: the fact and the remedy.
        headers: response headers, with the token.
        yields_to_error_document: whether the site's ErrorDocument for the status replaces
            the body.
    """

    yields_to_error_document = True

    def __init__(
        self,
        reason: Reason,
        fact: str | None = None,
        headers: tuple[tuple[str, str], ...] = (),
        status: int = 0,
    ) -> None:
        code = reason.status or status
        super().__init__(reason, fact, code)
        self.reason = reason
        self.status = f"{code} {_phrase(code)}"
        self.told = reason.body
        self.logged = f"{fact or reason.meaning}; {reason.remedy}"
        self.headers = ((refusals.HEADER, reason.token), *headers)
        if code == http.HTTPStatus.SERVICE_UNAVAILABLE:
            self.headers += (("Retry-After", str(RETRY_AFTER_S)),)

    def __str__(self) -> str:
        return f"{self.status} ({self.reason.token}): {self.logged}"

    def body(self) -> bytes:
        """Return the body of the answer."""
        return f"{self.told}\n".encode()

    def log_line(self, uri: str) -> str:
        """Return the line for the error log, whose token the tools look for.

        Args:
            uri: of the request; its first 200 characters are logged.
        """
        return f"apachews: {self.status[:3]} {self.reason.token} for {uri[:200]}: {self.logged}"


class Rejected(Refusal):
    """The producer rejects the connection.

    Args:
        status: HTTP status, 300 to 599.
        headers: of the producer's ANSWER.
        body: of the producer's ANSWER.
    """

    yields_to_error_document = False  # as with a server behind mod_proxy

    def __init__(self, status: int, headers: tuple[tuple[str, str], ...], body: str) -> None:
        # A producer cannot pretend that the handler refused.
        own = tuple(header for header in headers if header[0].title() != refusals.HEADER)
        super().__init__(refusals.PRODUCER, status=status)
        self.headers = ((refusals.HEADER, refusals.PRODUCER.token), *own)
        self.told = body

    def body(self) -> bytes:
        """Return the body of the answer: the producer's, unchanged."""
        return self.told.encode(errors="replace")


class Http11Required(Refusal):
    """A WebSocket over HTTP/2.

    The status is 403, the only one that mod_http2 turns into HTTP_1_1_REQUIRED
    (``httpd.Request.require_http_1_1``).
    """

    yields_to_error_document = False

    def __init__(self) -> None:
        super().__init__(refusals.HTTP2)


class BadSetting(Refusal):
    """A setting has a value that is not allowed.

    Args:
        directive: the one that set it, ``SetEnv`` or ``Define``.

    Attributes:
        name, value: of the variable.
        allowed: which values it can have.
    """

    def __init__(self, name: str, value: str, allowed: str, directive: str = "SetEnv") -> None:
        fact = f"{directive} {name} {value!r:.100} is not allowed: use {allowed}"
        super().__init__(refusals.SETTINGS, fact)
        self.name = name
        self.value = value
        self.allowed = allowed


class CheckFailed(Refusal):
    """A premise about httpd or OpenSSL does not hold; the connection was left alone.

    Attributes:
        check: the premise.
        found: what was found instead.
    """

    def __init__(self, check: str, found: str) -> None:
        super().__init__(refusals.CHECK_FAILED, f"check failed: {check}; found {found}")
        self.check = check
        self.found = found


class ClientGone(Refusal):
    """The client closed the connection during the handshake; the access log has its line."""

    def __init__(self) -> None:
        super().__init__(refusals.CLIENT_LEFT)


def no_descriptors(error: OSError) -> Refusal:
    """Return the refusal if the process cannot make another socket."""
    return Refusal(
        refusals.NO_DESCRIPTORS, f"no file descriptor for another WebSocket ({error.strerror})"
    )


def _phrase(status: int) -> str:
    try:
        return http.HTTPStatus(status).phrase
    except ValueError:
        return "Refused"  # a producer can choose any status
