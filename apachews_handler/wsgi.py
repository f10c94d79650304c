"""The entry points for mod_wsgi.

``handle_request`` is for ``WSGIHandlerScript websocket <this file>``, where
``AddHandler websocket .ws`` makes Apache find the socket file; ``application`` is
for ``WSGIScriptAlias /ws <this file>``, where the rest of the path names it below
``APACHEWS_ROOT``.  ``apachews_tools/httpd/apachews.conf`` has the directives.

Both answer a WebSocket request by taking its connection and giving it to the
child's bridge, and anything else with plain HTTP.  Wiring only.
"""

from __future__ import annotations

import contextlib
import functools
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from apachews import wire
from apachews.wire.answer import Answer
from apachews_handler.bridge.connection import Connection, ConnectionInfo
from apachews_handler.endpoints import endpoint
from apachews_handler.exceptions import (
    CheckFailed,
    ClientGone,
    Http11Required,
    NotSetUp,
    Refusal,
    Rejected,
    Unavailable,
)
from apachews_handler.handshake.detach import client_address, detach, local_address, tls_facts
from apachews_handler.handshake.upgrade import Upgrade, describe, require_no_error_document
from apachews_handler.lifecycle import child
from apachews_handler.monitoring.close_log import CloseLine, Handshake
from apachews_handler.native import syscalls
from apachews_handler.native.httpd import HttpdError, Request, spare_workers
from apachews_handler.protocol import new_session
from apachews_handler.settings import Settings, parse_settings
from apachews_handler.shared import limits, waiting

child.prepare()

Environ = dict[str, Any]
StartResponse = Callable[[str, list[tuple[str, str]]], Any]
# Makes httpd answer with a status of its own after the handler.  Not in the environment, in
# which SetEnv puts any name.
Die = Callable[[int], None]


def handle_request(
    environ: Environ, start_response: StartResponse, die: Die | None = None
) -> Iterable[bytes]:
    """Serve a socket file that Apache found itself.

    Args:
        die: of a host other than mod_wsgi.
    """
    return _serve(environ, start_response, lambda settings: endpoint.script_filename(environ), die)


def application(
    environ: Environ, start_response: StartResponse, die: Die | None = None
) -> Iterable[bytes]:
    """Serve the socket file that the path below the alias names.

    Args:
        die: of a host other than mod_wsgi.
    """
    return _serve(
        environ,
        start_response,
        lambda settings: endpoint.locate(settings.root, environ.get("PATH_INFO", "")),
        die,
    )


def _serve(
    environ: Environ,
    start_response: StartResponse,
    locate: Callable[[Settings], str],
    die: Die | None,
) -> Iterable[bytes]:
    try:
        _upgrade(environ, locate)
    except Refusal as refusal:
        return _answer(environ, start_response, refusal, die)
    except ClientGone as gone:
        # Nobody reads the answer; the access log has its line.
        return _answer(environ, start_response, Refusal("400 Bad Request", str(gone)), die)
    except (CheckFailed, HttpdError) as error:
        failed = CheckFailed(error.check, error.found)
        return _answer(environ, start_response, NotSetUp(str(failed)), die)
    except Exception:
        unexpected = f"unexpected: {traceback.format_exc()}"
        return _answer(environ, start_response, NotSetUp(unexpected), die)
    # Apache writes this into what has taken the client's place.
    start_response("101 Switching Protocols", [("Upgrade", "websocket")])
    return []


def _upgrade(environ: Environ, locate: Callable[[Settings], str]) -> None:
    """Turn the request's connection into a WebSocket of the child's bridge."""
    request = _httpd_request(environ)
    settings = parse_settings(environ, child.definitions(request.definition))
    require_no_error_document(request.failed_with)
    try:
        upgrade = Upgrade.negotiate(environ, settings)
    except Http11Required:
        request.require_http_1_1()
        raise
    open_ = describe(
        environ,
        settings,
        upgrade,
        _new_id(),
        tls=tls_facts(request),
        remote=client_address(request),
        local=local_address(request),
    )
    log = request.error_log()
    bridge = child.bridge(request.pid_file, log)
    if not bridge.is_running:
        raise Unavailable(
            "this child of Apache is ending, or its bridge has failed with a traceback in this log"
        )
    path = locate(settings)
    with contextlib.ExitStack() as undo:
        admission = limits.admit(settings, open_.remote[0], path)
        undo.callback(admission.release)
        # Before the 101: a client that has it can rely on its producer.
        place = functools.partial(
            waiting.place, path, settings.max_waiting, spare_workers(), settings.connect_timeout
        )
        producer = endpoint.connect(
            path, settings.connect_timeout, settings.endpoint_directories, place
        )
        undo.callback(producer.close)
        if settings.accept == "producer":
            with place(endpoint.user_of(producer, path, settings.endpoint_directories)):
                answer, first_words = endpoint.ask(producer, open_, settings.connect_timeout)
            head, subprotocol = _accept(upgrade, settings, answer), answer.subprotocol
        else:
            subprotocol = open_.subprotocol
            head, first_words = upgrade.accept(settings, subprotocol), b""
        session = new_session(settings, upgrade.deflate)
        session.open(open_, is_told=settings.accept == "producer")
        if first_words:
            session.receive_producer(first_words)
        transport = detach(request, head)
        undo.callback(transport.close)
        connection = Connection(
            transport,
            producer,
            session,
            settings,
            path,
            f"[client {_client(open_)}] user={open_.user or '-'} {open_.uri[:200]}",
            log,
            admission if admission.is_counted else None,
            _about(open_, subprotocol),
            _close_line(settings, Handshake(environ, open_, subprotocol, path, time.time())),
        )
        bridge.adopt(connection)
        undo.pop_all()


