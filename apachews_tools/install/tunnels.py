"""The lines that lead the WebSockets of existing software through a tunnel.

Contract: ``SOFTWARE`` has the defaults of each program and what its own settings need;
``TESTED_BY`` says which of them the tests run.  ``tunnel_lines(…)`` returns directives for a
virtual host, ``software_lines(…)`` those of a program with comments.  Pure.

Sources: mod_proxy's ProxyPass ("no-proxy"), and the documentation of each program, which a
comment names with the file in the program's repository.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from typing import Final

from apachews_tools.httpd.backend import Backend
from apachews_tools.httpd.directives import quote

from .installation import SetUpError

# Headers by which servers learn the user from a proxy.  The tunnel removes them from WebSockets.
USER_HEADERS: Final = (
    "X-Remote-User",
    "Remote-User",
    "X-Forwarded-User",
    "X-Auth-Request-User",
    "X-Authenticated-User",
    "X-WebAuth-User",
)
_URL_PATH: Final = re.compile(r"/[A-Za-z0-9._~/-]*")
# A socket path that httpd reads as it is, also without quotes.
_SOCKET_PATH: Final = re.compile(r"""[^\s"'\\${}|]*""")
_COMMENT_COLUMNS: Final = 98


@dataclass(frozen=True)
class Software:
    """A program with WebSockets.

    Attributes:
        title: its name.
        backend: its usual address; with a path if the prefix of the URL is removed.
        path: the usual path of the URL.
        needs: what its own settings need, with {path} for that of the URL; "" for nothing.
        has_pages: whether it serves pages too, by ProxyPass.
        proxy_options: further arguments of ProxyPass.
        host_lines: further directives of the virtual host.
    """

    title: str
    backend: str
    path: str
    needs: str = ""
    has_pages: bool = True
    proxy_options: str = ""
    host_lines: tuple[str, ...] = ()

    def needs_at(self, path: str) -> str:
        """Return what its own settings need at a path of the URL."""
        return self.needs.replace("{path}", path.rstrip("/"))


