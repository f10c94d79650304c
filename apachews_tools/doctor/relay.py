"""Checks of a relay: Redis or Valkey between the producers of several machines.

Contract: ``check_relay(url)`` connects, sends itself one message, stores another one for a moment,
and yields findings.  It blocks for some seconds at most, and leaves nothing behind.

Sources: Redis's documentation of ``client-output-buffer-limit`` and ``maxmemory-policy``; the
buffers of subscribers count as memory, and can evict the keys of other programs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any, Final

from apachews._relay import address
from apachews._relay.engine import Engine, EngineError, Message
from apachews._relay.relay import DEFAULT_MAX_MESSAGE_BYTES, open_engine
from apachews.exceptions import RelayError

from .finding import Finding, error, note, ok, warning

TIMEOUT_S: Final = 5.0
# Sharded channels, for a cluster; the oldest version that the tests run is 7.0 as well.
CLUSTER_VERSION: Final = (7, 0)
TESTED_VERSION: Final = (7, 0)
# A subscriber for which fewer of the longest messages may wait is closed by short delays.
MIN_WAITING_MESSAGES: Final = 8


def check_relay(url: str) -> Iterator[Finding]:
    """Yield findings about the relay at an address of ``relay=``."""
    try:
        target = address.parse(url)
        engine = open_engine(target, target.name or "doctor")
    except RelayError as failure:
        yield error(
            "relay",
            f"{failure.path}: {failure.problem}",
            breaks="a producer with this relay does not start",
            remedy=failure.remedy,
        )
        return
    read_end, write_end = os.pipe()
    try:
        engine.connect()
        round_trip_s = _send_to_itself(engine, read_end)
        rejection = engine.try_history(f"doctor {os.urandom(8).hex()}")
        information = engine.information()
    except EngineError as failure:
        yield error(
            "relay",
            f"{target.shown}: {failure}",
            breaks="broadcasts do not reach the clients of other producers",
            remedy="start Redis or Valkey; check the address, the password, its bind and"
            " protected-mode, and the firewall",
        )
        return
    finally:
        engine.close()
        os.close(read_end)
        os.close(write_end)
    yield ok("relay", f"{target.shown}: a message came back after {round_trip_s * 1000:.1f} ms")
    if rejection is None:
        yield ok("relay-history", f"{target.shown}: stores and reads the history of a group")
    elif engine.has_history:
        yield warning(
            "relay-history",
            f"{target.shown}: {rejection.why}",
            breaks="groups with history= get no messages; other groups work",
            remedy="give the user the rights for histories (docs/howto/machines.md), and Redis"
            " enough memory",
        )
    else:
        yield note("relay-history", f"{target.shown}: {rejection.why}")
    for name, values in information.items():
        yield from check_node(name, values, target.kind == "cluster")


def _send_to_itself(engine: Engine, wake_fd: int) -> float:
    """Return the seconds that a message takes through the relay.

    Raises:
        EngineError: it did not come back.
    """
    group = f"doctor {os.urandom(8).hex()}"
    deadline = time.monotonic() + TIMEOUT_S
    engine.subscribe([group])
    while group not in engine.subscribed:
        _require_time(deadline, "a subscription was not confirmed")
        engine.receive(deadline - time.monotonic(), wake_fd)
    engine.verify([group])
    sent_at = time.monotonic()
    for _, rejection in engine.publish([Message(group, b"x")]):
        raise EngineError(rejection.why)
    while not engine.receive(deadline - time.monotonic(), wake_fd):
        _require_time(deadline, "a message did not come back")
    return time.monotonic() - sent_at


def _require_time(deadline: float, problem: str) -> None:
    if time.monotonic() > deadline:
        raise EngineError(f"{problem} within {TIMEOUT_S:g} s")


def check_node(name: str, values: dict[str, Any], is_cluster: bool) -> Iterator[Finding]:
    """Yield findings about one server.

    Args:
        name: its address.
        values: of INFO and of the settings, as ``RedisEngine.information`` has them.
        is_cluster: whether it is a node of a cluster.
    """
    if "nats_version" in values:  # the engine requires the rest
        yield ok("relay-version", f"{name}: NATS {values['nats_version']}")
        return
    yield _check_version(name, values, is_cluster)
    yield _check_memory(name, values)
    yield _check_buffers(name, values)


def _check_version(name: str, values: dict[str, Any], is_cluster: bool) -> Finding:
    if "redis_version" not in values:
        return note("relay-version", f"{name}: its version is not readable (INFO)")
    kind = "Valkey" if "valkey_version" in values else "Redis"
    text = values.get("valkey_version") or values.get("redis_version", "")
    version = tuple(int(part) for part in text.split(".")[:2] if part.isdigit())
    if is_cluster and version < CLUSTER_VERSION:
        return error(
            "relay-version",
            f"{name}: {kind} {text} has no sharded channels (SSUBSCRIBE)",
            breaks="a cluster cannot be the relay",
            remedy="Redis 7 or later, or Valkey; or one server without a cluster",
        )
    if version < TESTED_VERSION:
        return warning(
            "relay-version",
            f"{name}: {kind} {text} is older than the versions that are tested",
            breaks="perhaps nothing; the protocol of these commands is old",
            remedy="Redis 7 or later, or Valkey",
        )
    return ok("relay-version", f"{name}: {kind} {text}")


def _check_memory(name: str, values: dict[str, Any]) -> Finding:
    policy, limit = values.get("maxmemory-policy"), values.get("maxmemory", "0")
    if policy is None:
        return note("relay-memory", f"{name}: its settings are not readable (CONFIG GET)")
    if limit == "0" or policy == "noeviction":
        return ok("relay-memory", f"{name}: the relay evicts no keys of other programs")
    return warning(
        "relay-memory",
        f"{name}: maxmemory is {limit}, maxmemory-policy {policy}",
        breaks="keys of other programs in this server, and histories of groups, are evicted",
        when="the server needs more memory, also while messages wait for slow subscribers",
        remedy="a server of its own for the relay, or maxmemory-policy noeviction",
    )


def _check_buffers(name: str, values: dict[str, Any]) -> Finding:
    setting = values.get("client-output-buffer-limit")
    if setting is None:
        return note("relay-buffers", f"{name}: its settings are not readable (CONFIG GET)")
    words = setting.split()
    hard, soft, seconds = (int(word) for word in words[words.index("pubsub") + 1 :][:3])
    needed = MIN_WAITING_MESSAGES * DEFAULT_MAX_MESSAGE_BYTES
    text = f"{name}: client-output-buffer-limit pubsub {hard} {soft} {seconds}"
    remedy = 'redis-cli CONFIG SET client-output-buffer-limit "pubsub 32mb 8mb 60"'
    if not hard:
        return warning(
            "relay-buffers",
            text,
            breaks="the server's memory grows without a bound",
            when="a producer hangs",
            remedy=remedy,
        )
    if hard < needed or 0 < soft < DEFAULT_MAX_MESSAGE_BYTES:
        return warning(
            "relay-buffers",
            text,
            breaks="the server closes the connection of a producer, which misses messages",
            when="several long messages come at once",
            remedy=remedy,
        )
    return ok("relay-buffers", text)