def _client(open_: wire.Open) -> str:
    """Return the client's address for a line of the log, with its port if that is known."""
    address, port = open_.remote
    return f"{address}:{port}" if port else address


def _new_id() -> str:
    """Return a random UUID (RFC 9562 5.4), without the module of that name.

    That one imports ``platform``, which every child would keep.
    """
    data = bytearray(syscalls.urandom(16))
    data[6] = data[6] & 0x0F | 0x40
    data[8] = data[8] & 0x3F | 0x80
    text = data.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def _about(open_: wire.Open, subprotocol: str | None) -> ConnectionInfo:
    """Return what the status may say of a connection: no query, which may have secrets."""
    return ConnectionInfo(
        id=open_.id,
        path=open_.uri.partition("?")[0][:200],
        address=open_.remote[0],
        port=open_.remote[1],
        user=open_.user or "",
        scheme=open_.scheme,
        subprotocol=subprotocol or "",
    )


def _close_line(settings: Settings, handshake: Handshake) -> CloseLine | None:
    """Return the line for the log of closes, None where there is no such log."""
    return settings.close_log_format.begin(handshake) if settings.close_log else None


def _accept(upgrade: Upgrade, settings: Settings, answer: Answer) -> bytes:
    """Return the head of the 101, as the producer answered.

    Raises:
        Refusal: it refuses, with its own status; or 500, it chose a subprotocol
            that the client did not offer.
    """
    if not answer.accepts:
        raise Rejected(answer.status, answer.headers, answer.body)
    if answer.subprotocol is not None and answer.subprotocol not in upgrade.offered:
        raise NotSetUp(
            f"the producer chose the subprotocol {answer.subprotocol!r:.80},"
            f" which is none of those offered: {', '.join(upgrade.offered) or 'none'}"
        )
    return upgrade.accept(settings, answer.subprotocol, answer.headers)


def _httpd_request(environ: Environ) -> Request:
    """Return the request as httpd has it.

    Raises:
        Refusal: mod_wsgi runs this where it cannot work; the log says what to
            change.
    """
    if group := environ.get("mod_wsgi.process_group"):
        raise NotSetUp(
            f"mod_wsgi runs this in the daemon process {group!r}, which has no connections:"
            " add process-group=%{GLOBAL} to WSGIHandlerScript or WSGIScriptAlias",
        )
    if environ.get("mod_wsgi.application_group"):
        raise NotSetUp(
            "mod_wsgi runs this in a sub-interpreter:"
            " add application-group=%{GLOBAL} to WSGIHandlerScript or WSGIScriptAlias",
        )
    if "apache.request_rec" not in environ:
        raise NotSetUp(
            "mod_wsgi does not pass the request: add WSGIPassApacheRequest On",
        )
    return Request.from_capsule(environ["apache.request_rec"])


def _answer(
    environ: Environ, start_response: StartResponse, refusal: Refusal, die: Die | None
) -> Iterable[bytes]:
    """Answer with plain HTTP, and log one line with the client's address."""
    environ["wsgi.errors"].write(
        f"apachews: {refusal.status} for {environ.get('REQUEST_URI', '')[:200]}: {refusal.logged}\n"
    )
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
        own.pop(name.title(), None)
    start_response(refusal.status, [*own.items(), *refusal.headers])
    return [body]


def _leave_to_httpd(environ: Environ, refusal: Refusal, die: Die | None) -> bool:
    """Make httpd answer with the site's ErrorDocument; False if there is none to serve."""
    if not refusal.yields_to_error_document:
        return False
    try:
        request = _httpd_request(environ)
        status = int(refusal.status.split()[0])
        if request.failed_with is not None or not request.has_error_document(status):
            return False
        for name, value in refusal.headers:
            request.add_error_header(name, value)
        (die or request.die_after_handler)(status)
    except (Refusal, HttpdError):
        return False  # the refusal itself says what is wrong, and is in the log
    return True
