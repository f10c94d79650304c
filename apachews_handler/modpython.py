"""The handler in mod_python: another host for the same program.

``handler`` is for ``AddHandler mod_python .ws`` and ``PythonHandler
apachews_handler.modpython``, ``application`` for a ``<Location>`` whose rest of the URL names a
socket of ``APACHEWS_ROOT``, ``status`` for the status page;
``apachews_tools/httpd/modpython.conf`` has the directives.

How this works: mod_python passes its own request object, which has httpd's ``request_rec`` in a
capsule.  The variables of the request, and the headers of the response, go through httpd's
own tables and not through mod_python's: mod_python ends the process if a client sends bytes that
are not UTF-8.  This module makes the same environment of them as mod_wsgi does, and calls
``entry_points``.  Wiring only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Final, Protocol

from mod_python import apache

from apachews.monitoring import refusals
from apachews_handler.native.httpd import ErrorLog, Request

from . import entry_points, status_page
from .exceptions import Refusal
from .lifecycle.child import the_child

MAIN_INTERPRETER: Final = "main_interpreter"

_Application = Callable[
    [entry_points.Environ, entry_points.StartResponse, entry_points.Die], Iterable[bytes]
]


class _ModPythonRequest(Protocol):
    """The members of mod_python's request that this module uses."""

    _request_rec: object
    content_type: str
    headers_out: MutableMapping[str, str]
    interpreter: str
    status: int
    unparsed_uri: str

    def get_options(self) -> Mapping[str, str]: ...

    def set_content_length(self, length: int) -> None: ...

    def log_error(self, message: str, level: int) -> None: ...

    def write(self, data: bytes) -> None: ...


def handler(req: _ModPythonRequest) -> int:
    """Serve a socket file that Apache found itself."""
    return _run(req, entry_points.handle_request)


def application(req: _ModPythonRequest) -> int:
    """Serve the socket file that the path below ``PythonOption apachews.prefix`` names."""

    def serve(
        environ: entry_points.Environ,
        start_response: entry_points.StartResponse,
        die: entry_points.Die,
    ) -> Iterable[bytes]:
        options = req.get_options()
        prefix = options["apachews.prefix"].rstrip("/") if "apachews.prefix" in options else ""
        path = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
        if path.startswith(f"{prefix}/"):
            environ["PATH_INFO"] = path[len(prefix) :]
        return entry_points.application(environ, start_response, die)

    return _run(req, serve)


def status(req: _ModPythonRequest) -> int:
    """Answer with the status page."""
    return _run(
        req, lambda environ, start_response, die: status_page.application(environ, start_response)
    )


class _Errors:
    """``wsgi.errors``: lines for the error log, with the client's address."""

    def __init__(self, log: ErrorLog, client: str) -> None:
        self._log = log
        self._client = client

    def write(self, text: str) -> None:
        for line in text.splitlines():
            self._log.write("error", f"[client {self._client}] {line}")


def _run(req: _ModPythonRequest, application: _Application) -> int:
    if req.interpreter != MAIN_INTERPRETER:
        # mod_python's own API only: ctypes does not work in a sub-interpreter.
        refusal = Refusal(
            refusals.HANDLER_MODE,
            f"mod_python runs this in the interpreter {req.interpreter!r}:"
            " add PythonInterpreter main_interpreter",
        )
        try:
            uri = req.unparsed_uri
        except UnicodeDecodeError:
            uri = "a URI that is not UTF-8"
        req.log_error(refusal.log_line(uri), apache.APLOG_ERR)
        req.status = int(refusal.status.split()[0])
        req.content_type = "text/plain; charset=utf-8"
        for name, value in refusal.headers:
            req.headers_out[name] = value
        req.set_content_length(len(refusal.body()))
        req.write(refusal.body())
        return int(apache.OK)
    request = Request.from_capsule(req._request_rec)
    variables = request.variables()
    address, port = request.client_address()
    client = f"{address}:{port}" if port else address
    died: list[int] = []
    environ: entry_points.Environ = {
        **variables,
        "wsgi.url_scheme": "https" if request.is_tls else "http",
        "wsgi.errors": _Errors(request.error_log(), client),
        "apache.request_rec": req._request_rec,
    }

    def start_response(line: str, headers: list[tuple[str, str]]) -> None:
        if died:
            return
        req.status = int(line.split()[0])
        for name, value in headers:
            request.add_response_header(name, value)

    _warn_once(request)
    for piece in application(environ, start_response, died.append):
        try:
            req.write(piece)
        except OSError:
            pass  # the client has left; the access log has its line
    # httpd answers with its ErrorDocument.
    return died[0] if died else int(apache.OK)


def _prepare() -> None:
    """Register for the child's end, if its workers have not started yet."""
    if threading.current_thread() is not threading.main_thread():
        return
    # (wsgi has called prepare().)
    the_child.end_is_called_by_host()
    apache.register_cleanup(the_child.end)


def _warn_once(request: Request) -> None:
    global _has_warned
    if not the_child.is_prepared() and not _has_warned:
        _has_warned = True
        request.error_log().write(
            "warn",
            "a reload of Apache will drop the WebSockets of this child: add"
            " PythonImport apachews_handler.modpython main_interpreter",
        )


_has_warned = False
_prepare()
