"""The connection leaves Apache: every MPM, plain and TLS, first and later request."""

from __future__ import annotations

import os
import re
import socket
import ssl
import threading
import urllib.parse
from pathlib import Path

import pytest
import requests

from apachews import Event
from apachews.wire import TLS, Open

from ..conftest import wait_for
from ..support.frames import masked
from ..support.raw_client import RawClient, request
from ..support.site import Site, echo, running_site

PATHS = ["/echo.ws", "/ws/echo"]


@pytest.mark.parametrize("path", PATHS)
def test_echo_as_first_request(site: Site, scheme: str, path: str) -> None:
    with RawClient(site.dial(scheme)).upgrade(path) as client:
        client.send(masked(0x81, b"hi") + masked(0x82, b"\x00" * 70_000))
        assert client.read_frame() == (0x81, b"hi")
        assert client.read_frame() == (0x82, b"\x00" * 70_000)
        client.send(masked(0x88, b"\x03\xe8"))
        assert client.read_close() == 1000
        assert client.read(1) == b""


@pytest.mark.parametrize("path", PATHS)
def test_echo_as_later_request_of_a_connection_kept_alive(
    site: Site, scheme: str, path: str
) -> None:
    with RawClient(site.dial(scheme)) as client:
        for _ in range(2):
            client.send(b"GET /index.html HTTP/1.1\r\nHost: localhost\r\n\r\n")
            status, _, body = client.read_response()
            assert (status, "here" in body) == (200, True)
        client.send(request(path, Host=None))  # and one that is refused
        status, headers, _ = client.read_response()
        assert status == 400
        if headers.get("connection") == "close":  # httpd itself refuses no Host
            client = RawClient(site.dial(scheme))
        client.upgrade(path)
        client.send(masked(0x81, b"hi"))
        assert client.read_frame() == (0x81, b"hi")
        client.socket.close()


