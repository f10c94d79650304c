"""Writes the corpora: the inputs that the fuzzers start with and the tests run.

``python -m tests.fuzz.make_corpus`` writes ``corpus/<target>.zip``; inputs under other names
(those that once found a defect) stay.  The archives are in the repository because the output
of zlib differs between its versions.

Contract: one function per target returns its inputs by name; ``targets.py`` says what their
first bytes mean.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable
from typing import Any, Final

from wsproto.utilities import generate_accept_token

from apachews import wire
from apachews.wire import channel as lanes
from apachews.wire.answer import Answer

from ..support.frames import masked
from . import corpus, targets

Inputs = dict[str, bytes]

# The window of the client 8 + (bits 1-3), the server's 9 + (bits 5-7).
PLAIN: Final = 0x00
DEFLATE: Final = 0x01 | 7 << 1 | 0x10 | 6 << 5
DEFLATE_NO_CONTEXT: Final = 0x01 | 7 << 1 | 6 << 5
DEFLATE_SMALL: Final = 0x01 | 1 << 1 | 0x10
ZEROS: Final = bytes(4)
# What comes again refers further back than the smallest window reaches.
FAR: Final = random.Random(1).randbytes(600)

TEXT, BINARY, CONT, COMPRESSED = 0x81, 0x82, 0x80, 0xC1
TEXT_BEGIN, BINARY_BEGIN, CONT_BEGIN = 0x01, 0x02, 0x00
CLOSE, PING, PONG = 0x88, 0x89, 0x8A


def compress(*payloads: bytes, bits: int = 15) -> list[bytes]:
    """Return the payloads as one client compresses them, one after the other."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -bits)
    return [
        (stream.compress(payload) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4] for payload in payloads
    ]


def client_streams() -> Inputs:
    """Return what a client may send without compression, and what it may not."""
    inputs = {
        "text": masked(TEXT, b"hi"),
        "text-mask-of-zeros": masked(TEXT, b"hi", ZEROS),
        "text-empty": masked(TEXT),
        "text-utf8": masked(TEXT, "é€𝄞\U0010ffff".encode()),
        "text-of-126": masked(TEXT, b"x" * 126, ZEROS),
        "binary": masked(BINARY, b"\x00\xff"),
        "binary-empty": masked(BINARY),
        "two-texts": masked(TEXT, b"a") + masked(TEXT, b"b"),
        "fragments": masked(TEXT_BEGIN, b"\xc3")
        + masked(PING, b"p")
        + masked(CONT_BEGIN)
        + masked(PONG, b"q")
        + masked(CONT, b"\xa9"),
        "fragments-of-binary": masked(BINARY_BEGIN, b"\xff") + masked(CONT, b"\xfe"),
        "fragments-empty": masked(BINARY_BEGIN) + masked(CONT_BEGIN) + masked(CONT),
        "ping-of-125": masked(PING, b"p" * 125),
        "ping-empty": masked(PING),
        "pong": masked(PONG, b"x"),
        "pong-of-the-keep-alive": masked(PONG, b"apachews keep-alive", ZEROS),
        "close": masked(CLOSE, b"\x03\xe8bye"),
        "close-empty": masked(CLOSE),
        "close-4999": masked(CLOSE, b"\x13\x87", ZEROS),
        "close-1014": masked(CLOSE, b"\x03\xf6", ZEROS),
        "close-then-text": masked(CLOSE) + masked(TEXT, b"late"),
        "close-1005": masked(CLOSE, b"\x03\xed", ZEROS),
        "close-of-one-byte": masked(CLOSE, b"\x03"),
        "close-reason-no-utf8": masked(CLOSE, b"\x03\xe8\xff"),
        "long-frame-begins": b"\x82\xff" + (65536).to_bytes(8, "big") + ZEROS + b"x" * 20,
        "frame-of-half": masked(BINARY, b"x" * 100, ZEROS)[:50],
        "header-of-half": masked(TEXT, b"a") + b"\x82\xfe\x01",
        "bad-unmasked": b"\x81\x02hi",
        "bad-unmasked-length": b"\x81\x7e\x01",
        "bad-rsv1": masked(0xC1, b"a"),
        "bad-rsv2": masked(0xA1, b"a"),
        "bad-rsv3": masked(0x91, b"a"),
        "bad-opcode-3": masked(0x83),
        "bad-opcode-b": masked(0x8B),
        "bad-ping-fragmented": masked(0x09, b"x"),
        "bad-ping-of-126": masked(PING, b"x" * 126, ZEROS),
        "bad-continuation": masked(CONT, b"x"),
        "bad-text-in-text": masked(TEXT_BEGIN, b"a") + masked(TEXT, b"b"),
        "bad-length-16": b"\x82\xfe\x00\x7d" + ZEROS,
        "bad-length-64": b"\x82\xff" + (65535).to_bytes(8, "big") + ZEROS,
        "bad-length-over-63-bits": b"\x82\xff" + (2**63).to_bytes(8, "big") + ZEROS,
        "bad-utf8": masked(TEXT, b"\xff"),
        "bad-utf8-cut-off": masked(TEXT, b"ab\xc3"),
        "bad-utf8-across-fragments": masked(TEXT_BEGIN, b"\xc3") + masked(CONT, b"a"),
        "bad-utf8-surrogate": masked(TEXT, b"\xed\xa0\x80", ZEROS),
        "bad-utf8-too-large": masked(TEXT, b"\xf4\x90\x80\x80", ZEROS),
    }
    return inputs


