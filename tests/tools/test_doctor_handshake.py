"""``apachews doctor``: URLs, the handshake, and what its answers mean."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from apachews.monitoring import refusals
from apachews.monitoring.refusals import Reason
from apachews_tools.cli import main
from apachews_tools.doctor.finding import Level, error
from apachews_tools.doctor.handshake import check_url, explain
from apachews_tools.httpd.address import Address, AddressError
from apachews_tools.httpd.answers import CAUSES, Answer, Cause, joined

from ..conftest import DEADLINE_S
from .test_doctor import TROUBLESHOOTING, levels


@pytest.mark.parametrize(
    ("url", "host", "port", "path", "origin"),
    [
        ("ws://a.example/x.ws?y=1", "a.example", 80, "/x.ws?y=1", "http://a.example"),
        ("wss://a.example/x.ws", "a.example", 443, "/x.ws", "https://a.example"),
        ("https://a.example:8443", "a.example", 8443, "/", "https://a.example:8443"),
        ("ws://[::1]:8080/a.ws", "::1", 8080, "/a.ws", "http://[::1]:8080"),
        ("ws://a/b c%20d.ws", "a", 80, "/b%20c%20d.ws", "http://a"),
        ("ws://a/\r\nX: y", "a", 80, "/X:%20y", "http://a"),
        (
            "ws://b\u00fccher.example/é",
            "xn--bcher-kva.example",
            80,
            "/%C3%A9",
            "http://xn--bcher-kva.example",
        ),
    ],
)
def test_urls(url: str, host: str, port: int, path: str, origin: str) -> None:
    address = Address.parse(url)
    assert (address.host, address.port, address.target, address.origin) == (
        host,
        port,
        path,
        origin,
    )


@pytest.mark.parametrize(
    "url",
    [
        *("a.example/x.ws", "ftp://a/x", "ws://", "ws://a:port/", "/x.ws", "ws://a:0/x.ws"),
        *("ws://a/x.ws#there", "ws://a..b/", f"ws://{'a' * 64}.example/"),
    ],
)
def test_what_is_no_url_is_refused(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AddressError):
        Address.parse(url)
    assert main(["doctor", url]) == 1
    told = capsys.readouterr().err
    assert url in told or "invalid host name" in told


def test_a_password_is_refused_and_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "ws://ann:secret@a/x.ws"]) == 1
    told = capsys.readouterr().err
    assert "list of processes" in told
    assert "secret" not in told


ADDRESS = Address.parse("wss://a.example/x.ws")


def refused_by_the_handler(reason: Reason, body: str = "any words") -> Answer:
    return Answer(reason.status or 403, {"apachews-refused": reason.token}, body)


@pytest.mark.parametrize(
    ("status", "body", "says", "remedy"),
    [
        (200, "<html>", "a page answered instead of the handler", "RewriteRule"),
        (204, "", "a page answered instead of the handler", "RewriteRule"),
        (400, "You're speaking plain HTTP to an SSL-enabled server port.", "for TLS", "wss://"),
        (400, "Bad Request", "does not understand the handshake", "proxy"),
        (401, "", "login", "log in"),
        (403, "<html>", "FollowSymLinks", "Options +FollowSymLinks"),
        (404, "<html>", "not come to the handler", "right virtual host"),
        (500, "<html>", "cannot run the handler", "cannot read"),
        (501, "", "a proxy", "ProxyPass"),
        (503, "<html>", "a proxy", "ProxyPass"),
        (418, "", "does not give this answer", "error log"),
    ],
)
def test_answers_of_other_servers_are_explained(
    status: int, body: str, says: str, remedy: str
) -> None:
    found = explain(ADDRESS, Answer(status, {}, body), None, "AH0: why")
    assert f": {status}: " in found.text
    assert says in found.text
    assert found.text.endswith("the error log says: AH0: why")
    assert remedy in found.remedy


@pytest.mark.parametrize("token", refusals.REASONS)
def test_a_refusal_is_known_by_its_token_whatever_its_words(token: str) -> None:
    reason = refusals.REASONS[token]
    for body in (f"{reason.body}\n", "other words", "<html>", "This page's origin", ""):
        found = explain(ADDRESS, refused_by_the_handler(reason, body), None)
        assert reason.meaning in found.text
        assert found.remedy == reason.remedy
        # A proxy may remove the header; the log of the same machine has the token as well.
        logged = f"apachews: {reason.status or 403} {token} for /x.ws: a fact; a remedy"
        found = explain(ADDRESS, Answer(reason.status or 403, {}, body), None, logged)
        assert reason.meaning in found.text
        assert found.remedy == reason.remedy


def test_the_words_of_a_body_do_not_make_a_refusal() -> None:
    for reason in refusals.REASONS.values():
        found = explain(ADDRESS, Answer(reason.status or 403, {}, f"{reason.body}\n"), None)
        assert reason.meaning not in found.text
    unknown = Answer(404, {"apachews-refused": "of-a-later-version"}, "")
    assert "not come to the handler" in explain(ADDRESS, unknown, None).text


def test_a_websocket_as_error_document_has_the_reason_of_the_first_request() -> None:
    pairs = [("Apachews-Refused", "no-such-endpoint"), ("apachews-refused", "error-document")]
    assert joined([*pairs, ("X", "y")]) == {
        "apachews-refused": "no-such-endpoint, error-document",
        "x": "y",
    }
    assert Answer(404, joined(pairs)).refusal() is refusals.NO_SUCH_ENDPOINT


@pytest.mark.parametrize(
    "cause",
    [cause for cause in CAUSES if cause.marker and not cause.status],
    ids=lambda c: c.marker,
)
def test_what_was_logged_is_known_better_than_the_status(cause: Cause) -> None:
    logged = f"{cause.marker}: and more" + "x" * 400
    found = explain(ADDRESS, Answer(403, {}, "<html>"), None, logged)
    assert cause.meaning in found.text
    assert found.text.endswith("x…")
    assert found.remedy == cause.remedy
    assert cause.marker in TROUBLESHOOTING.read_text()


def test_a_finding_that_is_the_reason_has_the_remedy() -> None:
    denied = error("access", "denied", breaks="b", remedy="line 3")
    closed = error("socket-permission", "closed", breaks="b", remedy="chmod o+x /a")
    refused = Answer(403, {}, "<html>")
    found = explain(ADDRESS, refused, None, "AH00035: access denied", [denied, closed])
    assert "may not enter a directory" in found.text
    assert found.remedy == "chmod o+x /a (socket-permission, above)"
    found = explain(ADDRESS, refused, None, "", [closed])
    assert (found.text, found.remedy) == (
        f"{ADDRESS.url}: 403: closed",
        "chmod o+x /a (socket-permission, above)",
    )
    # The handler has had the request: Require did not deny it.
    found = explain(ADDRESS, refused_by_the_handler(refusals.ORIGIN), None, "", [denied])
    assert "APACHEWS_ORIGINS" in found.remedy
    unpermitted = refused_by_the_handler(refusals.PERMISSION)
    found = explain(ADDRESS, unpermitted, None, "", [denied, closed])
    assert found.remedy == "chmod o+x /a (socket-permission, above)"
    found = explain(ADDRESS, refused, None, "AH00038: no link", [denied])
    assert found.remedy == "Options +FollowSymLinks, for the directory"


def test_the_origin_that_was_asked_for_may_be_refused() -> None:
    answer = refused_by_the_handler(refusals.ORIGIN, "")
    found = explain(ADDRESS, answer, "https://evil.example")
    assert (found.level, found.breaks) == (
        Level.WARNING,
        "no WebSocket for pages of https://evil.example",
    )
    assert explain(ADDRESS, answer, None).level is Level.ERROR
    other = refused_by_the_handler(refusals.NOT_A_SOCKET, "This page's origin may not connect")
    assert explain(ADDRESS, other, "https://evil.example").level is Level.ERROR


def test_a_redirect_leads_to_a_url_for_websockets() -> None:
    answer = Answer(301, {"location": "https://b.example/x.ws"}, "")
    found = explain(ADDRESS, answer, None)
    assert (found.level, found.remedy) == (Level.ERROR, "connect to wss://b.example/x.ws")


@contextmanager
def serving(serve: Callable[[socket.socket, bytes], None]) -> Iterator[Address]:
    """A server that reads one head, and does as it is told."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(DEADLINE_S)

        def accept() -> None:
            client, _ = server.accept()
            with client:
                client.settimeout(DEADLINE_S)
                head = b""
                while b"\r\n\r\n" not in head:
                    head += client.recv(4096)
                serve(client, head)

        thread = threading.Thread(target=accept)
        thread.start()
        yield Address.parse(f"ws://127.0.0.1:{server.getsockname()[1]}/a.ws")
        thread.join(DEADLINE_S)


