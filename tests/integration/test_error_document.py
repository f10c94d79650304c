"""ErrorDocument: refusals look like the site's other errors, and nothing else changes."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apachews import Event

from ..conftest import wait_for
from ..support.raw_client import RawClient, request
from ..support.site import MOD_PYTHON, Site, running_site

LOCAL, TEXT = "<title>not now</title>", "Come back later, please."
DOCUMENTS = f"""
LoadModule cgi_module "${{MODULES}}/mod_cgi.so"
LoadModule include_module "${{MODULES}}/mod_include.so"
<Location /local>
    ErrorDocument 403 /pages/refused.html
    ErrorDocument 404 /pages/refused.html
    ErrorDocument 426 /pages/refused.html
    ErrorDocument 500 /pages/refused.html
    ErrorDocument 503 /pages/refused.html
    SetEnv APACHEWS_ORIGINS http://friend.example
</Location>
<Location /text>
    ErrorDocument 400 "{TEXT}"
    ErrorDocument 404 "{TEXT}"
    ErrorDocument 426 "{TEXT}"
    ErrorDocument 503 "{TEXT}"
</Location>
<Location /url>
    ErrorDocument 404 https://errors.example/away
    ErrorDocument 426 https://errors.example/away
</Location>
<Location /default>
    ErrorDocument 404 default
</Location>
<Location /absent>
    ErrorDocument 404 /pages/not-there.html
</Location>
<Location /loop>
    ErrorDocument 404 /loop/again.ws
    ErrorDocument 426 /loop/again.ws
    ErrorDocument 403 /echo.ws
</Location>
<Location /loop/closed.html>
    Require all denied
</Location>
<Location /bad>
    SetEnv APACHEWS_DEFLATE perhaps
    ErrorDocument 500 "{TEXT}"
</Location>
<Location /decides>
    SetEnv APACHEWS_ACCEPT producer
    ErrorDocument 403 "{TEXT}"
</Location>
<Location /cgi>
    ErrorDocument 404 /pages/tell.cgi
</Location>
<Location /set1>
    SetEnv REDIRECT_STATUS 101
    ErrorDocument 404 "{TEXT}"
</Location>
<Location /set2>
    SetEnv REDIRECT_STATUS +403
    ErrorDocument 404 "{TEXT}"
</Location>
<Location /set3>
    SetEnv REDIRECT_STATUS 404
    ErrorDocument 404 "{TEXT}"
</Location>
<Location /set4>
    SetEnv apachews.die x
    ErrorDocument 404 "{TEXT}"
</Location>
<Location /set5>
    SetEnv REDIRECT_STATUS 200
    ErrorDocument 404 /set5/again.ws
</Location>
<Directory "${{DOCROOT}}/pages">
    Options +ExecCGI +Includes
    AddHandler cgi-script .cgi
    AddOutputFilter INCLUDES .shtml
</Directory>
"""
# Programs in the same process: in the handler's interpreter, and in one of their own.
PROGRAMS = """
WSGIScriptAlias /program/same "${DOCROOT}/error.wsgi" \\
    process-group=%{GLOBAL} application-group=%{GLOBAL}
WSGIScriptAlias /program/other "${DOCROOT}/error.wsgi" \\
    process-group=%{GLOBAL} application-group=another
<Location /same>
    ErrorDocument 404 /program/same
</Location>
<Location /other>
    ErrorDocument 404 /program/other
</Location>
"""
PROGRAM = """
def application(environ, start_response):
    body = ("program of " + environ["REDIRECT_URL"]).encode()
    start_response("404 Not Found", [("Content-Length", str(len(body)))])
    return [body]
"""
CGI = """#!/bin/sh
printf 'Content-Type: text/plain\\r\\n\\r\\n%s %s' "$REDIRECT_STATUS" "$REDIRECT_URL"
"""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with running_site(extra=DOCUMENTS + ("" if MOD_PYTHON else PROGRAMS)) as site:
        pages = site.docroot / "pages"
        for name in re.findall(r"<Location /(\w+)>", DOCUMENTS + PROGRAMS):
            (site.docroot / name).mkdir()
        for directory in (pages, site.docroot / "plain"):
            directory.mkdir()
        (pages / "refused.html").write_text(LOCAL)
        (pages / "part.shtml").write_text('begin <!--#include virtual="/local/none.ws" --> end')
        (pages / "tell.cgi").write_text(CGI)
        (pages / "tell.cgi").chmod(0o755)
        (site.docroot / "error.wsgi").write_text(PROGRAM)
        (site.docroot / "loop" / "closed.html").write_text("closed")
        (site.docroot / "local" / "file.ws").write_text("text")
        for name in ("local", "text", "plain", "url"):
            leave_socket(site.docroot / name / "dead.ws")
        yield site


def leave_socket(path: Path) -> None:
    """Make a socket file on which nothing listens, as a dead producer leaves it."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
    path.chmod(0o666)


