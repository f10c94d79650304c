"""Every HTTP answer of the design's table, from real Apache, with its log line."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from apachews import Event
from apachews.monitoring import refusals

from ..conftest import wait_for
from ..support.frames import masked
from ..support.raw_client import RawClient, request
from ..support.site import IS_ROOT, MOD_PYTHON, Site, running_site


def answer(site: Site, data: bytes, with_tls: bool = False) -> tuple[int, dict[str, str], str]:
    with RawClient(site.dial("wss1.3" if with_tls else "ws")) as client:
        client.send(data)
        return client.read_response()


def assert_logged(site: Site, status: int, uri: str, text: str) -> None:
    """One line, with the client's address and a token, that says why."""
    lines = wait_for(
        lambda: site.log_lines(rf"apachews: {status} [a-z0-9-]+ for {re.escape(uri)}:")
    )
    assert len(lines) == 1, lines
    assert refusals.find("", lines[0])
    assert re.search(r"\[(client|remote) 127\.0\.0\.1:\d+\]", lines[0])
    assert text in lines[0]


@contextmanager
def listening(path: Path, backlog: int = 5) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        path.chmod(0o666)
        sock.listen(backlog)
        yield sock
    path.unlink()


@pytest.mark.parametrize("with_tls", [False, True])
@pytest.mark.parametrize("mpm", ["event", "prefork"])
def test_a_plain_request_is_told_to_upgrade(
    sites: dict[str, Site], mpm: str, with_tls: bool
) -> None:
    site = sites[mpm]
    path = f"/echo.ws?plain-{with_tls}"
    data = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    status, headers, body = answer(site, data, with_tls)
    assert status == 426
    assert headers["upgrade"] == "websocket"
    assert "upgrade" in headers["connection"].lower()
    assert headers["content-type"].startswith("text/plain")
    assert headers["apachews-refused"] == "not-a-websocket"
    assert body == refusals.NOT_A_WEBSOCKET.body + "\n"
    assert_logged(site, 426, path, "not a WebSocket request")


@pytest.mark.parametrize(
    ("name", "changes", "status", "why"),
    [
        ("no-upgrade", {"Upgrade": None}, 426, "not a WebSocket request"),
        ("no-connection", {"Connection": None}, 426, "not a WebSocket request"),
        ("no-version", {"Sec-WebSocket-Version": None}, 426, "version ''"),
        ("version-8", {"Sec-WebSocket-Version": "8"}, 426, "version '8'"),
        ("no-key", {"Sec-WebSocket-Key": None}, 400, "Sec-WebSocket-Key ''"),
        ("short-key", {"Sec-WebSocket-Key": "AAAA"}, 400, "Sec-WebSocket-Key 'AAAA'"),
        ("long-key", {"Sec-WebSocket-Key": "A" * 8000}, 400, "Sec-WebSocket-Key 'AAAA"),
        ("body", {"Content-Length": "3"}, 400, "the request has a body"),
        ("origin", {"Origin": "http://evil.example"}, 403, "http://evil.example"),
    ],
)
def test_a_malformed_handshake(
    event_site: Site, name: str, changes: dict[str, str | None], status: int, why: str
) -> None:
    path = f"/echo.ws?{name}"
    got, headers, _ = answer(event_site, request(path, None, **changes))
    assert got == status
    if "Sec-WebSocket-Version" in changes:
        assert headers["sec-websocket-version"] == "13"
    assert_logged(event_site, status, path, why)


@pytest.mark.parametrize("path", ["/echo.ws", "/ws/echo"])
def test_a_handshake_with_a_chunked_body(event_site: Site, path: str) -> None:
    status, _, body = answer(event_site, request(path, Transfer_Encoding="chunked") + b"0\r\n\r\n")
    assert (status, body) == (400, "A WebSocket request must not have a body.\n")


