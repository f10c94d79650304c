"""``apachews publish --relay`` and ``apachews doctor --relay``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apachews_tools.cli import main
from apachews_tools.doctor.finding import Level
from apachews_tools.doctor.relay import check_node, check_relay

from ..conftest import wait_for
from ..library.test_relay import producers, received
from ..support.brokers import Broker, running_broker, running_cluster

GOOD = {
    "redis_version": "7.0.15",
    "maxmemory": "0",
    "maxmemory-policy": "noeviction",
    "client-output-buffer-limit": "normal 0 0 0 slave 1 1 60 pubsub 33554432 8388608 60",
}


@pytest.fixture
def broker(short_path: Path) -> Iterator[Broker]:
    with running_broker(short_path) as broker:
        yield broker


def test_publish_through_a_relay(
    short_path: Path, broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    with producers(short_path, broker.url, 1) as (one,):
        client = one.client("room")
        command = ["publish", "--relay", broker.url, "/run/apachews/chat.ws", "-m", "hé"]
        assert main(command) == 0
        assert capsys.readouterr().out == "relayed\n"
        assert received(client, 1) == ["hé"]
        assert main([*command[:4], "room", *command[4:], "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {
            "reached": 0,
            "skipped": 0,
            "relayed": True,
            "position": None,
        }
        assert received(client, 1) == ["hé"]
        assert main(["publish", one.path, "-m", "x"]) == 0
        assert capsys.readouterr().out == "1 reached, and relayed\n"
    assert main(command) == 0
    assert capsys.readouterr().out == "no producer is subscribed to it\n"
    with producers(short_path, broker.url, 1) as (one,):
        one.server.group("news", history=10).broadcast("first")
        wait_for(lambda: broker.call("EXISTS", "{apachews:chat.ws:news}:meta") == b":1\r\n")
    assert main([*command[:4], "news", *command[4:]]) == 0
    assert "stored in the history; no producer" in capsys.readouterr().out
    assert main(["publish", "--relay", "host:6379", "chat.ws", "-m", "x"]) == 1
    assert "expected an address, as redis://" in capsys.readouterr().err
    assert main(["publish", "--relay", "ann:secret@host", "chat.ws", "-m", "x"]) == 1
    assert "secret" not in capsys.readouterr().err
    broker.kill()
    assert main(command) == 1
    assert "check that the relay runs" in capsys.readouterr().err


def test_the_doctor_of_a_good_relay(broker: Broker) -> None:
    found = list(check_relay(broker.url))
    assert [finding.id for finding in found] == [
        "relay",
        "relay-history",
        "relay-version",
        "relay-memory",
        "relay-buffers",
    ]
    assert {finding.level for finding in found} == {Level.OK}, found
    assert broker.call("KEYS", "*") == b"*0\r\n", "nothing stays"
    assert "came back after" in found[0].text


def test_the_doctor_of_a_cluster(short_path: Path) -> None:
    with running_cluster(short_path) as nodes:
        found = list(check_relay(f"redis+cluster://127.0.0.1:{nodes[0].port}"))
    assert {finding.level for finding in found} == {Level.OK}, found
    assert len(found) == 2 + 3 * 3


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis://127.0.0.1:1/0", "refused"),
        ("http://127.0.0.1", "unknown scheme"),
    ],
)
def test_the_doctor_of_a_relay_that_does_not_answer(url: str, text: str) -> None:
    (finding,) = check_relay(url)
    assert (finding.id, finding.level) == ("relay", Level.ERROR)
    assert text in finding.text.lower() and finding.remedy


def test_the_doctor_of_a_user_with_the_rights_for_messages_only(short_path: Path) -> None:
    rules = "user ann on >pw &apachews* +@pubsub +@connection +ping"
    with running_broker(short_path, "--user", *rules.split()[1:]) as broker:
        found = list(check_relay(broker.url.replace("//", "//ann:pw@")))
        levels = {finding.id: finding.level for finding in found}
        assert levels == {
            "relay": Level.OK,
            "relay-history": Level.WARNING,
            "relay-version": Level.NOTE,
            "relay-memory": Level.NOTE,
            "relay-buffers": Level.NOTE,
        }
        assert "script" in next(one.text for one in found if one.id == "relay-history")


@pytest.mark.parametrize(
    ("changes", "is_cluster", "id_", "level"),
    [
        ({}, False, "", None),
        ({"valkey_version": "8.1.1"}, True, "", None),
        ({"redis_version": "6.0.16"}, False, "relay-version", Level.WARNING),
        ({"redis_version": "6.2.1"}, True, "relay-version", Level.ERROR),
        (
            {"maxmemory": "100000000", "maxmemory-policy": "allkeys-lru"},
            False,
            "relay-memory",
            Level.WARNING,
        ),
        (
            {"client-output-buffer-limit": "normal 0 0 0 pubsub 0 0 0"},
            False,
            "relay-buffers",
            Level.WARNING,
        ),
        (
            {"client-output-buffer-limit": "normal 0 0 0 pubsub 2097152 0 0"},
            False,
            "relay-buffers",
            Level.WARNING,
        ),
        (
            {"client-output-buffer-limit": "normal 0 0 0 pubsub 33554432 65536 60"},
            False,
            "relay-buffers",
            Level.WARNING,
        ),
    ],
)
def test_settings_that_the_doctor_knows(
    changes: dict[str, Any], is_cluster: bool, id_: str, level: Level | None
) -> None:
    bad = [
        (finding.id, finding.level)
        for finding in check_node("redis://h", {**GOOD, **changes}, is_cluster)
        if finding.level is not Level.OK
    ]
    assert bad == ([(id_, level)] if level else [])


def test_the_doctor_checks_apache_beside_a_relay_only_with_a_url(
    broker: Broker, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["doctor", "--relay", broker.url, "--apachectl", "/nonexistent"]
    assert main(command) == 0
    output = capsys.readouterr().out
    assert "relay-buffers" in output and "Apache" not in output
    assert main([*command, "ws://127.0.0.1:1/x.ws"]) == 1
    output = capsys.readouterr().out
    assert "relay-buffers" in output and "only the URL can be checked" in output