def test_a_refused_request_leaves_the_connection_for_the_next(site: Site, scheme: str) -> None:
    with RawClient(site.dial(scheme)) as client:
        client.send(request("/upgrade-absent.ws"))
        assert client.read_response()[0] == 404
        client.send(b"GET /index.html HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.read_response()[0] == 200
        client.upgrade()


def test_the_producer_knows_the_request(site: Site, scheme: str) -> None:
    seen: list[Open] = []

    def serve(event: Event) -> None:
        if event.type() is Event.Accept:
            seen.append(event.client().request)

    name = "info.ws"
    with site.producer(name, serve), RawClient(site.dial(scheme)) as client:
        near = client.socket.getsockname()
        client.upgrade(f"/{name}?a=%20b", X_Test="é", Sec_WebSocket_Protocol="chat, x")
        (open_,) = wait_for(lambda: seen)
        assert open_.uri == f"/{name}?a=%20b"
        assert open_.method == "GET"
        assert open_.scheme == ("ws" if scheme == "ws" else "wss")
        assert open_.tls == tls_seen_by(client)
        assert open_.remote == near
        assert open_.local == client.socket.getpeername()
        assert open_.header("host") == "localhost"
        assert open_.header("x-test") == "é"
        assert open_.offered == ("chat", "x")
        assert re.fullmatch(r"[0-9a-f-]{36}", open_.id)


@pytest.mark.parametrize("name", ["grüße", "чат", "gr\udcfc\udcdfe"], ids=ascii)
@pytest.mark.parametrize("form", ["/{}.ws", "/ws/{}"])
def test_a_file_may_have_any_name(event_site: Site, form: str, name: str) -> None:
    path = form.format(urllib.parse.quote_from_bytes(os.fsencode(name)))
    with (
        event_site.producer(f"{name}.ws", echo),
        RawClient(event_site.dial("ws")).upgrade(path) as client,
    ):
        client.send(masked(0x81, b"hi"))
        assert client.read_frame() == (0x81, b"hi")


def tls_seen_by(client: RawClient) -> TLS | None:
    """Return what OPEN is to say of a client's encryption."""
    if not isinstance(client.socket, ssl.SSLSocket):
        return None
    version, cipher = client.socket.version(), client.socket.cipher()
    assert version and cipher
    return TLS(version, cipher[0], "localhost", None)


def test_the_producer_knows_whose_certificate_apache_has_verified() -> None:
    seen: list[Open] = []

    def serve(event: Event) -> None:
        if event.type() is Event.Accept:
            seen.append(event.client().request)

    # The certificate is its own authority.
    extra = 'SSLVerifyClient optional\nSSLCACertificateFile "${ROOT}/localhost.pem"\n'
    with running_site("event", extra=extra) as site, site.producer("who.ws", serve):
        for certificate, subject in [(None, None), (site.apache.certificate, "CN=localhost")]:
            context = site.tls_context()
            if certificate:
                context.load_cert_chain(certificate)
            plain = socket.create_connection(("127.0.0.1", site.apache.tls_port), 10)
            with RawClient(context.wrap_socket(plain, server_hostname="localhost")) as client:
                client.upgrade("/who.ws")
                wait_for(lambda: seen)
                tls = seen.pop().tls
                assert tls and tls.client_subject == subject


@pytest.mark.parametrize("size", [1, 125, 126, 65535, 65536, 1_000_000])
def test_messages_of_all_lengths(event_site: Site, scheme: str, size: int) -> None:
    with RawClient(event_site.dial(scheme)).upgrade() as client:
        client.send(masked(0x82, b"x" * size))
        assert client.read_frame() == (0x82, b"x" * size)


def test_the_access_log_says_101_and_not_aborted(site: Site) -> None:
    with RawClient(site.dial("ws")).upgrade("/echo.ws?log") as client:
        client.send(masked(0x81, b"hi"))
        client.read_frame()
        # While the WebSocket is open: the request is over for Apache.
        line = wait_for(lambda: re.findall(r".*/echo\.ws\?log.*", site.apache.access_log))
        # LogFormat: … %>s %X; "-" is a connection that Apache closed in order.
        assert re.search(r'" 101 - \d+$', line[0]), line[0]


def test_every_close_is_logged(event_site: Site) -> None:
    with RawClient(event_site.dial("ws")).upgrade("/echo.ws?close-line") as client:
        client.send(masked(0x81, b"hi"))
        assert client.read_frame() == (0x81, b"hi")
        client.send(masked(0x88, b"\x0f\xa0bye"))
        assert client.read_close() == 4000
    (line,) = wait_for(lambda: event_site.log_lines("close-line"))
    assert re.search(
        r"(wsgi|python):info.*\[client 127\.0\.0\.1:\d+\] user=- /echo\.ws\?close-line"
        r" closed by client \(CLIENT_CLOSED\) code=4000 reason='bye' after=0\.\d+s"
        r" messages_in=1 bytes_in=2 messages_out=1 bytes_out=2",
        line,
    )


@pytest.mark.parametrize("with_tls", [False, True])
def test_what_is_sent_before_the_101_is_refused(site: Site, with_tls: bool) -> None:
    with RawClient(site.dial("wss1.3" if with_tls else "ws")) as client:
        client.send(request() + masked(0x81, b"early"))
        status, _, body = client.read_response()
        assert status == 400
        assert "before the 101" in body


def test_no_descriptor_is_left_over(site: Site) -> None:
    def round_() -> None:
        clients = [RawClient(site.dial(scheme)).upgrade() for scheme in ("ws", "wss1.3") * 10]
        for number, client in enumerate(clients):
            if number % 3 == 0:
                client.send(masked(0x88))
                client.read_close()
            client.socket.close()

    round_()  # what is opened once and kept
    before = wait_for_steady(site)
    for _ in range(3):
        round_()
    wait_for(
        lambda: site.descriptors() <= before,
        what=lambda: f"{before} descriptors before, {site.descriptors()} after",
    )


def wait_for_steady(site: Site) -> int:
    """Return the descriptors of the busiest child once they stay the same for a while."""
    counts: list[int] = []

    def steady() -> bool:
        counts.append(site.descriptors())
        return len(counts) > 30 and len(set(counts[-30:])) == 1

    wait_for(steady)
    return counts[-1]


@pytest.mark.parametrize("mpm", ["event", "worker", "prefork"])
def test_200_sockets_and_10_workers(mpm: str) -> None:
    with running_site(mpm, workers=10, threads=5) as site:
        clients = []
        for number in range(200):
            clients.append(RawClient(site.dial("ws" if number % 2 else "wss1.3")).upgrade())
        # All open at once, and the workers are free.
        for _ in range(20):
            response = requests.get(site.http(), timeout=2)
            assert response.status_code == 200
        for number, client in enumerate(clients):
            client.send(masked(0x81, str(number).encode()))
        for number, client in enumerate(clients):
            assert client.read_frame() == (0x81, str(number).encode())
        for client in clients:
            client.socket.close()


def test_a_stop_says_1001_and_leaves_nothing(scheme: str) -> None:
    with running_site("event") as site:
        with RawClient(site.dial(scheme)).upgrade() as client:
            client.send(masked(0x81, b"hi"))
            assert client.read_frame() == (0x81, b"hi")
            site.settle()
            stopper = threading.Thread(target=site.apache.stop)
            stopper.start()
            assert client.read_close() == 1001
        stopper.join()
        assert not site.apache.children()


def test_the_sockets_directory_may_be_a_link(event_site: Site) -> None:
    link = event_site.docroot / "link"
    link.symlink_to(event_site.docroot)
    try:
        with RawClient(event_site.dial("ws")).upgrade("/link/echo.ws") as client:
            client.send(masked(0x81, b"hi"))
            assert client.read_frame() == (0x81, b"hi")
    finally:
        Path(link).unlink()


def test_many_at_once(site: Site) -> None:
    with site.producer("many.ws", echo):
        failures: list[BaseException] = []

        def talk(number: int) -> None:
            try:
                with RawClient(site.dial("wss1.3" if number % 2 else "ws")) as client:
                    client.upgrade("/many.ws")
                    for turn in range(20):
                        text = f"{number}-{turn}".encode()
                        client.send(masked(0x81, text))
                        assert client.read_frame() == (0x81, text)
                    client.send(masked(0x88))
                    assert client.read_close() == 1005
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=talk, args=(number,)) for number in range(60)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures, failures[0]
