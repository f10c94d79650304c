"""Two machines: two Apaches, a producer at each, a Redis between them, and a third program."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests
import websockets.sync.client
from prometheus_client.parser import text_string_to_metric_families

from apachews.monitoring.snapshot import Status

from ..conftest import let_pass, wait_for
from ..support.brokers import Broker, running_broker
from ..support.producers import program, running
from ..support.site import ROOT, Site, running_site
from .test_status import PAGE

Client = websockets.sync.client.ClientConnection

CHAT = """
import sys
from apachews import Event, RelayBackEvent, Server

server = Server(sys.argv[1], mode=0o666, relay=sys.argv[2], relay_name="chat")
for event in server:
    if event.type() is Event.IO:
        command, _, rest = event.read().partition(" ")
        if command == "join":
            server.group(rest).add(event.client())
            event.write("joined")
        elif command == "ready":
            event.write(str(all(group.is_relayed for group in event.client().groups)))
        elif command == "say":
            for group in event.client().groups:
                group.broadcast(rest)
        else:
            server.broadcast(rest)
    elif isinstance(event, RelayBackEvent):
        server.broadcast("some messages may be missing", scope="here")
"""


@pytest.fixture
def broker(short_path: Path) -> Iterator[Broker]:
    with running_broker(short_path) as broker:
        yield broker


@pytest.fixture
def two(short_path: Path, broker: Broker) -> Iterator[list[Site]]:
    """Two machines, as far as their programs can tell."""
    with ExitStack() as stack:
        sites = []
        for _ in range(2):
            site = stack.enter_context(running_site())
            path = site.apache.docroot / "chat.ws"
            chat = program(short_path, CHAT, "chat.py")
            stack.enter_context(running(chat, str(path), broker.url))
            wait_for(path.exists)
            sites.append(site)
        yield sites


def ask(client: Client, text: str) -> str:
    client.send(text)
    return str(client.recv(10))


def member(stack: ExitStack, site: Site, room: str) -> Client:
    """Return a client that is in a room, which messages of the other machine reach."""
    client = stack.enter_context(websockets.sync.client.connect(site.ws("/chat.ws")))
    assert ask(client, f"join {room}") == "joined"
    wait_for(lambda: ask(client, "ready") == "True")
    return client


def status_of(site: Site) -> Status:
    answer = requests.get(site.http(f"{PAGE}?json"), timeout=10)
    assert answer.status_code == 200, answer.text
    return Status.decode(answer.content)


def test_a_chat_on_two_machines(two: list[Site], broker: Broker) -> None:
    with ExitStack() as stack:
        ann, bob = member(stack, two[0], "tea"), member(stack, two[1], "tea")
        cid = member(stack, two[1], "coffee")
        ann.send("say hello")
        assert [ann.recv(10), bob.recv(10)] == ["hello"] * 2
        bob.send("all everyone")
        assert [client.recv(10) for client in (ann, bob, cid)] == ["everyone"] * 3
        # A program on a machine without Apache.
        command = [sys.executable, "-m", "apachews", "publish", "--relay", broker.url]
        done = subprocess.run(
            [*command, "chat", "tea", "-m", "from outside"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        assert done.stdout == "relayed\n"
        assert [client.recv(10) for client in (ann, bob)] == ["from outside"] * 2

        # What the status page of each machine says.
        for site in two:
            wait_for(lambda site=site: [relay.is_up for relay in status_of(site).relays] == [True])  # type: ignore[misc]
            (relay,) = status_of(site).relays
            assert relay.endpoint == str(site.apache.docroot / "chat.ws")
            assert (relay.name, relay.address) == ("chat", broker.url)
            assert relay.published == 1 and relay.received == 2 and not relay.gaps
            text = requests.get(site.http(f"{PAGE}?metrics"), timeout=10).text
            families = {family.name: family for family in text_string_to_metric_families(text)}
            (sample,) = families["apachews_relay_up"].samples
            assert sample.value == 1 and sample.labels["endpoint"] == relay.endpoint
            assert families["apachews_relay_received"].samples[0].value == 2

        # The relay dies: each machine goes on, and says afterwards that something may be missing.
        broker.kill()
        wait_for(lambda: not status_of(two[0]).relays[0].is_up)
        ann.send("say alone")
        assert ann.recv(10) == "alone"
        broker.start()
        missing = "some messages may be missing"
        assert ann.recv(10) == missing
        assert bob.recv(10) in (missing, "alone")
        wait_for(lambda: all(status_of(site).relays[0].is_up for site in two))
        assert [status_of(site).relays[0].gaps for site in two] == [1, 1]
        cid.send("say only coffee")
        ann.send("all back")
        assert ann.recv(10) == "back"
        assert "back" in iter(lambda: bob.recv(10), None)


MEMBERS = """
import sys
from apachews import Event, JoinEvent, LeaveEvent, Server
from apachews._relay import presence

presence.LEAVE_DELAY_S = 0.3
server = Server(
    sys.argv[1], mode=0o666, relay=sys.argv[2], relay_name="members", presence=True
)
group = server.group("room")
changes = []
for event in server:
    if event.type() is Event.IO:
        word, _, member = event.read().partition(" ")
        if word == "join":
            group.add(event.client(), member=member)
        event.write(" ".join([*sorted(group.members()), *changes]))
    elif isinstance(event, (JoinEvent, LeaveEvent)):
        changes.append(("+" if isinstance(event, JoinEvent) else "-") + event.member)
"""


def test_a_reload_of_apache_is_no_leave(short_path: Path, broker: Broker) -> None:
    with ExitStack() as stack:
        clients = []
        for number in range(2):
            site = stack.enter_context(running_site())
            path = site.apache.docroot / "members.ws"
            members = program(short_path, MEMBERS, "members.py")
            stack.enter_context(running(members, str(path), broker.url))
            wait_for(path.exists)
            client = stack.enter_context(websockets.sync.client.connect(site.ws("/members.ws")))
            clients.append(client)
            ask(client, f"join user-{number}")
        for client in clients:
            wait_for(lambda c=client: ask(c, "list").startswith("user-0 user-1"))  # type: ignore[misc]
        before = [sorted(ask(client, "list").split()) for client in clients]
        site.renew()
        let_pass(1.0)
        assert [sorted(ask(client, "list").split()) for client in clients] == before
        assert not [word for words in before for word in words if word.startswith("-")]
