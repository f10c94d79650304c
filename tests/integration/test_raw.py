"""Any program on a Unix socket as the producer: APACHEWS_WIRE raw, behind a real Apache."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from apachews import wire

from ..conftest import wait_for
from ..support.frames import masked
from ..support.raw_client import RawClient
from ..support.site import IS_ROOT, ROOT, Site, running_site

SETTINGS = """
<Location /raw.ws>
    SetEnv APACHEWS_WIRE raw
</Location>
<Location /line.ws>
    SetEnv APACHEWS_WIRE raw
    SetEnv APACHEWS_RAW_DELIMITER newline
    SetEnv APACHEWS_MAX_BUFFER 4K
</Location>
<Location /text.ws>
    SetEnv APACHEWS_WIRE raw
    SetEnv APACHEWS_RAW_TYPE text
</Location>
<Location /binary.ws>
    SetEnv APACHEWS_WIRE raw
    SetEnv APACHEWS_RAW_TYPE binary
</Location>
<Location /ask.ws>
    SetEnv APACHEWS_WIRE raw
    SetEnv APACHEWS_ACCEPT producer
</Location>
"""
SCHEMES = pytest.mark.parametrize("scheme", ["ws", "wss1.3"])


@pytest.fixture(scope="module", params=["event", "worker", "prefork"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    with running_site(mpm=request.param, extra=SETTINGS) as site:
        yield site


@contextmanager
def program(path: Path, *command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program that makes a socket file, for anybody."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    process = subprocess.Popen(command, umask=0, stderr=subprocess.PIPE)
    try:
        wait_for(lambda: path.exists() and is_listening(path), what=process.poll)
        yield process
    finally:
        process.kill()
        process.communicate()
        path.unlink(missing_ok=True)


def is_listening(path: Path) -> bool:
    """Tell whether somebody listens, without connecting: nc takes one client only."""
    rows = [row.split() for row in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return any(row[-1] == str(path) and row[3] == "00010000" for row in rows)


@contextmanager
def plain_server(path: Path, serve: Callable[[socket.socket], None]) -> Iterator[None]:
    """Serve connections one after the other by a function."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen()
        listener.settimeout(0.05)
        ended = threading.Event()
        failed: list[BaseException] = []

        def run() -> None:
            while not ended.is_set():
                try:
                    connection, _ = listener.accept()
                except TimeoutError:
                    continue
                try:
                    with connection:
                        connection.settimeout(20)
                        serve(connection)
                except BaseException as error:
                    failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            path.unlink()
    if failed:
        raise failed[0]


def echo(connection: socket.socket) -> None:
    while data := connection.recv(65536):
        connection.sendall(data)


@SCHEMES
def test_socat_runs_a_program_for_each_client(site: Site, scheme: str) -> None:
    path = site.docroot / "raw.ws"
    with (
        program(path, "socat", f"UNIX-LISTEN:{path},fork", "EXEC:cat"),
        RawClient(site.dial(scheme)).upgrade("/raw.ws") as one,
    ):
        with RawClient(site.dial(scheme)).upgrade("/raw.ws") as other:
            other.send(masked(0x81, b"other"))
            assert other.read_data_frame() == (0x81, b"other")
        one.send(masked(0x81, "hü".encode()))
        assert one.read_data_frame() == (0x81, "hü".encode())
        one.send(masked(0x82, b"\xff\0"))
        assert one.read_data_frame() == (0x82, b"\xff\0")


@SCHEMES
def test_a_program_that_ends_closes_with_1000(site: Site, scheme: str) -> None:
    path = site.docroot / "raw.ws"
    with (
        program(path, "socat", f"UNIX-LISTEN:{path},fork", "EXEC:echo that is all"),
        RawClient(site.dial(scheme)).upgrade("/raw.ws") as client,
    ):
        assert client.read_data_frame() == (0x81, b"that is all\n")
        assert client.read_close() == 1000
    assert wait_for(lambda: site.log_lines(r"wsgi:info.*\(PRODUCER_ENDED\) code=1000"))


