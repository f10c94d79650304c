"""The pages of the examples in headless Chromium; see ``test_demo.py``."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
import requests
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

from apachews import publish

from ..conftest import wait_for
from .conftest import Demo, chromium, complaints, is_open, say, screenshot, text_of


@pytest.fixture
def driver() -> Iterator[webdriver.Chrome]:
    """A browser, which must have nothing against what it was shown."""
    with chromium() as driver:
        yield driver
        assert complaints(driver) == []


def set_scheme(driver: webdriver.Chrome, scheme: str) -> None:
    """Have the browser prefer ``light`` or ``dark``."""
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def enter(driver: webdriver.Chrome, demo: Demo, room: str, name: str) -> None:
    """Go to the chat's page and into a room."""
    driver.get(demo.url(f"chat/#{room}"))
    driver.find_element(By.ID, "name").clear()
    say(driver, "name", name)
    wait_for(lambda: is_open(driver) and name in text_of(driver, "people"))


def test_two_tabs_chat(demo: Demo, driver: webdriver.Chrome) -> None:
    enter(driver, demo, "tea", "Ann")
    ann = driver.current_window_handle
    driver.switch_to.new_window("tab")
    enter(driver, demo, "tea", "Bob")
    # The page was there as a guest before the visitor gave a name.
    wait_for(lambda: text_of(driver, "people") == "Ann\nBob")
    say(driver, "text", "anybody <b>here</b>?")
    driver.switch_to.window(ann)
    wait_for(lambda: "anybody <b>here</b>?" in text_of(driver, "log"))
    for text in ("Yes, over here.", "The kettle is on, it takes as long as kettles do."):
        say(driver, "text", text)
    driver.switch_to.new_window("tab")
    enter(driver, demo, "operations", "Eve")
    wait_for(lambda: text_of(driver, "people") == "Eve")
    assert "No messages in #operations yet." in text_of(driver, "log")
    # Whoever comes later reads what was said.
    enter(driver, demo, "tea", "Zoë")
    wait_for(lambda: "kettles" in text_of(driver, "log"))
    say(driver, "text", "Tea for me, please.")
    driver.switch_to.window(ann)
    wait_for(
        lambda: text_of(driver, "people") == "Ann\nBob\nZoë" and text_of(driver, "count") == "3"
    )
    wait_for(lambda: "Tea for me" in text_of(driver, "log"))
    screenshot(driver, "chat")
    set_scheme(driver, "dark")
    screenshot(driver, "chat-dark")
    driver.switch_to.window(driver.window_handles[-1])
    driver.close()
    driver.switch_to.window(ann)
    wait_for(lambda: text_of(driver, "people") == "Ann\nBob")


def test_a_name_that_is_none_is_told_so(demo: Demo, driver: webdriver.Chrome) -> None:
    driver.get(demo.url("chat/#Not a room"))
    wait_for(lambda: "a room's name is a-z" in text_of(driver, "problem"))
    assert text_of(driver, "state").startswith("closed, 1008")


def test_the_log_is_filtered_as_it_grows(demo: Demo, driver: webdriver.Chrome) -> None:
    driver.get(demo.url("logtail/", login="ann:demo"))
    wait_for(lambda: is_open(driver) and "/logtail/" in text_of(driver, "lines"))
    requests.get(demo.url("dashboard/"), timeout=10)
    wait_for(lambda: "/dashboard/" in text_of(driver, "lines"))
    screenshot(driver, "logtail")

    driver.find_element(By.ID, "filter").send_keys("NOT-THERE")
    wait_for(lambda: text_of(driver, "lines") == "" and text_of(driver, "count") == "0 lines")
    for _ in range(3):
        requests.get(demo.url("dashboard/"), timeout=10)
        requests.get(demo.url("not-there"), timeout=10)
    wait_for(lambda: text_of(driver, "count") == "3 lines")
    assert "dashboard" not in text_of(driver, "lines")
    marks = driver.find_elements(By.CSS_SELECTOR, "#lines mark")
    assert [mark.text for mark in marks] == ["not-there"] * 3
    screenshot(driver, "logtail-filtered")


def values(driver: webdriver.Chrome, index: int) -> list[str]:
    """Return what the legend of a chart says."""
    return [
        element.text
        for element in driver.find_elements(
            By.CSS_SELECTOR, f"section:nth-child({index}) .legend b"
        )
    ]


