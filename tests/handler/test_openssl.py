"""apachews_handler.native.openssl: what is made of OpenSSL's answers, with a libssl played by hand.

The tests of ``tests/integration`` with ``wss`` use the real one.
"""

from __future__ import annotations

import ctypes
import select
import socket
from typing import Any

import pytest

from apachews_handler.bridge.connection import Connection
from apachews_handler.bridge.thread import Bridge
from apachews_handler.native import openssl
from apachews_handler.native.openssl import READ_BYTES, RECORD_BYTES, TlsError, TlsSession
from apachews_handler.protocol.session import Session
from apachews_handler.settings import Settings

from ..conftest import let_pass, wait_for
from .test_bridge import Lines, tcp_pair

WANT_READ, WANT_WRITE, FATAL, CLOSED = -2, -3, -1, 0


class Libssl:
    """Answers ``SSL_read`` and ``SSL_write`` from scripts; an error is a negative number."""

    def __init__(self, reads: list[bytes | int] | None = None) -> None:
        self.reads = reads or []
        self.writes: list[int] = []
        self.written = b""
        self.read_calls = 0
        self.pending = 0

    def SSL_read(self, ssl: int, buffer: int, size: int) -> int:
        self.read_calls += 1
        answer = self.reads.pop(0) if len(self.reads) > 1 else self.reads[0]
        if isinstance(answer, bytes):
            if len(answer) > size:
                self.reads.insert(0, answer[size:])
                answer = answer[:size]
            ctypes.memmove(buffer, answer, len(answer))
            return len(answer)
        self._error = answer
        return -1

    def SSL_write(self, ssl: int, data: bytes, size: int) -> int:
        answer = self.writes.pop(0) if self.writes else size
        if answer < 0:
            self._error = answer
            return -1
        self.written += data[:answer]
        return answer

    def SSL_get_error(self, ssl: int, result: int) -> int:
        return {WANT_READ: 2, WANT_WRITE: 3, FATAL: 1, CLOSED: 6}[self._error]

    def SSL_has_pending(self, ssl: int) -> int:
        return self.pending

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: 1


def session(*reads: bytes | int) -> tuple[TlsSession, Libssl]:
    library = Libssl(list(reads))
    return TlsSession(library, 1), library  # type: ignore[arg-type]


FULL = b"x" * openssl.RECORD_BYTES


def test_a_short_record_is_given_at_once() -> None:
    made, library = session(b"hi", b"later")
    assert made.recv(4 * openssl.RECORD_BYTES) == b"hi"
    assert library.read_calls == 1


def test_full_records_are_gathered_to_a_bound() -> None:
    made, _ = session(FULL, FULL, b"end")
    assert made.recv(4 * openssl.RECORD_BYTES) == FULL * 2 + b"end"
    made, library = session(FULL)
    assert made.recv(4 * openssl.RECORD_BYTES) == FULL * 4
    assert library.read_calls == 4


@pytest.mark.parametrize("error", [FATAL, CLOSED])
def test_the_end_is_given_after_what_came_before_it(error: int) -> None:
    made, library = session(FULL, error)
    assert made.recv(4 * openssl.RECORD_BYTES) == FULL
    assert made.has_pending()  # no event of the descriptor may follow
    assert made.recv(4 * openssl.RECORD_BYTES) == b""
    assert library.read_calls == 2


def test_nothing_there() -> None:
    made, _ = session(WANT_READ)
    assert made.recv(4 * openssl.RECORD_BYTES) is None
    assert not made.needs_writing


def test_a_wait_for_the_socket_ends_with_what_is_read() -> None:
    made, _ = session(WANT_WRITE, FULL)
    assert made.recv(4 * openssl.RECORD_BYTES) is None
    assert made.needs_writing
    assert made.recv(4 * openssl.RECORD_BYTES) == FULL * 4
    assert not made.needs_writing


def test_writing_sends_record_by_record_until_the_socket_is_full() -> None:
    made, library = session()
    assert made.send(b"y" * 40_000) == 40_000
    library.writes = [16384, WANT_WRITE]
    assert made.send(memoryview(FULL * 3)) == 16384
    library.writes = [FATAL]
    with pytest.raises(ConnectionError):
        made.send(b"z")


