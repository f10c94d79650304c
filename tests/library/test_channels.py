"""apachews.channels without a network: the protocol, the configuration, tokens."""

from __future__ import annotations

import base64
import dataclasses
import hmac
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apachews import JoinEvent, PastMessage, Position, Replay, wire
from apachews.channels import (
    ApiRules,
    Channels,
    Config,
    ConfigError,
    Connection,
    Disconnect,
    Namespace,
    ProxyRules,
    TokenRules,
    load,
    protocol,
)
from apachews.channels.__main__ import main
from apachews.channels.config import UnknownNamespace
from apachews.channels.subscriptions import client_info
from apachews.channels.tokens import TokenError, TokenExpired, Tokens
from apachews.server import Server

from ..conftest import wait_for
from ..support.bridge_by_hand import Bridge

KEY = "a-key-of-programs"
SECRET = "a secret of at least thirty-two bytes"
# In the order of the reference.
KINDS = (Config, Namespace, TokenRules, ProxyRules, ApiRules)
REFERENCE = Path(__file__).parents[2] / "docs/reference/channels.md"


# The protocol.


def test_commands_of_one_message() -> None:
    text = '{"id":1,"connect":{"token":"x"}}\n{}\n{"send":{"data":1}}\n\n{"id":2,"later":{}}\n'
    assert protocol.decode(text) == [
        (1, "connect", {"token": "x"}),
        (0, "", {}),
        (0, "send", {"data": 1}),
        (2, "later", {}),
    ]


@given(
    st.one_of(
        st.text(),
        st.binary(),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(),
            lambda inner: (
                st.lists(inner)
                | st.dictionaries(st.sampled_from(["id", "connect", "send", "x"]), inner)
            ),
        ).map(json.dumps),
    )
)
def test_any_message_is_commands_or_a_disconnect(message: str | bytes) -> None:
    try:
        commands = protocol.decode(message)
    except Disconnect as error:
        assert 3500 <= error.code < 4000
    else:
        assert all(isinstance(one.params, dict) for one in commands)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_numbers_that_browsers_do_not_parse_reach_no_subscriber(number: str) -> None:
    with pytest.raises(Disconnect, match="not JSON"):
        protocol.decode(f'{{"id":1,"publish":{{"channel":"a","data":[{number}]}}}}')
    assert protocol.publication(f"[\n{number}]", 1) == f'{{"data":"[\\n{number}]","offset":1}}'


@given(st.one_of(st.text(), st.binary()), st.integers(0, 1 << 60))
def test_any_message_is_a_publication_in_one_line(data: str | bytes, offset: int) -> None:
    if isinstance(data, str) and data.startswith(protocol.WITH_INFO):
        return
    text = protocol.publication_push("a\n", data, offset)
    assert "\n" not in text
    value = json.loads(text)["push"]
    assert value["channel"] == "a\n" and value["pub"].get("offset", 0) == offset
    try:
        expected = json.loads(data, parse_constant=lambda name: 1 / 0)
    except (ValueError, ZeroDivisionError):
        return
    if isinstance(data, str):
        assert value["pub"]["data"] == expected


def test_what_is_stored_of_a_client() -> None:
    stored = protocol.stored({"a": 1}, {"client": "c", "user": "ann"}, {"tag": "x"})
    assert json.loads(protocol.publication(stored, 7)) == {
        "data": {"a": 1},
        "info": {"client": "c", "user": "ann"},
        "tags": {"tag": "x"},
        "offset": 7,
    }


@pytest.mark.parametrize(
    ("limit", "is_reverse", "offsets"),
    [(0, False, []), (-1, False, [1, 2, 3]), (2, False, [1, 2]), (2, True, [3, 2])],
)
def test_the_result_of_history(limit: int, is_reverse: bool, offsets: list[int]) -> None:
    messages = [PastMessage(offset, str(offset)) for offset in (1, 2, 3)]
    text = protocol.history_result(Replay(Position("e", 3), messages, False), limit, is_reverse)
    result = json.loads(text)
    assert (result["epoch"], result["offset"]) == ("e", 3)
    assert [one["offset"] for one in result["publications"]] == offsets


