"""Bytes in, bytes out: RFC 6455 and 7692, the wire, and their timeouts.  No I/O, no clock."""

from __future__ import annotations

from apachews_handler.settings import RAW, Settings

from .deflate import Agreement
from .raw import RawSession
from .session import Session


def new_session(settings: Settings, deflate: Agreement | None = None) -> Session:
    """Return a session for the wire that the settings name (``APACHEWS_WIRE``)."""
    return (RawSession if settings.wire == RAW else Session)(settings, deflate)
