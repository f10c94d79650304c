"""The status page and the page of ``apachews run``, in headless Chromium.

Screenshots go to ``artefacts/``.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from websockets.sync.client import connect

from ..conftest import wait_for
from ..support.crowd import crowd
from ..support.site import ECHO, ROOT, Site, for_two_threads, make_readable, running_site
from .conftest import ARTEFACTS, CHROMEDRIVER, CHROMIUM, chromium

pytestmark = pytest.mark.skipif(
    not CHROMIUM or not CHROMEDRIVER,
    reason="no browser: apt-get install chromium chromium-driver",
)

# Short silences, so that there are round trips.
EXTRA = """
<Files quiet.ws>
    SetEnv APACHEWS_PING_INTERVAL 500ms
</Files>
"""


@pytest.fixture
def site() -> Iterator[Site]:
    with running_site("event", extra=EXTRA) as site:
        yield site


def cells(driver: webdriver.Chrome, table: str) -> list[list[str]]:
    """Return the texts of a table's rows."""
    script = (
        "return [...document.getElementById(arguments[0]).tBodies[0].rows]"
        ".map((row) => [...row.cells].map((cell) => cell.textContent))"
    )
    found: list[list[str]] = driver.execute_script(script, table)
    return found


def figures(driver: webdriver.Chrome) -> list[str]:
    return [figure.text.split("\n")[0] for figure in driver.find_elements(By.CLASS_NAME, "figure")]


def set_dark(driver: webdriver.Chrome, is_dark: bool) -> None:
    value = "dark" if is_dark else "light"
    driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"features": [{"name": "prefers-color-scheme", "value": value}]},
    )


def picture(driver: webdriver.Chrome, name: str, width: int, height: int) -> None:
    ARTEFACTS.mkdir(exist_ok=True)
    driver.set_window_size(width, height)
    driver.save_screenshot(str(ARTEFACTS / f"status-{name}.png"))


def test_the_page_shows_what_goes_on(site: Site) -> None:
    with (
        contextlib.ExitStack() as stack,
        site.producer("quiet.ws", lambda event: None),
        chromium() as driver,
    ):
        driver.get(site.http("/websocket-status"))
        wait_for(lambda: cells(driver, "endpoints") == [["No WebSocket yet."]])
        assert cells(driver, "connections") == [["No connection."]]

        old = stack.enter_context(crowd(site, 6))
        old.wait_for_echoes(10)
        site.renew()
        new = stack.enter_context(crowd(site, 6))
        for _ in range(4):
            # It answers pings by itself.
            address = site.wss("/quiet.ws?room=<b>secret</b>")
            stack.enter_context(connect(address, ssl=for_two_threads(site.tls_context())))
        wait_for(lambda: len(cells(driver, "connections")) == 16, 20)

        # All there is, of both processes.
        assert {row[1] for row in cells(driver, "processes")} == {"child", "custodian"}
        assert {row[0].rpartition("/")[2]: row[1] for row in cells(driver, "endpoints")} == {
            "echo.ws": "12",
            "quiet.ws": "4",
        }
        wait_for(lambda: figures(driver)[0] == "16", 20)
        # Values move.
        wait_for(lambda: "\u2013" not in figures(driver), 30, lambda: figures(driver))
        before = figures(driver)
        wait_for(lambda: figures(driver)[2:4] != before[2:4], 20)
        plots = driver.find_elements(By.CSS_SELECTOR, "svg path.a")
        wait_for(lambda: all((plot.get_attribute("d") or "").count("L") >= 5 for plot in plots), 40)
        assert "Messages a second" in (
            driver.find_elements(By.TAG_NAME, "svg")[1].get_attribute("aria-label") or ""
        )
        set_dark(driver, False)
        picture(driver, "light", 1300, 1150)
        set_dark(driver, True)
        picture(driver, "dark", 1300, 1150)
        picture(driver, "narrow", 500, 1150)
        set_dark(driver, False)
        driver.set_window_size(1300, 1150)

        # Without a mouse: the filter, and sorting by a column.
        driver.find_element(By.ID, "filter").send_keys("quiet")
        wait_for(lambda: len(cells(driver, "connections")) == 4)
        driver.find_element(By.ID, "filter").send_keys(Keys.CONTROL, "a", Keys.DELETE)
        wait_for(lambda: len(cells(driver, "connections")) == 16)
        head = driver.find_elements(By.CSS_SELECTOR, "#connections th button")[6]
        head.send_keys(Keys.ENTER)
        assert driver.switch_to.active_element == head

        def counts() -> list[int]:
            return [int(row[5].replace("\u202f", "")) for row in cells(driver, "connections")]

        assert counts() == sorted(counts(), reverse=True)
        pause = driver.find_element(By.ID, "pause")
        pause.send_keys(Keys.SPACE)
        assert pause.get_attribute("aria-pressed") == "true"

        # No query, and nothing that was markup.
        text = driver.find_element(By.TAG_NAME, "body").text
        assert "secret" not in text and "room" not in text
        assert old.report.faults == new.report.faults == []
        log = driver.get_log("browser")  # type: ignore[no-untyped-call]
        assert [line for line in log if line["level"] in ("SEVERE", "WARNING")] == []


# The page of ``apachews run``: headless Chromium, and a box for each socket.


def test_a_box_sends_and_shows_and_connects_again(short_path: Path) -> None:
    make_readable()
    mapping = f"/deep/other.ws={ECHO}"
    process = subprocess.Popen(
        [sys.executable, *("-m", "apachews", "run", "--port", "0"), str(ECHO), "--path", mapping],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": "/tmp"},
    )
    try:
        assert process.stdout
        found = re.fullmatch(r"  (http://.*/)\n", process.stdout.readline())
        assert found
        with chromium() as driver:
            driver.get(found[1])
            boxes = wait_for(lambda: driver.find_elements(By.TAG_NAME, "section"))
            assert len(boxes) == 2
            for box, path in zip(boxes, ("/echo.ws", "/deep/other.ws"), strict=True):
                assert box.find_element(By.CLASS_NAME, "url").text.endswith(path)
                state = box.find_element(By.CLASS_NAME, "state")
                log = box.find_element(By.TAG_NAME, "ol")
                button = box.find_element(By.CLASS_NAME, "connection")
                wait_for(lambda state=state: state.text == "open")  # type: ignore[misc]
                box.find_element(By.TAG_NAME, "input").send_keys("<b>hé</b>", Keys.ENTER)
                wait_for(lambda log=log: "< <b>hé</b>\n> <b>hé</b>" in log.text)  # type: ignore[misc]
                button.click()
                wait_for(lambda state=state: state.text == "closed, 1000")  # type: ignore[misc]
                button.click()
                wait_for(lambda state=state: state.text == "open")  # type: ignore[misc]
            log_lines = driver.get_log("browser")  # type: ignore[no-untyped-call]
            assert not [line for line in log_lines if line["level"] == "SEVERE"]
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(30)
        if process.stdout:
            process.stdout.close()