def client_reader() -> Inputs:
    """Settings: agreement, limit, buffer, frames allowed, sizes."""
    inputs = {}
    for name, stream in client_streams().items():
        inputs[name] = bytes((PLAIN, 3, 0, 0, 0)) + stream
    deflated = {}
    one, two, three = compress(b"hello hello hello", b"hello again", b"")
    deflated["deflate"] = masked(COMPRESSED, one, ZEROS)
    deflated["deflate-context"] = masked(COMPRESSED, one, ZEROS) + masked(COMPRESSED, two)
    deflated["deflate-empty"] = masked(COMPRESSED, three, ZEROS)
    deflated["deflate-not-this-one"] = masked(TEXT, b"a") + masked(COMPRESSED, one) + masked(TEXT)
    deflated["deflate-fragments"] = (
        masked(0x41, one[:4], ZEROS)
        + masked(PING, b"p")
        + masked(CONT_BEGIN, one[4:7], ZEROS)
        + masked(CONT_BEGIN)
        + masked(CONT, one[7:], ZEROS)
    )
    deflated["deflate-binary"] = masked(0xC2, compress(bytes(range(40)))[0], ZEROS)
    # RFC 7692 7.2.3.4 and 7.2.3.5: a block with BFINAL; two blocks.
    deflated["deflate-final-block"] = masked(
        COMPRESSED, bytes.fromhex("f348cdc9c9070000"), ZEROS
    ) + masked(COMPRESSED, bytes.fromhex("f348cdc9c9070000"))
    deflated["deflate-two-blocks"] = masked(
        COMPRESSED, bytes.fromhex("f248050000 00ffffcac9c90700"), ZEROS
    )
    deflated["deflate-no-compression"] = masked(
        COMPRESSED, bytes.fromhex("000500faff48656c6c6f00"), ZEROS
    )
    deflated["deflate-many-final-blocks"] = masked(
        COMPRESSED, bytes.fromhex("0300") * 17 + b"\0", ZEROS
    )
    deflated["deflate-only-final-block"] = masked(COMPRESSED, bytes.fromhex("0300"), ZEROS) * 2
    deflated["deflate-bomb"] = masked(COMPRESSED, compress(b"x" * 2500)[0], ZEROS)
    deflated["deflate-bomb-too-big"] = masked(COMPRESSED, compress(b"x" * 100_000)[0], ZEROS)
    deflated["deflate-bomb-then-more"] = (
        masked(COMPRESSED, compress(b"x" * 500)[0], ZEROS)
        + masked(PING, b"p")
        + masked(TEXT, b"after")
        + masked(CLOSE, b"\x03\xe8")
    )
    deflated["deflate-bad-utf8"] = masked(COMPRESSED, compress(b"abc\xff")[0], ZEROS)
    deflated["deflate-bad"] = masked(COMPRESSED, b"\xff\xff\xff", ZEROS)
    deflated["deflate-bad-rsv1-continuation"] = masked(0x41, one[:4]) + masked(0xC0, one[4:])
    deflated["deflate-bad-rsv1-ping"] = masked(0xC9, b"x")
    # The last block is final and empty, and its tail was removed; a final block alone.
    deflated["deflate-final-tail"] = (
        masked(COMPRESSED, bytes.fromhex("000500faff48656c6c6f01"), ZEROS) * 2
    )
    deflated["deflate-final-block-unpadded"] = (
        masked(COMPRESSED, bytes.fromhex("f348cdc9c90700"), ZEROS) * 2
    )
    deflated["deflate-message-cut-off"] = masked(COMPRESSED, one[:-3], ZEROS) * 2
    # The first of two streams ends where the buffer is full.
    final = zlib.compressobj(9, zlib.DEFLATED, -15)
    deflated["deflate-bomb-after-final-block"] = masked(
        COMPRESSED, final.compress(b"x" * 64) + final.flush() + compress(b"x" * 900)[0], ZEROS
    )
    deflated["deflate-nothing-at-all"] = masked(COMPRESSED) + masked(COMPRESSED, one, ZEROS)
    deflated["deflate-cut-off"] = masked(COMPRESSED, one, ZEROS)[:-5]
    deflated["deflate-far-back"] = masked(0xC2, compress(FAR + FAR[:200])[0], ZEROS)
    for name, stream in deflated.items():
        inputs[name] = bytes((DEFLATE, 3, 1, 0, 0)) + stream
    context = deflated["deflate-context"]
    inputs["deflate-without-context"] = bytes((DEFLATE_NO_CONTEXT, 3, 1, 0, 0)) + context
    far_back = deflated["deflate-far-back"]
    inputs["deflate-small-window"] = bytes((DEFLATE_SMALL, 3, 3, 0, 2, 100, 30)) + far_back
    inputs["deflate-without-limit"] = (
        bytes((DEFLATE, 4, 0, 0, 0)) + deflated["deflate-bomb-too-big"]
    )
    whole = client_streams()
    inputs["cut"] = bytes((PLAIN, 3, 0, 0, 3, 1, 2, 5)) + whole["fragments"]
    inputs["bad-too-big"] = bytes((PLAIN, 0, 0, 0, 0)) + masked(BINARY, b"x" * 11)
    inputs["bad-too-big-text"] = bytes((PLAIN, 0, 0, 0, 0)) + masked(TEXT, b"x" * 11)
    inputs["bad-too-big-in-fragments"] = (
        bytes((PLAIN, 0, 0, 0, 0)) + masked(BINARY_BEGIN, b"x" * 10) + masked(CONT, b"x")
    )
    inputs["bad-too-many"] = bytes((PLAIN, 3, 0, 2, 0)) + masked(TEXT) + masked(PING) + masked(TEXT)
    inputs["bad-too-many-and-utf8"] = (
        bytes((PLAIN, 3, 0, 1, 0)) + masked(TEXT) + masked(TEXT, b"\xff")
    )
    return inputs