# In the order of the documentation.
SOFTWARE: Final[dict[str, Software]] = {
    "socketio": Software(
        "Socket.IO",
        "http://127.0.0.1:3000",
        "/socket.io",
        "with another path than /socket.io: the option path of server and client",
    ),
    "channels": Software(
        "Django Channels on daphne",
        "http://127.0.0.1:8000",
        "/",
        "ALLOWED_HOSTS with the name of the site; daphne --proxy-headers",
    ),
    "uvicorn": Software(
        "FastAPI and Starlette on uvicorn",
        "http://127.0.0.1:8000",
        "/",
        "with --uds: --forwarded-allow-ips '*'",
    ),
    # phoenix: lib/phoenix/socket/transport.ex (check_origin).
    "phoenix": Software(
        "Phoenix and LiveView",
        "http://127.0.0.1:4000",
        "/",
        "url: [host: …] of the endpoint, or check_origin, with the name of the site",
    ),
    # rails: actioncable/lib/action_cable/connection/base.rb (pages of the same host may connect).
    "actioncable": Software(
        "Action Cable of Rails",
        "http://127.0.0.1:3000",
        "/cable",
        "config.action_cable.allowed_request_origins with the origin of the site",
    ),
    "jupyter": Software(
        "Jupyter",
        "http://127.0.0.1:8888",
        "/jupyter",
        "ServerApp.base_url = '{path}/' and ServerApp.allow_remote_access = True",
    ),
    # jupyterhub: docs/source/howto/configuration/config-proxy.md.
    "jupyterhub": Software(
        "JupyterHub",
        "http://127.0.0.1:8000",
        "/jhub",
        "JupyterHub.bind_url = 'http://127.0.0.1:8000{path}/'",
    ),
    # home-assistant: components/http/forwarded.py (an unknown proxy gets 400), websocket_api.
    "homeassistant": Software(
        "Home Assistant",
        "http://127.0.0.1:8123",
        "/",
        "http: use_x_forwarded_for: true, trusted_proxies: 127.0.0.1; no other path than /",
    ),
    # grafana: conf/defaults.ini; pkg/services/live/live.go (pages of the same host may connect).
    "grafana": Software(
        "Grafana Live",
        "http://127.0.0.1:3000",
        "/grafana",
        "[server] root_url with the site's URL and {path}/, serve_from_sub_path = true",
    ),
    # code-server: docs/guide.md (a sub-path is removed); its pages have relative URLs.
    "code-server": Software(
        "code-server", "http://127.0.0.1:8080/", "/code", "open {path}/ with the slash at the end"
    ),
    "novnc": Software(
        "noVNC on websockify",
        "http://127.0.0.1:6080/",
        "/novnc",
        "websockify --web; open {path}/vnc.html?path={path}/websockify",
    ),
    # mattermost: docs, source/configure/config-proxy-apache2.rst.
    "mattermost": Software(
        "Mattermost",
        "http://127.0.0.1:8065",
        "/",
        "ServiceSettings: SiteURL with the URL of the site, ConnectionSecurity empty",
    ),
    # Rocket.Chat: docs, manual-installation/configuring-ssl-reverse-proxy.md.
    "rocketchat": Software(
        "Rocket.Chat",
        "http://127.0.0.1:3000",
        "/",
        "ROOT_URL with the URL of the site, HTTP_FORWARDED_COUNT=1",
    ),
    # notify_push: README.md (reverse proxy).
    "nextcloud-push": Software(
        "notify_push of Nextcloud",
        "http://127.0.0.1:7867/",
        "/push",
        "trusted_proxies of Nextcloud with 127.0.0.1; occ notify_push:setup with the URL of {path}",
    ),
    # synapse: docs/reverse_proxy.md.
    "synapse": Software(
        "Synapse",
        "http://127.0.0.1:8008",
        "/_matrix",
        "x_forwarded: true of the listener. /_synapse/client needs a ProxyPass with nocanon too."
        " Its clients poll: it has no WebSockets of its own",
        proxy_options="nocanon",
        host_lines=("AllowEncodedSlashes NoDecode",),
    ),
    "cockpit": Software(
        "Cockpit",
        "http://127.0.0.1:9090",
        "/admin",
        "[WebService] Origins with the site, ProtocolHeader = X-Forwarded-Proto, UrlRoot = {path}",
    ),
    # guacamole-manual: src/reverse-proxy.md.
    "guacamole": Software(
        "Guacamole on Tomcat",
        "http://127.0.0.1:8080",
        "/guacamole",
        "RemoteIpValve of Tomcat, with internalProxies 127.0.0.1, for the addresses of clients",
        proxy_options="flushpackets=on",
    ),
    "mosquitto": Software(
        "Mosquitto, MQTT over WebSocket",
        "http://127.0.0.1:9001",
        "/mqtt",
        "listener 9001 127.0.0.1, and protocol websockets",
        has_pages=False,
    ),
    "ttyd": Software("ttyd", "http://127.0.0.1:7681", "/ttyd", "ttyd --base-path {path}"),
    # n8n: documentation, Configure webhook URLs with reverse proxy; push/push.config.js.
    "n8n": Software(
        "n8n",
        "http://127.0.0.1:5678",
        "/",
        "N8N_PROXY_HOPS=1, N8N_WEBHOOK_URL (before 2.35 WEBHOOK_URL) with the URL of the site;"
        " before 1.91 N8N_PUSH_BACKEND=websocket",
    ),
}
# The test that runs a program through the tunnel, in tests/integration/test_tunnel_software*.py.
# Each other program's lines follow its documentation.
TESTED_BY: Final[dict[str, str]] = {
    "socketio": "test_socket_io_begins_with_polling_and_upgrades_on_one_url",
    "channels": "test_channels_on_daphne",
    "uvicorn": "test_fastapi_on_uvicorn",
    "actioncable": "test_actioncable_broadcasts",
    "jupyter": "test_a_kernel_of_jupyter_computes",
    "jupyterhub": "test_a_user_of_jupyterhub_computes",
    "novnc": "test_novnc_in_chromium_shows_the_screen",
    "cockpit": "test_cockpit_echoes_by_its_bridge",
    "mosquitto": "test_mosquitto_and_mqtt_js",
    "ttyd": "test_ttyd_runs_a_shell",
}


def origin_of_lines(name: str) -> str:
    """Return whether the lines of a program were tested, for people."""
    return "tested" if name in TESTED_BY else "documentation"


def software_lines(
    name: str,
    backend: str | None = None,
    path: str | None = None,
    document_root: str = "/var/www/html",
) -> list[str]:
    """Return the lines of a program, with comments.

    Args:
        name: a key of ``SOFTWARE``.
        backend: its address; None: the usual one.
        path: of the URL; None: the usual one.
        document_root: of the site.

    Raises:
        SetUpError: an argument is not allowed.
    """
    software = SOFTWARE[name]
    chosen = backend or software.backend
    try:
        keeps_path = Backend.parse(chosen).path is None
    except ValueError:
        raise SetUpError(_bad_backend(chosen)) from None
    if keeps_path and Backend.parse(software.backend).path is not None:
        chosen += "/" if "://" in chosen else "|http://localhost/"
    path = software.path if path is None else path
    lines = tunnel_lines(
        chosen,
        path,
        has_pages=software.has_pages,
        proxy_options=software.proxy_options,
        host_lines=software.host_lines,
    )
    tested = (
        "The tests of apachews run it with lines like these."
        if name in TESTED_BY
        else "The lines follow its documentation; the tests of apachews do not run it."
    )
    own = software.needs_at(path)
    needs = f" Its own settings: {own}." if own else ""
    place = (
        "For its <VirtualHost>, before a ProxyPass of a shorter path, in place of its lines with"
        " ws:// or upgrade=. Modules: proxy_http, headers, setenvif, env."
        if software.has_pages
        else "For its <VirtualHost>, in place of its lines with ws:// or upgrade=. Module: env."
    )
    comments = [f"{software.title}. {tested}{needs}", place]
    if not path.strip("/"):
        comments.append(
            "This tunnel gets every WebSocket of the site, those of .ws files too. If the site has"
            " producers, the next line leaves them theirs; enable it. Module: alias."
        )
    commented = [line for text in comments for line in _comment(text)]
    if not path.strip("/"):
        commented.append(f"# {producers_line(path, document_root)}")
    return [*commented, *lines]


