"""bridge.pump and bridge.fan: bytes to one socket, and to many at once."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import itertools
import os
import socket
import subprocess
import sys
import sysconfig
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apachews_handler.bridge import fan as fan_module
from apachews_handler.bridge import pump
from apachews_handler.bridge.fan import Fan
from apachews_handler.bridge.send_queue import SendQueue
from apachews_handler.protocol.client_reader import ClientReader
from apachews_handler.protocol.deflate import Agreement
from apachews_handler.protocol.producer_reader import ProducerReader
from apachews_handler.protocol.timeouts import Timeouts
from apachews_handler.setting_values import parse_size
from apachews_handler.settings import Settings

from ..support.extensions import extension
from ..support.frames import masked

Send = Callable[[bytes, bytes], list[int]]
LONGEST = 40_000
ROOT = Path(__file__).parents[2]


def in_c() -> ModuleType:
    return extension("bridge", "_pump")


@pytest.fixture(params=["C", "Python"])
def send_to_all(request: pytest.FixtureRequest) -> Send:
    if request.param == "Python":
        return pump.send_to_all_in_python
    send: Send = in_c().send_to_all
    return send


@pytest.fixture
def sockets() -> Iterator[Callable[[], tuple[socket.socket, socket.socket]]]:
    with contextlib.ExitStack() as stack:

        def pair() -> tuple[socket.socket, socket.socket]:
            ends = socket.socketpair()
            for end in ends:
                stack.enter_context(end)
                end.setblocking(False)
            return ends

        yield pair


def fill(sock: socket.socket) -> int:
    """Send until the kernel takes no more; return how many bytes it has taken."""
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += sock.send(bytes(65536))
    return sent


def received(sock: socket.socket) -> bytes:
    """Return what has arrived."""
    data = b""
    with contextlib.suppress(BlockingIOError):
        while more := sock.recv(1 << 20):
            data += more
    return data


# To many sockets.


def test_who_has_not_taken_all_is_named(send_to_all: Send, sockets: Any) -> None:
    pairs = [sockets() for _ in range(5)]
    fill(pairs[1][0])
    pairs[3][1].close()
    fds = array("i", [near.fileno() for near, _ in pairs])
    fds[2] = -1
    assert send_to_all(fds.tobytes(), b"hello") == [1, 0, 2, pump.SKIPPED, 3, -1]
    assert [received(pairs[index][1]) for index in (0, 2, 4)] == [b"hello", b"", b"hello"]


def test_a_part_is_counted(send_to_all: Send, sockets: Any) -> None:
    near, far = sockets()
    data = bytes(1 << 24)
    index, sent = send_to_all(array("i", [near.fileno()]).tobytes(), data)
    assert (index, sent) == (0, len(received(far)))
    assert 0 < sent < len(data)


def test_a_descriptor_that_is_closed_is_an_error(send_to_all: Send, sockets: Any) -> None:
    near, _ = sockets()
    fd = near.fileno()
    near.close()
    assert send_to_all(array("i", [fd]).tobytes(), b"x") == [0, -1]


def test_without_sockets_nothing_is_sent(send_to_all: Send) -> None:
    assert send_to_all(b"", b"x") == []


@pytest.mark.parametrize("name", ["send_to_all", "relay_client", "relay_producer"])
@pytest.mark.parametrize(
    "arguments",
    [
        (),
        (b"abc", b"x"),
        (bytes(4 * (pump.MAX_FDS + 1)), b"x"),
        (bytearray(4), b"x"),
        (b"", "x"),
        (1, 2, 3),
        (1, 2, 3, "x"),
        (1, 2, 3, 1 << 70),
    ],
)
def test_other_arguments_are_rejected(name: str, arguments: tuple[object, ...]) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError)):
        getattr(in_c(), name)(*arguments)


def test_without_the_extension_python_sends(monkeypatch: pytest.MonkeyPatch) -> None:
    # None: an import of it fails, as without a compiler.
    monkeypatch.setitem(sys.modules, "apachews_handler.bridge._pump", None)
    monkeypatch.delattr("apachews_handler.bridge._pump", raising=False)
    spec = importlib.util.find_spec("apachews_handler.bridge.pump")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert not module.IS_IN_C
    assert module.send_to_all is module.send_to_all_in_python


# From one side to the other.

frames_of_client = st.builds(
    masked,
    st.sampled_from([0x81, 0x82, 0x81, 0x82, 0x81, 0x01, 0x80, 0x89, 0x8A, 0x88, 0xC1, 0x83]),
    st.one_of(
        st.binary(max_size=200),
        st.text(max_size=100).map(str.encode),
        st.sampled_from([125, 126, 127, 300, LONGEST, LONGEST + 1]).map(bytes),
    ),
)


@given(st.lists(frames_of_client, max_size=20), st.integers(0, 3), st.binary(max_size=8))
def test_whole_messages_of_a_client_pass_as_the_reader_decodes_them(
    frames: list[bytes], cut: int, rubbish: bytes
) -> None:
    relay = in_c().relay_client
    data = b"".join(frames)[cut:] + (rubbish if len(rubbish) > 4 else b"")
    reader = ClientReader(LONGEST, 65536, Agreement())
    check(relay, data[:65536], reader, reader.out)


frames_of_producer = st.builds(
    lambda first, payload: bytes((first,)) + length_of(len(payload)) + payload,
    st.sampled_from([0x81, 0x82, 0x81, 0x82, 0x01, 0x80, 0x89, 0x88, 0x87, 0x85, 0xC1]),
    st.one_of(
        st.binary(max_size=200), st.sampled_from([125, 126, 127, 300, LONGEST, 65535]).map(bytes)
    ),
)


def length_of(length: int) -> bytes:
    return bytes((length,)) if length < 126 else b"\x7e" + length.to_bytes(2, "big")


@given(st.lists(frames_of_producer, max_size=20), st.integers(0, 3), st.binary(max_size=8))
def test_whole_messages_of_a_producer_pass_as_the_reader_decodes_them(
    frames: list[bytes], cut: int, rubbish: bytes
) -> None:
    data = b"".join(frames)[cut:] + (rubbish if len(rubbish) > 4 else b"")
    reader = ProducerReader(max_partial_bytes=65536)
    check(in_c().relay_producer, data[:65536], reader, reader.out)


def check(
    relay: Callable[[int, int, int, int], pump.Passed],
    data: bytes,
    reader: ClientReader | ProducerReader,
    out: list[bytes],
) -> None:
    """Relay bytes, and compare what arrives with what a reader makes of them."""
    with contextlib.ExitStack() as stack:
        ends = [stack.enter_context(end) for _ in "ab" for end in socket.socketpair()]
        for end in ends:
            end.setblocking(False)
        source, read, write, target = ends
        sent = source.send(data) if data else 0
        assert sent == len(data), "the kernel's buffer holds one read"
        longest = reader.longest_passed
        passed = relay(read.fileno(), write.fileno(), 65536 + 14, min(longest, 1 << 40))
        if not data:
            assert passed is None
        elif isinstance(passed, bytes):
            assert passed == data
            assert received(target) == b""
        else:
            assert isinstance(passed, int)
            assert reader.receive(data) == []
            assert received(target) == b"".join(out)
            counts = passed >> pump.COUNT_BITS, passed & pump.SIZE_BITS
            assert counts == (reader.messages, reader.payload_bytes)
            assert reader.longest_passed == longest  # nothing of it is left


@pytest.mark.parametrize(
    ("name", "frame", "forwarded"),
    [
        ("relay_client", masked(0x82, b"hello"), b"\x82\x05hello"),
        ("relay_client", masked(0x81, "héllo".encode()), b"\x81\x06h\xc3\xa9llo"),
        ("relay_client", masked(0x82, bytes(60_000)), b"\x82\x7e\xea\x60" + bytes(60_000)),
        ("relay_producer", b"\x81\x05hello", b"\x81\x05hello"),
        (
            "relay_producer",
            b"\x82\x7e\xea\x60" + bytes(60_000),
            b"\x82\x7e\xea\x60" + bytes(60_000),
        ),
    ],
)
def test_a_message_passes(name: str, frame: bytes, forwarded: bytes, sockets: Any) -> None:
    (source, read), (write, target) = sockets(), sockets()
    source.sendall(frame)
    size = len(forwarded) - (4 if len(forwarded) > 1000 else 2)
    counts = 1 << pump.COUNT_BITS | size
    relay = getattr(in_c(), name)
    assert relay(read.fileno(), write.fileno(), 65550, 1 << 20) == counts
    assert received(target) == forwarded
    # What the other side has not taken comes back.
    source.sendall(frame)
    fill(write)
    assert relay(read.fileno(), write.fileno(), 65550, 1 << 20) == (counts, forwarded, 0)
    # Also if it has gone: the next call has the error.
    target.close()
    source.sendall(frame)
    assert relay(read.fileno(), write.fileno(), 65550, 1 << 20) == (counts, forwarded, 0)
    assert relay(read.fileno(), write.fileno(), 65550, 1 << 20) is None
    source.close()
    assert relay(read.fileno(), write.fileno(), 65550, 1 << 20) == b""
    assert relay(-1, write.fileno(), 65550, 1 << 20) == b""


def test_nothing_passes_that_is_too_long_or_not_utf8(sockets: Any) -> None:
    (source, read), (write, target) = sockets(), sockets()
    relay = in_c().relay_client
    for frame in (masked(0x82, bytes(11)), masked(0x81, b"\xff"), masked(0x81, b"x" * 9 + b"\xc3")):
        source.sendall(frame)
        assert relay(read.fileno(), write.fileno(), 65550, 10) == frame
    assert received(target) == b""


def test_utf8_is_what_python_decodes(sockets: Any) -> None:
    (source, read), (write, target) = sockets(), sockets()
    relay = in_c().relay_client
    edges = [0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC1, 0xC2, 0xDF]
    edges += [0xE0, 0xE1, 0xEC, 0xED, 0xEE, 0xEF, 0xF0, 0xF1, 0xF3, 0xF4, 0xF5, 0xFF]
    texts = itertools.chain(
        (bytes((byte,)) for byte in range(256)),
        *(map(bytes, itertools.product(edges, repeat=length)) for length in (2, 3)),
        (bytes((0xF0, *rest)) for rest in itertools.product(edges, repeat=3)),
        (bytes((0xF4, *rest)) for rest in itertools.product(edges, repeat=3)),
    )
    for text in texts:
        frame = masked(0x81, text)
        source.send(frame)
        passed = relay(read.fileno(), write.fileno(), 65550, 10)
        try:
            text.decode()
        except UnicodeDecodeError:
            assert passed == frame, text
        else:
            assert passed == 1 << pump.COUNT_BITS | len(text), text
            assert target.recv(20)[2:] == text


def test_the_longest_message_of_the_settings_is_a_number_of_c(sockets: Any) -> None:
    (source, read), (write, _) = sockets(), sockets()
    source.sendall(masked(0x82, b"hello"))
    reader = ClientReader(parse_size("999999999999999M"))
    counts = 1 << pump.COUNT_BITS | 5
    relay = in_c().relay_client
    assert relay(read.fileno(), write.fileno(), 65550, reader.longest_passed) == counts


def test_a_garbage_collection_does_not_change_what_was_read(sockets: Any) -> None:
    (source, read), (write, _) = sockets(), sockets()
    (other, other_read), (other_write, _) = sockets(), sockets()
    relay = in_c().relay_client

    class Garbage:
        """Calls the extension when it is collected, as another thread might do then."""

        def __init__(self) -> None:
            self.cycle = self

        def __del__(self) -> None:
            other.send(masked(0x82, b"of another client"))
            relay(other_read.fileno(), other_write.fileno(), 65550, 100)

    frame = masked(0x81, b"not UTF-8: \xff")
    source.send(frame)
    thresholds = gc.get_threshold()
    gc.collect()
    try:
        gc.set_threshold(1)
        Garbage()
        passed = relay(read.fileno(), write.fileno(), 65550, 100)
    finally:
        gc.set_threshold(*thresholds)
        gc.collect()
    assert passed == frame


# Runs with the sanitized extension: every length around the limits, cut at any position.
SANITIZED = """
import random, socket, sys
sys.path[:0] = sys.argv[1:]
import _pump
chance = random.Random(1)
read, source = socket.socketpair()
write, target = socket.socketpair()
for sock in (read, source, write, target):
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
def drain(sock):
    try:
        while sock.recv(1 << 20): pass
    except BlockingIOError: pass
