"""A tunnel through a real Apache: what a backend gets, what of its answers passes, how it ends."""

from __future__ import annotations

import contextlib
import math
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from apachews import wire
from apachews.monitoring.collect import find_apaches
from apachews.monitoring.snapshot import ConnectionStatus
from apachews_handler.backend.answer import MAX_HEAD_BYTES

from ..conftest import wait_for
from ..support.backends import Backend, Peer, backend, echo
from ..support.frames import masked
from ..support.raw_client import RawClient, request
from ..support.site import MOD_PYTHON, Site, running_site

pytestmark = pytest.mark.skipif(
    MOD_PYTHON is not None, reason="tunnels are for mod_wsgi: mod_python's directive is FileInfo's"
)

ALIASES = """
<Location /{0}>
    Require all granted
    SetEnv APACHEWS_BACKEND "{1}"
    {2}
</Location>
WSGIScriptAlias /{0} "${{APACHEWS_HANDLER}}/tunnel.py" \\
    process-group=%{{GLOBAL}} application-group=%{{GLOBAL}}
"""


def alias(name: str, address: str, *settings: str) -> str:
    return ALIASES.format(name, address, "\n    ".join(settings))


MODULES = "".join(
    f'LoadModule {name}_module "${{MODULES}}/mod_{name}.so"\n'
    for name in ("auth_basic", "authn_core", "authn_file", "authz_user", "headers")
)


class Tunnel:
    """A site, and the backends that its locations lead to."""

    def __init__(self, site: Site, tcp: Backend, unix: Backend) -> None:
        self.site = site
        self.tcp = tcp
        self.unix = unix

    def dial(self, scheme: str = "ws") -> RawClient:
        return RawClient(self.site.dial(scheme))

    def ask(self, path: str = "/app", **changes: str | None) -> RawClient:
        """Send a request; the answer is to be read."""
        client = self.dial()
        client.send(request(path, **changes))
        return client

    def last(self, count: int) -> Peer:
        """Return the connection to the backend after so many others."""
        wait_for(lambda: len(self.tcp.peers) > count)
        return self.tcp.peers[count]