def client_reader_vs_wsproto() -> Inputs:
    """Settings: sizes."""
    inputs = {name: b"\0" + stream for name, stream in client_streams().items()}
    inputs["cut"] = b"\3\1\2\5" + client_streams()["fragments"]
    return inputs


def producer_streams() -> Inputs:
    """Return what a producer may send, and what it may not."""
    frame = wire.encode_frame
    return {
        "text": frame(wire.TEXT, b"hi"),
        "texts": frame(wire.TEXT, b"hello") * 5,
        "empty": frame(wire.TEXT, b"") + frame(wire.BINARY, b""),
        "binary-of-300": frame(wire.BINARY, b"x" * 300),
        "binary-far-back": frame(wire.BINARY, FAR + FAR[:200]),
        "ping-pong": frame(wire.PING, b"p") + frame(wire.PONG, b""),
        "fragments": frame(wire.TEXT, b"a" * 30, fin=False)
        + frame(wire.PING, b"between")
        + frame(wire.CONTINUATION, b"", fin=False)
        + frame(wire.CONTINUATION, b"b" * 30),
        "fragments-empty": frame(wire.TEXT, b"", fin=False) + frame(wire.CONTINUATION, b""),
        "fragments-open": frame(wire.BINARY, b"a" * 40, fin=False)
        + frame(wire.CONTINUATION, b"c" * 9, fin=False),
        "frame-of-half": frame(wire.TEXT, b"a" * 100)[:40],
        "header-of-half": frame(wire.TEXT, b"a") + b"\x82\x7e\x01",
        "reserved": frame(wire.TEXT, b"a")
        + frame(0x6, b"x" * 20)
        + frame(0xF, b"")
        + frame(wire.TEXT, b"b"),
        "reserved-in-message": frame(wire.TEXT, b"a", fin=False)
        + frame(0x7, b"x" * 200)
        + frame(wire.CONTINUATION, b"b"),
        "move": frame(wire.TEXT, b"a") + frame(wire.MOVE, b"") + frame(wire.TEXT, b"b"),
        "bad-move-in-message": frame(wire.TEXT, b"a", fin=False) + frame(wire.MOVE, b""),
        "close": frame(wire.TEXT, b"a") + frame(wire.CLOSE, b"\x0b\xb8why"),
        "close-empty": frame(wire.CLOSE, b"") + frame(wire.TEXT, b"late"),
        "close-in-message": frame(wire.TEXT, b"a", fin=False) + frame(wire.CLOSE, b"\x03\xe8"),
        "bad-close-code": frame(wire.CLOSE, b"\x03\xed"),
        "bad-close-of-one-byte": frame(wire.CLOSE, b"\x03"),
        "bad-close-reason": frame(wire.CLOSE, b"\x03\xe8\xff"),
        "bad-rsv": frame(wire.TEXT, b"a") + b"\xc1\x01a",
        "bad-masked": b"\x81\x81aaaaa",
        "bad-continuation": frame(wire.CONTINUATION, b"a"),
        "bad-text-in-text": frame(wire.TEXT, b"a", fin=False) + frame(wire.BINARY, b"b"),
        "bad-ping-fragmented": frame(wire.PING, b"", fin=False),
        "bad-ping-of-126": frame(wire.PING, b"x" * 126),
        "bad-reserved-fragmented": frame(0x4, b"", fin=False),
        "bad-length": b"\x82\x7e\x00\x7d" + b"x" * 125,
        "bad-length-over-63-bits": b"\x82\x7f" + (2**63).to_bytes(8, "big"),
        "lanes": frame(wire.TEXT, b"a")
        + lanes.encode_lane(lanes.ASK)
        + lanes.encode_join(5, 17)
        + frame(wire.BINARY, b"b")
        + lanes.encode_lane(lanes.OWN)
        + lanes.encode_lane(lanes.OFFER, 5)
        + lanes.encode_bridge("b1")
        + frame(wire.LANE, b"")
        + frame(wire.LANE, b"\x02" * 8)
        + frame(wire.LANE, b"\x05\xff")
        + frame(wire.TEXT, b"c"),
        "lane-in-a-message": frame(wire.TEXT, b"a", fin=False)
        + lanes.encode_lane(lanes.ASK)
        + frame(wire.CONTINUATION, b"b"),
        "lane-begins": frame(wire.TEXT, b"a") + lanes.encode_join(5, 17)[:6],
        "long-frame-begins": b"\x82\x7f" + (2**20).to_bytes(8, "big") + b"x" * 30,
    }


def producer_reader() -> Inputs:
    """Settings: agreement, shortest message to compress, level, turns."""
    inputs = {}
    turns = bytes((4, 4, targets.INSERT_PING | 6, 2, targets.INSERT_BOTH | 9))
    for name, stream in producer_streams().items():
        inputs[name] = bytes((PLAIN, 0, 0)) + turns + stream
        if not name.startswith("bad-"):
            inputs[f"deflate-{name}"] = bytes((DEFLATE, 0, 0)) + turns + stream
    texts, fragments = (producer_streams()[name] for name in ("texts", "fragments"))
    last = bytes((2, 7, targets.INSERT_LAST | 3))
    inputs["last"] = bytes((PLAIN, 0, 0)) + last + texts
    inputs["last-deflate"] = bytes((DEFLATE, 0, 8)) + last + fragments
    inputs["last-without-context"] = bytes((DEFLATE_NO_CONTEXT, 2, 3)) + last + texts
    inputs["small-window"] = bytes((DEFLATE_SMALL, 2, 5, 0)) + producer_streams()["binary-far-back"]
    inputs["whole"] = bytes((DEFLATE, 1, 5, 0)) + texts + fragments
    inputs["short-ones-pass"] = bytes((DEFLATE, 2, 5, 0)) + texts + fragments + texts
    return inputs


