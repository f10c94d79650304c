"""``apachews connect``: against servers that follow a script, and those that break it."""

from __future__ import annotations

import argparse
import base64
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from apachews import wire
from apachews.monitoring import refusals
from apachews_tools.cli import connect, main
from apachews_tools.httpd.address import Address, AddressError
from apachews_tools.httpd.answers import Answer, cause_of, phrase
from apachews_tools.terminal.terminal import describe_bytes, printable

from ..support.producers import ROOT, ended, running
from ..support.terminal import in_terminal

Script = Callable[[socket.socket, str], None]


@contextmanager
def scripted(script: Script) -> Iterator[tuple[str, list[str]]]:
    """Run a server for one connection; give its URL, and a list that gets the request head."""
    listener = socket.create_server(("127.0.0.1", 0))
    heads: list[str] = []

    def serve() -> None:
        sock, _ = listener.accept()
        with sock:
            sock.settimeout(10)
            head = b""
            while b"\r\n\r\n" not in head:
                head += sock.recv(65536)
            heads.append(head.decode())
            script(sock, heads[0])

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"ws://127.0.0.1:{listener.getsockname()[1]}/x.ws", heads
    finally:
        listener.close()
        thread.join()


def accept(head: str, *more: str) -> bytes:
    """Return the 101 to a request."""
    key = re.search(r"Sec-WebSocket-Key: (\S+)", head, re.IGNORECASE)
    assert key
    digest = hashlib.sha1(f"{key[1]}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
    lines = [
        "HTTP/1.1 101 Switching Protocols",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Accept: {base64.b64encode(digest).decode()}",
        *more,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


def read_frames(sock: socket.socket) -> Iterator[tuple[int, bytes]]:
    """Yield opcode and payload of a client's (short) frames until it hangs up."""
    data = b""
    while True:
        while len(data) >= 6 and len(data) >= 6 + (data[1] & 127):
            length = data[1] & 127
            assert data[1] & 128 and length < 126
            mask, payload = data[2:6], data[6 : 6 + length]
            yield data[0] & 15, bytes(b ^ mask[i % 4] for i, b in enumerate(payload))
            data = data[6 + length :]
        more = sock.recv(65536)
        if not more:
            return
        data += more


def echo(sock: socket.socket, head: str) -> None:
    """Be a good server."""
    sock.sendall(accept(head))
    for opcode, payload in read_frames(sock):
        answer = wire.PONG if opcode == wire.PING else opcode
        sock.sendall(wire.encode_frame(answer, payload))
        if opcode == wire.CLOSE:
            return


def answers(*frames: bytes) -> Script:
    """Send frames, in one piece with the 101, and wait until the client has gone."""

    def script(sock: socket.socket, head: str) -> None:
        sock.sendall(accept(head) + b"".join(frames))
        for opcode, payload in read_frames(sock):
            if opcode == wire.CLOSE:
                sock.sendall(wire.encode_frame(opcode, payload))
                return

    return script


def refuses(response: str) -> Script:
    return lambda sock, head: sock.sendall(response.replace("\n", "\r\n").encode())


def run_connect(*arguments: str, stdin: bytes | None = None) -> tuple[int, str, str]:
    """Run the command; return exit status, output, errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "apachews", "connect", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def events(output: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in output.splitlines()]


def test_a_message_and_its_answer() -> None:
    with scripted(echo) as (url, _):
        assert run_connect(url, "-m", "hé", "-m", "you") == (0, "hé\nyou\n", "")


def test_lines_of_a_pipe_and_their_answers() -> None:
    with scripted(echo) as (url, _):
        assert run_connect(url, stdin=b"one\n\ntwo\r\nthree") == (0, "one\n\ntwo\nthree\n", "")


def test_lines_that_are_no_text_are_named() -> None:
    with scripted(echo) as (url, _):
        status, output, errors = run_connect(url, stdin=b"one\nab\xff\n")
    assert (status, output) == (1, "")
    assert errors == "apachews connect: line 2 of standard input is not UTF-8 (byte 2)\n"


def test_without_input_it_closes_at_once() -> None:
    with scripted(echo) as (url, _):
        assert run_connect(url) == (0, "", "")


def test_so_many_messages_and_no_more() -> None:
    frames = [wire.encode_frame(wire.TEXT, str(number).encode()) for number in range(5)]
    with scripted(answers(*frames)) as (url, _):
        status, output, errors = run_connect(url, "--count", "3")
    assert (status, errors) == (0, "")
    assert output.splitlines()[:3] == ["0", "1", "2"]


def test_all_that_happens_as_json() -> None:
    frames = (
        wire.encode_frame(wire.TEXT, b"a", fin=False),
        wire.encode_frame(wire.PING, b"there?"),
        wire.encode_frame(wire.CONTINUATION, "\nü\x1b".encode()),
        wire.encode_frame(wire.BINARY, b"\0\xff"),
    )
    with scripted(answers(*frames)) as (url, _):
        status, output, errors = run_connect(url, "--count", "2", "--json")
    opened, *rest = events(output)
    assert (status, errors) == (0, "")
    assert opened["event"] == "open"
    assert rest == [
        {"event": "message", "text": "a\nü\x1b"},
        {"event": "message", "bytes": 2, "base64": "AP8="},
        {"event": "close", "code": 1000, "reason": ""},
    ]


def test_pings_are_answered() -> None:
    seen = []

    def script(sock: socket.socket, head: str) -> None:
        sock.sendall(accept(head) + wire.encode_frame(wire.PING, b"there?"))
        for opcode, payload in read_frames(sock):
            seen.append((opcode, payload))
            code = wire.encode_close(1000)
            if opcode == wire.PONG:
                sock.sendall(wire.encode_frame(wire.CLOSE, code))
            else:
                return

    with scripted(script) as (url, _):
        assert run_connect(url, "--count", "1")[0] == 1  # message is missing
    assert seen == [(wire.PONG, b"there?"), (wire.CLOSE, wire.encode_close(1000))]


def test_binary_messages_are_sent_and_shown_with_their_size() -> None:
    opcodes = []

    def script(sock: socket.socket, head: str) -> None:
        sock.sendall(accept(head))
        for opcode, payload in read_frames(sock):
            opcodes.append(opcode)
            sock.sendall(wire.encode_frame(opcode, payload))
            if opcode == wire.CLOSE:
                return

    with scripted(script) as (url, _):
        assert run_connect(url, "--binary", "-m", "AB") == (0, "[2 bytes] 41 42\n", "")
    assert opcodes == [wire.BINARY, wire.CLOSE]


def test_what_passed_is_said_at_the_end() -> None:
    with scripted(echo) as (url, _):
        status, output, errors = run_connect(url, "-m", "hello", "--stats")
    assert (status, output) == (0, "hello\n")
    assert re.search(
        r"sent 1 messages \(5 bytes\), received 1 \(5 bytes\) in \d+\.\d s"
        r"; 1 pings, min/mean/max [\d.]+/[\d.]+/[\d.]+ ms",
        errors,
    )
    with scripted(echo) as (url, _):
        last = events(run_connect(url, "-m", "hello", "--stats", "--json")[1])[-1]
    assert last["event"] == "stats"
    assert last["sent"] == last["received"] == {"messages": 1, "bytes": 5}


def test_the_close_of_the_server_is_shown() -> None:
    frame = wire.encode_frame(wire.CLOSE, wire.encode_close(1013, "too\x1b[2J slow"))
    with scripted(answers(frame)) as (url, _):
        status, output, errors = run_connect(url, "--count", "1")
    assert (status, output) == (1, "")
    assert errors == (
        "the server closed the connection, 1013 (try again later): too\\x1b[2J slow;"
        " 1 message is missing\n"
    )


def test_a_connection_that_breaks_off_is_a_failure() -> None:
    with scripted(lambda sock, head: sock.sendall(accept(head))) as (url, _):
        status, _, errors = run_connect(url, "--count", "1")
    assert status == 1
    assert "the connection broke off without a close frame" in errors


def test_a_server_that_breaks_the_protocol_is_told_and_named() -> None:
    codes = []

    def script(sock: socket.socket, head: str) -> None:
        sock.sendall(accept(head) + b"\xff\x00")
        for opcode, payload in read_frames(sock):
            assert opcode == wire.CLOSE
            codes.append(int.from_bytes(payload[:2], "big"))
            return

    with scripted(script) as (url, _):
        status, _, errors = run_connect(url, "--count", "1")
    assert (status, codes) == (1, [1002])
    assert "the server breaks the protocol: " in errors


def test_an_answer_that_does_not_come_is_a_failure() -> None:
    with scripted(answers(wire.encode_frame(wire.TEXT, b"one"))) as (url, _):
        status, output, errors = run_connect(url, "-m", "a", "-m", "b", "--timeout", "0.3")
    assert (status, output) == (1, "one\n")
    assert "no message for 0.3 s; 1 message is missing" in errors


def test_a_close_that_is_not_answered_is_a_failure() -> None:
    def script(sock: socket.socket, head: str) -> None:
        sock.sendall(accept(head))
        for _ in read_frames(sock):
            pass

    with scripted(script) as (url, _):
        status, _, errors = run_connect(url, "--timeout", "0.3")
    assert status == 1
    assert errors == "the server did not answer the close frame within 0.3 s\n"


def test_a_terminated_client_ends() -> None:
    ready = threading.Event()

    def script(sock: socket.socket, head: str) -> None:
        sock.sendall(accept(head))
        for opcode, _ in read_frames(sock):
            if opcode == wire.TEXT:
                ready.set()

    with scripted(script) as (url, _):
        command = ("-m", "apachews", "connect", url, "-m", "x", "--timeout", "60")
        with running(*command) as process:
            assert ready.wait(10)
            process.terminate()
            assert ended(process) == (143, "")


@pytest.mark.parametrize(
    ("response", "said"),
    [
        ("HTTP/1.1 404 Not Found\nContent-Length: 4\n\nGone", "404 Not Found\n  Gone\nThe file"),
        ("HTTP/1.1 426 Upgrade Required\nContent-Length: 0\n\n", "asks for an upgrade"),
        ("HTTP/1.1 200 OK\nContent-Length: 13\n\n<html></html>", "RewriteRule \\.ws$ - [END]"),
        ("HTTP/1.1 204 No Content\n\n", "a front controller"),
        ("HTTP/1.1 302 Found\nLocation: https://a/\nContent-Length: 0\n\n", "to wss://a/ instead"),
        ("HTTP/1.1 503 Busy\nRetry-After: 5\n\nto the end\x1b", "to the end\\x1b\n  (retry after"),
        ("HTTP/1.0 599 Strange\nContent-Length: 0\n\n", "the server answers 599\n"),
        ("SSH-2.0-OpenSSH_9\n", "not a WebSocket server"),
        ("HTTP/1.1 101 Yes\nUpgrade: websocket\nConnection: upgrade\n\n", "Bad accept token"),
        ("", "the server closed the connection during the handshake"),
    ],
)  # fmt: skip
def test_a_refusal_is_explained(response: str, said: str) -> None:
    with scripted(refuses(response)) as (url, _):
        status, output, errors = run_connect(url)
    assert (status, output) == (1, "")
    assert errors.startswith("apachews connect: ")
    assert said in errors
    assert "Traceback" not in errors


def test_a_refusal_as_json() -> None:
    response = "HTTP/1.1 403 Forbidden\nContent-Length: 3\nX-A: b\n\nno!"
    with scripted(refuses(response)) as (url, _):
        status, output, errors = run_connect(url, "--json")
    assert status == 1
    assert "403 Forbidden" in errors
    assert events(output) == [
        {
            "event": "refused",
            "status": 403,
            "headers": [["content-length", "3"], ["x-a", "b"]],
            "body": "no!",
        }
    ]


def test_a_server_that_does_not_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"ws://127.0.0.1:{silent.getsockname()[1]}/"
        assert main(["connect", url, "--timeout", "0.2"]) == 1
        secure = url.replace("ws:", "wss:")
        assert main(["connect", secure, "--timeout", "0.2"]) == 1


def test_a_port_without_a_listener_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert main(["connect", f"ws://127.0.0.1:{port}/"]) == 1
    assert f"127.0.0.1, port {port}: Connection refused: is Apache running?" in (
        capsys.readouterr().err
    )


def test_the_request_has_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APACHEWS_PASSWORD", "s3cret")
    options = [
        *("--header", "X-One: 1", "--header", "X-Two:two "),
        *("--cookie", "a=b", "--cookie", "c=d"),
        *("--origin", "https://example.org", "--user", "ann"),
        *("--subprotocol", "chat", "--subprotocol", "old"),
    ]

    def script(sock: socket.socket, head: str) -> None:
        sock.sendall(accept(head, "Sec-WebSocket-Protocol: chat"))
        for opcode, payload in read_frames(sock):
            sock.sendall(wire.encode_frame(opcode, payload))

    with scripted(script) as (url, heads):
        status, output, _ = run_connect(f"{url}?q=ü%20", *options, "--json", "--no-compression")
    assert status == 0
    assert events(output)[0]["subprotocol"] == "chat"
    first, *lines = heads[0].strip().split("\r\n")
    assert first == "GET /x.ws?q=%C3%BC%20 HTTP/1.1"
    fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    assert fields["host"] == url.split("/")[2]
    assert (fields["x-one"], fields["x-two"]) == ("1", "two")
    assert fields["cookie"] == "a=b; c=d"
    assert fields["origin"] == "https://example.org"
    assert fields["sec-websocket-protocol"] == "chat, old"
    assert fields["authorization"] == f"Basic {base64.b64encode(b'ann:s3cret').decode()}"
    assert "sec-websocket-extensions" not in fields


def test_without_a_terminal_a_password_cannot_be_asked_for() -> None:
    with running("-m", "apachews", "connect", "ws://127.0.0.1:1/", "--user", "ann") as process:
        status, output = ended(process)  # it is in a session without a terminal
    assert status == 1
    assert "set APACHEWS_PASSWORD" in output


def test_a_password_that_is_not_given_or_no_text_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    connect_as_ann = ["connect", "ws://127.0.0.1:1/", "--user", "ann"]
    monkeypatch.setenv("APACHEWS_PASSWORD", "\udcff")
    assert main(connect_as_ann) == 1
    assert capsys.readouterr().err == "apachews connect: the password is not UTF-8\n"
    monkeypatch.delenv("APACHEWS_PASSWORD")
    with in_terminal("-m", "apachews", *connect_as_ann) as terminal:
        terminal.wait_for_row("^Password of ann:")
        terminal.type("\x04")
        assert terminal.wait() == 1
        terminal.wait_for_row("no password given")


def test_without_the_extra_it_says_what_to_install() -> None:
    script = (
        "import sys; sys.modules['wsproto'] = None;"
        "from apachews_tools.cli import main; sys.exit(main(['connect', 'ws://a/']))"
    )
    with running("-c", script) as process:
        assert ended(process) == (
            1,
            "apachews connect: wsproto is not installed: pip install 'apachews[cli]'"
            " (Debian: python3-wsproto and python3-prompt-toolkit)\n",
        )


def test_a_message_of_the_command_line_needs_no_line_editor() -> None:
    script = (
        "import sys; sys.modules['prompt_toolkit'] = None;"
        "from apachews_tools.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    with (
        scripted(echo) as (url, _),
        in_terminal("-c", script, "connect", url, "-m", "hi", env={"NO_COLOR": "1"}) as terminal,
    ):
        assert terminal.wait() == 0
        assert [row for row in terminal.read() if "connected in" not in row] == [
            "< hi",
            "closed, 1000 (normal)",
        ]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("localhost/x.ws", "does not begin with ws:// or wss://"),
        ("ftp://a/", "does not begin with ws:// or wss://"),
        ("ws:///x.ws", "does not name a host"),
        ("ws://a:port/", "is not a URL"),
        ("ws://ann:secret@a/", "use --user"),
        ("ws://a/#there", "has a fragment"),
        ("ws://a:99999/", "is not a URL"),
        ("ws://a:0/", "port 0"),
        ("ws://a..b/", "invalid host name 'a..b'"),
    ],
)
def test_what_is_no_websocket_url_is_refused(url: str, said: str) -> None:
    with pytest.raises(AddressError, match=said):
        Address.parse(url)


@pytest.mark.parametrize(
    ("url", "address", "host"),
    [
        ("ws://a", Address(False, "a", 80, "/"), "a"),
        ("wss://a/b?c", Address(True, "a", 443, "/b?c"), "a"),
        ("https://a:80/", Address(True, "a", 80, "/"), "a:80"),
        ("ws://[::1]:8080/x", Address(False, "::1", 8080, "/x"), "[::1]:8080"),
    ],
)
def test_urls(url: str, address: Address, host: str) -> None:
    assert Address.parse(url) == address
    assert address.host_header == host


@pytest.mark.parametrize(
    "text",
    ["no colon", "two words: x", ": x", "A: b\r\nC: d", "Upgrade: x", "sec-websocket-Key: x"],
)
def test_headers_that_cannot_be_sent_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        connect._header(text)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--header", "no colon"),
        ("--origin", "a\nb"),
        ("--cookie", "a\0"),
        ("--subprotocol", "two words"),
        ("--user", "ann:secret"),
        ("--message", "\udcff"),
        ("--count", "-1"),
        ("--timeout", "nan"),
        ("--timeout", "1e10"),
    ],
)
def test_what_cannot_be_sent_is_an_argument_that_makes_no_sense(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["connect", "ws://127.0.0.1:1/", f"{option}={value}"])
    assert ended.value.code == 2
    assert option in capsys.readouterr().err.splitlines()[-1]


def test_a_url_that_is_no_text_is_an_argument_that_makes_no_sense(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["connect", "ws://127.0.0.1:1/\udcff"])
    assert ended.value.code == 2
    assert r"'ws://127.0.0.1:1/\udcff' is not UTF-8" in capsys.readouterr().err


def test_a_host_that_cannot_be_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["connect", f"ws://{'a' * 70}/"]) == 1
    assert capsys.readouterr().err == (f"apachews connect: invalid host name '{'a' * 70}'\n")


@pytest.mark.parametrize("token", refusals.REASONS)
def test_a_refusal_of_the_handler_has_its_hint_whatever_its_words(token: str) -> None:
    reason = refusals.REASONS[token]
    status = reason.status or 403
    response = f"HTTP/1.1 {status} X\nApachews-Refused: {token}\nContent-Length: 6\n\nwords\n"
    with scripted(refuses(response)) as (url, _):
        ended_with, _, errors = run_connect(url)
    assert ended_with == 1
    assert errors.endswith(f"{reason.meaning[1:]}: {reason.remedy}.\n")


def test_answers_of_other_servers_have_hints() -> None:
    for status in (200, 206, 400, 401, 403, 404, 407, 426, 429, 500, 501, 502, 503, 504):
        assert cause_of(Answer(status)), status
    assert cause_of(Answer(499)) is None
    tls = cause_of(Answer(400, {}, "You're speaking plain HTTP to an SSL-enabled server port."))
    assert tls
    assert "wss://" in tls.hint()
    assert phrase(404) == "404 Not Found"


def test_nothing_that_is_shown_can_steer_the_terminal() -> None:
    assert printable("a\tb\nc 🙂 é\u200d") == "a\tb\nc 🙂 é\u200d"
    assert printable("\x1b]0;x\x07\r\x9b\u202e") == "\\x1b]0;x\\x07\\r\\x9b\\u202e"
    assert describe_bytes(b"\0\x1b") == "[2 bytes] 00 1b"
    assert describe_bytes(b"x" * 100, 2) == "[100 bytes] 78 78 …"
    assert describe_bytes(b"") == "[0 bytes]"


# Standard input is not a terminal, as in a pipeline.
WITHOUT_TYPING = """
import os, sys
os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
from apachews_tools.cli import main
sys.exit(main(sys.argv[1:]))
"""
AS_IT_IS = ("-m", "apachews")


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize(
    ("command", "term"),
    [(("-c", WITHOUT_TYPING), "xterm"), (AS_IT_IS, "dumb"), (AS_IT_IS, "xterm")],
    ids=["pipe", "dumb", "row"],
)
def test_a_message_cannot_steer_the_terminal(
    command: tuple[str, ...], term: str, options: list[str]
) -> None:
    message = wire.encode_frame(wire.TEXT, "\x1b]0;x\x07\x9b2J\x7fend".encode())
    arguments = ("connect", "--count", "1", *options)
    with (
        scripted(answers(message)) as (url, _),
        in_terminal(*command, *arguments, url, env={"TERM": term, "NO_COLOR": "1"}) as terminal,
    ):
        assert terminal.wait() == 0
        shown = "".join(terminal.screen.rows)
    assert "end" in shown
    assert shown.isprintable(), shown
    spelt_out = r"\u001b]0;x\u0007\u009b2J\u007fend" if options else r"\x1b]0;x\x07\x9b2J\x7fend"
    assert spelt_out in shown


def test_into_a_pipe_messages_go_as_they_are() -> None:
    text = "\x1b[31m\x9bé"
    frame = wire.encode_frame(wire.TEXT, text.encode())
    with scripted(answers(frame)) as (url, _):
        assert run_connect(url, "--count", "1", stdin=b"") == (0, f"{text}\n", "")
    with scripted(answers(frame)) as (url, _):
        _, output, _ = run_connect(url, "--count", "1", "--json", stdin=b"")
        assert "\x9bé" in output
