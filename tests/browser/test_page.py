"""The page of ``apachews run``: headless Chromium, and a box for each socket."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from ..conftest import wait_for
from ..support.site import ECHO, ROOT, make_readable
from .chromium import CHROMEDRIVER, CHROMIUM, chromium

pytestmark = pytest.mark.skipif(
    not CHROMIUM or not CHROMEDRIVER,
    reason="no browser: apt-get install chromium chromium-driver",
)


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