# Clients that send anything.

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 300)
    | st.sampled_from(["news", "closed:a", "x:y", "", "\ud800", "a\n", "e", "room" * 80]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["epoch", "offset", "news"]), inner, max_size=3)
    ),
    max_leaves=5,
)
PARAMS = st.dictionaries(
    st.sampled_from(
        [
            "channel",
            "data",
            "token",
            "recover",
            "epoch",
            "offset",
            "since",
            "limit",
            "reverse",
            "subs",
            "method",
        ]
    ),
    VALUES,
)
COMMANDS = st.builds(
    lambda number, method, params: json.dumps({"id": number, method: params}),
    st.integers(1, 9),
    st.sampled_from(sorted(protocol.METHODS)),
    PARAMS | st.fixed_dictionaries({"channel": st.just("news")}, optional={"data": VALUES}),
)


def test_no_command_ends_the_producer(short_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = Config(
        default=Namespace(
            history_size=5,
            presence=True,
            join_leave=True,
            publish=frozenset({"all"}),
            history=frozenset({"all"}),
            see_presence=frozenset({"all"}),
        ),
        namespaces={"closed": Namespace(subscribe=frozenset({"token"}))},
    )
    with Server(short_path / "a.ws", presence=True) as server:
        channels = Channels(server, config, on_rpc=lambda connection, method, data: data)
        bridges: list[Bridge] = []

        def turn() -> None:
            while (event := server.dequeue(0.0)) is not None:
                channels.handle(event)

        def is_connected() -> bool:
            turn()
            return bool(channels.connections())

        @given(st.lists(COMMANDS, min_size=1, max_size=5))
        def send(commands: list[str]) -> None:
            if not channels.connections():
                for bridge in bridges:
                    bridge.socket.close()
                bridges[:] = [Bridge(server.path)]
                bridges[0].send(wire.TEXT, b'{"id":1,"connect":{}}')
                wait_for(is_connected)
            channels._receive(channels.connections()[0].client, "\n".join(commands))
            turn()
            for item in bridges[0].read_available():
                if not isinstance(item, wire.Close):
                    assert all(json.loads(line) is not None for line in str(item).split("\n"))

        try:
            send()
        finally:
            for bridge in bridges:
                bridge.socket.close()
    assert not [record for record in caplog.records if record.exc_info], caplog.text


class Page:
    """A client of channels, by hand."""

    def __init__(self, server: Server, channels: Channels) -> None:
        self._server = server
        self._channels = channels
        self._bridge = Bridge(server.path)

    def say(self, *commands: dict[str, Any]) -> list[Any]:
        """Send commands in one message; return the next answers, a code for a CLOSE."""
        self._bridge.send(wire.TEXT, "\n".join(map(json.dumps, commands)).encode())
        return wait_for(self._answers)

    def _answers(self) -> list[Any]:
        while (event := self._server.dequeue(0.0)) is not None:
            self._channels.handle(event)
        return [
            item.code if isinstance(item, wire.Close) else json.loads(str(item))
            for item in self._bridge.read_available()
        ]

    def close(self) -> None:
        self._bridge.socket.close()


@contextmanager
def page(path: Path, config: Config, **hooks: Any) -> Iterator[tuple[Page, Channels]]:
    with Server(path) as server:
        channels = Channels(server, config, **hooks)
        one = Page(server, channels)
        try:
            yield one, channels
        finally:
            one.close()


def test_a_token_for_a_channel_that_does_not_exist_connects_no_client(short_path: Path) -> None:
    config = Config(tokens=TokenRules(secret=SECRET))
    with page(short_path / "a.ws", config) as (one, channels):
        connect = {"id": 1, "connect": {"token": signed(channels=["news", "other:a"])}}
        (answer,) = one.say(connect)
        assert answer["error"]["code"] == 102
        assert not channels.connections("ann")
        connect["connect"] = {"token": signed(channels=["news"])}
        (answer,) = one.say(connect)
        assert [*answer["connect"]["subs"]] == ["news"]


def test_a_hook_that_does_not_know_a_client_lets_no_anonymous_one_in(short_path: Path) -> None:
    def on_connect(connection: Connection) -> None:
        connection.user = connection.data or ""

    config = Config(anonymous=False)
    with page(short_path / "a.ws", config, on_connect=on_connect) as (one, channels):
        (answer,) = one.say({"id": 1, "connect": {}})
        assert answer["error"]["code"] == 101
        (answer,) = one.say({"id": 2, "connect": {"data": "ann"}})
        assert channels.connections("ann")


def test_a_pong_answers_the_ping_before_it(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[float, Callable[[], object]]] = []
    with page(short_path / "a.ws", Config(ping_seconds=2, pong_seconds=3)) as (one, channels):
        monkeypatch.setattr(channels.server, "call_later", lambda *call: calls.append(call))
        one.say({"id": 1, "connect": {}})
        for _ in range(2):  # the second one is sent before the answer to the first one is due
            assert one.say({"id": 2, "ping": {}})
            channels._ping()
        first, second = [function for seconds, function in calls if seconds == 3]
        first()
        assert channels.connections(), "it has said something since"
        second()
        assert not channels.connections()


def test_what_follows_a_disconnect_is_not_run(short_path: Path) -> None:
    asked: list[str] = []

    def on_rpc(connection: Connection, method: str, data: Any) -> None:
        asked.append(method)
        channels.disconnect(connection)

    with page(short_path / "a.ws", Config(), on_rpc=on_rpc) as (one, channels):
        one.say({"id": 1, "connect": {}})
        rpc = [{"id": number, "rpc": {"method": str(number)}} for number in (2, 3)]
        assert 3503 in one.say(*rpc)
        assert asked == ["2"]


@pytest.mark.parametrize(
    "member", ["ann", "[" * 100_000, "[]", "{}", '{"client":1,"user":""}', '"client user"']
)
def test_members_of_other_programs_are_left_out(short_path: Path, member: str) -> None:
    assert client_info(member) is None
    config = Config(default=Namespace(presence=True, join_leave=True))
    with Server(short_path / "a.ws", presence=True) as server:
        Channels(server, config).handle(JoinEvent("news", member))


def test_channels_need_a_place_for_messages(
    short_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(short_path / "a.ws"), "--workers", "2"]) == 1
    assert "--history-file" in capsys.readouterr().err
    with (
        Server(short_path / "a.ws", relay="nats://127.0.0.1:1") as server,
        pytest.raises(ConfigError, match="NATS keeps none"),
    ):
        Channels(server)


