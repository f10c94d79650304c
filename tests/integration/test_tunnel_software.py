"""Tunnels to WebSocket servers that others wrote, unmodified.

A test whose server is not installed is skipped.  ``deploy/test -e tunnel`` installs all of them,
and sets ``APACHEWS_TUNNEL_SOFTWARE``: there such a test fails.  Whole programs, with their pages
and the lines that apachews prints for them, are in ``test_tunnel_software_programs.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import requests
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection
from websockets.sync.client import connect as websockets_connect

from apachews_tools.httpd import private_apache

from ..conftest import wait_for
from ..support.backends import listening
from ..support.frames import masked
from ..support.producers import program
from ..support.raw_client import RawClient, request
from ..support.site import MOD_PYTHON, Site, for_two_threads, running_site
from .test_tunnel import alias

pytestmark = pytest.mark.skipif(
    MOD_PYTHON is not None, reason="tunnels are for mod_wsgi: mod_python's directive is FileInfo's"
)

MODULES = os.environ.get(
    "APACHEWS_NODE_PATH", str(Path(__file__).parents[2] / ".venv/node/node_modules")
)
# Pages by mod_proxy on the URLs of a tunnel: for the virtual host with TLS too.
PROXY = """
LoadModule proxy_module "${MODULES}/mod_proxy.so"
LoadModule proxy_http_module "${MODULES}/mod_proxy_http.so"
SetEnvIfNoCase Upgrade "^websocket$" no-proxy
ProxyPreserveHost On
"""

# Arguments: a port.
NODE_WS = """
const { WebSocketServer } = require('ws');
const server = new WebSocketServer({
    host: '127.0.0.1', port: Number(process.argv[2]), perMessageDeflate: { threshold: 0 },
    handleProtocols: (offered) => offered.has('echo') ? 'echo' : false,
});
server.on('connection', (socket) => {
    socket.on('message', (data, isBinary) => socket.send(data, { binary: isBinary }));
});
"""

# Arguments: URL, file of the certificate to trust or "".  The client negotiates compression.
NODE_CLIENT = """
const fs = require('fs');
const WebSocket = require('ws');
const [url, ca] = process.argv.slice(2);
const socket = new WebSocket(url, ['echo'], ca ? { ca: fs.readFileSync(ca) } : {});
const messages = ['hello', Buffer.alloc(300000, 7), 'again'.repeat(1000)];
let received = 0;
socket.on('open', () => messages.forEach((message) => socket.send(message)));
socket.on('message', (data, isBinary) => {
    const wanted = Buffer.from(messages[received++]);
    if (!wanted.equals(data)) { console.log(`message ${received} differs`); process.exit(1); }
    if (received === messages.length) socket.close(4000, 'done');
});
socket.on('close', (code, reason) =>
    console.log(code, String(reason), socket.protocol, Object.keys(socket._extensions).join()));
socket.on('error', (error) => { console.log(error.stack); process.exit(1); });
"""

SOCKET_IO = """
const http = require('http').createServer((_, response) => response.end('page'));
const io = new (require('socket.io').Server)(http, {
    path: '/sio/socket.io', perMessageDeflate: true,
});
io.on('connection', (socket) => {
    socket.on('say', (text, answer) => answer(text, socket.conn.transport.name));
    socket.on('binary', (data) => socket.emit('binary', data));
});
http.listen(Number(process.argv[2]), '127.0.0.1');
"""

# Arguments: URL of the site, file of the certificate to trust or "".  Begins with polling, and
# upgrades.
SOCKET_IO_CLIENT = """
const [url, ca] = process.argv.slice(2);
const trusted = ca ? require('fs').readFileSync(ca) : undefined;
const socket = require('socket.io-client')(url, { path: '/sio/socket.io', ca: trusted });
socket.io.engine.on('upgrade', () => {
    socket.emit('say', 'hello', (text, transport) => {
        socket.on('binary', (data) => {
            console.log(text, transport, data.length);
            socket.disconnect();
        });
        socket.emit('binary', Buffer.alloc(200000));
    });
});
socket.on('connect_error', (error) => { console.log(error.message); process.exit(1); });
setTimeout(() => { console.log('no upgrade'); process.exit(1); }, 20000).unref();
"""

FASTAPI = """
import json, sys
import uvicorn
from fastapi import FastAPI, WebSocket, WebSocketException

