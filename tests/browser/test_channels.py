"""centrifuge (npm) in Chromium and Firefox, through a network that fails; the live blog."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest
import requests

from apachews import publish
from apachews_tools.httpd import private_apache

from ..conftest import wait_for
from ..integration.test_examples import answers
from ..support.networks import RunningNetwork, running_network
from ..support.producers import running
from ..support.site import ROOT, Site, running_site
from .conftest import (
    CHROMEDRIVER,
    CHROMIUM,
    chromium,
    firefox,
    is_open,
    needs_firefox,
    reports,
    screenshot,
    text_of,
)

MODULES = os.environ.get("APACHEWS_NODE_PATH", str(ROOT / ".venv/node/node_modules"))
LIBRARY = Path(MODULES, "centrifuge", "dist", "centrifuge.js")
LIVEBLOG = ROOT / "examples" / "liveblog"
SECRET = "a secret of at least thirty-two bytes"
# A browser starts, and is told of a silent network by the pings that do not come.
DEADLINE_S = 60.0
TOKEN_S = 4

needs_chromium = pytest.mark.skipif(
    not CHROMIUM or not CHROMEDRIVER, reason="no browser: apt-get install chromium chromium-driver"
)
pytestmark = pytest.mark.skipif(
    not LIBRARY.is_file(), reason="no package centrifuge for Node: run by deploy/test"
)

CONFIG = f"""
ping_seconds = 1
pong_seconds = 5

[default]
history_size = 100

[namespaces.room]
history_size = 100
presence = true
join_leave = true
subscribe = "user"
publish = "subscriber"

[tokens]
secret = "{SECRET}"
"""

# The page does everything that a client can do, and reports what came of it.
PAGE = """<!doctype html>
<meta charset="utf-8">
<title>Channels</title>
<link rel="icon" href="data:,">
<script src="/centrifuge.js"></script>
<script>
const query = new URLSearchParams(location.search);
const url = `${location.origin.replace('http', 'ws')}/live.ws`;
const result = { subscribed: [], publications: [], joins: [], leaves: [], disconnected: [] };
let renewals = 0;

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const until = async (condition) => { while (!condition()) await sleep(20); };
const once = (emitter, name) => new Promise((resolve) => emitter.once(name, resolve));
// The network of the page fails as well; a report that comes twice counts once.
async function report(...words) {
    const place = `/report?${encodeURIComponent(JSON.stringify(words))}`;
    for (;;) {
        try {
            return await fetch(place, { signal: AbortSignal.timeout(2000) });
        } catch { await sleep(50); }
    }
}

function connection(token, more) {
    return new Centrifuge(url, {
        token, minReconnectDelay: 20, maxReconnectDelay: 200, timeout: 10000,
        maxServerPingDelay: 1500, ...more,
    });
}

async function refusal(promise) {
    try { await promise; } catch ({ code }) { return code; }
    return 'accepted';
}

