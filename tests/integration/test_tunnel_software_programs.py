"""Tunnels to whole programs, unmodified, with the lines that apachews prints for them.

``deploy/test -e tunnel`` installs the programs and runs these tests.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import struct
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import requests
from selenium import webdriver
from websockets.sync.client import ClientConnection

from apachews_tools.httpd import private_apache
from apachews_tools.install.tunnels import software_lines

from ..browser.conftest import CHROMEDRIVER, CHROMIUM, chromium
from ..conftest import wait_for
from ..support.backends import listening
from ..support.frames import masked
from ..support.producers import program
from ..support.raw_client import RawClient, dial_tcp, request
from ..support.site import Site, running_site
from .test_tunnel import alias
from .test_tunnel_config import LOADED
from .test_tunnel_software import (
    MODULES,
    SCHEMES,
    address_of,
    connect,
    execute,
    jupyter_site,
    need,
    need_python,
    node,
    refused_by,
)

__all__ = ["node"]  # a fixture

pytestmark = pytest.mark.skipif(
    "APACHEWS_TUNNEL_SOFTWARE" not in os.environ,
    reason="large programs of others: deploy/test -e tunnel installs and runs them",
)


def need_program(name: str, package: str) -> str:
    """Return the path of a program."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/lib/cockpit")
    need(found, f"{name} of Debian's {package}")
    return str(found)


def site_of(name: str, port: int, *settings: str) -> AbstractContextManager[Site]:
    """Return a site with the printed lines of a program that listens on a port.

    Args:
        name: of the program, a key of ``SOFTWARE``.
        port: of 127.0.0.1.
        settings: further lines of its <Location>.
    """
    lines = software_lines(name, f"http://127.0.0.1:{port}")
    lines[-1:-1] = settings
    # At the level of the server, for its virtual host with TLS too.
    return running_site(extra=LOADED + "".join(f"{line}\n" for line in lines))


# VNC.  The screen has a fine pattern, which "-retro" draws.
WIDTH, HEIGHT = 1000, 700
SCREEN = ("-retro", "-geometry", f"{WIDTH}x{HEIGHT}", "-depth", "24")


class FramedClient(RawClient):
    """A byte stream in binary messages, as noVNC and websockify exchange it."""

    def __init__(self, site: Site, scheme: str) -> None:
        super().__init__(site.dial("ws" if scheme == "ws" else "wss1.3"))
        self._stream = b""
        self.send(request("/novnc/websockify", Sec_WebSocket_Protocol="binary"))
        assert self.read_head()[0] == 101

    def __enter__(self) -> FramedClient:
        return self

    def send_bytes(self, data: bytes) -> None:
        self.send(masked(0x82, data))

    def read_bytes(self, size: int) -> bytes:
        pieces, length = [self._stream], len(self._stream)
        while length < size:
            frame = self.read_data_frame()
            assert frame and frame[0] == 0x82, frame
            pieces.append(frame[1])
            length += len(frame[1])
        stream = b"".join(pieces)
        self._stream = stream[size:]
        return stream[:size]


class PlainClient(RawClient):
    """A byte stream."""

    send_bytes = RawClient.send
    read_bytes = RawClient.read

    def __enter__(self) -> PlainClient:
        return self


def begin(client: FramedClient | PlainClient) -> None:
    """Begin to talk RFB 3.8 (RFC 6143), without a login and without compression."""
    assert client.read_bytes(12) == b"RFB 003.008\n"
    client.send_bytes(b"RFB 003.008\n")
    assert client.read_bytes(2) == b"\x01\x01"  # one security type: None
    client.send_bytes(b"\x01")
    assert client.read_bytes(4) == bytes(4)  # allowed
    client.send_bytes(b"\x01")  # ClientInit: shared
    width, height, _, length = struct.unpack(">HH16sI", client.read_bytes(24))
    assert (width, height) == (WIDTH, HEIGHT)
    client.read_bytes(length)  # a name
    client.send_bytes(struct.pack(">BxHi", 2, 1, 0))  # SetEncodings: raw