app = FastAPI()

@app.websocket("/app/echo")
async def echo(websocket: WebSocket):
    await websocket.accept(headers=[(b"set-cookie", b"a=1")])
    await websocket.send_text(json.dumps({
        "client": websocket.client and websocket.client.host, "scheme": websocket.url.scheme,
        "host": websocket.url.netloc, "user": websocket.headers.get("x-remote-user"),
    }))
    async for message in websocket.iter_bytes():
        await websocket.send_bytes(message)

@app.websocket("/app/denied")
async def denied(websocket: WebSocket):
    raise WebSocketException(code=1008)

option = {"port": int(sys.argv[2])} if sys.argv[1] == "tcp" else {
    "uds": sys.argv[2], "forwarded_allow_ips": "*",
}
uvicorn.run(app, log_level="warning", **option)
"""

STARLETTE = """
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

async def echo(websocket):
    await websocket.accept(subprotocol=(websocket.scope["subprotocols"] or [None])[0])
    while (message := await websocket.receive())["type"] == "websocket.receive":
        await websocket.send({**message, "type": "websocket.send"})

async def denied(websocket):
    await websocket.close(1008)

app = Starlette(routes=[
    WebSocketRoute("/app/echo", echo), WebSocketRoute("/app/denied", denied),
])
"""

# As the tutorial of Channels has it, with its check of the origin.
CHANNELS = r"""
import json
import django
from django.conf import settings

settings.configure(
    SECRET_KEY="x", ALLOWED_HOSTS=["localhost"], INSTALLED_APPS=["daphne", "channels"],
    CHANNEL_LAYERS={"default": {"BACKEND": "channels.layers.InMemoryChannelLayer"}},
)
django.setup()

from channels.generic.websocket import AsyncWebsocketConsumer
from channels.routing import ProtocolTypeRouter, URLRouter
from channels.security.websocket import AllowedHostsOriginValidator
from django.core.asgi import get_asgi_application
from django.urls import re_path

class ChatConsumer(AsyncWebsocketConsumer):
    async def connect(self):
        self.group = "chat_" + self.scope["url_route"]["kwargs"]["room"]
        await self.channel_layer.group_add(self.group, self.channel_name)
        await self.accept()

    async def disconnect(self, code):
        await self.channel_layer.group_send(
            self.group, {"type": "chat.message", "message": f"closed {code}"})
        await self.channel_layer.group_discard(self.group, self.channel_name)

    async def receive(self, text_data):
        message = json.loads(text_data)["message"]
        await self.channel_layer.group_send(
            self.group, {"type": "chat.message", "message": message})

    async def chat_message(self, event):
        await self.send(text_data=json.dumps({"message": event["message"]}))

application = ProtocolTypeRouter({
    "http": get_asgi_application(),
    "websocket": AllowedHostsOriginValidator(
        URLRouter([re_path(r"^ws/chat/(?P<room>\w+)/$", ChatConsumer.as_asgi())])),
})
"""

AIOHTTP = """
import sys
from aiohttp import WSMsgType, web

async def echo(request):
    socket = web.WebSocketResponse(heartbeat=1, protocols=["echo"], max_msg_size=0)
    await socket.prepare(request)
    async for message in socket:
        if message.type is WSMsgType.TEXT:
            await socket.send_str(message.data)
        else:
            await socket.send_bytes(message.data)
    return socket

