"""Headless Chromium, and the demo that it looks at."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from apachews_tools.httpd import private_apache

from ..support.site import ROOT, make_readable

# Where screenshots go.
ARTEFACTS = ROOT / "artefacts"
CHROMIUM = shutil.which("chromium")
CHROMEDRIVER = shutil.which("chromedriver")


@dataclass
class Demo:
    """The demo, running.

    Attributes:
        port, tls_port: where.
        root: the directory that has all that it made.
    """

    port: int
    tls_port: int
    root: Path

    def url(self, path: str, scheme: str = "ws", login: str = "") -> str:
        """Return the address of a page from which WebSockets are of that scheme."""
        login += "@" if login else ""
        if scheme == "ws":
            return f"http://{login}127.0.0.1:{self.port}/{path}"
        return f"https://{login}localhost:{self.tls_port}/{path}"


@contextmanager
def running_demo(*options: str) -> Iterator[Demo]:
    """Run ``python -m deploy.demo``; at its end its ports must be free."""
    make_readable()
    port, tls_port = private_apache.free_port(), private_apache.free_port()
    process = subprocess.Popen(
        [
            sys.executable,
            *("-m", "deploy.demo"),
            *("--port", str(port), "--tls-port", str(tls_port)),
            *options,
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout
        assert "running" in process.stdout.readline()
        for line in process.stdout:
            if line.startswith("Logs are in "):
                break
        yield Demo(port, tls_port, Path(line.split()[3].rstrip(".")))
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        # Twice: by force, and httpd and the programs with it.
        for _ in range(2):
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
    for taken in (port, tls_port):
        private_apache.require_free_port(taken)


@contextmanager
def chromium(*more: str) -> Iterator[webdriver.Chrome]:
    """Run a browser, with more arguments if wanted."""
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
        *more,
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
    """Return the visible text of an element; "" if it does not exist or is hidden."""
    # In one step: between two, the page could be another one.
    return str(
        driver.execute_script(
            """
            const element = document.getElementById(arguments[0]);
            return element?.checkVisibility() ? element.innerText : '';
            """,
            name,
        )
    )


def say(driver: webdriver.Chrome, name: str, text: str) -> None:
    """Type a text into a field, and Enter."""
    driver.find_element(By.ID, name).send_keys(text, Keys.ENTER)


def is_open(driver: webdriver.Chrome) -> bool:
    """Tell whether the page says that its WebSocket is open."""
    return text_of(driver, "state") == "open"


def complaints(driver: webdriver.Chrome) -> list[str]:
    """Return the errors that the browser reports about a page or a frame."""
    log = driver.get_log("browser")  # type: ignore[no-untyped-call]
    return [line["message"] for line in log if line["level"] == "SEVERE"]


def screenshot(driver: webdriver.Chrome, name: str) -> None:
    """Take a picture of what can be seen."""
    ARTEFACTS.mkdir(exist_ok=True)
    driver.save_screenshot(str(ARTEFACTS / f"{name}.png"))


@pytest.fixture(scope="session")
def demo() -> Iterator[Demo]:
    """The demo, running."""
    if not CHROMIUM or not CHROMEDRIVER:
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    with running_demo() as demo:
        yield demo