def messages() -> Inputs:
    """Settings: limit and whether an OPEN comes first, sizes."""
    frame = wire.encode_frame
    streams = producer_streams()
    inputs = {name: b"\x82\0" + stream for name, stream in streams.items()}
    inputs["cut"] = b"\x82\3\1\2\5" + streams["fragments"]
    inputs["open"] = b"\2\0" + targets.HELLO + frame(wire.TEXT, b"a")
    inputs["open-twice"] = b"\x82\0" + targets.HELLO
    inputs["open-before-all-that-is-ignored"] = b"\2\0" + frame(wire.PING, b"") + targets.HELLO
    inputs["open-missing"] = b"\2\0" + frame(wire.TEXT, b"a")
    inputs["open-bad"] = b"\2\0" + frame(wire.OPEN, b"{}")
    inputs["open-too-long"] = b"\2\0\x83\x7f" + (wire.MAX_OPEN_BYTES + 1).to_bytes(8, "big")
    inputs["each-as-big-as-allowed"] = b"\x80\3\4\5\6" + frame(wire.BINARY, b"x" * 10) * 3
    inputs["bad-utf8"] = b"\x82\0" + frame(wire.TEXT, b"\xff")
    inputs["bad-utf8-across-fragments"] = (
        b"\x82\0" + frame(wire.TEXT, b"\xc3", fin=False) + frame(wire.CONTINUATION, b"a")
    )
    inputs["bad-too-big"] = b"\x80\0" + frame(wire.TEXT, b"x" * 11)
    inputs["bad-too-big-in-fragments"] = (
        b"\x80\0" + frame(wire.BINARY, b"x" * 10, fin=False) + frame(wire.CONTINUATION, b"x")
    )
    return inputs


def documents() -> Inputs:
    """Settings: which document."""
    full = wire.Open(
        id="f4c3a1de",
        uri="/chat.ws?room=1",
        resumed=True,
        headers=(("host", "example.org"), ("x", "é")),
        remote=("203.0.113.7", 51514),
        local=("192.0.2.1", 443),
        scheme="wss",
        tls=wire.TLS("TLSv1.3", "TLS_AES_256_GCM_SHA384", "example.org", "CN=ann"),
        user="ann",
        vhost="example.org",
        offered=("chat", "superchat"),
        subprotocol="chat",
        env={"SSL_CLIENT_S_DN": "CN=ann"},
        answer_required=True,
    )
    document: dict[str, Any] = json.loads(targets.HELLO[wire.decode_header(targets.HELLO, 0)[2] :])  # type: ignore[index]
    yes, no = Answer.accept("chat", [("X-A", "b c")]), Answer.reject(403, [("X", "é")], "no é")
    inputs = {
        "open": b"\0" + json.dumps(document).encode(),
        "open-full": b"\0" + full.encode()[4:],
        "open-version-2": b"\0" + json.dumps({**document, "version": 2}).encode(),
        "open-more-members": b"\0" + json.dumps({**document, "more": [1, {}]}).encode(),
        "open-headers-no-pairs": b"\0"
        + json.dumps({**document, "request": {**document["request"], "headers": [["a"]]}}).encode(),
        "open-port-no-number": b"\0" + json.dumps({**document, "remote": ["a", "b"]}).encode(),
        "open-no-object": b"\0[1]",
        "open-no-json": b"\0{",
        "open-deep": b"\0" + b"[" * 20_000,
        "open-env-list": b"\0" + json.dumps({**document, "env": []}).encode(),
        "answer-yes": b"\1" + yes.encode()[2:],
        "answer-no": b"\1" + no.encode()[2:],
        "answer-bare-yes": b'\1{"accept":true,"headers":[]}',
        "answer-bare-no": b'\1{"accept":false,"headers":[],"status":302}',
        "answer-status-200": b'\1{"accept":false,"headers":[],"status":200}',
        "answer-status-float": b'\1{"accept":false,"headers":[],"status":403.0}',
        "answer-status-huge": b'\1{"accept":false,"headers":[],"status":' + b"9" * 5000 + b"}",
        "answer-maybe": b'\1{"accept":1,"headers":[]}',
        "answer-injects": b'\1{"accept":true,"headers":[["X","a\\r\\nY: b"]]}',
        "answer-injects-name": b'\1{"accept":true,"headers":[["X: a\\r\\nY","b"]]}',
        "answer-header-of-ours": b'\1{"accept":true,"headers":[["Sec-WebSocket-Accept","b"]]}',
        "answer-subprotocol-no-token": b'\1{"accept":true,"headers":[],"subprotocol":"a b"}',
        "answer-surrogate": b'\1{"accept":false,"headers":[],"status":403,"body":"\\ud800"}',
        "answer-deep": b"\1" + b"[" * 20_000,
        "answer-list": b"\1[]",
        "answer-nan": b'\1{"accept":NaN,"headers":[]}',
    }
    return inputs


