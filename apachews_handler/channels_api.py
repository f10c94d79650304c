"""The HTTP API of channels, for programs on other machines: an entry point for mod_wsgi.

``application`` is for ``WSGIScriptAlias /live/api <this file>``, with ``Require`` and ``SetEnv
APACHEWS_API_FOR`` in the location (docs/howto/channels.md).  The producer checks the key.

There is deliberately not a ``handle_request``: the name of a handler would let the author of an
.htaccess file reach any producer of the machine.  Wiring only.
"""

from __future__ import annotations

from collections.abc import Iterable

from apachews_handler.entry_points import Environ, JsonAnswer, StartResponse, serve
from apachews_handler.handshake import api_request
from apachews_handler.handshake.upgrade import require_no_error_document, require_own_htaccess
from apachews_handler.lifecycle.child import the_child
from apachews_handler.native.httpd import Request
from apachews_handler.settings import parse_settings


def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Pass a request of the API on, and answer with what the producer says."""
    return serve(environ, start_response, _pass_on)


def _pass_on(request: Request, environ: Environ) -> JsonAnswer:
    settings = parse_settings(environ, the_child.definitions(request.definition))
    require_no_error_document(request.failed_with)
    require_own_htaccess(request.foreign_htaccess)
    return JsonAnswer(api_request.send(request, environ, settings))
