"""Custodians become one, through reloads of a real Apache; of clients with TLS a relay stays."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apachews import Event, wire
from apachews.monitoring.collect import collect
from apachews.monitoring.snapshot import CUSTODIAN

from ..conftest import let_pass, wait_for
from ..support.crowd import Crowd, crowd
from ..support.frames import masked
from ..support.raw_client import RawClient, request
from ..support.site import IS_ROOT, MOD_PYTHON, Site, private_mib, running_site
from .conftest import RESTART_MPMS

# A custodian gives its connections a second after it began, those that were not at rest a
# second later, and looks for another taker after twenty.
MERGE_S = 60.0


def merged(site: Site) -> int:
    """Wait until there is one custodian; return its process id."""
    wait_for(lambda: len(site.custodians()) == 1, MERGE_S, what=site.custodians)
    return site.custodians()[0]


def unharmed(clients: Crowd) -> None:
    clients.fall_silent()
    assert (clients.report.faults, clients.report.closes) == ([], [])


def test_ten_reloads_leave_one_custodian() -> None:
    """Messages flow all the time: none is lost, doubled or out of order."""
    with running_site("event") as site, crowd(site, 40, tls=False) as clients:
        for _ in range(10):
            clients.join(4)
            clients.wait_for_echoes(40)
            site.renew()
        merged(site)
        clients.wait_for_everybody()
        assert clients.open_count == 80
        unharmed(clients)


def test_the_oldest_custodian_stays() -> None:
    with running_site("event") as site, crowd(site, 5, tls=False) as clients:
        site.renew()
        oldest = merged(site)
        with crowd(site, 5, tls=False) as later:
            site.renew()
            assert merged(site) == oldest
            later.wait_for_everybody()
            unharmed(later)
        unharmed(clients)


@pytest.mark.parametrize("mpm", RESTART_MPMS)
def test_sessions_of_clients_with_tls_move_and_a_small_relay_stays(mpm: str) -> None:
    with contextlib.ExitStack() as stack:
        site = stack.enter_context(running_site(mpm))
        crowds = []
        for number in range(3):
            crowds.append(stack.enter_context(crowd(site, 10)))
            crowds[-1].wait_for_echoes(200)
            site.renew()
            wait_for(lambda: sum(clients_of(site).values()) == 10 * number + 10, MERGE_S)  # noqa: B023
        merged(site)
        assert list(clients_of(site).values()) == [30]
        wait_for(lambda: len(site.relays()) >= 2, MERGE_S)
        for clients in crowds:
            clients.wait_for_everybody()
            unharmed(clients)
        sizes = [private_mib(pid) for pid in site.relays()]
        assert max(sizes) < 5, sizes
        for clients in crowds:
            clients.leave(10)
        wait_for(lambda: not site.relays())


@contextlib.contextmanager
def relayed(
    count: int = 10, mpm: str = "event", extra: str = "", round_s: float = 0.1
) -> Iterator[tuple[Site, int, Crowd]]:
    """A site, its one custodian, and clients with TLS whose sessions have moved there."""
    with contextlib.ExitStack() as stack:
        site = stack.enter_context(running_site(mpm, extra=extra))
        stack.enter_context(RawClient(site.dial("ws"))).upgrade()
        site.renew()
        oldest = merged(site)
        clients = stack.enter_context(crowd(site, count, tls=True, round_s=round_s))
        clients.wait_for_echoes(count)
        site.renew()
        wait_for(lambda: clients_of(site) == {oldest: count + 1}, MERGE_S)
        wait_for(lambda: merged(site) == oldest and site.relays())
        yield site, oldest, clients


@pytest.mark.parametrize("scheme", ["wss1.2", "wss1.3"])
def test_big_messages_and_the_closing_handshake_pass_a_relay(scheme: str) -> None:
    extra = "SetEnv APACHEWS_MAX_MESSAGE 16M"
    with running_site("event", extra=extra) as site, contextlib.ExitStack() as stack:
        stack.enter_context(RawClient(site.dial("ws"))).upgrade()
        site.renew()
        oldest = merged(site)
        client = stack.enter_context(RawClient(site.dial(scheme))).upgrade()
        site.renew()
        wait_for(lambda: clients_of(site) == {oldest: 2} and site.relays(), MERGE_S)
        client.socket.settimeout(30)
        for size in (1, 125, 16_384, 65_536, 1 << 20, 8 << 20):
            text = b"0123456789abcdef"[: min(size, 16)] * max(1, size // 16)
            client.send(masked(0x81, text))
            received = b""
            while len(received) < len(text):
                frame = client.read_data_frame()
                assert frame
                received += frame[1]
            assert received == text
        client.send(masked(0x88, b"\x0f\xa0bye"))
        assert client.read_close() == 4000
        assert client.read(1) == b"", "close_notify"
        client.socket.close()
        wait_for(lambda: not site.relays())
        assert clients_of(site) == {oldest: 1}


@pytest.mark.parametrize("room", [16_384, 4 << 20])
def test_a_slow_reader_behind_a_relay_is_not_taken_for_a_silent_one(room: int) -> None:
    """It comes to a PING only after what was sent before, which it reads a little at a time.

    That waits before the relay, or in the client's own kernel.
    """
    # The client needs more than PING_TIMEOUT to come to a PING, and less than a third of it for
    # what its kernel holds.
    extra = "SetEnv APACHEWS_PING_INTERVAL 3s\nSetEnv APACHEWS_PING_TIMEOUT 6s\n"
    count, size = 40, 10_000

    def push(event: Event) -> None:
        if event.type() == Event.IO:
            text = event.read()
            is_push = text in ("push", b"push")
            for _ in range(count if is_push else 1):
                event.write(text.ljust(size if is_push else 1))

    with running_site("event", extra=extra) as site, contextlib.ExitStack() as stack:
        stack.enter_context(site.producer("push.ws", push))
        stack.enter_context(RawClient(site.dial("ws"))).upgrade()
        site.renew()
        client = stack.enter_context(RawClient(site.dial("wss1.3"))).upgrade("/push.ws")
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
        site.renew()

        def is_relayed() -> bool:
            client.send(masked(0x81, b"hi"))  # as it says something, it is not asked
            assert client.read_data_frame() == (0x81, b"hi")
            return bool(len(site.custodians()) == 1 and site.relays())

        wait_for(is_relayed, MERGE_S)
        client.send(masked(0x81, b"push"))
        received, pings = 0, []
        while received < count * size:
            frame = client.read_frame()
            assert frame, f"closed after {received} bytes"
            assert frame[0] != 0x88, f"{frame} after {received} bytes"
            if frame[0] == 0x89:
                client.send(masked(0x8A, frame[1]))
                pings.append(received)
            else:
                received += len(frame[1])
            let_pass(0.4)
        client.send(masked(0x81, b"hi"))
        while (frame := client.read_frame()) and frame[0] == 0x89:
            pings.append(received)
        assert frame == (0x81, b"hi")
        assert pings


def test_a_client_that_never_reads_behind_a_relay_is_closed() -> None:
    extra = "SetEnv APACHEWS_SEND_TIMEOUT 2s\nSetEnv APACHEWS_CLOSE_TIMEOUT 1s\n"
    with running_site("event", extra=extra) as site, contextlib.ExitStack() as stack:
        stack.enter_context(RawClient(site.dial("ws"))).upgrade()
        site.renew()
        client = stack.enter_context(RawClient(site.dial("wss1.3"))).upgrade()
        site.renew()
        wait_for(lambda: len(site.custodians()) == 1 and site.relays(), MERGE_S)
        client.socket.settimeout(1.0)
        with contextlib.suppress(TimeoutError, OSError):
            while True:
                client.send(masked(0x82, b"x" * 60_000))
        wait_for(lambda: site.log_lines(r"\(TOO_SLOW\)"), 30, what=lambda: site.apache.error_log)
        wait_for(lambda: not site.relays(), 30)


@pytest.mark.parametrize("how", ["stop", "graceful-stop", "killed"])
def test_clients_behind_a_relay_are_told_of_apaches_end(how: str) -> None:
    with relayed() as (site, _, clients):
        site.settle()
        children = site.apache.children()
        if how == "stop":
            site.apache.stop()
        else:
            os.kill(site.apache.pid, signal.SIGWINCH if how == "graceful-stop" else signal.SIGKILL)
        try:
            wait_for(lambda: len(clients.report.closes) == 10)
            assert set(clients.report.closes) == {wire.GOING_AWAY}
            wait_for(lambda: not set(site.carriers()) - set(children))
        finally:
            if how == "killed":
                for pid in children:
                    os.kill(pid, signal.SIGKILL)


def test_relays_end_when_the_custodian_is_killed() -> None:
    """With an end of TLS for each client: its session is lost, as with any process."""
    with relayed() as (site, oldest, clients):
        os.kill(oldest, signal.SIGKILL)
        wait_for(lambda: len(clients.report.closes) == 10)
        assert set(clients.report.closes) == {wire.ABNORMAL}
        wait_for(lambda: not site.carriers())


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_relay_that_ends_takes_its_own_clients_only(number: signal.Signals) -> None:
    with relayed() as (site, oldest, clients), crowd(site, 6, tls=True) as later:
        later.wait_for_echoes(6)
        (relay,) = site.relays()
        site.renew()
        wait_for(lambda: len(site.relays()) == 2 and clients_of(site) == {oldest: 17}, MERGE_S)
        os.kill(relay, number)
        wait_for(lambda: len(clients.report.closes) == 10)
        wait_for(lambda: clients_of(site) == {oldest: 7})
        later.wait_for_everybody()
        unharmed(later)


def test_a_relay_has_nothing_of_apaches() -> None:
    with relayed() as (site, _, clients):
        (relay,) = site.relays()
        targets = []
        for entry in Path(f"/proc/{relay}/fd").iterdir():
            targets.append(os.readlink(entry))
        assert sum(target.startswith("socket:") for target in targets) == 20
        others = {target for target in targets if not target.startswith("socket:")}
        assert others == {"anon_inode:[eventpoll]", "anon_inode:[signalfd]"}
        clients.fall_silent()
        before = Path(f"/proc/{relay}/schedstat").read_text().split()[2]
        let_pass(2.0)
        assert Path(f"/proc/{relay}/schedstat").read_text().split()[2] == before, "it sleeps"


def clients_of(site: Site) -> dict[int, int]:
    """Return how many clients each custodian has, as the status has it."""
    if not any(Path("/tmp").glob(f"apachews-*/{site.apache.pid}.*")):
        return {}  # Apache has no run directory before the first process shares something
    status = collect(str(run_directory(site)), site.apache.pid, owner=owner(site))
    return {p.pid: p.connections_count for p in status.processes if p.kind == CUSTODIAN}


def run_directory(site: Site) -> Path:
    (found,) = (
        path for path in Path("/tmp").glob("apachews-*") if any(path.glob(f"{site.apache.pid}.*"))
    )
    return found


def owner(site: Site) -> int:
    return run_directory(site).stat().st_uid


def test_totals_neither_fall_nor_jump() -> None:
    """What a connection passed in one process is not counted again in the next one."""
    with running_site("event") as site, crowd(site, 5, tls=False) as first:
        site.renew()
        oldest = merged(site)
        first.fall_silent()
        before = counts(site, oldest)
        with crowd(site, 10, tls=False) as second:
            second.wait_for_echoes(1000)
            second.fall_silent()
            site.renew()
            wait_for(lambda: clients_of(site) == {oldest: 15}, MERGE_S)
            assert counts(site, oldest) == before
            assert merged(site) == oldest


def counts(site: Site, pid: int) -> tuple[int, int, int]:
    """Return connections, messages and bytes that a process has counted."""
    status = collect(str(run_directory(site)), site.apache.pid, owner=owner(site))
    (process,) = (p for p in status.processes if p.pid == pid)
    (endpoint,) = process.endpoints
    return endpoint.total, endpoint.messages_in, endpoint.bytes_out


def test_of_too_many_custodians_those_with_the_fewest_clients_end() -> None:
    """After two checks, at the pace of APACHEWS_DRAIN_RATE; relays are not counted."""
    extra = "SetEnv APACHEWS_MAX_CUSTODIANS 1\nSetEnv APACHEWS_DRAIN_RATE 10/s"
    # Clients within a frame answer no PING.
    extra += "\nSetEnv APACHEWS_PING_INTERVAL off"
    with contextlib.ExitStack() as stack:
        site = stack.enter_context(running_site("event", extra=extra))
        crowds = []
        for tls in (True, False):
            crowds.append(stack.enter_context(crowd(site, 10, tls=tls)))
            crowds[-1].wait_for_echoes(20)
            site.renew()
        oldest = merged(site)
        # Those that are within a frame cannot move, and keep their custodian.
        few = [stack.enter_context(RawClient(site.dial("wss1.3"))).upgrade() for _ in range(5)]
        for client in few:
            client.send(masked(0x81, b"half a frame")[:9])
        crowds.append(stack.enter_context(crowd(site, 10, tls=True)))
        site.renew()
        wait_for(lambda: sorted(clients_of(site).values()) == [5, 30], MERGE_S)
        closes: list[tuple[float, int]] = []

        def await_close(client: RawClient) -> None:
            client.socket.settimeout(100)
            code = client.read_close()
            closes.append((time.monotonic(), code))
            client.socket.close()

        threads = [threading.Thread(target=await_close, args=[client]) for client in few]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [code for _, code in closes] == [wire.SERVICE_RESTART] * 5
        assert closes[-1][0] - closes[0][0] > 0.3, "ten a second"
        wait_for(lambda: clients_of(site) == {oldest: 30}, MERGE_S)
        assert merged(site) == oldest
        assert site.relays()
        for clients in crowds:
            clients.wait_for_everybody()
            unharmed(clients)


class Squeezing:
    """A client that compresses with a window of its own, which the server must keep."""

    def __init__(self, client: RawClient, bits: int) -> None:
        self.client = client.upgrade(
            Sec_WebSocket_Extensions=f"permessage-deflate; client_max_window_bits={bits}"
        )
        self._deflater = zlib.compressobj(9, zlib.DEFLATED, -bits)
        self._inflater = zlib.decompressobj(-15)

    def echoes(self, text: bytes) -> int:
        """Send a text and check its echo; return how many bytes it took."""
        data = self._deflater.compress(text) + self._deflater.flush(zlib.Z_SYNC_FLUSH)
        self.client.send(masked(0xC1, data[:-4]))
        frame = self.client.read_data_frame()
        assert frame
        payload = frame[1]
        if frame[0] & 0x40:
            payload = self._inflater.decompress(payload + b"\0\0\xff\xff")
        assert payload == text
        return len(data)


@pytest.mark.parametrize("bits", [9, 12, 15])
def test_a_compressed_message_refers_to_those_before_the_handover(bits: int) -> None:
    extra = "SetEnv APACHEWS_DEFLATE_WINDOW_BITS 15"
    text = b"".join(b"%04x" % (number * 40503 % 65536) for number in range(50))
    with running_site("event", extra=extra) as site, contextlib.ExitStack() as stack:
        elder = stack.enter_context(RawClient(site.dial("ws"))).upgrade()
        site.renew()
        oldest = merged(site)
        client = Squeezing(stack.enter_context(RawClient(site.dial("ws"))), bits)
        first = client.echoes(text)
        site.renew()
        wait_for(lambda: clients_of(site) == {oldest: 2}, MERGE_S)
        assert client.echoes(text) < first / 3, "it refers to the first one"
        elder.send(masked(0x81, b"still here"))
        assert elder.read_data_frame() == (0x81, b"still here")


def test_what_is_not_at_rest_stays_until_it_is() -> None:
    with running_site("event") as site, contextlib.ExitStack() as stack:
        elder = stack.enter_context(RawClient(site.dial("ws"))).upgrade()
        site.renew()
        oldest = merged(site)
        half = stack.enter_context(RawClient(site.dial("ws"))).upgrade()
        half.send(masked(0x81, b"half a frame")[:9])
        other = stack.enter_context(RawClient(site.dial("ws"))).upgrade()
        site.renew()
        wait_for(lambda: sorted(clients_of(site).values()) == [1, 2], MERGE_S)
        half.send(masked(0x81, b"half a frame")[9:])
        assert half.read_data_frame() == (0x81, b"half a frame")
        assert merged(site) == oldest
        for client in (elder, half, other):
            client.send(masked(0x81, b"all here"))
            assert client.read_data_frame() == (0x81, b"all here")


def test_the_standing_custodian_is_killed_while_others_give() -> None:
    """Its own clients are cut off, as those of any process that is killed; no others."""
    with running_site("event") as site, crowd(site, 20, tls=False) as old:
        site.renew()
        oldest = merged(site)
        with crowd(site, 200, tls=False, round_s=0.2) as new:
            new.wait_for_echoes(200)
            site.renew()
            wait_for(lambda: clients_of(site).get(oldest, 0) > 20, MERGE_S)
            os.kill(oldest, signal.SIGKILL)
            wait_for(lambda: len(old.report.closes) == 20)
            # A fast machine may have moved all of them before the signal.
            wait_for(lambda: new.open_count == 0 or len(site.custodians()) == 1, MERGE_S)
            if new.open_count:
                new.wait_for_echoes(200)
            # A further generation finds the new oldest one.
            with crowd(site, 5, tls=False) as later:
                site.renew()
                merged(site)
                later.wait_for_everybody()
                unharmed(later)
            new.fall_silent()  # every client that is open has all its answers
            # A client that was handed over shares the fate of that process; the others stay.
            assert set(new.report.closes) <= {wire.ABNORMAL}
            assert new.open_count == 200 - len(new.report.closes)
            assert new.report.faults == []


def test_a_process_of_another_user_is_given_nothing() -> None:
    """The next older one is; the socket's owner is right, its listener's is not."""
    with running_site("event") as site, crowd(site, 5, tls=False) as clients:
        site.renew()
        merged(site)
        name = run_directory(site) / f"{site.apache.pid}.{0:020}.{os.getpid()}.handover"
        with stranger(name, owner(site)) as greetings:
            with crowd(site, 5, tls=False) as later:
                site.renew()
                merged(site)
                later.wait_for_everybody()
                unharmed(later)
            unharmed(clients)
            assert greetings() == [] or not IS_ROOT


@contextlib.contextmanager
def stranger(path: Path, user: int) -> Iterator[Callable[[], list[bytes]]]:
    """Listen as an older custodian would, but as another user; yield what was said to it."""
    received: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        os.chown(path, user, -1)
        listener.listen(8)
        listener.setblocking(False)

        def greetings() -> list[bytes]:
            with contextlib.suppress(BlockingIOError):
                while True:
                    sock, _ = listener.accept()
                    with sock:
                        sock.setblocking(False)
                        with contextlib.suppress(BlockingIOError):
                            if data := sock.recv(1000):
                                received.append(data)
            return received

        yield greetings
    path.unlink(missing_ok=True)


def test_limits_count_clients_that_were_handed_over() -> None:
    extra = "SetEnv APACHEWS_MAX_CONNECTIONS 3"
    with running_site("event", extra=extra) as site, contextlib.ExitStack() as stack:

        def dial() -> RawClient:
            return stack.enter_context(RawClient(site.dial("ws")))

        first = dial().upgrade()
        site.renew()
        oldest = merged(site)
        second = dial().upgrade()
        site.renew()
        wait_for(lambda: clients_of(site) == {oldest: 2}, MERGE_S)
        third = dial().upgrade()
        refused = dial()
        assert status_of(refused) == 503
        second.send(masked(0x88, b"\x03\xe8"))
        second.socket.close()
        wait_for(lambda: status_of(dial()) == 101)
        for client in (first, third):
            client.send(masked(0x81, b"here"))
            assert client.read_data_frame() == (0x81, b"here")


def status_of(client: RawClient) -> int:
    client.send(request())
    return client.read_head()[0]


def test_closing_lines_go_to_the_log_of_the_virtual_host() -> None:
    """As before the handover, and as `LogLevel` of the virtual host says."""
    level = f"LogLevel {'python' if MOD_PYTHON else 'wsgi'}:info"
    with running_site("event", extra=level) as site, contextlib.ExitStack() as stack:
        stack.enter_context(RawClient(site.dial("ws"))).upgrade()
        site.renew()
        oldest = merged(site)
        client = stack.enter_context(RawClient(site.dial("ws"))).upgrade()
        client.send(masked(0x81, b"one"))
        assert client.read_data_frame()
        site.renew()
        wait_for(lambda: clients_of(site) == {oldest: 2}, MERGE_S)
        client.send(masked(0x88, b"\x0f\xa0so \xc3\xa4"))
        client.socket.close()
        pattern = rf"\[wsgi:info\] \[pid {oldest}\].*CLIENT_CLOSED\) code=4000 .*messages_in=1 "
        wait_for(lambda: site.log_lines(pattern), what=lambda: site.apache.error_log)


def test_the_log_of_closes_has_their_lines(short_path: Path) -> None:
    short_path.chmod(0o777)
    log = short_path / "closes.log"
    extra = (
        f"Define APACHEWS_LOG_DIRECTORY {log.parent}\nSetEnv APACHEWS_CLOSE_LOG {log}\n"
        'SetEnv APACHEWS_CLOSE_LOG_FORMAT "%h %>s %{messages_in}x %P %U"'
    )
    with running_site("event", extra=extra) as site, contextlib.ExitStack() as stack:
        stack.enter_context(RawClient(site.dial("ws"))).upgrade()
        site.renew()
        oldest = merged(site)
        client = stack.enter_context(RawClient(site.dial("ws"))).upgrade()
        client.send(masked(0x81, b"one"))
        assert client.read_data_frame()
        site.renew()
        wait_for(lambda: clients_of(site) == {oldest: 2}, MERGE_S)
        client.send(masked(0x88, b"\x0f\xa0"))
        client.socket.close()
        wait_for(log.exists)
        wait_for(lambda: log.read_text() == f"127.0.0.1 4000 1 {oldest} /echo.ws\n")


def test_a_producer_that_restarts_later_resumes_them() -> None:
    with running_site("event") as site, contextlib.ExitStack() as stack:
        stack.enter_context(RawClient(site.dial("ws"))).upgrade()
        site.renew()
        oldest = merged(site)
        with site.echo_process("mortal.ws") as producer:
            client = stack.enter_context(RawClient(site.dial("ws"))).upgrade("/mortal.ws")
            site.renew()
            wait_for(lambda: clients_of(site) == {oldest: 2}, MERGE_S)
            producer.kill()
        with site.echo_process("mortal.ws"):
            client.send(masked(0x81, b"to the next one"))
            assert client.read_data_frame() == (0x81, b"to the next one")


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (lambda site: site.apache.stop(), wire.GOING_AWAY),
        (lambda site: os.kill(site.custodians()[0], signal.SIGTERM), wire.GOING_AWAY),
    ],
)
def test_the_standing_custodian_ends_as_any_other(end: Callable[[Site], None], code: int) -> None:
    with running_site("event") as site, crowd(site, 10, tls=False) as clients:
        for _ in range(2):
            clients.join(5)
            site.renew()
        merged(site)
        site.settle()
        end(site)
        wait_for(lambda: len(clients.report.closes) == 20)
        assert set(clients.report.closes) == {code}
        wait_for(lambda: not site.custodians())