def session() -> Inputs:
    """Settings: agreement, limit, buffer and rate, shortest message to compress."""

    def step(what: int, data: bytes = b"", how: int = 0) -> bytes:
        if what not in (targets.CLIENT, targets.PRODUCER):
            return bytes((what | how << 3,))
        out = b""
        while data:
            out += bytes((what, len(data[:255]))) + data[:255]
            data = data[255:]
        return out

    def client(data: bytes) -> bytes:
        return step(targets.CLIENT, data)

    def producer(data: bytes) -> bytes:
        return step(targets.PRODUCER, data)

    text = wire.encode_frame(wire.TEXT, b"hi")
    long = wire.encode_frame(wire.BINARY, b"x" * 50)
    close = wire.encode_frame(wire.CLOSE, b"\x0b\xb8why")
    move = wire.encode_frame(wire.MOVE, b"")
    next_producer = bytes((targets.PRODUCER,))  # where there is none
    eofs = step(targets.CLIENT_EOF), step(targets.PRODUCER_EOF)
    end, ping = step(targets.END), step(targets.PING)
    bomb = masked(COMPRESSED, compress(b"x" * 900)[0], ZEROS)
    steps = {
        "both-ways": client(masked(TEXT, b"a")) + producer(text),
        "ping": client(masked(PING, b"p")) + ping + client(masked(PONG, b"apachews keep-alive")),
        "ping-while-congested": step(targets.CONGESTED, how=1)
        + client(masked(PING, b"a") + masked(PING, b"b"))
        + step(targets.CONGESTED),
        "ping-inside-frame": producer(long[:9])
        + ping
        + client(masked(PING, b"p"))
        + producer(long[9:]),
        "client-closes": client(masked(TEXT, b"a") + masked(CLOSE, b"\x0f\xa0bye"))
        + producer(text),
        "client-closes-inside-frame": producer(long[:9])
        + client(masked(CLOSE))
        + producer(long[9:] + text),
        "client-violates": client(masked(TEXT, b"\xff")) + eofs[1] + eofs[0],
        "client-violates-inside-frame": producer(long[:9]) + client(b"\x81\0") + producer(long[9:]),
        "client-leaves": producer(text) + eofs[0] + producer(text) + eofs[1],
        "producer-closes": producer(text + close + text)
        + client(masked(TEXT, b"crossing") + masked(CLOSE, b"\x0b\xb8")),
        "producer-leaves": producer(text) + eofs[1] + client(masked(CLOSE, b"\x03\xf4")),
        "producer-leaves-inside-frame": producer(long[:9]) + eofs[1] + client(masked(TEXT, b"a")),
        "producer-violates": producer(text + b"\xc1\0") + client(masked(CLOSE, b"\x03\xf3")),
        "producer-violates-while-closing": end + producer(b"\xc1\0") + eofs[1] + eofs[0],
        "bridge-closes": end + client(masked(TEXT, b"late") + masked(CLOSE, b"\x03\xe9")),
        "bridge-closes-inside-frame": producer(long[:9]) + end + ping + producer(long[9:]),
        "bridge-closes-and-producer-leaves": producer(long[:9]) + end + eofs[1] + eofs[0],
        "bridge-fails": producer(long[:9]) + step(targets.END, how=targets.FAIL) + producer(text),
        "reserved": producer(wire.encode_frame(0x6, b"x" * 9)[:4]) + ping + end,
        "held-and-resumed": client(masked(TEXT, b"a") + masked(TEXT_BEGIN, b"half"))
        + producer(text + text[:2])
        + eofs[1]
        + client(masked(CONT, b"lost") + masked(TEXT, b"waits") + masked(PING, b"p"))
        + next_producer
        + producer(text)
        + client(masked(TEXT, b"b")),
        "held-in-vain": eofs[1] + client(masked(TEXT, b"waits")) + eofs[1] + eofs[0],
        "held-and-left": eofs[1]
        + client(masked(TEXT, b"waits") + masked(CLOSE, b"\x03\xe8"))
        + next_producer,
        "moved": client(masked(TEXT_BEGIN, b"a"))
        + producer(move)
        + client(masked(CONT, b"b") + masked(TEXT, b"for the next"))
        + producer(text)
        + eofs[1]
        + next_producer
        + producer(move + close)
        + client(masked(CLOSE, b"\x0b\xb8")),
    }
    inputs = {name: bytes((PLAIN, 2, 0, 0)) + data for name, data in steps.items()}
    for name in ("both-ways", "bridge-closes-inside-frame", "producer-leaves-inside-frame"):
        inputs[f"deflate-{name}"] = bytes((DEFLATE, 2, 0, 0)) + steps[name]
    resume = step(targets.RESUME) * 3
    inputs["deflate-pause"] = bytes((DEFLATE, 2, 0, 0)) + client(bomb) + resume + end + resume
    inputs["deflate-pause-more"] = (
        bytes((DEFLATE, 2, 0, 0)) + client(bomb) + client(masked(CLOSE)) + eofs[1] + resume
    )
    inputs["deflate-too-big"] = bytes((DEFLATE, 0, 0, 0)) + client(bomb)
    inputs["too-many"] = (
        bytes((PLAIN, 2, 0x80, 0))
        + client(masked(TEXT) * 3)
        + step(targets.RESUME, how=2)
        + client(masked(PING) * 3)
    )
    return inputs