# The configuration.


def test_a_file_with_everything(tmp_path: Path) -> None:
    (tmp_path / "channels.toml").write_text(
        f"""
anonymous = false
ping_seconds = 10
[default]
history_size = 10
[namespaces.chat]
subscribe = ["user", "token"]
publish = "subscriber"
presence = true
[tokens]
secret = "{SECRET}"
audience = "chat"
[api]
key = "{KEY}"
"""
    )
    config = load(tmp_path / "channels.toml")
    assert not config.anonymous and config.ping_seconds == 10.0
    assert config.namespace("news").history_size == 10
    assert config.namespace("chat:a:b") == Namespace(
        presence=True, subscribe=frozenset({"user", "token"}), publish=frozenset({"subscriber"})
    )
    assert config.needs_presence and config.tokens is not None
    assert config.api == ApiRules(key=KEY)
    assert SECRET not in repr(config) and KEY not in repr(config)
    with pytest.raises(UnknownNamespace):
        config.namespace("other:a")


def test_with_namespaces_the_default_is_named_as_well(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[namespaces.chat]\n")
    with pytest.raises(UnknownNamespace):
        load(tmp_path / "c.toml").namespace("news")


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x", "Expected"),
        ("color = 1", "color: unknown; expected one of anonymous"),
        ("anonymous = 1", "anonymous = 1: expected true or false"),
        ("ping_seconds = 0.5", "ping_seconds = 0.5: expected a number, 1 or more"),
        ("max_channels = -1", "max_channels = -1: expected a number, 0 or more"),
        ("default = 1", "default = 1: expected a table"),
        ("[default]\nsubscribe = 'me'", "default.subscribe = 'me': expected of all"),
        ("[namespaces.a]\nhistory = [1]", r"namespaces.a.history = \[1\]: expected of all"),
        ("[tokens]\nissuer = 1", "tokens.issuer = 1: expected a text"),
        ("[tokens]\nalgorithms = 1", "tokens.algorithms = 1: expected of names"),
        ("pong_seconds = inf", "pong_seconds = inf: expected a number, 1 or more"),
        ("[tokens]\nsecret = ['hidden']", "tokens.secret: expected a text"),
        ("[api]\nkey = ['hidden']", "api.key: expected a text"),
        ("tokens = 'hidden'", r"tokens: expected a table, \[tokens\]"),
    ],
)
def test_errors_name_file_key_and_remedy(tmp_path: Path, text: str, why: str) -> None:
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(ConfigError, match=why) as info:
        load(tmp_path / "c.toml")
    assert str(tmp_path / "c.toml") in str(info.value)
    assert "hidden" not in str(info.value)


