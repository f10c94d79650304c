"""The end of a login, the age of a WebSocket, and tickets, in a real Apache."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests
from requests import Response

from apachews import Event

from ..conftest import DEADLINE_S, wait_for
from ..support.raw_client import RawClient, request
from ..support.site import MOD_PYTHON, Site, running_site

wsgi_only = pytest.mark.skipif(bool(MOD_PYTHON), reason="ticket.py needs mod_wsgi")

CONFIG = """
LoadModule auth_basic_module "${MODULES}/mod_auth_basic.so"
LoadModule authn_core_module "${MODULES}/mod_authn_core.so"
LoadModule authn_file_module "${MODULES}/mod_authn_file.so"
LoadModule authz_user_module "${MODULES}/mod_authz_user.so"
<IfDefine WSGI_MODULE>
    WSGIScriptAlias /ticket "${APACHEWS_HANDLER}/ticket.py" \\
        process-group=%{GLOBAL} application-group=%{GLOBAL}
</IfDefine>
<Location /ticket>
    AuthType Basic
    AuthName "Members"
    AuthUserFile "${DOCROOT}/members"
    Require valid-user
    SetEnv APACHEWS_TICKET_FOR "${DOCROOT}/members.ws"
</Location>
<Location /ticket/short>
    SetEnvIf X-Until "(.+)" UNTIL=$1
    SetEnv APACHEWS_EXPIRES UNTIL
</Location>
<Location /members.ws>
    SetEnv APACHEWS_TICKET required
</Location>
<Location /either.ws>
    SetEnv APACHEWS_TICKET accepted
</Location>
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


def close_of_short_login(site: Site, begin: Callable[[str], tuple[str, dict[str, str]]]) -> int:
    """Return the code with which a WebSocket ends whose login ends soon.

    Args:
        begin: returns path and headers of a request for a time since 1970.
    """
    for left_s in (1, 4, 16):  # a slow machine needs more than a second for the handshake
        path, headers = begin(str(time.time() + left_s))
        with RawClient(site.dial("ws")) as client:
            client.send(request(path, None, **headers))
            if client.read_head()[0] == 101:
                return client.read_close()
    return 0


def test_a_websocket_ends_with_its_login(site: Site) -> None:
    def begin(until: str) -> tuple[str, dict[str, str]]:
        return "/login.ws", {"X_Until": until}

    assert close_of_short_login(site, begin) == 1008
    wait_for(lambda: site.log_lines(r"\(LOGIN_ENDED\) code=1008"))


@pytest.mark.parametrize(("until", "status"), [("1000", 401), ("soon", 500)])
def test_a_login_without_time_left_is_refused(site: Site, until: str, status: int) -> None:
    with RawClient(site.dial("ws")) as client:
        client.send(request("/login.ws", None, X_Until=until))
        assert client.read_head()[0] == status


# Tickets.


@pytest.fixture(scope="module")
def members(site: Site) -> Iterator[Site]:
    # htpasswd -nbs ann secret
    (site.docroot / "members").write_text("ann:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=\n")

    def tell(event: Event) -> None:
        if event.type() == Event.Accept:
            event.write(f"{event.client().request.user}")

    with site.producer("members.ws", tell), site.producer("either.ws", tell):
        yield site


def ask(site: Site, method: str = "POST", path: str = "/ticket", **headers: str) -> Response:
    return requests.request(
        method, site.http(path), auth=("ann", "secret"), headers=headers, timeout=DEADLINE_S
    )


def ticket_of(site: Site) -> str:
    answer = ask(site)
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
    found = answer.json()
    assert found["expires_in"] == 30
    return str(found["ticket"])


def status_of(site: Site, scheme: str, path: str) -> tuple[int, str]:
    """Return the status of a handshake, and its token or the first message."""
    with RawClient(site.dial(scheme)) as client:
        client.send(request(path, None))
        status, headers = client.read_head()
        if status != 101:
            return status, headers["apachews-refused"]
        frame = client.read_data_frame()
        assert frame
        return status, frame[1].decode()


@wsgi_only
@pytest.mark.parametrize("scheme", ["ws", "wss1.3"])
def test_a_ticket_opens_one_websocket_for_its_user(members: Site, scheme: str) -> None:
    path = f"/members.ws?room=1&ticket={ticket_of(members)}"
    assert status_of(members, scheme, path) == (101, "ann")
    assert status_of(members, scheme, path) == (401, "ticket")
    log = members.apache.root / "access.log"
    wait_for(lambda: re.search(r' ann "GET /members\.ws.*" 101 ', log.read_text()))


@wsgi_only
def test_a_reload_keeps_tickets_and_what_was_used(members: Site) -> None:
    used, unused = (f"/members.ws?ticket={ticket_of(members)}" for _ in range(2))
    assert status_of(members, "ws", used)[0] == 101
    members.renew()
    assert status_of(members, "ws", used) == (401, "ticket")
    # A slow machine may reload for longer than a ticket is valid: then it has expired.
    status, told = status_of(members, "ws", unused)
    assert (status, told) == (101, "ann") or members.log_lines(
        "the ticket opens nothing: it has exp"
    )


@wsgi_only
@pytest.mark.parametrize(
    "query", ["", "?ticket=", "?ticket=x&ticket=y", "?%74icket=x", "?TICKET=x"]
)
def test_without_a_valid_ticket_it_is_refused(members: Site, query: str) -> None:
    assert status_of(members, "ws", f"/members.ws{query}") == (401, "ticket")


@wsgi_only
def test_a_ticket_is_for_one_endpoint(members: Site) -> None:
    ticket = ticket_of(members)
    assert status_of(members, "ws", f"/either.ws?ticket={ticket}") == (401, "ticket")
    assert status_of(members, "ws", "/either.ws") == (101, "None")
    assert status_of(members, "ws", f"/members.ws?ticket={ticket}") == (101, "ann")


@wsgi_only
def test_of_many_handshakes_with_one_ticket_one_wins(members: Site) -> None:
    path = f"/members.ws?ticket={ticket_of(members)}"
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: status_of(members, "ws", path), range(16)))
    assert sorted(found) == [(101, "ann")] + 15 * [(401, "ticket")]


@wsgi_only
def test_a_ticket_has_the_end_of_the_login(members: Site) -> None:
    def begin(until: str) -> tuple[str, dict[str, str]]:
        answer = ask(members, path="/ticket/short", **{"X-Until": until})
        ticket = answer.json()["ticket"] if answer.ok else ""
        return f"/members.ws?ticket={ticket}", {}

    assert close_of_short_login(members, begin) == 1008
    assert ask(members, path="/ticket/short", **{"X-Until": "1000"}).status_code == 401


@wsgi_only
def test_who_gets_a_ticket(members: Site) -> None:
    assert requests.post(members.http("/ticket"), timeout=DEADLINE_S).status_code == 401
    assert ask(members, "DELETE").status_code == 405
    assert ask(members, "GET").status_code == 200
    assert ask(members, Origin="https://evil.example").headers["apachews-refused"] == "origin"
