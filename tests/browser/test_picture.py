"""The picture of README.md: two browsers chat in the demo through a reload and a deploy.

The test takes the picture again, as ``artefacts/demo.png``.  The browsers must stay connected,
so that the picture is true.  After a change of the demo's pages these commands replace it::

    deploy/test -e browser -- tests/browser/test_picture.py
    cp artefacts/demo.png docs/demo.png
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from selenium import webdriver
from selenium.webdriver.common.by import By

from ..conftest import wait_for
from ..support.site import ROOT
from .conftest import ARTEFACTS, Demo, chromium, complaints, is_open, say, screenshot, text_of

PICTURE: Final = ROOT / "docs" / "demo.png"
MAX_BYTES: Final = 60_000
SIZE: Final = (1000, 510)
RELOADED: Final = "I have reloaded Apache …"
DEPLOYED: Final = "… and deployed this chat again."
ANSWER: Final = "My page did not notice: still connected."
# Two windows of browsers: one with the system's light colours, one with its dark ones.
PAGE: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<link rel="icon" href="data:,">
<title>Two browsers</title>
<style>
  body { margin: 0; padding: 20px; display: flex; gap: 20px; background: #cfd6dd; height: 470px; }
  figure { margin: 0; flex: 1; display: flex; flex-direction: column; border-radius: 10px;
    overflow: hidden; border: 1px solid #0003; }
  figcaption { font: 13px/1 system-ui, sans-serif; padding: 11px 14px; background: #e9ecef;
    color: #333; }
  .dark figcaption { background: #2b3036; color: #ddd; }
  iframe { border: 0; flex: 1; }
  .light iframe { color-scheme: light; }
  .dark iframe { color-scheme: dark; }
</style>
<figure class="light"><figcaption>https://localhost:8443/chat/#operations</figcaption>
  <iframe name="light" src="chat/#operations"></iframe></figure>
<figure class="dark"><figcaption>https://localhost:8443/chat/#operations</figcaption>
  <iframe name="dark" src="chat/#operations"></iframe></figure>
"""


@contextmanager
def window(driver: webdriver.Chrome, name: str) -> Iterator[None]:
    """Switch to one of the windows of the picture."""
    driver.switch_to.frame(name)
    try:
        yield
    finally:
        driver.switch_to.default_content()


def enter_as(driver: webdriver.Chrome, name: str) -> None:
    """Enter the room with this name."""
    wait_for(lambda: is_open(driver))
    driver.find_element(By.ID, "name").clear()
    say(driver, "name", name)
    wait_for(lambda: name in text_of(driver, "people") and is_open(driver))


def record_closes(driver: webdriver.Chrome) -> None:
    """Record every change of the state that the page shows: it has to be "open" all the time."""
    driver.execute_script(
        """
        window.states = [];
        const state = document.getElementById('state');
        new MutationObserver(() => window.states.push(state.textContent)).observe(
            state, { childList: true, characterData: true, subtree: true });
        """
    )


def wait_for_text(driver: webdriver.Chrome, text: str) -> None:
    """Wait until the log of a window shows a text."""
    wait_for(lambda: text in text_of(driver, "log"))


def reload_apache(demo: Demo) -> None:
    """Reload the demo's Apache, as ``systemctl reload apache2`` does."""
    os.kill(int((demo.root / "apache.pid").read_text()), signal.SIGUSR1)
    log = demo.root / "error.log"
    wait_for(lambda: "AH00493" in log.read_text(), what=lambda: "the log has no graceful restart")


def deploy_chat(demo: Demo) -> None:
    """Deploy the chat, as ``systemctl reload apachews-producer@chat`` does."""
    runner = runner_of(demo)
    old = children_of(runner)
    os.kill(runner, signal.SIGHUP)
    # The old program exits when all of its clients have moved.
    wait_for(lambda: old.isdisjoint(children_of(runner)), what=lambda: "the old program still runs")


def children_of(process: int) -> set[str]:
    """Return the process ids of its children."""
    return set(Path(f"/proc/{process}/task/{process}/children").read_text().split())


def runner_of(demo: Demo) -> int:
    """Return the process id of the chat's runner."""
    socket = str(demo.root / "htdocs" / "chat" / "chat.ws")
    for directory in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # the process has ended
            command = (directory / "cmdline").read_text().split("\0")
            if "apachews.runner" in command and socket in command:
                return int(directory.name)
    raise AssertionError(f"no runner has {socket}")


def size_of(picture: Path) -> tuple[int, int]:
    """Return the width and the height of a PNG, from its header."""
    header = picture.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n", f"{picture} is not a PNG"
    return int.from_bytes(header[16:20]), int.from_bytes(header[20:24])


def test_the_picture_shows_the_demo(demo: Demo) -> None:
    (demo.root / "htdocs" / "picture.html").write_text(PAGE)
    with chromium("--hide-scrollbars") as driver:
        metrics = {"width": SIZE[0], "height": SIZE[1], "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        driver.get(demo.url("picture.html", "wss"))
        for name, person in (("light", "Ann"), ("dark", "Bob")):
            with window(driver, name):
                enter_as(driver, person)
                record_closes(driver)
        for action, text in ((reload_apache, RELOADED), (deploy_chat, DEPLOYED)):
            action(demo)
            with window(driver, "light"):
                say(driver, "text", text)
            with window(driver, "dark"):
                wait_for_text(driver, text)
        with window(driver, "dark"):
            say(driver, "text", ANSWER)
        with window(driver, "light"):
            wait_for_text(driver, ANSWER)
        for name in ("light", "dark"):
            with window(driver, name):
                assert text_of(driver, "count") == "2"
                assert driver.execute_script("return window.states") == []
                driver.execute_script("scrollTo(0, document.querySelector('aside').offsetTop - 20)")
        screenshot(driver, "demo")
        assert complaints(driver) == []
    picture = ARTEFACTS / "demo.png"
    assert size_of(picture) == SIZE
    assert picture.stat().st_size <= MAX_BYTES


def test_the_picture_of_the_readme_is_small() -> None:
    assert "(docs/demo.png)" in (ROOT / "README.md").read_text()
    assert size_of(PICTURE) == SIZE
    assert PICTURE.stat().st_size <= MAX_BYTES
