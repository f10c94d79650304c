"""The reference: every public name has an example in its docstring, and each one runs.

An example runs as its reader would try it, in ``python -m asyncio``: at top level,
against a server on a real socket with a browser at the other end.  The reference says
what ``server``, ``client``, ``event`` and ``connection`` are in all of them.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import doctest
import inspect
import io
import json
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import apachews
import apachews.aio
import apachews.threads
from apachews import Client, Event, Server, wire
from apachews.server import open_servers

from ..conftest import DEADLINE_S, wait_for
from ..support.bridge_by_hand import Bridge

SITE = "/var/www/html/ws"
OPEN = wire.Open(
    id="f4c3a1de-5d0c-4a57-93c1-7c6b1f0d4b3e",
    uri="/ws/chat.ws?room=1",
    headers=(
        ("accept-language", "de;q=0.5,en-GB"),
        ("cookie", "session=f00"),
        ("origin", "https://example.org"),
    ),
    remote=("203.0.113.7", 51514),
    local=("192.0.2.1", 443),
    scheme="wss",
    tls=wire.TLS("TLSv1.3", "TLS_AES_256_GCM_SHA384", "example.org"),
    user="ann",
    vhost="example.org",
    offered=("chat",),
)
ASKING = wire.Open(
    **{
        **{name: getattr(OPEN, name) for name in wire.Open.__slots__},
        "answer_required": True,
    }
)
# The event of `event`, if it is not the message "hello"; with "waiting" that arrives later.
EVENTS = {
    "Server.dequeue": "waiting",
    "Server.dequeue_nowait": "waiting",
    "Server.fileno": "waiting",
    "Client.accept": "asking",
    "Client.reject": "asking",
    "Event.accept": "asking",
    "Event.reject": "asking",
    "AcceptEvent": "accept",
    "AcceptEvent.resumed": "accept",
    "NotAsked": "accept",
    "PongEvent": "pong",
    "PongEvent.latency_s": "pong",
    "CloseEvent": "close",
    "ConnectionClosedEvent": "closed",
    "ErrorEvent": "error",
    "GapEvent": "gap",
    "GapEvent.group": "gap",
    "InvalidEvent": "invalid",
    "JoinEvent": "join",
    "LeaveEvent": "leave",
    "RelayLostEvent": "relay lost",
    "RelayBackEvent": "relay back",
    "RelayBackEvent.gap_s": "relay back",
}
JSON = '{"x": 1}'


def public_names() -> dict[str, Any]:
    """Return what the reference has, by the name under which it is documented."""
    found: dict[str, Any] = {name: getattr(apachews, name) for name in apachews.__all__}
    found |= {"wire.Open": wire.Open, "wire.TLS": wire.TLS}
    for module in (apachews.aio, apachews.threads):
        place = module.__name__.partition(".")[2]
        for name, value in vars(module).items():
            if not name.startswith("_") and getattr(value, "__module__", "") == module.__name__:
                found[f"{place}.{name}"] = value
    for name, value in list(found.items()):
        if inspect.isclass(value):
            found |= {f"{name}.{member}": method for member, method in members(value)}
    return {name: value for name, value in found.items() if not is_internal(value)}


def members(cls: type) -> Iterator[tuple[str, Any]]:
    for base in inspect.getmro(cls):
        if base.__module__.startswith("apachews"):
            for name, value in vars(base).items():
                is_inherited = base is not cls and base.__module__ != "apachews._handled"
                if is_inherited or name.startswith("_") or not callable_or_property(value):
                    continue
                if name in vars(cls) and base is not cls:
                    continue  # overridden
                yield name, value


def is_internal(value: Any) -> bool:
    """Tell whether it is neither a class nor callable: data, for example."""
    return not (inspect.isclass(value) or callable_or_property(value))


def callable_or_property(value: Any) -> bool:
    return isinstance(value, (property, classmethod)) or inspect.isfunction(value)


NAMES = public_names()


def test_the_reference_has_every_public_name() -> None:
    """A page lists each class, function and exception; autodoc gives their members."""
    pages = "".join(
        path.read_text()
        for path in sorted((Path(__file__).parents[2] / "docs" / "reference").glob("*.md"))
    )
    for name in NAMES:
        if "." not in name:
            assert f":: {name}\n" in pages or f":: {name}()\n" in pages, name
        elif name.count(".") == 1 and name.split(".")[0] in ("aio", "threads", "wire"):
            assert f":: apachews.{name}" in pages, name
    assert len(NAMES) > 100


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_has_an_example_and_it_runs(name: str) -> None:
    doc = inspect.getdoc(NAMES[name]) or ""
    examples = doctest.DocTestParser().get_examples(doc.partition("Example:")[2])
    assert examples, f"{name} has no example in its docstring"
    directory = Path(tempfile.mkdtemp(prefix="aws"))
    try:
        (directory / "index.html").touch()
        run(name, examples, directory)
    finally:
        shutil.rmtree(directory)


def run(name: str, examples: list[doctest.Example], directory: Path) -> None:
    with contextlib.ExitStack() as stack:
        place = name.split(".")[0]
        names = {n: getattr(apachews, n) for n in apachews.__all__}
        names |= {"apachews": apachews, "asyncio": asyncio, "threading": threading, "wire": wire}
        source = "".join(example.source for example in examples)
        if f"{SITE}/news.ws" in source and name != "NotListening":
            stack.enter_context(Visitor(directory / "news.ws"))
        if f"{SITE}/old.ws" in source:
            stack.enter_context(one_that_answers_nothing(directory / "old.ws"))
        if place == "aio" or name == "ConnectionClosed":
            names["serve"] = apachews.aio.serve

            async def run_in_loop() -> None:
                async with aio_world(directory / "chat.ws", name) as found:
                    await run_examples(examples, names | found, directory)

            asyncio.run(asyncio.wait_for(run_in_loop(), 2 * DEADLINE_S))
            return
        if place == "threads":
            names["serve"] = apachews.threads.serve
            names |= stack.enter_context(threads_world(directory / "chat.ws", name))
        else:
            names |= stack.enter_context(world(directory / "chat.ws", name))
        coroutine = run_examples(examples, names, directory)
        with pytest.raises(StopIteration):  # it awaits nothing
            coroutine.send(None)


async def run_examples(
    examples: list[doctest.Example], names: dict[str, Any], directory: Path
) -> None:
    checker = doctest.OutputChecker()
    for example in examples:
        source = example.source.replace(SITE, str(directory))
        code = compile(source, "<example>", "single", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), showing():
            result = eval(code, names)
            if inspect.iscoroutine(result):
                await result
        got = shown.getvalue().replace(str(directory), SITE)
        assert checker.check_output(example.want, got, doctest.ELLIPSIS), (
            f"{example.source}gave {got!r} instead of {example.want!r}"
        )


@contextlib.contextmanager
def showing() -> Iterator[None]:
    """Show values as the interpreter does, but leave ``builtins._`` as it is."""

    def show(value: object) -> None:
        if value is not None:
            print(repr(value))

    before, sys.displayhook = sys.displayhook, show
    try:
        yield
    finally:
        sys.displayhook = before


class Browser:
    """A client with its bridge: answers PING, CLOSE and MOVE, and keeps other frames."""

    def __init__(self, path: Path, open_: wire.Open = OPEN) -> None:
        self.bridge = Bridge(str(path), open_)
        self.received: list[str | bytes] = []
        self.answer: dict[str, Any] | None = None  # to the handshake, if the example answers it
        self._has_moved = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def say(self, message: str) -> None:
        self.bridge.send(wire.TEXT, message.encode())

    def _run(self) -> None:
        data = b""
        with contextlib.suppress(OSError):
            while more := self.bridge.socket.recv(65536):
                data += more
                while (header := wire.decode_header(data, 0)) is not None:
                    first, length, start = header
                    if len(data) < start + length:
                        break
                    self._answer(first & wire.OPCODE, data[start : start + length])
                    data = data[start + length :]

    def _answer(self, opcode: int, payload: bytes) -> None:
        if opcode == wire.PING:
            self.bridge.send(wire.PONG, payload)
        elif opcode == wire.MOVE:
            self._has_moved = True
            self.bridge.send(wire.MOVE)
        elif opcode == wire.CLOSE and not self._has_moved:
            self.bridge.send(wire.CLOSE, payload)
        elif opcode == wire.ANSWER:
            self.answer = json.loads(payload)
        elif opcode == wire.TEXT:
            self.received.append(payload.decode())
        elif opcode == wire.BINARY:
            self.received.append(payload)

    def wait_closed(self) -> None:
        """Wait until the producer has closed the connection."""
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()

    def leave(self) -> None:
        with contextlib.suppress(OSError):
            self.bridge.socket.shutdown(socket.SHUT_RDWR)
        self.wait_closed()
        self.bridge.socket.close()


class Visitor:
    """A client that connects to the server of an example, sends "hello", and closes it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join(2 * DEADLINE_S)
        assert not self._thread.is_alive()
        if self._failed:
            raise self._failed[0]

    def _run(self) -> None:
        try:
            wait_for(self._path.exists)
            browser = Browser(self._path)
            try:
                with contextlib.suppress(BrokenPipeError):  # one that greets may have gone
                    browser.say("hello")
                wait_for(
                    lambda: [str(message).lower() for message in browser.received] == ["hello"]
                )
            finally:
                for server in open_servers():
                    if server.path == str(self._path):
                        server.call_soon(server.close)
                browser.leave()
        except BaseException as error:
            self._failed.append(error)