app = web.Application()
app.router.add_get("/app", echo)
web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
"""

GRAPHQL = """
const { buildSchema } = require('graphql');
const { WebSocketServer } = require('ws');
const { useServer } = require('graphql-ws/use/ws');
const schema = buildSchema(`
    type Query { hello: String }
    type Subscription { countdown(from: Int!): Int }
`);
const subscription = {
    async *countdown({ from }) {
        for (let number = from; number >= 0; number--) yield { countdown: number };
    },
};
useServer(
    { schema, roots: { query: { hello: () => 'world' }, subscription } },
    new WebSocketServer({ host: '127.0.0.1', port: Number(process.argv[2]), path: '/graphql' }),
);
"""

# Arguments: URL, file of the certificate to trust or "".
GRAPHQL_CLIENT = """
const fs = require('fs');
const WebSocket = require('ws');
const { createClient } = require('graphql-ws');
const [url, ca] = process.argv.slice(2);
class Trusting extends WebSocket {
    constructor(address, protocols) {
        super(address, protocols, ca ? { ca: fs.readFileSync(ca) } : {});
    }
}
const client = createClient({ url, webSocketImpl: Trusting, retryAttempts: 0 });
(async () => {
    const found = [];
    for await (const { data } of client.iterate({ query: '{ hello }' })) found.push(data.hello);
    const query = 'subscription { countdown(from: 3) }';
    for await (const { data } of client.iterate({ query })) found.push(data.countdown);
    await client.dispose();
    console.log(found.join());
})().catch((error) => { console.log(error); process.exit(1); });
"""

# Arguments: URL, file of the certificate to trust or "", topic.
MQTT_JS = """
const fs = require('fs');
const [url, ca, topic] = process.argv.slice(2);
const client = require('mqtt').connect(url, {
    reconnectPeriod: 0, ca: ca ? fs.readFileSync(ca) : undefined,
});
const payload = Buffer.alloc(100000, 7);
client.on('connect', async () => {
    await client.subscribeAsync(topic, { qos: 1 });
    await client.publishAsync(topic, payload, { qos: 1 });
});
client.on('message', async (name, data) => {
    await client.endAsync();
    console.log(name, payload.equals(data));
});
client.on('error', (error) => { console.log(error.stack); process.exit(1); });
"""


def need(found: object, what: str) -> None:
    """Skip the test, or fail it if all software must be installed, unless ``found``."""
    if found:
        return
    reason = f"no {what}: deploy/test -e tunnel installs it"
    if os.environ.get("APACHEWS_TUNNEL_SOFTWARE"):
        pytest.fail(reason)
    pytest.skip(reason)


def need_python(*modules: str) -> None:
    for module in modules:
        need(importlib.util.find_spec(module), f"Python package {module}")


@pytest.fixture
def node() -> str:
    found = shutil.which("node")
    need(found, "node")
    return str(found)


def need_node(*packages: str) -> None:
    for package in packages:
        need(Path(MODULES, package).is_dir(), f"package {package} for Node")


def run_node(node: str, script: str, *arguments: str) -> str:
    done = subprocess.run(
        [node, script, *arguments],
        env={**os.environ, "NODE_PATH": MODULES},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


SCHEMES = ("ws", "wss")


def address_of(site: Site, scheme: str) -> str:
    """Return the address of a site as the origin of its pages."""
    if scheme == "ws":
        return f"http://localhost:{site.apache.port}"
    return f"https://localhost:{site.apache.tls_port}"


def connect(site: Site, scheme: str, path: str, **options: Any) -> ClientConnection:
    """Connect as a page of the site does, and offer compression."""
    address = address_of(site, scheme)
    connection: ClientConnection = websockets_connect(
        address.replace("http", "ws", 1) + path,
        ssl=for_two_threads(site.tls_context()) if scheme == "wss" else None,
        proxy=None,
        open_timeout=30,
        max_size=None,
        **{"origin": address, **options},
    )
    return connection


def is_compressed(connection: ClientConnection) -> bool:
    return any(one.name == "permessage-deflate" for one in connection.protocol.extensions)


def refused_by(site: Site, scheme: str, path: str, **options: Any) -> tuple[int, str | None]:
    """Return the status of a refusal, and who refuses."""
    with pytest.raises(InvalidStatus) as refused:
        connect(site, scheme, path, **options)
    response = refused.value.response
    return response.status_code, response.headers.get("Apachews-Refused")


def test_ws_of_node(node: str, tmp_path: Path) -> None:
    need_node("ws")
    port = private_apache.free_port()
    server = program(tmp_path, NODE_WS, "server.js")
    client = program(tmp_path, NODE_CLIENT, "client.js")
    with (
        listening(port, node, server, str(port), env={**os.environ, "NODE_PATH": MODULES}),
        running_site(extra=alias("app", f"http://127.0.0.1:{port}")) as site,
    ):
        expected = "4000 done echo permessage-deflate"
        assert run_node(node, client, site.ws("/app"), "") == expected
        certificate = str(site.apache.certificate)
        assert run_node(node, client, site.wss("/app"), certificate) == expected


@pytest.mark.parametrize("backend_path", ["", "/sio"])
def test_socket_io_begins_with_polling_and_upgrades_on_one_url(
    node: str, tmp_path: Path, backend_path: str
) -> None:
    need_node("socket.io", "socket.io-client")
    port = private_apache.free_port()
    server = program(tmp_path, SOCKET_IO, "server.js")
    client = program(tmp_path, SOCKET_IO_CLIENT, "client.js")
    address = f"http://127.0.0.1:{port}"
    extra = PROXY + f"ProxyPass /sio {address}/sio\n" + alias("sio", address + backend_path)
    with (
        listening(port, node, server, str(port), env={**os.environ, "NODE_PATH": MODULES}),
        running_site(extra=extra) as site,
    ):
        for scheme in SCHEMES:
            certificate = str(site.apache.certificate) if scheme == "wss" else ""
            said = run_node(node, client, address_of(site, scheme), certificate)
            assert said == "hello websocket 200000"
        # Compressed, the 200,000 bytes are fewer than 10,000.
        closed = r"/sio/socket.io/ closed by .* bytes_out=\d{2,4}( |$)"
        wait_for(lambda: len(site.log_lines(closed)) == 2)
        assert not site.log_lines("sid=")


@pytest.fixture(params=["tcp", "uds"])
def fastapi_site(request: pytest.FixtureRequest, short_path: Path) -> Iterator[Site]:
    short_path.chmod(0o755)
    script = program(short_path, FASTAPI, "server.py")
    port, path = private_apache.free_port(), short_path / "app.sock"
    if request.param == "tcp":
        address = f"http://127.0.0.1:{port}"
        with (
            listening(port, sys.executable, script, "tcp", str(port)),
            running_site(extra=alias("app", address)) as site,
        ):
            yield site
        return
    process = subprocess.Popen([sys.executable, script, "uds", str(path)])
    try:
        wait_for(lambda: path.exists() or process.poll() is not None, 30)
        with running_site(extra=alias("app", f"unix:{path}|http://localhost")) as site:
            yield site
    finally:
        process.kill()
        process.wait()


def test_fastapi_on_uvicorn(fastapi_site: Site) -> None:
    for scheme, told in (("ws", b'"ws"'), ("wss1.3", b'"wss"')):
        with RawClient(fastapi_site.dial(scheme)) as client:
            client.send(request("/app/echo", X_Remote_User="forged"))
            status, headers = client.read_head()
            assert (status, headers["set-cookie"]) == (101, "a=1")
            frame = client.read_data_frame()
            assert frame
            assert b'"client": "127.0.0.1", "scheme": ' + told in frame[1]
            assert b'"host": "localhost", "user": null' in frame[1]
            client.send(masked(0x82, bytes(100_000)))
            assert client.read_data_frame() == (0x82, bytes(100_000))
            client.send(masked(0x88, b"\x0f\xa1"))
            assert client.read_close() == 4001
    with RawClient(fastapi_site.dial("ws")) as client:
        client.send(request("/app/denied"))
        status, headers = client.read_head()
        assert (status, headers["apachews-refused"]) == (403, "backend")


UVICORN = ("uvicorn", "--log-level", "warning", "--host", "127.0.0.1")


@pytest.mark.parametrize(
    ("server", "compresses"),
    [
        ((*UVICORN, "--ws", "websockets", "--port"), True),
        ((*UVICORN, "--ws", "websockets-sansio", "--port"), True),
        ((*UVICORN, "--ws", "wsproto", "--port"), True),
        (("hypercorn", "--bind"), True),
        (("daphne", "-b", "127.0.0.1", "-p"), False),
    ],
    ids=["websockets", "websockets-sansio", "wsproto", "hypercorn", "daphne"],
)
def test_starlette_on_its_servers(
    tmp_path: Path, server: tuple[str, ...], compresses: bool
) -> None:
    need_python(server[0])
    program(tmp_path, STARLETTE, "server.py")
    port = private_apache.free_port()
    at = f"127.0.0.1:{port}" if server[-1] == "--bind" else str(port)
    command = (sys.executable, "-m", *server, at, "server:app")
    with (
        listening(port, *command, cwd=tmp_path),
        running_site(extra=alias("app", f"http://127.0.0.1:{port}")) as site,
    ):
        for scheme in SCHEMES:
            protocols: Any = ["echo"]
            with connect(site, scheme, "/app/echo", subprotocols=protocols) as connection:
                assert (connection.subprotocol, is_compressed(connection)) == ("echo", compresses)
                for message in ("hello", bytes(range(256)) * 1000, "again" * 1000):
                    connection.send(message)
                    assert connection.recv(20) == message
            assert refused_by(site, scheme, "/app/denied") == (403, "backend")


def test_channels_on_daphne(tmp_path: Path) -> None:
    need_python("daphne", "channels")
    port = private_apache.free_port()
    program(tmp_path, CHANNELS, "chat.py")
    command = [sys.executable, "-m", "daphne", "-b", "127.0.0.1", "-p", str(port)]
    path = "/live/ws/chat/lobby/"
    with (
        listening(port, *command, "chat:application", cwd=tmp_path),
        running_site(extra=alias("live", f"http://127.0.0.1:{port}/")) as site,
    ):
        with connect(site, "ws", path) as ann, connect(site, "wss", path) as bob:
            for client, name in ((ann, "ann"), (bob, "bob")):
                client.send(json.dumps({"message": name}))
                read_until(client, name)
            read_until(ann, "bob")
            ann.close(4001)
            assert ann.close_code == 1000  # daphne's own code for an answer
            read_until(bob, "closed 4001")
        # Apache lets a request without an Origin pass, and the validator of Channels does not.
        assert refused_by(site, "ws", path, origin=None) == (403, "backend")


def read_until(client: ClientConnection, message: str) -> None:
    """Read what a chat says, up to a message."""
    while json.loads(client.recv(20))["message"] != message:
        pass


@contextlib.contextmanager
def jupyter_site(directory: Path) -> Iterator[Site]:
    """A site with Jupyter's server below ``/python``, pages by mod_proxy; its token is "secret"."""
    port = private_apache.free_port()
    address = f"http://127.0.0.1:{port}"
    options = {
        "ServerApp.ip": "127.0.0.1",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.base_url": "/python/",
        "ServerApp.allow_root": True,
        "ServerApp.root_dir": directory,
        "IdentityProvider.token": "secret",
    }
    home = {name: str(directory) for name in ("HOME", "IPYTHONDIR", "JUPYTER_CONFIG_DIR")}
    home |= {"JUPYTER_DATA_DIR": str(directory), "JUPYTER_RUNTIME_DIR": str(directory)}
    command = [sys.executable, "-m", "jupyter_server", "--no-browser"]
    command += [f"--{name}={value}" for name, value in options.items()]
    extra = PROXY + f"ProxyPass /python {address}/python\n" + alias("python", address)
    with (
        listening(port, *command, env={**os.environ, **home}),
        running_site(extra=extra) as site,
    ):
        yield site


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_kernel_of_jupyter_computes(tmp_path: Path, scheme: str) -> None:
    need_python("jupyter_server", "ipykernel")
    with jupyter_site(tmp_path) as site, requests.Session() as browser:
        browser.trust_env = False
        browser.verify = str(site.apache.certificate)
        browser.headers["Authorization"] = "token secret"
        kernels = address_of(site, scheme) + "/python/api/kernels"
        made = browser.post(kernels, json={"name": "python3"}, timeout=60)
        assert made.status_code == 201, made.text
        path = f"/python/api/kernels/{made.json()['id']}/channels"
        assert refused_by(site, scheme, path) == (403, "backend")
        with connect(site, scheme, f"{path}?token=secret") as connection:
            assert execute(connection, "1 + 1") == "2"
        assert browser.delete(f"{kernels}/{made.json()['id']}", timeout=60).ok
        wait_for(lambda: site.log_lines(f"{path} closed by"))
        assert not site.log_lines("token=")


