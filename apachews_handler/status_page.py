"""The status page: an entry point for mod_wsgi, like Apache's own ``server-status``.

``application`` is for ``WSGIScriptAlias /websocket-status <this file>``, which only the
server's configuration can contain.  There is deliberately not a ``handle_request``: with
``WSGIHandlerScript`` the page would be a handler, and any .htaccess with ``SetHandler`` could
expose the users of all sites.  Apache controls the access (``Require``).  A request that an
.htaccess file led here is refused: its variables would satisfy a ``Require env``.

Without a query the answer is the page, which requests the figures itself and does not contain
data.  ``?json`` is an ``apachews.monitoring.snapshot.Status``, ``?metrics`` the same for
Prometheus.  Wiring only.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import re
import traceback
import urllib.parse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Final

from apachews.monitoring import refusals
from apachews.monitoring.collect import collect
from apachews.monitoring.snapshot import Status
from apachews_handler.exceptions import Refusal
from apachews_handler.handshake.upgrade import require_own_htaccess
from apachews_handler.monitoring import metrics
from apachews_handler.native.httpd import Request
from apachews_handler.shared import rundir, waiting

Environ = dict[str, Any]
StartResponse = Callable[[str, list[tuple[str, str]]], Any]

# Default for the number of connections that are listed, of all processes together.
LISTED: Final = 1000
MAX_LISTED: Final = 10_000
_NUMBER: Final = re.compile(r"\d{1,5}", re.ASCII)
_PAGE: Final = Path(__file__).with_name("status.html").read_bytes()


def _hash(tag: bytes) -> str:
    """Return the source expression of CSP for the content of an element of the page."""
    content = _PAGE.partition(b"<" + tag + b">")[2].partition(b"</" + tag + b">")[0]
    return f"'sha256-{base64.b64encode(hashlib.sha256(content).digest()).decode()}'"


# Only the page's own script and style run; nothing is loaded.
_POLICY: Final = (
    f"default-src 'none'; style-src {_hash(b'style')}; script-src {_hash(b'script')};"
    " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer with the page, or with its figures."""
    headers = [
        ("Cache-Control", "no-store"),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
    ]
    method = environ["REQUEST_METHOD"]
    if method not in ("GET", "HEAD"):
        status, kind = "405 Method Not Allowed", "text/plain; charset=utf-8"
        body = b"GET and HEAD only.\n"
        headers.append(("Allow", "GET, HEAD"))
    else:
        try:
            _require_own_htaccess(environ)
            status, kind, body = _answer(environ.get("QUERY_STRING", ""))
        except Refusal as error:
            environ["wsgi.errors"].write(
                f"apachews: the status cannot be collected: {error.logged}\n"
            )
            status, kind, body = error.status, "text/plain; charset=utf-8", error.body()
            headers += error.headers
        except OSError as error:
            status, kind, body = _failed(
                environ,
                f"{error.filename or rundir.NAME}: {error.strerror}; Apache's user must own that"
                " directory: remove it if it belongs to another user, or set TMPDIR for Apache",
            )
        except Exception:
            status, kind, body = _failed(environ, f"unexpected: {traceback.format_exc()}")
    if kind.startswith("text/html"):
        headers.append(("Content-Security-Policy", _POLICY))
    headers += [("Content-Type", kind), ("Content-Length", str(len(body)))]
    start_response(status, headers)
    return [] if method == "HEAD" else [body]


def _require_own_htaccess(environ: Environ) -> None:
    """Refuse a request that the author of an .htaccess file led here.

    Raises:
        Refusal: also if mod_wsgi does not pass httpd's record of the request.
        HttpdError: the record is not what the code was written for.
    """
    capsule = environ.get("apache.request_rec")
    if capsule is None:
        raise Refusal(refusals.PASS_REQUEST)
    require_own_htaccess(Request.from_capsule(capsule).foreign_htaccess)


def _failed(environ: Environ, problem: str) -> tuple[str, str, bytes]:
    """Log a problem; return status, type and body."""
    environ["wsgi.errors"].write(f"apachews: the status cannot be collected: {problem}\n")
    body = b"The status cannot be collected; the error log has the reason.\n"
    return "500 Internal Server Error", "text/plain; charset=utf-8", body


def _answer(query: str) -> tuple[str, str, bytes]:
    """Return status, type and body."""
    if not query:
        return "200 OK", "text/html; charset=utf-8", _PAGE
    wanted = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
    if wanted == {"metrics": ""}:
        text = metrics.to_text(_collect(0))
        return "200 OK", metrics.CONTENT_TYPE, text.encode()
    listed = wanted.pop("connections", str(LISTED))
    if wanted == {"json": ""} and _NUMBER.fullmatch(listed):
        number = min(int(listed), MAX_LISTED)
        status = _collect(number).limit_to(number)
        return "200 OK", "application/json", status.encode()
    body = (
        "Use the page (without a query), ?json, ?json&connections=NUMBER"
        f" (at most {MAX_LISTED}, default {LISTED}) or ?metrics.\n"
    )
    return "400 Bad Request", "text/plain; charset=utf-8", body.encode()


def _collect(listed: int) -> Status:
    directory = rundir.path()
    # Without the directory there are no processes to ask, and a slot would create it.
    with waiting.place_for_status() if os.path.exists(directory) else contextlib.nullcontext():
        return collect(directory, os.getppid(), listed=listed).with_relays()
