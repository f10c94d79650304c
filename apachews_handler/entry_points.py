"""The entry points for mod_wsgi, which finds them in ``wsgi.py``.

``handle_request`` is for ``WSGIHandlerScript websocket …/wsgi.py``: with
``AddHandler websocket .ws`` Apache finds the socket file.  ``application`` is for
``WSGIScriptAlias /ws …/wsgi.py``: the rest of the path names the socket file below
``APACHEWS_ROOT``.  ``apachews_tools/httpd/apachews.conf`` has the directives.

Both answer a WebSocket request by ``handshake.recipe``, and any other request with plain HTTP.
Wiring only: the recipe knows the steps of a handshake, and this module knows mod_wsgi.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Protocol

from apachews.monitoring import refusals
from apachews_handler.exceptions import CheckFailed, Refusal
from apachews_handler.handshake import producer, recipe
from apachews_handler.lifecycle.child import the_child
from apachews_handler.native.httpd import Request
from apachews_handler.native.httpd_process import HttpdError

the_child.prepare()

Environ = dict[str, Any]
StartResponse = Callable[[str, list[tuple[str, str]]], Any]
# Makes httpd answer with a status of its own after the handler.  An argument and not a variable
# of the environment: SetEnv sets variables of any name.
Die = Callable[[int], None]


class Body(Protocol):
    """The body of an answer, which holds a place and a connection until it is closed."""

    def __iter__(self) -> Iterator[bytes]: ...

    def close(self) -> None: ...


class Answer(Protocol):
    """An answer of another server."""

    @property
    def status(self) -> str: ...

    @property
    def headers(self) -> list[tuple[str, str]]: ...

    @property
    def body(self) -> Body: ...


class JsonAnswer:
    """An answer in JSON that is complete, and holds nothing.

    Args:
        text: the JSON.
    """

    status: Final = "200 OK"

    def __init__(self, text: str) -> None:
        self._data = text.encode()
        self.headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(self._data))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
        ]

    @property
    def body(self) -> JsonAnswer:
        """The answer itself."""
        return self

    def __iter__(self) -> Iterator[bytes]:
        yield self._data

    def close(self) -> None:
        """Do nothing."""


def handle_request(
    environ: Environ, start_response: StartResponse, die: Die | None = None
) -> Iterable[bytes]:
    """Serve a socket file that Apache found itself.

    Args:
        die: of a host other than mod_wsgi.
    """
    return _serve(environ, start_response, producer.found_by_httpd, die)


def application(
    environ: Environ, start_response: StartResponse, die: Die | None = None
) -> Iterable[bytes]:
    """Serve the socket file that the path below the alias names.

    Args:
        die: of a host other than mod_wsgi.
    """
    return _serve(environ, start_response, producer.below_root, die)


def _serve(
    environ: Environ,
    start_response: StartResponse,
    find_endpoint: recipe.FindEndpoint,
    die: Die | None,
) -> Iterable[bytes]:
    def upgrade(request: Request, environ: Environ) -> None:
        recipe.upgrade(request, environ, find_endpoint)

    return serve(environ, start_response, upgrade, die)


def serve(
    environ: Environ,
    start_response: StartResponse,
    upgrade: Callable[[Request, Environ], Answer | None],
    die: Die | None = None,
    *,
    logged_uri: str | None = None,
) -> Iterable[bytes]:
    """Take the connection of a request, or answer the request with plain HTTP.

    Args:
        upgrade: takes the connection and returns None; or returns an answer of another server,
            which is passed on; or raises ``Refusal`` or ``HttpdError``.
        die: of a host other than mod_wsgi.
        logged_uri: stands for the request in the log; None: its URI.
    """
    if logged_uri is None:
        logged_uri = environ.get("REQUEST_URI", "")
    try:
        answer = upgrade(_httpd_request(environ), environ)
    except Refusal as refusal:
        return _answer(environ, start_response, refusal, die, logged_uri)
    except HttpdError as error:
        # The one place that translates it: every step of a recipe may raise it.
        failed = CheckFailed(error.check, error.found)
        return _answer(environ, start_response, failed, die, logged_uri)
    except Exception:
        fact = f"unexpected: {traceback.format_exc().rstrip()}"
        unexpected = Refusal(refusals.UNEXPECTED, fact)
        return _answer(environ, start_response, unexpected, die, logged_uri)
    if answer is not None:
        # The client may have sent frames already, which are not another request.  (Not
        # end_after_request: httpd would send no chunks then, and a body that ends early would
        # look whole.)
        try:
            start_response(answer.status, [*answer.headers, ("Connection", "close")])
        except BaseException:
            answer.body.close()  # mod_wsgi closes only what it gets
            raise
        return answer.body
    # Apache writes this to the descriptor that has taken the client's place.
    start_response("101 Switching Protocols", [("Upgrade", "websocket")])
    return []


def _httpd_request(environ: Environ) -> Request:
    """Return httpd's record of the request.

    Raises:
        Refusal: mod_wsgi runs this in a mode in which it cannot work; the log says which
            directive to change.
        HttpdError: the record is not what the code was written for.
    """
    if group := environ.get("mod_wsgi.process_group"):
        raise Refusal(
            refusals.HANDLER_MODE,
            f"mod_wsgi runs this in the daemon process {group!r}, which has no connections:"
            " add process-group=%{GLOBAL} to WSGIHandlerScript or WSGIScriptAlias",
        )
    if environ.get("mod_wsgi.application_group"):
        raise Refusal(
            refusals.HANDLER_MODE,
            "mod_wsgi runs this in a sub-interpreter:"
            " add application-group=%{GLOBAL} to WSGIHandlerScript or WSGIScriptAlias",
        )
    if "apache.request_rec" not in environ:
        raise Refusal(refusals.PASS_REQUEST)
    return Request.from_capsule(environ["apache.request_rec"])


def _answer(
    environ: Environ,
    start_response: StartResponse,
    refusal: Refusal,
    die: Die | None,
    logged_uri: str,
) -> Iterable[bytes]:
    """Answer with plain HTTP, and log one line with the client's address."""
    environ["wsgi.errors"].write(refusal.log_line(logged_uri) + "\n")
    if _leave_to_httpd(environ, refusal, die):
        start_response(refusal.status, [])
        return []
    body = refusal.body()
    own = {
        "Content-Type": "text/plain; charset=utf-8",
        "Content-Length": str(len(body)),
        "Cache-Control": "no-store",
    }
    for name, _ in refusal.headers:
        own.pop(name.title(), None)  # a producer's own header takes precedence
    start_response(refusal.status, [*own.items(), *refusal.headers])
    return [body]


def _leave_to_httpd(environ: Environ, refusal: Refusal, die: Die | None) -> bool:
    """Make httpd answer with the site's ErrorDocument; False if it has none for the status."""
    if not refusal.yields_to_error_document:
        return False
    try:
        request = _httpd_request(environ)
        status = int(refusal.status.split()[0])
        # The second: httpd serves an ErrorDocument already, and would not serve another one.
        if request.failed_with is not None or not request.has_error_document(status):
            return False
        for name, value in refusal.headers:
            request.add_error_header(name, value)
        (die or request.die_after_handler)(status)
    except (Refusal, HttpdError):
        return False  # the answer of this module and the log have the refusal itself
    return True