def execute(connection: ClientConnection, code: str) -> object:
    """Let a kernel of Jupyter execute an expression; return the text of its value."""
    header = {"msg_id": "1", "msg_type": "execute_request", "session": "s"}
    header |= {"username": "", "version": "5.3"}
    content = {"code": code, "silent": False, "store_history": True}
    content |= {"user_expressions": {}, "allow_stdin": False, "stop_on_error": True}
    message = {"channel": "shell", "header": header, "content": content}
    message |= {"parent_header": {}, "metadata": {}, "buffers": []}
    connection.send(json.dumps(message))
    while True:
        answer = json.loads(connection.recv(60))
        assert answer["msg_type"] != "error", answer
        if answer["msg_type"] == "execute_result":
            return answer["content"]["data"]["text/plain"]


@pytest.fixture
def mosquitto_site(tmp_path: Path) -> Iterator[Site]:
    found = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin")
    need(found, "mosquitto")
    port = private_apache.free_port()
    # Debian's 2.0.11 ends at once if all its listeners are for WebSockets.
    lines = [f"listener {number} 127.0.0.1" for number in (private_apache.free_port(), port)]
    lines += ["protocol websockets", "allow_anonymous true"]
    (tmp_path / "mosquitto.conf").write_text("\n".join(lines) + "\n")
    with (
        listening(port, str(found), "-c", str(tmp_path / "mosquitto.conf")),
        running_site(extra=alias("mqtt", f"http://127.0.0.1:{port}/mqtt")) as site,
    ):
        yield site


