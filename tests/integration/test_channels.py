"""apachews.channels: the clients of Centrifuge, for Node and Python, behind a real Apache."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import centrifuge
import jwt
import pytest

from apachews import Event, publish
from apachews.channels import (
    Channels,
    Config,
    Connection,
    Namespace,
    ProxyRules,
    ReplyError,
    TokenRules,
    load,
)

from ..conftest import DEADLINE_S, wait_for
from ..docs.pages import blocks_of
from ..support.centrifuge_clients import eventually, run
from ..support.site import ROOT, Site, running_site

SECRET = "a secret of at least thirty-two bytes"
FULL = Namespace(
    history_size=100,
    presence=True,
    join_leave=True,
    publish=frozenset({"subscriber"}),
    history=frozenset({"subscriber"}),
)
CONFIG = Config(
    default=FULL,
    namespaces={
        "plain": Namespace(),
        "closed": Namespace(history_size=10, subscribe=frozenset({"token"})),
        "users": Namespace(subscribe=frozenset({"user"})),
    },
    tokens=TokenRules(secret=SECRET, audience="chat"),
)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with running_site("event") as site:
        yield site


@contextlib.contextmanager
def channels_at(
    site: Site, config: Config = CONFIG, name: str = "live.ws", **hooks: Any
) -> Iterator[Channels]:
    """Run a producer of channels in a thread of the test."""
    found: list[Channels] = []

    def handle(event: Event) -> None:
        found[0].handle(event)

    settings = {"presence": True, "history_file": site.docroot.parent / f"{name}.db"}
    with site.producer(name, handle, **settings) as server:
        with server._loop.lock:
            found.append(Channels(server, config, **hooks))
        yield found[0]


def token(**claims: Any) -> str:
    return jwt.encode({"aud": "chat", **claims}, SECRET, algorithm="HS256")


class Events(centrifuge.ClientEventHandler):
    """Notes what a client is told."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, Any]] = []

    async def on_connecting(self, context: Any) -> None:
        self.notes.append(("connecting", context.code))

    async def on_disconnected(self, context: Any) -> None:
        self.notes.append(("disconnected", context.code))

    async def on_error(self, context: Any) -> None:
        self.notes.append(("error", context.code))


class SubscriptionEvents(centrifuge.SubscriptionEventHandler):
    """Notes what a subscription gets."""

    def __init__(self) -> None:
        self.data: list[Any] = []
        self.notes: list[tuple[str, Any]] = []

    @property
    def subscribed(self) -> list[Any]:
        return [note for kind, note in self.notes if kind == "subscribed"]

    async def on_publication(self, context: Any) -> None:
        self.data.append(context.pub.data)

    async def on_subscribed(self, context: Any) -> None:
        self.notes.append(("subscribed", (context.was_recovering, context.recovered)))

    async def on_unsubscribed(self, context: Any) -> None:
        self.notes.append(("unsubscribed", context.code))

    async def on_join(self, context: Any) -> None:
        self.notes.append(("join", context.info.user))

    async def on_leave(self, context: Any) -> None:
        self.notes.append(("leave", context.info.user))


async def subscribed(site: Site, channel: str) -> tuple[Any, SubscriptionEvents]:
    """Return a client that is subscribed to a channel, and connects again at once."""
    client = centrifuge.Client(site.ws("/live.ws"), min_reconnect_delay=0.01)
    await client.connect()
    events = SubscriptionEvents()
    subscription = client.new_subscription(channel, events, recoverable=True)
    await subscription.subscribe()
    await subscription.ready()
    return client, events


