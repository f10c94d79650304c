"""A tunnel in browsers: an unmodified server, compressed; in Chromium through a reload."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..conftest import wait_for
from ..integration.test_tunnel import alias
from ..support.backends import echo_server
from ..support.site import Site, running_site
from .conftest import CHROMEDRIVER, CHROMIUM, chromium, firefox, needs_firefox, reports

OPEN = """
const [url, done] = arguments;
const socket = window.tunnel = new WebSocket(url);
socket.binaryType = 'arraybuffer';
socket.onopen = () => done(socket.extensions);
socket.onclose = ({ code }) => done(`closed ${code}`);
"""
# Sends a text and bytes, the second when the first has come back.
ECHO = """
const done = arguments[0], socket = window.tunnel;
const bytes = Uint8Array.from({ length: 200000 }, (_, index) => index * 7);
socket.onmessage = ({ data }) => {
    if (data === 'gr\u00fc\u00dfe') return socket.send(bytes);
    const back = new Uint8Array(data);
    done(back.length === bytes.length && back.every((byte, index) => byte === bytes[index]));
};
socket.onclose = ({ code }) => done(`closed ${code}`);
socket.send('gr\u00fc\u00dfe');
"""
CLOSE = """
const done = arguments[0], socket = window.tunnel;
socket.onclose = ({ code, reason, wasClean }) => done([code, reason, wasClean]);
socket.close(4000, 'done');
"""
# Reports to the access log, so that it needs no driver.
PAGE = """<!doctype html><title>tunnel</title><script>
const bytes = Uint8Array.from({ length: 200000 }, (_, index) => index * 7);
const echo = (url) => new Promise((resolve) => {
    const socket = new WebSocket(url);
    socket.binaryType = 'arraybuffer';
    socket.onopen = () => socket.send('gr\u00fc\u00dfe');
    socket.onmessage = ({ data }) => {
        if (data === 'gr\u00fc\u00dfe') return socket.send(bytes);
        const back = new Uint8Array(data);
        const isSame = back.length === bytes.length && back.every((byte, i) => byte === bytes[i]);
        socket.close(4000, isSame ? 'same' : 'different');
    };
    socket.onclose = ({ code, reason, wasClean }) =>
        resolve(`${socket.extensions}-${code}-${reason}-${wasClean}`);
});
echo('WS').then((ws) => echo('WSS').then((wss) => fetch(`/report?${ws},${wss}`)));
</script>"""


@pytest.mark.skipif(
    not CHROMIUM or not CHROMEDRIVER,
    reason="no browser: apt-get install chromium chromium-driver",
)
def test_an_echo_before_and_after_a_reload(tmp_path: Path) -> None:
    with (
        echo_server(tmp_path) as port,
        running_site(extra=alias("app", f"http://127.0.0.1:{port}")) as site,
        chromium() as driver,
    ):
        driver.set_script_timeout(30)
        for scheme in ("ws", "wss"):
            driver.get(page_of(site, scheme))
            url = site.ws("/app") if scheme == "ws" else site.wss("/app")
            assert "permessage-deflate" in driver.execute_async_script(OPEN, url)
            assert driver.execute_async_script(ECHO) is True
            if scheme == "ws":
                # (With TLS Chromium holds a spare connection, and httpd's old child waits for it.)
                site.renew(60)
                wait_for(site.custodians)
                assert driver.execute_async_script(ECHO) is True
            assert driver.execute_async_script(CLOSE) == [4000, "done", True]


@needs_firefox
def test_an_echo_in_firefox(tmp_path: Path) -> None:
    (tmp_path / "profile").mkdir()
    anywhere = "SetEnv APACHEWS_ORIGINS *"  # the page is of the site without TLS
    with (
        echo_server(tmp_path) as port,
        running_site(extra=alias("app", f"http://127.0.0.1:{port}", anywhere)) as site,
    ):
        page = PAGE.replace("'WS'", repr(site.ws("/app"))).replace("'WSS'", repr(site.wss("/app")))
        (site.docroot / "page.html").write_text(page)
        url = site.http("/page.html")
        with firefox(url, site.apache.certificate, tmp_path / "profile") as output:
            wait_for(lambda: reports(site), 60, output)
        each = "permessage-deflate-4000-same-true"
        assert reports(site) == [f"{each},{each}"]
        closed = r"/app closed by client .* code=4000 reason='same'"
        wait_for(lambda: len(site.log_lines(closed)) == 2)


def page_of(site: Site, scheme: str) -> str:
    """Return the address of a page from which WebSockets are of that scheme."""
    if scheme == "ws":
        return site.http()
    return f"https://localhost:{site.apache.tls_port}/index.html"
