"""The client's address behind a proxy, and the query after a rewriting rule, in real Apache."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from apachews import Event
from apachews_tools.httpd.private_apache import free_port

from ..conftest import wait_for
from ..support.raw_client import RawClient, request
from ..support.site import Site, running_site

FACTS = """
LoadModule remoteip_module "${MODULES}/mod_remoteip.so"
LoadModule rewrite_module "${MODULES}/mod_rewrite.so"
Define APACHEWS_LOG_DIRECTORY "${DOCROOT}"
SetEnv APACHEWS_CLOSE_LOG "${DOCROOT}/closes.log"
SetEnv APACHEWS_CLOSE_LOG_FORMAT "%a %{remote}p %U%q"
RewriteEngine on
RewriteRule "^/room/([0-9]+)$" "/facts.ws?room=$1" [PT]
RewriteRule "^/added$" "/facts.ws?room=7" [PT,QSA]
RewriteRule "^/removed$" "/facts.ws?" [PT]
"""
BEHIND_HEADER = """
<VirtualHost *:%(port)d>
    DocumentRoot "${DOCROOT}"
    RemoteIPHeader X-Forwarded-For
    RemoteIPInternalProxy 127.0.0.1
</VirtualHost>
"""
BEHIND_PROXY = """
Listen 127.0.0.1:%(port)d
<VirtualHost *:%(port)d>
    DocumentRoot "${DOCROOT}"
    RemoteIPProxyProtocol On
</VirtualHost>
"""


class Facts:
    """A site, and ways to ask what a producer is told."""

    def __init__(self, site: Site, header_port: int, proxy_port: int) -> None:
        self.site = site
        self.header_port = header_port
        self.proxy_port = proxy_port

    def ask(
        self, path: str = "/facts.ws", port: int = 0, first: bytes = b"", **headers: str
    ) -> dict[str, Any]:
        """Connect, and return what the producer was told of it."""
        port = port or self.site.apache.port
        with RawClient(socket.create_connection(("127.0.0.1", port), 10)) as client:
            own_port: int = client.socket.getsockname()[1]
            client.send(first + request(path, None, **headers))
            assert client.read_head()[0] == 101
            frame = client.read_data_frame()
        assert frame is not None
        return {**json.loads(frame[1]), "own_port": own_port}

    def close_line(self, pattern: str) -> str:
        """Wait for the line of a close that matches; return it."""
        log = self.site.docroot / "closes.log"

        def found() -> str:
            text = log.read_text() if log.exists() else ""
            match = re.search(pattern, text, re.MULTILINE)
            return match[0] if match else ""

        return wait_for(found, what=lambda: log.exists() and log.read_text())


def tell(event: Event) -> None:
    """Send the client what the producer knows of its request."""
    if event.type() == Event.Accept:
        asked = event.client().request
        facts = {"uri": asked.uri, "path": asked.path, "query": asked.query, "remote": asked.remote}
        event.write(json.dumps(facts))


@pytest.fixture(scope="module")
def facts() -> Iterator[Facts]:
    header_port, proxy_port = free_port(), free_port()
    extra = FACTS + f"Listen 127.0.0.1:{header_port}\n" + BEHIND_HEADER % {"port": header_port}
    extra += BEHIND_PROXY % {"port": proxy_port}
    with running_site(extra=extra) as site, site.producer("facts.ws", tell):
        yield Facts(site, header_port, proxy_port)


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/facts.ws?a=1&a=2", {"a": ["1", "2"]}),
        ("/facts.ws", {}),
        ("/room/12", {"room": ["12"]}),
        ("/room/12?room=1", {"room": ["12"]}),
        ("/added?a=%C3%A4", {"room": ["7"], "a": ["ä"]}),
        ("/removed?a=1", {}),
    ],
)
def test_the_query_is_the_one_that_apache_decided_on(
    facts: Facts, path: str, query: dict[str, list[str]]
) -> None:
    told = facts.ask(path)
    assert told["query"] == query
    assert told["uri"] == path
    assert told["path"] == path.partition("?")[0]


def test_a_direct_client_has_its_own_port(facts: Facts) -> None:
    told = facts.ask("/facts.ws?direct")
    assert told["remote"] == ["127.0.0.1", told["own_port"]]
    assert facts.close_line(r"^.* /facts.ws\?direct$").split()[1] == str(told["own_port"])


def test_the_port_of_a_client_that_a_header_names_is_not_known(facts: Facts) -> None:
    told = facts.ask("/facts.ws?header", facts.header_port, X_Forwarded_For="203.0.113.7")
    assert told["remote"] == ["203.0.113.7", 0]
    assert facts.close_line(r"^.* /facts.ws\?header$") == "203.0.113.7 - /facts.ws?header"
    log = wait_for(lambda: facts.site.log_lines(r"/facts\.ws\?header"))
    assert any("[client 203.0.113.7] user=" in line for line in log), log


def test_without_that_header_the_port_is_the_connections(facts: Facts) -> None:
    told = facts.ask("/facts.ws?none", facts.header_port)
    assert told["remote"] == ["127.0.0.1", told["own_port"]]


@pytest.mark.parametrize(
    ("first", "remote"),
    [
        (b"PROXY TCP4 203.0.113.9 192.0.2.1 4711 80\r\n", ["203.0.113.9", 4711]),
        (b"PROXY TCP6 2001:db8::9 2001:db8::1 4712 80\r\n", ["2001:db8::9", 4712]),
    ],
)
def test_the_proxy_protocol_names_address_and_port(
    facts: Facts, first: bytes, remote: list[Any]
) -> None:
    path = f"/facts.ws?port={remote[1]}"
    assert facts.ask(path, facts.proxy_port, first)["remote"] == remote
    line = facts.close_line(rf"^.* /facts.ws\?port={remote[1]}$")
    assert line.split()[:2] == [remote[0], str(remote[1])]
