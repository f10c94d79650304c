"""handshake.login: the time at which a login ends."""

from __future__ import annotations

import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apachews_handler.exceptions import Refusal
from apachews_handler.handshake.login import login_end, parse_time_point
from apachews_handler.settings import Settings

EXPIRES = Settings(expires="UNTIL")


@pytest.mark.parametrize(
    "text",
    [
        "1800000000",
        "1800000000.0",
        " 1800000000 ",
        "1800000000000000",
        "HTTP date",
        "Jan 15 08:00:00 2027 GMT",
    ],
)
def test_forms_of_a_time(text: str) -> None:
    if text == "HTTP date":
        text = formatdate(1800000000, usegmt=True)
    assert parse_time_point(text) == 1800000000.0


@pytest.mark.parametrize(
    "text", ["", "0", "-5", "never", "1e9", "nan", "180000000000", "1 GMT", "\u0661", "0.0", "GMT"]
)
def test_what_is_not_a_time_is_refused(text: str) -> None:
    with pytest.raises(Refusal) as refused:
        login_end({"UNTIL": text}, EXPIRES)
    assert refused.value.reason.token == "no-expiry"


@given(st.text() | st.binary().map(lambda data: data.decode("latin-1") + " GMT"))
def test_any_text_is_a_time_or_a_refusal(text: str) -> None:
    try:
        login_end({"UNTIL": text}, EXPIRES)
    except Refusal as refusal:
        assert refusal.reason.token in ("no-expiry", "login-ended")


def test_a_missing_variable_is_refused() -> None:
    with pytest.raises(Refusal, match="no-expiry"):
        login_end({}, EXPIRES)


def test_a_login_that_has_ended_is_refused() -> None:
    with pytest.raises(Refusal, match="login-ended") as refused:
        login_end({"UNTIL": str(time.time() - 5)}, EXPIRES)
    assert refused.value.status.startswith("401")


def test_the_end_is_on_the_clock_of_the_bridge() -> None:
    assert login_end({}, Settings()) == 0.0
    before = time.monotonic()
    end = login_end({"UNTIL": str(time.time() + 100)}, EXPIRES)
    assert before + 99 < end < time.monotonic() + 101
