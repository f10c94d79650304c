"""The entry point of tunnels, for mod_wsgi: the other end is a WebSocket server already.

``application`` is for ``WSGIScriptAlias /app <this file>``, with ``SetEnv APACHEWS_BACKEND`` in the
location (docs/howto/tunnel.md).  Only the configuration of the server has that directive.
``handle_request``, which WSGIHandlerScript would call, refuses: the name of a handler would let
the author of an .htaccess file reach any address that Apache can.

Wiring only: ``backend.recipe`` knows the steps of the handshake.
"""

from __future__ import annotations

from collections.abc import Iterable

from apachews.monitoring import refusals
from apachews_handler.backend import recipe
from apachews_handler.entry_points import Environ, StartResponse, serve
from apachews_handler.exceptions import Refusal
from apachews_handler.native.httpd import Request


def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Serve a WebSocket of the backend of the location."""
    return serve(
        environ,
        start_response,
        recipe.open_tunnel,
        logged_uri=recipe.logged_uri(environ),
    )


def handle_request(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Refuse."""
    return serve(environ, start_response, _refuse, logged_uri=recipe.logged_uri(environ))


def _refuse(request: Request, environ: Environ) -> None:
    raise Refusal(refusals.TUNNEL_HANDLER)