def test_mosquitto_and_mqtt_js(node: str, mosquitto_site: Site, tmp_path: Path) -> None:
    need_node("mqtt")
    client = program(tmp_path, MQTT_JS, "client.js")
    certificate = str(mosquitto_site.apache.certificate)
    assert run_node(node, client, mosquitto_site.ws("/mqtt"), "", "a/b") == "a/b true"
    assert run_node(node, client, mosquitto_site.wss("/mqtt"), certificate, "a/c") == "a/c true"


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_mosquitto_and_paho(mosquitto_site: Site, scheme: str) -> None:
    need_python("paho")
    # (mypy runs without these packages too.)
    mqtt: Any = importlib.import_module("paho.mqtt.client")
    received: list[bytes] = []
    is_subscribed = threading.Event()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, transport="websockets")
    client.ws_set_options(path="/mqtt")
    client.on_message = lambda _client, _data, message: received.append(message.payload)
    client.on_connect = lambda *_: client.subscribe("paho/#", qos=1)
    client.on_subscribe = lambda *_: is_subscribed.set()
    apache = mosquitto_site.apache
    if scheme == "wss":
        client.tls_set(str(apache.certificate))
    client.connect("localhost", apache.tls_port if scheme == "wss" else apache.port)
    client.loop_start()
    try:
        assert is_subscribed.wait(30)
        for size in (5, 100_000):
            client.publish("paho/x", bytes(size), qos=1)
        wait_for(lambda: len(received) == 2, 30)
        assert received == [bytes(5), bytes(100_000)]
    finally:
        client.disconnect()
        client.loop_stop()