def test_publications_presence_history(site: Site) -> None:
    async def talk(channels: Channels) -> None:
        ann = centrifuge.Client(site.ws("/live.ws"), token=token(sub="ann", info={"name": "Ann"}))
        bob = centrifuge.Client(site.ws("/live.ws"), token=token(sub="bob"))
        await ann.connect()
        await bob.connect()
        events, others = SubscriptionEvents(), SubscriptionEvents()
        sub = ann.new_subscription("room", events)
        await sub.subscribe()
        await sub.ready()
        other = bob.new_subscription("room", others)
        await other.subscribe()
        await other.ready()
        await eventually(lambda: ("join", "bob") in events.notes)

        def have_all(count: int) -> bool:
            return len(others.data) == len(events.data) == count

        await sub.publish({"text": "hé"})
        await eventually(lambda: others.data == [{"text": "hé"}] == events.data)
        # From other programs: data that is JSON, and data that is not.
        for count, text, value in ((2, '{\n"a": 1}', {"a": 1}), (3, "hello", "hello")):
            await asyncio.to_thread(publish, site.docroot / "live.ws", text, "room")
            await eventually(partial(have_all, count))
            assert others.data[-1] == events.data[-1] == value
        with channels.server._loop.lock:
            channels.publish("room", [1])
        await eventually(lambda: others.data[-1] == [1])
        presence = await sub.presence()
        assert {one.user: one.conn_info for one in presence.clients.values()} == {
            "ann": {"name": "Ann"},
            "bob": None,
        }
        stats = await sub.presence_stats()
        assert (stats.num_clients, stats.num_users) == (2, 2)
        history = await other.history(limit=-1)
        assert [pub.data for pub in history.publications] == [
            {"text": "hé"},
            {"a": 1},
            "hello",
            [1],
        ]
        assert history.publications[0].info.user == "ann" and history.offset == 4
        last = await other.history(limit=1, reverse=True)
        assert [pub.data for pub in last.publications] == [[1]]
        await other.unsubscribe()
        await eventually(lambda: ("leave", "bob") in events.notes)
        await bob.disconnect()
        await ann.disconnect()

    with channels_at(site) as channels:
        run(talk(channels))


def test_what_was_missed_is_recovered(site: Site) -> None:
    async def talk() -> None:
        client, events = await subscribed(site, "news")
        path = site.docroot / "live.ws"

        def has_subscribed(count: int) -> bool:
            return len(events.subscribed) == count

        for number in range(3):
            await asyncio.to_thread(publish, path, str(number), "news")
        # The connection breaks: what is sent before it is back is recovered.
        for round_ in range(1, 4):
            client._conn.transport.abort()
            await asyncio.to_thread(publish, path, str(round_ * 10), "news")
            await eventually(partial(has_subscribed, round_ + 1))
            await asyncio.to_thread(publish, path, str(round_ * 10 + 1), "news")
        expected = [0, 1, 2, 10, 11, 20, 21, 30, 31]
        await eventually(lambda: len(events.data) >= len(expected))
        assert events.data == expected
        assert events.subscribed[1:] == [(True, True)] * 3
        await client.disconnect()

    with channels_at(site):
        run(talk())


def test_a_deploy_loses_nothing(site: Site) -> None:
    async def talk(deploy: Callable[[], object]) -> None:
        client, events = await subscribed(site, "deploy")
        path = site.docroot / "live.ws"
        await asyncio.to_thread(publish, path, "1", "deploy")
        await eventually(lambda: events.data == [1])
        await asyncio.to_thread(deploy)
        await asyncio.to_thread(publish, path, "2", "deploy")
        await eventually(lambda: events.data == [1, 2])
        assert events.subscribed == [(False, False), (True, True)]
        await client.disconnect()

    with contextlib.ExitStack() as new, contextlib.ExitStack() as old:
        channels = old.enter_context(channels_at(site))

        def deploy() -> None:
            new.enter_context(channels_at(site))
            channels.server.drain()
            old.close()

        run(talk(deploy))


