"""How a request becomes a tunnel: the table of contents of its handshake.

Contract: ``open_tunnel(request, environ)`` takes the request's connection and gives it, with that
to the backend, to the bridge of this child of Apache, and returns None; or it returns the
backend's answer for the client; or it raises, as ``handshake.recipe.upgrade``.  On the request's
thread.

How this works: what Apache checks of any WebSocket comes first, so a request that is not a
handshake, or of another origin, never reaches the backend.  The client gets its 101 only after
the backend's.  A handshake waits for its backend in a worker of Apache, so it holds a place
(``waiting``) from the connect to the end of the answer, or to the first 64 KiB of its body; the
rest of a longer body needs a place of another kind.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from apachews.monitoring import refusals
from apachews_handler.backends import Backend, choose, cookie_of
from apachews_handler.bridge.connection import Connection
from apachews_handler.exceptions import BadSetting, ClientGone, Refusal
from apachews_handler.handshake.detach import detach
from apachews_handler.handshake.login import login_end
from apachews_handler.handshake.recipe import close_line, negotiate, running_bridge
from apachews_handler.handshake.request_info import (
    connection_info,
    describe,
    log_name,
    peer_of,
)
from apachews_handler.handshake.upgrade import require_no_error_document, require_own_htaccess
from apachews_handler.lifecycle.child import the_child
from apachews_handler.native.httpd import Request, WriteFailed
from apachews_handler.native.httpd_process import spare_workers
from apachews_handler.protocol import new_tunnel
from apachews_handler.settings import Settings, parse_tunnel_settings
from apachews_handler.shared import limits, waiting

from .answer import Accepted, Answered, BadAnswer
from .connect import connect
from .exchange import Body, NotAccepted, Relayed, ask
from .request import encode, headers_of, target_of

Environ = Mapping[str, Any]


def open_tunnel(request: Request, environ: Environ) -> Relayed | None:
    """Turn the request's connection into a tunnel of the child's bridge.

    Returns:
        The backend's answer, if it does not upgrade.

    Raises:
        Refusal: with the HTTP answer.
        HttpdError: httpd is not what the code was written for.
    """
    settings = parse_tunnel_settings(environ, the_child.definitions(request.definition))
    require_no_error_document(request.failed_with)
    require_own_htaccess(request.foreign_htaccess)
    offer = negotiate(request, environ, settings)
    login_ends_at = login_end(environ, settings)
    peer = peer_of(request)
    address = peer.remote[0]
    backend = _backend(environ, settings, address)
    _require_nothing_after_the_head(request)
    headers = headers_of(request.request_headers(), environ, settings, address=address)
    asked = encode(target_of(environ, backend), headers)
    log = request.error_log()
    bridge = running_bridge(request, log)
    with contextlib.ExitStack() as undo:
        permit = limits.admit(settings, address, backend.name)
        undo.callback(permit.release)
        producer, answer = _ask(request, environ, settings, backend, asked)
        undo.callback(producer.close)
        if not isinstance(answer, Accepted):
            return _relay(request, environ, settings, backend, answer, undo)
        session = new_tunnel(settings)
        if answer.first:
            session.receive_producer(answer.first)
        line = None
        if settings.close_log:
            open_ = describe(environ, settings, offer, peer)
            line = close_line(settings, environ, open_, answer.subprotocol, backend.name)
        # The client has the 101 when this returns: nothing after it may refuse.
        transport = detach(request, answer.head)
        undo.callback(transport.close)
        bridge.adopt(
            Connection(
                transport=transport,
                producer_socket=producer,
                session=session,
                settings=settings,
                endpoint=backend.name,
                name=log_name(environ, peer, logged_uri(environ)),
                log=log,
                admission=permit if permit.is_counted else None,
                info=connection_info(environ, peer, answer.subprotocol),
                close_line=line,
                login_ends_at=login_ends_at,
            )
        )
        undo.pop_all()  # the bridge owns the connection now
    return None


def _ask(
    request: Request, environ: Environ, settings: Settings, backend: Backend, asked: bytes
) -> tuple[socket.socket, Accepted | NotAccepted]:
    """Connect to the backend, and return the connection and the answer; holds a place meanwhile.

    Raises:
        Refusal: the connection is closed.
    """
    key = environ["HTTP_SEC_WEBSOCKET_KEY"].encode()
    with _place(backend, settings):
        connection = connect(backend, settings.connect_timeout_s)
        try:
            answer = ask(connection, asked, key, backend.name, settings.backend_timeout_s)
        except BaseException:
            connection.close()
            # The client may have sent frames meanwhile, which are not another request.
            request.end_after_request()
            raise
    return connection, answer


def _relay(
    request: Request,
    environ: Environ,
    settings: Settings,
    backend: Backend,
    answer: NotAccepted,
    undo: contextlib.ExitStack,
) -> Relayed:
    """Return an answer that does not upgrade; a long one takes over what ``undo`` releases.

    Raises:
        Refusal: too many long answers pass already.
    """
    answered, first, rest = answer
    if rest is None:
        return _relayed(environ, backend, answered, Body(first, None, lambda: None))
    # The client's speed decides how long this takes, and the worker waits for both: such answers
    # have places of their own.  The client has nothing yet, so it can still get another answer.
    undo.enter_context(waiting.place_for_body(backend.name, settings.max_waiting, spare_workers()))
    body = Body(first, _or_cut(request, environ, backend, rest), undo.pop_all().close)
    return _relayed(environ, backend, answered, body)


def _backend(environ: Environ, settings: Settings, client: str) -> Backend:
    """Return the backend of the request's location for a client.

    Args:
        client: its IP address.

    Raises:
        BadSetting: the location has none.
    """
    if not settings.backend:
        raise BadSetting("APACHEWS_BACKEND", "", "the address of the WebSocket server")
    route = ""
    if settings.backend_cookie:
        route = cookie_of(environ.get("HTTP_COOKIE", ""), settings.backend_cookie)
    return Backend.parse(choose(settings.backend, route, client))


def _require_nothing_after_the_head(request: Request) -> None:
    """Refuse a client that sends more than its request, before the backend learns of it.

    Raises:
        Refusal
    """
    try:
        has_more = request.has_early_data()
    except WriteFailed as error:
        request.abandon()
        raise ClientGone from error
    if has_more:
        # It may be frames or a request: it is not to be read as either.
        request.end_after_request()
        raise Refusal(refusals.EARLY_DATA)


def _place(backend: Backend, settings: Settings) -> contextlib.AbstractContextManager[None]:
    """Return a place among the handshakes that wait for this backend."""
    return waiting.place(
        backend.name,
        settings.max_waiting,
        spare_workers(),
        settings.connect_timeout_s,
        None,
        waiting.TUNNEL_PATIENCE_S,
    )


def _relayed(environ: Environ, backend: Backend, answered: Answered, body: Body) -> Relayed:
    """Return the backend's answer for the client, and log it."""
    refusal = Refusal(refusals.BACKEND, f"{backend.name} answers", status=answered.status)
    environ["wsgi.errors"].write(refusal.log_line(logged_uri(environ)) + "\n")
    # A backend cannot pretend that the handler refused.
    own = [header for header in answered.headers if header[0].title() != refusals.HEADER]
    headers = [*own, (refusals.HEADER, refusals.BACKEND.token)]
    return Relayed(f"{answered.status} {answered.reason}", headers, body)


def logged_uri(environ: Environ) -> str:
    """Return the URI for log lines: without the query, which may be a token."""
    return str(environ.get("REQUEST_URI", "")).partition("?")[0]


def _or_cut(
    request: Request, environ: Environ, backend: Backend, rest: Iterator[bytes]
) -> Iterator[bytes]:
    """Pass a body on; if it ends early, so does the client's connection.

    Otherwise Apache would end its answer as if it were whole, or the client would take the next
    answer for the rest.
    """
    try:
        yield from rest
    except BadAnswer as error:
        request.abandon()
        refusal = Refusal(refusals.BAD_BACKEND_ANSWER, f"the body of {backend.name}: {error}")
        environ["wsgi.errors"].write(refusal.log_line(logged_uri(environ)) + "\n")