def read_answer(client: RawClient) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of a response of any length."""
    status, headers = client.read_head()
    if "content-length" in headers:
        return status, headers, client.read(int(headers["content-length"]))
    if headers.get("transfer-encoding") != "chunked":
        return status, headers, client.read(1 << 30)
    body = b""
    while True:
        line = b""
        while not line.endswith(b"\r\n"):
            byte = client.read(1)
            if not byte:
                raise EOFError(body)
            line += byte
        size = int(line, 16)
        body += client.read(size)
        assert client.read(2) == b"\r\n"
        if not size:
            return status, headers, body


@pytest.fixture(scope="module")
def tunnel() -> Iterator[Tunnel]:
    directory = Path("/tmp") / f"awt{time.monotonic_ns():x}"
    directory.mkdir(mode=0o755)
    path = directory / "b.sock"
    with contextlib.ExitStack() as stack:
        tcp = stack.enter_context(backend())
        unix = stack.enter_context(backend(path))
        at = f"http://127.0.0.1:{tcp.port}"
        extra = "".join(
            (
                alias("app", at),
                alias("strip", at + "/"),
                alias("moved", at + "/new"),
                alias("unix", f"unix:{path}|http://localhost/"),
                alias(
                    "private",
                    at,
                    "AuthType Basic\nAuthName x\nAuthBasicProvider file",
                    'AuthUserFile "${ROOT}/users"\nRequire valid-user',
                ).replace("Require all granted", ""),
                alias("quick", at, "SetEnv APACHEWS_BACKEND_TIMEOUT 400ms"),
                alias("absent", "http://127.0.0.1:9"),
                alias("https", "https://127.0.0.1"),
                alias("unset", at).replace("SetEnv APACHEWS_BACKEND", "# "),
                alias(
                    "ping",
                    at,
                    "SetEnv APACHEWS_PING_INTERVAL 200ms",
                    "SetEnv APACHEWS_PING_TIMEOUT 300ms",
                ),
                alias(
                    "limited",
                    at,
                    "SetEnv APACHEWS_MAX_MESSAGE 1K",
                    "SetEnv APACHEWS_MESSAGE_RATE 20/m",
                    "SetEnv APACHEWS_PING_INTERVAL off",
                ),
                alias("idle", at, "SetEnv APACHEWS_IDLE_TIMEOUT 300ms"),
                alias("few", at, "SetEnv APACHEWS_MAX_CONNECTIONS_PER_ADDRESS 2"),
                alias("patient", at, "SetEnv APACHEWS_CLOSE_TIMEOUT 500ms"),
                alias(
                    "impatient",
                    at,
                    "SetEnv APACHEWS_CLOSE_TIMEOUT 100ms",
                    "SetEnv APACHEWS_MAX_MESSAGE 1K",
                ),
                alias(
                    "opaque",
                    at,
                    "SetEnv APACHEWS_TUNNEL opaque",
                    "SetEnv APACHEWS_CLOSE_TIMEOUT 1s",
                ),
                alias(
                    "stream",
                    at,
                    "SetEnv APACHEWS_TUNNEL opaque",
                    "SetEnv APACHEWS_CLOSE_TIMEOUT 250ms",
                ),
                alias(
                    "user",
                    at,
                    "SetEnv APACHEWS_USER_HEADER X-User",
                    "SetEnv APACHEWS_DROP_HEADERS X-Site",
                ),
                alias("proxied", at, "SetEnv APACHEWS_FORWARDED X-Forwarded"),
                alias(
                    "set",
                    at,
                    'RequestHeader set X-Forwarded-User "expr=%{REMOTE_ADDR}"',
                    'RequestHeader set X-Forwarded-Email "expr=%{REMOTE_ADDR}"',
                    "RequestHeader unset X-Forwarded-Groups",
                    'RequestHeader set X-Forwarded-Groups "staff" env=IS_STAFF',
                    "SetEnv APACHEWS_PASS_HEADERS 'X-Forwarded-User X-Forwarded-Groups'",
                ),
                f'WSGIHandlerScript as-handler "${{APACHEWS_HANDLER}}/tunnel.py"'
                " process-group=%{GLOBAL} application-group=%{GLOBAL}\n"
                'LoadModule rewrite_module "${MODULES}/mod_rewrite.so"\n'
                '<Directory "${DOCROOT}/mallory">\n'
                "AllowOverride All\nOptions FollowSymLinks\n</Directory>\n"
                f"<Files by-handler.ws>\nSetHandler as-handler\nSetEnv APACHEWS_BACKEND {at}\n"
                "</Files>\n",
            )
        )
        site = stack.enter_context(running_site(extra=MODULES + extra))
        # htpasswd -nbs ann secret
        (site.apache.root / "users").write_text("ann:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=\n")
        try:
            yield Tunnel(site, tcp, unix)
        finally:
            path.unlink(missing_ok=True)
            directory.rmdir()


@pytest.fixture(autouse=True)
def echoing(tunnel: Tunnel) -> Iterator[None]:
    yield
    tunnel.tcp.serve = tunnel.unix.serve = echo


# Messages.


@pytest.mark.parametrize("scheme", ["ws", "wss1.2", "wss1.3"])
@pytest.mark.parametrize("path", ["/app/x", "/unix"])
def test_messages_of_any_size_pass(tunnel: Tunnel, scheme: str, path: str) -> None:
    with RawClient(tunnel.site.dial(scheme)).upgrade(path) as client:
        for size in (0, 1, 125, 126, 70_000, 1_500_000):
            data = bytes(range(256)) * (size // 256) + bytes(size % 256)
            client.send(masked(0x82, data))  # the backend reads it whole, then answers
            assert client.read_data_frame() == (0x82, data)
        client.send(masked(0x89, b"ping"))
        assert client.read_frame() == (0x8A, b"ping")
        client.send(masked(0x88, b"\x0f\xa1bye"))
        assert client.read_frame() == (0x88, b"\x0f\xa1bye")
        assert client.read(1) == b""
    wait_for(lambda: tunnel.site.log_lines(rf"{path} closed by client \(CLIENT_CLOSED\) code=4001"))


def test_what_comes_with_the_101_is_not_lost(tunnel: Tunnel) -> None:
    def serve(peer: Peer) -> None:
        peer.send(peer.head(b"Sec-WebSocket-Protocol: chat", b"Set-Cookie: a=1") + b"\x81\x02hi")
        peer.read_to_end()

    tunnel.tcp.serve = serve
    with tunnel.ask(Sec_WebSocket_Protocol="chat, x") as client:
        status, headers = client.read_head()
        assert status == 101
        assert headers["sec-websocket-protocol"] == "chat"
        assert headers["set-cookie"] == "a=1"
        assert client.read_frame() == (0x81, b"hi")


# The request.


def test_the_backend_gets_the_request_and_apaches_facts(tunnel: Tunnel) -> None:
    count = len(tunnel.tcp.peers)
    port = tunnel.site.apache.port
    changes = {
        "Host": f"localhost:{port}",
        "Origin": f"http://localhost:{port}",
        "Authorization": "Bearer token",
        "Cookie": "a=1",
        "Connection": "keep-alive, Upgrade, X-Private",
        "X_Private": "1",
        "Sec_WebSocket_Extensions": "permessage-deflate",
        "X_Remote_User": "forged",
        "X_Forwarded_For": "forged",
        "X_Forwarded_Proto": "forged",
        "Forwarded": "for=forged",
        "X_Real_IP": "forged",
        "HTTP2_Settings": "forged",
        "TE": "forged",
    }
    data = request("/app/a%20b?x=1&token=%41", **changes)
    data = data.replace(b"TE: forged\r\n", b"TE: forged\r\nX_Remote_User: forged\r\n")
    with tunnel.dial() as client:
        client.send(data)
        assert client.read_head()[0] == 101
        peer = tunnel.last(count)
    assert peer.target == "/app/a%20b?x=1&token=%41"
    assert "forged" not in str(peer.headers)
    expected = {
        "host": f"localhost:{port}",
        "origin": f"http://localhost:{port}",
        "authorization": "Bearer token",
        "cookie": "a=1",
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-extensions": "permessage-deflate",
        "x-forwarded-for": "127.0.0.1",
        "x-forwarded-proto": "http",
        "x-forwarded-host": f"localhost:{port}",
        "x-forwarded-port": str(port),
    }
    assert {name: peer.headers.get(name) for name in expected} == expected
    assert "x-private" not in peer.headers
    assert "x-remote-user" not in peer.headers
    assert peer.names[-4:] == [f"X-Forwarded-{name}" for name in ("For", "Proto", "Host", "Port")]
    # Nothing of the query is in our lines.
    wait_for(lambda: tunnel.site.log_lines("/app/a%20b closed"))
    assert not tunnel.site.log_lines("token=")


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/app?a", "/app?a"),
        ("/strip/x?a", "/x?a"),
        ("/strip", "/"),
        ("/moved/x", "/new/x"),
        ("/app/../app/x", "/app/x"),
        ("//app//x", "/app/x"),
        ("/strip/%61", "/%61"),
        ("/%73trip/%61", "/a"),
        ("/app/%2e%2e/app/y", "/app/y"),
        ("/strip/\xc3\xa9?\xe9", "/%C3%A9?%E9"),
    ],
)
def test_the_url_that_apache_judged_is_sent(tunnel: Tunnel, path: str, target: str) -> None:
    count = len(tunnel.tcp.peers)
    with tunnel.ask(path) as client:
        assert client.read_head()[0] == 101
    assert tunnel.last(count).target == target


def test_a_login_of_apaches_is_told(tunnel: Tunnel) -> None:
    assert tunnel_status(tunnel, "/private") == 401
    count = len(tunnel.tcp.peers)
    with tunnel.ask(
        "/private", Authorization="Basic YW5uOnNlY3JldA==", X_Remote_User="x"
    ) as client:
        assert client.read_head()[0] == 101
    assert tunnel.last(count).headers["x-remote-user"] == "ann"


def test_a_site_names_its_own_headers(tunnel: Tunnel) -> None:
    count = len(tunnel.tcp.peers)
    with tunnel.ask("/user", X_User="forged", X_Site="forged", X_Remote_User="forged") as client:
        assert client.read_head()[0] == 101
    assert "forged" not in str(tunnel.last(count).headers)
    with tunnel.ask("/proxied", X_Forwarded_For="192.0.2.1", X_Forwarded_Proto="https") as client:
        assert client.read_head()[0] == 101
    headers = tunnel.last(count + 1).headers
    assert headers["x-forwarded-for"] == "192.0.2.1, 127.0.0.1"
    assert headers["x-forwarded-proto"] == "https"


def test_a_header_that_apache_sets_reaches_the_backend(tunnel: Tunnel) -> None:
    count = len(tunnel.tcp.peers)
    forged = {f"X_Forwarded_{name}": "forged" for name in ("User", "Email", "Groups")}
    with tunnel.ask("/set", Connection="Upgrade, X-Forwarded-User", **forged) as client:
        assert client.read_head()[0] == 101
    headers = tunnel.last(count).headers
    assert headers["x-forwarded-user"] == "127.0.0.1"
    assert "x-forwarded-email" not in headers  # Apache sets it too, but the site does not name it
    assert "x-forwarded-groups" not in headers
    assert "forged" not in str(headers)


def tunnel_status(tunnel: Tunnel, path: str) -> int:
    with tunnel.ask(path) as client:
        return client.read_head()[0]


@pytest.mark.parametrize(
    ("changes", "status", "token"),
    [
        ({"method": "POST", "Content_Length": "0"}, 426, "not-a-websocket"),
        ({"Upgrade": "h2c"}, 426, "not-a-websocket"),
        ({"Sec_WebSocket_Version": "8"}, 426, "version"),
        ({"Sec_WebSocket_Key": "short"}, 400, "malformed-key"),
        ({"Content_Length": "3"}, 400, "request-body"),
        ({"Connection": "Upgrade, Sec-WebSocket-Key"}, 400, "connection-header"),
        ({"Connection": "Upgrade, Host"}, 400, "connection-header"),
        ({"Origin": "http://evil.example"}, 403, "origin"),
    ],
)
def test_what_is_refused_never_reaches_the_backend(
    tunnel: Tunnel, changes: dict[str, Any], status: int, token: str
) -> None:
    count = len(tunnel.tcp.peers)
    with tunnel.ask(**changes) as client:
        found, headers = client.read_head()
    assert (found, headers["apachews-refused"]) == (status, token)
    with tunnel.ask("/app/after") as client:
        assert client.read_head()[0] == 101
    assert tunnel.last(count).target == "/app/after"


@pytest.mark.parametrize(
    ("path", "status", "token", "logged"),
    [
        ("/absent", 503, "no-backend", "no connection to http://127.0.0.1:9"),
        ("/https", 500, "settings", r"a backend with TLS \(https\) is not supported"),
        ("/unset", 500, "settings", "SetEnv APACHEWS_BACKEND '' is not allowed"),
        ("/by-handler.ws", 500, "tunnel-handler", "map it with WSGIScriptAlias"),
    ],
)
def test_a_location_that_leads_nowhere(
    tunnel: Tunnel, path: str, status: int, token: str, logged: str
) -> None:
    (tunnel.site.docroot / "by-handler.ws").touch()
    with tunnel.ask(path + "?token=1") as client:
        found, headers, _ = client.read_response()
    assert (found, headers["apachews-refused"]) == (status, token)
    assert ("retry-after" in headers) is (status == 503)
    assert wait_for(lambda: tunnel.site.log_lines(logged))
    assert not tunnel.site.log_lines("token=1")


@pytest.mark.parametrize(
    "directive",
    [
        "DirectoryIndex /app",
        "FallbackResource /app/",
        "RewriteEngine On\nRewriteRule ^ /app [PT]",
    ],
)
def test_an_htaccess_file_does_not_lead_to_a_tunnel(tunnel: Tunnel, directive: str) -> None:
    """httpd continues such a request with the variables that the author has set."""
    directory = tunnel.site.docroot / "mallory"
    directory.mkdir(exist_ok=True)
    (directory / ".htaccess").write_text(
        "SetEnv APACHEWS_BACKEND http://127.0.0.1:9\nSetEnv REMOTE_USER root\n" + directive
    )
    count = len(tunnel.tcp.peers)
    with tunnel.ask("/mallory/") as client:
        status, headers, _ = client.read_response()
    assert (status, headers["apachews-refused"]) == (500, "htaccess")
    assert len(tunnel.tcp.peers) == count


# The answer.


def test_a_request_behind_a_refused_one_is_not_served(tunnel: Tunnel) -> None:
    """Bytes after the head may be frames or a request: neither reaches the backend."""
    count = len(tunnel.tcp.peers)
    for more in (masked(0x81, b"early"), request("/app/second")):
        with tunnel.dial() as client:
            client.send(request("/app") + more)
            status, headers, _ = client.read_response()
            assert (status, headers["apachews-refused"]) == (400, "early-data")
            assert client.read(1) == b""
    assert len(tunnel.tcp.peers) == count


def test_a_refused_handshake_leaves_the_connection_to_apache(tunnel: Tunnel) -> None:
    """Whatever the client sends after a backend's refusal, the backend hears nothing of it."""
    heard = []

    def serve(peer: Peer) -> None:
        peer.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
        heard.append(peer.read_to_end())

    tunnel.tcp.serve = serve
    with tunnel.ask() as client:
        status, headers, body = client.read_response()
        assert (status, body, headers["connection"]) == (403, "no", "close")
        with contextlib.suppress(ConnectionError):
            client.send(request("/app/second"))
        with contextlib.suppress(ConnectionError):
            assert client.read(1) == b""
    wait_for(lambda: heard == [b""])