class Asked:
    """A connection that asks once, and can go on if Apache lets it."""

    def __init__(self, site: Site, scheme: str, data: bytes) -> None:
        self.client = RawClient(site.dial(scheme))
        self.client.send(data)
        self.status, self.headers = self.client.read_head()
        size = self.headers.get("content-length")
        if size is not None:
            self.body = self.client.read(int(size)).decode()
        else:
            assert self.headers["transfer-encoding"] == "chunked"
            self.body = self._read_chunks()

    def _read_chunks(self) -> str:
        body = b""
        while size := int(self._read_line(), 16):
            body += self.client.read(size)
            assert self.client.read(2) == b"\r\n"
        assert self.client.read(2) == b"\r\n"
        return body.decode()

    def _read_line(self) -> str:
        line = b""
        while not line.endswith(b"\r\n"):
            line += self.client.read(1)
        return line.decode()

    @property
    def has_closed(self) -> bool:
        return "close" in self.headers.get("connection", "").lower()

    def finish(self) -> None:
        """Check that nothing follows, or that the next request has its own answer."""
        with self.client:
            if self.has_closed:
                assert self.client.read(1) == b""
                return
            self.client.send(b"GET /index.html HTTP/1.1\r\nHost: localhost\r\n\r\n")
            status, _, page = self.client.read_response()
            assert (status, "here" in page) == (200, True)


