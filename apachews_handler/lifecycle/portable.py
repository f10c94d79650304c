"""A connection at rest as plain data: what one process tells another that takes it over.

Contract: ``encode(connection)`` returns one JSON document, or None while the connection is
not at rest; ``decode`` reads it, and ``restore`` builds the connection around its
descriptors.  Both raise ``NotPortable`` for a document of another form.  The descriptors
themselves, and the sockets between the processes, are the business of ``handover``.

How this works: a connection is at rest between two frames in both directions, with nothing
queued and no deadline but the keep-alive's.  Most connections are at rest at most moments,
and their state is a few numbers, the settings, the OPEN for the next producer, and the
window of the client's compression.  Bytes that wait in the kernel move with the
descriptors.

Old and new code meet here: a custodian runs the code that was on the disk when its child
started.  So the form is explicit, has a number (``FORMAT``), and each of its objects must
have exactly the expected members, the settings included.  Raise ``FORMAT`` when the meaning
of a member changes; ``tests/handler/test_portable.py`` notices new state.

The TLS of a client never passes: OpenSSL exports no connection.  The document of such a client
says ``is_relayed``: its descriptors are the end of a pair, which has the plain bytes, and one
more, of its TCP connection (``handover``).

Sources: docs/explanation/how-it-works.md, "Restarts".
"""

from __future__ import annotations

import dataclasses
import functools
import json
import select
import socket
from typing import Any, Final

from apachews_handler.bridge.connection import Connection, ConnectionInfo, Log, Permit
from apachews_handler.bridge.transport import PlainTransport, RelayedTransport
from apachews_handler.monitoring.close_log import BadFormat, CloseFormat, parse_format
from apachews_handler.native.openssl import TlsSession
from apachews_handler.protocol import restored_session
from apachews_handler.protocol.deflate import Agreement
from apachews_handler.protocol.progress import Progress
from apachews_handler.setting_values import Rate
from apachews_handler.settings import Settings
from apachews_handler.shared import slots

FORMAT: Final = 5
_MEMBERS: Final = frozenset(
    {
        "about",
        "close_line",
        "deflate",
        "entrusted_at",
        "hold_ends_at",
        "is_relayed",
        "log",
        "name",
        "opened_at",
        "path",
        "places",
        "progress",
        "resumed_at",
        "said_before",
        "session",
        "settings",
        "watch",
    }
)
_SESSION_MEMBERS: Final = frozenset(
    {
        "client",
        "is_ping_answered",
        "knows_lanes",
        "opened",
        "pinged_at",
        "producer",
        "rated_at",
        "round_trip_s",
    }
)
_WATCH_MEMBERS: Final = frozenset(
    {"ages_out_at", "asked_at", "heard_at", "login_ends_at", "passed_at", "way_s"}
)
_SETTINGS: Final = frozenset(field.name for field in dataclasses.fields(Settings))


class NotPortable(Exception):
    """The document is not one that this version of the code writes; the text says why."""


def encode(connection: Connection) -> bytes | None:
    """Return a connection as a document; None while it is not at rest, or cannot leave."""
    transport = connection.transport
    if (
        not isinstance(transport, (PlainTransport, TlsSession))
        or connection.client.mask != select.EPOLLIN
        or connection.producer.mask != select.EPOLLIN
        or connection.client.queue.unsent_bytes
        or connection.producer.queue.unsent_bytes
        or connection.drain_cause
        or connection.write_failed
        or connection.is_shut_down
        or connection.member
    ):
        return None
    session, timeouts = connection.session.export_state(), connection.timeouts.export_state()
    if session is None or timeouts is None:
        return None
    deflate, line, places = connection.session.deflate, connection.close_line, connection.admission
    document = {
        "about": dataclasses.asdict(connection.info),
        "close_line": line.export_state() if line else None,
        "deflate": dataclasses.asdict(deflate) if deflate else None,
        "entrusted_at": connection.entrusted_at,
        "hold_ends_at": connection.timeouts.hold_ends_at,
        "is_relayed": isinstance(transport, (RelayedTransport, TlsSession)),
        # Without a descriptor the log is syslog, which every process has.
        "log": None if connection.log.descriptor() is None else list(connection.log.style()),
        "name": connection.name,
        "opened_at": connection.opened_at,
        "path": connection.endpoint,
        "places": places.export_state() if isinstance(places, slots.Permit) else None,
        "progress": connection.progress.export_state() if connection.progress else None,
        "resumed_at": connection.timeouts.resumed_at,
        "said_before": connection.timeouts.said_before,
        "session": session,
        "settings": _encode_settings(connection.settings),
        "watch": timeouts,
    }
    return json.dumps(document).encode()


