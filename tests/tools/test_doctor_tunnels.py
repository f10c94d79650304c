"""``apachews doctor``: proxies for WebSockets, tunnels, and the servers at their ends."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import pytest

from apachews_tools.cli.doctor import report
from apachews_tools.doctor.finding import Finding, Level
from apachews_tools.doctor.proxies import (
    check_proxies,
    max_request_workers,
    proxy_of,
    when_full,
)
from apachews_tools.doctor.tunnels import (
    check_backends,
    check_htaccess,
    check_tunnelled_sockets,
    check_tunnels,
)
from apachews_tools.httpd.configuration import Configuration, RunConfig, Scope
from apachews_tools.httpd.directives import IncludedFile, parse_files
from apachews_tools.httpd.proxies import tunnel_of
from apachews_tools.install.tunnels import tunnel_lines

from ..support.site import ROOT
from .test_doctor import SOMEBODY

MODULES = frozenset(
    {
        *("proxy_module", "proxy_http_module", "proxy_wstunnel_module"),
        *("rewrite_module", "mpm_event_module"),
    }
)
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
        ("ProxyPass /app ws://127.0.0.1:3000/app", "/app", B, True),
        ("ProxyPass /app/ ws://127.0.0.1:3000/app/", "/app", B, True),
        ("ProxyPass /app ws://127.0.0.1:3000/", "/app", f"{B}/", True),
        ("ProxyPass /app ws://127.0.0.1:3000", "/app", f"{B}/", True),
        ("ProxyPass /app ws://127.0.0.1:3000/live", "/app", f"{B}/live", True),
        ("ProxyPass / ws://127.0.0.1:3000/", "/", B, True),
        (f"ProxyPass /app {B}/app upgrade=websocket", "/app", B, True),
        (f"ProxyPass /app {B}/app timeout=9 upgrade=ANY", "/app", B, True),
        (f"ProxyPass /a/ws ws://127.0.0.1:3000/a/ws\nProxyPass / {B}/", "/a/ws", B, True),
        (f"<Location /app>\nProxyPass {B}/app upgrade=websocket\n</Location>", "/app", B, True),
        (
            "ProxyPass /app unix:/run/a.sock|ws://localhost/app",
            "/app",
            "unix:/run/a.sock|http://localhost",
            True,
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
    rest = [line for line in rest if not line.startswith("RewriteCond")]
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
        ("ProxyPass /app balancer://b/app upgrade=websocket", "config --tunnel NAME"),
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


def of_mpm(mpm: str, text: str = "") -> Configuration:
    directives = parse_files(IncludedFile("/c", 0), lambda _: text, MODULES, {})
    return Configuration(directives, {}, frozenset({f"mpm_{mpm}_module"}), RunConfig())


def test_the_number_of_sockets_at_which_the_site_stops() -> None:
    (found,) = check_proxies(read("MaxRequestWorkers 150\nProxyPass /a ws://127.0.0.1:9/a\n"))
    assert found.when.startswith(
        "150 open WebSockets (MaxRequestWorkers); or after 3 to 16 reloads"
    )


@pytest.mark.parametrize(
    ("mpm", "text", "workers"),
    [
        ("event", "", 400),
        ("worker", "", 400),
        ("prefork", "", 256),
        ("event", "ServerLimit 4\nMaxRequestWorkers 150", 100),
        ("worker", "ThreadsPerChild 10\nMaxRequestWorkers 25", 20),
        ("prefork", "ServerLimit 4\nMaxRequestWorkers 150", 4),
    ],
)
def test_httpd_lowers_the_number_of_workers(mpm: str, text: str, workers: int) -> None:
    assert max_request_workers(of_mpm(mpm, text)) == workers


@pytest.mark.parametrize(
    ("mpm", "text", "reloads"),
    [
        # Debian's settings: six children at most, of which each or only one has a WebSocket.
        ("event", "MaxRequestWorkers 150", "or after 3 to 16 reloads of Apache"),
        ("event", "ServerLimit 2\nMaxRequestWorkers 25", "or after 2 reloads of Apache"),
        # Their old children count as single workers.
        ("worker", "MaxRequestWorkers 150", "with or without reloads"),
        ("prefork", "MaxRequestWorkers 150", "with or without reloads"),
    ],
)
def test_reloads_stop_the_event_mpm_only(mpm: str, text: str, reloads: str) -> None:
    assert reloads in when_full(of_mpm(mpm, text))


SOCKET_IO = (
    "RewriteEngine On\nRewriteCond %{REQUEST_URI} ^/socket.io [NC]\n"
    "RewriteCond %{QUERY_STRING} transport=websocket [NC]\n"
    "RewriteRule /(.*) ws://127.0.0.1:3000/$1 [P,L]\n"
    f"ProxyPass /socket.io {B}/socket.io"
)


def test_a_condition_has_the_path_of_a_rule() -> None:
    (found,) = proxied(SOCKET_IO)
    wanted = tunnel_lines(B, "/socket.io")
    assert list(found.lines) == [line for line in wanted if not line.startswith("ProxyPass ")]
    for other in (
        "^/socket.io [NC,OR]",  # one of two alternatives
        "socket.io",  # other paths contain it too
    ):
        (found,) = proxied(SOCKET_IO.replace("^/socket.io [NC]", other))
        assert "<Location />" in found.lines
        # The ProxyPass for a part of the path needs no-proxy.
        assert NO_PROXY.strip() in found.lines


def test_the_remedy_names_lines_and_modules() -> None:
    (found,) = proxied(SOCKET_IO)
    assert "in place of /c:3, 4, 5 (RewriteCond, RewriteRule)" in found.remedy
    assert "first a2enmod env headers setenvif (on" in found.remedy
    loaded = MODULES | {"env_module", "headers_module", "setenvif_module", "proxy_http_module"}
    configuration = read(SITE % SOCKET_IO)
    configuration.modules = loaded
    found = next(check_proxies(configuration))
    assert "a2enmod" not in found.remedy


@pytest.mark.parametrize(
    ("line", "gone"),
    [
        (f"ProxyPass {B}/app upgrade=websocket", "upgrade= at /c:3"),
        ("ProxyPass ws://127.0.0.1:3000/app", "/c:3 (ProxyPass)"),
    ],
)
def test_the_lines_for_a_section_belong_outside_of_it(line: str, gone: str) -> None:
    (found,) = proxied(f"<Location /app>\n{line}\n</Location>")
    assert f"remove {gone}; in the <VirtualHost>, outside of sections, these lines" in found.remedy


def test_a_rule_beside_mod_proxy_wstunnel_needs_no_proxy() -> None:
    rule, other = proxied(
        RULE + "/(.*) ws://127.0.0.1:3000/$1 [P,L]\nProxyPass / ws://127.0.0.1:3000/"
    )
    assert NO_PROXY.strip() in rule.lines
    assert f"ProxyPass / {B}/" in other.lines


MATTERMOST = (
    "RewriteEngine On\n"
    "RewriteCond %{REQUEST_URI} ^/api/v[0-9]+/(users/)?websocket [NC,OR]\n"
    "RewriteCond %{HTTP:UPGRADE} ^WebSocket$ [NC,OR]\n"
    "RewriteCond %{HTTP:CONNECTION} ^Upgrade$ [NC]\n"
    "RewriteRule .* ws://127.0.0.1:3000%{REQUEST_URI} [P,QSA,L]\n"
    "RewriteCond %{DOCUMENT_ROOT}/%{REQUEST_FILENAME} !-f\n"
    f"RewriteRule .* {B}%{{REQUEST_URI}} [P,QSA,L]"
)
KEEP = "RewriteCond %{HTTP:Upgrade} !=websocket [NC]"


def test_a_rule_for_pages_needs_a_condition() -> None:
    (found,) = proxied(MATTERMOST)
    assert f"above RewriteRule at /c:8 add {KEEP}" in found.remedy
    kept = MATTERMOST.partition("\nRewriteCond %{DOCUMENT_ROOT}")[2]
    rest = f"RewriteEngine On\nRewriteCond %{{DOCUMENT_ROOT}}{kept}"
    lines = "\n".join(found.lines).replace("${APACHEWS_HANDLER}", "/apachews_handler") + "\n"
    (wrong,) = tunnelled(lines + rest)
    assert (wrong.id, wrong.level) == ("tunnel", Level.ERROR)
    assert "mod_rewrite comes before the tunnel" in wrong.text
    assert wrong.remedy == f"above it: {KEEP}"
    assert tunnelled(lines + rest.replace("RewriteRule", f"{KEEP}\nRewriteRule")) == []


def test_a_rule_before_a_tunnel() -> None:
    rule = f"RewriteEngine On\nRewriteRule ^/app/(.*) {B}/app/$1 [P]"
    (found,) = tunnelled(tunnel("/app", B, rule))
    assert (found.id, found.level) == ("tunnel", Level.ERROR)
    unknown = rule.replace("\n", "\nRewriteCond %{HTTPS} on\n")
    assert [one.level for one in tunnelled(tunnel("/app", B, unknown))] == [Level.WARNING]
    for harmless in (
        rule.replace("On", "Off"),
        rule.replace("/app/", "/other/"),
        rule.replace("\n", f"\n{KEEP}\n"),
        rule.replace("[P]", "[L]"),
    ):
        assert tunnelled(tunnel("/app", B, harmless)) == []
    # ``check_proxies`` reports a rule for WebSockets.
    assert tunnelled(tunnel("/app", B, rule.replace("http:", "ws:"))) == []


MEMBERS = (
    "<Proxy balancer://nodes>\nBalancerMember ws://127.0.0.1:3001 %s\n"
    "BalancerMember ws://127.0.0.1:3002 %s\n</Proxy>\n"
)


@pytest.mark.parametrize("is_apart", [False, True])
def test_the_members_of_a_balancer_are_the_addresses(is_apart: bool) -> None:
    members = MEMBERS % ("", "timeout=9 upgrade=ANY")
    if is_apart:
        members = (
            "BalancerMember balancer://nodes ws://127.0.0.1:3001\n"
            "BalancerMember balancer://nodes ws://127.0.0.1:3002 timeout=9\n"
        )
    text = members + "ProxyPass /socket.io/ balancer://nodes/socket.io/ nocanon"
    (found,) = proxied(text)
    assert found.id == "proxied-websockets"
    assert found.lines[2:8] == (
        "<Proxy balancer://nodes>",
        "    BalancerMember http://127.0.0.1:3001 route=1",
        "    BalancerMember http://127.0.0.1:3002 timeout=9 route=2",
        "</Proxy>",
        "ProxyPass /socket.io/ balancer://nodes/socket.io/ nocanon stickysession=ROUTE",
        'Header add Set-Cookie "ROUTE=.%{BALANCER_WORKER_ROUTE}e; path=/; HttpOnly"'
        " env=BALANCER_ROUTE_CHANGED",
    )
    backends = '"http://127.0.0.1:3001 http://127.0.0.1:3002"'
    assert f"    SetEnv APACHEWS_BACKEND {backends}" in found.lines
    assert "    SetEnv APACHEWS_BACKEND_COOKIE ROUTE" in found.lines
    assert "proxy_balancer" in found.remedy
    assert "must use these numbers" in found.remedy
    after = "\n".join(found.lines).replace("${APACHEWS_HANDLER}", "/apachews_handler")
    assert proxied(after) == []
    assert tunnelled(after) == []


def test_the_routes_of_a_balancer_stay_if_they_are_numbers() -> None:
    text = MEMBERS % ("route=2", "route=1")
    text = text.replace("</Proxy>", "ProxySet stickysession=ROUTEID|routeid\n</Proxy>")
    text += (
        'Header add Set-Cookie "ROUTEID=.%{BALANCER_WORKER_ROUTE}e; path=/"'
        " env=BALANCER_ROUTE_CHANGED\nProxyPass /app balancer://nodes/live"
    )
    (found,) = proxied(text)
    backends = '"http://127.0.0.1:3002/live http://127.0.0.1:3001/live"'
    assert f"    SetEnv APACHEWS_BACKEND {backends}" in found.lines
    assert "    SetEnv APACHEWS_BACKEND_COOKIE ROUTEID" in found.lines
    assert "ProxyPass /app balancer://nodes/live stickysession=ROUTEID" in found.lines
    assert not any(line.startswith("Header") for line in found.lines)
    assert "must use these numbers" not in found.remedy


def test_a_balancer_for_pages_is_left_alone() -> None:
    pages = (MEMBERS % ("", "")).replace("ws://", "http://")
    assert proxied(f"{pages}ProxyPass /app balancer://nodes/app") == []


def test_the_proxy_of_a_url() -> None:
    configuration = read(SITE % f"{SOCKET_IO}\nProxyPass /other ws://b/\nProxyPass /x {B}/x")
    configuration.modules = MODULES
    (host,) = configuration.virtual_hosts()

    def target(path: str) -> str:
        found = proxy_of(Scope(configuration, host, path, path))
        return found.target if found else ""

    assert target("/socket.io/") == "ws://127.0.0.1:3000/socket.io"
    assert target("/other/a") == "ws://b/"
    assert target("/x") == ""
    # Of a producer: ``check_scope`` reports the proxy.
    assert target("/other/echo.ws") == ""
    # no-proxy keeps it from its WebSockets, and ``check_proxies`` says so.
    kept = read(SITE % f"{NO_PROXY}ProxyPass /other ws://b/")
    found = proxy_of(Scope(kept, kept.virtual_hosts()[0], "/other/a", "/other/a"))
    assert found is not None
    assert found.target == "ws://b/"
    # A tunnel has them.
    led = read(SITE % tunnel("/other", B, NO_PROXY, "ProxyPass /other ws://b/"))
    assert proxy_of(Scope(led, led.virtual_hosts()[0], "/other/a", "/other/a")) is None


def test_a_socket_below_the_path_of_a_tunnel(short_path: Path) -> None:
    lines = tunnel("/", B, NO_PROXY, HOST, f"ProxyPass / {B}/", f"DocumentRoot {short_path}")
    assert list(check_tunnelled_sockets(read(SITE % lines))) == []
    (short_path / "ws").mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(short_path / "ws" / "chat.ws"))
        (found,) = check_tunnelled_sockets(read(SITE % lines))
        assert (found.id, found.level) == ("tunnel", Level.WARNING)
        assert "the tunnel of / gets the WebSockets of /ws/chat.ws" in found.text
        line = f'AliasMatch "^(/.+\\.ws)$" "{short_path}$1"'
        assert found.remedy == f"first a2enmod alias; in the <VirtualHost>: {line}"
        after = read(SITE % f"{line}\n{lines}")
        assert list(check_tunnelled_sockets(after)) == []
        scope = Scope(after, after.virtual_hosts()[0], "/ws/chat.ws", "")
        assert tunnel_of(scope) is None
        assert proxy_of(scope) is None
        deeper = lines.replace(ALIAS % "/", ALIAS % "/ws")
        (found,) = check_tunnelled_sockets(read(SITE % deeper))
        assert 'AliasMatch "^(/ws/.+\\.ws)$"' in found.remedy
        other = lines.replace(ALIAS % "/", ALIAS % "/app")
        assert list(check_tunnelled_sockets(read(SITE % other))) == []


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("DirectoryIndex index.html /app/chat", "/app/chat"),
        ("FallbackResource /app/chat", "/app/chat"),
        ("Action chat /app/chat", "/app/chat"),
        ("RewriteEngine On\nRewriteRule ^chat$ /app/chat [L]", "/app/chat"),
        ("RewriteEngine On\nRewriteRule ^chat$ /app/chat?a=1", "/app/chat?a=1"),
        ("DirectoryIndex index.html", ""),
        ("FallbackResource /index.php", ""),
        ("RewriteEngine On\nRewriteRule ^chat$ /app/chat [R]", ""),
        ("RewriteEngine On\nRewriteRule ^chat$ /apple/chat", ""),
        ("SetEnv APACHEWS_BACKEND /app/chat", ""),
    ],
)
def test_an_htaccess_that_leads_to_a_tunnel(short_path: Path, text: str, target: str) -> None:
    (short_path / "deep").mkdir()
    file = short_path / "deep" / ".htaccess"
    file.write_text(text)
    site = f"DocumentRoot {short_path}\n{tunnel()}"
    override = f"<Directory {short_path}>\nAllowOverride %s\n</Directory>\n"
    found = list(check_htaccess(read(override % "All" + SITE % site)))
    assert [one.id for one in found] == ["htaccess"] * bool(target)
    for one in found:
        assert one.level is Level.WARNING
        assert one.where.startswith(f"{file}:")
        assert f"leads requests to {target}, from an .htaccess file" in one.text
        assert f"RewriteRule ^/PATH$ {target} [PT]" in one.remedy
    assert list(check_htaccess(read(override % "None" + SITE % site))) == []
    assert list(check_htaccess(read(SITE % site))) == []


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
