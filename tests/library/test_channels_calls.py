"""apachews.channels: hooks that take a while, calls of the site's own URLs, channels of users."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

import apachews.aio
from apachews import Server, wire
from apachews.channels import (
    Channels,
    Config,
    ConfigError,
    Connection,
    Disconnect,
    Namespace,
    ProxyRules,
    ReplyError,
    calls,
    load,
)
from apachews.channels.access import is_named

from ..conftest import wait_for
from ..support.bridge_by_hand import OPEN, Bridge


class Page:
    """A client of channels, by hand; what it gets is in ``received``, a code for a CLOSE."""

    def __init__(self, channels: Channels, open_: wire.Open = OPEN) -> None:
        self._channels = channels
        self._bridge = Bridge(channels.server.path, open_)
        self.received: list[Any] = []

    def say(self, *commands: dict[str, Any]) -> None:
        """Send commands in one message."""
        self._bridge.send(wire.TEXT, "\n".join(map(json.dumps, commands)).encode())

    def hear(self, count: int) -> list[Any]:
        """Return what the client gets, once it is so much."""

        def has_all() -> bool:
            self.turn()
            return len(self.received) >= count

        wait_for(has_all, what=lambda: self.received)
        return self.received

    def turn(self) -> None:
        """Let the producer do what it has to do."""
        while (event := self._channels.server.dequeue(0.0)) is not None:
            self._channels.handle(event)
        for item in self._bridge.read_available():
            if isinstance(item, wire.Close):
                self.received.append(item.code)
            else:
                self.received.append(json.loads(str(item)))

    def close(self) -> None:
        self._bridge.socket.close()


@contextlib.contextmanager
def page(
    path: Path, config: Config | None = None, open_: wire.Open = OPEN, **hooks: Any
) -> Iterator[Page]:
    with Server(path / "a.ws") as server:
        one = Page(Channels(server, config, **hooks), open_)
        with contextlib.closing(one):
            yield one


CONNECT = {"id": 1, "connect": {}}
INTERNAL = {"code": 100, "message": "internal server error", "temporary": True}


def rpc(number: int, data: Any = None) -> dict[str, Any]:
    return {"id": number, "rpc": {"method": "m", "data": data}}


# Hooks that take a while.


def test_later_commands_wait_for_a_hook_and_those_of_others_do_not(short_path: Path) -> None:
    futures: dict[Any, Future[Any]] = {number: Future() for number in (2, 3)}

    def on_rpc(connection: Connection, method: str, data: Any) -> Any:
        return futures.get(data, data)

    with page(short_path, on_rpc=on_rpc) as one:
        other = Page(one._channels)
        one.say(CONNECT, rpc(2, 2), rpc(3, 3), rpc(4, 4))
        other.say(CONNECT, rpc(2, "other"))
        assert other.hear(2)[1]["rpc"]["data"] == "other"
        futures[3].set_result("three")
        one.turn()
        assert len(one.received) == 1
        futures[2].set_result("two")
        said = one.hear(4)
        assert [(answer["id"], answer["rpc"]["data"]) for answer in said[1:]] == [
            (2, "two"),
            (3, "three"),
            (4, 4),
        ]
        one.say(rpc(5, 5))  # it is read again
        assert one.hear(5)[4]["rpc"]["data"] == 5
        other.close()


@pytest.mark.parametrize(
    ("error", "answer"),
    [
        (ReplyError(200, "no"), {"id": 2, "error": {"code": 200, "message": "no"}}),
        (Disconnect(4000, "go"), 4000),
        (
            ValueError("x"),
            {"id": 2, "error": INTERNAL},
        ),
    ],
)
def test_what_a_future_raises_is_what_a_hook_raises(
    short_path: Path, error: Exception, answer: Any
) -> None:
    future: Future[Any] = Future()
    with page(short_path, on_rpc=lambda *_: future) as one:
        one.say(CONNECT, rpc(2), rpc(3))
        one.hear(1)
        threading.Thread(target=future.set_exception, args=[error]).start()
        assert one.hear(2)[1] == answer
        if answer == 4000:
            one.turn()
            assert one.received[2:] == []  # what follows is not run


def test_a_cancelled_or_late_hook_is_a_temporary_error(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    future: Future[Any] = Future()
    with page(short_path, on_rpc=lambda *_: future) as one:
        one.say(CONNECT, rpc(2))
        one.hear(1)
        future.cancel()
        assert one.hear(2)[1]["error"]["temporary"]
        monkeypatch.setattr(calls, "HOOK_TIMEOUT_S", 0.05)
        future = Future()
        one.say(rpc(3))
        assert one.hear(3)[2]["error"]["code"] == 100
        future.set_result("late")  # which has no effect
        one.say(rpc(4))
        assert one.hear(4)[3]["id"] == 4


def test_a_client_that_left_meanwhile_gets_nothing(short_path: Path) -> None:
    future: Future[Any] = Future()
    with page(short_path, on_connect=lambda connection: future) as one:
        one.say(CONNECT)
        channels = one._channels

        def is_waiting() -> bool:
            one.turn()
            return any(found.waiting is not None for found in _all(channels))

        wait_for(is_waiting)
        (connection,) = _all(channels)
        channels.disconnect(connection)
        future.set_result(["news"])
        assert one.hear(1) == [3503]
        assert not connection.channels and not channels.connections("")


def _all(channels: Channels) -> list[Connection]:
    return list(channels._connections.values())


def test_every_hook_may_return_a_future(short_path: Path) -> None:
    def later(value: Callable[..., Any]) -> Callable[..., Any]:
        def hook(connection: Connection, *arguments: Any) -> Future[Any]:
            future: Future[Any] = Future()
            timer = threading.Timer(0.01, lambda: future.set_result(value(connection, *arguments)))
            timer.start()
            return future

        return hook

    def on_connect(connection: Connection) -> list[str]:
        connection.user = "ann"
        return ["server"]

    hooks: Any = {
        "on_connect": later(on_connect),
        "on_subscribe": later(lambda connection, channel, data: {"color": data}),
        "on_publish": later(lambda connection, channel, data: data.upper()),
        "on_rpc": later(lambda connection, method, data: method),
    }
    with page(short_path, **hooks) as one:
        one.say(
            CONNECT,
            {"id": 2, "subscribe": {"channel": "news", "data": "red"}},
            {"id": 3, "publish": {"channel": "news", "data": "hi"}},
            rpc(4),
        )
        connected, subscribed, published, answer, called = one.hear(5)
        assert [*connected["connect"]["subs"]] == ["server"]
        assert subscribed["id"] == 2
        pub = published["push"]["pub"]
        assert pub["data"] == "HI"
        assert pub["info"] == {"client": "id-1", "user": "ann", "chan_info": {"color": "red"}}
        assert (answer["id"], called["rpc"]) == (3, {"data": "m"})


def test_threads_run_hooks(short_path: Path) -> None:
    def on_rpc(connection: Connection, method: str, data: Any) -> str:
        return threading.current_thread().name

    with (
        ThreadPoolExecutor(2, "hooks") as executor,
        page(short_path, on_rpc=on_rpc, executor=executor) as one,
    ):
        one.say(CONNECT, rpc(2))
        assert one.hear(2)[1]["rpc"]["data"].startswith("hooks")


def test_coroutines_run_in_the_loop_of_asyncio(short_path: Path) -> None:
    async def on_rpc(connection: Connection, method: str, data: Any) -> Any:
        await asyncio.sleep(0)
        return data

    async def talk() -> None:
        async with apachews.aio.serve(short_path / "a.ws") as server:
            channels = Channels(server.server, on_rpc=on_rpc)
            bridge = Bridge(server.path)
            message = "\n".join(map(json.dumps, (CONNECT, rpc(2, "x"))))
            bridge.send(wire.TEXT, message.encode())

            async def serve() -> None:
                async for event in server:
                    channels.handle(event)

            task = asyncio.create_task(serve())
            said: list[Any] = []
            deadline = time.monotonic() + 10
            while len(said) < 2 and time.monotonic() < deadline:
                await asyncio.sleep(0.01)
                said += bridge.read_available()
            assert json.loads(said[1])["rpc"] == {"data": "x"}
            bridge.socket.close()
            task.cancel()

    asyncio.run(talk())


def test_a_coroutine_without_a_loop_is_an_error(
    short_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def on_rpc(connection: Connection, method: str, data: Any) -> None:
        """Do nothing."""

    with page(short_path, on_rpc=on_rpc) as one:
        one.say(CONNECT, rpc(2))
        assert one.hear(2)[1]["error"]["code"] == 100
    assert "serve with apachews.aio" in caplog.text


# Calls of the site's own URLs.


class Site(BaseHTTPRequestHandler):
    """Answers each path with what the test has put there, and notes the requests."""

    answers: ClassVar[dict[str, Any]] = {}
    requests: ClassVar[list[tuple[str, dict[str, str], Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        answer = self.answers[self.path]
        if isinstance(answer, int):
            self.send_response(answer)
            self.send_header("Location", "/connect")
            self.end_headers()
            return
        if isinstance(answer, threading.Event):
            answer.wait(10)
            answer = {}
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments: Any) -> None:
        """Print nothing."""


@pytest.fixture
def site() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=server.serve_forever, args=[0.02])
    thread.start()
    Site.answers, Site.requests = {}, []
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def proxied(site: str) -> Config:
    return Config(
        default=Namespace(subscribe=frozenset({"proxy"}), publish=frozenset({"proxy"})),
        namespaces={"plain": Namespace()},
        proxy=ProxyRules(
            f"{site}/connect", f"{site}/subscribe", f"{site}/publish", f"{site}/rpc", 1.0
        ),
    )


def test_the_site_decides(short_path: Path, site: str) -> None:
    Site.answers = {
        "/connect": {"result": {"user": "ann", "channels": ["server"], "data": 5}},
        "/subscribe": {"result": {"info": {"c": 1}}},
        "/publish": {"result": {"data": "changed"}},
        "/rpc": {"result": {"data": [1]}},
    }
    headers = (("cookie", "sid=1"), ("x-secret", "y"))
    open_ = wire.Open(id="id-1", uri="/live.ws", headers=headers, remote=("192.0.2.7", 1))
    with page(short_path, proxied(site), open_) as one:
        one.say(
            {"id": 1, "connect": {"data": "hello"}},
            {"id": 2, "subscribe": {"channel": "news", "data": {"x": 1}}},
            {"id": 3, "subscribe": {"channel": "plain:a"}},
            {"id": 4, "publish": {"channel": "news", "data": "hi"}},
            rpc(5, "call"),
        )
        connected, subscribed, plain, published, answer, called = one.hear(6)
        assert connected["connect"]["data"] == 5
        assert [*connected["connect"]["subs"]] == ["server"]
        assert subscribed["subscribe"] == plain["subscribe"] == {}
        assert published["push"]["pub"]["data"] == "changed"
        assert published["push"]["pub"]["info"]["chan_info"] == {"c": 1}
        assert (answer["id"], called["rpc"]["data"]) == (4, [1])
    client = {"client": "id-1", "transport": "websocket", "protocol": "json", "encoding": "json"}
    assert [(path, body) for path, _, body in Site.requests] == [
        ("/connect", {**client, "data": "hello"}),
        ("/subscribe", {**client, "user": "ann", "channel": "news", "data": {"x": 1}}),
        ("/publish", {**client, "user": "ann", "channel": "news", "data": "hi"}),
        ("/rpc", {**client, "user": "ann", "method": "m", "data": "call"}),
    ]
    for _, got, _ in Site.requests:
        assert (got["cookie"], got["x-forwarded-for"]) == ("sid=1", "192.0.2.7")
        assert "x-secret" not in got


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"error": {"code": 1001, "message": "no"}}, {"code": 1001, "message": "no"}),
        ({"disconnect": {"code": 4500, "reason": "go"}}, 4500),
        ({"disconnect": {"code": 1, "reason": "go"}}, INTERNAL),
        ({"error": 1}, INTERNAL),
        ({"error": {"code": "x"}}, INTERNAL),
        ({"result": []}, INTERNAL),
        ({"result": {"user": 1}}, INTERNAL),
        ({"result": {"channels": "news"}}, INTERNAL),
        ({"result": {"expire_at": "soon"}}, INTERNAL),
        ({"result": {"expire_at": 10**400}}, INTERNAL),
        (b'{"result": {"data": NaN}}', INTERNAL),
        (b'{"result": {"data": 1e999}}', INTERNAL),
        ([], INTERNAL),
        (b"x", INTERNAL),
        (b"\xff", INTERNAL),
        (b"[" * 100_000, INTERNAL),
        (b" " * (1 << 20) + b"{}", INTERNAL),
        (500, INTERNAL),
        (302, INTERNAL),
        (204, INTERNAL),
    ],
)
def test_answers_of_the_site(short_path: Path, site: str, answer: Any, expected: Any) -> None:
    Site.answers = {"/connect": answer}
    with page(short_path, proxied(site)) as one:
        one.say(CONNECT)
        (said,) = one.hear(1)
        assert said == expected if expected == 4500 else said["error"] == expected
    assert len(Site.requests) == 1


def test_a_site_that_hangs_or_is_away(
    short_path: Path, site: str, caplog: pytest.LogCaptureFixture
) -> None:
    hangs = threading.Event()
    Site.answers = {"/connect": hangs}
    with page(short_path, proxied(site)) as one:
        one.say(CONNECT)
        assert one.hear(1)[0]["error"] == INTERNAL
        hangs.set()
    assert "/connect: timed out" in caplog.text
    with page(short_path, proxied("http://127.0.0.1:1")) as one:
        one.say(CONNECT)
        assert one.hear(1)[0]["error"] == INTERNAL
    assert "Connection refused" in caplog.text


def test_the_end_that_the_site_sets(short_path: Path, site: str) -> None:
    Site.answers = {"/connect": {"result": {"user": "ann", "expire_at": time.time() - 6}}}
    with page(short_path, proxied(site)) as one:
        one.say(CONNECT)
        connected, code = one.hear(2)
        assert "expires" not in connected["connect"]  # it would ask its page for a token
        assert code == 3005


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[proxy]\nconnect = 'ftp://x'", "expected a URL"),
        ("[proxy]\nrpc = 'http://[x'", "expected a URL"),
        (
            "[default]\nsubscribe = 'proxy'",
            r"default: subscribe = .proxy. needs \[proxy\]",
        ),
        ("[namespaces.a]\npublish = 'proxy'\n[proxy]", r"a: publish = .proxy. needs"),
        ("[default]\nhistory = 'proxy'", "expected of all, user, token, subscriber$"),
    ],
)
def test_configurations_that_cannot_be_used(
    short_path: Path, tmp_path: Path, text: str, why: str
) -> None:
    (tmp_path / "c.toml").write_text(text)
    with Server(short_path / "a.ws") as server, pytest.raises(ConfigError, match=why):
        Channels(server, load(tmp_path / "c.toml"))


# Channels of users.


@pytest.mark.parametrize(
    ("user", "channel", "may"),
    [
        ("", "news", True),
        ("", "talk#", False),
        ("ann", "talk#ann", True),
        ("ann", "talk#bob,ann", True),
        ("an", "talk#ann", False),
        ("", "talk#,ann", False),
        ("ann", "talk#ann#bob", False),
        ("bob", "chat:talk#ann#bob", True),
    ],
)
def test_who_is_named(user: str, channel: str, may: bool) -> None:
    assert is_named(user, channel) is may


def test_a_channel_of_users_is_for_them_alone(short_path: Path) -> None:
    config = Config(default=Namespace(history_size=1, publish=frozenset({"all"})))
    open_ = wire.Open(id="id-1", uri="/", user="ann")
    with page(short_path, config, open_) as one:
        one.say(
            CONNECT,
            {"id": 2, "subscribe": {"channel": "talk#bob"}},
            {"id": 3, "publish": {"channel": "talk#bob", "data": 1}},
            {"id": 4, "history": {"channel": "talk#bob", "limit": 1}},
            {"id": 5, "subscribe": {"channel": "talk#bob,ann"}},
        )
        _, *denied, allowed = one.hear(5)
        assert [answer["error"]["code"] for answer in denied] == [103, 103, 103]
        assert "subscribe" in allowed
