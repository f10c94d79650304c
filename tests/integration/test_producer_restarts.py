"""Producers that die, restart and take over from each other; their clients stay."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
from collections.abc import Iterator

import pytest

from apachews import wire
from apachews_tools.httpd import private_apache

from ..conftest import wait_for
from ..support.crowd import crowd
from ..support.frames import masked
from ..support.producers import AS_SYSTEMD, children_of, ended, program, running
from ..support.raw_client import RawClient, request
from ..support.site import Site, running_site
from .test_producers import by_hand, hand_made


def test_a_client_is_resumed_by_the_next_producer(site: Site, scheme: str) -> None:
    with (
        by_hand(site, "hand.ws") as first,
        RawClient(site.dial(scheme)).upgrade("/hand.ws?a=b") as client,
    ):
        with first.accept() as sock:
            sock.sendall(wire.encode_frame(wire.TEXT, b"a"))
            assert client.read_frame() == (0x81, b"a")
            first.close()  # before its clients, as when it dies
        client.send(masked(0x81, b"meanwhile") + masked(0x89, b"p") + masked(0x01, b"and "))
        assert client.read_frame() == (0x8A, b"p")
        refused_with_retry_after(site, "/hand.ws")
        with by_hand(site, "hand.ws") as second, second.accept() as sock:
            assert second.opened == dataclasses.replace(first.opened, resumed=True)
            client.send(masked(0x80, b"after"))
            items = second.received
            while len(items) < 2:
                items += second.reader.receive(sock.recv(65536))
            assert items == ["meanwhile", "and after"]
            sock.sendall(wire.encode_frame(wire.TEXT, b"b"))
            assert client.read_frame() == (0x81, b"b")


def refused_with_retry_after(site: Site, path: str) -> None:
    """Nobody new is let in while there is no producer."""

    def status() -> int:
        with RawClient(site.dial("ws")) as client:
            client.send(request(path))
            status, headers = client.read_head()
            assert status not in (503,) or headers["retry-after"] == "5"
            return status

    assert status() in (404, 503)


def test_the_producer_dies_inside_a_message(event_site: Site, scheme: str) -> None:
    with hand_made(event_site, scheme) as (client, producer):
        producer.sendall(wire.encode_frame(wire.TEXT, b"a", fin=False))
        producer.close()
        assert client.read_frame() == (0x01, b"a")
        assert client.read_close() == 1012


def test_the_producer_dies_inside_a_frame_that_is_not_kept_back(
    event_site: Site, scheme: str
) -> None:
    with hand_made(event_site, scheme) as (client, producer):
        producer.sendall(wire.encode_frame(wire.BINARY, b"x" * 100_000)[:70_000])
        producer.close()
        assert len(client.read(70_001)) == 70_000


def test_nobody_comes_in_time() -> None:
    """And where nobody is to be waited for."""
    extra = """
        <Location /hand.ws>
            SetEnv APACHEWS_HOLD 500ms
        </Location>
        <Location /off.ws>
            SetEnv APACHEWS_HOLD off
        </Location>
    """
    with running_site("event", extra=extra) as site:
        for name in ("hand.ws", "off.ws"):
            with by_hand(site, name) as producer:
                client = RawClient(site.dial("ws")).upgrade(f"/{name}")
                producer.accept().close()
            with client:
                assert client.read_close() == 1012
        assert wait_for(lambda: site.log_lines(r"wsgi:info.*PRODUCER_LEFT.*code=1012"))


def test_the_seeds_producer_is_killed_and_comes_again(event_site: Site) -> None:
    with RawClient(event_site.dial("ws")) as client:
        with event_site.echo_process("mortal.ws") as process:
            client.upgrade("/mortal.ws").send(masked(0x81, b"hi"))
            assert client.read_frame() == (0x81, b"hi")
            process.send_signal(signal.SIGKILL)
            process.wait()  # only then are all its sockets closed, the listening one too
            # The socket file is stale now.
            refused_with_retry_after(event_site, "/mortal.ws")
            client.send(masked(0x81, b"still here"))
        with event_site.echo_process("mortal.ws"):
            assert client.read_data_frame() == (0x81, b"still here")


@pytest.mark.parametrize("mpm", ["event", "prefork"])
def test_a_producer_that_is_killed_again_and_again(mpm: str) -> None:
    """Under load: nobody is dropped, nothing comes twice or out of order."""
    with running_site(mpm) as site, contextlib.ExitStack() as stack:
        process = stack.enter_context(site.echo_process("mortal.ws"))
        clients = stack.enter_context(crowd(site, 50, "/mortal.ws", may_lose=True))
        for _ in range(5):
            clients.wait_for_echoes(500)
            process.send_signal(signal.SIGKILL)
            process.wait()
            process = stack.enter_context(site.echo_process("mortal.ws"))
        clients.wait_for_echoes(500)
        clients.wait_for_everybody()
        assert (clients.report.faults, clients.report.closes) == ([], [])
        assert clients.open_count == 50


RUNNER = ("-m", "apachews.runner")


def others(runner: subprocess.Popen[str], before: list[int]) -> list[int]:
    """Return the runner's programs when none of those before is left."""
    now = children_of(runner.pid)
    return [] if set(now) & set(before) else now


