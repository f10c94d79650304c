"""The page that gives tickets to logged-in users: an entry point for mod_wsgi.

``application`` is for ``WSGIScriptAlias /ticket <this file>``, which only the configuration of
the server can contain, with ``Require`` and ``SetEnv APACHEWS_TICKET_FOR`` in the location
(docs/howto/logins.md).  There is deliberately not a ``handle_request``: by the name of a handler
the author of an .htaccess file could make tickets for any user.

The answer is JSON, ``{"ticket": "…", "expires_in": 30}``.  Wiring only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Final

from apachews.monitoring import refusals
from apachews_handler.entry_points import Environ, StartResponse, serve
from apachews_handler.exceptions import Refusal
from apachews_handler.handshake.origin import require_origin
from apachews_handler.handshake.ticket import issue
from apachews_handler.handshake.upgrade import require_no_error_document, require_own_htaccess
from apachews_handler.lifecycle.child import the_child
from apachews_handler.native.httpd import Request
from apachews_handler.settings import parse_settings
from apachews_handler.shared.tickets import LIFETIME_S


class _Ticket:
    """The answer with a ticket."""

    status: Final = "200 OK"

    def __init__(self, ticket: str) -> None:
        self._data = json.dumps({"ticket": ticket, "expires_in": int(LIFETIME_S)}).encode()
        self.headers = [
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(self._data))),
            ("Cache-Control", "no-store"),
            ("X-Content-Type-Options", "nosniff"),
        ]

    @property
    def body(self) -> _Ticket:
        return self

    def __iter__(self) -> Iterator[bytes]:
        yield self._data

    def close(self) -> None:
        """Do nothing: the answer holds no place."""


def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer with a ticket for the user of the request."""
    return serve(environ, start_response, _give)


def _give(request: Request, environ: Environ) -> _Ticket:
    settings = parse_settings(environ, the_child.definitions(request.definition))
    require_no_error_document(request.failed_with)
    require_own_htaccess(request.foreign_htaccess)
    if environ["REQUEST_METHOD"] not in ("GET", "POST"):
        raise Refusal(refusals.TICKET_METHOD, headers=(("Allow", "GET, POST"),))
    # A page of another site must not read the answer, whatever CORS headers the site sends.
    require_origin(environ, settings)
    return _Ticket(issue(environ, settings))
