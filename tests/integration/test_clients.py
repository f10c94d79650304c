"""Clients of other projects, with the seed's program as the producer."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import ssl
import subprocess
import warnings
from pathlib import Path

import aiohttp
import pytest
import websocket
from websockets.asyncio.client import connect

from ..support import autobahn
from ..support.site import Site

VERSIONS = {"wss1.2": ssl.TLSVersion.TLSv1_2, "wss1.3": ssl.TLSVersion.TLSv1_3}
MESSAGES: list[str | bytes] = ["hello", b"\x00\xff", "é" * 1000, b"\x07" * 200_000, "x"]


# Prints "ok" or what went wrong.  Arguments: URL, file of the certificate to trust ("" for
# none), TLS version ("" for any).
ECHO_IN_NODE = """
const fs = require('fs');
const WebSocket = require('ws');

const [url, ca, version] = process.argv.slice(1);
const options = { perMessageDeflate: false };
if (ca) options.ca = fs.readFileSync(ca);
if (version) options.minVersion = options.maxVersion = version;

const messages = ['hello', '', Buffer.from([0, 255]), 'é'.repeat(1000), Buffer.alloc(200000, 7)];
// The seed's program answers an empty message with nothing.
const expected = messages.filter((message) => message.length > 0);
const socket = new WebSocket(url, options);
let received = 0;

socket.on('open', () => {
    messages.forEach((message) => socket.send(message));
    socket.ping('p');
});
socket.on('message', (data, isBinary) => {
    const wanted = expected[received++];
    const got = isBinary ? data : data.toString();
    const same = Buffer.isBuffer(wanted) ? isBinary && wanted.equals(got) : wanted === got;
    if (!same) fail(`message ${received} is not what was sent`);
    if (received === expected.length) socket.close(4000, 'done');
});
socket.on('close', (code) => {
    if (code !== 4000) fail(`closed with ${code}`);
    console.log('ok');
});
socket.on('error', (error) => fail(error.stack));

function fail(text) {
    console.log(text);
    process.exit(1);
}
"""
# Autobahn's cases in every environment; ``tests/conformance`` has the rest.
SELECTION = ["1.*", "2.*", "4.*", "5.*", "7.1.*", "7.7.*", "7.9.*", "13.3.3"]


def address(site: Site, scheme: str) -> tuple[str, ssl.SSLContext | None]:
    if scheme == "ws":
        return site.ws(), None
    return site.wss(), site.tls_context(VERSIONS[scheme])


def test_websockets(site: Site, scheme: str) -> None:
    # Its asyncio client: the threaded one sets a timeout on its socket while it reads
    # from it in another thread, and CPython 3.10's ssl may then report that as over.
    url, context = address(site, scheme)

    async def talk() -> int | None:
        # The offer of permessage-deflate is declined.
        async with connect(url, ssl=context) as client:
            for message in MESSAGES:
                await client.send(message)
                assert await client.recv() == message
            await client.send(["in ", "three ", "fragments"])
            assert await client.recv() == "in three fragments"
            await (await client.ping())
            await client.close(4000, "done")
            return client.close_code

    assert asyncio.run(asyncio.wait_for(talk(), 30)) == 4000


def test_websocket_client(site: Site, scheme: str) -> None:
    url, context = address(site, scheme)
    client = websocket.create_connection(url, timeout=10, sslopt={"context": context})
    for message in MESSAGES:
        client.send(message, 2 if isinstance(message, bytes) else 1)
        assert client.recv() == message
    client.ping("p")
    assert client.recv_data(control_frame=True) == (10, b"p")
    client.close(4000, b"done")


def test_aiohttp(site: Site, scheme: str) -> None:
    url, context = address(site, scheme)

    async def talk() -> int | None:
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(url, ssl=context or True, max_msg_size=0) as client,
        ):
            for message in MESSAGES:
                if isinstance(message, bytes):
                    await client.send_bytes(message)
                else:
                    await client.send_str(message)
                assert (await client.receive(10)).data == message
            await client.close(code=4000)
            return client.close_code

    with warnings.catch_warnings():
        # aiohttp leaves closing its transports to the loop, which run() ends first.
        warnings.simplefilter("ignore", ResourceWarning)
        assert asyncio.run(talk()) == 4000
        gc.collect()


@pytest.mark.skipif(not shutil.which("node"), reason="no node: apt-get install nodejs")
def test_ws_of_node(site: Site, scheme: str) -> None:
    modules = os.environ.get("APACHEWS_NODE_PATH", "/usr/share/nodejs")
    if not Path(modules, "ws").is_dir():
        pytest.skip("no ws package: run by deploy/test, or apt-get install node-ws")
    url = address(site, scheme)[0]
    arguments = [url, "", ""]
    if scheme != "ws":
        arguments = [url, str(site.apache.certificate), f"TLSv{scheme[3:]}"]
    result = subprocess.run(
        ["node", "-e", ECHO_IN_NODE, *arguments],
        env={**os.environ, "NODE_PATH": modules},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.stdout, result.returncode) == ("ok\n", 0), result.stdout + result.stderr


@pytest.mark.skipif(not autobahn.KOSOKU.exists(), reason="no kosoku: pip install kosoku")
def test_a_selection_of_autobahns_cases(tmp_path: Path) -> None:
    with autobahn.running_target() as site:
        assert autobahn.check(site.apache.port, SELECTION, tmp_path / "report") == 86
