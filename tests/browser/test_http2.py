"""Browsers and H2WebSockets: who connects although Apache sends them to HTTP/1.1."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ..conftest import wait_for
from ..integration.test_http2 import HTTP_2
from ..support.site import MOD_PYTHON, Site, running_site
from .conftest import CHROMEDRIVER, CHROMIUM, chromium, firefox, needs_firefox, reports

pytestmark = pytest.mark.skipif(bool(MOD_PYTHON), reason="the browsers see mod_wsgi only")

# Reports to the access log, so that it needs no driver.
PAGE = """<!doctype html><title>HTTP/2</title><script>
const socket = new WebSocket(`wss://${location.host}/echo.ws?browser`);
const report = (text) => fetch(`/report?${text}`);
socket.onopen = () => socket.send('hi');
socket.onmessage = (event) => report(`echo-${event.data}`);
socket.onerror = () => report('failed');
</script>"""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with running_site(extra=HTTP_2) as site:
        (site.docroot / "page.html").write_text(PAGE)
        yield site


def refusals(site: Site) -> int:
    """Return how many WebSockets came over HTTP/2."""
    return len(site.log_lines(r"apachews: 403 http2 for .*\?browser"))


@pytest.mark.skipif(
    not CHROMIUM or not CHROMEDRIVER, reason="no browser: apt-get install chromium chromium-driver"
)
def test_chromium_comes_back_by_http_1_1_and_connects(site: Site) -> None:
    before = refusals(site), len(reports(site))
    with chromium() as driver:
        driver.get(f"https://localhost:{site.apache.tls_port}/page.html")
        wait_for(lambda: len(reports(site)) > before[1])
    assert reports(site)[before[1] :] == ["echo-hi"]
    assert refusals(site) == before[0] + 1
    # (httpd logs a request after its response; the bridge may be faster.)
    wait_for(lambda: '"GET /page.html HTTP/2.0" 200' in site.apache.access_log)
    wait_for(lambda: '"GET /echo.ws?browser HTTP/1.1" 101' in site.apache.access_log)


@needs_firefox
def test_firefox_does_not_connect(site: Site, tmp_path: Path) -> None:
    """What docs/explanation/faq.md says of Firefox; once this fails, the page can say better."""
    before = refusals(site), len(reports(site))
    with firefox(
        f"https://localhost:{site.apache.tls_port}/page.html", site.apache.certificate, tmp_path
    ) as output:
        wait_for(lambda: len(reports(site)) > before[1], 60, output)
    assert refusals(site) == before[0] + 1
    assert reports(site)[before[1] :] == ["failed"]