def screen(client: FramedClient | PlainClient) -> bytes:
    """Return the pixels of the whole screen, four bytes each."""
    client.send_bytes(struct.pack(">BBHHHH", 3, 0, 0, 0, WIDTH, HEIGHT))
    pixels, missing = bytearray(WIDTH * HEIGHT * 4), WIDTH * HEIGHT
    while missing:
        kind, rectangles = struct.unpack(">BxH", client.read_bytes(4))
        assert kind == 0  # FramebufferUpdate
        for _ in range(rectangles):
            left, top, columns, rows, encoding = struct.unpack(">HHHHi", client.read_bytes(12))
            assert encoding == 0
            for row in range(top, top + rows):
                start = (row * WIDTH + left) * 4
                pixels[start : start + columns * 4] = client.read_bytes(columns * 4)
            missing -= columns * rows
    return bytes(pixels)


@contextlib.contextmanager
def vnc_site(*settings: str) -> Iterator[tuple[Site, int]]:
    """A site with noVNC below /novnc, and the port of its VNC server."""
    server = need_program("Xvnc", "tigervnc-standalone-server")
    websockify = need_program("websockify", "websockify")
    pages = Path("/usr/share/novnc")
    need(pages.is_dir(), "pages of Debian's novnc")
    rfb, port = private_apache.free_port(), private_apache.free_port()
    reader, writer = os.pipe()
    command = [server, *SCREEN, "-SecurityTypes", "None", "-rfbport", str(rfb)]
    # It chooses a free number for the display.
    command += ["-localhost", "-nolisten", "unix", "-displayfd", str(writer)]
    try:
        with (
            listening(rfb, *command, pass_fds=(writer,)),
            listening(
                port, websockify, "--web", str(pages), f"127.0.0.1:{port}", f"127.0.0.1:{rfb}"
            ),
            site_of("novnc", port, *settings) as site,
        ):
            yield site, rfb
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("mode", ["frames", "opaque"])
def test_a_screen_of_vnc_passes_untouched_also_after_a_reload(mode: str) -> None:
    """2.8 MB of pixels: the same bytes as those of the VNC server itself."""
    settings = [f"SetEnv APACHEWS_TUNNEL {mode}"] if mode == "opaque" else []
    with vnc_site(*settings) as (site, port):
        with PlainClient(dial_tcp(port)) as client:
            begin(client)
            expected = screen(client)
        assert len(set(expected)) > 1  # a picture
        with FramedClient(site, "ws") as plain, FramedClient(site, "wss") as encrypted:
            for framed in (plain, encrypted):
                begin(framed)
                assert screen(framed) == expected
            site.renew(60)
            wait_for(site.custodians)
            for framed in (plain, encrypted):
                assert screen(framed) == expected
        closed = "/novnc/websockify closed by client .* messages_out="
        wait_for(lambda: len(site.log_lines(closed)) == 2)
        # Only frames are counted.
        uncounted = len(site.log_lines(f"{closed}0 "))
        assert uncounted == (2 if mode == "opaque" else 0)


PICTURE = """
const canvas = document.querySelector('canvas');
if (!document.documentElement.classList.contains('noVNC_connected') || !canvas) return null;
const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
let light = 0;
for (let i = 0; i < data.length; i += 4) light += data[i] > 200;
return [canvas.width, canvas.height, light > 1000];
"""


def test_novnc_in_chromium_shows_the_screen() -> None:
    need(CHROMIUM and CHROMEDRIVER, "chromium and chromium-driver")
    with vnc_site() as (site, _):
        with chromium() as driver:
            for scheme in SCHEMES:
                page = "/novnc/vnc.html?path=/novnc/websockify&autoconnect=true"
                driver.get(address_of(site, scheme) + page)
                wait_for(lambda: driver.execute_script(PICTURE) == [WIDTH, HEIGHT, True], 30)
        # (Chromium keeps the connections of a page that it has left.)
        wait_for(lambda: len(site.log_lines("/novnc/websockify closed by client")) == 2)


@contextlib.contextmanager
def cockpit_site(directory: Path) -> Iterator[Site]:
    """A site with Cockpit below /admin, for the user of the tests, without a login."""
    server = need_program("cockpit-ws", "cockpit-ws")
    bridge = need_program("cockpit-bridge", "cockpit-bridge")
    port = private_apache.free_port()
    (directory / "cockpit").mkdir()
    with site_of("cockpit", port, "SetEnv APACHEWS_ORIGINS *") as site:
        origins = " ".join(address_of(site, scheme) for scheme in SCHEMES)
        lines = ["[WebService]", f"Origins = {origins}", "ProtocolHeader = X-Forwarded-Proto"]
        (directory / "cockpit" / "cockpit.conf").write_text(
            "\n".join([*lines, "UrlRoot = /admin", "AllowUnencrypted = true", ""])
        )
        command = [server, f"--local-session={bridge}", "--address=127.0.0.1", f"--port={port}"]
        with listening(port, *command, env={**os.environ, "XDG_CONFIG_DIRS": str(directory)}):
            yield site