async function run() {
    const ann = connection(query.get('ann'), {
        getToken: async () => { renewals += 1; return query.get('renewed'); },
    });
    ann.on('disconnected', ({ code }) => result.disconnected.push(code));
    const room = ann.newSubscription('room:1', { recoverable: true });
    room.on('subscribed', (context) => {
        result.subscribed.push([context.wasRecovering, context.recovered]);
    });
    room.on('publication', ({ data, offset, info }) => {
        result.publications.push([data, offset, info?.user ?? null]);
    });
    room.on('join', ({ info }) => { if (info.user !== 'ann') result.joins.push(info.user); });
    room.on('leave', ({ info }) => { if (info.user !== 'ann') result.leaves.push(info.user); });
    room.subscribe();
    ann.connect();
    await room.ready();
    await room.publish({ text: 'hé' });
    await until(() => result.publications.length === 1);

    const bob = connection(query.get('bob'));
    const other = bob.newSubscription('room:1');
    other.subscribe();
    bob.connect();
    await other.ready();
    await until(() => result.joins.length === 1);
    const { clients } = await room.presence();
    result.presence = Object.values(clients).map(({ user }) => user).sort();
    result.stats = await room.presenceStats();
    other.unsubscribe();
    await until(() => result.leaves.length === 1);
    bob.disconnect();

    const { publications } = await room.history({ limit: 10 });
    result.history = publications.map(({ data }) => data);
    const news = ann.newSubscription('news');
    news.subscribe();
    await news.ready();
    result.denied = await refusal(news.publish('from a page'));
    const unknown = ann.newSubscription('unknown:1');
    const ended = once(unknown, 'unsubscribed');
    unknown.subscribe();
    result.unknown = (await ended).code;

    for (const kind of ['reset', 'silent']) {
        const count = result.subscribed.length;
        await report('cut', kind);
        await until(() => result.subscribed.length > count);
        await report('recovered', kind);
    }
    await until(() => result.publications.length === 7 && renewals > 0);
    result.stays = (await ann.ready(5000), ann.state);

    const left = once(room, 'unsubscribed');
    room.unsubscribe();
    result.unsubscribed = (await left).code;
    const forger = connection(query.get('ann').slice(0, -8) + 'AAAAAAAA');
    const refused = once(forger, 'disconnected');
    forger.connect();
    result.forged = (await refused).code;
    ann.disconnect();
    // Once, or as often as a busy machine has missed a ping.
    result.subscribed = [...new Set(result.subscribed.map(String))];
    await report('end', result);
}

