"""Tunnels through reloads of a real Apache, and next to its pages."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import requests

from ..conftest import wait_for
from ..support.backends import Peer, backend, echo, echo_server
from ..support.crowd import crowd
from ..support.frames import masked
from ..support.raw_client import RawClient, request
from ..support.site import MOD_PYTHON, Site, running_site
from .test_handover import merged, unharmed
from .test_tunnel import alias

pytestmark = pytest.mark.skipif(
    MOD_PYTHON is not None, reason="tunnels are for mod_wsgi: mod_python's directive is FileInfo's"
)

# A page takes some milliseconds, also on a busy machine.
PAGE_S = 2.0


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with echo_server(tmp_path_factory.mktemp("echo")) as port:
        yield port


def test_100_tunnels_and_two_reloads(port: int) -> None:
    with running_site(extra=alias("app", f"http://127.0.0.1:{port}")) as site:
        with crowd(site, 100, path="/app") as clients:
            clients.wait_for_echoes(500)
            for _ in range(2):
                site.renew()
                clients.wait_for_everybody()
            assert clients.open_count == 100
            assert site.custodians()
            unharmed(clients)
            assert clients.report.lost == 0
        wait_for(lambda: not site.carriers())


def test_tunnels_move_to_the_oldest_custodian(port: int) -> None:
    """Plain ones as they are, those with TLS behind a relay; limits and counts move with them."""
    settings = ("SetEnv APACHEWS_MAX_CONNECTIONS 20", "SetEnv APACHEWS_PING_INTERVAL 1s")
    with (
        running_site(extra=alias("app", f"http://127.0.0.1:{port}", *settings)) as site,
        crowd(site, 5, path="/app", tls=False) as first,
    ):
        first.wait_for_echoes(20)
        site.renew()
        oldest = merged(site)
        with crowd(site, 10, path="/app") as later:
            later.wait_for_echoes(20)
            site.renew()
            assert merged(site) == oldest
            wait_for(lambda: len(site.relays()) >= 1)
            for clients in (first, later):
                clients.wait_for_everybody()
            with crowd(site, 5, path="/app"), RawClient(site.dial("ws")) as surplus:
                surplus.send(request("/app"))
                assert surplus.read_head()[0] == 503
            for clients in (first, later):
                unharmed(clients)


def test_a_message_that_is_under_way_survives_a_reload() -> None:
    """The tunnel is inside a frame in both directions while its process changes."""
    go_on = threading.Event()

    def serve(peer: Peer) -> None:
        peer.accept()
        peer.send(b"\x82\x7f" + (200_000).to_bytes(8, "big") + bytes(100_000))
        assert peer.read(14) == masked(0x82, bytes(150_000))[:14]
        go_on.wait(30)
        peer.send(bytes(100_000))
        peer.read(150_000)
        peer.send(b"\x81\x02ok")
        peer.read_masked()

    with backend() as tcp:
        tcp.serve = serve
        with running_site(extra=alias("app", f"http://127.0.0.1:{tcp.port}")) as site:
            for scheme in ("ws", "wss1.3"):
                go_on.clear()
                with RawClient(site.dial(scheme)).upgrade("/app") as client:
                    message = masked(0x82, bytes(150_000))
                    client.send(message[:50_000])
                    site.renew()
                    client.send(message[50_000:])
                    go_on.set()
                    assert client.read_data_frame() == (0x82, bytes(200_000))
                    assert client.read_data_frame() == (0x81, b"ok")


def page_times(site: Site, count: int) -> list[float]:
    times = []
    for _ in range(count):
        begun_at = time.monotonic()
        assert requests.get(site.http(), timeout=30).status_code == 200
        times.append(time.monotonic() - begun_at)
    return times


def test_400_tunnels_hold_no_worker(port: int) -> None:
    extra = alias("app", f"http://127.0.0.1:{port}")
    with (
        running_site(workers=10, threads=5, extra=extra) as site,
        crowd(site, 400, path="/app", round_s=0.5) as clients,
    ):
        clients.wait_for_everybody(60)
        assert clients.open_count == 400
        assert max(page_times(site, 20)) < PAGE_S
        unharmed(clients)


def test_a_backend_that_hangs_leaves_the_workers_to_the_pages() -> None:
    """Handshakes that wait for it are few; the others get 503 with Retry-After."""
    go_on = threading.Event()

    def serve(peer: Peer) -> None:
        go_on.wait(30)

    settings = ("SetEnv APACHEWS_BACKEND_TIMEOUT 3s", "SetEnv APACHEWS_CONNECT_TIMEOUT 3s")
    with backend() as tcp:
        tcp.serve = serve
        extra = alias("app", f"http://127.0.0.1:{tcp.port}", *settings)
        with running_site(workers=25, threads=25, extra=extra) as site:
            statuses: list[tuple[int, str, bool]] = []

            def connect() -> None:
                with RawClient(site.dial("ws")) as client:
                    client.send(request("/app"))
                    status, headers = client.read_head()
                    token = headers["apachews-refused"]
                    statuses.append((status, token, "retry-after" in headers))

            threads = [threading.Thread(target=connect) for _ in range(40)]
            for thread in threads:
                thread.start()
            # A quarter of the workers that httpd keeps idle.
            wait_for(lambda: len(tcp.peers) == 7)
            assert max(page_times(site, 20)) < PAGE_S
            for thread in threads:
                thread.join()
            assert len(tcp.peers) <= 14
            assert set(statuses) == {
                (503, "waiting-limit", True),
                (504, "backend-timeout", False),
            }
            go_on.set()


def test_backends_that_hang_leave_a_place_to_another_backend() -> None:
    """All places are taken, and still a backend that answers gets its clients."""
    go_on = threading.Event()

    def hang(peer: Peer) -> None:
        go_on.wait(30)

    def hold(name: str) -> None:
        count = len(tcp[name].peers)
        client = stack.enter_context(RawClient(site.dial("ws")))
        client.send(request(f"/{name}"))
        wait_for(lambda: len(tcp[name].peers) > count)

    with contextlib.ExitStack() as stack:
        names = ("first", "second", "third", "good")
        tcp = {name: stack.enter_context(backend()) for name in names}
        extra = "".join(alias(name, f"http://127.0.0.1:{tcp[name].port}") for name in names)
        site = stack.enter_context(running_site(workers=25, threads=25, extra=extra))
        stack.callback(go_on.set)
        for name, count in (("first", 7), ("second", 7), ("third", 1)):
            tcp[name].serve = hang
            for _ in range(count):
                hold(name)
        for _ in range(10):
            with RawClient(site.dial("ws")).upgrade("/good") as client:
                client.send(masked(0x81, b"hi"))
                assert client.read_data_frame() == (0x81, b"hi")


def test_clients_that_read_a_refusal_slowly_leave_places_to_others() -> None:
    """The length of a handshake's wait is the backend's, not the clients'."""

    def refuse(peer: Peer) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 8000000\r\n\r\n" + bytes(8_000_000))

    with backend() as tcp, contextlib.ExitStack() as stack:
        extra = alias("app", f"http://127.0.0.1:{tcp.port}")
        site = stack.enter_context(running_site(workers=25, threads=25, extra=extra))
        tcp.serve = refuse
        # As many as may wait; fewer long answers may pass at a time.
        statuses = []
        for _ in range(7):
            client = stack.enter_context(RawClient(site.dial("ws")))
            client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.send(request("/app"))
            statuses.append(client.read_head()[0])
        assert statuses[0] == 200 and set(statuses) == {200, 503}
        tcp.serve = echo
        with RawClient(site.dial("ws")).upgrade("/app") as client:
            client.send(masked(0x81, b"hi"))
            assert client.read_data_frame() == (0x81, b"hi")


def test_a_tunnel_stands_beside_producers(port: int) -> None:
    with running_site(extra=alias("app", f"http://127.0.0.1:{port}")) as site:
        for path in ("/echo.ws", "/app"):
            with RawClient(site.dial("ws")).upgrade(path) as client:
                client.send(masked(0x81, b"hi"))
                assert client.read_data_frame() == (0x81, b"hi")