def test_cockpit_echoes_by_its_bridge(tmp_path: Path) -> None:
    with cockpit_site(tmp_path) as site:
        for scheme in SCHEMES:
            assert "Cockpit" in page(site, scheme, "/admin/").text
            path = "/admin/cockpit/socket"
            protocols: Any = ["cockpit1"]
            with connect(site, scheme, path, subprotocols=protocols) as connection:
                assert '"command":"init"' in str(connection.recv(20))
                connection.send('\n{"command":"init","version":1}')
                connection.send('\n{"command":"open","channel":"a:1","payload":"echo"}')
                connection.send("a:1\n" + "hello" * 10000)
                while (received := connection.recv(20)) != "a:1\n" + "hello" * 10000:
                    assert received[0] == "\n", received  # a control message
            # The check is Cockpit's: Apache lets every origin pass.
            elsewhere = {"subprotocols": protocols, "origin": "https://example.com"}
            assert refused_by(site, scheme, path, **elsewhere) == (403, "backend")


def page(site: Site, scheme: str, path: str) -> requests.Response:
    """Return a page of a site."""
    certificate = str(site.apache.certificate)
    return requests.get(address_of(site, scheme) + path, verify=certificate, timeout=30)


def test_the_pages_of_cockpit_connect_in_chromium(tmp_path: Path) -> None:
    need(CHROMIUM and CHROMEDRIVER, "chromium and chromium-driver")
    need(Path("/usr/share/cockpit/shell").is_dir(), "pages of Debian's cockpit-system")
    with cockpit_site(tmp_path) as site, chromium() as driver:
        for scheme in SCHEMES:
            driver.get(address_of(site, scheme) + "/admin/")
            wait_for(lambda: has_menu(driver), 30, lambda: driver.page_source)
        driver.get("about:blank")
        wait_for(lambda: len(site.log_lines("/admin/cockpit/socket closed by")) == 2)


def has_menu(driver: webdriver.Chrome) -> bool:
    """Tell whether Cockpit's shell shows its menu, as it does after it has connected."""
    return bool(driver.execute_script("return document.body.innerText.includes('Overview')"))


def test_a_terminal_of_jupyter(tmp_path: Path) -> None:
    """By terminado, the server for xterm.js of Jupyter."""
    need_python("jupyter_server", "terminado")
    with jupyter_site(tmp_path) as site:
        token = {"Authorization": "token secret"}
        certificate = str(site.apache.certificate)
        for scheme in SCHEMES:
            api = address_of(site, scheme) + "/python/api/terminals"
            made = requests.post(api, headers=token, verify=certificate, timeout=30)
            assert made.status_code == 200, made.text
            name = made.json()["name"]
            path = f"/python/terminals/websocket/{name}?token=secret"
            with connect(site, scheme, path) as connection:
                assert json.loads(connection.recv(30)) == ["setup", {}]
                # The terminal echoes the expression, and the shell prints its value.
                connection.send(json.dumps(["stdin", "echo $((6 * 7000))\r"]))
                shown = ""
                while "42000" not in shown:
                    kind, text = json.loads(connection.recv(30))
                    shown += text if kind == "stdout" else ""
            url = f"{api}/{name}"
            assert requests.delete(url, headers=token, verify=certificate, timeout=30).ok


def test_websocketd_and_a_program_of_lines() -> None:
    """It makes a message of each line of the program that it starts."""
    websocketd = need_program("websocketd", "websocketd")
    port = private_apache.free_port()
    command = [websocketd, "--address=127.0.0.1", f"--port={port}", "--loglevel=error"]
    with (
        listening(port, *command, "sed", "-u", "s/^/read: /"),
        running_site(extra=alias("lines", f"http://127.0.0.1:{port}/")) as site,
    ):
        for scheme in SCHEMES:
            with connect(site, scheme, "/lines") as connection:
                for text in ("hello", "again" * 10000):
                    connection.send(text)
                    assert connection.recv(20) == f"read: {text}"


