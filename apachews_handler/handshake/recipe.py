"""How a request becomes a WebSocket: the table of contents of a handshake.

Contract: ``upgrade(request, environ, find_endpoint)`` takes the request's connection and gives it
to the bridge of this child of Apache, or raises: ``Refusal`` with the HTTP answer, or
``httpd.HttpdError``.  After a ``Refusal`` the client has received nothing, except after
``ClientGone``.  On the request's thread; for any host of Python inside httpd.

How this works: whatever can be refused comes before the 101, because a client that has the 101
relies on its producer.  Whatever was acquired is released in reverse order if a later step
fails, up to the moment when the bridge owns it.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

from apachews import wire
from apachews.monitoring import refusals
from apachews.wire.answer import Answer
from apachews_handler.bridge.connection import Connection, Log
from apachews_handler.bridge.thread import Bridge
from apachews_handler.exceptions import Http11Required, Refusal, Rejected
from apachews_handler.lifecycle.child import the_child
from apachews_handler.monitoring.close_log import CloseLine, Handshake
from apachews_handler.native.httpd import Request
from apachews_handler.native.httpd_process import spare_workers
from apachews_handler.protocol import new_session
from apachews_handler.protocol.deflate import Agreement
from apachews_handler.settings import Settings, parse_settings
from apachews_handler.shared import limits, waiting

from . import producer
from .detach import detach
from .login import login_end
from .request_info import (
    connection_info,
    describe,
    log_name,
    peer_of,
)
from .upgrade import Upgrade, require_no_error_document, require_own_htaccess

Environ = Mapping[str, Any]
# Returns the path of the socket file that a request asks for; raises ``Refusal``.
FindEndpoint = Callable[[Environ, Settings], str]


def upgrade(request: Request, environ: Environ, find_endpoint: FindEndpoint) -> None:
    """Turn the request's connection into a WebSocket of the child's bridge.

    Raises:
        Refusal: with the HTTP answer.
        HttpdError: httpd is not what the code was written for.
    """
    settings = parse_settings(environ, the_child.definitions(request.definition))
    require_no_error_document(request.failed_with)
    require_own_htaccess(request.foreign_htaccess)
    offer = negotiate(request, environ, settings)
    login_ends_at = login_end(environ, settings)
    peer = peer_of(request)
    log = request.error_log()
    bridge = running_bridge(request, log)
    open_ = describe(environ, settings, offer, peer, bridge.loop.bridge_id)
    path = find_endpoint(environ, settings)
    with contextlib.ExitStack() as undo:
        # A permit before the connection: a producer does not see clients above the limit.
        permit = limits.admit(settings, peer.remote[0], path)
        undo.callback(permit.release)
        place = functools.partial(
            waiting.place, path, settings.max_waiting, spare_workers(), settings.connect_timeout_s
        )
        socket = producer.connect(
            path, settings.connect_timeout_s, settings.endpoint_directories, place
        )
        undo.callback(socket.close)
        if settings.accept == "producer":
            # The worker waits for the ANSWER: such handshakes are bounded too.
            with place(producer.user_of(socket, path, settings.endpoint_directories)):
                answer, first_bytes = producer.ask(socket, open_, settings.connect_timeout_s)
            subprotocol = answer.subprotocol
            head, agreement = _accept_as_answered(offer, settings, answer)
        else:
            subprotocol, first_bytes = open_.subprotocol, b""
            head, agreement = offer.accept(settings, subprotocol)
        session = new_session(settings, agreement)
        session.open(open_, is_told=settings.accept == "producer")
        if first_bytes:
            # Messages that the producer sent with its ANSWER, in one read.
            session.receive_producer(first_bytes)
        # The client has the 101 when this returns: nothing after it may refuse.
        transport = detach(request, head)
        undo.callback(transport.close)
        bridge.adopt(
            Connection(
                transport=transport,
                producer_socket=socket,
                session=session,
                settings=settings,
                endpoint=path,
                name=log_name(environ, peer, open_.uri),
                log=log,
                admission=permit if permit.is_counted else None,
                info=connection_info(environ, peer, subprotocol),
                close_line=close_line(settings, environ, open_, subprotocol, path),
                login_ends_at=login_ends_at,
            )
        )
        undo.pop_all()  # the bridge owns the connection now


def negotiate(request: Request, environ: Environ, settings: Settings) -> Upgrade:
    """Check the handshake of the client.

    Raises:
        Refusal
    """
    try:
        return Upgrade.negotiate(environ, settings)
    except Http11Required:
        # Without the note mod_http2 would send the 403 instead of the reset.
        request.require_http_1_1()
        raise


def running_bridge(request: Request, log: Log) -> Bridge:
    """Return the bridge of this child.

    Raises:
        Refusal: 503, the child is ending.
    """
    bridge = the_child.bridge(request.pid_file, log)
    if not bridge.is_running:
        raise Refusal(refusals.CHILD_ENDING)
    return bridge


def _accept_as_answered(
    offer: Upgrade, settings: Settings, answer: Answer
) -> tuple[bytes, Agreement | None]:
    """Return the head of the 101, and the compression, as the producer answered.

    Raises:
        Refusal: the producer's own status; or 500, it chose a subprotocol that the client did
            not offer.
    """
    if not answer.accepts:
        raise Rejected(answer.status, answer.headers, answer.body)
    if answer.subprotocol is not None and answer.subprotocol not in offer.offered:
        offered = ", ".join(offer.offered) or "none"
        fact = (
            f"the producer chose the subprotocol {answer.subprotocol!r:.80}; the client offered:"
            f" {offered}"
        )
        raise Refusal(refusals.BAD_ANSWER, fact)
    return offer.accept(settings, answer.subprotocol, answer.headers)


def close_line(
    settings: Settings, environ: Environ, open_: wire.Open, subprotocol: str | None, endpoint: str
) -> CloseLine | None:
    """Return the line for the log of closes, None if the site has no such log."""
    if not settings.close_log:
        return None
    handshake = Handshake(environ, open_, subprotocol, endpoint, time.time())
    return settings.close_log_format.begin(handshake)