@contextlib.contextmanager
def one_that_answers_nothing(path: Path) -> Iterator[None]:
    """Listen as a program does that does not know PUBLISH."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(DEADLINE_S)

        def refuse() -> None:
            sock, _ = listener.accept()
            with sock:
                sock.recv(4096)

        thread = threading.Thread(target=refuse)
        thread.start()
        yield
        thread.join()


@contextlib.contextmanager
def world(path: Path, name: str) -> Iterator[dict[str, Any]]:
    kind = EVENTS.get(name, "hello")
    with Server(path) as server:
        browser = Browser(path, ASKING if kind == "asking" else OPEN)
        try:
            event = next_event(server)
            client = event.client()
            if kind not in ("accept", "asking", "waiting"):
                event = make_event(server, client, browser, kind, name)
            elif kind == "waiting":
                browser.say("hello")
            with serving(server) if name == "publish" else contextlib.nullcontext():
                yield {"server": server, "client": client, "event": event}
        finally:
            browser.leave()


def make_event(server: Server, client: Client, browser: Browser, kind: str, name: str) -> Event:
    """Have the event happen that the example is about."""
    if kind == "hello":
        browser.say(JSON if name.endswith(".json") else "hello")
    elif kind == "pong":
        client.ping()
    elif kind == "close":
        browser.bridge.send(wire.CLOSE, wire.encode_close(1000, "bye"))
    elif kind == "closed":
        browser.bridge.socket.shutdown(socket.SHUT_RDWR)
    elif kind == "error":
        browser.bridge.socket.sendall(wire.encode_header(wire.FIN | wire.TEXT, 1 << 25))
    elif kind == "invalid":
        stranger = Bridge(server.path, None)
        stranger.send(wire.TEXT, b"hello")
        event = next_event(server)
        stranger.socket.close()
        return event
    elif kind == "relay lost":
        return apachews.RelayLostEvent(None, reason="Connection refused")
    elif kind == "join":
        return apachews.JoinEvent("room", "ann")
    elif kind == "leave":
        return apachews.LeaveEvent("room", "ann")
    elif kind == "gap":
        return apachews.GapEvent(client, "room")
    elif kind == "relay back":
        return apachews.RelayBackEvent(2.5)
    return next_event(server)


def next_event(server: Server) -> Event:
    event = server.dequeue(DEADLINE_S)
    assert event
    return event


@contextlib.contextmanager
def serving(server: Server) -> Iterator[None]:
    thread = threading.Thread(target=lambda: [None for _ in server])
    thread.start()
    try:
        yield
    finally:
        server.close()
        thread.join(DEADLINE_S)


def greeting(name: str) -> tuple[str | None, wire.Open]:
    """Return what the browser says, and how it comes."""
    method = name.rpartition(".")[2]
    said = {"receive": "hello", "receive_json": JSON}.get(method)
    return said, ASKING if method in ("accept", "reject") else OPEN


@contextlib.asynccontextmanager
async def aio_world(path: Path, name: str) -> AsyncIterator[dict[str, Any]]:
    arrived: asyncio.Future[apachews.aio.Connection] = asyncio.get_running_loop().create_future()

    async def handler(connection: apachews.aio.Connection) -> None:
        arrived.set_result(connection)
        while connection.close_code is None:
            await connection._wait()

    said, open_ = greeting(name)
    async with apachews.aio.serve(path, handler) as server:
        browser = Browser(path, open_)
        if said:
            browser.say(said)
        try:
            yield {"server": server, "connection": await arrived}
        finally:
            await server.close()
            browser.leave()


@contextlib.contextmanager
def threads_world(path: Path, name: str) -> Iterator[dict[str, Any]]:
    arrived: list[apachews.threads.Connection] = []

    def handler(connection: apachews.threads.Connection) -> None:
        arrived.append(connection)
        with connection._condition:
            connection._wait_until(lambda: connection.close_code is not None, DEADLINE_S)

    said, open_ = greeting(name)
    with apachews.threads.serve(path, handler) as server:
        browser = Browser(path, open_)
        if said:
            browser.say(said)
        try:
            yield {"server": server, "connection": wait_for(lambda: arrived)[0]}
        finally:
            server.close()
            browser.leave()