def settings() -> Inputs:
    """One for each setting, and values that are refused."""
    lines = {
        "defaults": "",
        "max-message": "MAX_MESSAGE 64k",
        "max-buffer": "MAX_BUFFER 16M",
        "message-rate": "MESSAGE_RATE 50/s",
        "message-rate-off": "MESSAGE_RATE off",
        "max-connections": "MAX_CONNECTIONS 1048576\nMAX_CONNECTIONS_PER_ADDRESS off",
        "max-connections-per-endpoint": "MAX_CONNECTIONS_PER_ENDPOINT 1",
        "ping": "PING_INTERVAL 20s\nPING_TIMEOUT off",
        "timeouts": "IDLE_TIMEOUT 1.5s\nSEND_TIMEOUT 250ms\nCONNECT_TIMEOUT 1ms",
        "close-timeout": "CLOSE_TIMEOUT 999999999s",
        "origins": "ORIGINS https://A.example:443 http://[::1]:8080",
        "origins-all": "ORIGINS *",
        "require-origin": "REQUIRE_ORIGIN on\nFORWARDED X-Forwarded",
        "subprotocols": "SUBPROTOCOLS chat, superchat",
        "accept": "ACCEPT producer\nPASS_ENV SSL_CLIENT_S_DN HTTPS",
        "deflate": "DEFLATE off\nDEFLATE_MIN_SIZE 0\nDEFLATE_LEVEL 9\nDEFLATE_WINDOW_BITS 15",
        "context-takeover": "DEFLATE_CONTEXT_TAKEOVER OFF",
        "root": "ROOT /srv/ws",
        "bad-name": "MAX_MESAGE 1M",
        "bad-size": "MAX_MESSAGE 1G",
        "bad-size-zero": "MAX_MESSAGE 0",
        "bad-size-digits": "MAX_MESSAGE ٣",
        "bad-size-kelvin": "MAX_MESSAGE 1\N{KELVIN SIGN}",
        "bad-buffer": "MAX_BUFFER 4095",
        "bad-count": "MAX_CONNECTIONS 0",
        "bad-rate": "MESSAGE_RATE 0/s",
        "bad-word": "ACCEPT me",
        "bad-time": "CLOSE_TIMEOUT 1m",
        "bad-time-too-short": "CLOSE_TIMEOUT 0.0001ms",
        "bad-origin": "ORIGINS https://example.org/",
        "bad-origin-port": "ORIGINS https://example.org:99999",
        "bad-origin-brackets": "ORIGINS http://[::1",
        "bad-number": "DEFLATE_LEVEL 10",
        "bad-subprotocols": "SUBPROTOCOLS a a",
        "bad-variable": "PASS_ENV 1A",
        "bad-root": "ROOT ws\0",
    }
    return {name: text.encode() for name, text in lines.items()}