def decode(data: bytes) -> dict[str, Any]:
    """Return the document.

    Raises:
        NotPortable: it is of another form.
    """
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise NotPortable(f"not JSON: {error}") from error
    _require_members("the connection", document, _MEMBERS)
    _require_members("its session", document["session"], _SESSION_MEMBERS)
    _require_members("its watch", document["watch"], _WATCH_MEMBERS)
    return dict(document)


def restore(
    document: dict[str, Any],
    client: socket.socket,
    producer: socket.socket,
    log: Log,
    admission: Permit | None,
    tcp: socket.socket | None = None,
) -> Connection:
    """Return the connection, which owns the sockets.

    Args:
        document: as ``decode`` returned it.
        client, producer: non-blocking.
        log: where its lines go.
        admission: its places under the limits; None: it has none.
        tcp: the TCP connection of a client that is relayed; None for another one.

    Raises:
        NotPortable: a value is of another form; the sockets are still the caller's.
    """
    try:
        settings = _decode_settings(document["settings"])
        deflate = document["deflate"]
        session = restored_session(settings, Agreement(**deflate) if deflate else None)
        session.import_state(document["session"])
        line = document["close_line"]
        connection = Connection(
            transport=PlainTransport(client) if tcp is None else RelayedTransport(client, tcp),
            producer_socket=producer,
            session=session,
            settings=settings,
            endpoint=document["path"],
            name=document["name"],
            log=log,
            admission=admission,
            info=ConnectionInfo(**document["about"]),
            close_line=None if line is None else settings.close_log_format.import_line(line),
        )
        connection.entrusted_at = float(document["entrusted_at"])
        connection.opened_at = float(document["opened_at"])
        timeouts = connection.timeouts
        timeouts.import_state(document["watch"])
        timeouts.hold_ends_at = float(document["hold_ends_at"])
        timeouts.resumed_at = float(document["resumed_at"])
        timeouts.said_before = int(document["said_before"])
        if document["progress"] is not None:
            connection.progress = Progress.import_state(document["progress"])
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise NotPortable(f"{type(error).__name__}: {error}") from error
    return connection


def _require_members(what: str, found: Any, expected: frozenset[str]) -> None:
    if not isinstance(found, dict) or found.keys() != expected:
        raise NotPortable(f"{what} has other members than this version writes")


@functools.lru_cache(maxsize=256)
def _encode_settings(settings: Settings) -> str:
    return json.dumps(
        {name: _encode_setting(getattr(settings, name)) for name in sorted(_SETTINGS)}
    )


def _encode_setting(value: Any) -> Any:
    if isinstance(value, Rate):
        return {"burst": value.burst, "per_s": value.per_s}
    if isinstance(value, CloseFormat):
        return {"text": value.text}
    return value


# As in ``settings``: connections with the same settings have one object in common.
@functools.lru_cache(maxsize=256)
def _decode_settings(text: str) -> Settings:
    found = json.loads(text)
    _require_members("the settings", found, _SETTINGS)
    return Settings(**{name: _decode_setting(value) for name, value in found.items()})


def _decode_setting(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(value)
    if not isinstance(value, dict):
        return value
    if value.keys() == {"burst", "per_s"}:
        return Rate(int(value["burst"]), float(value["per_s"]))
    if value.keys() == {"text"}:
        try:
            return parse_format(value["text"])
        except BadFormat as error:
            raise NotPortable(f"the format of the log of closes: {error}") from error
    raise NotPortable(f"{value!r:.80}: expected a rate or a format")
