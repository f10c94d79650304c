"""Tunnels to WebSocket servers that others wrote, unmodified: Node's ws, Socket.IO, FastAPI."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from apachews_tools.httpd import private_apache

from ..conftest import wait_for
from ..support.backends import listening
from ..support.frames import masked
from ..support.producers import program
from ..support.raw_client import RawClient, request
from ..support.site import MOD_PYTHON, Site, running_site
from .test_tunnel import alias

pytestmark = pytest.mark.skipif(
    MOD_PYTHON is not None, reason="tunnels are for mod_wsgi: mod_python's directive is FileInfo's"
)

MODULES = os.environ.get(
    "APACHEWS_NODE_PATH", str(Path(__file__).parents[2] / ".venv/node/node_modules")
)
PROXY = """
LoadModule proxy_module "${MODULES}/mod_proxy.so"
LoadModule proxy_http_module "${MODULES}/mod_proxy_http.so"
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
const io = new (require('socket.io').Server)(http, { path: '/sio/socket.io' });
io.on('connection', (socket) => {
    socket.on('say', (text, answer) => answer(text, socket.conn.transport.name));
    socket.on('binary', (data) => socket.emit('binary', data));
});
http.listen(Number(process.argv[2]), '127.0.0.1');
"""

# Arguments: URL of the site.  Begins with polling, and upgrades.
SOCKET_IO_CLIENT = """
const socket = require('socket.io-client')(process.argv[2], { path: '/sio/socket.io' });
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


@pytest.fixture
def node() -> str:
    found = shutil.which("node")
    if not found or not Path(MODULES, "socket.io").is_dir():
        pytest.skip("no node, or no socket.io package: run by deploy/test")
    return found


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


def test_ws_of_node(node: str, tmp_path: Path) -> None:
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
    port = private_apache.free_port()
    server = program(tmp_path, SOCKET_IO, "server.js")
    client = program(tmp_path, SOCKET_IO_CLIENT, "client.js")
    address = f"http://127.0.0.1:{port}"
    extra = (
        PROXY
        + '<VirtualHost *:*>\nSetEnvIfNoCase Upgrade "^websocket$" no-proxy\nProxyPreserveHost On\n'
        + f"ProxyPass /sio {address}/sio\n"
        + alias("sio", address + backend_path)
        + "</VirtualHost>\n"
    )
    with (
        listening(port, node, server, str(port), env={**os.environ, "NODE_PATH": MODULES}),
        running_site(extra=extra) as site,
    ):
        assert run_node(node, client, site.http("")) == "hello websocket 200000"
        wait_for(lambda: site.log_lines("/sio/socket.io/ closed by"))
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
