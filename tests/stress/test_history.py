"""Histories: pages miss nothing while Apache, the producer, the relay and networks fail."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import websockets.sync.client
from websockets.exceptions import ConnectionClosed

from apachews import ApachewsError, publish

from ..conftest import DEADLINE_S, let_pass, wait_for
from ..library.test_history import Reader, machines
from ..support.brokers import Broker, OtherMachine, other_machine, running_broker
from ..support.producers import program, running
from ..support.site import Site, running_site
from .conftest import scaled

PAGES = scaled(60, 6)
FAILURES = scaled(40, 4)
OUTAGES = scaled(20, 1)
MESSAGES = scaled(1500, 300)

# A new producer asks each client where it is; the client of a dead one does not notice its death.
PRODUCER = """
import json, signal, sys
from apachews import Event, GapEvent, Server

path, kind, place = sys.argv[1:]
server = Server(path, mode=0o666, relay_name="chat", **{kind: place})
signal.signal(signal.SIGTERM, lambda *_: server.call_soon(server.drain))
room = server.group("room", history=10_000, formatter=lambda data, at: json.dumps([*at, data]))
for event in server:
    if event.type() is Event.Accept:
        event.client().send("where are you?")
    elif event.type() is Event.IO:
        room.add(event.client(), since=json.loads(event.read()))
    elif isinstance(event, GapEvent):
        server.broadcast("gap")
"""


class Page:
    """A browser's page: it remembers the position of its last message, and connects again."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.position = ("", 0)
        self.texts: list[str] = []
        self.faults: list[str] = []
        self.connection: websockets.sync.client.ClientConnection | None = None
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._is_closing.is_set():
            try:
                with websockets.sync.client.connect(self._url, close_timeout=1) as connection:
                    self.connection = connection
                    for message in connection:
                        self._receive(connection, str(message))
            except (OSError, ConnectionClosed, websockets.exceptions.InvalidStatus):
                self._is_closing.wait(0.05)

    def _receive(self, connection: websockets.sync.client.ClientConnection, message: str) -> None:
        if message == "where are you?":
            connection.send(json.dumps(self.position))
        elif message == "gap":
            self.faults.append("a gap")
        else:
            epoch, offset, text = json.loads(message)
            if self.position[0] not in ("", epoch) or offset != self.position[1] + 1:
                self.faults.append(f"{self.position} and then {epoch} {offset}")
            self.position = epoch, offset
            self.texts.append(text)

    def cut(self) -> None:
        """End the connection as a network does."""
        if self.connection is not None:
            with contextlib.suppress(OSError):
                self.connection.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._is_closing.set()
        self.cut()
        self._thread.join()


class Publisher(threading.Thread):
    """Publishes numbers to an address; each until it is stored."""

    def __init__(self, address: str) -> None:
        super().__init__()
        self._address = address
        self.count = 0
        self.is_stopped = False

    def run(self) -> None:
        while not self.is_stopped:
            try:
                publish(self._address, str(self.count), group="room", timeout=DEADLINE_S)
                self.count += 1
            except (OSError, ApachewsError):
                pass  # between two producers; or one died, which may have stored it
            let_pass(0.01)