def test_a_secret_that_others_can_read_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret, config = tmp_path / "key", tmp_path / "c.toml"
    secret.write_text(SECRET + "\n")
    config.write_text(f"[tokens]\nsecret_file = '{secret}'\n")
    config.chmod(0o644)
    for mode, expected in ((0o640, []), (0o644, [f"{secret}: other users can read its secret"])):
        secret.chmod(mode)
        caplog.clear()
        rules = load(config).tokens
        assert rules is not None
        Tokens(rules)
        assert [text.partition(";")[0] for text in caplog.messages] == expected
    config.write_text(f"[tokens]\nsecret = '{SECRET}'\n")
    for mode, expected in ((0o640, []), (0o644, [f"{config}: other users can read its secret"])):
        config.chmod(mode)
        caplog.clear()
        load(config)
        assert [text.partition(";")[0] for text in caplog.messages] == expected
    assert SECRET not in caplog.text and SECRET not in repr(load(config))


def test_a_check_says_what_a_file_means(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[namespaces.chat]\nhistory_size = 5\npublish = 'user'\n")
    assert main(["--check", "--config", str(file)]) == 0
    output = capsys.readouterr().out
    assert "chat:…" in output and "5 messages, 300 s" in output and "publish: user" in output
    file.write_text("colour = 1")
    assert main(["--check", "--config", str(file)]) == 1
    assert "unknown" in capsys.readouterr().err
    assert main([]) == 1
    assert "socket file is missing" in capsys.readouterr().err


def test_the_reference_has_every_key_with_its_default() -> None:
    text = REFERENCE.read_text().partition("\n## Identity")[0]
    tables = [
        dict(re.findall(r"^\| `(\w+)` \| `?([^|`]*)`? \|", part, re.M))
        for part in text.split("\n| key | default |")[1:]
    ]
    for kind, rows in zip(KINDS, tables, strict=True):
        expected = {}
        for one in dataclasses.fields(kind):
            if one.name in ("default", "namespaces", "tokens", "proxy", "api"):
                continue
            value: Any = one.default
            if isinstance(value, bool):
                expected[one.name] = str(value).lower()
            elif isinstance(value, frozenset):
                is_one = len(value) == 1
                expected[one.name] = json.dumps(sorted(value)[0]) if is_one else "[]"
            else:
                is_number = isinstance(value, float)
                expected[one.name] = f"{value:g}" if is_number else json.dumps(value)
        assert rows == expected


def test_presence_needs_a_server_that_keeps_members(short_path: Path) -> None:
    with (
        Server(short_path / "a.ws") as server,
        pytest.raises(ConfigError, match="presence=True"),
    ):
        Channels(server, Config(default=Namespace(presence=True)))


# Tokens.


def signed(key: Any = SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    return jwt.encode({"sub": "ann", "aud": "chat", **claims}, key, algorithm=algorithm)


@pytest.fixture
def tokens() -> Tokens:
    return Tokens(TokenRules(secret=SECRET, audience="chat", issuer="site"))


def test_what_a_token_says(tokens: Tokens) -> None:
    expires_at = int(time.time()) + 60
    token = signed(iss="site", exp=expires_at, info={"name": "Ann"}, channels=["news"])
    assert tokens.connection(token) == ("ann", expires_at, {"name": "Ann"}, ("news",))
    token = signed(iss="site", channel="chat:a", info=1)
    assert tokens.subscription(token, "ann", "chat:a") == (None, 1)


@pytest.mark.parametrize(
    ("token", "why"),
    [
        (signed(), "iss"),
        (signed(iss="other"), "issuer"),
        (signed(iss="site", aud="other"), "udience"),
        (signed(iss="site", nbf=time.time() + 1e6), "not yet valid"),
        (signed(iss="site", key="another secret of thirty-two bytes"), "ignature"),
        (signed("", "none", iss="site"), "alg"),
        (signed(SECRET * 2, "HS512", iss="site"), "alg"),
        (signed(iss="site", channel="news"), "for a channel"),
        (signed(iss="site", channels="news"), "channels"),
        ("", "segments"),
        ("a.b.c", "."),
        ("ü", "."),
    ],
)
def test_tokens_that_are_rejected(tokens: Tokens, token: str, why: str) -> None:
    with pytest.raises(TokenError, match=why):
        tokens.connection(token)


def test_other_tokens_that_are_rejected(tokens: Tokens) -> None:
    with pytest.raises(TokenExpired):
        tokens.connection(signed(iss="site", exp=time.time() - 60))
    good = signed(iss="site", channel="chat:a")
    for user, channel in (("bob", "chat:a"), ("ann", "chat:b"), ("", "chat:a")):
        with pytest.raises(TokenError, match="it is for the"):
            tokens.subscription(good, user, channel)
    with pytest.raises(TokenError, match="it is for the channel None"):
        tokens.subscription(signed(iss="site"), "ann", "chat:a")


def test_a_public_key(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    file = tmp_path / "key.pem"
    file.write_bytes(public)
    rules = TokenRules(public_key_file=str(file), algorithms=frozenset({"ES256"}))
    assert Tokens(rules).connection(signed(private, "ES256")).user == "ann"
    # As a secret that is known to all.
    head, body, _ = signed(SECRET, "HS256").split(".")
    with pytest.raises(TokenError):
        Tokens(rules).connection(f"{head}.{body}.x")
    with pytest.raises(ConfigError, match="HS256 with a public key"):
        Tokens(dataclasses.replace(rules, algorithms=frozenset({"ES256", "HS256"})))


@pytest.mark.parametrize(
    ("rules", "why"),
    [
        (TokenRules(), "one of secret"),
        (TokenRules(secret="short"), "a secret of 5 bytes"),
        (TokenRules(secret=SECRET, secret_file="x"), "one of secret"),
        (TokenRules(secret=SECRET, algorithms=frozenset()), "none with a secret"),
        (TokenRules(secret=SECRET, algorithms=frozenset({"none"})), "none with a secret"),
        (TokenRules(secret=SECRET, algorithms=frozenset({"RS256"})), "RS256 with a secret"),
        (TokenRules(secret_file="/nonexistent"), "No such file"),
    ],
)
def test_rules_that_cannot_be_used(rules: TokenRules, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Tokens(rules)


def test_a_public_key_is_never_a_secret(tmp_path: Path) -> None:
    """A token that is signed by HMAC with the text of the public key, which is no secret."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    file = tmp_path / "key.pem"
    file.write_bytes(public)
    rules = TokenRules(public_key_file=str(file), algorithms=frozenset({"RS256"}))
    assert Tokens(rules).connection(signed(private, "RS256")).user == "ann"
    body = signed(private, "RS256").split(".")[1]
    head = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').decode().rstrip("=")
    mac = hmac.new(public, f"{head}.{body}".encode(), "sha256").digest()
    forged = f"{head}.{body}.{base64.urlsafe_b64encode(mac).decode().rstrip('=')}"
    with pytest.raises(TokenError, match="alg"):
        Tokens(rules).connection(forged)
    # The same by a configuration that takes it for a secret, or for a key of another kind.
    with pytest.raises(ConfigError, match=r"key\.pem is not a key for HS256"):
        Tokens(TokenRules(secret_file=str(file)))
    with pytest.raises(ConfigError, match=r"key\.pem is not a key for ES256"):
        Tokens(dataclasses.replace(rules, algorithms=frozenset({"ES256"})))
    file.write_text("not a key")
    with pytest.raises(ConfigError, match=r"key\.pem is not a key for RS256"):
        Tokens(rules)


@pytest.mark.parametrize("claim", ["exp", "nbf", "iat"])
@pytest.mark.parametrize("value", [float("inf"), float("nan"), "soon", [], {}])
def test_times_that_are_not_numbers(tokens: Tokens, claim: str, value: Any) -> None:
    body = json.dumps({"sub": "ann", "aud": "chat", "iss": "site", claim: value}).encode()
    token = jwt.api_jws.encode(body, SECRET, algorithm="HS256")
    with pytest.raises(TokenError):
        tokens.connection(token)
