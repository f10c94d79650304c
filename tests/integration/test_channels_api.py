"""The HTTP API of channels behind a real Apache: ``cent`` (PyPI), PHP, workers, two machines."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cent
import centrifuge
import jwt
import pytest
import requests
from cent.exceptions import CentApiResponseError

from apachews_tools.httpd import private_apache

from ..conftest import DEADLINE_S, wait_for
from ..support.brokers import Broker, running_broker
from ..support.centrifuge_clients import eventually, run
from ..support.raw_client import RawClient, request
from ..support.site import MOD_PYTHON, Site, running_site

pytestmark = pytest.mark.skipif(bool(MOD_PYTHON), reason="channels_api.py needs mod_wsgi")

SECRET = "a secret of at least thirty-two bytes"
LIVE = f"""
[default]
history_size = 10
presence = true
[namespaces.plain]
[tokens]
secret = "{SECRET}"
[api]
key = "a-key-of-the-programs"
"""
APACHE = """
LoadModule authz_host_module "${MODULES}/mod_authz_host.so"
<IfDefine WSGI_MODULE>
    WSGIScriptAlias /live/api "${APACHEWS_HANDLER}/channels_api.py" \\
        process-group=%{GLOBAL} application-group=%{GLOBAL}
    WSGIScriptAlias /closed/api "${APACHEWS_HANDLER}/channels_api.py" \\
        process-group=%{GLOBAL} application-group=%{GLOBAL}
</IfDefine>
<Location /live/api>
    Require ip 127.0.0.1
    SetEnv APACHEWS_API_FOR "${DOCROOT}/live.ws"
    SetEnv APACHEWS_MAX_MESSAGE 64K
</Location>
<Location /live/api/absent>
    SetEnv APACHEWS_API_FOR "${DOCROOT}/absent.ws"
</Location>
<Location /live/api/echo>
    SetEnv APACHEWS_API_FOR "${DOCROOT}/echo.ws"
    SetEnv APACHEWS_CONNECT_TIMEOUT 300ms
</Location>
<Location /live/api/none>
    SetEnv APACHEWS_API_FOR ""
</Location>
<Location /closed/api>
    Require ip 192.0.2.1
    SetEnv APACHEWS_API_FOR "${DOCROOT}/live.ws"