@pytest.mark.parametrize(
    "answer",
    [
        lambda peer: peer.head(accept=b"wrong"),
        lambda peer: peer.head().replace(b"Sec-WebSocket-Accept", b"X"),
        lambda peer: peer.head(b"Sec-WebSocket-Accept: " + peer.accept_header()),
        lambda peer: peer.head().replace(b"websocket", b"h2c"),
        lambda peer: peer.head().replace(b"HTTP/1.1", b"HTTP/1.0"),
        lambda peer: peer.head(b"X: a\rb"),
        lambda peer: b"\x81\x02hi\r\n\r\n",
        lambda peer: b"\x81\x02hi" + peer.head(),
        lambda peer: b"220 ready\r\n" + peer.head(),
        lambda peer: b"\r\n" + peer.head(),
        lambda peer: b"",
        lambda peer: peer.head()[:50],
        lambda peer: peer.head(b"X: " + b"a" * MAX_HEAD_BYTES),
        lambda peer: (
            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\nhi"
        ),
        lambda peer: b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi",
    ],
)
def test_an_answer_that_is_not_one_is_a_502(tunnel: Tunnel, answer: Any) -> None:
    def serve(peer: Peer) -> None:
        peer.send(answer(peer))

    tunnel.tcp.serve = serve
    with tunnel.ask() as client:
        status, headers, _ = client.read_response()
    assert (status, headers["apachews-refused"]) == (502, "bad-backend-answer")


