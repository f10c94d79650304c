"""Everything the handler raises of its own.

::

    HandlerError
     +-- Refusal         an HTTP answer instead of the 101: status, what to log
     |    +-- NotSetUp   500: the owner of the site must change something
     |    |    +-- BadSetting a SetEnv variable has a value that is not allowed
     |    +-- Unavailable     503 with Retry-After: it may work in a moment
     |    +-- Rejected        the producer refuses, with a status of its own
     |    +-- Http11Required  403: a WebSocket over HTTP/2, which HTTP/1.1 can carry
     +-- CheckFailed     httpd or OpenSSL is not what the code was written for: 500
     +-- ClientGone      the client left during the handshake: nobody to answer

``wsgi`` turns refusals and failed checks into answers and log lines.  What a peer does wrong on
an open connection is a value, ``apachews.wire.Violation``, and not an exception.
"""

from __future__ import annotations

import http

# What a producer, or a child of Apache, needs to come back.
RETRY_AFTER_S = 5


class HandlerError(Exception):
    """Base of everything the handler raises of its own."""


class Refusal(HandlerError):
    """The request is answered with plain HTTP.

    Attributes:
        status: code and phrase, as ``404 Not Found``.
        told: what the client may know; the body.
        logged: what the log says, with what to do about it.
        headers: further response headers.
        yields_to_error_document: whether the site's ErrorDocument for the status replaces
            the body.
    """

    yields_to_error_document = True

    def __init__(
        self, status: str, told: str, logged: str = "", headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(status, told, logged)
        self.status = status
        self.told = told
        self.logged = logged or told
        self.headers = headers

    def __str__(self) -> str:
        return f"{self.status}: {self.logged}"

    def body(self) -> bytes:
        """Return the body of the answer."""
        return f"{self.told}\n".encode()


class NotSetUp(Refusal):
    """The owner of the site must change something; the client is not told what."""

    def __init__(self, logged: str) -> None:
        super().__init__(
            "500 Internal Server Error", "The WebSocket is not set up correctly.", logged
        )


class Unavailable(Refusal):
    """It may work in a moment."""

    def __init__(self, logged: str) -> None:
        super().__init__(
            "503 Service Unavailable",
            "The WebSocket is not available at the moment.",
            logged,
            (("Retry-After", str(RETRY_AFTER_S)),),
        )


class Rejected(Refusal):
    """The producer does not want the connection.

    Args:
        status: HTTP status, 300 to 599.
        headers: its own.
        body: its own.
    """

    yields_to_error_document = False  # as with a server behind mod_proxy

    def __init__(self, status: int, headers: tuple[tuple[str, str], ...], body: str) -> None:
        try:
            phrase = http.HTTPStatus(status).phrase
        except ValueError:
            phrase = "Refused"
        super().__init__(f"{status} {phrase}", body, "the producer refuses the connection", headers)

    def body(self) -> bytes:
        """Return the body of the answer: the producer's, as it is."""
        return self.told.encode(errors="replace")


class Http11Required(Refusal):
    """A WebSocket over HTTP/2.

    The status is 403, the only one that mod_http2 turns into HTTP_1_1_REQUIRED
    (``httpd.Request.require_http_1_1``).
    """

    yields_to_error_document = False

    def __init__(self) -> None:
        super().__init__(
            "403 Forbidden",
            "WebSockets over HTTP/2 are not supported; connect with HTTP/1.1.",
            "a WebSocket over HTTP/2: keep H2WebSockets off",
        )


class BadSetting(NotSetUp):
    """A setting has a value that is not allowed.

    Attributes:
        name, value: the variable.
        allowed: what it may be.

    Args:
        directive: that which has set it, ``SetEnv`` or ``Define``.
    """

    def __init__(self, name: str, value: str, allowed: str, directive: str = "SetEnv") -> None:
        super().__init__(f"{directive} {name} {value!r:.100} is not allowed: use {allowed}")
        self.name = name
        self.value = value
        self.allowed = allowed


class CheckFailed(HandlerError):
    """A premise about httpd or OpenSSL does not hold; the connection was left alone.

    Attributes:
        check: which premise.
        found: what was found instead.
    """

    def __init__(self, check: str, found: str) -> None:
        super().__init__(check, found)
        self.check = check
        self.found = found

    def __str__(self) -> str:
        return f"check failed: {self.check}; found {self.found}"


class ClientGone(HandlerError):
    """The client closed the connection during the handshake."""

    def __str__(self) -> str:
        return "the client left during the handshake"