</Location>
"""
KEY = "a-key-of-the-programs"


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with running_site("event", extra=APACHE) as site:
        yield site


@contextlib.contextmanager
def live(
    site: Site, tmp_path: Path, *options: str, name: str = "live.ws", config: str = LIVE
) -> Iterator[None]:
    """Run the ready-made producer."""
    file = site.docroot.parent / "live.toml"
    file.write_text(config)
    path = site.docroot / name
    log = tmp_path / f"{name}.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, "-m", "apachews.channels", path, "--config", file, *options],
            stderr=stream,
            **private_apache.as_apache_user(),
        )
    try:
        wait_for(path.exists, what=process.poll)
        yield
    finally:
        process.terminate()
        process.wait(DEADLINE_S)
        assert "Traceback" not in log.read_text(), log.read_text()


def client(site: Site) -> cent.Client:
    return cent.Client(site.http("/live/api"), KEY, timeout=DEADLINE_S)


class Events(centrifuge.ClientEventHandler):
    def __init__(self) -> None:
        self.data: list[Any] = []
        self.subscribed: list[str] = []
        self.unsubscribed: list[str] = []
        self.connecting: list[int] = []
        self.codes: list[int] = []

    async def on_connecting(self, context: Any) -> None:
        self.connecting.append(context.code)

    async def on_publication(self, context: Any) -> None:
        self.data.append(context.pub.data)

    async def on_subscribed(self, context: Any) -> None:
        self.subscribed.append(context.channel)

    async def on_unsubscribed(self, context: Any) -> None:
        self.unsubscribed.append(context.channel)

    async def on_disconnected(self, context: Any) -> None:
        self.codes.append(context.code)


async def page(site: Site, user: str, path: str = "/live.ws") -> tuple[centrifuge.Client, Events]:
    """Return a connected client."""
    events = Events()
    token = jwt.encode({"sub": user}, SECRET, algorithm="HS256")
    one = centrifuge.Client(site.ws(path), events=events, token=token)
    await one.connect()
    await one.ready()
    return one, events


def test_what_cent_does(site: Site, tmp_path: Path) -> None:
    async def talk(api: cent.Client) -> None:
        ann, of_ann = await page(site, "ann")
        bob, of_bob = await page(site, "bob")
        call = asyncio.to_thread
        await call(api.subscribe, cent.SubscribeRequest(user="ann", channel="news", info={"a": 1}))
        await eventually(lambda: of_ann.subscribed == ["news"])
        stored = await call(
            api.publish,
            cent.PublishRequest(channel="news", data={"text": "hé"}, tags={"kind": "x"}),
        )
        assert stored.offset == 1 and stored.epoch
        await eventually(lambda: of_ann.data == [{"text": "hé"}])
        sent = await call(
            api.broadcast,
            cent.BroadcastRequest(channels=["news", "plain:a", "other:b"], data=2),
        )
        first, second, third = sent.responses
        assert first.result and first.result.offset == 2
        assert second.result and second.result.offset == 0
        assert third.error and third.error.code == 102
        presence = await call(api.presence, cent.PresenceRequest(channel="news"))
        (member,) = presence.presence.values()
        assert (member.user, member.chan_info) == ("ann", {"a": 1})
        stats = await call(api.presence_stats, cent.PresenceStatsRequest(channel="news"))
        assert (stats.num_clients, stats.num_users) == (1, 1)
        past = await call(api.history, cent.HistoryRequest(channel="news", limit=-1))
        assert [(one.offset, one.data) for one in past.publications] == [
            (1, {"text": "hé"}),
            (2, 2),
        ]
        assert past.publications[0].tags == {"kind": "x"}
        since = cent.StreamPosition(offset=1, epoch=stored.epoch)
        past = await call(api.history, cent.HistoryRequest(channel="news", limit=10, since=since))
        assert [one.data for one in past.publications] == [2]
        both = await call(
            api.batch,
            cent.BatchRequest(
                requests=[
                    cent.PublishRequest(channel="news", data=3),
                    cent.PresenceStatsRequest(channel="news"),
                ]
            ),
        )
        published, counted = (reply.model_dump() for reply in both.replies)
        assert (published["offset"], counted["num_users"]) == (3, 1)
        await call(api.unsubscribe, cent.UnsubscribeRequest(user="ann", channel="news"))
        await eventually(lambda: of_ann.unsubscribed == ["news"])
        await call(
            api.disconnect,
            cent.DisconnectRequest(user="ann", disconnect=cent.Disconnect(code=4501, reason="x")),
        )
        await eventually(lambda: of_ann.codes == [4501])
        # The client comes back from this one.
        await call(api.refresh, cent.RefreshRequest(user="bob", expired=True))
        await eventually(lambda: of_bob.connecting == [0, 3005])
        await ann.disconnect()
        await bob.disconnect()
        with pytest.raises(CentApiResponseError, match="104"):
            await call(api.info, cent.InfoRequest())
        with pytest.raises(CentApiResponseError, match="idempotency_key"):
            await call(
                api.publish, cent.PublishRequest(channel="news", data=1, idempotency_key="x")
            )

    with live(site, tmp_path):
        run(talk(client(site)))


def ask(site: Site, path: str = "/publish", body: Any = None, **headers: str) -> requests.Response:
    data = body if isinstance(body, bytes) else json.dumps(body or {"channel": "a", "data": 1})
    return requests.post(
        site.http("/live/api" + path),
        data=data,
        headers={name.replace("_", "-"): value for name, value in headers.items()},
        timeout=DEADLINE_S,
    )


def test_keys_and_forms_of_requests(site: Site, tmp_path: Path) -> None:
    with live(site, tmp_path):
        # The form of earlier versions: the method in the body.
        old: Any = {"method": "publish", "params": {"channel": "a", "data": 1}}
        forms: list[tuple[str, Any]] = [("/publish", None), ("", old), ("/", old)]
        for path, body in forms:
            for headers in (
                {"X_API_Key": KEY},
                {"Authorization": f"apikey {KEY}"},
                {"Authorization": f"Bearer {KEY}"},
            ):
                answer = ask(site, path, body, **headers)
                assert answer.status_code == 200, answer.text
                assert answer.json()["result"]["offset"] >= 1
        for headers in ({}, {"X_API_Key": KEY[:-1]}, {"Authorization": f"Basic {KEY}"}):
            answer = ask(site, **headers)
            assert (answer.status_code, answer.headers["apachews-refused"]) == (401, "api-key")
        answer = ask(site, body=b'{"data":"%s"}' % (b"x" * 70000), X_API_Key=KEY)
        assert (answer.status_code, answer.headers["apachews-refused"]) == (413, "api-length")
        for bad in (b"\xff", b"", b"[]", b"[" * 5000):
            answer = ask(site, body=bad, X_API_Key=KEY)
            assert answer.json()["error"]["code"] == 107
        with contextlib.closing(site.dial("ws")) as cut:
            head = (
                f"POST /live/api HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nContent-Length: 9\r\n"
            )
            cut.sendall(head.encode() + b"\r\n{")
            cut.shutdown(socket.SHUT_WR)
            assert cut.recv(4096).startswith(b"HTTP/1.1 400 ")
        answer = requests.post(
            site.http("/live/api/publish"),
            data=iter([b'{"channel": "a",', b'"data": 1}']),  # chunked
            headers={"X-API-Key": KEY},
            timeout=DEADLINE_S,
        )
        assert answer.json()["result"]["offset"] >= 1
        answer = requests.get(site.http("/live/api"), timeout=DEADLINE_S)
        assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
        closed = requests.post(site.http("/closed/api"), data="{}", timeout=DEADLINE_S)
        assert closed.status_code == 403  # Apache's own Require


def test_producers_that_do_not_answer(site: Site) -> None:
    for path, status, token in (
        ("/absent", 404, "no-such-endpoint"),
        ("/echo", 504, "api-timeout"),
        ("/none", 500, "settings"),
    ):
        answer = ask(site, path, X_API_Key=KEY)
        assert (answer.status_code, answer.headers["apachews-refused"]) == (status, token)


def test_a_websocket_is_never_a_request_of_the_api(site: Site, tmp_path: Path) -> None:
    with live(site, tmp_path), RawClient(site.dial("ws")) as one:
        one.send(request("/live.ws", None, **{"X-API-Key": KEY}).replace(b"GET", b"POST"))
        assert one.read_head()[0] == 426


def test_it_is_off_without_a_key(site: Site, tmp_path: Path) -> None:
    with live(site, tmp_path, config=""):
        answer = ask(site, X_API_Key=KEY)
        assert (answer.status_code, answer.headers["apachews-refused"]) == (404, "api-off")


@pytest.mark.parametrize("form", ["workers", "machines"])
def test_every_process_is_reached(site: Site, tmp_path: Path, form: str) -> None:
    """Clients of three processes; whichever has the request, all of them are meant."""

    async def talk(api: cent.Client, paths: list[str]) -> None:
        pages = [await page(site, "ann", paths[number % len(paths)]) for number in range(12)]
        call = asyncio.to_thread
        await call(api.subscribe, cent.SubscribeRequest(user="ann", channel="news"))
        await eventually(lambda: all(events.subscribed for _, events in pages))
        for _ in range(6):
            presence = await call(api.presence, cent.PresenceRequest(channel="news"))
            assert {one.user for one in presence.presence.values()} == {"ann"}
        await call(api.publish, cent.PublishRequest(channel="news", data="all"))
        await eventually(lambda: all(events.data == ["all"] for _, events in pages))
        await call(
            api.disconnect,
            cent.DisconnectRequest(user="ann", disconnect=cent.Disconnect(code=4500, reason="")),
        )
        await eventually(lambda: all(events.codes == [4500] for _, events in pages))
        for one, _ in pages:
            await one.disconnect()

    with contextlib.ExitStack() as stack:
        if form == "workers":
            history = site.docroot / "live.db"  # Apache's user may write there
            options = ["--workers", "3", "--history-file", str(history)]
            stack.enter_context(live(site, tmp_path, *options))
            paths = ["/live.ws"]
        else:
            broker = stack.enter_context(running_broker(tmp_path))
            for name in ("live.ws", "far.ws"):
                url = f"{broker.url}?name=live"
                stack.enter_context(live(site, tmp_path, "--relay", url, name=name))
            paths = ["/live.ws", "/far.ws"]
        run(talk(client(site), paths))


def test_subscribers_are_told_what_the_store_has_lost(site: Site, tmp_path: Path) -> None:
    async def talk(api: cent.Client, broker: Broker) -> None:
        one, of_server = await page(site, "ann")
        notes: list[Any] = []

        class Own(centrifuge.SubscriptionEventHandler):
            async def on_subscribed(self, context: Any) -> None:
                notes.append((context.was_recovering, context.recovered))

            async def on_publication(self, context: Any) -> None:
                notes.append(context.pub.data)

        call = asyncio.to_thread
        own = one.new_subscription("news", Own(), recoverable=True, min_resubscribe_delay=0.01)
        await own.subscribe()
        await own.ready()
        await call(api.subscribe, cent.SubscribeRequest(user="ann", channel="server"))
        await eventually(lambda: of_server.subscribed == ["server"])

        async def publish_everywhere(data: int) -> None:
            for channel in ("news", "server"):
                await call(api.publish, cent.PublishRequest(channel=channel, data=data))
            await eventually(lambda: data in of_server.data and data in notes)

        await publish_everywhere(1)
        await call(broker.call, "FLUSHALL")
        await publish_everywhere(2)
        await eventually(lambda: notes.count((True, False)) == 1)
        await eventually(lambda: of_server.subscribed == ["server", "server"])
        assert notes == [(False, False), 1, 2, (True, False)]
        assert of_server.unsubscribed == ["server"]
        await publish_everywhere(3)
        assert of_server.data == [1, 2, 3] and notes[-1] == 3
        await one.disconnect()

    with running_broker(tmp_path) as broker, live(site, tmp_path, "--relay", broker.url):
        run(talk(client(site), broker))


# Method, parameters and the member of the answer: what phpcent sends without optional arguments.
OF_PHPCENT: list[tuple[str, dict[str, Any], str]] = [
    ("publish", {"channel": "news", "data": {"text": "php"}, "skip_history": False}, "result"),
    ("publish", {"channel": "news", "data": [], "skip_history": False}, "result"),
    ("broadcast", {"channels": ["news"], "data": {"n": 1}, "skip_history": False}, "result"),
    ("subscribe", {"channel": "news", "user": "ann", "client": ""}, "result"),
    ("unsubscribe", {"channel": "news", "user": "ann", "client": ""}, "result"),
    ("disconnect", {"user": "ann", "client": ""}, "result"),
    ("presence", {"channel": "news"}, "result"),
    ("presence_stats", {"channel": "news"}, "result"),
    ("history", {"channel": "news", "limit": 0, "reverse": False}, "result"),
    ("batch", {"commands": [{"presence": {"channel": "news"}}]}, "replies"),
    ("channels", {"pattern": ""}, "error"),
    ("info", {}, "error"),
]


@pytest.mark.skipif(not shutil.which("php"), reason="php is not installed")
def test_what_phpcent_sends(site: Site, tmp_path: Path) -> None:
    program = """
        foreach (json_decode($argv[3]) as [$method, $params]) {
            $context = stream_context_create(["http" => [
                "method" => "POST",
                "header" => ["Content-Type: application/json", "X-API-Key: " . $argv[2]],
                "content" => json_encode($params),
            ]]);
            echo file_get_contents($argv[1] . "/" . $method, false, $context), PHP_EOL;
        }
    """
    calls = json.dumps([(method, params) for method, params, _ in OF_PHPCENT])
    with live(site, tmp_path):
        said = subprocess.check_output(
            ["php", "-r", program, "--", site.http("/live/api"), KEY, calls], timeout=DEADLINE_S
        )
    answers = [json.loads(line) for line in said.splitlines()]
    assert answers[0]["result"]["offset"] == 1
    assert [[*answer] for answer in answers] == [[member] for _, _, member in OF_PHPCENT]
