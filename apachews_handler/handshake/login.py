"""When the login of a client ends, as a module of Apache says in a variable.

Contract: ``login_end(environ, settings)`` returns a time of the clock of ``time.monotonic``, or
raises ``Refusal``.  Called once per handshake.

Sources: RFC 9110 5.6.7 (dates); RFC 7519 4.1.4 (the claim exp); mod_session (microseconds).
"""

from __future__ import annotations

import email.utils
import re
import time
from collections.abc import Mapping
from typing import Any, Final

from apachews.monitoring import refusals
from apachews_handler.exceptions import Refusal
from apachews_handler.settings import Settings

_SECONDS: Final = re.compile(r"\d{1,11}(?:\.\d{1,9})?", re.ASCII)
_MICROSECONDS: Final = re.compile(r"\d{15,17}", re.ASCII)
# RFC 9110 15.5.2: a 401 names a scheme.  This one makes no browser ask for a password.
CHALLENGE: Final = (("WWW-Authenticate", "Apachews"),)


def login_end(environ: Mapping[str, Any], settings: Settings) -> float:
    """Return when the client's login ends; 0.0 for never.

    Raises:
        Refusal: 401, it has ended; 500, the variable is missing or has another form.
    """
    return on_our_clock(expiry(environ, settings))


def expiry(environ: Mapping[str, Any], settings: Settings) -> float:
    """Return the seconds since 1970 at which the login ends; 0.0 for never.

    Raises:
        Refusal: 500, the variable is missing or has another form.
    """
    if not settings.expires:
        return 0.0
    value = environ.get(settings.expires)
    try:
        return parse_time_point(value if isinstance(value, str) else "")
    except ValueError:
        fact = f"the variable {settings.expires} has {value!r:.80}, which is not a time"
        raise Refusal(refusals.NO_EXPIRY, fact) from None


def on_our_clock(expires: float) -> float:
    """Return the time of the clock of ``time.monotonic`` for a time since 1970; 0.0 for 0.0.

    Raises:
        Refusal: 401, it is past.
    """
    if not expires:
        return 0.0
    left_s = expires - time.time()
    if left_s <= 0:
        raise Refusal(refusals.LOGIN_ENDED, f"the login ended {-left_s:.0f} s ago", CHALLENGE)
    return time.monotonic() + left_s


def parse_time_point(text: str) -> float:
    """Return the seconds since 1970 that a text means.

    Args:
        text: seconds or microseconds since 1970, or an HTTP date.

    Raises:
        ValueError: also for 1970 itself, which would mean that the login never ends.
    """
    text = text.strip()
    if _SECONDS.fullmatch(text):
        seconds = float(text)
    elif _MICROSECONDS.fullmatch(text):
        seconds = int(text) / 1e6
    else:
        if not text.endswith("GMT"):
            raise ValueError("not a time")
        seconds = email.utils.parsedate_to_datetime(text).timestamp()
    if seconds <= 0:
        raise ValueError("not a time after 1970")
    return seconds
