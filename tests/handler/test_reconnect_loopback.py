"""bridge.reconnect: the search for a producer on a loopback port."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from apachews import Server
from apachews._listening import loopback
from apachews_handler.bridge import reconnect as module
from apachews_handler.bridge.connection import Connection
from apachews_handler.bridge.reconnect import BATCH, Reconnector
from apachews_handler.settings import Settings

from ..conftest import wait_for


class Held:
    """The attributes of a connection that ``Reconnector`` reads."""

    def __init__(self, path: Path) -> None:
        self.endpoint = str(path)
        self.settings = Settings()


def hold(reconnector: Reconnector, path: Path, count: int = 1) -> list[Connection]:
    held = [cast(Connection, Held(path)) for _ in range(count)]
    for one in held:
        reconnector.add(one, 0.0)
    return held


def connect_due(reconnector: Reconnector) -> list[socket.socket]:
    """Make the attempts that are due, as the loop does."""
    now = time.monotonic()
    return (
        [sock for _, sock in reconnector.connect_due(now)] if reconnector.next_at() <= now else []
    )


@contextmanager
def squatter(path: Path, serve: Callable[[socket.socket], Any]) -> Iterator[list[socket.socket]]:
    """Listen on the port that a file names, without knowing its token."""
    accepted: list[socket.socket] = []
    with socket.create_server((loopback.HOST, 0)) as listener:
        address = loopback.Address(listener.getsockname()[1], loopback.new_token())
        path.write_bytes(address.encode())
        path.chmod(0o660)
        listener.settimeout(0.02)
        ended = threading.Event()

        def run() -> None:
            while not ended.is_set():
                try:
                    accepted.append(listener.accept()[0])
                except TimeoutError:
                    continue
                serve(accepted[-1])

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield accepted
        finally:
            ended.set()
            thread.join()
            for sock in accepted:
                sock.close()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def resume(reconnector: Reconnector, path: Path, count: int) -> None:
    """Start a producer, and check that all clients get a socket to it."""
    with Server(path, transport="loopback") as server:
        found: list[socket.socket] = []

        def are_all_found() -> bool:
            server.dequeue(0.001)
            found.extend(connect_due(reconnector))
            return len(found) == count

        wait_for(are_all_found)
        for sock in found:
            assert not sock.getblocking()
            sock.close()
    assert not reconnector


@pytest.mark.parametrize(
    "serve",
    [
        lambda sock: None,
        lambda sock: sock.close(),
        lambda sock: sock.sendall(b"x" * 98),
        lambda sock: sock.sendall(b"0" * 32 + b" " + b"0" * 64 + b"\n"),
        lambda sock: sock.sendall(b"x" * 10),
    ],
    ids=["silent", "closes", "rubbish", "proof of another token", "stops"],
)
def test_another_program_on_the_port_of_a_dead_producer_gets_no_client(
    tmp_path: Path, serve: Callable[[socket.socket], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ATTEMPT_TIMEOUT_S", 0.05)
    path = tmp_path / "a.ws"
    reconnector = Reconnector()
    before = descriptors()
    hold(reconnector, path, 20)
    with squatter(path, serve) as accepted:
        assert wait_for(lambda: connect_due(reconnector) == [] and len(accepted) == 2)
        # One at a time, as long as no producer is authenticated.
        assert len(accepted) == 2
    path.unlink()
    resume(reconnector, path, 20)
    assert descriptors() == before


def test_the_last_client_that_leaves_aborts_the_attempt(tmp_path: Path) -> None:
    path = tmp_path / "a.ws"
    reconnector = Reconnector()
    with squatter(path, lambda sock: None) as accepted:
        held = hold(reconnector, path, 2)
        before = descriptors()
        wait_for(lambda: connect_due(reconnector) == [] and accepted)
        assert descriptors() == before + 2  # both ends of the attempt
        reconnector.discard(held[0])
        reconnector.discard(held[1])
        assert descriptors() == before + 1


def test_an_aborted_attempt_is_made_again(tmp_path: Path) -> None:
    """A process that was forked aborts the attempts of its parent."""
    path = tmp_path / "a.ws"
    reconnector = Reconnector()
    hold(reconnector, path)
    with squatter(path, lambda sock: None) as accepted:
        wait_for(lambda: connect_due(reconnector) == [] and accepted)
        before = descriptors()
        reconnector.abort_attempts()
        assert descriptors() == before - 1
        assert len(reconnector) == 1
    path.unlink()
    resume(reconnector, path, 1)


def test_many_clients_follow_the_first(tmp_path: Path) -> None:
    path = tmp_path / "a.ws"
    reconnector = Reconnector()
    hold(reconnector, path, 2 * BATCH + 50)
    resume(reconnector, path, 2 * BATCH + 50)


def test_no_program_listens_on_the_port(tmp_path: Path) -> None:
    path = tmp_path / "a.ws"
    with socket.socket() as unused:
        unused.bind((loopback.HOST, 0))
        address = loopback.Address(unused.getsockname()[1], loopback.new_token())
        path.write_bytes(address.encode())
        path.chmod(0o660)
        reconnector = Reconnector()
        hold(reconnector, path)
        before = descriptors()
        wait_for(
            lambda: (
                connect_due(reconnector) == [] and reconnector.next_at() > time.monotonic() + 0.1
            )
        )
        assert descriptors() == before
