"""Headless Chromium and Firefox, and the demo that they look at."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from apachews_tools.httpd import private_apache

from ..support.site import ROOT, Site, make_readable

# Where screenshots go.
ARTEFACTS = ROOT / "artefacts"
CHROMIUM = shutil.which("chromium")
CHROMEDRIVER = shutil.which("chromedriver")
FIREFOX = shutil.which("firefox-esr") or shutil.which("firefox")
CERTUTIL = shutil.which("certutil")
needs_firefox = pytest.mark.skipif(
    not FIREFOX or not CERTUTIL,
    reason="no other browser: apt-get install firefox-esr libnss3-tools",
)


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


@contextmanager
def firefox(url: str, certificate: Path, profile: Path) -> Iterator[Callable[[], str]]:
    """Show a page in Firefox, without a driver: the page reports what it finds.

    Args:
        url: of the page.
        certificate: an authority that it trusts.
        profile: an empty directory.

    Yields:
        returns what the browser has written.
    """
    assert CERTUTIL and FIREFOX
    certificates = [CERTUTIL, "-d", f"sql:{profile}"]
    subprocess.run([*certificates, "-N", "--empty-password"], check=True)
    subprocess.run(
        [*certificates, "-A", "-n", "site", "-t", "C,,", "-i", str(certificate)], check=True
    )
    settings = {
        "browser.shell.checkDefaultBrowser": False,
        "datareporting.policy.dataSubmissionEnabled": False,
        "network.captive-portal-service.enabled": False,
        "network.connectivity-service.enabled": False,
    }
    lines = [f"user_pref({json.dumps(name)}, {json.dumps(on)});" for name, on in settings.items()]
    (profile / "user.js").write_text("\n".join(lines))
    log = profile / "output.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [FIREFOX, "--headless", "--no-remote", "--profile", str(profile), url],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, "HOME": str(profile), "MOZ_DISABLE_CONTENT_SANDBOX": "1"},
        )
    try:
        yield log.read_text
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def reports(site: Site) -> list[str]:
    """Return what a page has reported with requests for /report, from the access log."""
    lines = [line for line in site.apache.access_log.splitlines() if "/report?" in line]
    return [line.partition("/report?")[2].partition(" ")[0] for line in lines]


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
