"""handshake.api_request: what a producer may answer to a request of the HTTP API."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from apachews import wire
from apachews_handler.exceptions import Refusal
from apachews_handler.handshake import api_request, producer
from apachews_handler.shared import waiting


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    with here, there:
        yield here, there


def text(data: str) -> bytes:
    return wire.encode_frame(wire.TEXT, data.encode())


def close(code: int = wire.NORMAL) -> bytes:
    return wire.encode_frame(wire.CLOSE, wire.encode_close(code, "why"))


PING_OF_CHANNELS = text("{}")
MOVE = wire.encode_frame(wire.MOVE, b"")


def ask(ends: tuple[socket.socket, socket.socket], *pieces: bytes) -> str:
    """Send what the producer says, and the end of its stream; return the answer."""
    here, there = ends
    for piece in pieces:
        there.sendall(piece)
    there.shutdown(socket.SHUT_WR)
    return api_request._judge(*api_request._ask(here, b"request", "/a.ws", 5.0))


@pytest.mark.parametrize(
    "said",
    [
        text('{"a":1}') + close(),
        PING_OF_CHANNELS + text('{"a":1}') + close(),
        text('{"a":1}'),  # the producer ended after its answer
        MOVE + text('{"a":1}'),
        wire.encode_frame(wire.PING, b"x") + text('{"a":1}') + close(4000),
    ],
)
def test_the_last_message_is_the_answer(
    ends: tuple[socket.socket, socket.socket], said: bytes
) -> None:
    assert ask(ends, said) == '{"a":1}'
    sent = ends[1].recv(100)
    assert sent == (b"request" + MOVE if said.startswith(MOVE) else b"request")


@pytest.mark.parametrize(
    ("said", "status", "token"),
    [
        (close(4401), 401, "api-key"),
        (close(4404), 404, "api-off"),
        (text("{}") + close(4401), 401, "api-key"),
        (close(wire.TOO_BIG), 413, "api-length"),
        (close(), 502, "api-answer"),
        (close(4499), 502, "api-answer"),
        (b"", 502, "api-answer"),
        (text("{}")[:-1], 502, "api-answer"),
        (wire.encode_frame(wire.TEXT, b"\xff"), 502, "api-answer"),
        (b"\x81\x7f" + (2**62).to_bytes(8, "big"), 502, "api-answer"),
        (b"\x88\x01x", 502, "api-answer"),
    ],
)
def test_everything_else_is_a_refusal(
    ends: tuple[socket.socket, socket.socket], said: bytes, status: int, token: str
) -> None:
    with pytest.raises(Refusal) as refused:
        ask(ends, said)
    assert (int(refused.value.status[:3]), refused.value.reason.token) == (status, token)


def test_a_producer_that_is_silent(ends: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(Refusal, match=r"did not answer within 0\.05 s") as refused:
        api_request._ask(ends[0], b"request", "/a.ws", 0.05)
    assert refused.value.status == "504 Gateway Timeout"


def test_a_long_answer_is_whole(ends: tuple[socket.socket, socket.socket]) -> None:
    here, there = ends
    there.setblocking(False)
    long = "x" * 100_000
    sent = there.send(text(long) + close())
    assert sent == len(text(long) + close())
    assert api_request._ask(here, b"request", "/a.ws", 5.0) == (long, wire.NORMAL)


class Cut:
    """A body that ends before its length, as mod_wsgi reports it."""

    def read(self, size: int) -> bytes:
        raise OSError("request data read error")


def test_a_body_that_ends_early_is_refused() -> None:
    with pytest.raises(Refusal) as refused:
        api_request._read_body({"wsgi.input": Cut()}, 100)
    assert (refused.value.status[:3], refused.value.reason.token) == ("400", "api-body")


@pytest.fixture
def send(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> Callable[[bytes], list[bool]]:
    """Refuse a request as the producer says; return of each place whether its wait failed."""
    here, there = ends
    failures: list[bool] = []

    @contextlib.contextmanager
    def place(*_: object) -> Iterator[None]:
        try:
            yield
        except Refusal:
            failures.append(True)
            raise
        failures.append(False)

    monkeypatch.setattr(waiting, "place", place)
    monkeypatch.setattr(api_request, "spare_workers", lambda: 25)
    monkeypatch.setattr(producer, "connect", lambda *_: here)
    monkeypatch.setattr(producer, "user_of", lambda *_: os.getuid())
    monkeypatch.setattr(api_request, "_open", lambda *_: wire.Open(id="1", uri="/"))
    monkeypatch.setattr(api_request, "_read_body", lambda *_: b"")
    settings: Any = SimpleNamespace(
        api_for="/a.ws",
        max_message_bytes=100,
        connect_timeout_s=5.0,
        endpoint_directories=(),
        max_waiting=0,
    )
    request: Any = None

    def send(said: bytes) -> list[bool]:
        there.sendall(said)
        there.shutdown(socket.SHUT_WR)
        with pytest.raises(Refusal):
            api_request.send(request, {"REQUEST_METHOD": "POST"}, settings)
        return failures

    return send


@pytest.mark.parametrize(
    ("said", "is_failure"),
    [(close(4401), False), (close(4404), False), (close(wire.TOO_BIG), False), (b"", True)],
)
def test_a_refusal_of_the_producer_is_an_answer(
    send: Callable[[bytes], list[bool]], said: bytes, is_failure: bool
) -> None:
    """After a failure, surplus handshakes of WebSockets do not wait for the producer."""
    assert send(said) == [is_failure]
