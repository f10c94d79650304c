"""shared.tickets: the format, and one use over threads and processes."""

from __future__ import annotations

import base64
import multiprocessing
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apachews_handler.shared import tickets
from apachews_handler.shared.tickets import (
    LIFETIME_S,
    MAX_USER_BYTES,
    BadTicket,
    Login,
    Tickets,
    seal,
    unseal,
)

KEY = b"k" * 32
NONCE = b"n" * 16
NOW = 1000.0
ANN = Login(b"ann", 1800000000.0)


def sealed(endpoint: bytes = b"/chat.ws") -> str:
    return seal(KEY, ANN, endpoint, NONCE, NOW + LIFETIME_S)


@given(st.binary(min_size=1, max_size=MAX_USER_BYTES), st.binary(max_size=200))
def test_what_is_sealed_is_unsealed(user: bytes, endpoint: bytes) -> None:
    login = Login(user, 5.0)
    ticket = seal(KEY, login, endpoint, NONCE, NOW + 1)
    assert ticket.replace("-", "").replace("_", "").isalnum()  # needs no escapes in a query
    assert unseal(KEY, ticket, endpoint, NOW) == (login, NONCE, NOW + 1)


@given(st.integers(0), st.integers(1, 255))
def test_a_changed_byte_is_noticed(at: int, change: int) -> None:
    ticket = sealed()
    data = bytearray(base64.urlsafe_b64decode(ticket + "=" * (-len(ticket) % 4)))
    data[at % len(data)] ^= change
    with pytest.raises(BadTicket, match="forged"):
        unseal(KEY, base64.urlsafe_b64encode(data).decode().rstrip("="), b"/chat.ws", NOW)


@given(st.text() | st.text("ABCabc019-_=+/", max_size=3000))
def test_any_text_is_refused(text: str) -> None:
    with pytest.raises(BadTicket):
        unseal(KEY, text, b"/chat.ws", NOW)


@pytest.mark.parametrize(
    ("key", "endpoint", "now", "reason"),
    [
        (b"x" * 32, b"/chat.ws", NOW, "forged"),
        (KEY, b"/other.ws", NOW, "endpoint"),
        (KEY, b"/chat.w", NOW, "endpoint"),
        (KEY, b"/chat.ws", NOW + LIFETIME_S, "expired"),
        (KEY, b"/chat.ws", NOW - 1, "expired"),  # the clock began again
    ],
)
def test_other_tickets_are_refused(key: bytes, endpoint: bytes, now: float, reason: str) -> None:
    with pytest.raises(BadTicket, match=reason):
        unseal(key, sealed(), endpoint, now)


@pytest.mark.parametrize("user", [b"", b"x" * (MAX_USER_BYTES + 1)])
def test_a_name_has_a_length(user: bytes) -> None:
    with pytest.raises(ValueError, match="bytes"):
        seal(KEY, Login(user), b"", NONCE, NOW)


def test_a_ticket_is_used_once(tmp_path: Path) -> None:
    here, other_child = Tickets(str(tmp_path), 7), Tickets(str(tmp_path), 7)
    ticket = here.issue(ANN, b"/chat.ws")
    with pytest.raises(BadTicket, match="endpoint"):
        other_child.redeem(ticket, b"/other.ws")  # which does not spend it
    assert other_child.redeem(ticket, b"/chat.ws") == ANN
    for child in (here, other_child):
        with pytest.raises(BadTicket, match="used"):
            child.redeem(ticket, b"/chat.ws")
    assert (tmp_path / "7.tickets").stat().st_mode & 0o777 == 0o600


def test_another_apache_accepts_no_ticket_of_this_one(tmp_path: Path) -> None:
    ticket = Tickets(str(tmp_path), 7).issue(ANN, b"")
    with pytest.raises(BadTicket, match="forged"):
        Tickets(str(tmp_path), 8).redeem(ticket, b"")


def test_slots_are_reused_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [NOW]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr(tickets, "MAX_SLOTS", 3)
    shared = Tickets(str(tmp_path), 7)
    for _ in range(3):
        shared.redeem(shared.issue(ANN, b""), b"")
    with pytest.raises(OSError, match="3 tickets"):
        shared.redeem(shared.issue(ANN, b""), b"")
    size = (tmp_path / "7.tickets").stat().st_size
    clock[0] += LIFETIME_S
    ticket = shared.issue(ANN, b"")
    assert shared.redeem(ticket, b"") == ANN
    with pytest.raises(BadTicket, match="used"):
        shared.redeem(ticket, b"")
    assert (tmp_path / "7.tickets").stat().st_size == size


def test_a_slot_that_was_half_written_is_written_over(tmp_path: Path) -> None:
    shared = Tickets(str(tmp_path), 7)
    tickets_ = [shared.issue(ANN, b"") for _ in range(2)]
    with (tmp_path / "7.tickets").open("ab") as file:
        file.write(b"half")
    for ticket in tickets_:
        assert shared.redeem(ticket, b"") == ANN
        with pytest.raises(BadTicket, match="used"):
            shared.redeem(ticket, b"")


def _race(directory: str, ticket: str, begin: object, wins: object) -> None:
    """In a process: four threads redeem one ticket."""

    def redeem() -> None:
        begin.wait()  # type: ignore[attr-defined]
        try:
            Tickets(directory, 7).redeem(ticket, b"")
        except BadTicket:
            return
        with wins.get_lock():  # type: ignore[attr-defined]
            wins.value += 1  # type: ignore[attr-defined]

    threads = [threading.Thread(target=redeem) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_one_of_many_processes_and_threads_wins(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    begin, wins = context.Barrier(12), context.Value("i", 0)
    ticket = Tickets(str(tmp_path), 7).issue(ANN, b"")
    processes = [
        context.Process(target=_race, args=(str(tmp_path), ticket, begin, wins)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert wins.value == 1