@pytest.mark.parametrize(("path", "status"), [("/app", 502), ("/quick", 504)])
def test_what_a_client_sends_before_a_502_is_not_a_request(
    tunnel: Tunnel, path: str, status: int
) -> None:
    """A client that does not wait for the 101 sends frames, whatever bytes they contain."""
    count, is_sent = len(tunnel.tcp.peers), threading.Event()

    def serve(peer: Peer) -> None:
        is_sent.wait(10)
        if status == 502:
            peer.send(peer.head(accept=b"wrong"))
        peer.read_to_end()

    tunnel.tcp.serve = serve
    with tunnel.ask(path) as client:
        tunnel.last(count)
        client.send(request("/index.html"))
        is_sent.set()
        assert client.read_response()[0] == status
        assert client.read(1) == b""


def test_a_backend_that_closes_at_any_byte_is_a_502_and_costs_no_worker(tunnel: Tunnel) -> None:
    """There are more of these answers than workers: a lost one would be missing in the end."""
    size = whole = 0

    def serve(peer: Peer) -> None:
        nonlocal whole
        whole = len(peer.head())
        peer.send(peer.head()[:size])

    tunnel.tcp.serve = serve
    while not whole or size < whole:
        with tunnel.ask() as client:
            status, headers, _ = client.read_response()
        assert (status, headers["apachews-refused"]) == (502, "bad-backend-answer"), size
        size += 1
    assert size > 100
    with tunnel.ask() as client:
        assert client.read_head()[0] == 101


