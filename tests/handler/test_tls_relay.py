"""apachews_handler.native._tls_relay, its C against a real OpenSSL, in a process of its own.

Once with the address sanitizer, and once with all memory cold.  relay_harness.c stands for the
process that was forked; the test is the client, and the custodian with the other end of the pair.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..conftest import wait_for

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "apachews_handler" / "native"
SOURCES = [NATIVE / "_relay_loop.c", NATIVE / "_cold_memory.c"]
STRICT = ["-std=gnu11", "-Wall", "-Wextra", "-Werror"]
# As _relay_loop.c has them, but for a test's patience.
ORPHAN_S = STOP_S = 0.5
TIMES = [f"-DORPHAN_MS={ORPHAN_S * 1000:.0f}", f"-DSTOP_MS={STOP_S * 1000:.0f}"]
BUILDS = {
    "sanitized": ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover"],
    "cold": ["-O2"],
}
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
TCP_CLOSE = 7  # linux/tcp_states.h
RESET = struct.pack("ii", 1, 0)
BIG = os.urandom(1 << 20) * 8


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("certificate")
    paths = directory / "certificate.pem", directory / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=x"
    subprocess.run(
        [*command.split(), "-out", str(paths[0]), "-keyout", str(paths[1])],
        check=True,
        capture_output=True,
    )
    return paths


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, options in BUILDS.items():
        made[name] = tmp_path_factory.mktemp("harness") / name
        sources = [Path(__file__).with_name("relay_harness.c"), *SOURCES]
        libraries = ["-lssl", "-lcrypto", "-o", str(made[name])]
        subprocess.run(
            ["cc", *STRICT, *TIMES, *options, f"-I{NATIVE}", *sources, *libraries], check=True
        )
    return made


class Harness:
    """The process with the relay."""

    def __init__(self, program: Path, certificate: tuple[Path, Path], *, is_cold: bool) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(20)
        with theirs:
            self.process = subprocess.Popen(
                [program, str(theirs.fileno()), *certificate], pass_fds=[theirs.fileno()]
            )
        self._is_cold = is_cold
        self._certificate = certificate[0]
        self._open: list[socket.socket] = [self._control]

    def order(self, command: bytes, fds: list[int] | None = None) -> None:
        socket.send_fds(self._control, [command], fds or [])
        assert self._control.recv(1) == b"y"

    def relay(self, tcp: socket.socket) -> socket.socket:
        """Have a client's connection relayed; return the custodian's end."""
        custodian, pair = socket.socketpair()
        with pair:
            socket.send_fds(self._control, [b"A"], [tcp.fileno(), pair.fileno()])
        custodian.settimeout(20)
        self._open.append(custodian)
        return custodian

    def accepted(self) -> None:
        assert self._control.recv(1) == b"y"
        if self._is_cold:
            self.order(b"M")
            self._is_cold = False

    def connect(
        self, version: ssl.TLSVersion, *, is_narrow: bool = False
    ) -> tuple[ssl.SSLSocket, socket.socket]:
        """Return a client and its custodian's end.

        Args:
            is_narrow: the kernel takes less for a client than the pair holds.
        """
        context = ssl.create_default_context(cafile=str(self._certificate))
        context.check_hostname = False
        context.minimum_version = context.maximum_version = version
        near, far = tcp_pair()
        with far:
            if is_narrow:
                far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            custodian = self.relay(far)
        near.settimeout(20)
        client = context.wrap_socket(near, suppress_ragged_eofs=False)
        self._open.append(client)
        self.accepted()
        return client, custodian

    def processor_s(self) -> float:
        return int(Path(f"/proc/{self.process.pid}/schedstat").read_text().split()[0]) / 1e9

    def close(self) -> None:
        """Leave; the process must end by itself then, without a word of a sanitizer."""
        for sock in self._open:
            sock.close()
        assert self.process.wait(20) == 0


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    return near, far


@pytest.fixture(params=BUILDS)
def harness(
    request: pytest.FixtureRequest, programs: dict[str, Path], certificate: tuple[Path, Path]
) -> Iterator[Harness]:
    made = Harness(programs[request.param], certificate, is_cold=request.param == "cold")
    try:
        yield made
        made.close()
    finally:
        made.process.kill()
        made.process.wait()


def read(sock: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (more := sock.recv(min(1 << 16, size - len(data)))):
        data += more
    return bytes(data)


def until_full(sock: socket.socket, data: bytes) -> int:
    """Send until nothing is taken for a second; return how much was."""
    sock.setblocking(False)
    view, sent = memoryview(data), 0
    last = time.monotonic()
    while sent < len(data) and time.monotonic() - last < 1.0:
        try:
            sent += sock.send(view[sent : sent + 65536])
            last = time.monotonic()
        except (BlockingIOError, ssl.SSLWantWriteError):
            select.select([], [sock], [], 0.1)
    sock.settimeout(20)
    return sent


@contextlib.contextmanager
def in_background(send: threading.Thread) -> Iterator[None]:
    send.start()
    yield
    send.join(20)
    assert not send.is_alive()


@pytest.mark.parametrize("version", VERSIONS)
def test_bytes_pass_both_ways(harness: Harness, version: ssl.TLSVersion) -> None:
    client, custodian = harness.connect(version)
    for size in (1, 5, 1000, 16384, 16385, 70_000):
        client.sendall(BIG[:size])
        assert read(custodian, size) == BIG[:size]
        custodian.sendall(BIG[-size:])
        assert read(client, size) == BIG[-size:]


@pytest.mark.parametrize("version", VERSIONS)
def test_big_messages_both_ways_at_once(harness: Harness, version: ssl.TLSVersion) -> None:
    client, custodian = harness.connect(version)
    received = {}

    def receive() -> None:
        received["client"] = read(custodian, len(BIG))

    with (
        in_background(threading.Thread(target=custodian.sendall, args=[BIG])),
        in_background(threading.Thread(target=receive)),
    ):
        # One thread at a time has the client's TLS: what it sends and what it reads take turns.
        got, sent = bytearray(), 0
        client.setblocking(False)
        while len(got) < len(BIG) or sent < len(BIG):
            with contextlib.suppress(ssl.SSLWantReadError):
                got += client.recv(1 << 16)
            with contextlib.suppress(ssl.SSLWantWriteError):
                sent += client.send(BIG[sent : sent + 10_000]) if sent < len(BIG) else 0
    assert bytes(got) == BIG
    assert received["client"] == BIG


def test_records_of_one_byte(harness: Harness) -> None:
    client, custodian = harness.connect(ssl.TLSVersion.TLSv1_3)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 0)
    for number in range(3000):
        client.send(BIG[number : number + 1])
    assert read(custodian, 3000) == BIG[:3000]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_client_that_does_not_read_is_not_buffered(
    harness: Harness, version: ssl.TLSVersion
) -> None:
    client, custodian = harness.connect(version)
    tcp_most = 16 << 20  # both kernels' buffers, at most
    sent = until_full(custodian, BIG * 8)
    assert 0 < sent < tcp_most
    before_s = harness.processor_s()
    client.sendall(b"it still writes")
    assert read(custodian, 15) == b"it still writes"
    assert read(client, sent) == (BIG * 8)[:sent]
    custodian.sendall(b"end")
    assert read(client, 3) == b"end"
    assert harness.processor_s() - before_s < 2


@pytest.mark.parametrize("version", VERSIONS)
def test_a_custodian_that_does_not_read_is_not_buffered(
    harness: Harness, version: ssl.TLSVersion
) -> None:
    client, custodian = harness.connect(version)
    sent = until_full(client, BIG * 8)
    assert 0 < sent < 16 << 20
    custodian.sendall(b"it still writes")
    assert read(client, 15) == b"it still writes"
    # A blocked send of TLS must be repeated with the same bytes.
    rest = (BIG * 8)[sent : sent + 65536]
    with in_background(threading.Thread(target=client.sendall, args=[rest])):
        assert read(custodian, sent + len(rest)) == (BIG * 8)[: sent + len(rest)]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("how", ["close_notify", "FIN"])
def test_a_clients_end_passes_and_the_answer_still_comes(
    harness: Harness, version: ssl.TLSVersion, how: str
) -> None:
    client, custodian = harness.connect(version)
    client.sendall(b"last words")
    if how == "FIN":
        end_tcp(client)
    else:
        client.setblocking(False)
        with contextlib.suppress(ssl.SSLWantReadError):
            client.unwrap()
        client.settimeout(20)
    assert read(custodian, 100) == b"last words"
    assert harness.process.poll() is None
    custodian.sendall(b"answer")
    custodian.shutdown(socket.SHUT_WR)
    if how == "FIN":
        assert read(client, 100) == b"answer"  # and close_notify


def end_tcp(sock: socket.socket) -> None:
    """Send FIN without TLS's own end."""
    with socket.socket(fileno=os.dup(sock.fileno())) as plain:
        plain.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_custodians_shutdown_is_close_notify_and_the_client_is_heard(
    harness: Harness, version: ssl.TLSVersion
) -> None:
    client, custodian = harness.connect(version)
    with in_background(threading.Thread(target=send_and_end, args=[custodian, BIG])):
        assert read(client, len(BIG)) == BIG
    assert client.recv(1) == b"", "an end without close_notify is an error here"
    if version is ssl.TLSVersion.TLSv1_3:  # before it a client's close_notify must follow
        client.sendall(b"CLOSE")
        assert read(custodian, 5) == b"CLOSE"
    client.close()
    assert custodian.recv(1) == b""


