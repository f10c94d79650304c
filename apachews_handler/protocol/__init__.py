"""Bytes in, bytes out: RFC 6455 and 7692, the wire, and their timeouts.  No I/O, no clock."""

from __future__ import annotations

from typing import TypeAlias

from apachews_handler.settings import OPAQUE, RAW, TUNNEL, Settings

from .deflate import Agreement
from .opaque import OpaqueSession
from .raw import RawSession
from .session import Session
from .tunnel import TunnelSession

AnySession: TypeAlias = Session | TunnelSession


def new_session(settings: Settings, deflate: Agreement | None = None) -> Session:
    """Return a session with a producer, for the wire of the settings (``APACHEWS_WIRE``)."""
    return (RawSession if settings.wire == RAW else Session)(settings, deflate)


def new_tunnel(settings: Settings) -> TunnelSession:
    """Return a session with a backend (``APACHEWS_TUNNEL``)."""
    return (OpaqueSession if settings.wire == OPAQUE else TunnelSession)(settings)


def restored_session(settings: Settings, deflate: Agreement | None) -> AnySession:
    """Return a session of the kind that another process had with these settings."""
    is_tunnel = settings.wire in (TUNNEL, OPAQUE)
    return new_tunnel(settings) if is_tunnel else new_session(settings, deflate)