def test_nc(site: Site) -> None:
    path = site.docroot / "raw.ws"
    with (
        program(path, "nc", "-lU", str(path)) as process,
        RawClient(site.dial("ws")).upgrade("/raw.ws") as client,
    ):
        client.send(masked(0x81, b"hi") + masked(0x88, wire.encode_close(1000)))
        assert client.read_close() == 1000
        assert process.wait(20) == 0


@pytest.mark.skipif(not IS_ROOT, reason="the page's commands give files to Apache's group")
@pytest.mark.parametrize(
    ("name", "said", "answer"), [("bc", b"6*7\n", b"42\n"), ("look", b"hi", b"")]
)
def test_the_commands_of_the_documentation(
    site: Site, name: str, said: bytes, answer: bytes
) -> None:
    """As they stand in the page, with a shell's umask and Apache's own rights."""
    page = (ROOT / "docs" / "howto" / "raw.md").read_text()
    (command,) = re.findall(rf"^.*/var/www/html/{name}\.ws.*$", page, re.MULTILINE)
    path = site.docroot / "raw.ws"
    command = command.replace(f"/var/www/html/{name}.ws", str(path))
    for needed in ("bc", "nc", "sg", "socat", "stdbuf"):
        if re.search(rf"\b{needed}\b", command) and shutil.which(needed) is None:
            pytest.skip(f"{needed} is not installed")
    # Its standard input stays open: nc ends with that.
    process = subprocess.Popen(
        ["sh", "-c", command],
        umask=0o022,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        wait_for(lambda: path.exists() and is_listening(path), what=process.poll)
        with RawClient(site.dial("ws")).upgrade("/raw.ws") as client:
            client.send(masked(0x81, said))
            if answer:
                assert client.read_data_frame() == (0x81, answer)
            else:
                assert process.stdout and process.stdout.read(len(said)) == said
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        path.unlink(missing_ok=True)


def test_the_perl_program_of_the_documentation(site: Site, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "howto" / "raw.md").read_text()
    (source,) = re.findall(r"^```perl\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    script = tmp_path / "shout.pl"
    script.write_text(source)
    path = site.docroot / "line.ws"
    with (
        program(path, "perl", str(script), str(path)),
        RawClient(site.dial("ws")).upgrade("/line.ws") as one,
        RawClient(site.dial("wss1.3")).upgrade("/line.ws") as other,
    ):
        one.send(masked(0x81, b"hello"))
        assert one.read_data_frame() == (0x81, b"HELLO")
        other.send(masked(0x81, b"you") + masked(0x81, b"too"))
        assert other.read_data_frame() == (0x81, b"YOU")
        assert other.read_data_frame() == (0x81, b"TOO")


def test_lines(site: Site) -> None:
    with (
        plain_server(site.docroot / "line.ws", echo),
        RawClient(site.dial("ws")).upgrade("/line.ws") as client,
    ):
        client.send(masked(0x81, b"a\nb") + masked(0x81, b""))
        assert [client.read_data_frame() for _ in range(3)] == [
            (0x81, b"a"),
            (0x81, b"b"),
            (0x81, b""),
        ]


def test_a_long_line_is_one_message(site: Site) -> None:
    text = "é".encode() * 300_000
    with (
        plain_server(site.docroot / "line.ws", echo),
        RawClient(site.dial("ws")).upgrade("/line.ws") as client,
    ):
        client.send(masked(0x81, text))
        first, got = client.read_data_frame() or (0, b"")
        assert first == wire.TEXT
        while first < wire.FIN:
            first, piece = client.read_data_frame() or (wire.FIN, b"the end")
            assert first & wire.OPCODE == wire.CONTINUATION
            got += piece
        assert got == text


@pytest.mark.parametrize(
    ("path", "expected"),
    [("/text.ws", (0x81, b"hi")), ("/binary.ws", (0x82, b"hi"))],
)
def test_the_type_is_set(site: Site, path: str, expected: tuple[int, bytes]) -> None:
    with (
        plain_server(site.docroot / path[1:], echo),
        RawClient(site.dial("ws")).upgrade(path) as client,
    ):
        client.send(masked(0x82, b"hi"))
        assert client.read_data_frame() == expected


def test_text_that_is_none(site: Site) -> None:
    with (
        plain_server(site.docroot / "text.ws", echo),
        RawClient(site.dial("ws")).upgrade("/text.ws") as client,
    ):
        client.send(masked(0x82, b"\xff"))
        assert client.read_close() == 1011
    assert wait_for(lambda: site.log_lines(r"wsgi:warn.*PRODUCER_ERROR.*APACHEWS_RAW_TYPE"))


def test_it_cannot_be_asked(site: Site) -> None:
    client = RawClient(site.dial("ws"))
    with pytest.raises(AssertionError, match="500"):
        client.upgrade("/ask.ws")
    assert site.log_lines("APACHEWS_ACCEPT.*bridge if APACHEWS_WIRE is raw")


def test_the_message_limit(site: Site) -> None:
    with (
        plain_server(site.docroot / "raw.ws", echo),
        RawClient(site.dial("ws")).upgrade("/raw.ws") as client,
    ):
        client.send(b"\x82\xff" + (1024 * 1024 + 1).to_bytes(8, "big") + b"mask")
        assert client.read_close() == 1009


def test_a_client_that_does_not_read_holds_its_producer_back(site: Site) -> None:
    """What is written stays bounded until the client reads; then all of it comes."""
    total = 64 * 1024 * 1024
    blocked = threading.Event()
    resumed = threading.Event()

    def flood(connection: socket.socket) -> None:
        connection.setblocking(False)
        data, sent = memoryview(bytes(total)), 0
        while sent < total:
            writable = bool(select.select([], [connection], [], 0.0 if not sent else 2.0)[1])
            if writable:
                sent += connection.send(data[sent : sent + 65536])
            elif not resumed.is_set():
                assert sent < total // 2, sent
                blocked.set()
                assert resumed.wait(20)

    with (
        plain_server(site.docroot / "binary.ws", flood),
        RawClient(site.dial("ws")).upgrade("/binary.ws") as client,
    ):
        assert blocked.wait(30)
        resumed.set()
        got = 0
        while got < total:
            first, payload = client.read_data_frame() or (0, b"")
            assert first == 0x82
            got += len(payload)
        assert got == total


def test_a_producer_that_does_not_read_holds_its_client_back(site: Site) -> None:
    hold, held = threading.Event(), threading.Event()
    got = bytearray()
    total = 8 * 1024 * 1024

    def slow(connection: socket.socket) -> None:
        held.set()
        assert hold.wait(30)
        while len(got) < total:
            got.extend(connection.recv(1 << 20))

    with (
        plain_server(site.docroot / "raw.ws", slow),
        RawClient(site.dial("ws")).upgrade("/raw.ws") as client,
    ):
        assert held.wait(20)
        piece = masked(0x82, bytes(65536))
        sent = 0
        client.socket.settimeout(1.0)
        data = memoryview(piece * (total // 65536))
        try:
            while sent < len(data):
                sent += client.socket.send(data[sent : sent + 65536])
        except TimeoutError:
            pass
        assert sent < len(data)
        hold.set()
        client.socket.settimeout(20)
        client.socket.sendall(data[sent:])
        assert wait_for(lambda: len(got) == total, 20)


def test_a_graceful_restart_drops_no_raw_client(site: Site) -> None:
    with (
        plain_server(site.docroot / "raw.ws", echo),
        RawClient(site.dial("ws")).upgrade("/raw.ws") as client,
    ):
        client.send(masked(0x81, b"before"))
        assert client.read_data_frame() == (0x81, b"before")
        site.renew()
        client.send(masked(0x81, b"after"))
        assert client.read_data_frame() == (0x81, b"after")