def test_a_client_that_has_ended_loses_nothing_of_a_long_backlog(harness: Harness) -> None:
    """Both directions of its TCP connection have ended, and the custodian reads only then."""
    client, custodian = harness.connect(ssl.TLSVersion.TLSv1_3)
    custodian.shutdown(socket.SHUT_WR)
    assert client.recv(1) == b""
    # Records that a read of the socket may end with, and more of them than the pair holds.
    client.setblocking(False)
    sent, last = 0, time.monotonic()
    while time.monotonic() - last < 0.5:
        try:
            sent += client.send(BIG[sent : sent + 1000 + sent % 7])
            last = time.monotonic()
        except ssl.SSLWantWriteError:
            rest = BIG[sent : sent + 1000 + sent % 7]  # a blocked send must be repeated
            select.select([], [client], [], 0.1)
    client.settimeout(20)
    finish = threading.Thread(target=send_and_fin, args=[client, rest])
    with in_background(finish):
        received = read(custodian, len(BIG))
    assert received == BIG[: sent + len(rest)]


def send_and_fin(client: ssl.SSLSocket, data: bytes) -> None:
    client.sendall(data)
    end_tcp(client)


def send_and_end(sock: socket.socket, data: bytes) -> None:
    sock.sendall(data)
    sock.shutdown(socket.SHUT_WR)