@contextmanager
def busy_site(
    directory: Path, kind: str, pages: int
) -> Iterator[tuple[Site, Callable[[int], None], list[Page]]]:
    """Run a site with pages and a publisher.

    The result has a function that ends the producer by a signal and starts the next one, and the
    pages; at the end every page must have every message once, in order.
    """
    with ExitStack() as stack:
        site = stack.enter_context(running_site("event"))
        path = site.apache.docroot / "chat.ws"
        place, address = str(directory / "history.db"), str(path)
        broker = None
        if kind == "relay":
            broker = stack.enter_context(running_broker(directory))
            place = broker.url
            address = f"{place}?name=chat"  # a producer would answer before Redis has the message
        command = (program(directory, PRODUCER, "chat.py"), str(path), kind, place)
        producers = [stack.enter_context(running(*command))]
        wait_for(path.exists)
        crowd = [Page(site.ws("/chat.ws")) for _ in range(pages)]
        for page in crowd:
            stack.callback(page.close)
        if broker is not None:
            # Redis does not know the group before the first page has asked for its messages.
            meta = "{apachews:chat:room}:meta"
            wait_for(lambda: broker.call("EXISTS", meta) == b":1\r\n")
        publisher = Publisher(address)
        publisher.start()

        def more(count: int = 10) -> None:
            """Wait until every page has received some more."""
            goals = [len(page.texts) + count for page in crowd]
            wait_for(
                lambda: all(len(p.texts) >= g for p, g in zip(crowd, goals, strict=True)),
                3 * DEADLINE_S,
                lambda: ([len(page.texts) for page in crowd], [page.faults for page in crowd]),
            )

        def replace(number: int) -> None:
            if number == signal.SIGKILL:
                producers[-1].kill()
                producers[-1].wait()
            producers.append(stack.enter_context(running(*command)))
            if number != signal.SIGKILL:
                wait_for(lambda: producers[-2].poll() is None)
                producers[-2].send_signal(number)
            more()

        try:
            more()
            yield site, replace, crowd
            for page in crowd[: pages // 2]:
                page.cut()
            more()
        finally:
            publisher.is_stopped = True
            publisher.join()
        # The last message has the greatest offset: all pages are to get there.
        last = max(page.position[1] for page in crowd)
        publish(address, "the end", group="room", timeout=DEADLINE_S)
        wait_for(lambda: all(page.texts[-1] == "the end" for page in crowd), 3 * DEADLINE_S)
        assert [page.faults for page in crowd] == [[]] * pages
        for page in crowd:
            assert page.texts == crowd[0].texts and page.position[1] > last - 1
        assert {*map(str, range(publisher.count))} <= {*crowd[0].texts}


@pytest.mark.parametrize("kind", ["history_file", "relay"])
def test_every_page_has_every_message_once_and_in_order(short_path: Path, kind: str) -> None:
    pick = random.Random(kind)
    with busy_site(short_path, kind, PAGES) as (site, replace, pages):
        for number in range(FAILURES):
            failure = ("reload", "deploy", "kill", "cut")[number % 4]
            if failure == "reload":
                site.renew()
            elif failure == "deploy":
                replace(signal.SIGTERM)
            elif failure == "kill":
                replace(signal.SIGKILL)
            for page in pick.sample(pages, PAGES // 3):
                page.cut()


def outage(
    directory: Path,
    stop: Callable[[Broker], None],
    go_on: Callable[[Broker], None],
    there: OtherMachine | None = None,
) -> None:
    """Publish from two machines while the relay fails; check that all have everything.

    ``there`` is the machine of the second producer if only that one loses the relay.
    """
    options = ["--appendonly", "yes", "--appendfsync", "always"]
    if there:
        options += ["--bind", "127.0.0.1", there.here, "--protected-mode", "no"]
    with ExitStack() as stack:
        own = stack.enter_context(running_broker(directory, *options))
        url = f"redis://{there.here}:{own.port}/0?socket_timeout=1" if there else own.url
        both = stack.enter_context(machines(directory, url, there=there))
        lost = both[1:] if there else both
        # redis-server has the last option of each name.
        readers = [Reader(machine.member()) for machine in both]
        sent = 0
        for phase in ("before", "during", "after"):
            if phase == "during":
                stop(own)
            for _ in range(MESSAGES):
                for number, machine in enumerate(both):
                    machine.say(f"{number}:{sent}")
                sent += 1
                let_pass(0.001)
            if phase == "during":
                wait_for(lambda: not any(machine.status.is_up for machine in lost))
                # A client that comes back now gets what its machine has, and the rest later.
                readers.append(Reader(lost[0].member_now(readers[both.index(lost[0])])))
                go_on(own)
                wait_for(lambda: all(machine.status.is_up for machine in both), 3 * DEADLINE_S)
        first, second, late = readers
        assert first.wait(2 * sent) == second.wait(2 * sent)
        texts = [text for _, _, text in first.items]
        assert len({*texts}) == len(texts) == 2 * sent, "none lost, none doubled"
        for number in range(2):
            mine = [int(text[2:]) for text in texts if text.startswith(f"{number}:")]
            assert mine == [*range(sent)], "the order of each sender"
        late.wait(1)
        start = late.items[0][1]
        assert late.wait(2 * sent - start + 1) == texts[start - 1 :]
        assert not both[0].gaps() and not both[1].gaps()
        assert all(machine.status.dropped == 0 for machine in both)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("failure", ["kill", "pause", "partition"])
def test_an_outage_of_the_relay_loses_and_doubles_nothing(short_path: Path, failure: str) -> None:
    for number in range(OUTAGES):
        directory = short_path / str(number)
        directory.mkdir()
        if failure == "kill":
            outage(directory, Broker.kill, Broker.start)
        elif failure == "pause":
            outage(directory, Broker.pause, Broker.resume)
        else:
            with other_machine() as there:
                outage(directory, lambda _: there.disconnect(), lambda _: there.connect(), there)
