"""The same programs in each library, behind one Apache, in headless Chromium."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver

from apachews_tools.httpd import private_apache

from ..conftest import wait_for
from ..support.site import ECHO, IS_ROOT, ROOT, Site, running_site
from .conftest import CHROMEDRIVER, CHROMIUM, chromium, complaints, is_open, say, text_of

pytestmark = pytest.mark.skipif(
    not CHROMIUM or not CHROMEDRIVER,
    reason="no browser: apt-get install chromium chromium-driver",
)

PHP = ROOT / "bindings" / "php"
C = ROOT / "bindings" / "c"
CHAT = ROOT / "examples" / "chat"
# Library -> what it takes; the seed's program and the chat in it.
NEEDS = {"python": None, "php": "php", "c": "cc", "original": "cc"}
# What the seed echoes: text that looks like its codes, text, and bytes.
SAID = ["hello", "1002", "8001", "0", "grüße 🙂", "<b>not bold</b>", [0, 255, 10]]

# Says everything to each of some sockets, the next when the last has come back.
ECHOES = """
const [urls, said, done] = arguments;
const one = url => new Promise((resolve, reject) => {
    const socket = new WebSocket(url);
    socket.binaryType = 'arraybuffer';
    const heard = [];
    const say = () => {
        const what = said[heard.length];
        socket.send(Array.isArray(what) ? new Uint8Array(what) : what);
    };
    socket.onopen = say;
    socket.onmessage = ({ data }) => {
        heard.push(typeof data === 'string' ? data : [...new Uint8Array(data)]);
        if (heard.length < said.length) say();
        else socket.close(1000);
    };
    socket.onclose = ({ code }) => resolve([heard, code]);
});
Promise.all(urls.map(one)).then(done);
"""


def command(library: str, program: str, directory: Path) -> list[str]:
    """Return the command of a program in a library, but for the path of its socket."""
    if library == "python":
        source = ECHO if program == "echo" else CHAT / "producer.py"
        return [sys.executable, str(source)]
    if library == "php":
        return ["php", str(PHP / "examples" / f"{program}.php")]
    name = "original_echo" if library == "original" else program
    built = directory / name
    sources = [str(C / "examples" / f"{name}.c"), *map(str, (C / "src").glob("*.c"))]
    subprocess.run(["cc", "-std=c11", f"-I{C / 'include'}", "-o", str(built), *sources], check=True)
    return [str(built)]


@contextlib.contextmanager
def serving(site: Site, library: str, program: str, path: str) -> Iterator[None]:
    """Run a program as Apache's user until the end."""
    socket_file = site.docroot / path
    process = subprocess.Popen(
        [*command(library, program, site.apache.root), str(socket_file)],
        cwd="/",
        stderr=subprocess.PIPE,
        **private_apache.as_apache_user(),
    )
    try:
        wait_for(socket_file.exists, what=process.poll)
        yield
    finally:
        process.kill()
        _, stderr = process.communicate()
        socket_file.unlink(missing_ok=True)
    assert not stderr, stderr.decode()


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with running_site() as site:
        shutil.copytree(CHAT.parent / "common", site.docroot / "common")
        (site.docroot / "blank.html").write_text(
            "<!doctype html><link rel=icon href='data:,'><title>blank</title>"
        )
        yield site


@pytest.fixture
def driver() -> Iterator[webdriver.Chrome]:
    """A browser, which must have nothing against what it was shown."""
    with chromium() as driver:
        yield driver
        assert complaints(driver) == []


def origin(site: Site, scheme: str) -> str:
    if scheme == "ws":
        return f"http://127.0.0.1:{site.apache.port}/"
    return f"https://localhost:{site.apache.tls_port}/"


def test_the_seeds_programs_echo_at_the_same_time(site: Site, driver: webdriver.Chrome) -> None:
    """Python's, PHP's and one on the original's header; ours in C as well."""
    missing = [tool for tool in NEEDS.values() if tool and not shutil.which(tool)]
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    paths = [f"seed-{library}.ws" for library in NEEDS]
    with contextlib.ExitStack() as stack:
        for library, path in zip(NEEDS, paths, strict=True):
            stack.enter_context(serving(site, library, "echo", path))
        for scheme in ("ws", "wss"):
            page = origin(site, scheme)
            driver.get(f"{page}blank.html")
            urls = [f"{page.replace('http', 'ws', 1)}{path}" for path in paths]
            driver.set_script_timeout(30)
            answers = driver.execute_async_script(ECHOES, urls, SAID)
            for library, answer in zip(NEEDS, answers, strict=True):
                assert answer == [SAID, 1000], (library, scheme)


@pytest.mark.parametrize("scheme", ["ws", "wss"])
@pytest.mark.parametrize("library", ["python", "php", "c"])
def test_two_tabs_chat(site: Site, driver: webdriver.Chrome, library: str, scheme: str) -> None:
    if (tool := NEEDS[library]) and not shutil.which(tool):
        pytest.skip(f"{tool} is not installed")
    directory = site.docroot / f"chat-{library}-{scheme}"
    directory.mkdir()
    if IS_ROOT:
        shutil.chown(directory, private_apache.APACHE_USER)
    for name in ("index.html", "chat.js"):
        shutil.copy(CHAT / name, directory)
    url = f"{origin(site, scheme)}{directory.name}/"
    with serving(site, library, "chat", f"{directory.name}/chat.ws"):
        for name in ("Ann", "Zoë"):
            if name != "Ann":
                driver.switch_to.new_window("tab")
            driver.get(f"{url}#tea")
            driver.find_element("id", "name").clear()
            say(driver, "name", name)
            wait_for(lambda name=name: is_open(driver) and name in text_of(driver, "people"))  # type: ignore[misc]
        # A page with another name connects again: the old connection may end a moment later.
        wait_for(lambda: text_of(driver, "people") == "Ann\nZoë")
        say(driver, "text", "anybody <b>here</b>?")
        driver.switch_to.window(driver.window_handles[0])
        wait_for(lambda: "anybody <b>here</b>?" in text_of(driver, "log"))
        say(driver, "text", "Yes, over here.")
        driver.switch_to.window(driver.window_handles[1])
        wait_for(lambda: "Yes, over here." in text_of(driver, "log"))
        driver.close()
        driver.switch_to.window(driver.window_handles[0])
        wait_for(lambda: text_of(driver, "people") == "Ann")