def plain(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def old(path: str) -> bytes:
    return request(path, None, Sec_WebSocket_Version="8")


Ask = Callable[[str], bytes]


def token_of(path: str, how: Ask) -> str:
    """Return the token of the refusal, which an ErrorDocument does not change."""
    if how is not request:
        return "version" if how is old else "not-a-websocket"
    if path.startswith("/bad/"):
        return "settings"
    tokens = {"none": "no-such-endpoint", "file": "not-a-socket", "dead": "no-producer"}
    return tokens[path.rpartition("/")[2].removesuffix(".ws")]


DEAD = {"Retry-After": "5"}
UPGRADE = {"Upgrade": "websocket"}
# Whether the connection stays open is httpd's (ap_status_drops_connection), as without an
# ErrorDocument.
CASES: list[tuple[str, Ask, int, str, dict[str, str], bool]] = [
    ("/local/none.ws", request, 404, LOCAL, {}, True),
    ("/local/file.ws", request, 403, LOCAL, {}, True),
    ("/local/dead.ws", request, 503, LOCAL, DEAD, False),
    ("/local/alive.ws", plain, 426, LOCAL, UPGRADE, True),
    ("/text/none.ws", request, 404, TEXT, {}, True),
    ("/text/dead.ws", request, 503, TEXT, DEAD, False),
    ("/text/alive.ws", plain, 426, TEXT, UPGRADE, True),
    ("/bad/any.ws", request, 500, TEXT, {}, False),
    ("/url/none.ws", request, 302, "https://errors.example/away", {}, True),
    ("/url/any.ws", plain, 302, "https://errors.example/away", {}, True),
    ("/local/none.ws?version", old, 426, LOCAL, {"Sec-WebSocket-Version": "13"}, True),
    # There is none for the status, or it says "default".
    ("/url/dead.ws", request, 503, "The WebSocket is not available at the moment.\n", DEAD, False),
    ("/plain/none.ws", request, 404, "No WebSocket endpoint exists at this address.\n", {}, True),
    (
        "/plain/dead.ws",
        request,
        503,
        "The WebSocket is not available at the moment.\n",
        DEAD,
        False,
    ),
    ("/default/none.ws", request, 404, "No WebSocket endpoint exists at this address.\n", {}, True),
    ("/cgi/none.ws", request, 404, "404 /cgi/none.ws", {}, True),
    # httpd's own page then, as for any error.
    ("/absent/none.ws", request, 404, "a 404 Not Found\nerror was encountered", {}, True),
]


@pytest.mark.parametrize("scheme", ["ws", "wss1.3"])
@pytest.mark.parametrize(("path", "how", "status", "body", "headers", "stays"), CASES)
def test_a_refusal_is_the_sites(
    site: Site,
    scheme: str,
    path: str,
    how: Ask,
    status: int,
    body: str,
    headers: dict[str, str],
    stays: bool,
) -> None:
    asked = Asked(site, scheme, how(path))
    assert asked.status == status
    assert body in asked.body
    for name, value in headers.items():
        assert asked.headers[name.lower()] == value
    if "Upgrade" in headers:
        assert "upgrade" in asked.headers["connection"].lower()
    if status == 302:
        assert asked.headers["location"] == body
    assert asked.headers["apachews-refused"] == token_of(path, how)
    assert asked.has_closed == (not stays)
    asked.finish()
    logged = {302: "40[0-9]|426"}.get(status, str(status))
    wait_for(lambda: site.log_lines(rf"apachews: ({logged}) .* for {re.escape(path)}:"))
    line = rf'"GET {re.escape(path)} HTTP/1.1" {status} '
    wait_for(lambda: re.search(line, site.apache.access_log))


@pytest.mark.skipif(bool(MOD_PYTHON), reason="programs in mod_wsgi")
@pytest.mark.parametrize("where", ["same", "other"])
def test_a_program_in_the_same_process_serves_it(site: Site, where: str) -> None:
    children = set(site.apache.children())
    for _ in range(20):
        asked = Asked(site, "ws", request(f"/{where}/none.ws"))
        assert (asked.status, asked.body) == (404, f"program of /{where}/none.ws")
        asked.finish()
    # None has died; httpd may have started one to have more idle workers.
    assert children <= set(site.apache.children())


@pytest.mark.parametrize("scheme", ["ws", "wss1.3"])
@pytest.mark.parametrize(
    ("path", "how", "status"),
    [
        ("/loop/none.ws", request, 404),
        ("/loop/none.ws?plain", plain, 426),
        ("/loop/closed.html", request, 403),
        ("/loop/closed.html?plain", plain, 403),
    ],
)
def test_a_websocket_as_error_document_ends_in_the_first_error(
    site: Site, scheme: str, path: str, how: Ask, status: int
) -> None:
    asked = Asked(site, scheme, how(path))
    assert (asked.status, asked.body) == (status, "The WebSocket is not available.\n")
    # Two tokens: the first is that of the request that failed, unless httpd itself failed it.
    tokens = re.split(", *", asked.headers["apachews-refused"])
    first = {404: ["no-such-endpoint"], 426: ["not-a-websocket"], 403: []}[status]
    assert tokens == [*first, "error-document"]
    asked.finish()
    lines = wait_for(lambda: site.log_lines("error-document .* name a page in that ErrorDocument"))
    assert any(f" for {path}:" in line for line in lines)


@pytest.mark.parametrize("where", ["set1", "set2", "set3", "set4"])
def test_a_variable_of_the_site_makes_no_error_document(site: Site, where: str) -> None:
    """The author of an .htaccess sets variables; what is an ErrorDocument, httpd says."""
    asked = Asked(site, "ws", request(f"/{where}/none.ws"))
    assert (asked.status, asked.body) == (404, TEXT)
    asked.finish()
    with (
        site.producer(f"{where}/a.ws", lambda event: None),
        RawClient(site.dial("ws")) as client,
    ):
        client.send(request(f"/{where}/a.ws"))
        status, headers = client.read_head()
        assert status == 101
        assert "sec-websocket-accept" in headers
    assert not site.log_lines("Traceback")


def test_a_variable_of_the_site_hides_no_error_document(site: Site) -> None:
    asked = Asked(site, "ws", request("/set5/none.ws"))
    assert (asked.status, asked.body) == (404, "The WebSocket is not available.\n")
    asked.finish()


def test_the_refusal_of_a_producer_is_its_own(site: Site) -> None:
    def refuse(event: Event) -> None:
        if event.type() == Event.Accept:
            event.reject(403, "Members only.", [("Apachews-Refused", "origin")])

    with site.producer("decides/it.ws", refuse):
        asked = Asked(site, "ws", request("/decides/it.ws"))
        assert (asked.status, asked.body) == (403, "Members only.")
        assert asked.headers["apachews-refused"] == "producer"
        asked.finish()


def test_a_part_of_a_page_is_not_replaced(site: Site) -> None:
    asked = Asked(site, "ws", plain("/pages/part.shtml"))
    assert asked.status == 200
    assert asked.body == "begin This address speaks WebSocket only.\n end"
    asked.finish()


def test_a_client_that_leaves_harms_nothing(site: Site) -> None:
    for scheme in ("ws", "wss1.3"):
        for _ in range(50):
            sock = site.dial(scheme)
            sock.sendall(request("/local/dead.ws?leaves"))
            sock.close()
    # (With TLS Apache notices some before it has read the request.)
    wait_for(lambda: len(site.log_lines(r"apachews: 503 .*\?leaves:")) >= 50)
    asked = Asked(site, "ws", request("/local/none.ws"))
    assert asked.body == LOCAL
    asked.finish()
