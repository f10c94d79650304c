"""``apachews doctor``: proxies for WebSockets, tunnels, and the servers at their ends."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest

from apachews_tools.cli.doctor import report
from apachews_tools.doctor.finding import Finding, Level
from apachews_tools.doctor.tunnels import (
    check_backends,
    check_proxies,
    check_tunnels,
    max_request_workers,
)
from apachews_tools.httpd.configuration import Configuration, RunConfig, Scope
from apachews_tools.httpd.directives import IncludedFile, parse_files
from apachews_tools.httpd.proxies import tunnel_of
from apachews_tools.install.tunnels import tunnel_lines

from ..support.site import ROOT
from .test_doctor import SOMEBODY

MODULES = frozenset({"proxy_module", "proxy_wstunnel_module", "rewrite_module", "mpm_event_module"})
ALIAS = 'WSGIScriptAlias %s "/opt/apachews_handler/tunnel.py" process-group=%%{GLOBAL}\n'
NO_PROXY = 'SetEnvIfNoCase Upgrade "^websocket$" no-proxy\n'
BACKEND = "<Location %s>\nSetEnv APACHEWS_BACKEND %s\n</Location>\n"
SITE = "<VirtualHost *:80>\n%s\n</VirtualHost>\n"
B = "http://127.0.0.1:3000"


def read(text: str) -> Configuration:
    directives = parse_files(IncludedFile("/c", 0), lambda _: text, MODULES, {})
    return Configuration(directives, {}, MODULES, RunConfig(document_root="/default"))


def proxied(text: str) -> list[Finding]:
    """Return the findings about proxies in a virtual host, without notes."""
    return [one for one in check_proxies(read(SITE % text)) if one.level is not Level.NOTE]


def tunnelled(text: str) -> list[Finding]:
    """Return the findings about the tunnels of a virtual host that are not OK."""
    return [one for one in check_tunnels(read(SITE % text)) if one.level is not Level.OK]


def tunnel(path: str = "/app", backend: str = B, *lines: str) -> str:
    """Return a tunnel whose pages come from a ProxyPass, and its changed lines."""
    return "\n".join([*lines, ALIAS % path + BACKEND % (path, backend)])


RULE = "RewriteEngine On\nRewriteCond %{HTTP:Upgrade} =websocket [NC]\nRewriteRule "


@pytest.mark.parametrize(
    ("text", "path", "backend", "has_pages"),
    [
        ("ProxyPass /app ws://127.0.0.1:3000/app", "/app", B, False),
        ("ProxyPass /app/ ws://127.0.0.1:3000/app/", "/app", B, False),
        ("ProxyPass /app ws://127.0.0.1:3000/", "/app", f"{B}/", False),
        ("ProxyPass /app ws://127.0.0.1:3000", "/app", f"{B}/", False),
        ("ProxyPass /app ws://127.0.0.1:3000/live", "/app", f"{B}/live", False),
        ("ProxyPass / ws://127.0.0.1:3000/", "/", B, False),
        (f"ProxyPass /app {B}/app upgrade=websocket", "/app", B, True),
        (f"ProxyPass /app {B}/app timeout=9 upgrade=ANY", "/app", B, True),
        (f"ProxyPass /a/ws ws://127.0.0.1:3000/a/ws\nProxyPass / {B}/", "/a/ws", B, True),
        (f"<Location /app>\nProxyPass {B}/app upgrade=websocket\n</Location>", "/app", B, True),
        (
            "ProxyPass /app unix:/run/a.sock|ws://localhost/app",
            "/app",
            "unix:/run/a.sock|http://localhost",
            False,
        ),
        (RULE + "^/?(.*) ws://127.0.0.1:3000/$1 [P,L]", "/", B, False),
        (RULE + "/(.*) ws://127.0.0.1:3000/$1 [P,L]\nProxyPass / http://b/", "/", B, True),
        (RULE + "^/app/(.*)$ ws://127.0.0.1:3000/$1 [P]", "/app", f"{B}/", False),
        (RULE + "^/app/(.*)$ ws://127.0.0.1:3000/app/$1 [P]", "/app", B, False),
        (RULE + ".* ws://127.0.0.1:3000%{REQUEST_URI} [P]", "/", B, False),
        (RULE + "^/app/.* ws://127.0.0.1:3000%{REQUEST_URI} [P]", "/app", B, False),
        (RULE + f"^/app/(.*)$ {B}/app/$1 [proxy]", "/app", B, False),
    ],
)
def test_a_proxy_for_websockets_has_the_lines_of_a_tunnel(
    text: str, path: str, backend: str, has_pages: bool
) -> None:
    (found,) = proxied(text)
    assert (found.id, found.level) == ("proxied-websockets", Level.WARNING)
    assert found.where.startswith("/c:")
    wanted = tunnel_lines(backend, path, has_pages=has_pages)
    own = [line for line in found.lines if not line.startswith("ProxyPass ")]
    assert own == [line for line in wanted if not line.startswith("ProxyPass ")]
    # The lines replace the proxy, and nothing is wrong any more.
    rest = [line for line in text.split("\n") if line not in str(found)]
    rest = [line for line in rest if "upgrade=" not in line and "ws://" not in line]
    after = "\n".join([*found.lines, *rest]).replace("${APACHEWS_HANDLER}", "/apachews_handler")
    if "<Location" not in text:
        assert proxied(after) == []
        # Pages of another path, or of another server, stay as they were.
        assert tunnelled(after) == []


def test_the_proxy_of_pages_stays_without_its_upgrade() -> None:
    (found,) = proxied(f"ProxyPass /app {B}/app timeout=9 upgrade=websocket nocanon")
    assert f"ProxyPass /app {B}/app timeout=9 nocanon" in found.lines


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("ProxyPass /app wss://127.0.0.1:3000/app", "without TLS"),
        ("ProxyPass /app https://127.0.0.1:3000/app upgrade=websocket", "without TLS"),
        ("ProxyPass /app balancer://b/app upgrade=websocket", "one member"),
        ("ProxyPassMatch ^/a/(\\d+)$ ws://127.0.0.1:3000/a/$1", "config --tunnel NAME"),
        (RULE + "^/(a|b)/(.*) ws://127.0.0.1:3000/$1 [P]", "config --tunnel NAME"),
        ('<Location /a>\nSetHandler "proxy:ws://127.0.0.1:9"\n</Location>', "config --tunnel NAME"),
    ],
)
def test_a_proxy_without_a_plain_path_has_advice(text: str, advice: str) -> None:
    (found,) = proxied(text)
    assert found.id == "proxied-websockets"
    assert advice in found.remedy
    assert found.lines == ()


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"ProxyPass / {B}/",
        "ProxyPass /app !",
        "RewriteCond %{HTTP:Upgrade} !=websocket [NC]\nRewriteRule ^/(.*) http://b/$1 [P]",
        "RewriteCond %{HTTP:Upgrade} =websocket [NC]\nRewriteRule ^/(.*) /x [L]",
        f"ProxyPass /app {B}/app upgrade=NONE",
    ],
)
def test_a_proxy_for_pages_is_left_alone(text: str) -> None:
    assert proxied(text) == []
    assert tunnelled(text) == []


def test_the_number_of_sockets_at_which_the_site_stops() -> None:
    (found,) = check_proxies(read("MaxRequestWorkers 150\nProxyPass /a ws://127.0.0.1:9/a\n"))
    assert found.when.startswith("150 open WebSockets (MaxRequestWorkers); fewer after a reload")
    assert max_request_workers(read("")) == 400
    prefork = Configuration([], {}, frozenset({"mpm_prefork_module"}), RunConfig())
    assert max_request_workers(prefork) == 256


def test_a_proxy_in_the_wrong_order() -> None:
    found = proxied(f"ProxyPass / {B}/\nProxyPass /ws ws://127.0.0.1:3000/ws")
    assert [one.id for one in found] == ["proxied-websockets"] * 2
    assert f"ProxyPass / {B}/ precedes ProxyPass /ws" in found[1].text
    assert "the longer path first" in found[1].remedy
    assert len(proxied(f"ProxyPass /ws ws://127.0.0.1:3000/ws\nProxyPass / {B}/")) == 1
    # The first one leads these WebSockets too, or it is of another section.
    first = f"ProxyPass / {B}/ upgrade=websocket\n"
    assert len(proxied(first + "ProxyPass /ws ws://127.0.0.1:3000/ws")) == 2
    section = "<Location /ws>\nProxyPass ws://127.0.0.1:3000/ws\n</Location>"
    assert len(proxied(f"ProxyPass / {B}/\n{section}")) == 1


def test_mod_proxy_wstunnel_without_use_is_a_note() -> None:
    (found,) = check_proxies(read("ProxyPass / http://b/"))
    assert (found.id, found.level) == ("proxied-websockets", Level.NOTE)
    assert [one.level for one in check_proxies(read("ProxyPass / ws://b/"))] == [Level.WARNING]


HOST = "ProxyPreserveHost On"
PAGES = f"ProxyPass /app {B}/app"


@pytest.mark.parametrize(
    "text",
    [
        tunnel(),  # without pages
        tunnel("/app", B, NO_PROXY, HOST, PAGES),
        tunnel("/app", f"{B}/", NO_PROXY, HOST, f"ProxyPass /app {B}"),
        tunnel("/app", f"{B}/x", NO_PROXY, HOST, f"ProxyPass /app {B}/x"),
        tunnel("/app", B, NO_PROXY, HOST, f"ProxyPass / {B}/"),
        tunnel("/", B, NO_PROXY, HOST, f"ProxyPass / {B}/"),
        tunnel("/app", B, NO_PROXY, HOST, f"ProxyPass /app/ {B}/app/"),
        tunnel("/app", "http://127.0.0.1:4000", NO_PROXY, HOST, PAGES),  # another server
        tunnel("/app", B, "SetEnvIfExpr \"req_novary('Upgrade') =~ /w/\" no-proxy", HOST, PAGES),
        tunnel("/app", B, "ProxyPass /app !", f"ProxyPass / {B}/"),
    ],
)
def test_a_tunnel_whose_lines_agree(text: str) -> None:
    assert tunnelled(text) == []
    assert proxied(text) == []


@pytest.mark.parametrize(
    ("text", "id", "level", "words"),
    [
        (tunnel("/app", B, HOST, PAGES), "no-proxy", "error", "takes the WebSockets of /app"),
        (
            tunnel("/app", B, "SetEnvIf Request_URI ^/x no-proxy", HOST, PAGES),
            "no-proxy",
            "error",
            "takes the WebSockets of /app",
        ),
        (
            tunnel(
                "/app", B, 'SetEnvIfExpr "%{HTTP:Upgrade} =~ /websocket/i" no-proxy', HOST, PAGES
            ),
            "no-proxy",
            "warning",
            "adds Vary: Upgrade to every response",
        ),
        (
            tunnel("/app", B, NO_PROXY, HOST, f"{PAGES} upgrade=websocket"),
            "tunnel",
            "warning",
            "still has upgrade=, beside the tunnel of /app",
        ),
        (
            tunnel("/app", B, NO_PROXY, HOST, "ProxyPass /app ws://127.0.0.1:3000/app"),
            "tunnel",
            "warning",
            "still has ws://, beside the tunnel of /app",
        ),
        (
            tunnel("/app", f"{B}/", NO_PROXY, HOST, PAGES),
            "tunnel",
            "warning",
            f"/app leads pages to {B}/app, and WebSockets to {B}",
        ),
        (
            tunnel("/app", B, NO_PROXY, HOST, f"ProxyPass /app {B}/app/"),
            "tunnel",
            "warning",
            "only one of path and target ends in a slash",
        ),
        (
            tunnel("/", B, NO_PROXY, HOST, f"ProxyPass / {B}"),
            "tunnel",
            "warning",
            "only one of path and target ends in a slash",
        ),
        (tunnel("/app", B, NO_PROXY, PAGES), "tunnel", "warning", "ProxyPreserveHost is off"),
        (
            tunnel("/app", B, NO_PROXY, "ProxyPreserveHost Off", PAGES),
            "tunnel",
            "warning",
            "ProxyPreserveHost is off",
        ),
        (ALIAS % "/app", "tunnel", "error", "leads to a tunnel without APACHEWS_BACKEND"),
    ],
)
def test_a_tunnel_with_one_line_wrong(text: str, id: str, level: str, words: str) -> None:
    (found,) = tunnelled(text)
    assert (found.id, found.level.value) == (id, level), found
    assert words in found.text
    assert found.remedy
    assert found.where.startswith("/c:")


def test_no_proxy_in_a_section_has_no_effect() -> None:
    setter = f"<Location /app>\n{NO_PROXY}</Location>"
    late, absent = tunnelled(tunnel("/app", B, setter, HOST, PAGES))
    assert (late.id, late.level) == ("no-proxy", Level.WARNING)
    assert "in <Location /app> has no effect" in late.text
    assert (absent.id, absent.level) == ("no-proxy", Level.ERROR)
    assert NO_PROXY.strip() in absent.remedy


def test_no_proxy_of_the_server_reaches_all_sites() -> None:
    text = NO_PROXY + SITE % tunnel("/app", B, HOST, PAGES)
    (found,) = (one for one in check_tunnels(read(text)) if one.level is not Level.OK)
    assert (found.id, found.level) == ("no-proxy", Level.WARNING)
    assert "every virtual host inherits it" in found.text
    # A server without virtual hosts has one site.
    alone = NO_PROXY + tunnel("/app", B, HOST, PAGES)
    assert [one.level for one in check_tunnels(read(alone))] == [Level.OK]


def test_upgrade_without_no_proxy_bypasses_the_tunnel() -> None:
    text = tunnel("/app", B, HOST, f"{PAGES} upgrade=websocket")
    (found,) = tunnelled(text)
    assert (found.id, found.level) == ("no-proxy", Level.WARNING)
    assert "the tunnel is not used" in found.breaks
    assert [one.id for one in proxied(text)] == ["proxied-websockets"]


def test_a_server_at_the_end_of_a_tunnel() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        text = SITE % tunnel("/app", f"http://127.0.0.1:{port}")
        (found,) = check_backends(read(text), SOMEBODY)
        assert (found.id, found.level) == ("backend", Level.OK)
    (found,) = check_backends(read(text), SOMEBODY)
    assert (found.id, found.level) == ("backend", Level.ERROR)
    assert found.text == f"no server listens at http://127.0.0.1:{port}: Connection refused"
    assert found.breaks == "every WebSocket of the tunnel is a 503"


def test_a_unix_socket_at_the_end_of_a_tunnel(short_path: Path) -> None:
    short_path.chmod(0o755)
    path = short_path / "app.sock"
    read_one = read(SITE % tunnel("/app", f"unix:{path}|http://localhost"))
    (absent,) = check_backends(read_one, SOMEBODY)
    assert absent.level is Level.ERROR
    assert "No such file" in absent.text
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        path.chmod(0o600)
        (closed,) = check_backends(read_one, SOMEBODY)
        assert closed.level is Level.ERROR
        assert f"Apache's user somebody may not connect to {path}" in closed.text
        assert closed.remedy.startswith(f"chmod o+w {path}")
        os.chmod(path, 0o666)
        assert [one.level for one in check_backends(read_one, SOMEBODY)] == [Level.OK]


def test_an_address_that_is_not_allowed_is_left_to_the_settings() -> None:
    wrong = read(SITE % tunnel("/app", "https://127.0.0.1:1", NO_PROXY, HOST, PAGES))
    assert list(check_backends(wrong, SOMEBODY)) == []
    assert [one.level for one in check_tunnels(wrong)] == [Level.OK]


def test_no_proxy_keeps_another_proxy_from_its_websockets() -> None:
    other = "ProxyPass /other ws://127.0.0.1:4000/other"
    (found,) = proxied(tunnel("/app", B, NO_PROXY, HOST, other, PAGES))
    assert (found.id, found.level) == ("no-proxy", Level.ERROR)
    assert "keeps mod_proxy from the WebSockets of ProxyPass /other" in found.text
    assert "    SetEnv APACHEWS_BACKEND http://127.0.0.1:4000" in found.lines
    # mod_rewrite does not heed it.
    (found,) = proxied(NO_PROXY + RULE + "^/other/(.*) ws://127.0.0.1:4000/$1 [P]")
    assert found.id == "proxied-websockets"


def test_the_tunnel_of_a_url() -> None:
    lines = tunnel("/app", B) + tunnel("/app/deep", f"{B}/x")
    text = SITE % lines + "<VirtualHost *:81>\nServerName b\n</VirtualHost>\n"
    configuration = read(text)
    first, second = configuration.virtual_hosts()
    for host, path, wanted in (
        (first, "/app/chat", "/app"),
        (first, "/app/deep/chat", "/app/deep"),
        (first, "/apple", None),
        (second, "/app/chat", None),
    ):
        found = tunnel_of(Scope(configuration, host, path, path))
        assert (found.path if found else None) == wanted


def test_the_lines_on_the_page_are_the_doctors() -> None:
    page = (ROOT / "docs" / "howto" / "migration.md").read_text()
    (line,) = set(re.findall(r"For `(ProxyPass [^`]+)` these are", page))
    block = page.partition(line)[2].partition("```apache\n")[2].partition("```")[0]
    (found,) = proxied(line)
    plain = [one for one in found.lines if "RequestHeader" not in one]
    assert block.splitlines() == plain


def test_the_lines_of_a_remedy_are_printed_without_a_margin() -> None:
    (found,) = proxied("ProxyPass /app ws://127.0.0.1:3000/app")
    lines = report([found], 80, False).splitlines()
    assert lines[-1] == "1 check: 0 errors, 1 warning"
    assert lines[-1 - len(found.lines) : -1] == list(found.lines)
    assert found.as_dict()["lines"] == found.lines