@pytest.mark.parametrize(
    ("claims", "channel", "note"),
    [
        ({"channel": "closed:a", "sub": ""}, "closed:a", ("subscribed", (False, False))),
        ({"channel": "closed:b", "sub": ""}, "closed:a", ("unsubscribed", 103)),
        ({"channel": "closed:a", "sub": "bob"}, "closed:a", ("unsubscribed", 103)),
        ({"channel": "closed:a", "sub": "", "aud": "other"}, "closed:a", ("unsubscribed", 103)),
        (None, "closed:a", ("unsubscribed", 103)),
        (None, "users:a", ("unsubscribed", 103)),
        (None, "other:a", ("unsubscribed", 102)),
        (None, "plain:a", ("subscribed", (False, False))),
    ],
)
def test_who_may_subscribe(
    site: Site, claims: dict[str, Any] | None, channel: str, note: tuple[str, Any]
) -> None:
    async def talk() -> None:
        client = centrifuge.Client(site.ws("/live.ws"))
        await client.connect()
        events = SubscriptionEvents()
        given = "" if claims is None else token(**claims)
        await client.new_subscription(channel, events, token=given).subscribe()
        await eventually(lambda: events.notes)
        assert events.notes == [note]
        await client.disconnect()

    with channels_at(site):
        run(talk())


def test_tokens_of_connections(site: Site) -> None:
    async def talk() -> None:
        async def outcome(text: str) -> Any:
            events = Events()
            client = centrifuge.Client(site.ws("/live.ws"), events=events, token=text)
            await client.connect()
            await eventually(lambda: len(events.notes) > 1)
            await client.disconnect()
            return events.notes[1]

        good = token(sub="ann")
        head, body, signature = good.split(".")
        for bad in (
            jwt.encode({"aud": "chat", "sub": "ann"}, "", algorithm="none"),
            f"{head}.{body}.{signature[::-1]}",
            token(sub="ann", aud="other"),
            "no token",
            token(sub="ann", channel="news"),
        ):
            assert await outcome(bad) == ("disconnected", 3500)
        # It is to ask its page for another one, and has no function for that.
        assert (await outcome(token(sub="ann", exp=time.time() - 60)))[0] == "error"

    with channels_at(site):
        run(talk())


def test_a_connection_ends_with_its_token(site: Site) -> None:
    async def talk() -> None:
        asked: list[Any] = []

        async def get_token(context: Any = None) -> str:
            asked.append(context)
            return token(sub="ann", exp=time.time() + 3)

        events = Events()
        renewing = centrifuge.Client(site.ws("/live.ws"), get_token=get_token)
        client = centrifuge.Client(
            site.ws("/live.ws"), events=events, token=token(sub="ann", exp=time.time() + 1)
        )
        await renewing.connect()
        await client.connect()
        await renewing.ready()
        await eventually(lambda: ("connecting", 3005) in events.notes)
        await eventually(lambda: len(asked) > 2)
        assert renewing.state.name == "CONNECTED"
        await renewing.disconnect()
        await client.disconnect()

    with channels_at(site):
        run(talk())


def test_hooks(site: Site) -> None:
    def on_connect(connection: Connection) -> list[str]:
        connection.user, connection.info = "ann", connection.data
        return ["server"]

    def on_subscribe(connection: Connection, channel: str, data: Any) -> Any:
        if data != "please":
            raise ReplyError(4242, "say please")
        return {"color": "red"}

    def on_rpc(connection: Connection, method: str, data: Any) -> Any:
        if method == "fail":
            raise RuntimeError("a fault of the program")
        return {"user": connection.user, method: data}

    async def talk(channels: Channels) -> None:
        events = Events()
        published: list[Any] = []

        async def on_publication(context: Any) -> None:
            published.append((context.channel, context.pub.data))

        events.on_publication = on_publication
        client = centrifuge.Client(site.ws("/live.ws"), events=events, data={"name": "Ann"})
        await client.connect()
        await client.ready()
        await asyncio.to_thread(publish, site.docroot / "live.ws", '"hi"', "server")
        await eventually(lambda: published == [("server", "hi")])
        assert (await client.rpc("add", 1)).data == {"user": "ann", "add": 1}
        with pytest.raises(centrifuge.ReplyError, match="internal"):
            await client.rpc("fail", 1)
        said, silent = SubscriptionEvents(), SubscriptionEvents()
        await client.new_subscription("room", said, data="please").subscribe()
        await client.new_subscription("hall", silent).subscribe()
        await eventually(lambda: said.notes and silent.notes)
        assert silent.notes == [("unsubscribed", 4242)]
        with channels.server._loop.lock:
            (connection,) = channels.connections("ann")
            (info,) = channels.presence("room").values()
            assert (info["conn_info"], info["chan_info"]) == ({"name": "Ann"}, {"color": "red"})
            channels.unsubscribe(connection, "room")
        await eventually(lambda: said.notes[-1] == ("unsubscribed", 2000))
        with channels.server._loop.lock:
            channels.disconnect(connection)
        await eventually(lambda: events.notes[1:] == [("disconnected", 3503)])

    with channels_at(
        site, on_connect=on_connect, on_subscribe=on_subscribe, on_rpc=on_rpc
    ) as channels:
        run(talk(channels))


