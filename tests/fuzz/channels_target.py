"""The fuzz target of ``apachews.channels``: what a page, or a program by the HTTP API, sends.

Contract: as ``targets``.  A server with its socket per input, so that no input depends on others.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import tempfile
from typing import Final

from apachews import wire
from apachews.channels import ApiRules, Channels, Config, Namespace
from apachews.server import Server

from .source import Source

KEY: Final = "a-key-of-programs"
_FULL: Final = Namespace(
    history_size=4,
    presence=True,
    join_leave=True,
    publish=frozenset({"all"}),
    history=frozenset({"all"}),
    see_presence=frozenset({"all"}),
)
_CONFIG: Final = Config(
    default=_FULL, namespaces={"plain": Namespace()}, api=ApiRules(key=KEY), max_channels=4
)
_READ_BYTES: Final = 1 << 20


class _Failures(logging.Handler):
    """Notes the exceptions that the product has caught and logged: there should be none."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.exc_info:
            self.texts.append(f"{record.getMessage()}: {record.exc_info[1]!r}")


def channels(data: bytes) -> None:
    """Whatever a client sends is answered by JSON, or by a CLOSE; no exception is behind it."""
    # 0x01: a request of the API, whose path comes first; then messages.  All end with a zero.
    is_api = bool(Source(data).byte() & 1)
    path, *messages = data[1:].split(b"\0") if is_api else [b"/live.ws", *data[1:].split(b"\0")]
    directory = tempfile.mkdtemp(prefix="awf")
    logger, failures = logging.getLogger("apachews"), _Failures()
    logger.addHandler(failures)
    try:
        with Server(os.path.join(directory, "a.ws"), presence=True) as server:
            received = _talk(Channels(server, _CONFIG), is_api, path, messages)
        _check(received)
        assert not failures.texts, failures.texts
    finally:
        logger.removeHandler(failures)
        shutil.rmtree(directory)


def _talk(served: Channels, is_api: bool, path: bytes, messages: list[bytes]) -> bytes:
    """Return what the producer sends to a client."""
    open_ = wire.Open(
        id="1",
        method="POST" if is_api else "GET",
        uri=path.decode("latin-1"),
        headers=(("x-api-key", KEY),),
    )
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(served.server.path)
        sock.sendall(open_.encode() + b"".join(map(_frame, messages)))
        while (event := served.server.dequeue(0.0)) is not None:
            served.handle(event)
        sock.setblocking(False)
        try:
            return sock.recv(_READ_BYTES)
        except BlockingIOError:
            return b""


def _frame(message: bytes) -> bytes:
    try:
        message.decode()
    except UnicodeDecodeError:
        return wire.encode_frame(wire.BINARY, message)
    return wire.encode_frame(wire.TEXT, message)


def _check(received: bytes) -> None:
    """Check that what was received is answers, pushes and pings in JSON, and a CLOSE at most."""
    at = 0
    while at < len(received):
        header = wire.decode_header(received, at)
        assert header is not None
        first, length, start = header
        at, payload = start + length, received[start : start + length]
        if first == wire.FIN | wire.CLOSE:
            close = wire.decode_close(payload)
            assert close.code == wire.NORMAL or 3000 <= close.code <= 4999, close
            assert at == len(received), "a CLOSE is the last frame"
        else:
            assert first == wire.WHOLE_TEXT
            for line in payload.decode().split("\n"):
                assert isinstance(json.loads(line), dict)
