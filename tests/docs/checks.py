"""Checks after the steps of a page, in the sandbox: the results that a reader would see."""

from __future__ import annotations

import json
import shutil
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from selenium import webdriver
from selenium.webdriver.common.by import By
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from ..conftest import wait_for
from ..support.site import for_two_threads
from .pages import Block

QUICK_START: Final = "docs/tutorial/quickstart.md"
TUTORIAL: Final = "docs/tutorial/tutorial.md"
TIMEOUT_S: Final = 10.0
CONSOLE: Final = "console of "


def answered(block: Block, output: str) -> None:
    """Check the output of a block's commands."""
    for (page, text), expected in ANSWERS.items():
        if block.page == page and text in block.text:
            assert expected in output, f"{block.name}: {expected!r} is not in {output!r}"


ANSWERS: Final = {
    (QUICK_START, "apachews connect"): "hello, shell",
    (QUICK_START, "curl --include"): "HTTP/1.1 426 ",
    (QUICK_START, "tail"): "426 not-a-websocket for /echo.ws: not a WebSocket request",
    ("docs/howto/publish.md", "-m 'The server"): "0 reached",
    (TUTORIAL, "configtest"): "Syntax OK",
    (TUTORIAL, "--head"): "HTTP/1.1 ",
    (TUTORIAL, "curl --include"): "HTTP/1.1 426 ",
    (TUTORIAL, "systemctl status"): "active (running)",
    (TUTORIAL, "apachews publish"): "2 reached",
    (TUTORIAL, "tail"): "closed by client (CLIENT_CLOSED) code=1000",
}


def after(block: Block) -> None:
    """Check the result of a step."""
    if block.comment.startswith(CONSOLE):
        url, expected = block.comment.removeprefix(CONSOLE).split(": ", 1)
        say_in_console(block, url, expected)
    for (page, text), check in CHECKS.items():
        if block.page == page and text in (block.file or block.text):
            check()


class Person:
    """A client of the tutorial's chat."""

    def __init__(self, name: str, room: str) -> None:
        self.socket: ClientConnection = connect(
            f"wss://chat.example.org/chat.ws?room={room}&name={name}",
            ssl=for_two_threads(ssl.create_default_context(cafile="/etc/ssl/certs/chat.pem")),
            origin=Origin("https://chat.example.org"),
        )

    def hear(self) -> Any:
        return json.loads(self.socket.recv(TIMEOUT_S))


people: dict[str, Person] = {}


def clients_chat() -> None:
    ann = people["Ann"] = Person("Ann", "lobby")
    assert ann.hear() == {"event": "came", "name": "Ann", "count": 1}
    ben = people["Ben"] = Person("Ben", "lobby")
    for person in (ann, ben):
        assert person.hear() == {"event": "came", "name": "Ben", "count": 2}
    eve = Person("Eve", "garden")
    assert eve.hear() == {"event": "came", "name": "Eve", "count": 1}
    eve.socket.close()
    say(ann, "x" * 2001, hears="x" * 2000)


def say(who: Person, text: str, hears: str) -> None:
    who.socket.send(text)
    for person in people.values():
        assert person.hear() == {"event": "said", "name": "Ann", "text": hears}


def clients_stayed_connected() -> None:
    say(people["Ann"], "x" * 2001, hears="x" * 500)


def published_message_arrived() -> None:
    for person in people.values():
        assert person.hear()["name"] == "the house"
        person.socket.close()


def the_page_works() -> None:
    """Chat in two windows of a browser, and then as clients whose messages can be counted."""
    the_page_works_in_a_browser()
    clients_chat()


@contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage"):
        options.add_argument(f"--{argument}")
    options.accept_insecure_certs = True
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    with webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver"))) as driver:
        yield driver


def has_browser(name: str) -> bool:
    if shutil.which("chromedriver") and shutil.which("chromium"):
        return True
    print(f"{name}: not run: chromium or chromedriver is missing", flush=True)
    return False


def say_in_console(block: Block, url: str, expected: str) -> None:
    """Run the block on a page, and check the console."""
    if not has_browser(block.name):
        return
    with browser() as driver:
        driver.get(url)
        driver.execute_script(block.text)
        said: list[str] = []

        def is_there() -> bool:
            log = driver.get_log("browser")  # type: ignore[no-untyped-call]
            said.extend(entry["message"] for entry in log)
            return any(expected in message for message in said)

        wait_for(is_there, what=lambda: f"the console has {said}")


def the_page_works_in_a_browser() -> None:
    if not has_browser(TUTORIAL):
        return
    with browser() as driver:
        windows = []
        for name in ("Zoe", "Yan"):
            driver.switch_to.new_window("tab")
            windows.append(driver.current_window_handle)
            driver.get("https://chat.example.org/")
            driver.find_element(By.ID, "name").send_keys(name)
            driver.find_element(By.CSS_SELECTOR, "#enter button").click()
            wait_for(lambda: driver.find_element(By.ID, "state").text == "open")
        driver.find_element(By.ID, "text").send_keys("<b>hello</b>\n")
        for window in windows:
            driver.switch_to.window(window)
            wait_for(lambda: "Yan: <b>hello</b>" in driver.find_element(By.ID, "log").text)


CHECKS: Final[dict[tuple[str, str], Callable[[], None]]] = {
    (TUTORIAL, "/var/www/chat/chat.js"): the_page_works,
    (TUTORIAL, "^MAX_TEXT"): clients_stayed_connected,
    (TUTORIAL, "reload apache2"): clients_stayed_connected,
    (TUTORIAL, "apachews publish"): published_message_arrived,
}