def test_ttyd_runs_a_shell(tmp_path: Path) -> None:
    """Debian 12 and 13 have no ttyd; later ones do."""
    found = shutil.which("ttyd")
    if not found:
        pytest.skip("no ttyd: Debian 12 and 13 do not have it")
    port = private_apache.free_port()
    command = [found, "--interface", "127.0.0.1", "--port", str(port), "--base-path", "/ttyd"]
    with (
        listening(port, *command, "--writable", "sh", env={**os.environ, "HOME": str(tmp_path)}),
        site_of("ttyd", port) as site,
    ):
        for scheme in SCHEMES:
            token = page(site, scheme, "/ttyd/token").json()["token"]
            protocols: Any = ["tty"]
            with connect(site, scheme, "/ttyd/ws", subprotocols=protocols) as connection:
                size = {"AuthToken": token, "columns": 80, "rows": 24}
                connection.send(json.dumps(size).encode())
                connection.send(b"0echo $((6 * 7000))\r")
                shown = b""
                while b"42000" not in shown:
                    message = connection.recv(30)
                    assert isinstance(message, bytes)
                    shown += message[1:] if message[:1] == b"0" else b""


@contextlib.contextmanager
def jupyterhub_site(node: str, directory: Path) -> Iterator[Site]:
    """A site with JupyterHub below /jhub, whose users need no password."""
    need_python("jupyterhub", "jupyter_server", "ipykernel")
    proxy = Path(MODULES, "configurable-http-proxy", "bin", "configurable-http-proxy")
    need(proxy.is_file(), "package configurable-http-proxy for Node")
    port, hub, api = (private_apache.free_port() for _ in range(3))
    settings = {
        "JupyterHub.bind_url": f"http://127.0.0.1:{port}/jhub/",
        "JupyterHub.hub_bind_url": f"http://127.0.0.1:{hub}",
        "JupyterHub.authenticator_class": "dummy",
        "JupyterHub.spawner_class": "simple",
        "JupyterHub.cookie_secret_file": f"{directory}/cookie_secret",
        "JupyterHub.db_url": "sqlite:///:memory:",
        "Authenticator.allow_all": True,
        "ConfigurableHTTPProxy.command": [node, str(proxy)],
        "ConfigurableHTTPProxy.api_url": f"http://127.0.0.1:{api}",
        "ConfigurableHTTPProxy.pid_file": f"{directory}/proxy.pid",
        "SimpleLocalProcessSpawner.home_dir_template": f"{directory}/{{username}}",
        "Spawner.cmd": [sys.executable, "-m", "jupyterhub.singleuser"],
        "Spawner.args": ["--allow-root"],
        "Spawner.start_timeout": 120,
        "Spawner.http_timeout": 120,
        "Spawner.environment": {"JUPYTERHUB_SINGLEUSER_APP": "jupyter_server.serverapp.ServerApp"},
    }
    (directory / "jupyterhub_config.py").write_text(
        "".join(f"c.{name} = {value!r}\n" for name, value in settings.items())
    )
    command = [sys.executable, "-m", "jupyterhub", "-f", "jupyterhub_config.py"]
    with (
        site_of("jupyterhub", port) as site,
        listening(port, *command, cwd=directory) as process,
    ):
        try:
            yield site
        finally:
            process.send_signal(signal.SIGTERM)  # it ends its proxy and its users' servers
            process.wait(60)


@pytest.mark.timeout(300)  # four programs of Python start, one after the other
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_user_of_jupyterhub_computes(node: str, tmp_path: Path, scheme: str) -> None:
    """By the login, the proxy of JupyterHub and the server that it starts for the user."""
    with jupyterhub_site(node, tmp_path) as site, requests.Session() as browser:
        browser.trust_env = False
        browser.verify = str(site.apache.certificate)
        hub = address_of(site, scheme) + "/jhub"
        # The proxy listens before the hub does.
        wait_for(lambda: browser.get(f"{hub}/hub/login", timeout=30).ok, 60)
        (tmp_path / "ann").mkdir()
        (tmp_path / "ann" / "page.txt").write_text("hello")
        form = {"username": "ann", "password": "", "_xsrf": cookie(browser, "_xsrf", "/jhub/hub/")}
        entered = browser.post(f"{hub}/hub/login?next=%2Fjhub%2Fhub%2Fspawn", form, timeout=60)
        assert entered.ok, entered.text
        # The hub reports the start of the server as a stream of events.
        progress = f"{hub}/hub/api/users/ann/server/progress"
        token = {"_xsrf": cookie(browser, "_xsrf", "/jhub/hub/")}
        with browser.get(progress, params=token, stream=True, timeout=120) as events:
            assert any(b'"ready": true' in line for line in events.iter_lines())
        server = f"{hub}/user/ann"
        # The server redirects to the hub's login, and back.
        assert browser.get(f"{server}/files/page.txt", timeout=60).text == "hello"
        token = {"X-XSRFToken": cookie(browser, "_xsrf", "/jhub/user/ann/")}
        made = browser.post(f"{server}/api/kernels", json={}, headers=token, timeout=60)
        assert made.status_code == 201, made.text
        path = f"/jhub/user/ann/api/kernels/{made.json()['id']}/channels"
        cookies = "; ".join(
            f"{one.name}={one.value}"
            for one in browser.cookies
            if path.startswith(one.path) and one.name != "_xsrf"
        )
        with connect(site, scheme, path, additional_headers={"Cookie": cookies}) as connection:
            assert execute(connection, "1 + 1") == "2"
        assert refused_by(site, scheme, path) == (403, "backend")