@pytest.mark.parametrize(
    ("answer", "status", "expected", "body"),
    [
        (b"200 OK\r\nContent-Length: 2\r\nX-Own: 1\r\n\r\nhi", 200, {"x-own": "1"}, b"hi"),
        (b"204 No Content\r\n\r\n", 204, {}, b""),
        (
            b"401 Unauthorized\r\nWWW-Authenticate: Basic\r\nWWW-Authenticate: Bearer\r\n"
            b"Content-Length: 0\r\nKeep-Alive: 5\r\nConnection: X-Private\r\nX-Private: 1\r\n\r\n",
            401,
            {"www-authenticate": "Basic, Bearer", "keep-alive": None, "x-private": None},
            b"",
        ),
        (
            b"426 Upgrade Required\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Content-Length: 0\r\n\r\n",
            426,
            {"upgrade": "websocket", "sec-websocket-version": "13"},
            b"",
        ),
        (
            b"503 Busy\r\nTransfer-Encoding: chunked\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n"
            b"\r\n2\r\nhi\r\n0\r\n\r\n",
            503,
            {"set-cookie": "a=1, b=2"},
            b"hi",
        ),
        (
            b"302 Found\r\nLocation: /login\r\nContent-Length: 0\r\n\r\n",
            302,
            {"location": "/login"},
            b"",
        ),
    ],
)
def test_every_other_answer_passes(
    tunnel: Tunnel, answer: bytes, status: int, expected: dict[str, str | None], body: bytes
) -> None:
    def serve(peer: Peer) -> None:
        peer.send(b"HTTP/1.1 " + answer)
        peer.read_to_end()

    tunnel.tcp.serve = serve
    with tunnel.ask() as client:
        found, headers, content = read_answer(client)
        assert client.read(1) == b"", "the connection is closed"
    assert (found, content) == (status, body)
    assert {name: headers.get(name) for name in expected} == expected
    assert headers["apachews-refused"] == "backend"
    assert headers["connection"] == "close"


def test_a_long_answer_and_one_of_http_1_0_pass(tunnel: Tunnel) -> None:
    long = bytes(range(256)) * 12_000

    def serve(peer: Peer) -> None:
        peer.send(b"HTTP/1.0 200 OK\r\nContent-Type: text/x\r\n\r\n" + long)

    tunnel.tcp.serve = serve
    with tunnel.ask() as client:
        status, headers, body = read_answer(client)
    assert (status, headers["content-type"], body == long) == (200, "text/x", True)


