"""The demo as a person sees it: headless Chromium on its page, over ws and wss.

Screenshots go to ``artefacts/``.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from apachews.apache import private_apache

from ..conftest import wait_for
from ..site import ROOT, make_readable

ARTEFACTS = ROOT / "artefacts"
CHROMIUM = shutil.which("chromium")
CHROMEDRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    not CHROMIUM or not CHROMEDRIVER,
    reason="no browser: apt-get install chromium chromium-driver",
)


@pytest.fixture(scope="module")
def ports() -> Iterator[tuple[int, int]]:
    """The demo, running; its HTTP and HTTPS ports."""
    make_readable()
    port, tls_port = private_apache.free_port(), private_apache.free_port()
    process = subprocess.Popen(
        [
            sys.executable,
            *("-m", "deploy.demo"),
            *("--port", str(port), "--tls-port", str(tls_port)),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert "running" in process.stdout.readline()
    yield port, tls_port
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 0
    process.stdout.close()
    for taken in (port, tls_port):
        private_apache.require_free_port(taken)


@contextmanager
def chromium() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    profile = tempfile.mkdtemp(prefix="aws")
    for argument in (
        "--headless=new",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--ignore-certificate-errors",
        "--window-size=1100,760",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium has none for root
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(str(CHROMEDRIVER)))
    try:
        yield driver
    finally:
        driver.quit()
        shutil.rmtree(profile, ignore_errors=True)


def text_of(driver: webdriver.Chrome, name: str) -> str:
    return driver.find_element(By.ID, name).text


def say(driver: webdriver.Chrome, name: str, text: str) -> None:
    driver.find_element(By.ID, name).send_keys(text, Keys.ENTER)


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_the_page_echoes_and_chats(ports: tuple[int, int], scheme: str) -> None:
    address = f"127.0.0.1:{ports[0]}" if scheme == "ws" else f"localhost:{ports[1]}"
    url = f"{'http' if scheme == 'ws' else 'https'}://{address}/"
    with chromium() as driver:
        driver.get(url)
        for state in ("echo-state", "chat-state"):
            wait_for(lambda state=state: text_of(driver, state) == "open")  # type: ignore[misc]
        assert text_of(driver, "scheme") == f"{scheme}://{address}"
        assert text_of(driver, "count") == "1"

        for text in ("hello, Apache", "grüße 🙂", "<b>not bold</b>"):
            say(driver, "echo-input", text)
            wait_for(lambda text=text: text in text_of(driver, "echo-log"))  # type: ignore[misc]
        assert "ms" in text_of(driver, "echo-log")

        # A second tab joins the room.
        first = driver.current_window_handle
        driver.switch_to.new_window("tab")
        driver.get(url)
        wait_for(lambda: text_of(driver, "count") == "2")
        driver.find_element(By.ID, "chat-name").clear()
        say(driver, "chat-name", "Ann")
        say(driver, "chat-input", "anybody here?")
        driver.switch_to.window(first)
        wait_for(lambda: "Ann anybody here?" in text_of(driver, "chat-log"))
        assert text_of(driver, "count") == "2"

        ARTEFACTS.mkdir(exist_ok=True)
        driver.save_screenshot(str(ARTEFACTS / f"demo-{scheme}.png"))

        # And leaves.
        driver.switch_to.window(next(h for h in driver.window_handles if h != first))
        driver.close()
        driver.switch_to.window(first)
        wait_for(lambda: text_of(driver, "count") == "1")
        # Whatever a browser has against a page or a frame is here.
        log = driver.get_log("browser")  # type: ignore[no-untyped-call]
        assert not [line for line in log if line["level"] == "SEVERE"]


def test_a_taken_port_is_named(ports: tuple[int, int]) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "deploy.demo", "--port", str(ports[0])],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert f"port {ports[0]} cannot be used" in result.stderr
    assert "Traceback" not in result.stderr
