"""The reader in C against docs/reference/wire-vectors.json, and against the reader in Python."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apachews import wire
from apachews.wire.reader import BridgeChanged, MessageReader, Moved, Offered, Pong

from ..support.site import ROOT
from .build import built

VECTORS: dict[str, Any] = json.loads(
    (ROOT / "docs" / "reference" / "wire-vectors.json").read_text()
)
MAX_MESSAGE = 16 * 1024 * 1024
OPEN = wire.Open(id="1", uri="/").encode()


class Reader:
    """The program for the vectors, bindings/c/tests/vectors.c."""

    def __init__(self, directory: Path) -> None:
        self._process = subprocess.Popen(
            [directory / "vectors"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, line: str) -> Any:
        """Return the answer: JSON, or a line of text."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"it ended: {line:.200}"
        return json.loads(answer) if answer[0] in '[{"' else answer.strip()

    def close(self) -> None:
        """Stop it; it must exit with status 0."""
        self._process.communicate(timeout=10)
        assert self._process.returncode == 0


@pytest.fixture(scope="module", params=["sanitized"])
def reader(request: pytest.FixtureRequest, can_build: None) -> Iterator[Reader]:
    made = Reader(built(request.param))
    yield made
    made.close()


def vectors(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("vector", VECTORS[kind], ids=lambda vector: vector["name"])


@vectors("frames")
def test_frames(reader: Reader, vector: dict[str, Any]) -> None:
    first = vector["opcode"] | (wire.FIN if vector["fin"] else 0)
    assert reader.ask(f"frame {first} {vector['payload']}") == vector["hex"]


@vectors("headers")
def test_headers(reader: Reader, vector: dict[str, Any]) -> None:
    assert reader.ask(f"header {vector['first']} {vector['length']}") == vector["hex"]


@vectors("closes")
def test_closes(reader: Reader, vector: dict[str, Any]) -> None:
    said = reader.ask(f"close {vector['payload']}")
    if "error" in vector:
        assert int(said) == vector["error"]
    else:
        assert [said[0], bytes.fromhex(said[1]).decode()] == [vector["code"], vector["reason"]]


@vectors("answers")
def test_answers(reader: Reader, vector: dict[str, Any]) -> None:
    frame = bytes.fromhex(reader.ask(f"answer {json.dumps(vector['answer'])}"))
    header = wire.decode_header(frame, 0)
    assert header
    first, length, start = header
    assert (first, len(frame)) == (wire.FIN | wire.ANSWER, start + length)
    assert json.loads(frame[start:]) == vector["answer"]


@vectors("opens")
def test_opens(reader: Reader, vector: dict[str, Any]) -> None:
    items = reader.ask(f"read {MAX_MESSAGE} {vector['hex']}")
    if "error" in vector:
        assert items == [{"error": vector["error"]}]
    else:
        assert [as_request(items[0]["open"])] == [vector["request"]]


def as_request(facts: dict[str, Any]) -> dict[str, Any]:
    """Return the C program's request in the form of the vectors."""
    pairs = {
        name: [[key, bytes.fromhex(value).decode()] for key, value in facts[name]]
        for name in ("headers", "env")
    }
    tls = {
        name: facts[f"tls_{name}"]
        for name in ("version", "cipher", "server_name", "client_subject")
    }
    same = ("id", "resumed", "method", "uri", "scheme", "user", "vhost", "offered")
    return {
        **{name: facts[name] for name in (*same, "subprotocol", "answer_required")},
        "rewritten_query": facts["rewritten_query"],
        "remote": [facts["remote_host"], facts["ports"][0]],
        "local": [facts["local_host"], facts["ports"][1]],
        "headers": pairs["headers"],
        "env": dict(pairs["env"]),
        "tls": tls if tls["version"] is not None else None,
    }


@vectors("to_producer")
def test_streams_however_they_are_cut(reader: Reader, vector: dict[str, Any]) -> None:
    """The program splits the stream at every position."""
    hello = VECTORS["open"] if vector["open"] else ""
    limit = vector.get("max_message", MAX_MESSAGE)
    items = reader.ask(f"read {limit} {hello}{vector['hex']}")
    if vector["open"]:
        assert "open" in items.pop(0)
    assert list(map(as_item, items)) == vector["items"]


def as_item(item: dict[str, Any]) -> dict[str, Any]:
    (kind, value), *_ = item.items()
    if kind == "text":
        return {kind: bytes.fromhex(value).decode()}
    if kind == "close":
        return {kind: [value[0], bytes.fromhex(value[1]).decode()]}
    return item


def read_in_python(data: bytes, limit: int) -> list[dict[str, Any]]:
    """Return the Python library's items, in the form of the vectors."""
    items: list[dict[str, Any]] = []
    for item in MessageReader(limit).receive(data):
        match item:
            case str():
                items.append({"text": item})
            case bytes():
                items.append({"binary": item.hex()})
            case wire.Close(code, reason):
                # A C string ends at U+0000.
                items.append({"close": [code, reason.partition("\0")[0]]})
            case Pong(payload):
                items.append({"pong": payload.hex()})
            case Moved():
                items.append({"move": True})
            case wire.Publish(group):
                items.append({"publish": group})
            case wire.Violation(code):
                items.append({"error": code})
            case wire.Open():
                items.append({"open": True})
            case Offered(key):
                items.append({"offer": key})
            case BridgeChanged(bridge):
                # A C string cannot have a U+0000: the frame is ignored.
                items += [] if "\0" in bridge else [{"bridge": bridge}]
    return items


FRAMES = st.builds(
    lambda first, payload: wire.encode_header(first, len(payload)) + payload,
    st.one_of(
        st.sampled_from([0x81, 0x82, 0x01, 0x02, 0x00, 0x80, 0x8A]),
        st.sampled_from([0x85, 0x88, 0x87, 0x89, 0x84, 0x86, 0x83, 0x8F, 0x0A, 0xC1]),
    ),
    st.one_of(
        st.binary(max_size=30),
        st.text(max_size=10).map(str.encode),
        st.sampled_from([b"\x04\0\0\0\x05", b"\x04\0\0\0", b"\x05b1", b"\x05\xff", b"\x05"]),
        st.sampled_from([b"", b"\x03\xe8bye", b"x" * 126, b"\xe2\x82", b"\xac", b"x" * 200]),
    ),
)


@given(
    frames=st.lists(FRAMES, max_size=12),
    cut=st.integers(0, 60),
    noise=st.binary(max_size=4),
    limit=st.sampled_from([100, 1000]),
    seed=st.integers(0, 2**31 - 1),
)
@settings(max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_reads_what_python_reads(
    reader: Reader, frames: list[bytes], cut: int, noise: bytes, limit: int, seed: int
) -> None:
    stream = b"".join(frames)
    stream = stream[: len(stream) - cut] + noise
    items = reader.ask(f"once {limit} {seed} {(OPEN + stream).hex()}")
    assert "open" in items[0]
    items[0] = {"open": True}
    assert list(map(as_item, items)) == read_in_python(OPEN + stream, limit)
