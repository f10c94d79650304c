"""Channels: networks that break again and again, reloads and deploys: no message is missed."""

from __future__ import annotations

import asyncio
import gc
import random
import signal
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import centrifuge

from apachews import NotListening, PublishError, publish

from ..conftest import DEADLINE_S, let_pass, wait_for
from ..support.networks import Network
from ..support.producers import program, running
from ..support.site import running_site
from .conftest import scaled

CLIENTS = scaled(200, 12)
# Each client's network is cut for so long, so often.
CUT_S = scaled(4, 1) / 2
CUTS = scaled(10, 2)
DEPLOYS = scaled(3, 1)
RELOADS = scaled(3, 1)
INTERVAL_S = 0.02

# The server notices clients that are gone without a word, as they notice it.
CONFIG = """
ping_seconds = 1
pong_seconds = 3

[default]
history_size = 100000
"""
PRODUCER = """
import sys
from apachews.channels.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


class Page(centrifuge.SubscriptionEventHandler):
    """Notes the numbers that a subscription gets, and what it is told of recoveries."""

    def __init__(self) -> None:
        self.numbers: list[Any] = []
        self.recoveries = 0
        self.is_lost = False

    async def on_publication(self, context: Any) -> None:
        self.numbers.append(context.pub.data)

    async def on_subscribed(self, context: Any) -> None:
        if context.was_recovering:
            self.recoveries += 1
            self.is_lost |= not context.recovered


class Publisher(threading.Thread):
    """Publishes numbers, as a program of the site."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self.is_ending = False
        self.sent: list[int] = []
        self.unknown: set[int] = set()  # the producer has died before its answer

    def run(self) -> None:
        number = 0
        while not self.is_ending:
            number += 1
            try:
                publish(self._path, str(number), "news")
                self.sent.append(number)
            except NotListening:
                number -= 1
            except PublishError:
                self.unknown.add(number)
            let_pass(INTERVAL_S)


async def run_pages(
    ports: list[int], path: Path, networks: list[Network], disturb: Callable[[], None]
) -> None:
    pages = [Page() for _ in ports]
    clients = [
        centrifuge.Client(
            f"ws://127.0.0.1:{port}/live.ws",
            min_reconnect_delay=0.05,
            max_reconnect_delay=0.5,
            timeout=DEADLINE_S,
            max_server_ping_delay=1,  # a client notices a silent cut
        )
        for port in ports
    ]
    for client, page in zip(clients, pages, strict=True):
        await client.connect()
        await client.new_subscription("news", page, recoverable=True).subscribe()
    subscriptions = [client.get_subscription("news") for client in clients]
    for subscription in subscriptions:
        assert subscription
        await subscription.ready(timeout=60)
    publisher = Publisher(path)
    publisher.start()
    try:

        async def cut_now_and_then(network: Network) -> None:
            for number in range(CUTS):
                await asyncio.sleep(random.uniform(0.1, 2 * CUT_S))
                await network.cut(CUT_S, is_silent=number % 2 == 1)

        disturbance = asyncio.to_thread(disturb)
        await asyncio.gather(disturbance, *map(cut_now_and_then, networks))
    finally:
        publisher.is_ending = True
        await asyncio.to_thread(publisher.join)
    await asyncio.to_thread(publish, path, '"end"', "news")
    deadline = time.monotonic() + 60
    while any(not page.numbers or page.numbers[-1] != "end" for page in pages):
        assert time.monotonic() < deadline, [
            (client.state, subscription.state, page.numbers[-1:], page.recoveries)
            for client, subscription, page in zip(clients, subscriptions, pages, strict=True)
            if page.numbers[-1:] != ["end"]
        ]
        await asyncio.sleep(0.05)
    assert len(publisher.sent) > 20
    for page in pages:
        numbers = page.numbers[:-1]
        assert numbers == sorted({*numbers}), "in order, each once"
        assert not page.is_lost
        assert {*publisher.sent} <= {*numbers} <= {*publisher.sent} | publisher.unknown
    assert all(page.recoveries for page in pages)
    for client in clients:
        await client.disconnect()
    for network in networks:
        network.close()


def test_clients_whose_networks_break_miss_nothing(short_path: Path) -> None:
    config = short_path / "channels.toml"
    config.write_text(CONFIG)
    with running_site("event") as site:
        path = site.docroot / "live.ws"
        database = short_path / "live.db"
        arguments = (
            str(path),
            "--mode",
            "666",
            "--config",
            str(config),
            "--history-file",
            str(database),
        )
        script = program(short_path, PRODUCER)
        with running("-m", "apachews.runner", script, *arguments) as runner:
            wait_for(path.exists)

            def disturb() -> None:
                for number in range(DEPLOYS + RELOADS):
                    let_pass(0.5)
                    if number % 2:
                        site.renew()
                    else:
                        runner.send_signal(signal.SIGHUP)

            async def talk() -> None:
                networks = [Network(site.apache.port) for _ in range(CLIENTS)]
                ports = [await network.open() for network in networks]
                await run_pages(ports, path, networks, disturb)

            with warnings.catch_warnings():
                # The clients leave closing their transports to the loop.
                warnings.simplefilter("ignore", ResourceWarning)
                asyncio.run(talk())
                gc.collect()