@contextlib.contextmanager
def site_of(answers: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Run a web server for calls of the site; yield its URL, and the headers that it gets."""
    headers: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            headers.append({name.lower(): value for name, value in self.headers.items()})
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(answers[self.path]).encode())

        def log_message(self, *arguments: Any) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=[0.02])
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", headers
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_site_decides_by_the_cookie(site: Site) -> None:
    async def talk(answers: dict[str, Any], headers: list[dict[str, str]]) -> None:
        client = centrifuge.Client(site.ws("/live.ws"), headers={"Cookie": "sid=1"})
        await client.connect()
        await client.ready()
        events, others = SubscriptionEvents(), SubscriptionEvents()
        await client.new_subscription("room", events).subscribe()
        await client.new_subscription("talk#bob", others).subscribe()
        await eventually(lambda: events.subscribed and others.notes)
        assert others.notes == [("unsubscribed", 103)]
        assert headers[0]["cookie"] == "sid=1" and headers[0]["x-forwarded-for"] == "127.0.0.1"
        await client.disconnect()
        answers["/connect"] = {"disconnect": {"code": 4501, "reason": "log in"}}
        notes = Events()
        await centrifuge.Client(site.ws("/live.ws"), events=notes).connect()
        await eventually(lambda: ("disconnected", 4501) in notes.notes)

    answers: dict[str, Any] = {
        "/connect": {"result": {"user": "ann"}},
        "/subscribe": {"result": {}},
    }
    with site_of(answers) as (url, headers):
        config = Config(
            default=Namespace(subscribe=frozenset({"proxy"})),
            proxy=ProxyRules(connect=f"{url}/connect", subscribe=f"{url}/subscribe"),
        )
        with channels_at(site, config):
            run(talk(answers, headers))


def test_pings(site: Site) -> None:
    async def talk() -> None:
        events = Events()
        client = centrifuge.Client(site.ws("/ping.ws"), events=events)
        pings: list[float] = []
        handle_ping = client._handle_ping

        async def count_ping() -> None:
            pings.append(time.monotonic())
            await handle_ping()

        client._handle_ping = count_ping
        await client.connect()
        await client.ready()
        # Several pings are sent before the answer to the first one is due.
        await eventually(lambda: len(pings) > 10)
        assert events.notes == [("connecting", 0)]
        client._send_pong = False
        await eventually(lambda: ("connecting", 3012) in events.notes)
        await client.disconnect()

    with channels_at(site, Config(ping_seconds=0.2, pong_seconds=1), "ping.ws"):
        run(talk())


def test_who_has_missed_too_much_is_told(site: Site) -> None:
    async def talk() -> None:
        client, events = await subscribed(site, "long")
        path = site.docroot / "live.ws"
        await asyncio.to_thread(publish, path, "0", "long")
        await eventually(lambda: events.data == [0])
        await client.disconnect()

        def publish_more_than_is_kept() -> None:
            for number in range(1, FULL.history_size + 2):
                publish(path, str(number), "long")

        await asyncio.to_thread(publish_more_than_is_kept)
        await client.connect()
        await eventually(lambda: len(events.subscribed) == 2)
        await asyncio.to_thread(publish, path, '"next"', "long")
        await eventually(lambda: events.data[-1] == "next")
        # The page knows that there is a hole, and gets no part of it.
        assert events.subscribed[1] == (True, False)
        assert events.data == [0, "next"]
        await client.disconnect()

    with channels_at(site):
        run(talk())


IN_WORDPRESS = """<?php
function add_action($name, $function) { $GLOBALS['actions'][$name] = $function; }
require $argv[1];
if ($argv[2] === 'token') echo live_token(7);
else live_notify(7, 'A comment on Grüße', '/?p=1');
"""


def test_the_notifications_of_wordpress(site: Site, short_path: Path) -> None:
    """What docs/howto/notifications.md has: tokens and messages from PHP, in its configuration."""
    php = shutil.which("php")
    if not php:
        pytest.skip("no PHP: apt-get install php-cli")
    blocks = blocks_of(ROOT / "docs" / "howto" / "notifications.md")
    plugin = next(block.text for block in blocks if block.comment == "part of WordPress")
    toml = next(block.text for block in blocks if block.language == "toml")
    path, key = site.docroot / "live.ws", short_path / "token.key"
    key.write_text(f"{SECRET}\n")
    key.chmod(0o600)
    (short_path / "channels.toml").write_text(toml.replace("/etc/apachews/token.key", str(key)))
    plugin = plugin.replace("/etc/apachews/token.key", str(key))
    (short_path / "live.php").write_text(plugin.replace("/run/apachews/live.ws", str(path)))
    (short_path / "wordpress.php").write_text(IN_WORDPRESS)
    (short_path / "apachews").symlink_to(ROOT / "bindings" / "php")

    def wordpress(action: str) -> str:
        command = [
            str(php),
            "-d",
            f"include_path={short_path}",
            "wordpress.php",
            "live.php",
            action,
        ]
        return subprocess.run(
            command, cwd=short_path, check=True, capture_output=True, text=True
        ).stdout

    async def talk() -> None:
        events, online = Events(), SubscriptionEvents()
        heard: list[Any] = []

        async def on_publication(context: Any) -> None:
            heard.append((context.channel, context.pub.data))

        events.on_publication = on_publication
        given = await asyncio.to_thread(wordpress, "token")
        client = centrifuge.Client(site.ws("/live.ws"), events=events, token=given)
        await client.connect()
        await client.ready()
        assert await asyncio.to_thread(wordpress, "notify") == ""
        await eventually(lambda: heard)
        assert heard == [("user:7", {"text": "A comment on Grüße", "url": "/?p=1"})]
        sub = client.new_subscription("online:all", online)
        await sub.subscribe()
        await sub.ready()
        assert (await sub.presence_stats()).num_users == 1
        # The channel of another user.
        other = SubscriptionEvents()
        await client.new_subscription("user:8", other).subscribe()
        await eventually(lambda: other.notes)
        assert other.notes == [("unsubscribed", 103)]
        await client.disconnect()

    with channels_at(site, load(short_path / "channels.toml")):
        run(talk())


MODULES = os.environ.get(
    "APACHEWS_NODE_PATH", str(Path(__file__).parents[2] / ".venv/node/node_modules")
)
IN_NODE = """
const { Centrifuge } = require('centrifuge'), { WebSocket } = require('ws')
const [url, ca] = process.argv.slice(1)
const socket = ca ? class extends WebSocket {
  constructor(url, protocols) { super(url, protocols, { ca: require('fs').readFileSync(ca) }) }
} : WebSocket
const client = new Centrifuge(url, { websocket: socket, minReconnectDelay: 10 })
const subscription = client.newSubscription('node', { recoverable: true, joinLeave: true })
const say = (...words) => console.log(JSON.stringify(words))
subscription.on('publication', context => {
  say('publication', context.data, context.offset)
  if (context.data === 'cut') client._transport._transport.terminate()
  if (context.data === 'end') client.disconnect()
})
subscription.on('subscribed', context => {
  say('subscribed', context.wasRecovering, context.recovered)
  if (!context.wasRecovering) subscription.publish({ text: 'from node' })
})
client.on('disconnected', context => say('disconnected', context.code))
subscription.subscribe()
client.connect()
"""


@pytest.mark.skipif(
    not shutil.which("node") or not Path(MODULES, "centrifuge").is_dir(),
    reason="no Node or no package centrifuge: run by deploy/test",
)
@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_centrifuge_of_node(site: Site, scheme: str) -> None:
    path = site.docroot / "live.ws"
    url, ca = site.ws("/live.ws"), ""
    if scheme == "wss":
        url, ca = site.wss("/live.ws"), str(site.apache.certificate)
    with (
        channels_at(site),
        subprocess.Popen(
            ["timeout", "60", "node", "-e", IN_NODE, url, ca],
            env={**os.environ, "NODE_PATH": MODULES},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as node,
    ):
        assert node.stdout
        lines = iter(node.stdout)

        def next_line() -> list[Any]:
            line = next(lines)
            return list(json.loads(line))

        assert next_line() == ["subscribed", False, False]
        first = next_line()
        assert first[:2] == ["publication", {"text": "from node"}]
        for text in ("cut", "missed"):
            publish(path, json.dumps(text), "node")
        assert next_line() == ["publication", "cut", first[2] + 1]
        rest = [next_line(), next_line()]
        assert sorted(rest) == [["publication", "missed", first[2] + 2], ["subscribed", True, True]]
        publish(path, '"end"', "node")
        assert next_line()[1] == "end"
        assert next_line() == ["disconnected", 0]
        assert node.wait(DEADLINE_S) == 0


def test_bad_input_ends_no_producer(site: Site) -> None:
    import websockets.sync.client

    connect = websockets.sync.client.connect
    codes: dict[str | bytes, int] = {
        "nonsense": 3501,
        "[1]": 3501,
        "NaN": 3501,
        "[" * 100_000: 3501,
        '{"id":-1,"connect":{}}': 3501,
        '{"id":1,"connect":[]}': 3501,
        '{"id":1,"subscribe":{"channel":"a"}}': 3501,
        "\n" * 10: 3501,
        b"\x00": 3506,
    }
    answers = {
        '{"id":2,"subscribe":{}}': 107,
        '{"id":2,"subscribe":{"channel":5}}': 107,
        '{"id":2,"subscribe":{"channel":"%s"}}' % ("x" * 300): 107,
        '{"id":2,"subscribe":{"channel":"a","recover":true,"offset":"x"}}': 107,
        '{"id":2,"subscribe":{"channel":"a","token":{"a":1}}}': 103,
        '{"id":2,"publish":{"channel":"a"}}': 107,
        '{"id":2,"publish":{"channel":"a","data":1}}': 103,
        '{"id":2,"history":{"channel":"a","limit":"x"}}': 103,
        '{"id":2,"rpc":{"method":"x"}}': 108,
        '{"id":2,"teleport":{}}': 104,
    }
    with channels_at(site) as channels:
        for text, code in codes.items():
            with connect(site.ws("/live.ws")) as client:
                client.send(text)
                with contextlib.suppress(websockets.ConnectionClosed):
                    client.recv(DEADLINE_S)
                assert client.close_code == code, text
        with connect(site.ws("/live.ws")) as client:
            client.send('{"id":1,"connect":{}}\n')
            client.recv(DEADLINE_S)
            for text, code in answers.items():
                client.send(text)
                assert json.loads(client.recv(DEADLINE_S))["error"]["code"] == code, text
            client.send('{"id":3,"ping":{}}')
            assert json.loads(client.recv(DEADLINE_S)) == {"id": 3, "ping": {}}
        wait_for(lambda: not channels._connections)