@pytest.mark.parametrize("path", ["/echo.ws", "/ws/echo"])
@pytest.mark.parametrize("with_tls", [False, True])
def test_a_body_is_discarded_and_not_read_as_a_request(
    event_site: Site, path: str, with_tls: bool
) -> None:
    inner = b"GET /absent HTTP/1.1\r\nHost: localhost\r\n\r\n"
    bodies = {
        "Transfer-Encoding: chunked": b"%x\r\n%b\r\n0\r\n\r\n" % (len(inner), inner),
        f"Content-Length: {len(inner)}": inner,
    }
    for header, body in bodies.items():
        with RawClient(event_site.dial("wss1.3" if with_tls else "ws")) as client:
            head = f"POST {path}?body HTTP/1.1\r\nHost: localhost\r\n{header}\r\n\r\n".encode()
            client.send(head + body + b"GET /index.html HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.read_response()[0] == 426
            status, _, page = client.read_response()
            assert (status, "here" in page) == (200, True)


def test_a_chunked_body_without_end_is_answered(event_site: Site) -> None:
    with RawClient(event_site.dial("ws")) as client:
        head = b"POST /echo.ws HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        client.send(head + b"ffffff\r\n")
        assert client.read_response()[0] == 426


def test_http_2_in_a_request_of_http_1(event_site: Site) -> None:
    data = request("/echo.ws?http2").replace(b"HTTP/1.1", b"HTTP/2.0", 1)
    assert answer(event_site, data)[0] == 403
    assert_logged(event_site, 403, "/echo.ws?http2", "keep H2WebSockets off")


@pytest.mark.parametrize("method", ["POST", "HEAD", "PUT", "DELETE", "OPTIONS"])
def test_other_methods(event_site: Site, method: str) -> None:
    with RawClient(event_site.dial("ws")) as client:
        client.send(request(f"/echo.ws?{method}", method))
        assert client.read_head()[0] == 426


def test_a_line_of_the_log_cannot_be_forged(event_site: Site) -> None:
    assert answer(event_site, request("/ws/x%0aFORGED"))[0] == 404
    assert answer(event_site, request("/x%0aFORGED.ws"))[0] == 404
    lines = wait_for(lambda: event_site.log_lines("FORGED"))
    assert all("does not exist" in line for line in lines), lines


@pytest.mark.parametrize(("path", "name"), [("/absent.ws", "absent.ws"), ("/ws/absent", "absent")])
def test_no_such_file(event_site: Site, path: str, name: str) -> None:
    status, _, body = answer(event_site, request(path))
    assert status == 404
    assert str(event_site.docroot) not in body
    assert_logged(event_site, 404, path, "does not exist")


@pytest.mark.parametrize("path", ["/file.ws", "/ws/file"])
def test_no_socket(event_site: Site, path: str) -> None:
    (event_site.docroot / "file.ws").write_text("text")
    assert answer(event_site, request(path))[0] == 403
    assert_logged(event_site, 403, path, "is not a socket")


@pytest.mark.parametrize(
    "path",
    ["/ws/../echo", "/ws/..%2fecho", "/ws/%2e%2e/x", "/ws/a%00b", "/ws/", "/ws", "/ws/sub/x"],
)
def test_names_that_lead_nowhere(event_site: Site, path: str) -> None:
    assert answer(event_site, request(path))[0] in (400, 403, 404)


def test_a_link_out_of_the_root_is_not_followed(event_site: Site, short_path: Path) -> None:
    short_path.chmod(0o755)
    (event_site.docroot / "out.ws").symlink_to(short_path / "a.ws")
    with listening(short_path / "a.ws"):
        assert answer(event_site, request("/ws/out"))[0] == 404
    assert_logged(event_site, 404, "/ws/out", "does not name a socket inside")


@pytest.mark.parametrize("path", ["/stale.ws", "/ws/stale"])
def test_a_stale_socket(event_site: Site, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(event_site.docroot / "stale.ws"))
        (event_site.docroot / "stale.ws").chmod(0o666)
    status, headers, _ = answer(event_site, request(path))
    (event_site.docroot / "stale.ws").unlink()
    assert status == 503
    assert headers["retry-after"] == "5"
    assert_logged(event_site, 503, path, "no producer listens")


@pytest.mark.skipif(not IS_ROOT, reason="root only: otherwise Apache may connect to all of ours")
def test_no_permission_on_the_socket(event_site: Site) -> None:
    with listening(event_site.docroot / "mine.ws"):
        (event_site.docroot / "mine.ws").chmod(0o600)
        status, _, body = answer(event_site, request("/mine.ws"))
    assert status == 500
    assert "mine.ws" not in body
    assert_logged(event_site, 500, "/mine.ws", "user www-data has no permission to connect")


# What takes a configuration of its own: one Apache with a directory for each.
SETTINGS = """
<Location /full.ws>
    SetEnv APACHEWS_CONNECT_TIMEOUT 100ms
</Location>
<Location /bad.ws>
    SetEnv APACHEWS_MAX_MESSAGE 1G
</Location>
<Location /unknown.ws>
    SetEnv APACHEWS_MAX_MESAGE 1M
</Location>
<Location /open.ws>
    SetEnv APACHEWS_ORIGINS *
</Location>
<Location /friends.ws>
    SetEnv APACHEWS_ORIGINS "https://a.example http://b.example:8080"
</Location>
<Location /small.ws>
    SetEnv APACHEWS_MAX_MESSAGE 10
</Location>
<Location /forbidden.ws>
    Require all denied
</Location>
<Directory "${DOCROOT}/strict">
    Options None
</Directory>
"""
# What is set up wrongly, by host; with what the log says of it.
IN_MOD_WSGI = """
Define SCRIPT "${APACHEWS_HANDLER}/wsgi.py"
WSGIScriptAlias /rootless "${SCRIPT}" process-group=%{GLOBAL} application-group=%{GLOBAL}
<Location /rootless>
    Require all granted
</Location>
WSGIScriptAlias /sub "${SCRIPT}" process-group=%{GLOBAL} application-group=other
WSGISocketPrefix "${ROOT}/wsgi"
WSGIDaemonProcess daemon threads=2 python-home=${PYTHON_HOME}
WSGIScriptAlias /daemon "${SCRIPT}" process-group=daemon application-group=%{GLOBAL}
<LocationMatch "^/(sub|daemon)">
    Require all granted
    SetEnv APACHEWS_ROOT "${DOCROOT}"
</LocationMatch>
<Location /nopass.ws>
    WSGIPassApacheRequest Off
</Location>
"""
IN_MOD_PYTHON = """
<LocationMatch "^/(rootless|sub)">
    SetHandler mod_python
    PythonInterpreter main_interpreter
    PythonHandler apachews_handler.modpython::application
    Require all granted
</LocationMatch>
<Location /sub>
    PythonInterpreter other
</Location>
"""
WRONG = [
    ("/bad.ws", "SetEnv APACHEWS_MAX_MESSAGE '1G' is not allowed: use a number of bytes"),
    ("/unknown.ws", "SetEnv APACHEWS_MAX_MESAGE '1M' is not allowed: use one of the names"),
    ("/rootless/echo", "needs SetEnv APACHEWS_ROOT"),
]
if MOD_PYTHON:
    WRONG += [("/sub/echo", "the interpreter 'other': add PythonInterpreter main_interpreter")]
else:
    WRONG += [
        ("/sub/echo", "sub-interpreter: add application-group=%{GLOBAL}"),
        ("/daemon/echo", "daemon process 'daemon', which has no connections"),
        ("/nopass.ws", "add WSGIPassApacheRequest On"),
    ]


@pytest.fixture(scope="module")
def configured() -> Iterator[Site]:
    with running_site(extra=SETTINGS + (IN_MOD_PYTHON if MOD_PYTHON else IN_MOD_WSGI)) as site:
        yield site


def ignore(event: Event) -> None:
    """Take an event and do nothing."""


def test_a_full_backlog_is_waited_for_and_refused(configured: Site) -> None:
    path = configured.docroot / "full.ws"
    with listening(path, backlog=0), socket.socket(socket.AF_UNIX) as waiting:
        waiting.connect(str(path))
        status, headers, _ = answer(configured, request("/full.ws"))
    assert status == 503
    assert headers["retry-after"] == "5"
    assert_logged(configured, 503, "/full.ws", "backlog stayed full for 0.1 s")


@pytest.mark.parametrize(("path", "text"), WRONG)
def test_what_is_not_set_up_correctly(configured: Site, path: str, text: str) -> None:
    status, headers, body = answer(configured, request(path))
    assert status == 500
    reason = refusals.find(headers["apachews-refused"])
    assert reason
    assert body == reason.body + "\n" == "The WebSocket is not set up correctly.\n"
    assert_logged(configured, 500, path, text)


def test_apaches_own_access_control_comes_first(configured: Site) -> None:
    with configured.producer("forbidden.ws", ignore):
        status, headers, _ = answer(configured, request("/forbidden.ws"))
    assert status == 403
    assert "apachews-refused" not in headers
    assert not configured.log_lines("apachews: .*forbidden")


def test_without_followsymlinks_apache_refuses_a_socket(configured: Site) -> None:
    (configured.docroot / "strict").mkdir()
    with listening(configured.docroot / "strict" / "a.ws"):
        assert answer(configured, request("/strict/a.ws"))[0] == 403
    assert wait_for(lambda: configured.log_lines("AH00038"))


@pytest.mark.parametrize(
    ("path", "origin", "status"),
    [
        ("/open.ws", "http://evil.example", 101),
        ("/open.ws", "null", 101),
        ("/friends.ws", "https://a.example", 101),
        ("/friends.ws", "http://b.example:8080", 101),
        ("/friends.ws", "http://localhost", 101),
        ("/friends.ws", "http://b.example", 403),
    ],
)
def test_origins_by_setting(configured: Site, path: str, origin: str, status: int) -> None:
    with configured.producer(path[1:], ignore), RawClient(configured.dial("ws")) as client:
        client.send(request(path, Origin=origin))
        assert client.read_head()[0] == status


def test_the_sites_own_origin_over_tls(event_site: Site) -> None:
    host = f"localhost:{event_site.apache.tls_port}"
    with RawClient(event_site.dial("wss1.3")) as client:
        client.upgrade(Host=host, Origin=f"https://{host}")
    status, _, _ = answer(
        event_site, request("/echo.ws?x", Host=host, Origin=f"http://{host}"), with_tls=True
    )
    assert status == 403


def test_a_message_longer_than_the_setting(configured: Site) -> None:
    with (
        configured.producer("small.ws", ignore),
        RawClient(configured.dial("ws")).upgrade("/small.ws") as client,
    ):
        client.send(masked(0x81, b"x" * 10))
        client.send(masked(0x81, b"x" * 11))
        assert client.read_close() == 1009
