"""What Apache's restarts and stops do to clients: nothing, or a goodbye with its code."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from apachews import Event, wire
from apachews.wire.answer import Answer
from apachews_tools.httpd.private_apache import require_free_port

from ..conftest import wait_for
from ..support.crowd import Crowd, crowd, plain_http, wait_for_answer
from ..support.frames import masked
from ..support.raw_client import RawClient, request
from ..support.site import Site, descriptors_of, private_mib, running_site
from .conftest import RESTART_MPMS
from .test_producers import by_hand

# httpd has killed a child that did not end by itself.
KILLED = r"AH00046"
END_S = 30.0


@pytest.mark.parametrize("mpm", RESTART_MPMS)
def test_200_sockets_and_5_graceful_restarts(mpm: str) -> None:
    with running_site(mpm, workers=20, threads=10) as site:
        most = 0
        with crowd(site, 200) as clients, plain_http(site) as answers:
            clients.wait_for_echoes(1000)
            for _ in range(5):
                site.renew()
                most = max(most, len(site.apache.children()))
                clients.wait_for_echoes(1000)
                # The new children have no fewer workers for pages than those before.
                wait_for_answer(answers)
            assert clients.open_count == 200
            clients.fall_silent()
            report = clients.report
            assert (report.faults, report.closes) == ([], [])
            # Where they are: with custodians, and no child of Apache has more than its own.
            assert site.custodians()
            assert most <= 20
        # With the last connection its process ends.
        wait_for(lambda: not site.custodians())


@contextlib.contextmanager
def old_and_new(mpm: str, count: int = 20) -> Iterator[tuple[Site, Crowd, Crowd]]:
    """A site, clients that are with custodians, and clients that are with its children."""
    with contextlib.ExitStack() as stack:
        site = stack.enter_context(running_site(mpm))
        old = stack.enter_context(crowd(site, count))
        old.wait_for_echoes(count)
        site.renew()
        assert site.custodians()
        new = stack.enter_context(crowd(site, count))
        new.wait_for_echoes(count)
        site.settle()
        yield site, old, new


def goodbyes(clients: Crowd, count: int = 20) -> bool:
    """Tell whether all clients were told that the server goes away, and nothing else."""
    closes = clients.report.closes
    assert set(closes) <= {wire.GOING_AWAY}, clients.report
    return len(closes) == count


@pytest.mark.parametrize("mpm", RESTART_MPMS)
def test_a_stop_tells_everybody_and_leaves_nothing(mpm: str) -> None:
    with old_and_new(mpm) as (site, old, new):
        site.apache.stop()
        assert site.log_lines(KILLED) == []
        for port in (site.apache.port, site.apache.tls_port):
            require_free_port(port)
        wait_for(lambda: goodbyes(old) and goodbyes(new))
        wait_for(lambda: not site.custodians())


@pytest.mark.parametrize("mpm", RESTART_MPMS)
def test_a_graceful_stop_tells_everybody_before_apache_has_gone(mpm: str) -> None:
    """systemd kills what is left of a service when its main process has ended."""
    with old_and_new(mpm) as (site, old, new):

        def all_were_told() -> bool:
            has_ended = site.apache.poll() is not None
            were_told = goodbyes(old) and goodbyes(new)
            assert were_told or not has_ended
            return were_told

        os.kill(site.apache.pid, signal.SIGWINCH)
        wait_for(all_were_told, END_S)
        assert site.apache.wait(END_S) == 0
        wait_for(lambda: not site.custodians())


@pytest.mark.parametrize("mpm", RESTART_MPMS)
def test_a_hard_restart_tells_those_of_apaches_children(mpm: str) -> None:
    with old_and_new(mpm) as (site, old, new):
        site.renew(number=signal.SIGHUP)
        wait_for(lambda: goodbyes(new))
        # Custodians are no children of Apache's.
        old.wait_for_echoes(100)
        assert old.report.closes == []


def test_custodians_do_not_outlive_an_apache_that_was_killed() -> None:
    with old_and_new("event") as (site, old, _):
        children = site.apache.children()
        os.kill(site.apache.pid, signal.SIGKILL)
        try:
            wait_for(lambda: goodbyes(old))
            wait_for(lambda: not set(site.custodians()) - set(children))
        finally:
            for pid in children:
                os.kill(pid, signal.SIGKILL)


def test_a_custodian_that_is_told_to_end_says_goodbye() -> None:
    with old_and_new("event") as (site, old, new):
        (custodian,) = site.custodians()
        os.kill(custodian, signal.SIGTERM)
        wait_for(lambda: goodbyes(old))
        wait_for(lambda: not site.custodians())
        new.wait_for_echoes(100)


@pytest.mark.parametrize("mpm", RESTART_MPMS)
def test_a_child_that_is_killed_takes_only_its_own_clients(mpm: str) -> None:
    with old_and_new(mpm) as (site, old, new):
        site.expected_harm = "exit signal Killed"
        site.kill_children()
        wait_for(lambda: len(new.report.closes) == 20)
        assert set(new.report.closes) == {wire.ABNORMAL}
        old.wait_for_echoes(100)
        assert (old.report.faults, old.report.closes) == ([], [])
        with crowd(site, 5) as later:
            later.wait_for_echoes(50)
        requests.get(site.http(), timeout=END_S).raise_for_status()


@pytest.mark.parametrize("mpm", RESTART_MPMS)
def test_children_that_had_their_share_of_connections(mpm: str) -> None:
    """MaxConnectionsPerChild: many custodians, and nobody dropped."""
    with running_site(mpm, extra="MaxConnectionsPerChild 5") as site, crowd(site, 20) as clients:
        for _ in range(30):  # one more than its share tells a child of the worker MPM
            requests.get(site.http(), timeout=END_S)
        wait_for(site.custodians)
        clients.wait_for_echoes(200)
        clients.fall_silent()
        assert (clients.report.faults, clients.report.closes) == ([], [])


SPARE = {
    "prefork": "StartServers 1\nMinSpareServers 1\nMaxSpareServers 2",
    "threads": "StartServers 1\nMinSpareThreads 5\nMaxSpareThreads 15",
}


@pytest.mark.parametrize("mpm", RESTART_MPMS)
def test_spare_children(mpm: str) -> None:
    """httpd ends children that it has too many of: nobody is dropped."""
    asking = "<Location /busy.ws>\nSetEnv APACHEWS_ACCEPT producer\n"
    asking += "SetEnv APACHEWS_CONNECT_TIMEOUT 60s\n</Location>\nDefine APACHEWS_MAX_WAITING 100"
    extra = f"{SPARE.get(mpm, SPARE['threads'])}\n{asking}"
    asked: list[Event] = []
    answered = threading.Event()

    def serve(event: Event) -> None:
        if event.type() is Event.Accept:
            asked.append(event)
        if answered.is_set():
            while asked:
                asked.pop().accept()

    with (
        running_site(mpm, workers=40, threads=5, extra=extra) as site,
        site.producer("busy.ws", serve),
        contextlib.ExitStack() as stack,
    ):
        # Each of these keeps a worker, and so httpd starts children.  With threads there are four
        # for twelve busy and five spare ones; three would stay, as fifteen may be spare.
        for _ in range(12):
            stack.enter_context(RawClient(site.dial("ws"))).send(request("/busy.ws"))
        wait_for(lambda: len(asked) == 12, 30)
        wait_for(lambda: len(site.apache.children()) > 3, 30)
        most = len(site.apache.children())
        clients = stack.enter_context(crowd(site, 40))
        clients.wait_for_echoes(40)
        answered.set()
        stack.enter_context(RawClient(site.dial("ws"))).upgrade("/busy.ws")
        wait_for(lambda: site.custodians() and len(site.apache.children()) < most, 60)
        clients.wait_for_everybody()
        clients.fall_silent()
        assert (clients.report.faults, clients.report.closes) == ([], [])


def test_goodbyes_of_a_stop_are_spread() -> None:
    """As systemd stops Apache with the drop-in: SIGTERM to all of its processes."""
    extra = "SetEnv APACHEWS_DRAIN_RATE 10/s"
    with running_site("event", extra=extra) as site, crowd(site, 10) as old:
        site.renew()
        with crowd(site, 10) as new:
            new.wait_for_echoes(10)
            site.settle()
            for pid in (site.apache.pid, *site.apache.children(), *site.custodians()):
                os.kill(pid, signal.SIGTERM)
            assert site.apache.wait(END_S) == 0
            for clients in (old, new):
                wait_for(lambda: goodbyes(clients, 10))  # noqa: B023
                closed_at = clients.report.closed_at
                assert closed_at[-1] - closed_at[0] > 0.5, "ten a second"
            assert site.log_lines(KILLED) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGWINCH])
def test_a_busy_worker_keeps_nobody_from_the_goodbye(number: int) -> None:
    """httpd waits for its workers before it ends a child; clients do not."""
    settings = "SetEnv APACHEWS_ACCEPT producer\nSetEnv APACHEWS_CONNECT_TIMEOUT 60s"
    extra = f"<Location /busy.ws>\n{settings}\n</Location>"
    came = threading.Event()
    with (
        running_site("event", extra=extra) as site,
        crowd(site, 20) as clients,
        # It never answers, and a worker waits for it.
        site.producer("busy.ws", lambda event: came.set()),
        RawClient(site.dial("ws")) as slow,
    ):
        slow.send(request("/busy.ws"))
        assert came.wait(10)
        site.settle()
        os.kill(site.apache.pid, number)
        # Sooner than the worker gives up.
        wait_for(lambda: goodbyes(clients), END_S)


class Compressing:
    """A client that has agreed on permessage-deflate, and keeps its context."""

    def __init__(self, client: RawClient) -> None:
        offer = "permessage-deflate; client_max_window_bits"
        self._client = client.upgrade(Sec_WebSocket_Extensions=offer)
        self._deflater = zlib.compressobj(1, zlib.DEFLATED, -9)
        self._inflater = zlib.decompressobj(-15)

    def echoes(self, text: bytes) -> bool:
        data = self._deflater.compress(text) + self._deflater.flush(zlib.Z_SYNC_FLUSH)
        self._client.send(masked(0xC1, data[:-4]))
        frame = self._client.read_data_frame()
        assert frame
        assert frame[0] == 0xC1, "long enough to be compressed"
        return self._inflater.decompress(frame[1] + b"\0\0\xff\xff") == text


def stuff(client: RawClient) -> int:
    """Send messages and read none until nothing more goes; return how many were sent."""
    client.socket.settimeout(1)
    count = 0
    try:
        while True:
            client.send(masked(0x82, count.to_bytes(4, "big") * 16384))
            count += 1
    except TimeoutError:
        client.socket.settimeout(10)
    return count


@pytest.mark.parametrize("mpm", RESTART_MPMS)
def test_whatever_state_connections_are_in_they_go_on(mpm: str, scheme: str) -> None:
    asking = "<Location /hand.ws>\nSetEnv APACHEWS_ACCEPT producer\n</Location>"
    with running_site(mpm, extra=asking) as site, contextlib.ExitStack() as stack:

        def dial() -> RawClient:
            return stack.enter_context(RawClient(site.dial(scheme)))

        half_frame, half_message = dial().upgrade(), dial().upgrade()
        half_frame.send(masked(0x81, b"half a frame")[:9])
        half_message.send(masked(0x01, b"half a "))
        squeezed = Compressing(dial())
        text = b"what was said before is not said again " * 20
        assert squeezed.echoes(text)
        stuffed = dial().upgrade()
        sent = stuff(stuffed)
        assert sent > 16  # MiB / 64 KiB
        produced = stack.enter_context(by_hand(site, "hand.ws"))
        asked = dial()
        asked.send(request("/hand.ws"))
        answer = stack.enter_context(produced.accept())
        # (A child of prefork may answer 400 where its signal meets it reading a request.)
        unfinished = dial() if mpm != "prefork" else None
        if unfinished:
            unfinished.send(request()[:40])

        old = set(site.apache.children())
        site.settle()
        site.apache.graceful()
        # These two keep a worker, and so their child, until they have their answer.
        answer.sendall(Answer.accept(None, ()).encode() + wire.encode_frame(1, b"half")[:4])
        assert asked.read_head()[0] == 101
        if unfinished:
            unfinished.send(request()[40:])
            assert unfinished.read_head()[0] == 101
        wait_for(lambda: not old & set(site.apache.children()), END_S)

        half_frame.send(masked(0x81, b"half a frame")[9:])
        assert half_frame.read_data_frame() == (0x81, b"half a frame")
        half_message.send(masked(0x89, b"") + masked(0x80, b"message"))
        assert half_message.read_frame() == (0x8A, b"")
        assert half_message.read_data_frame() == (0x81, b"half a message")
        assert squeezed.echoes(text[::-1])
        assert squeezed.echoes(text)
        answer.sendall(wire.encode_frame(1, b"half")[4:])
        assert asked.read_data_frame() == (0x81, b"half")
        if unfinished:
            unfinished.send(masked(0x81, b"hello"))
            assert unfinished.read_data_frame() == (0x81, b"hello")
        for count in range(sent):
            frame = stuffed.read_data_frame()
            assert frame == (0x82, count.to_bytes(4, "big") * 16384), count


@pytest.mark.parametrize("mpm", RESTART_MPMS)
def test_a_custodian_has_nothing_of_apaches(mpm: str) -> None:
    """Its descriptors are its connections, its log and its files; loggers end."""
    directives = """
        CustomLog "|/usr/bin/tee -a ${ROOT}/piped.log" "%r"
        SetEnv APACHEWS_MAX_CONNECTIONS 1000
        <VirtualHost 127.0.0.1:${PORT}>
            ServerName piped
            ErrorLog "|/usr/bin/tee -a ${ROOT}/piped_errors.log"
        </VirtualHost>
    """
    with running_site(mpm, extra=directives) as site, crowd(site, 10) as clients:
        clients.wait_for_echoes(20)
        loggers = _loggers(site)
        assert loggers
        site.renew()
        custodians = site.custodians()
        assert custodians
        wait_for(lambda: not set(loggers) & set(_loggers(site)))
        for pid in custodians:
            links = descriptors_of(Path(f"/proc/{pid}"))
            allowed = (
                "/dev/null",
                "anon_inode:[eventpoll]",
                "anon_inode:[pidfd]",
                "anon_inode:[signalfd]",
                str(site.apache.root),  # the directory of the pid file
            )
            others = [
                link
                for link in links
                if link not in allowed
                and not link.startswith("socket:")
                and not link.endswith(("/error.log", ".slots", ".custodian"))
                and "/apachews-" not in link
            ]
            assert others == []
            assert private_mib(pid) < 32
            # One for the client and one for the producer, and one more for a client behind a
            # relay; one to be asked for its status, one to be given connections, and one to
            # give them.
            assert sum(link.startswith("socket:") for link in links) <= 3 * 10 + 3
        clients.fall_silent()
        assert (clients.report.faults, clients.report.closes) == ([], [])


def _loggers(site: Site) -> list[int]:
    """Return the piped loggers of this site; other sites have theirs at the same time."""
    log = str(site.apache.root / "piped_errors.log").encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and log in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            pass  # it has ended
    return found


def test_clients_of_custodians_are_sent_away_in_the_end() -> None:
    extra = "SetEnv APACHEWS_CUSTODIAN_AGE 2s\nSetEnv APACHEWS_DRAIN_RATE 10/s"
    with running_site("event", extra=extra) as site, crowd(site, 10) as old:
        site.renew()
        with crowd(site, 5) as new:
            new.wait_for_echoes(10)
            wait_for(lambda: len(old.report.closes) == 10)
            closed_at = old.report.closed_at
            assert closed_at[-1] - closed_at[0] > 0.5, "ten a second"
            assert old.report.closes == [wire.SERVICE_RESTART] * 10
            new.wait_for_echoes(20)
            assert new.report.closes == []
            assert len(site.log_lines(r"\(DRAINED\) code=1012")) == 10