def test_a_reset_client_is_an_end(harness: Harness) -> None:
    client, custodian = harness.connect(ssl.TLSVersion.TLSv1_3)
    custodian.sendall(b"x")
    assert read(client, 1) == b"x"
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.close()
    assert custodian.recv(1) == b""


def test_a_custodian_that_writes_to_a_client_that_was_reset(harness: Harness) -> None:
    client, custodian = harness.connect(ssl.TLSVersion.TLSv1_3)
    until_full(custodian, BIG * 8)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    client.close()
    custodian.settimeout(5)
    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        while True:
            custodian.send(b"x" * 1000)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_custodian_that_dies_leaves_an_orderly_end(
    harness: Harness, version: ssl.TLSVersion
) -> None:
    client, custodian = harness.connect(version)
    client.sendall(b"unread")
    custodian.sendall(BIG[:100_000])
    custodian.close()
    assert read(client, 100_000) == BIG[:100_000]
    assert client.recv(1) == b""


@pytest.mark.parametrize("version", VERSIONS)
def test_the_unread_bytes_of_an_orphan_do_not_reset_it(
    harness: Harness, version: ssl.TLSVersion
) -> None:
    """A close with bytes unread is a reset, which drops what the client did not get yet."""
    client, custodian = harness.connect(version)
    assert until_full(client, BIG * 8)
    sent = until_full(custodian, BIG[:400_000])
    custodian.close()
    assert read(client, sent) == BIG[:sent]
    assert client.recv(1) == b"", "an end without close_notify is an error here"