def upgrade() -> Inputs:
    """Settings: origin, subprotocols, compression."""
    everything = 1 | 2 | 6 << 2
    deflate = "Sec-WebSocket-Extensions: permessage-deflate"
    requests: dict[str, tuple[int, int, int, str]] = {
        "good": (0, 0, 0, ""),
        "upgrade-list": (0, 0, 0, "Upgrade: h2c, WebSocket\r\nConnection: keep-alive, UPGRADE"),
        "origin-own": (0, 0, 0, "Origin: http://example.org"),
        "origin-own-port": (0, 0, 0, "Host: example.org:80\r\nOrigin: http://EXAMPLE.org"),
        "origin-tls": (0, 0, 0, ":scheme https\r\nOrigin: https://example.org"),
        "origin-other": (0, 0, 0, "Origin: http://evil.example"),
        "origin-null": (0, 0, 0, "Origin: null"),
        "origin-any": (1, 0, 0, "Origin: null"),
        "origin-listed": (2, 0, 0, "Origin: https://b.example"),
        "origin-listed-v6": (2, 0, 0, "Origin: http://[::1]:8080"),
        "origin-with-user": (0, 0, 0, "Origin: http://ann@example.org"),
        "origin-missing": (4, 0, 0, ""),
        "origin-forwarded": (
            8,
            0,
            0,
            'Forwarded: for=1.2.3.4;proto=https;host="a.example:8443", for=5\r\n'
            "Origin: https://a.example:8443",
        ),
        "origin-forwarded-escapes": (
            8,
            0,
            0,
            'Forwarded: host="a\\.example" ;proto=wss\r\nOrigin: https://a.example',
        ),
        # A pattern that begins again at every letter takes a second for so many.
        "origin-forwarded-long": (
            8,
            0,
            0,
            f"Forwarded: {'a' * 8179}\r\nOrigin: https://a.example",
        ),
        "origin-x-forwarded": (
            16,
            0,
            0,
            "X-Forwarded-Proto: https, http\r\nX-Forwarded-Host: a.example\r\n"
            "X-Forwarded-Port: 8443\r\nOrigin: https://a.example:8443",
        ),
        "origin-x-forwarded-port-twice": (
            16,
            0,
            0,
            "X-Forwarded-Host: a.example:8443\r\nX-Forwarded-Port: 8443\r\n"
            "Origin: http://a.example:8443",
        ),
        "origin-of-no-host": (0, 0, 0, "Host: [::1\r\nOrigin: http://example.org"),
        "subprotocol": (0, 1, 0, "Sec-WebSocket-Protocol: chat, superchat"),
        "subprotocol-second": (0, 2, 0, "Sec-WebSocket-Protocol: a,superchat ,x"),
        "subprotocol-none": (0, 2, 0, "Sec-WebSocket-Protocol: a"),
        "subprotocol-latin": (0, 2, 0, "Sec-WebSocket-Protocol: \xe9"),
        "deflate": (0, 0, everything, deflate),
        "deflate-bits": (0, 0, everything, deflate + "; client_max_window_bits"),
        "deflate-bits-10": (
            0,
            0,
            everything,
            deflate + "; client_max_window_bits=10; server_max_window_bits=10",
        ),
        "deflate-bits-8": (0, 0, everything, deflate + "; client_max_window_bits=8"),
        "deflate-server-bits-8": (0, 0, everything, deflate + "; server_max_window_bits=8"),
        "deflate-bits-no-number": (
            0,
            0,
            everything,
            deflate + "; client_max_window_bits=x, permessage-deflate; server_max_window_bits,"
            " permessage-deflate; client_max_window_bits=12",
        ),
        # (httpd lets no such character through.)
        "deflate-bits-and-controls": (
            0,
            0,
            everything,
            deflate + "; client_max_window_bits=12\x1c\x1c, permessage-deflate; x",
        ),
        "deflate-quoted": (0, 0, everything, deflate + '; server_max_window_bits="12"'),
        "deflate-small": (0, 0, 1, deflate + "; client_max_window_bits"),
        "deflate-small-without-bits": (0, 0, 1, deflate),
        "deflate-contexts": (
            0,
            0,
            everything,
            deflate + "; server_no_context_takeover; client_no_context_takeover",
        ),
        "deflate-second-offer": (
            0,
            0,
            everything,
            deflate + "; unknown, permessage-deflate; client_max_window_bits=12, x",
        ),
        "deflate-twice": (0, 0, everything, deflate + ", permessage-deflate"),
        "deflate-off": (0, 0, 0, deflate),
        "answer-headers": (0, 0, 0, "<X-A: b\r\n<Set-Cookie: c=\xe9"),
        "answer-header-host": (0, 0, 0, "<X-A: b\r\n<Host: c\r\n<X-A: a"),
        "answer-header-injects": (0, 0, 0, "<X-A: b\nX-B: c"),
        "headers": (0, 0, 0, "Accept: */*\r\nX-Latin: \xe9\r\nExpect: 100-continue"),
        "bad-method": (0, 0, 0, ":method POST"),
        "bad-http-10": (0, 0, 0, ":protocol HTTP/1.0"),
        "bad-http-2": (0, 0, 0, ":protocol HTTP/2.0"),
        "bad-upgrade": (0, 0, 0, "Upgrade: h2c"),
        "bad-connection": (0, 0, 0, "Connection: keep-alive"),
        "bad-version": (0, 0, 0, "Sec-WebSocket-Version: 8"),
        "bad-key": (0, 0, 0, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ"),
        "bad-key-latin": (0, 0, 0, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25j\xe9=="),
        "bad-host": (0, 0, 0, "Host: a\xe9"),
        "bad-host-idna": (0, 0, 0, "Host: xn--\xe9"),
        "bad-body": (0, 0, 0, "Content-Length: 5"),
        "bad-chunked": (0, 0, 0, "Transfer-Encoding: chunked"),
        "bad-value": (0, 0, 0, "X: a\nb"),
        "bad-value-nul": (0, 0, 0, "X: a\0b"),
    }
    return {
        name: bytes(settings) + lines.encode("latin-1")
        for name, (*settings, lines) in requests.items()
    }


def backend_answer() -> Inputs:
    """Settings: the sizes of the pieces; then what a backend sends."""
    accept = generate_accept_token(targets.KEY)
    right = (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n"
    )
    inputs = {
        "right": right + b"\r\n",
        "right-and-frames": right + b"Set-Cookie: a=1\r\n\r\n\x81\x02hi",
        "right-other-case": right.replace(b"websocket", b"WebSocket") + b"\r\n",
        "right-line-feeds": right.replace(b"\r", b"") + b"\nx",
        "right-after-interim": b"HTTP/1.1 103 Early Hints\r\nX: y\r\n\r\n" + right + b"\r\n",
        "wrong-accept": right.replace(accept, accept.lower()) + b"\r\n",
        "two-accepts": right + b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n",
        "no-accept": right.partition(b"Sec")[0] + b"\r\n",
        "h2c": right.replace(b"websocket", b"h2c") + b"\r\n",
        "http-1-0": right.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n",
        "names-the-accept": right.replace(b": Upgrade", b": Upgrade, Sec-WebSocket-Accept")
        + b"\r\n",
        "folded": right + b"X: a\r\n b\r\n\r\n",
        "control-character": right + b"X: a\rb\r\n\r\n",
        "half": right[:40],
        "closed": b"",
        "ok": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi" + right,
        "chunked": b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        "chunked-cut": b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nh",
        "both-lengths": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
        b"Content-Length: 2\r\n\r\n",
        "to-the-end": b"HTTP/1.0 403 No\r\n\r\nto the end",
        "garbage": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    }
    return {name: b"\2\1\7" + data for name, data in inputs.items()}


def tunnel() -> Inputs:
    """Settings: for each piece its size, a pause and a PING; then what one end sends."""
    pings, pauses = bytes((3, 0x80 | 3, 0x80 | 10, 0xC0 | 1)), bytes((2, 0x40 | 20, 0xC0 | 4))
    inputs = {name: pings + data for name, data in client_streams().items()}
    inputs["server-text"] = pings + wire.encode_frame(wire.TEXT, b"text") * 3
    inputs["server-long"] = pauses + wire.encode_frame(wire.BINARY, bytes(300)) + b"\x89\0"
    inputs["server-close"] = pauses + wire.encode_frame(wire.CLOSE, b"\x03\xe8") + b"\x81\0"
    inputs["control-too-long"] = pings + b"\x89\x7e\0\x7e" + bytes(126) + b"\x81\0"
    inputs["length-of-8-bytes"] = pings + b"\x82\x7f" + bytes(7) + b"\1x\x81\0"
    inputs["reserved"] = pings + b"\xf3\1x\x3b\1y\x81\0"
    return inputs


def channel() -> Inputs:
    """Settings: sizes of the pieces; then what one end of a channel sends."""
    hello = wire.encode_frame(wire.TEXT, b"hello")
    ping = wire.encode_frame(wire.PING, b"")
    half = hello[:-1]
    streams = {
        "clients": lanes.encode_numbers(lanes.READY, [1, 2])
        + lanes.encode_numbers(lanes.SLOW, [3])
        + lanes.encode_numbers(lanes.OFF, [2**32 - 1]),
        "groups": lanes.encode_numbers(lanes.ADD, [1, 2, 3], 7)
        + lanes.encode_numbers(lanes.REMOVE, [2], 7),
        "messages": lanes.encode_multicast(7, [], hello)
        + lanes.encode_multicast(0, [1, 3], wire.encode_frame(wire.BINARY, bytes(300)))
        + lanes.encode_unicast(2, hello)
        + lanes.encode_unicast(2, ping),
        "bad-kind": lanes.encode_lane(lanes.ASK),
        "bad-empty": b"\x87\0",
        "bad-opcode": hello,
        "bad-half-a-number": wire.encode_frame(wire.LANE, b"\x06abc"),
        "bad-group-missing": wire.encode_frame(wire.LANE, b"\x09"),
        "bad-multicast-of-a-ping": lanes.encode_multicast(0, [], ping),
        "bad-multicast-too-short": wire.encode_frame(wire.LANE, b"\x0babc"),
        "bad-multicast-excluded": wire.encode_frame(wire.LANE, b"\x0b\0\0\0\0\0\x09" + hello),
        "bad-unicast-cut": lanes.encode_unicast(1, half),
        "bad-unicast-of-two": lanes.encode_unicast(1, hello + hello),
        "bad-unicast-too-short": wire.encode_frame(wire.LANE, b"\x0c\0"),
        "bad-unicast-ping-of-126": lanes.encode_unicast(1, b"\x89\x7e\0\x7e" + bytes(126)),
        "bad-frame-too-long": b"\x87\x7f" + (2**20).to_bytes(8, "big"),
        "bad-frame-masked": lanes.encode_unicast(1, b"\x81\x81aaaaa"),
    }
    return {name: b"\2\3\5" + stream for name, stream in streams.items()}


def channels() -> Inputs:
    """1: a request of the HTTP API, with its path; then messages; a zero between two of them."""
    connect = {"id": 1, "connect": {"data": {"a": 1}, "name": "js"}}
    news = {"channel": "news"}
    commands: dict[str, list[Any]] = {
        "connect": [connect],
        "subscribe": [
            connect,
            {"id": 2, "subscribe": {**news, "recover": True, "epoch": "x", "offset": 1}},
            {"id": 3, "publish": {**news, "data": {"text": "é"}}},
            {"id": 4, "history": {**news, "limit": -1, "reverse": True, "since": {"offset": 0}}},
            {"id": 5, "presence": news},
            {"id": 6, "presence_stats": news},
            {"id": 7, "sub_refresh": {**news, "token": "x"}},
            {"id": 8, "unsubscribe": news},
        ],
        "token": [{"id": 1, "connect": {"token": "a.b.c"}}],
        "subs": [{"id": 1, "connect": {"subs": {"news": {"recover": True, "offset": 1}}}}],
        "rpc": [connect, {"id": 2, "rpc": {"method": "m", "data": 1}}, {"send": {"data": 1}}, {}],
        "refresh": [connect, {"id": 2, "refresh": {"token": "x"}}, {"id": 3, "ping": {}}],
        "later": [connect, {"id": 2, "later": {}}],
        "plain": [connect, {"id": 2, "subscribe": {"channel": "plain:a"}}],
        "unknown": [connect, {"id": 2, "subscribe": {"channel": "other:a"}}],
        "user": [connect, {"id": 2, "subscribe": {"channel": "talk#ann"}}],
        "surrogate": [connect, {"id": 2, "subscribe": {"channel": "\ud800"}}],
    }
    inputs = {
        name: b"\0" + "\n".join(map(json.dumps, some)).encode() for name, some in commands.items()
    }
    inputs |= {
        f"{name}-in-messages": b"\0" + b"\0".join(json.dumps(one).encode() for one in some)
        for name, some in commands.items()
    }
    inputs |= {"bad-binary": b"\0\xff", "bad-empty": b"\0", "bad-json": b"\0{", "bad-list": b"\0[]"}
    requests: dict[str, Any] = {
        "publish": {**news, "data": [1], "tags": {"a": "b"}},
        "broadcast": {"channels": ["news", "x:y"], "data": 1},
        "presence": news,
        "presence_stats": news,
        "history": {**news, "limit": 1, "since": {"epoch": "x", "offset": 1}},
        "subscribe": {"user": "ann", "channel": "news", "info": 1},
        "unsubscribe": {"client": "1", "channel": "news"},
        "disconnect": {"user": "ann", "disconnect": {"code": 4000, "reason": "x"}, "whitelist": []},
        "refresh": {"user": "ann", "expired": False, "expire_at": 2000000000},
        "batch": {"commands": [{"publish": {**news, "data": 1}}, {"history": news}]},
    }
    for name, params in requests.items():
        inputs[f"api-{name}"] = b"\1/%s\0%s" % (name.encode(), json.dumps(params).encode())
        old = json.dumps({"method": name, "params": params})
        inputs[f"api-{name}-in-the-body"] = b"\1\0%s" % old.encode()
    return inputs


GENERATORS: Final[tuple[Callable[[], Inputs], ...]] = (
    client_reader,
    client_reader_vs_wsproto,
    producer_reader,
    messages,
    documents,
    session,
    settings,
    upgrade,
    backend_answer,
    tunnel,
    channel,
    channels,
)


def main() -> None:
    """Write all corpora."""
    for generator in GENERATORS:
        corpus.write(generator.__name__, generator())


if __name__ == "__main__":
    main()
