"""Real streams of HTTP/2: what a WebSocket over them gets, from Apache with mod_http2."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from ..conftest import wait_for
from ..support.h2_client import HTTP_1_1_REQUIRED, H2Client
from ..support.raw_client import RawClient
from ..support.site import MOD_PYTHON, Site, running_site

HTTP_2 = """
LoadModule http2_module "${MODULES}/mod_http2.so"
Protocols h2 http/1.1
H2WebSockets On
<Location /ws>
    ErrorDocument 403 "This must not replace the reset."
    ErrorDocument 426 "Open the chat with a browser."
</Location>
"""
OTHER_PROGRAM = """
WSGIScriptAlias /other "${DOCROOT}/other.wsgi"
"""
OTHER_SCRIPT = """
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"other"]
"""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with running_site(extra=HTTP_2 + ("" if MOD_PYTHON else OTHER_PROGRAM)) as site:
        (site.docroot / "other.wsgi").write_text(OTHER_SCRIPT)
        yield site


def dial(site: Site) -> H2Client:
    context = site.tls_context()
    context.set_alpn_protocols(["h2"])
    plain = socket.create_connection(("127.0.0.1", site.apache.tls_port), 10)
    sock = context.wrap_socket(plain, server_hostname="localhost")
    assert sock.selected_alpn_protocol() == "h2"
    return H2Client(sock)


@pytest.mark.parametrize("path", ["/echo.ws?h2", "/ws/echo?h2"])
def test_a_websocket_is_sent_to_http_1_1(site: Site, path: str) -> None:
    with dial(site) as client:
        assert client.allows_websockets
        outcome = client.open_websocket(f"localhost:{site.apache.tls_port}", path)
        assert (outcome.status, outcome.reset) == (0, HTTP_1_1_REQUIRED)
        # The connection goes on.
        assert client.get("localhost", "/index.html").status == 200
    pattern = rf"apachews: 403 .* for {path.replace('?', '.')}:"
    (line,) = wait_for(lambda: site.log_lines(pattern))
    assert "keep H2WebSockets off" in line


def test_a_page_over_http_2_is_told_to_upgrade(site: Site) -> None:
    with dial(site) as client:
        outcome = client.get("localhost", "/echo.ws?page")
    assert outcome.status == 426
    assert outcome.body == b"This address speaks WebSocket only.\n"


def test_an_error_document_over_http_2(site: Site) -> None:
    with dial(site) as client:
        for _ in range(3):
            outcome = client.get("localhost", "/ws/echo?page")
            assert (outcome.status, outcome.body) == (426, b"Open the chat with a browser.")


def test_over_http_1_1_the_same_address_connects(site: Site) -> None:
    with RawClient(site.dial("wss1.3")).upgrade("/echo.ws"):
        pass


@pytest.mark.skipif(bool(MOD_PYTHON), reason="mod_wsgi's setting")
def test_other_programs_of_the_site_get_no_chunked_bodies(site: Site) -> None:
    head = b"POST /other HTTP/1.1\r\nHost: localhost\r\n"
    with RawClient(site.dial("ws")) as client:
        client.send(head + b"Content-Length: 2\r\n\r\nhi")
        assert client.read_head()[0] == 200
    with RawClient(site.dial("ws")) as client:
        client.send(head + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
        assert client.read_head()[0] == 411