@pytest.mark.parametrize("framing", [b"Content-Length: 900000", b"Transfer-Encoding: chunked"])
def test_a_long_body_that_ends_early_cuts_the_connection(tunnel: Tunnel, framing: bytes) -> None:
    def serve(peer: Peer) -> None:
        peer.send(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n")
        peer.send((b"30d40\r\n" if b"chunked" in framing else b"") + bytes(200_000))

    tunnel.tcp.serve = serve
    with tunnel.ask() as client:
        try:
            _, headers, body = read_answer(client)
        except EOFError:
            return  # the chunks do not end
        assert len(body) < int(headers["content-length"])
    wait_for(lambda: tunnel.site.log_lines("502 bad-backend-answer for /app: the body of"))


@pytest.mark.parametrize("piece", [b"a", bytes(50_000)])
def test_a_body_that_does_not_end_is_cut_in_time(tunnel: Tunnel, piece: bytes) -> None:
    ended = threading.Event()
    chunk = b"%x\r\n%b\r\n" % (len(piece), piece)

    def serve(peer: Peer) -> None:
        peer.send(b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                peer.send(chunk)
                ended.wait(0.01)

    tunnel.tcp.serve = serve
    begun_at = time.monotonic()
    with tunnel.ask("/quick") as client:
        if piece == b"a":  # the client has nothing of it yet
            assert client.read_response()[0] == 504
        else:
            with pytest.raises(EOFError):  # it has no last chunk
                read_answer(client)
            wait_for(lambda: tunnel.site.log_lines("for /quick: the body of .* it takes too long"))
    assert 0.3 < time.monotonic() - begun_at < 5


def test_interim_answers_are_skipped(tunnel: Tunnel) -> None:
    def serve(peer: Peer) -> None:
        peer.send(b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n")
        echo(peer)

    tunnel.tcp.serve = serve
    with tunnel.dial().upgrade("/app") as client:
        client.send(masked(0x81, b"hi"))
        assert client.read_data_frame() == (0x81, b"hi")


@pytest.mark.parametrize("pieces", [[], [b"HTTP/1.1 101 Sw"] + [b"x"] * 100])
def test_a_slow_answer_is_a_504_in_time(tunnel: Tunnel, pieces: list[bytes]) -> None:
    ended = threading.Event()

    def serve(peer: Peer) -> None:
        for piece in pieces:
            peer.send(piece)
            ended.wait(0.02)
        peer.read_to_end()

    tunnel.tcp.serve = serve
    begun_at = time.monotonic()
    with tunnel.ask("/quick") as client:
        status, headers, _ = client.read_response()
    assert (status, headers["apachews-refused"]) == (504, "backend-timeout")
    assert 0.3 < time.monotonic() - begun_at < 5


def test_backends_that_stall_in_a_long_answer_leave_workers_to_the_pages(tunnel: Tunnel) -> None:
    """One per bound passes; the client of any other gets a 503 and not a cut answer."""
    bound = math.ceil(50 / 8)  # of the workers that httpd keeps idle here
    count, before = 100, len(tunnel.tcp.peers)
    cut_before = len(tunnel.site.log_lines(r"for /app: the body of"))

    def serve(peer: Peer) -> None:
        peer.send(b"HTTP/1.1 404 Not Found\r\nContent-Length: 900000\r\n\r\n" + bytes(100_000))
        peer.read_to_end()

    def open_peers() -> list[Peer]:
        return [peer for peer in tunnel.tcp.peers[before:] if peer.socket.fileno() != -1]

    tunnel.tcp.serve = serve
    with contextlib.ExitStack() as stack:
        answers: list[tuple[int, dict[str, str]]] = []
        for _ in range(count):
            client = stack.enter_context(tunnel.ask("/app"))
            answers.append(client.read_head())
        passed = [headers for status, headers in answers if status == 404]
        refused = [headers for status, headers in answers if status == 503]
        assert (len(passed), len(refused)) == (bound, count - bound)
        assert {headers["apachews-refused"] for headers in refused} == {"waiting-limit"}
        assert {headers["retry-after"] for headers in refused} == {"5"}
        begun_at = time.monotonic()
        for _ in range(20):
            requests.get(tunnel.site.http(), timeout=10).raise_for_status()
        assert time.monotonic() - begun_at < 5
        wait_for(lambda: len(open_peers()) == bound)  # those for refused clients have ended
    lines = tunnel.site.log_lines(rf"503 waiting-limit for /app: {bound} long answers of 'http")
    assert len(lines) == count - bound
    for peer in open_peers():
        peer.socket.shutdown(socket.SHUT_RDWR)  # the backend ends: its places are free again
    wait_for(lambda: len(tunnel.site.log_lines(r"for /app: the body of")) >= cut_before + bound)


# The session's own frames, its limits and its ends.


def test_a_keep_alive_is_between_the_two_of_them(tunnel: Tunnel) -> None:
    """The client gets PINGs; the backend sees none of the answers."""
    count = len(tunnel.tcp.peers)
    heard: list[bytes] = []

    def serve(peer: Peer) -> None:
        peer.accept()
        heard.append(peer.read_to_end())

    tunnel.tcp.serve = serve
    with tunnel.dial().upgrade("/ping") as client:
        for _ in range(3):
            frame = client.read_frame()
            assert frame
            assert frame[0] == 0x89
            client.send(masked(0x8A, frame[1]))
        client.send(masked(0x8A, b"own"))
    tunnel.last(count)
    wait_for(lambda: heard == [masked(0x8A, b"own")])


def test_a_silent_client_is_closed(tunnel: Tunnel) -> None:
    heard: list[tuple[int, bytes] | None] = []

    def serve(peer: Peer) -> None:
        peer.accept()
        heard.append(peer.read_masked())

    tunnel.tcp.serve = serve
    with tunnel.dial().upgrade("/ping") as client:
        assert client.read_close() == 1011
    wait_for(lambda: heard == [(0x88, b"\x03\xe9")])


@pytest.mark.parametrize(
    ("frames", "code", "cause"),
    [
        ([masked(0x82, bytes(1025))], 1009, "TOO_BIG"),
        ([masked(0x02, bytes(1000)), masked(0x80, bytes(25))], 1009, "TOO_BIG"),
        ([masked(0x81, b"x")] * 21, 1008, "TOO_MANY_MESSAGES"),
    ],
)
def test_limits_hold_for_the_frames(
    tunnel: Tunnel, frames: list[bytes], code: int, cause: str
) -> None:
    heard: list[bytes] = []

    def serve(peer: Peer) -> None:
        peer.accept()
        heard.append(peer.read_to_end())

    tunnel.tcp.serve = serve
    with tunnel.dial().upgrade("/limited") as client:
        client.send(b"".join(frames))
        assert client.read_close() == code
    wait_for(lambda: heard)
    assert heard[0] == b"".join(frames[:-1]) + b"\x88\x82\0\0\0\0\x03\xe9"
    wait_for(lambda: tunnel.site.log_lines(rf"/limited closed by bridge \({cause}\) code={code}"))


def test_an_idle_connection_is_closed(tunnel: Tunnel) -> None:
    with tunnel.dial().upgrade("/idle") as client:
        assert client.read_close() == 1001


def test_the_limit_per_address_counts_tunnels(tunnel: Tunnel) -> None:
    with tunnel.dial().upgrade("/few"), tunnel.dial().upgrade("/few"):
        assert tunnel_status(tunnel, "/few") == 429
    wait_for(lambda: tunnel_status(tunnel, "/few") == 101)


@pytest.mark.parametrize("scheme", ["ws", "wss1.3"])
@pytest.mark.parametrize(
    ("last", "code"),
    [
        (b"\x81\x02hi", 1012),
        (b"\x81\x02hi\x81", 1012),  # inside a header
        (b"\x81\x02hi\x89\x04pi", 1012),  # inside a control frame
        (b"\x81\x7e\x10\x00hi", 1006),  # inside a message
    ],
)
def test_a_backend_that_dies(tunnel: Tunnel, scheme: str, last: bytes, code: int) -> None:
    def serve(peer: Peer) -> None:
        peer.accept()
        peer.send(last)

    tunnel.tcp.serve = serve
    with RawClient(tunnel.site.dial(scheme)).upgrade("/app") as client:
        assert client.read_close() == code


def test_a_backend_that_ends_without_an_answer(tunnel: Tunnel) -> None:
    """As Mosquitto: the client gets its own code back."""

    def serve(peer: Peer) -> None:
        peer.accept()
        while peer.read_masked() not in (None, (0x88, b"\x0f\xa1")):
            pass

    tunnel.tcp.serve = serve
    with tunnel.dial().upgrade("/app") as client:
        client.send(masked(0x88, b"\x0f\xa1"))
        assert client.read_close() == 4001


def test_the_last_message_of_a_client_that_leaves_arrives(tunnel: Tunnel) -> None:
    """The backend sends at the same time: a reset would lose it what the client has sent."""
    heard: list[bytes] = []

    def serve(peer: Peer) -> None:
        peer.accept()
        peer.send(b"\x82\x7f" + (1 << 20).to_bytes(8, "big") + bytes(300_000))
        gone.wait(10)
        with contextlib.suppress(TimeoutError):
            peer.socket.settimeout(5)
            peer.send(bytes(100_000))
        heard.append(peer.read_to_end())

    gone = threading.Event()
    tunnel.tcp.serve = serve
    with tunnel.dial().upgrade("/app") as client:
        client.send(masked(0x81, b"last"))
    gone.set()
    wait_for(lambda: heard)
    assert heard == [masked(0x81, b"last")]


def test_an_end_of_file_after_a_close_leaves_the_answer_its_way(tunnel: Tunnel) -> None:
    def serve(peer: Peer) -> None:
        peer.accept()
        heard = peer.read_to_end()  # to the client's end of file
        peer.send(b"\x81\x04last\x88\x02\x0f\xa1" if heard else b"")

    tunnel.tcp.serve = serve
    with tunnel.dial().upgrade("/app") as client:
        client.send(masked(0x88, b"\x0f\xa1"))
        client.socket.shutdown(socket.SHUT_WR)
        assert client.read_frame() == (0x81, b"last")
        assert client.read_frame() == (0x88, b"\x0f\xa1")


def test_a_long_message_after_a_close_is_not_cut(tunnel: Tunnel) -> None:
    """It takes longer than APACHEWS_CLOSE_TIMEOUT, and makes progress all the time."""
    ended = threading.Event()

    def serve(peer: Peer) -> None:
        peer.accept()
        peer.read_masked()
        peer.send(b"\x82\x7e\x03\xe8")
        for _ in range(10):
            peer.send(bytes(100))
            ended.wait(0.15)
        peer.send(b"\x88\x02\x0f\xa1")

    tunnel.tcp.serve = serve
    with tunnel.dial().upgrade("/patient") as client:
        client.send(masked(0x88, b"\x0f\xa1"))
        assert client.read_frame() == (0x82, bytes(1000))
        assert client.read_frame() == (0x88, b"\x0f\xa1")


def test_ends_that_never_come_are_bounded(tunnel: Tunnel) -> None:
    def serve(peer: Peer) -> None:
        peer.accept()
        while True:  # until the bridge closes
            peer.send(b"\x81\x01x" * 1000)

    tunnel.tcp.serve = serve
    with tunnel.dial().upgrade("/patient"):
        pass
    wait_for(lambda: tunnel.site.log_lines(r"/patient closed by client \(CLIENT_LEFT\)"))


@pytest.mark.parametrize(
    ("flood", "last", "cause"),
    [
        # Messages after the client's CLOSE, and no answer.
        (b"\x82\x64" + bytes(100), masked(0x88, b"\x0f\xa1"), r"by client \(CLIENT_CLOSED"),
        # A frame without an end: Apache's own CLOSE waits for it.
        (bytes(100), masked(0x82, bytes(1025)), r"by bridge \(TOO_BIG"),
    ],
    ids=["messages", "frame"],
)
def test_a_backend_that_floods_instead_of_closing_is_cut(
    tunnel: Tunnel, flood: bytes, last: bytes, cause: str
) -> None:
    """The client reads slowly, so there is always progress."""
    slowly = threading.Event()

    def serve(peer: Peer) -> None:
        peer.accept()
        if flood[0] == 0:
            peer.send(b"\x82\x7f" + (1 << 50).to_bytes(8, "big"))
        peer.read(1)  # the first byte of the client's frame
        with contextlib.suppress(ConnectionError):
            while True:
                peer.send(flood * 1000)

    tunnel.tcp.serve = serve
    with tunnel.dial().upgrade("/impatient") as client:
        begun_at = time.monotonic()
        client.send(last)
        with contextlib.suppress(ConnectionResetError):
            while client.socket.recv(1 << 16):
                slowly.wait(0.01)
        assert time.monotonic() - begun_at < 10
    wait_for(lambda: tunnel.site.log_lines(rf"/impatient closed {cause}"))


def test_a_client_that_floods_instead_of_closing_is_cut(tunnel: Tunnel) -> None:
    def serve(peer: Peer) -> None:
        peer.accept()
        peer.send(b"\x88\x02\x0f\xa1")
        while peer.socket.recv(1 << 16):
            pass

    tunnel.tcp.serve = serve
    with tunnel.dial().upgrade("/impatient") as client:
        begun_at = time.monotonic()
        assert client.read_frame() == (0x88, b"\x0f\xa1")
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - begun_at < 10:
                client.send(masked(0x82, bytes(100)) * 10)
        assert time.monotonic() - begun_at < 10
    wait_for(lambda: tunnel.site.log_lines(r"/impatient closed by producer \(PRODUCER_CLOSED"))


def test_opaque_bytes_pass_untouched(tunnel: Tunnel) -> None:
    def serve(peer: Peer) -> None:
        peer.send(peer.head() + b"RFB 003.008\n")
        assert peer.read(7) == b"\x88\x02RFB\n\0"
        assert peer.read(1) == b""  # the client's end of file
        peer.send(b"the rest")

    tunnel.tcp.serve = serve
    with tunnel.dial().upgrade("/opaque") as client:
        assert client.read(12) == b"RFB 003.008\n"
        client.send(b"\x88\x02RFB\n\0")
        client.socket.shutdown(socket.SHUT_WR)
        assert client.read(9) == b"the rest"
    wait_for(lambda: tunnel.site.log_lines(r"/opaque closed by client"))


def test_one_direction_of_opaque_bytes_may_go_on(tunnel: Tunnel) -> None:
    """For longer than the two ends of a WebSocket may take: ten times the timeout of a CLOSE."""
    ended = threading.Event()

    def serve(peer: Peer) -> None:
        peer.accept()
        assert peer.read(1) == b""  # the client's end of file
        begun_at, sent = time.monotonic(), 0
        while time.monotonic() < begun_at + 2.6:
            peer.send(b"x")
            sent += 1
            ended.wait(0.02)  # a busy machine may pause for ten times as long
        peer.send(b"%d" % sent)

    tunnel.tcp.serve = serve
    with tunnel.dial().upgrade("/stream") as client:
        client.socket.shutdown(socket.SHUT_WR)
        received = client.read(1 << 20)
    digits = received.lstrip(b"x")
    assert digits == b"%d" % (len(received) - len(digits))


def test_the_status_has_tunnels(tunnel: Tunnel) -> None:
    with tunnel.dial().upgrade("/app/x?token=1") as client:
        client.send(masked(0x81, b"hi"))
        assert client.read_data_frame() == (0x81, b"hi")
        name = f"http://127.0.0.1:{tunnel.tcp.port}"

        def shown() -> list[ConnectionStatus]:
            (apache,) = (found for found in find_apaches() if found.pid == tunnel.site.apache.pid)
            connections = [connection for _, connection in apache.collect().connections()]
            return [connection for connection in connections if connection.path == "/app/x"]

        (connection,) = wait_for(shown)
        assert connection.endpoint == name
        assert (connection.messages_in, connection.messages_out) == (1, 1)


def test_apache_that_stops_closes_both_sides() -> None:
    heard: list[bytes] = []

    def serve(peer: Peer) -> None:
        peer.accept()
        heard.append(peer.read_to_end())

    with backend() as tcp:
        tcp.serve = serve
        with running_site(extra=alias("app", f"http://127.0.0.1:{tcp.port}")) as site:
            clients = [RawClient(site.dial(scheme)).upgrade("/app") for scheme in ("ws", "wss1.3")]
            site.settle()
            site.apache.stop()
            assert [client.read_close() for client in clients] == [1001, 1001]
            for client in clients:
                client.socket.close()
        wait_for(lambda: len(heard) == 2)
        assert heard == [b"\x88\x82\0\0\0\0\x03\xe9"] * 2


@pytest.mark.parametrize("mpm", ["worker", "prefork"])
def test_other_mpms(mpm: str) -> None:
    with backend() as tcp:
        extra = alias("app", f"http://127.0.0.1:{tcp.port}")
        with running_site(mpm, extra=extra) as site:
            for scheme in ("ws", "wss1.3"):
                with RawClient(site.dial(scheme)).upgrade("/app") as client:
                    client.send(masked(0x81, b"hi"))
                    assert client.read_data_frame() == (0x81, b"hi")
                    client.send(masked(0x88, b"\x03\xe8"))
                    assert client.read_close() == wire.NORMAL


def test_one_url_for_pages_and_sockets() -> None:
    """Plain requests go to mod_proxy, WebSockets to the tunnel, without mod_rewrite."""

    def serve(peer: Peer) -> None:
        if "upgrade" in peer.headers:
            echo(peer)
        else:
            peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\npage")

    with backend() as tcp:
        tcp.serve = serve
        address = f"http://127.0.0.1:{tcp.port}"
        extra = (
            'LoadModule proxy_module "${MODULES}/mod_proxy.so"\n'
            'LoadModule proxy_http_module "${MODULES}/mod_proxy_http.so"\n'
            "<VirtualHost *:*>\n"
            'SetEnvIfNoCase Upgrade "^websocket$" no-proxy\n'
            f"ProxyPass /app {address}/app\n" + alias("app", address) + "</VirtualHost>\n"
        )
        with running_site(extra=extra) as site:
            answer = requests.get(site.http("/app/x"), timeout=10)
            assert (answer.status_code, answer.text) == (200, "page")
            assert "Vary" not in answer.headers
            with RawClient(site.dial("ws")).upgrade("/app/x") as client:
                client.send(masked(0x81, b"hi"))
                assert client.read_data_frame() == (0x81, b"hi")
        assert {peer.target for peer in tcp.peers} == {"/app/x"}


def test_log_lines_have_no_query(tunnel: Tunnel) -> None:
    lines = tunnel.site.log_lines("apachews|closed by")
    assert lines
    assert not [line for line in lines if re.search(r"\?\w", line)]
