"""apachews.channels.api without Apache: what a request means, and its errors."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apachews import Server, wire
from apachews.channels import ApiRules, Channels, Config, ConfigError, Namespace
from apachews.channels.api import Api, key_of
from apachews.channels.control import GROUP

from ..conftest import wait_for
from ..support.bridge_by_hand import Bridge

KEY = "a-key-of-programs"
CONFIG = Config(
    default=Namespace(history_size=3, presence=True),
    namespaces={"plain": Namespace()},
    api=ApiRules(key=KEY),
)


@pytest.fixture
def channels(short_path: Path) -> Iterator[Channels]:
    with Server(short_path / "a.ws", presence=True) as server:
        yield Channels(server, CONFIG)


def run(channels: Channels, path: str, body: Any) -> Any:
    """Return the answer to a request."""
    answers: list[str] = []
    text = body if isinstance(body, (str, bytes)) else json.dumps(body)
    assert channels._api
    channels._api.run(path, text, answers.append)
    (answer,) = answers
    return json.loads(answer)


def test_what_is_published_is_in_the_history(channels: Channels) -> None:
    for text in ("a", "b", "c", "d"):
        answer = run(channels, "/publish", {"channel": "news", "data": text, "later": 1})
    assert answer["result"]["offset"] == 4
    since = {"epoch": answer["result"]["epoch"], "offset": 3}
    request = {"channel": "news", "limit": -1, "since": since}
    assert [one["data"] for one in run(channels, "history", request)["result"]["publications"]] == [
        "d"
    ]
    since["offset"] = 0
    assert run(channels, "history", request)["error"]["code"] == 112
    reverse = {"channel": "news", "limit": 2, "reverse": True}
    found = run(channels, "history", reverse)["result"]
    assert [one["data"] for one in found["publications"]] == ["d", "c"]
    assert run(channels, "history", {"channel": "news"})["result"]["publications"] == []
    assert run(channels, "publish", {"channel": "plain:a", "data": 1}) == {"result": {}}


def test_a_batch_has_a_reply_for_each_command(channels: Channels) -> None:
    commands = [
        {"publish": {"channel": "news", "data": 1}},
        {"history": {"channel": "plain:a"}},
        {"batch": {"commands": []}},
        {"broadcast": {"channels": ["news", "x:y"], "data": 2}},
        7,
    ]
    replies = run(channels, "batch", {"commands": commands})["replies"]
    assert replies[0]["publish"]["offset"] == 1
    assert [one["error"]["code"] for one in (replies[1], replies[2], replies[4])] == [108, 104, 104]
    sent = replies[3]["broadcast"]["responses"]
    assert (sent[0]["result"]["offset"], sent[1]["error"]["code"]) == (2, 102)
    assert run(channels, "batch", {"commands": []}) == {"replies": []}


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("", {}, 104),
        ("", {"method": 1}, 104),
        ("", {"method": "publish", "params": 1}, 107),
        ("rpc", {}, 104),
        ("publish", "", 107),
        ("publish", "[]", 107),
        ("publish", b"\xff", 107),
        ("publish", "[" * 100_000, 107),
        ("publish", {"data": 1}, 107),
        ("publish", {"channel": "a"}, 107),
        ("publish", {"channel": 1, "data": 1}, 107),
        ("publish", {"channel": "\ud800", "data": 1}, 107),
        ("publish", {"channel": GROUP, "data": 1}, 107),
        ("publish", {"channel": "other:a", "data": 1}, 102),
        ("publish", {"channel": "a", "data": 1, "tags": {"x": 1}}, 107),
        ("publish", {"channel": "a", "data": 1, "skip_history": True}, 107),
        ("publish", {"channel": "a", "data": 1, "idempotency_key": "x"}, 107),
        ("publish", {"channel": "a", "data": 1, "b64data": "AAAA"}, 107),
        ("broadcast", {"channels": "a", "data": 1}, 107),
        ("broadcast", {"channels": ["a"] * 1001, "data": 1}, 107),
        ("presence", {"channel": "plain:a"}, 108),
        ("history", {"channel": "a", "limit": "x"}, 107),
        ("history", {"channel": "a", "since": 1}, 107),
        ("disconnect", {}, 107),
        ("disconnect", {"user": "ann", "disconnect": {"code": 1}}, 107),
        ("disconnect", {"user": "ann", "disconnect": {"code": 3000, "reason": "x" * 124}}, 107),
        ("disconnect", {"user": "ann", "whitelist": [1]}, 107),
        ("subscribe", {"user": "ann", "channel": "other:a"}, 102),
        ("subscribe", {"user": "ann", "channel": "a", "override": {"presence": {}}}, 107),
        ("unsubscribe", {"channel": "a"}, 107),
        ("refresh", {"user": 1}, 107),
        ("batch", {"commands": {}}, 107),
    ],
)
def test_errors(channels: Channels, path: str, body: Any, code: int) -> None:
    assert run(channels, path, body)["error"]["code"] == code


@given(
    method=st.sampled_from(["publish", "broadcast", "history", "disconnect", "subscribe", "batch"]),
    params=st.dictionaries(
        st.sampled_from(["channel", "channels", "data", "user", "since", "disconnect", "commands"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=5),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=5), inner),
        ),
    ),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_request_has_one_answer_and_no_exception(
    channels: Channels, caplog: pytest.LogCaptureFixture, method: str, params: Any
) -> None:
    answer = run(channels, method, params)
    assert len(answer) == 1 and {*answer} <= {"result", "error", "replies"}
    assert not [record for record in caplog.records if record.exc_info], caplog.text


@pytest.mark.parametrize(
    ("headers", "is_permitted"),
    [
        ({"x-api-key": KEY}, True),
        ({"authorization": f"ApiKey {KEY}"}, True),
        ({"authorization": f"bearer {KEY}"}, True),
        ({}, False),
        ({"x-api-key": KEY + "x"}, False),
        ({"x-api-key": "\xff"}, False),
        ({"authorization": KEY}, False),
        ({"authorization": f"basic {KEY}"}, False),
    ],
)
def test_the_key(channels: Channels, headers: dict[str, str], is_permitted: bool) -> None:
    assert isinstance(channels._api, Api)
    assert channels._api.is_permitted(headers) is is_permitted


def test_keys_that_cannot_be_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "key"
    file.write_text(KEY + "\n")
    with caplog.at_level(logging.WARNING):
        assert key_of(ApiRules(key_file=str(file))) == KEY
    assert "other users can read" in caplog.text and KEY not in caplog.text
    file.write_bytes(b"\xff" * 20)
    for rules, why in (
        (ApiRules(), "one of key and key_file"),
        (ApiRules(key=KEY, key_file="x"), "one of key and key_file"),
        (ApiRules(key="short"), "5 characters; expected 16"),
        (ApiRules(key=KEY + " x"), "no spaces"),
        (ApiRules(key_file=str(tmp_path / "absent")), "No such file"),
        (ApiRules(key_file=str(file)), "codec"),
    ):
        with pytest.raises(ConfigError, match=why):
            key_of(rules)


@pytest.mark.parametrize(
    ("method", "key", "code"), [("POST", KEY, 1000), ("POST", "", 4401), ("GET", KEY, 0)]
)
def test_a_request_is_a_post_with_the_key(
    channels: Channels, method: str, key: str, code: int
) -> None:
    open_ = wire.Open(id="1", method=method, uri="/publish", headers=(("x-api-key", key),))
    bridge = Bridge(channels.server.path, open_)
    bridge.send(wire.TEXT, b'{"channel": "news", "data": 1}')
    received: list[Any] = []

    def has_answer() -> bool:
        while (event := channels.server.dequeue(0.0)) is not None:
            channels.handle(event)
        received.extend(bridge.read_available())
        # A WebSocket that says this uses a command that the protocol does not have.
        return (
            bool(received) if not code else any(isinstance(item, wire.Close) for item in received)
        )

    wait_for(has_answer)
    if code:
        assert received[-1].code == code
    if code != 4401:
        answer = json.loads(received[0])
        assert answer["result"]["offset"] == 1 if code else answer["error"]["code"] == 104
    bridge.socket.close()


def test_a_message_of_another_process_is_for_the_function_of_the_group(short_path: Path) -> None:
    with Server(short_path / "a.ws") as server:
        group = server.group("staff")
        received: list[str | bytes] = []
        group.on_message(received.append)
        group.broadcast("own")
        bridge = Bridge(server.path, None)
        bridge.socket.sendall(wire.Publish("staff").encode() + wire.encode_message("hé"))
        bridge.socket.sendall(wire.encode_message(b"\xff"))
        wait_for(lambda: server.dequeue(0.0) or len(received) == 2)
        assert received == ["hé", b"\xff"]
        bridge.socket.close()
        with pytest.raises(ValueError, match="history"):
            server.group("news", history=1).on_message(print)


def test_a_bad_order_ends_no_producer(channels: Channels, caplog: pytest.LogCaptureFixture) -> None:
    bridge = Bridge(channels.server.path, None)
    orders = [b"x", b'{"do":"x"}', b'{"do":"disconnect"}', b'{"do":"members","question":[]}']
    frames = b"".join(map(wire.encode_message, orders))
    bridge.socket.sendall(wire.Publish(GROUP).encode() + frames)
    bridge.socket.setblocking(False)
    answers = bytearray()

    def is_answered() -> bool:
        while (event := channels.server.dequeue(0.0)) is not None:
            channels.handle(event)
        with contextlib.suppress(BlockingIOError):
            answers.extend(bridge.socket.recv(4096))
        return answers.count(b"reached") == len(orders)

    wait_for(is_answered)
    assert caplog.text.count("cannot be carried out") == len(orders)
    bridge.socket.close()