@contextlib.contextmanager
def rolling(site: Site, kind: str) -> Iterator[subprocess.Popen[str]]:
    """Run an echo on ``/rolling.ws`` in the runner: as one process or more, on whose socket."""
    path = site.docroot / "rolling.ws"
    command = [*RUNNER, program(site.apache.root), str(path), "2" if "workers" in kind else "0"]
    with contextlib.ExitStack() as stack:
        pass_fds: tuple[int, ...] = ()
        if "inherited" in kind:
            listening = stack.enter_context(socket.socket(socket.AF_UNIX))
            listening.bind(str(path))
            stack.callback(path.unlink)
            path.chmod(0o666)
            listening.listen(100)
            pass_fds = (listening.fileno(),)
            command = ["-c", AS_SYSTEMD, str(listening.fileno()), *command]
        process = stack.enter_context(
            running(*command, pass_fds=pass_fds, **private_apache.as_apache_user())
        )
        wait_for(path.exists, what=process.poll)
        yield process
        process.terminate()
        status, output = ended(process)
        assert (status, "Traceback" in output) == (0, False), output


@pytest.mark.parametrize(
    ("mpm", "kind"),
    [
        ("event", "one process"),
        ("prefork", "one process"),
        ("event", "workers"),
        ("event", "inherited"),
        ("event", "workers, inherited"),
    ],
)
def test_a_deploy_loses_nothing(mpm: str, kind: str) -> None:
    """SIGHUP to the runner: the next program takes over, and every client moves to it."""
    with (
        running_site(mpm) as site,
        rolling(site, kind) as runner,
        crowd(site, 50, "/rolling.ws") as clients,
    ):
        before = children_of(runner.pid)
        for _ in range(5):
            clients.wait_for_echoes(500)
            runner.send_signal(signal.SIGHUP)
            before = wait_for(lambda: others(runner, before))  # noqa: B023
            clients.join(2)
        clients.wait_for_echoes(500)
        clients.fall_silent()
        assert (clients.report.faults, clients.report.closes) == ([], [])
        assert clients.open_count == 60
        assert clients.report.longest_stall_s < 5


def test_two_deploys_in_a_row(event_site: Site) -> None:
    """The second is asked for while the first is under way."""
    with (
        rolling(event_site, "workers") as runner,
        crowd(event_site, 30, "/rolling.ws") as clients,
    ):
        clients.wait_for_echoes(100)
        runner.send_signal(signal.SIGHUP)
        wait_for(lambda: len(children_of(runner.pid)) == 2)
        runner.send_signal(signal.SIGHUP)
        assert runner.stdout
        said = ""
        while said.count("the clients move to it") < 2:
            said += runner.stdout.readline()
        clients.wait_for_everybody()
        clients.fall_silent()
        assert (clients.report.faults, clients.report.closes) == ([], [])


def test_a_producer_that_is_told_to_end_says_goodbye_or_hands_on(event_site: Site) -> None:
    with (
        event_site.echo_process("ends.ws", *RUNNER) as runner,
        crowd(event_site, 10, "/ends.ws") as clients,
    ):
        clients.wait_for_echoes(20)
        runner.terminate()
        wait_for(lambda: len(clients.report.closes) == 10)
        assert clients.report.closes == [wire.GOING_AWAY] * 10
        assert runner.wait(10) == 0
    with (
        event_site.echo_process("holds.ws", *RUNNER, "--hold") as runner,
        crowd(event_site, 10, "/holds.ws") as clients,
    ):
        clients.wait_for_echoes(20)
        runner.terminate()
        assert runner.wait(10) == 0
        with event_site.echo_process("holds.ws", *RUNNER):
            clients.wait_for_echoes(20)
            clients.fall_silent()
            assert (clients.report.faults, clients.report.closes) == ([], [])


def test_several_processes_on_one_path(event_site: Site) -> None:
    """One of them is killed: its clients go to the others, nobody is dropped."""
    path = event_site.docroot / "several.ws"
    command = (program(event_site.apache.root), str(path), "3")
    with running(*command, **private_apache.as_apache_user()) as supervisor:
        wait_for(path.exists, what=supervisor.poll)
        with crowd(event_site, 30, "/several.ws", may_lose=True) as clients:
            clients.wait_for_echoes(100)
            workers = wait_for(lambda: children_of(supervisor.pid))
            assert len(workers) == 3
            os.kill(workers[0], signal.SIGKILL)
            clients.wait_for_everybody()
            wait_for(lambda: len(set(children_of(supervisor.pid)) - {workers[0]}) == 3)
            assert (clients.report.faults, clients.report.closes) == ([], [])
        supervisor.terminate()  # no runner here: the program does as Python does
        assert ended(supervisor)[0] == 128 + signal.SIGTERM