def serve_greeting(listener: socket.socket, greeting: bytes) -> None:
    """Greet and echo, one connection at a time, until the listener is shut down."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection, contextlib.suppress(ConnectionError):
            connection.sendall(greeting)
            while data := connection.recv(1 << 16):
                connection.sendall(data)


def test_websockify_in_front_of_a_tcp_server() -> None:
    """The server speaks first, as a VNC server does, and echoes afterwards."""
    need_python("websockify")
    greeting, data = b"RFB 003.008\n", bytes(range(256)) * 200
    port = private_apache.free_port()
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        thread = threading.Thread(target=serve_greeting, args=(listener, greeting))
        thread.start()
        stack.callback(thread.join)
        stack.callback(listener.shutdown, socket.SHUT_RDWR)
        target = f"127.0.0.1:{listener.getsockname()[1]}"
        command = [sys.executable, "-m", "websockify", f"127.0.0.1:{port}", target]
        stack.enter_context(listening(port, *command))
        extra = alias("websockify", f"http://127.0.0.1:{port}")
        site = stack.enter_context(running_site(extra=extra))
        for scheme in ("ws", "wss1.3"):
            with RawClient(site.dial(scheme)) as client:
                client.send(request("/websockify", Sec_WebSocket_Protocol="binary"))
                status, headers = client.read_head()
                assert (status, headers["sec-websocket-protocol"]) == (101, "binary")
                assert client.read_data_frame() == (0x82, greeting)
                client.send(masked(0x82, data))
                echoed = b""
                while len(echoed) < len(data):  # each frame has what one read got
                    frame = client.read_data_frame()
                    assert frame
                    echoed += frame[1]
                assert echoed == data


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_aiohttp_on_both_ends(tmp_path: Path, scheme: str) -> None:
    """Compressed; the server sends PINGs of its own."""
    port = private_apache.free_port()
    server = program(tmp_path, AIOHTTP, "server.py")
    settings = "SetEnv APACHEWS_PING_INTERVAL off"
    with (
        listening(port, sys.executable, server, str(port)),
        running_site(extra=alias("app", f"http://127.0.0.1:{port}", settings)) as site,
    ):
        asyncio.run(talk_by_aiohttp(site, scheme))


async def talk_by_aiohttp(site: Site, scheme: str) -> None:
    url = site.ws("/app") if scheme == "ws" else site.wss("/app")
    context = site.tls_context() if scheme == "wss" else False
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(
            url, ssl=context, compress=15, protocols=["echo"], max_msg_size=0, autoping=False
        ) as client,
    ):
        assert (client.protocol, client.compress) == ("echo", 15)
        for message in ("hello", bytes(300_000), "again" * 1000):
            if isinstance(message, str):
                await client.send_str(message)
            else:
                await client.send_bytes(message)
            while (received := await client.receive(20)).type is aiohttp.WSMsgType.PING:
                await client.pong(received.data)
            assert received.data == message
        # The server sends a PING after the PONG to the one before only.
        for _ in range(2):
            received = await client.receive(20)
            assert received.type is aiohttp.WSMsgType.PING
            await client.pong(received.data)
        await client.close(code=4000)
        assert client.close_code == 1000  # the server's own code for an answer


def test_a_graphql_subscription(node: str, tmp_path: Path) -> None:
    need_node("ws", "graphql", "graphql-ws")
    port = private_apache.free_port()
    server = program(tmp_path, GRAPHQL, "server.js")
    client = program(tmp_path, GRAPHQL_CLIENT, "client.js")
    with (
        listening(port, node, server, str(port), env={**os.environ, "NODE_PATH": MODULES}),
        running_site(extra=alias("graphql", f"http://127.0.0.1:{port}")) as site,
    ):
        assert run_node(node, client, site.ws("/graphql"), "") == "world,3,2,1,0"
        certificate = str(site.apache.certificate)
        assert run_node(node, client, site.wss("/graphql"), certificate) == "world,3,2,1,0"
