"""The lines that lead the WebSockets of existing software through a tunnel.

Contract: ``SOFTWARE`` has the defaults of each program and what its own settings need;
``TESTED_BY`` says which of them the tests run.  ``tunnel_lines(…)`` returns directives for a
virtual host, ``software_lines(…)`` those of a program with comments.  Pure.

Sources: mod_proxy's ProxyPass ("no-proxy"), and the documentation of each program.
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
    "phoenix": Software(
        "Phoenix and LiveView",
        "http://127.0.0.1:4000",
        "/",
        "url: [host: …] of the endpoint, or check_origin, with the name of the site",
    ),
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
    "jupyterhub": Software(
        "JupyterHub",
        "http://127.0.0.1:8000",
        "/jhub",
        "JupyterHub.bind_url = 'http://127.0.0.1:8000{path}/'",
    ),
    "homeassistant": Software(
        "Home Assistant",
        "http://127.0.0.1:8123",
        "/",
        "http: use_x_forwarded_for: true, trusted_proxies: 127.0.0.1; no other path than /",
    ),
    "grafana": Software(
        "Grafana Live",
        "http://127.0.0.1:3000",
        "/grafana",
        "[server] root_url with the site's URL and {path}/, serve_from_sub_path = true",
    ),
    "code-server": Software("code-server", "http://127.0.0.1:8080/", "/code"),
    "novnc": Software(
        "noVNC on websockify",
        "http://127.0.0.1:6080/",
        "/novnc",
        "websockify --web; open {path}/vnc.html?path={path}/websockify",
    ),
    "mattermost": Software(
        "Mattermost", "http://127.0.0.1:8065", "/", "SiteURL with the URL of the site"
    ),
    "rocketchat": Software(
        "Rocket.Chat", "http://127.0.0.1:3000", "/", "ROOT_URL with the URL of the site"
    ),
    "nextcloud-push": Software(
        "notify_push of Nextcloud",
        "http://127.0.0.1:7867/",
        "/push",
        "trusted_proxies of Nextcloud with 127.0.0.1; occ notify_push:setup with the URL of {path}",
    ),
    "synapse": Software(
        "Synapse",
        "http://127.0.0.1:8008",
        "/_matrix",
        "x_forwarded: true of the listener. Its clients poll: it has no WebSockets of its own",
        proxy_options="nocanon",
        host_lines=("AllowEncodedSlashes NoDecode",),
    ),
    "cockpit": Software(
        "Cockpit",
        "http://127.0.0.1:9090",
        "/admin",
        "[WebService] Origins with the site, ProtocolHeader = X-Forwarded-Proto, UrlRoot = {path}",
    ),
    "guacamole": Software(
        "Guacamole on Tomcat",
        "http://127.0.0.1:8080",
        "/guacamole",
        "",
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
    "n8n": Software(
        "n8n",
        "http://127.0.0.1:5678",
        "/",
        "N8N_PROXY_HOPS=1, WEBHOOK_URL with the URL of the site, N8N_PUSH_BACKEND=websocket",
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


def software_lines(name: str, backend: str | None = None, path: str | None = None) -> list[str]:
    """Return the lines of a program, with comments.

    Args:
        name: a key of ``SOFTWARE``.
        backend: its address; None: the usual one.
        path: of the URL; None: the usual one.

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
    return [*(line for text in comments for line in _comment(text)), *lines]


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
) -> list[str]:
    """Return the directives of a tunnel, for a virtual host.

    Args:
        backend: the value of APACHEWS_BACKEND.
        path: of the URL.
        has_pages: whether the backend serves pages as well.
        proxy_options: further arguments of ProxyPass.
        host_lines: further directives of the virtual host.

    Raises:
        SetUpError: an argument is not allowed.
    """
    if not _URL_PATH.fullmatch(path):
        raise SetUpError(f"invalid path {path!r}; expected the path of a URL, for example /app")
    path = path.rstrip("/") or "/"
    target = proxy_target(backend, path)
    lines: list[str] = []
    if has_pages:
        # Not in <Location>, which is too late for mod_proxy, and not at the level of the server.
        lines += ['SetEnvIfNoCase Upgrade "^websocket$" no-proxy', "ProxyPreserveHost On"]
        lines += host_lines
        lines.append(" ".join(filter(None, ("ProxyPass", path, quote(target), proxy_options))))
    lines += [
        f'WSGIScriptAlias {path} "${{APACHEWS_HANDLER}}/tunnel.py" process-group=%{{GLOBAL}}'
        " application-group=%{GLOBAL}",
        f"<Location {path}>",
        "    Require all granted",
        f"    SetEnv APACHEWS_BACKEND {quote(backend)}",
    ]
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