def painted(driver: webdriver.Chrome, index: int) -> int:
    """Return how many pixels of a chart have the colour of one of its series."""
    return int(
        driver.execute_script(
            """
            const canvas = document.querySelectorAll('canvas')[arguments[0] - 1];
            const { width, height } = canvas;
            const { data } = canvas.getContext('2d').getImageData(0, 0, width, height);
            let painted = 0;
            for (let at = 0; at < data.length; at += 4) {
                const [red, green, blue] = data.slice(at, at + 3);
                if (data[at + 3] && Math.max(red, green, blue) - Math.min(red, green, blue) > 40)
                    painted += 1;
            }
            return painted;
            """,
            index,
        )
    )


def test_the_dashboard_plots(demo: Demo, driver: webdriver.Chrome) -> None:
    driver.set_window_size(1280, 960)
    driver.get(demo.url("dashboard/"))
    wait_for(lambda: is_open(driver))
    assert [element.text for element in driver.find_elements(By.CSS_SELECTOR, "h2 span")] == [
        "Processor",
        "Memory",
        "Network",
        "Disks",
    ]
    wait_for(lambda: re.fullmatch(r"[\d.]+ [GM]iB", values(driver, 2)[0]))
    first = wait_for(lambda: text_of(driver, "summary"))
    wait_for(lambda: text_of(driver, "summary") != first)
    assert all(re.fullmatch(r"[\d.]+ %", text) for text in values(driver, 1))
    assert all(re.fullmatch(r"[\d.]+ [kMG]?B/s", text) for text in values(driver, 3))
    assert painted(driver, 1) > 0
    assert painted(driver, 2) > 0
    screenshot(driver, "dashboard")
    set_scheme(driver, "dark")
    canvas = driver.find_elements(By.TAG_NAME, "canvas")[1]
    ActionChains(driver).move_to_element_with_offset(
        canvas, canvas.size["width"] // 2 - 40, 0
    ).perform()
    # All charts say what was at that time.
    times = driver.find_elements(By.CSS_SELECTOR, "h2 time")
    wait_for(lambda: re.search(r"\d:\d\d:\d\d", times[0].text))
    assert len({element.text for element in times}) == 1
    screenshot(driver, "dashboard-dark")


def test_a_notification_comes_to_whom_it_is_for(demo: Demo, driver: webdriver.Chrome) -> None:
    path = demo.root / "htdocs" / "notify" / "notify.ws"
    driver.get(demo.url("notify/", login="ann:demo"))
    wait_for(lambda: is_open(driver))
    wait_for(lambda: publish(path, json.dumps({"title": "All", "text": "of you"})).reached == 1)
    assert publish(path, json.dumps({"title": "Bob", "text": "only"}), group="bob").reached == 0
    assert publish(path, json.dumps({"title": "Ann", "text": "<i>only</i>"}), group="ann")[0] == 1
    wait_for(lambda: "Ann <i>only</i>" in text_of(driver, "log"))
    assert "All of you" in text_of(driver, "log")
    assert "Bob" not in text_of(driver, "log")
    screenshot(driver, "notify")


@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_logging_in_and_out(demo: Demo, scheme: str) -> None:
    pytest.importorskip("flask", reason="no Flask: pip install -r tests/requirements.txt")
    with chromium() as driver:
        driver.get(demo.url("login/", scheme))
        wait_for(lambda: "Log in" in text_of(driver, "outside"))
        name, password = (driver.find_element(By.NAME, name) for name in ("name", "password"))
        name.send_keys("ann")
        password.send_keys("wrong\n")
        wait_for(lambda: "do not match" in text_of(driver, "problem"))
        screenshot(driver, f"login-{scheme}")
        assert any("403" in line for line in complaints(driver))
        password.clear()
        password.send_keys("demo\n")
        wait_for(lambda: is_open(driver) and text_of(driver, "here") == "ann")
        say(driver, "text", "am I in?")
        wait_for(lambda: "ann am I in?" in text_of(driver, "log"))
        screenshot(driver, f"login-in-{scheme}")
        # The cookie is what counts, not the page.
        driver.refresh()
        wait_for(lambda: text_of(driver, "you") == "ann" and is_open(driver))
        driver.find_element(By.ID, "logout").click()
        wait_for(lambda: "Log in" in text_of(driver, "outside"))
        assert complaints(driver) == []


def test_apaches_own_login(demo: Demo, driver: webdriver.Chrome) -> None:
    pytest.importorskip("flask", reason="no Flask: pip install -r tests/requirements.txt")
    # What the browser was told once for the site, it sends with the WebSocket.
    driver.get(demo.url("notify/", login="bob:demo"))
    driver.get(demo.url("login/?by=basic", login="bob:demo"))
    wait_for(lambda: is_open(driver) and text_of(driver, "you") == "bob")
