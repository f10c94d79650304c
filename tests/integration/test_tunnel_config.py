"""The lines of ``config --tunnel``, and those that ``doctor`` prints, in real Apaches."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from apachews_tools.cli import main
from apachews_tools.doctor.finding import Level
from apachews_tools.doctor.proxies import check_proxies
from apachews_tools.doctor.tunnels import check_tunnels
from apachews_tools.httpd import private_apache
from apachews_tools.httpd.control import Control
from apachews_tools.httpd.private_apache import DEBIAN_MODULES, PrivateApache
from apachews_tools.install.tunnels import SOFTWARE, tunnel_lines

from ..conftest import wait_for
from ..support.backends import ECHO, listening
from ..support.frames import masked
from ..support.producers import program
from ..support.raw_client import RawClient, request
from ..support.site import HANDLER, MOD_PYTHON, ROOT, Site, running_site
from .test_doctor import doctor
from .test_tunnel_software import (
    FASTAPI,
    MODULES,
    SOCKET_IO,
    SOCKET_IO_CLIENT,
    need_node,
    node,
    run_node,
)

__all__ = ["node"]  # a fixture

pytestmark = pytest.mark.skipif(
    MOD_PYTHON is not None, reason="tunnels are for mod_wsgi: mod_python's directive is FileInfo's"
)

LOADED = "".join(
    f"LoadModule {name}_module {DEBIAN_MODULES}/mod_{name}.so\n"
    for name in ("proxy", "proxy_http", "headers")
)
BALANCER = "".join(
    f"LoadModule {name}_module {DEBIAN_MODULES}/mod_{name}.so\n"
    for name in ("slotmem_shm", "proxy_balancer", "lbmethod_byrequests")
)
# Answers each request with a page, also one with an Upgrade.  Argument: port.
PAGES = """
import http.server, sys

class Pages(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"page")

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Pages).serve_forever()
"""
# Only the bridge logs the end of a WebSocket.
BY_A_TUNNEL = "/app closed by"
HOST = "<VirtualHost *:*>\n%s</VirtualHost>\n"


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["config", "--tunnel", *arguments]) == 0
    return capsys.readouterr().out


def apache_with(root: Path, extra: str) -> PrivateApache:
    (root / "htdocs").mkdir(exist_ok=True)
    return PrivateApache(
        root,
        root / "htdocs",
        port=private_apache.free_port(),
        tls_port=0,
        wsgi_module=private_apache.find_wsgi_module(),
        python_home=Path(sys.prefix),
        handler=HANDLER,
        extra=extra,
    )


@pytest.mark.parametrize("name", SOFTWARE)
def test_httpd_accepts_the_lines_and_doctor_has_nothing_to_say(
    name: str, short_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, backend in enumerate(([], ["--backend", "unix:/run/app.sock|http://localhost"])):
        root = short_path / str(number)
        root.mkdir()
        extra = LOADED + HOST % printed(capsys, name, *backend)
        apache = apache_with(root, extra)
        (root / "conf.d").mkdir()
        (root / "conf.d" / "extra.conf").write_text(extra)
        command, *rest = apache.command()
        control = Control(command, rest)
        assert control.syntax_error() is None
        configuration = control.read()
        assert len(list(check_tunnels(configuration))) == 1
        found = [*check_proxies(configuration), *check_tunnels(configuration)]
        assert {one.level for one in found} == {Level.OK}, found


def test_the_lines_of_socketio_work(
    node: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    need_node("socket.io", "socket.io-client")
    port = private_apache.free_port()
    server = program(tmp_path, SOCKET_IO, "server.js")
    client = program(tmp_path, SOCKET_IO_CLIENT, "client.js")
    lines = printed(capsys, "socketio", "--backend", f"http://127.0.0.1:{port}", "--path", "/sio")
    with (
        listening(port, node, server, str(port), env={**os.environ, "NODE_PATH": MODULES}),
        running_site(extra=LOADED + HOST % lines) as site,
    ):
        # The client begins with polling, which is mod_proxy's, and upgrades.
        assert run_node(node, client, site.http("")) == "hello websocket 200000"
        wait_for(lambda: site.log_lines("/sio/socket.io/ closed by"))


def test_two_processes_of_socketio_share_a_cookie_with_a_balancer(
    node: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Polling and WebSocket reach the same process, or the upgrade fails."""
    need_node("socket.io", "socket.io-client")
    ports = [private_apache.free_port(), private_apache.free_port()]
    server = program(
        tmp_path, SOCKET_IO.replace("answer(text", "answer(text + process.argv[2]"), "server.js"
    )
    cookies = SOCKET_IO_CLIENT.replace("{ path:", "{ withCredentials: true, path:")
    client = program(tmp_path, cookies, "client.js")
    page = (ROOT / "docs" / "howto" / "tunnel.md").read_text().partition("### Several")[2]
    lines = page.partition("```apache\n")[2].partition("```")[0]
    lines = lines.replace("*:80", "*:*").replace("/socket.io", "/sio")
    for number, port in zip((3001, 3002), ports, strict=True):
        lines = lines.replace(f":{number}", f":{port}")
    env = {**os.environ, "NODE_PATH": MODULES}
    with (
        listening(ports[0], node, server, str(ports[0]), env=env),
        listening(ports[1], node, server, str(ports[1]), env=env),
        running_site(extra=LOADED + BALANCER + lines) as site,
    ):
        answers = {run_node(node, client, site.http("")) for _ in range(4)}
        # The balancer has given some clients one process, and some the other.
        assert answers == {f"hello{port} websocket 200000" for port in ports}
        assert doctor(capsys, site.apache) == (0, [])