def frame(first, length, mask):
    head = bytes((first, mask | min(length, 126)))
    return head + (length.to_bytes(2, "big") if length > 125 else b"") + bytes(4 * (mask > 0))
LENGTHS = (0, 1, 7, 8, 9, 125, 126, 127, 300, 4000, 65534, 65535)
for number in range(3000):
    mask = number % 2 * 0x80
    lengths = chance.choices(LENGTHS[: 12 if number % 10 == 0 else 9], k=chance.randint(1, 20))
    data = b"".join(
        frame(chance.choice((0x81, 0x82, 0x82, 0x01, 0x89)), size, mask) + chance.randbytes(size)
        for size in lengths
    )[: chance.choice((65550, 65549, 65551, chance.randint(1, 65550)))]
    source.send(data)
    relay = _pump.relay_client if mask else _pump.relay_producer
    relay(read.fileno(), write.fileno(), chance.choice((65550, 1, 2, 7, 0, -1)), 1 << 20)
    drain(read)
    drain(target)
from array import array
many = array("i", [write.fileno(), -1] * 512)
for size in (0, 1, 1023, 1024):
    _pump.send_to_all(many[:size].tobytes(), b"x")
print("done")
"""


def test_the_sanitizers_find_nothing(tmp_path: Path) -> None:
    headers = sysconfig.get_path("include")
    if not (Path(headers) / "Python.h").exists():
        pytest.skip("Python's headers are not installed")
    source = ROOT / "apachews_handler" / "bridge" / "_pump.c"
    strict = ["-Wall", "-Wextra", "-Werror", f"-I{headers}", "-shared", "-fPIC"]
    sanitize = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover"]
    build = ["cc", *strict, *sanitize, str(source), "-o", str(tmp_path / "_pump.so")]
    subprocess.run(build, check=True)
    library = subprocess.run(
        ["cc", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True
    ).stdout.strip()
    # CPython leaves memory to the end of the process.
    environ = os.environ | {"LD_PRELOAD": library, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run(
        [sys.executable, "-c", SANITIZED, str(tmp_path)],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("done\n", "")


# A message's way around a fan.


class Client:
    """Stands for ``channel.Member``."""

    def __init__(self, number: int, ends: tuple[socket.socket, socket.socket]) -> None:
        self.number = number
        self.near, self.far = ends
        self.plain_fd = self.near.fileno()
        self.places: dict[Fan, int] = {}
        self.queue = SendQueue()
        self.reader = ProducerReader()
        self.timeouts = Timeouts(Settings(), 0.0)
        self.send = self.near.send

    def counts(self) -> tuple[int, int]:
        return self.reader.messages, self.reader.payload_bytes


class Ring:
    """A fan, its clients, and what was late."""

    def __init__(self, sockets: Any, count: int) -> None:
        self.late: list[tuple[int, list[bytes], int]] = []
        self.fan = Fan(self._on_late)
        self.clients = [Client(number, sockets()) for number in range(count)]
        for client in self.clients:
            self.fan.add(client)  # type: ignore[arg-type]

    def _on_late(self, client: Any, frames: list[bytes], data: bytes, sent: int) -> None:
        assert data == b"".join(frames)
        self.late.append((client.number, frames, sent))
        for frame in frames:
            client.queue.push(frame)
        self.fan.hold(client)

    def begin(self, frame: bytes, *excluded: int) -> None:
        found: Any = self.clients.__getitem__
        self.fan.begin(frame, len(frame), frozenset(excluded), found, is_compressed=False)

    def finish(self) -> int:
        steps = 0
        while not self.fan.is_idle:
            self.fan.step(2, 1.0)
            steps += 1
        return steps

    def settle(self) -> None:
        for client in self.clients:
            if self.fan in client.places:
                self.fan.settle(client)  # type: ignore[arg-type]

    def received(self) -> list[bytes]:
        return [received(client.far) for client in self.clients]


def test_a_message_joins_those_on_their_way(sockets: Any) -> None:
    ring = Ring(sockets, 6)
    ring.begin(b"a")
    ring.fan.step(2, 1.0)
    assert ring.fan.can_join(b"b")
    ring.begin(b"b")
    ring.settle()
    assert [client.counts() for client in ring.clients] == [(1, 1)] * 2 + [(0, 0)] * 4
    # One round: the last four get both, and then the first two the second one.
    assert ring.finish() == 3
    assert ring.received() == [b"ab"] * 6
    ring.settle()
    assert [client.counts() for client in ring.clients] == [(2, 2)] * 6
    assert not ring.late


def test_long_messages_do_not_join(sockets: Any) -> None:
    ring = Ring(sockets, 2)
    ring.begin(b"a")
    assert ring.fan.can_join(bytes(fan_module.MAX_JOINED_BYTES - 1))
    assert not ring.fan.can_join(bytes(fan_module.MAX_JOINED_BYTES))
    ring.finish()
    assert ring.fan.can_join(bytes(fan_module.MAX_JOINED_BYTES))


def test_a_limited_number_of_messages_joins(sockets: Any) -> None:
    ring = Ring(sockets, 2)
    for _ in range(fan_module.MAX_JOINED):
        assert ring.fan.can_join(b"a")
        ring.begin(b"a")
    assert not ring.fan.can_join(b"a")
    ring.finish()
    assert ring.received() == [b"a" * fan_module.MAX_JOINED] * 2


def test_a_client_that_leaves_gets_nothing_more(sockets: Any) -> None:
    ring = Ring(sockets, 6)
    ring.begin(b"a")
    ring.fan.step(2, 1.0)
    ring.fan.remove(ring.clients[0])  # type: ignore[arg-type]
    ring.fan.remove(ring.clients[3])  # type: ignore[arg-type]
    ring.begin(b"b")
    ring.finish()
    assert ring.received() == [b"a", b"ab", b"ab", b"", b"ab", b"ab"]
    assert [ring.clients[place].counts() for place in (0, 3)] == [(1, 1), (0, 0)]
    assert ring.fan.count == 4


def test_a_client_with_bytes_in_its_queue_waits(sockets: Any) -> None:
    ring = Ring(sockets, 4)
    slow = ring.clients[1]
    filled = fill(slow.near)
    ring.begin(b"a")
    ring.begin(b"b")
    ring.finish()
    ring.begin(b"c")
    ring.finish()
    # What it gets is in its queue, frame by frame, so that slow clients share the objects.
    assert ring.late == [(1, [b"a", b"b"], 0), (1, [b"c"], 0)]
    assert received(slow.far) == bytes(filled)
    assert slow.queue.flush(slow.send) == 3
    ring.begin(b"d")
    ring.begin(b"e")
    ring.finish()
    assert ring.received() == [b"abcde"] * 4
    ring.settle()
    assert [client.counts() for client in ring.clients] == [(5, 5)] * 4


def test_an_excluded_client_gets_the_next_one(sockets: Any) -> None:
    ring = Ring(sockets, 4)
    ring.begin(b"a")
    ring.finish()
    ring.begin(b"b", 2)
    assert not ring.fan.can_join(b"c")
    ring.finish()
    ring.begin(b"c")
    ring.finish()
    assert ring.received() == [b"abc", b"abc", b"ac", b"abc"]
    ring.settle()
    assert [client.counts() for client in ring.clients] == [(3, 3), (3, 3), (2, 2), (3, 3)]


def test_empty_places_are_closed(sockets: Any) -> None:
    ring = Ring(sockets, fan_module.SPARE_PLACES + 10)
    ring.begin(b"a")
    ring.finish()
    for client in ring.clients[:-2]:
        ring.fan.remove(client)  # type: ignore[arg-type]
    ring.begin(b"b")
    assert ring.finish() == 1
    assert ring.received() == [b"a"] * (len(ring.clients) - 2) + [b"ab"] * 2
    ring.settle()
    assert [client.counts() for client in ring.clients[-2:]] == [(2, 2)] * 2


@given(st.lists(st.integers(0, 9), max_size=60))
def test_each_client_gets_every_message_in_order(script: list[int]) -> None:
    with contextlib.ExitStack() as stack:

        def pair() -> tuple[socket.socket, socket.socket]:
            ends = socket.socketpair()
            for end in ends:
                stack.enter_context(end)
                end.setblocking(False)
            return ends

        ring = Ring(pair, 5)
        expected = {client.number: b"" for client in ring.clients}
        left: set[int] = set()
        for number, action in enumerate(script):
            if action < 4:
                frame = bytes((number,))
                ring.begin(frame)
                for one in expected.keys() - left:
                    expected[one] += frame
            elif action < 7 and not ring.fan.is_idle:
                ring.fan.step(action - 3, 1.0)
            elif action == 7 and len(left) < 4:
                gone = min(expected.keys() - left)
                ring.fan.remove(ring.clients[gone])  # type: ignore[arg-type]
                left.add(gone)
        ring.finish()
        ring.settle()
        for client in ring.clients:
            data = received(client.far)
            assert expected[client.number].startswith(data)
            if client.number not in left:
                assert data == expected[client.number]
            assert client.counts() == (len(data), len(data))