@contextmanager
def answering(*pieces: bytes) -> Iterator[Address]:
    """A server that answers with the same bytes, whatever comes."""

    def answer(client: socket.socket, head: bytes) -> None:
        for piece in pieces:
            client.sendall(piece)

    with serving(answer) as address:
        yield address


@pytest.mark.parametrize(
    ("answer", "id"),
    [
        (b"", "connect"),
        (b"220 mail ready\r\n\r\n", "connect"),
        (b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: x\r\n\r\n", "handshake"),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: no\r\n\r\n", "handshake"),
        (b"\x15\x03\x01\x00\x02\x02\x50" * 20, "connect"),
    ],
)
def test_servers_that_are_none_of_a_websocket(answer: bytes, id: str) -> None:
    with answering(answer) as address:
        assert levels(check_url(address, timeout_s=DEADLINE_S)) == {id: "error"}


def test_a_port_on_which_nobody_listens() -> None:
    with socket.socket() as sock:  # bound, and never listening
        sock.bind(("127.0.0.1", 0))
        address = Address.parse(f"ws://127.0.0.1:{sock.getsockname()[1]}/a.ws")
        assert levels(check_url(address, timeout_s=DEADLINE_S)) == {"connect": "error"}


def switching(head: bytes) -> bytes:
    """Return the answer that a handshake wants."""
    match = re.search(rb"Sec-WebSocket-Key: (\S+)", head)
    assert match is not None
    accept = hashlib.sha1(match[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: "
        + base64.b64encode(accept)
        + b"\r\n\r\n"
    )


def test_a_server_that_hangs_up_after_its_answer() -> None:
    is_gone = threading.Event()

    def reset(client: socket.socket, head: bytes) -> None:
        client.sendall(switching(head))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        is_gone.set()

    with serving(reset) as address:
        findings = check_url(address, timeout_s=DEADLINE_S)
        assert next(findings).id == "handshake"
        assert is_gone.wait(DEADLINE_S)
        assert list(findings) == []


def test_a_server_that_trickles_has_the_timeout_in_all() -> None:
    is_enough = threading.Event()

    def trickle(client: socket.socket, head: bytes) -> None:
        until = time.monotonic() + DEADLINE_S
        with contextlib.suppress(OSError):
            while not is_enough.wait(0.02) and time.monotonic() < until:
                client.sendall(b"x")

    with serving(trickle) as address:
        begun_at = time.monotonic()
        (found,) = check_url(address, timeout_s=0.3)
        is_enough.set()
        assert time.monotonic() - begun_at < DEADLINE_S
    assert (found.id, found.text) == ("connect", f"{address.url}: timed out")


def test_without_httpd_a_url_is_still_tried(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n") as address:
        assert main(["doctor", address.url, "--apachectl", "/nonexistent/apachectl"]) == 1
    told = capsys.readouterr().out
    assert re.search(r"^warning  httpd ", told, re.MULTILINE)
    assert re.search(r"^error    handshake ", told, re.MULTILINE)
    assert told.endswith("2 checks: 1 error, 1 warning\n")