run().catch((error) => report('failed', String(error), result));
</script>
"""
EXPECTED = {
    "subscribed": ["false,false", "true,true"],
    "publications": [
        [{"text": "hé"}, 1, "ann"],
        *([number, offset, None] for offset, number in enumerate(range(6), 2)),
    ],
    "joins": ["bob"],
    "leaves": ["bob"],
    "disconnected": [0],
    "presence": ["ann", "bob"],
    "stats": {"numClients": 2, "numUsers": 2},
    "history": [{"text": "hé"}],
    "denied": 103,
    "unknown": 102,
    "stays": "connected",
    "unsubscribed": 0,
    "forged": 3500,
}


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with running_site() as site:
        shutil.copy(LIBRARY, site.docroot)
        (site.docroot / "page.html").write_text(PAGE)
        yield site


@contextlib.contextmanager
def channels(
    site: Site, directory: Path, name: str = "live.ws", text: str = CONFIG
) -> Iterator[Path]:
    """Run the ready-made producer with a configuration; give the path of its socket file."""
    config, path = directory / "channels.toml", site.docroot / name
    config.write_text(text)
    config.chmod(0o600)
    arguments = (str(path), "--mode", "666", "--config", str(config))
    with running("-m", "apachews.channels", *arguments) as process:
        wait_for(path.exists, what=process.poll)
        yield path
    path.unlink(missing_ok=True)


def token(user: str, seconds: float) -> str:
    return jwt.encode({"sub": user, "exp": time.time() + seconds}, SECRET, algorithm="HS256")


def follow(site: Site, path: Path, network: RunningNetwork, why: Callable[[], object]) -> Any:
    """Do what the page asks for; return its last report."""
    begin = len(reports(site))

    def report(number: int) -> list[Any]:
        def later() -> list[str]:
            return [*dict.fromkeys(reports(site)[begin:])][number:]

        found = wait_for(later, DEADLINE_S, why)[0]
        return list(json.loads(urllib.parse.unquote(found)))

    for number, is_silent in enumerate((False, True)):
        assert report(2 * number) == ["cut", "silent" if is_silent else "reset"]
        with network.cut(is_silent):
            for value in range(3 * number, 3 * number + 3):
                publish(path, str(value), "room:1")
        assert report(2 * number + 1)[0] == "recovered"
    return report(4)


def address(network: RunningNetwork, scheme: str) -> str:
    tokens = {
        "ann": token("ann", TOKEN_S),
        "renewed": token("ann", 600),
        "bob": token("bob", 600),
    }
    origin = f"{scheme}://localhost:{network.port}"
    return f"{origin}/page.html?{urllib.parse.urlencode(tokens)}"


@needs_chromium
def test_chromium(site: Site, short_path: Path) -> None:
    with (
        running_network(site.apache.port) as network,
        channels(site, short_path) as path,
        chromium() as driver,
    ):
        driver.get(address(network, "http"))
        assert follow(site, path, network, lambda: driver.get_log("browser")) == ["end", EXPECTED]  # type: ignore[no-untyped-call]


@needs_firefox
def test_firefox_with_tls(site: Site, short_path: Path, tmp_path: Path) -> None:
    with (
        running_network(site.apache.tls_port) as network,
        channels(site, short_path) as path,
        firefox(address(network, "https"), site.apache.certificate, tmp_path) as output,
    ):
        assert follow(site, path, network, output) == ["end", EXPECTED]


@contextlib.contextmanager
def authors_form(site: Site, directory: Path) -> Iterator[str]:
    """Serve the form of the live blog by PHP; give its address."""
    php = shutil.which("php")
    if not php:
        pytest.skip("no PHP: apt-get install php-cli")
    (directory / "apachews").symlink_to(ROOT / "bindings" / "php")  # as the package has it
    port = private_apache.free_port()
    with subprocess.Popen(
        [php, "-d", f"include_path={directory}", "-S", f"127.0.0.1:{port}", "-t", str(LIVEBLOG)],
        env={**os.environ, "LIVEBLOG_SOCKET": str(site.docroot / "liveblog" / "liveblog.ws")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            wait_for(lambda: answers(port), what=server.poll)
            yield f"http://127.0.0.1:{port}/write.php"
        finally:
            server.terminate()
            _, errors = server.communicate()
    assert "Warning" not in errors and "Fatal" not in errors, errors


@needs_chromium
def test_the_live_blog(site: Site, short_path: Path) -> None:
    page = site.docroot / "liveblog"
    page.mkdir()
    shutil.copytree(ROOT / "examples" / "common", site.docroot / "common")
    for source in (LIBRARY, LIVEBLOG / "index.html", LIVEBLOG / "liveblog.js"):
        shutil.copy(source, page)
    text = (LIVEBLOG / "channels.toml").read_text()
    with (
        channels(site, short_path, "liveblog/liveblog.ws", text),
        authors_form(site, short_path) as form,
        running_network(site.apache.port) as network,
        chromium() as driver,
    ):
        origin = form.removesuffix("/write.php")

        def write(entry: str, sent_from: str = origin) -> str:
            headers = {"Origin": sent_from}
            answer = requests.post(form, {"text": entry}, headers=headers, timeout=DEADLINE_S)
            return f"{answer.status_code} {answer.text}"

        assert write("forged", "https://other.example").startswith("403")
        assert write("").startswith("422")
        assert "0 readers have it" in write("Before the page opens")
        driver.get(f"http://localhost:{network.port}/liveblog/")
        wait_for(lambda: is_open(driver) and "Before" in text_of(driver, "log"), DEADLINE_S)
        assert "1 readers have it" in write("Read at once, <b>grüße</b>")
        wait_for(lambda: "<b>grüße</b>" in text_of(driver, "log"), DEADLINE_S)
        with network.cut(is_silent=False):
            wait_for(lambda: not is_open(driver), DEADLINE_S)
            for number in range(3):
                write(f"Missed {number}")
        wait_for(lambda: "Missed 2" in text_of(driver, "log"), DEADLINE_S)
        lines = driver.execute_script(
            "return [...document.querySelectorAll('#log span')].map((line) => line.textContent)"
        )
        assert lines == [
            *("Missed 2", "Missed 1", "Missed 0"),
            *("Read at once, <b>grüße</b>", "Before the page opens"),
        ]
        screenshot(driver, "liveblog")
