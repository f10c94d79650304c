"""The end of a login, and the age of a WebSocket, in a real Apache."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from ..conftest import wait_for
from ..support.raw_client import RawClient, request
from ..support.site import Site, running_site

CONFIG = """
<Location /aged.ws>
    SetEnv APACHEWS_MAX_AGE 1s
    SetEnv APACHEWS_EXPIRY_CODE 4001
</Location>
<Location /long.ws>
    SetEnv APACHEWS_MAX_AGE 3s
    SetEnv APACHEWS_EXPIRY_CODE 4001
</Location>
<Location /login.ws>
    SetEnvIf X-Until "(.+)" UNTIL=$1
    SetEnv APACHEWS_EXPIRES UNTIL
</Location>
"""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with (
        running_site("event", extra=CONFIG) as running,
        running.echo_process("aged.ws"),
        running.echo_process("long.ws"),
        running.echo_process("login.ws"),
    ):
        yield running


def connect(site: Site, scheme: str, path: str, **headers: str) -> RawClient:
    client = RawClient(site.dial(scheme))
    client.send(request(path, None, **headers))
    assert client.read_head()[0] == 101
    return client


@pytest.mark.parametrize("scheme", ["ws", "wss1.3"])
def test_a_websocket_ends_at_its_age(site: Site, scheme: str) -> None:
    with connect(site, scheme, "/aged.ws") as client:
        assert client.read_close() == 4001
    wait_for(lambda: site.log_lines(r"closed by bridge \(MAX_AGE\) code=4001"))


@pytest.mark.parametrize("scheme", ["ws", "wss1.3"])
def test_the_age_counts_from_the_handshake_through_a_reload(site: Site, scheme: str) -> None:
    begun = time.monotonic()
    with connect(site, scheme, "/long.ws") as client:
        site.renew()
        assert client.read_close() == 4001
    assert time.monotonic() - begun >= 2.7
    wait_for(lambda: len(site.log_lines(r"\(MAX_AGE\)")) >= 1)


def test_a_websocket_ends_with_its_login(site: Site) -> None:
    until = str(time.time() + 1)
    with connect(site, "ws", "/login.ws", X_Until=until) as client:
        assert client.read_close() == 1008
    wait_for(lambda: site.log_lines(r"\(LOGIN_ENDED\) code=1008"))


@pytest.mark.parametrize(("until", "status"), [("1000", 401), ("soon", 500)])
def test_a_login_without_time_left_is_refused(site: Site, until: str, status: int) -> None:
    with RawClient(site.dial("ws")) as client:
        client.send(request("/login.ws", None, X_Until=until))
        assert client.read_head()[0] == status