def test_an_orphan_that_does_not_read_has_some_time(harness: Harness) -> None:
    client, custodian = harness.connect(ssl.TLSVersion.TLSv1_3, is_narrow=True)
    sent = until_full(custodian, BIG * 8)
    custodian.close()
    before_s, began_at = harness.processor_s(), time.monotonic()
    with socket.socket(fileno=os.dup(client.fileno())) as tcp:
        wait_for(lambda: tcp_info(tcp) == TCP_CLOSE, 10)
    assert time.monotonic() - began_at > ORPHAN_S / 2
    assert harness.processor_s() - before_s < 0.2, "it waits without turning"
    assert sent


def tcp_info(sock: socket.socket) -> int:
    """Return the state of a connection (tcp(7), TCP_INFO)."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def test_a_client_that_is_to_be_reset_is(harness: Harness) -> None:
    """As discard_client does it: linger on the client's own socket, and the last one is closed."""
    context = ssl._create_unverified_context()
    near, far = tcp_pair()
    near.settimeout(20)
    custodian = harness.relay(far)
    client = context.wrap_socket(near)
    harness.accepted()
    until_full(custodian, BIG * 8)
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    far.close()
    custodian.close()
    with socket.socket(fileno=os.dup(client.fileno())) as tcp:
        wait_for(lambda: tcp_info(tcp) == TCP_CLOSE, 10)
    client.close()


def test_new_keys(harness: Harness, certificate: tuple[Path, Path]) -> None:
    """The client asks for them with `openssl s_client`, which has a command for that."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = subprocess.Popen(
            ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_3", "-noservername"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        far, _ = server.accept()
        assert client.stdin
        assert client.stderr
        with client, far:
            custodian = harness.relay(far)
            harness.accepted()
            for number in range(5):
                client.stdin.write(b"K\n")
                client.stdin.flush()
                while client.stderr.readline() != b"KEYUPDATE\n":
                    pass  # with a later line in the same read it would be no command
                line = b"line %d\n" % number
                client.stdin.write(line)
                client.stdin.flush()
                assert read(custodian, len(line)) == line
                custodian.sendall(b"answer to " + line)
                harness.order(b"U")
            custodian.sendall(b"the end\n")
            custodian.shutdown(socket.SHUT_WR)
            far.close()
            assert client.stdout
            said = client.stdout.read()
            for number in range(5):
                assert b"answer to line %d\n" % number in said
            assert b"the end\n" in said


def test_many_clients(harness: Harness) -> None:
    pairs = [harness.connect(VERSIONS[number % 2]) for number in range(100)]
    for times in range(3):
        for number, (client, custodian) in enumerate(pairs):
            client.sendall(b"%d" % number * 2000)
            custodian.sendall(b"%d" % number * 2000)
        for number, (client, custodian) in enumerate(pairs):
            expected = b"%d" % number * 2000
            assert (read(custodian, len(expected)), read(client, len(expected))) == (
                expected,
                expected,
            )
        for client, custodian in pairs[times::7]:
            client.close()
            assert custodian.recv(1) == b""
        pairs = [pair for pair in pairs if pair[0].fileno() != -1]
    before_s = harness.processor_s()
    client, custodian = pairs[0]
    for _ in range(50):
        client.sendall(b"x")
        assert read(custodian, 1) == b"x"
    assert harness.processor_s() - before_s < 0.5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGIO])
def test_a_signal_ends_it_after_a_while(harness: Harness, number: signal.Signals) -> None:
    """And a SIGIO that a custodian had pending ends nothing."""
    client, custodian = harness.connect(ssl.TLSVersion.TLSv1_3)
    harness.order(b"R")
    began_at = time.monotonic()
    harness.process.send_signal(number)
    custodian.sendall(b"said in time")
    assert read(client, 12) == b"said in time"
    if number is signal.SIGTERM:
        assert client.recv(1) == b""
        assert custodian.recv(1) == b""
        assert time.monotonic() - began_at >= STOP_S * 0.9
    else:
        assert not select.select([client, custodian], [], [], STOP_S * 3)[0]


@pytest.mark.parametrize("seed", range(3))
def test_what_is_compressed_comes_back_whole(programs: dict[str, Path], seed: int) -> None:
    subprocess.run([programs["sanitized"], "compress", str(seed)], check=True)
