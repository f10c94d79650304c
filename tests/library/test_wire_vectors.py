"""docs/reference/wire-vectors.json, against both ends of the wire in Python.

The libraries for PHP and C are held against the same file by suites of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pytest

from apachews import wire
from apachews.exceptions import WireError
from apachews.wire import channel
from apachews.wire.answer import Answer
from apachews.wire.reader import DEFAULT_MAX_MESSAGE_BYTES, MessageReader, Moved, Pong
from apachews_handler.protocol.producer_reader import Move, ProducerReader

from ..support.site import ROOT

VECTORS: dict[str, Any] = json.loads(
    (ROOT / "docs" / "reference" / "wire-vectors.json").read_text()
)
Vector = dict[str, Any]
# Streams that are longer are cut at fewer places.
MAX_CUTS = 400


def each(kind: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("vector", VECTORS[kind], ids=lambda vector: vector["name"])


def cuts(data: bytes) -> Iterator[list[bytes]]:
    """Yield the bytes whole, one by one, and cut in two at every place."""
    yield [data]
    yield [data[index : index + 1] for index in range(len(data))]
    for place in range(1, len(data), max(1, len(data) // MAX_CUTS)):
        yield [data[:place], data[place:]]


def test_names_are_unique() -> None:
    for kind, vectors in VECTORS.items():
        if isinstance(vectors, list):
            names = [vector["name"] for vector in vectors]
            assert len(set(names)) == len(names) > 0, kind


@each("frames")
def test_frames(vector: Vector) -> None:
    payload = bytes.fromhex(vector["payload"])
    frame = wire.encode_frame(vector["opcode"], payload, vector["fin"])
    assert frame.hex() == vector["hex"]
    first = vector["opcode"] | (wire.FIN if vector["fin"] else 0)
    assert wire.decode_header(frame, 0) == (first, len(payload), len(frame) - len(payload))


@each("headers")
def test_headers(vector: Vector) -> None:
    header = bytes.fromhex(vector["hex"])
    assert wire.encode_header(vector["first"], vector["length"]) == header
    assert wire.decode_header(header, 0) == (vector["first"], vector["length"], len(header))
    assert wire.decode_header(header[:-1], 0) is None


@each("closes")
def test_closes(vector: Vector) -> None:
    payload = bytes.fromhex(vector["payload"])
    if "error" in vector:
        with pytest.raises(WireError) as caught:
            wire.decode_close(payload)
        assert caught.value.code == vector["error"]
    else:
        assert wire.decode_close(payload) == wire.Close(vector["code"], vector["reason"])
        assert wire.encode_close(vector["code"], vector["reason"]) == payload


@each("opens")
def test_opens(vector: Vector) -> None:
    frame = bytes.fromhex(vector["hex"])
    _, length, start = wire.decode_header(frame, 0) or (0, 0, 0)
    assert start + length == len(frame)
    if "error" in vector:
        with pytest.raises(WireError) as caught:
            wire.Open.decode(frame[start:])
        assert caught.value.code == vector["error"]
        return
    open_ = wire.Open.decode(frame[start:])
    expected = {**vector["request"], "bridge": vector.get("bridge")}
    assert json.loads(json.dumps(asdict(open_))) == expected
    encoded = open_.encode()
    _, _, start = wire.decode_header(encoded, 0) or (0, 0, 0)
    assert wire.Open.decode(encoded[start:]) == open_


@each("answers")
def test_answers(vector: Vector) -> None:
    frame = bytes.fromhex(vector["hex"])
    _, _, start = wire.decode_header(frame, 0) or (0, 0, 0)
    assert json.loads(frame[start:]) == vector["answer"]
    answer = Answer.decode(frame[start:])
    encoded = answer.encode()
    _, _, start = wire.decode_header(encoded, 0) or (0, 0, 0)
    assert json.loads(encoded[start:]) == vector["answer"]


def described(item: object) -> Vector:
    """Return an item of a reader's as the vectors have it."""
    match item:
        case str():
            return {"text": item}
        case bytes():
            return {"binary": item.hex()}
        case wire.Close(code, reason):
            return {"close": [code, reason]}
        case Pong(payload):
            return {"pong": payload.hex()}
        case Moved():
            return {"move": True}
        case wire.Publish(group):
            return {"publish": group}
        case wire.Violation(code=code):
            return {"error": code}
    raise AssertionError(item)


@each("to_producer")
def test_to_producer(vector: Vector) -> None:
    begin = bytes.fromhex(VECTORS["open"]) if vector["open"] else b""
    for pieces in cuts(bytes.fromhex(vector["hex"])):
        reader = MessageReader(vector.get("max_message", DEFAULT_MAX_MESSAGE_BYTES))
        opened = reader.receive(begin)
        assert [type(item) for item in opened] == [wire.Open] * vector["open"]
        items = [described(item) for piece in pieces for item in reader.receive(piece)]
        assert items == vector["items"], pieces


@each("to_bridge")
def test_to_bridge(vector: Vector) -> None:
    for pieces in cuts(bytes.fromhex(vector["hex"])):
        reader = ProducerReader()
        events = [event for piece in pieces for event in reader.receive(piece)]
        ends = [event for event in events if event != Move()]
        assert b"".join(reader.out).hex() == vector["client"], pieces
        assert [described(end) for end in ends] == ([vector["end"]] if vector["end"] else [])
        assert reader.ignored == vector["ignored"]


@each("lanes")
def test_lanes(vector: Vector) -> None:
    lane, expected = vector["lane"], bytes.fromhex(vector["hex"])
    assert encoded_lane(lane) == expected
    kind = lane["kind"]
    if kind < channel.READY:
        return
    for pieces in cuts(expected):
        reader = channel.ChannelReader()
        (item,) = [item for piece in pieces for item in reader.receive(piece)]
        if isinstance(item, channel.Numbers):
            found = (item.kind, item.group, item.numbers)
            assert found == (kind, lane.get("group", 0), tuple(lane["numbers"]))
        elif isinstance(item, channel.Multicast):
            assert (item.group, list(item.excluded)) == (lane["group"], lane["excluded"])
            assert item.frame.hex() == lane["frame"]
        else:
            assert isinstance(item, channel.Unicast)
            assert (item.number, item.frame.hex()) == (lane["number"], lane["frame"])


def encoded_lane(lane: dict[str, Any]) -> bytes:
    match lane["kind"]:
        case channel.JOIN:
            return channel.encode_join(lane["key"], lane["number"])
        case channel.OFFER:
            return channel.encode_lane(channel.OFFER, lane["key"])
        case channel.BRIDGE:
            return channel.encode_bridge(lane["bridge"])
        case channel.MULTICAST:
            frame = bytes.fromhex(lane["frame"])
            return channel.encode_multicast(lane["group"], lane["excluded"], frame)
        case channel.UNICAST:
            return channel.encode_unicast(lane["number"], bytes.fromhex(lane["frame"]))
        case kind if "numbers" in lane:
            return channel.encode_numbers(kind, lane["numbers"], lane.get("group"))
        case kind:
            return channel.encode_lane(kind)
