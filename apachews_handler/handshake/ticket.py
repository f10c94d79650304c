"""Tickets in requests: who gets one, and what a WebSocket that presents one is.

Contract: ``issue(environ, settings)`` returns a ticket for the request's user.  ``redeem(environ,
settings, path)`` returns the login of the ticket in the query, or None without a ticket if the
site does not require one.  Both raise ``Refusal``.  On the request's thread.

The query and not a subprotocol: a browser closes a WebSocket whose server chooses none of the
subprotocols that the page offers, so a ticket among them would have to be the answer.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final

from apachews.monitoring import refusals
from apachews_handler.exceptions import BadSetting, Refusal
from apachews_handler.setting_values import OFF
from apachews_handler.settings import REQUIRED, Settings
from apachews_handler.shared import rundir
from apachews_handler.shared.tickets import BadTicket, Login, Tickets

from .login import CHALLENGE, expiry, on_our_clock

# Exactly this spelling: Apache's ``Require expr`` in docs/howto/logins.md looks for it too.
_PARAMETER: Final = "ticket="


def issue(environ: Mapping[str, Any], settings: Settings) -> str:
    """Return a ticket for the user whom Apache has authenticated.

    Raises:
        Refusal: 401, the login has ended; 500, the location has no login, or no endpoint.
    """
    if not settings.ticket_for:
        raise BadSetting("APACHEWS_TICKET_FOR", "", "the path of the socket file of the endpoint")
    user = str(environ.get("REMOTE_USER") or "").encode("latin-1", "replace")
    if not user:
        raise Refusal(refusals.TICKET_LOGIN)
    ends_at = expiry(environ, settings)
    on_our_clock(ends_at)  # a login that has ended gets no ticket
    path = os.fsdecode(settings.ticket_for.encode("latin-1"))
    try:
        return _tickets().issue(Login(user, ends_at), _endpoint(path))
    except ValueError as error:
        raise Refusal(refusals.TICKET_LOGIN, str(error)) from error
    except OSError as error:
        raise _unavailable(error) from error


def redeem(
    environ: Mapping[str, Any], settings: Settings, path: str
) -> tuple[Mapping[str, Any], float]:
    """Return the environment with the user of the ticket, and when the login ends.

    The end is on the clock of ``time.monotonic``; 0.0: never, or the request has no ticket.

    Args:
        path: of the endpoint's socket file.

    Raises:
        Refusal: 401.
    """
    if settings.ticket == OFF:
        return environ, 0.0
    query = str(environ.get("QUERY_STRING") or "")
    found = [part for part in query.split("&") if part.startswith(_PARAMETER)]
    if not found and settings.ticket != REQUIRED:
        return environ, 0.0
    if len(found) != 1:
        raise Refusal(refusals.TICKET, f"the request has {len(found)} tickets", CHALLENGE)
    try:
        login = _tickets().redeem(found[0].removeprefix(_PARAMETER), _endpoint(path))
    except BadTicket as error:
        raise Refusal(refusals.TICKET, f"the ticket opens nothing: {error}", CHALLENGE) from error
    except OSError as error:
        raise _unavailable(error) from error
    user = login.user.decode("latin-1")
    return {**environ, "REMOTE_USER": user}, on_our_clock(login.ends_at)


def _tickets() -> Tickets:
    apache = os.getppid()
    return Tickets(rundir.open_directory(apache), apache)


def _endpoint(path: str) -> bytes:
    """Return what names an endpoint: its socket file, by whatever links it was found."""
    return os.fsencode(os.path.realpath(path))


def _unavailable(error: OSError) -> Refusal:
    return Refusal(refusals.TICKETS, f"{error.filename or rundir.NAME}: {error.strerror or error}")