def cookie(browser: requests.Session, name: str, path: str) -> str:
    """Return the value of a cookie of a path."""
    return str(browser.cookies.get(name, path=path))


# As the guides of Rails have it, in one file.  ORIGINS of the environment: those that may connect.
ACTION_CABLE = r"""
require "action_controller/railtie"
require "action_cable/engine"

class Application < Rails::Application
  config.load_defaults 6.1
  config.eager_load = true
  config.logger = Logger.new($stderr, level: :warn)
  config.secret_key_base = "x" * 64
  config.hosts.clear
  config.action_cable.cable = { "adapter" => "async" }
  config.action_cable.mount_path = "/cable"
  config.action_cable.allowed_request_origins = ENV["ORIGINS"].split
end

module ApplicationCable
  class Connection < ActionCable::Connection::Base; end
  class Channel < ActionCable::Channel::Base; end
end

class ChatChannel < ApplicationCable::Channel
  def subscribed
    stream_from "chat"
  end

  def speak(data)
    ActionCable.server.broadcast("chat", { message: data["message"] })
  end
end

Application.initialize!
run Application
"""


@contextlib.contextmanager
def actioncable_site(directory: Path) -> Iterator[Site]:
    """A site with Action Cable on puma at /cable."""
    puma = need_program("puma", "puma")
    need_program("rails", "ruby-railties")
    port = private_apache.free_port()
    rackup = program(directory, ACTION_CABLE, "config.ru")
    with site_of("actioncable", port, "SetEnv APACHEWS_ORIGINS *") as site:
        origins = " ".join(address_of(site, scheme) for scheme in SCHEMES)
        env = {**os.environ, "ORIGINS": origins, "RAILS_ENV": "production"}
        command = [puma, "--bind", f"tcp://127.0.0.1:{port}", "--quiet", rackup]
        with listening(port, *command, cwd=directory, env=env):
            yield site


def test_actioncable_broadcasts(tmp_path: Path) -> None:
    channel = json.dumps({"channel": "ChatChannel"})
    protocols: Any = ["actioncable-v1-json", "actioncable-unsupported"]

    def told(connection: ClientConnection) -> dict[str, Any]:
        """Return the next message that is not one of its PINGs."""
        while (message := json.loads(connection.recv(20))).get("type") == "ping":
            pass
        return dict(message)

    with actioncable_site(tmp_path) as site, contextlib.ExitStack() as stack:
        ann, bob = (
            stack.enter_context(connect(site, scheme, "/cable", subprotocols=protocols))
            for scheme in SCHEMES
        )
        for client in (ann, bob):
            assert client.subprotocol == "actioncable-v1-json"
            assert told(client) == {"type": "welcome"}
            client.send(json.dumps({"command": "subscribe", "identifier": channel}))
            assert told(client) == {"identifier": channel, "type": "confirm_subscription"}
        data = json.dumps({"action": "speak", "message": "hello" * 1000})
        ann.send(json.dumps({"command": "message", "identifier": channel, "data": data}))
        for client in (ann, bob):
            assert told(client) == {"identifier": channel, "message": {"message": "hello" * 1000}}
        # The check is Action Cable's: Apache lets every origin pass.
        elsewhere = {"subprotocols": protocols, "origin": "https://example.com"}
        assert refused_by(site, "ws", "/cable", **elsewhere) == (404, "backend")
