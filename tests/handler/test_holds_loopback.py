"""apachews_handler.bridge.reconnect: the search for a producer on a loopback port."""

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
    """As much of a connection as is asked for."""

    def __init__(self, path: Path) -> None:
        self.endpoint = str(path)
        self.settings = Settings()


def hold(holds: Reconnector, path: Path, count: int = 1) -> list[Connection]:
    held = [cast(Connection, Held(path)) for _ in range(count)]
    for one in held:
        holds.add(one, 0.0)
    return held


def take(holds: Reconnector) -> list[socket.socket]:
    """Look once, as the loop does when it is time."""
    now = time.monotonic()
    return [sock for _, sock in holds.connect_due(now)] if holds.next_at() <= now else []


@contextmanager
def squatter(path: Path, serve: Callable[[socket.socket], Any]) -> Iterator[list[socket.socket]]:
    """Listen on the port that a file names, without its token."""
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


def resume(holds: Reconnector, path: Path, count: int) -> None:
    """Find a producer that comes, for all."""
    with Server(path, transport="loopback") as server:
        found: list[socket.socket] = []

        def are_all_found() -> bool:
            server.dequeue(0.001)
            found.extend(take(holds))
            return len(found) == count

        wait_for(are_all_found)
        for sock in found:
            assert not sock.getblocking()
            sock.close()
    assert not holds


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
def test_who_has_the_port_of_a_producer_that_is_gone(
    tmp_path: Path, serve: Callable[[socket.socket], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ATTEMPT_TIMEOUT_S", 0.05)
    path = tmp_path / "a.ws"
    holds = Reconnector()
    before = descriptors()
    hold(holds, path, 20)
    with squatter(path, serve) as accepted:
        assert wait_for(lambda: take(holds) == [] and len(accepted) == 2)
        # One at a time, as long as nobody has proved himself.
        assert len(accepted) == 2
    path.unlink()
    resume(holds, path, 20)
    assert descriptors() == before


def test_the_last_client_that_leaves_breaks_the_search_off(tmp_path: Path) -> None:
    path = tmp_path / "a.ws"
    holds = Reconnector()
    with squatter(path, lambda sock: None) as accepted:
        held = hold(holds, path, 2)
        before = descriptors()
        wait_for(lambda: take(holds) == [] and accepted)
        assert descriptors() == before + 2  # both ends of the attempt
        holds.discard(held[0])
        holds.discard(held[1])
        assert descriptors() == before + 1


def test_a_search_that_is_broken_off_begins_again(tmp_path: Path) -> None:
    """As it is where the process was forked."""
    path = tmp_path / "a.ws"
    holds = Reconnector()
    hold(holds, path)
    with squatter(path, lambda sock: None) as accepted:
        wait_for(lambda: take(holds) == [] and accepted)
        before = descriptors()
        holds.abort_attempts()
        assert descriptors() == before - 1
        assert len(holds) == 1
    path.unlink()
    resume(holds, path, 1)


def test_many_follow_the_first(tmp_path: Path) -> None:
    path = tmp_path / "a.ws"
    holds = Reconnector()
    hold(holds, path, 2 * BATCH + 50)
    resume(holds, path, 2 * BATCH + 50)


def test_nobody_listens_on_the_port(tmp_path: Path) -> None:
    path = tmp_path / "a.ws"
    with socket.socket() as unused:
        unused.bind((loopback.HOST, 0))
        address = loopback.Address(unused.getsockname()[1], loopback.new_token())
        path.write_bytes(address.encode())
        path.chmod(0o660)
        holds = Reconnector()
        hold(holds, path)
        before = descriptors()
        wait_for(lambda: take(holds) == [] and holds.next_at() > time.monotonic() + 0.1)
        assert descriptors() == before
