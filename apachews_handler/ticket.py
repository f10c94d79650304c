"""The page that gives tickets to logged-in users: an entry point for mod_wsgi.

``application`` is for ``WSGIScriptAlias /ticket <this file>``, which only the configuration of
the server can contain, with ``Require`` and ``SetEnv APACHEWS_TICKET_FOR`` in the location
(docs/howto/logins.md).  There is deliberately not a ``handle_request``: by the name of a handler
the author of an .htaccess file could make tickets for any user.

The answer is JSON, ``{"ticket": "…", "expires_in": 30}``.  Wiring only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from apachews.monitoring import refusals
from apachews_handler.entry_points import Environ, JsonAnswer, StartResponse, serve
from apachews_handler.exceptions import Refusal
from apachews_handler.handshake.origin import require_origin
from apachews_handler.handshake.ticket import issue
from apachews_handler.handshake.upgrade import require_no_error_document, require_own_htaccess
from apachews_handler.lifecycle.child import the_child
from apachews_handler.native.httpd import Request
from apachews_handler.settings import parse_settings
from apachews_handler.shared.tickets import LIFETIME_S


def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer with a ticket for the user of the request."""
    return serve(environ, start_response, _give)


def _give(request: Request, environ: Environ) -> JsonAnswer:
    settings = parse_settings(environ, the_child.definitions(request.definition))
    require_no_error_document(request.failed_with)
    require_own_htaccess(request.foreign_htaccess)
    if environ["REQUEST_METHOD"] not in ("GET", "POST"):
        raise Refusal(refusals.TICKET_METHOD, headers=(("Allow", "GET, POST"),))
    # A page of another site must not read the answer, whatever CORS headers the site sends.
    require_origin(environ, settings)
    ticket = issue(environ, settings)
    return JsonAnswer(json.dumps({"ticket": ticket, "expires_in": int(LIFETIME_S)}))
