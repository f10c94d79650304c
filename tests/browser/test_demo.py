"""The demo as a person meets it: headless Chromium on its pages, over ws and wss.

Screenshots go to ``artefacts/``.
"""

from __future__ import annotations

import dataclasses
import socket
import subprocess
import sys

import pytest
from selenium.webdriver.common.by import By

from ..conftest import wait_for
from ..support.site import ROOT
from .conftest import (
    Demo,
    chromium,
    complaints,
    is_open,
    running_demo,
    say,
    screenshot,
    text_of,
)
from .test_examples import enter


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_from_the_first_page_to_an_echo(demo: Demo, scheme: str) -> None:
    with chromium() as driver:
        driver.get(demo.url("", scheme))
        screenshot(driver, f"demo-{scheme}")
        links = [a.get_attribute("href") for a in driver.find_elements(By.CSS_SELECTOR, "a.card")]
        names = ("echo", "chat", "dashboard", "logtail", "notify", "login")
        assert links == [demo.url(f"{name}/", scheme) for name in names]

        driver.find_element(By.CSS_SELECTOR, "a.card").click()
        wait_for(lambda: is_open(driver))
        for text in ("hello, Apache", "grüße 🙂", "<b>not bold</b>"):
            say(driver, "text", text)
            wait_for(lambda text=text: text in text_of(driver, "log"))  # type: ignore[misc]
        assert " ms" in text_of(driver, "log")
        screenshot(driver, f"echo-{scheme}")
        assert complaints(driver) == []


def test_a_taken_port_is_named(demo: Demo) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "deploy.demo", "--port", str(demo.port)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert f"port {demo.port} cannot be used" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_chat_on_two_machines() -> None:
    with running_demo("--machines", "2") as one, chromium() as driver:
        two = dataclasses.replace(one, port=one.port + 1)
        wait_for(lambda: is_listening(two.port), 30.0)
        enter(driver, one, "tea", "Ann")
        ann = driver.current_window_handle
        driver.switch_to.new_window("tab")
        enter(driver, two, "tea", "Bob")
        wait_for(lambda: text_of(driver, "people") == "Ann\nBob")
        say(driver, "text", "hello from the other machine")
        driver.switch_to.window(ann)
        wait_for(lambda: "hello from the other machine" in text_of(driver, "log"))
        assert text_of(driver, "people") == "Ann\nBob"
        screenshot(driver, "two-machines")
        assert complaints(driver) == []


def is_listening(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0