@pytest.mark.parametrize("writes", [[], [RECORD_BYTES, WANT_WRITE]])
def test_records_of_one_message_go_together_and_at_once(
    writes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, near = tcp_pair()

    def is_corked() -> bool:
        return bool(near.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK))

    made, library = session()
    made._socket = near
    library.writes = writes
    seen: list[bool] = []
    write = library.SSL_write

    def watched(*arguments: Any) -> int:
        seen.append(is_corked())
        return write(*arguments)

    monkeypatch.setattr(library, "SSL_write", watched)
    made.send(FULL * 2)
    assert seen == [True, True]
    assert not is_corked()
    made.send(FULL)
    assert seen[2:] == [False]  # two system calls more would be for nothing
    monkeypatch.undo()
    near.close()
    made.send(FULL * 2)  # that it has gone is for OpenSSL to say
    client.close()


def test_what_a_failed_write_has_left_is_not_held_back() -> None:
    client, near = tcp_pair()
    made, library = session()
    made._socket = near
    library.writes = [RECORD_BYTES, FATAL]
    with pytest.raises(ConnectionError):
        made.send(FULL * 2)
    assert not near.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK)
    near.close()
    client.close()


def test_after_close_nothing_reaches_openssl() -> None:
    made, library = session(b"hi")
    made.close()
    made.close()
    assert made.recv(4 * openssl.RECORD_BYTES) == b""
    assert not made.has_pending()
    with pytest.raises(ConnectionError):
        made.send(b"x")
    made.shutdown()
    assert library.read_calls == 0


def test_an_ssl_of_another_connection_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Libssl()
    monkeypatch.setitem(openssl._libraries, "mod_ssl.so", library)
    with pytest.raises(TlsError, match="does not belong"):
        TlsSession.share(1, 4711, "mod_ssl.so")
    TlsSession.share(1, 1, "mod_ssl.so")


def test_a_part_of_a_record_is_nothing_to_look_at_again() -> None:
    made, library = session(b"hi", WANT_READ)
    library.pending = 1  # as OpenSSL says of the beginning of a record
    assert made.has_pending()  # it was not read yet
    assert made.recv(1 << 16) == b"hi"
    assert made.has_pending()
    assert made.recv(1 << 16) is None
    assert not made.has_pending()
    library.reads = [b"its rest"]
    assert made.recv(1 << 16) == b"its rest"
    assert made.has_pending()


@pytest.mark.parametrize("size", [4096, RECORD_BYTES, RECORD_BYTES + 14, 4 * RECORD_BYTES + 14])
def test_one_read_is_no_more_than_was_asked_for(size: int) -> None:
    sent = bytes(i % 251 for i in range(6 * RECORD_BYTES))
    records = [sent[at : at + RECORD_BYTES] for at in range(0, len(sent), RECORD_BYTES)]
    made, _ = session(*records, WANT_READ)
    found = []
    while (data := made.recv(size)) is not None:
        assert 0 < len(data) <= size
        found.append(data)
    assert b"".join(found) == sent
    assert len(found[0]) == size


def test_one_read_is_bounded_however_large_the_buffer_may_be() -> None:
    made, _ = session(b"x" * RECORD_BYTES)  # again and again
    assert made.recv(1 << 24) == b"x" * READ_BYTES


def test_waiting_to_write_a_key_update_costs_no_processor() -> None:
    """OpenSSL must answer a KeyUpdate, and the client takes nothing."""
    client, near = tcp_pair()
    producer, producer_near = socket.socketpair()
    for sock in (near, producer_near):
        sock.setblocking(False)
    while select.select([], [near], [], 0.2)[1]:
        near.send(b"x" * 100_000)  # until it is full
    made, library = session(WANT_WRITE)
    made._socket = near
    bridge = Bridge()
    bridge.start()
    settings = Settings()
    connection = Connection(
        transport=made,
        producer_socket=producer_near,
        session=Session(settings),
        settings=settings,
        endpoint="",
        name="x",
        log=Lines(),
    )
    bridge.adopt(connection)
    client.sendall(b"a key update")
    wait_for(lambda: library.read_calls)
    calls = library.read_calls
    let_pass(0.2)
    assert library.read_calls == calls
    # The client takes what is there, and reading goes on.
    library.reads = [b"\x81\x82\0\0\0\0hi", WANT_READ]
    client.settimeout(5)
    while select.select([client], [], [], 0.5)[0]:
        client.recv(1 << 20)
    producer.settimeout(5)
    received = b""
    while not received.endswith(b"\x81\x02hi"):
        received += producer.recv(1 << 16)
    bridge.stop()
    for sock in (client, producer):
        sock.close()