def producers_line(path: str, document_root: str) -> str:
    """Return the directive that leaves producers' sockets below a tunnel's path to them.

    mod_alias has precedence over WSGIScriptAlias, in any order.

    Args:
        path: of the tunnel.
        document_root: of the site.
    """
    prefix = re.escape(path.rstrip("/"))
    target = document_root.rstrip("/").replace("$", "\\$") + "$1"
    return f'AliasMatch "^({prefix}/.+\\.ws)$" "{target}"'


def _comment(text: str) -> list[str]:
    return textwrap.wrap(
        text,
        _COMMENT_COLUMNS,
        initial_indent="# ",
        subsequent_indent="# ",
        break_long_words=False,
        break_on_hyphens=False,
    )


def tunnel_lines(
    backend: str,
    path: str,
    *,
    has_pages: bool = True,
    proxy_options: str = "",
    host_lines: tuple[str, ...] = (),
    cookie: str = "",
) -> list[str]:
    """Return the directives of a tunnel, for a virtual host.

    Args:
        backend: the value of APACHEWS_BACKEND; for several addresses, the ProxyPass of a
            balancer is left to the caller.
        path: of the URL.
        has_pages: whether the backend serves pages as well.
        proxy_options: further arguments of ProxyPass.
        host_lines: further directives of the virtual host.
        cookie: the value of APACHEWS_BACKEND_COOKIE, "" without one.

    Raises:
        SetUpError: an argument is not allowed.
    """
    if not _URL_PATH.fullmatch(path):
        raise SetUpError(f"invalid path {path!r}; expected the path of a URL, for example /app")
    path = path.rstrip("/") or "/"
    targets = [proxy_target(address, path) for address in backend.split()] or [
        proxy_target(backend, path)
    ]
    lines: list[str] = []
    if has_pages:
        # Not in <Location>, which is too late for mod_proxy, and not at the level of the server.
        lines += ['SetEnvIfNoCase Upgrade "^websocket$" no-proxy', "ProxyPreserveHost On"]
        lines += host_lines
        if len(targets) == 1:
            words = ("ProxyPass", path, quote(targets[0]), proxy_options)
            lines.append(" ".join(filter(None, words)))
    lines += [
        f'WSGIScriptAlias {path} "${{APACHEWS_HANDLER}}/tunnel.py" process-group=%{{GLOBAL}}'
        " application-group=%{GLOBAL}",
        f"<Location {path}>",
        "    Require all granted",
        f"    SetEnv APACHEWS_BACKEND {quote(backend)}",
    ]
    if cookie:
        lines.append(f"    SetEnv APACHEWS_BACKEND_COOKIE {cookie}")
    if has_pages:
        # The tunnel does this for WebSockets, and mod_proxy does not for pages.
        lines += [f"    RequestHeader unset {header}" for header in USER_HEADERS]
        lines.append("    RequestHeader set X-Forwarded-Proto expr=%{REQUEST_SCHEME}")
    return [*lines, "</Location>"]


def proxy_target(backend: str, path: str) -> str:
    """Return the second argument of the ProxyPass that agrees with a tunnel.

    Args:
        backend: the value of APACHEWS_BACKEND.
        path: of the alias, and of the ProxyPass.

    Raises:
        SetUpError: the backend is not allowed.
    """
    try:
        parsed = Backend.parse(backend)
    except ValueError:
        raise SetUpError(_bad_backend(backend)) from None
    if not _SOCKET_PATH.fullmatch(parsed.socket_path):
        raise SetUpError(_bad_backend(backend))
    prefix = f"unix:{parsed.socket_path}|" if parsed.socket_path else ""
    base = f"{prefix}http://{parsed.site}"
    mapped = (path if parsed.path is None else parsed.path).rstrip("/")
    # mod_proxy joins the rest of the URL to it: both have a slash at the end, or neither has.
    return base + mapped + ("/" if path == "/" else "")


def _bad_backend(backend: str) -> str:
    return (
        f"invalid backend {backend!r}; expected http://HOST:PORT, with or without a path, or"
        " unix:/PATH|http://localhost"
    )