@pytest.mark.parametrize("kind", ["tcp", "uds"])
def test_the_lines_of_uvicorn_work(
    kind: str, short_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short_path.chmod(0o755)
    script = program(short_path, FASTAPI, "server.py")
    port, path = private_apache.free_port(), short_path / "app.sock"
    backend = f"http://127.0.0.1:{port}" if kind == "tcp" else f"unix:{path}|http://localhost"
    lines = printed(capsys, "uvicorn", "--backend", backend)
    process = subprocess.Popen(
        [sys.executable, script, kind, str(port) if kind == "tcp" else str(path)],
        stdin=subprocess.DEVNULL,
    )
    try:
        with running_site(extra=LOADED + HOST % lines) as site:
            site.expected_harm = "AH00957|AH01114"  # while uvicorn starts
            wait_for(lambda: answer(site, "/openapi.json", X_Remote_User="forged") == 200, 30)
            with RawClient(site.dial("ws")) as client:
                client.send(request("/app/echo", X_Remote_User="forged"))
                assert client.read_head()[0] == 101
                frame = client.read_data_frame()
                assert frame
                assert b'"scheme": "ws", "host": "localhost", "user": null' in frame[1]
                client.send(masked(0x82, bytes(1000)))
                assert client.read_data_frame() == (0x82, bytes(1000))
    finally:
        process.kill()
        process.wait()


def answer(site: Site, path: str, **headers: str) -> int:
    """Return the status of a plain request."""
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    with RawClient(site.dial("ws")) as client:
        client.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{lines}\r\n".encode())
        return client.read_head()[0]


def test_the_lines_that_doctor_prints_replace_a_proxy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = private_apache.free_port()
    before = f"ProxyPass /app http://127.0.0.1:{port}/app upgrade=websocket\n"
    lines = ""
    with (
        listening(port, sys.executable, program(tmp_path, ECHO, "echo.py"), str(port)),
        running_site(extra=LOADED + HOST % before) as site,
    ):
        assert echo(site)
        status, (found,) = doctor(capsys, site.apache)
        assert (status, found["id"]) == (0, "proxied-websockets")
        assert found["when"].startswith("50 open WebSockets (MaxRequestWorkers)")
        assert not site.log_lines(BY_A_TUNNEL)
        # The owner replaces the line, and reloads.
        lines = "\n".join(found["lines"]) + "\n"
        file = site.apache.root / "conf.d" / "extra.conf"
        text = file.read_text()
        assert before in text
        file.write_text(text.replace(before, lines))
        site.apache.graceful()
        wait_for(lambda: echo(site) and site.log_lines(BY_A_TUNNEL))
        assert doctor(capsys, site.apache) == (0, [])
        assert doctor(capsys, site.apache, site.ws("/app"), "--echo") == (0, [])
    with running_site(extra=LOADED + HOST % lines) as site:
        status, (found,) = doctor(capsys, site.apache)
        assert (status, found["id"]) == (1, "backend")
        assert f"no server listens at http://127.0.0.1:{port}" in found["text"]


REWRITE = f"LoadModule rewrite_module {DEBIAN_MODULES}/mod_rewrite.so\n"
PROXIES = "".join(
    f"LoadModule {name}_module {DEBIAN_MODULES}/mod_{name}.so\n"
    for name in ("proxy", "proxy_http", "proxy_wstunnel")
)
ALIASES = f"LoadModule alias_module {DEBIAN_MODULES}/mod_alias.so\n"
# The usual spellings of a proxy for Socket.IO, with what they need.
SPELLINGS = {
    # mod_proxy_wstunnel leaves polling to mod_proxy_http.
    "wstunnel": "ProxyPass /sio/socket.io/ ws://BACKEND/sio/socket.io/\n",
    "header": (
        "RewriteEngine On\n"
        "RewriteCond %{HTTP:Upgrade} websocket [NC]\n"
        "RewriteCond %{HTTP:Connection} upgrade [NC]\n"
        'RewriteRule ^/?(.*) "ws://BACKEND/$1" [P,L]\n'
        "ProxyPass / http://BACKEND/\n"
    ),
    "query": (
        "RewriteEngine On\n"
        "RewriteCond %{REQUEST_URI} ^/sio/socket.io [NC]\n"
        "RewriteCond %{QUERY_STRING} transport=websocket [NC]\n"
        "RewriteRule /(.*) ws://BACKEND/$1 [P,L]\n"
        "ProxyPass /sio/socket.io http://BACKEND/sio/socket.io\n"
    ),
    "rules": (
        "RewriteEngine On\n"
        "RewriteCond %{REQUEST_URI} ^/other/websocket [NC,OR]\n"
        "RewriteCond %{HTTP:UPGRADE} ^WebSocket$ [NC]\n"
        "RewriteRule .* ws://BACKEND%{REQUEST_URI} [P,QSA,L]\n"
        "RewriteCond %{DOCUMENT_ROOT}/%{REQUEST_FILENAME} !-f\n"
        "RewriteRule .* http://BACKEND%{REQUEST_URI} [P,QSA,L]\n"
    ),
    "balancer": (
        "<Proxy balancer://nodes>\n"
        "    BalancerMember ws://BACKEND route=a\n"
        "    BalancerMember ws://BACKEND/ route=b\n"
        "</Proxy>\n"
        "ProxyPass /sio/ balancer://nodes/sio/ stickysession=ROUTE\n"
    ),
}


def followed(text: str, found: dict[str, Any]) -> str:
    """Return a configuration after the remedy of a finding, word by word."""
    remedy = found["remedy"]
    lines = text.splitlines()
    match = re.search(r"in place of /[^:]+:([0-9, ]+)\(", remedy)
    assert match, remedy
    removed = [int(number) for number in match[1].split(",")]
    above = {int(number): line for number, line in _ABOVE.findall(remedy)}
    modules = re.match(r"first a2enmod ([\w ]+) \(", remedy)
    after, is_section = [], False
    for number, line in enumerate(lines, 1):
        if number == removed[0]:
            after += found["lines"]
        if number in above:
            after.append(above[number])
        if number in removed or is_section:
            is_section = (is_section or line.startswith("<")) and not line.startswith("</")
        else:
            after.append(line)
    loaded = [
        f"LoadModule {name}_module {DEBIAN_MODULES}/mod_{name}.so"
        for name in (modules[1].split() if modules else [])
    ]
    return "\n".join([*loaded, *after, ""])


_ABOVE = re.compile(r"above RewriteRule at /[^:]+:(\d+) add (RewriteCond .*? \[NC\])")


@pytest.mark.parametrize("name", SPELLINGS)
def test_the_owner_of_a_socket_io_follows_the_doctor(
    name: str, node: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    need_node("socket.io", "socket.io-client")
    port = private_apache.free_port()
    server = program(tmp_path, SOCKET_IO, "server.js")
    client = program(tmp_path, SOCKET_IO_CLIENT, "client.js")
    old = SPELLINGS[name].replace("BACKEND", f"127.0.0.1:{port}")
    loaded = PROXIES + (BALANCER if name == "balancer" else REWRITE)
    with (
        listening(port, node, server, str(port), env={**os.environ, "NODE_PATH": MODULES}),
        running_site(extra=loaded + HOST % old) as site,
    ):
        url = site.ws("/sio/socket.io/")
        assert run_node(node, client, site.http("")) == "hello websocket 200000"
        # The doctor adds the query, without which Socket.IO answers 400.
        status, (found,) = doctor(capsys, site.apache, url)
        assert (status, found["id"]) == (0, "proxied-websockets")
        file = site.apache.root / "conf.d" / "extra.conf"
        file.write_text(followed(file.read_text(), found))
        site.apache.graceful()
        wait_for(
            lambda: (
                run_node(node, client, site.http("")) == "hello websocket 200000"
                and site.log_lines("/sio/socket.io/ closed by")
            )
        )
        status, rest = doctor(capsys, site.apache, url)
        assert status == 0
        # The site has a producer, whose WebSockets a tunnel at / gets.
        taken = ["the tunnel of / gets the WebSockets of /echo.ws"] * (name in ("header", "rules"))
        assert [one["text"].partition(",")[0] for one in rest] == taken


def test_the_answer_of_a_proxied_program_has_a_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = private_apache.free_port()
    before = f"ProxyPass /app http://127.0.0.1:{port}/app upgrade=websocket\n"
    with running_site(extra=LOADED + HOST % before) as site:
        site.expected_harm = "AH00957|AH01114"
        with listening(port, sys.executable, program(tmp_path, PAGES, "pages.py"), str(port)):
            _, found = doctor(capsys, site.apache, site.ws("/app"))
            assert [one["id"] for one in found] == ["proxied-websockets", "handshake"]
            assert f"200: the answer of the program at http://127.0.0.1:{port}" in found[1]["text"]
            assert found[1]["remedy"] == "check the path and the query of the URL"
        _, found = doctor(capsys, site.apache, site.ws("/app"))
        assert "503: the proxy gets no answer of" in found[-1]["text"]
        assert found[-1]["remedy"].startswith("start the program")


def test_an_alias_leaves_producers_their_sockets_below_a_tunnel(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = private_apache.free_port()
    lines = printed(capsys, "uvicorn", "--backend", f"http://127.0.0.1:{port}")
    with (
        listening(port, sys.executable, program(tmp_path, PAGES, "pages.py"), str(port)),
        running_site(extra=LOADED + ALIASES + HOST % lines) as site,
    ):
        status, (found,) = doctor(capsys, site.apache)
        assert (status, found["id"]) == (0, "tunnel")
        assert "gets the WebSockets of /echo.ws" in found["text"]
        alias = found["remedy"].partition("<VirtualHost>: ")[2]
        printed_alias = printed(capsys, "uvicorn", "--docroot", str(site.docroot))
        assert f"\n# {alias}\n" in printed_alias
        assert upgrade(site, "/echo.ws") == 200  # the backend's page
        file = site.apache.root / "conf.d" / "extra.conf"
        # In any order: the last line of the virtual host.
        file.write_text(file.read_text().replace("</VirtualHost>", f"{alias}\n</VirtualHost>"))
        site.apache.graceful()
        wait_for(lambda: upgrade(site, "/echo.ws") == 101)
        assert upgrade(site, "/other") == 200
        assert doctor(capsys, site.apache, site.ws("/echo.ws"), "--echo") == (0, [])


def upgrade(site: Site, path: str) -> int:
    """Return the status of a handshake."""
    with RawClient(site.dial("ws")) as client:
        client.send(request(path))
        return client.read_head()[0]


def test_a_rule_for_pages_before_a_tunnel(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = private_apache.free_port()
    rule = f"RewriteEngine On\nRewriteRule ^/app(.*) http://127.0.0.1:{port}/app$1 [P]\n"
    lines = "\n".join(tunnel_lines(f"http://127.0.0.1:{port}", "/app")) + "\n"
    with (
        listening(port, sys.executable, program(tmp_path, ECHO, "echo.py"), str(port)),
        running_site(extra=LOADED + REWRITE + HOST % (rule + lines)) as site,
    ):
        assert upgrade(site, "/app") != 101
        status, (found,) = doctor(capsys, site.apache)
        assert (status, found["id"]) == (1, "tunnel")
        condition = found["remedy"].removeprefix("above it: ")
        file = site.apache.root / "conf.d" / "extra.conf"
        file.write_text(file.read_text().replace("RewriteRule", f"{condition}\nRewriteRule"))
        site.apache.graceful()
        wait_for(lambda: upgrade(site, "/app") == 101)
        assert doctor(capsys, site.apache) == (0, [])


def test_an_htaccess_that_leads_to_a_tunnel_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = private_apache.free_port()
    lines = "\n".join(tunnel_lines(f"http://127.0.0.1:{port}", "/app", has_pages=False))
    override = '<Directory "${DOCROOT}">\nAllowOverride All\n</Directory>\n'
    with (
        listening(port, sys.executable, program(tmp_path, ECHO, "echo.py"), str(port)),
        running_site(extra=REWRITE + override + lines + "\n") as site,
    ):
        assert upgrade(site, "/app") == 101
        files = {
            "/index/": "DirectoryIndex /app",
            "/fallback/absent": "FallbackResource /app",
            "/rule/chat": "RewriteEngine On\nRewriteRule ^chat$ /app [PT]",
        }
        for path, text in files.items():
            file = site.docroot / path.split("/")[1] / ".htaccess"
            file.parent.mkdir()
            file.write_text(text)
            assert upgrade(site, path) == 500
        assert len(site.log_lines("apachews: 500 htaccess")) == len(files)
        _, found = doctor(capsys, site.apache)
        assert [(one["id"], one["level"]) for one in found] == [("htaccess", "warning")] * 3
        places = {Path(one["where"].partition(":")[0]).parent.name for one in found}
        assert places == {"index", "fallback", "rule"}


def echo(site: Site) -> bool:
    with RawClient(site.dial("ws")) as client:
        client.send(request("/app"))
        assert client.read_head()[0] == 101
        client.send(masked(0x81, b"hello"))
        assert client.read_data_frame() == (0x81, b"hello")
        client.send(masked(0x88, b"\x03\xe8"))
        return client.read_close() == 1000
