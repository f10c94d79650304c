"""apachews_handler.status_page: the answers, and that the page keeps to its own policy."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from wsgiref.validate import validator

import pytest

from apachews.monitoring.snapshot import CHILD, Status
from apachews_handler import status_page
from apachews_handler.bridge.reporter import Reporter
from apachews_handler.bridge.thread import Bridge
from apachews_handler.native.httpd import Request
from apachews_handler.shared import rundir, waiting
from apachews_handler.shared.waiting import MAX_COLLECTING

from .test_bridge import Lines

Answer = tuple[str, dict[str, str], bytes]


class FakeRequest:
    """What the page asks of httpd's record."""

    foreign_htaccess: str | None = None


@pytest.fixture(autouse=True)
def httpd_request(monkeypatch: pytest.MonkeyPatch) -> FakeRequest:
    request = FakeRequest()
    monkeypatch.setattr(Request, "from_capsule", lambda capsule: request)
    return request


def ask(query: str = "", method: str = "GET", *, has_request: bool = True) -> Answer:
    """Ask, through a checker of PEP 3333."""
    answered: list[tuple[str, dict[str, str]]] = []
    log = io.StringIO()
    environ = {
        "REQUEST_METHOD": method,
        "QUERY_STRING": query,
        "SCRIPT_NAME": "",
        "PATH_INFO": "/websocket-status",
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": log,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    if has_request:
        environ["apache.request_rec"] = object()

    def start_response(code: str, headers: list[tuple[str, str]], *_: object) -> object:
        answered.append((code, dict(headers)))
        return lambda data: None

    result = validator(status_page.application)(environ, start_response)  # type: ignore[arg-type]
    try:
        body = b"".join(result)
    finally:
        result.close()  # type: ignore[attr-defined]
    code, headers = answered[0]
    return code, headers | {"log": log.getvalue()}, body


@pytest.fixture
def bridge(temporary: Path) -> Iterator[Bridge]:
    bridge = Bridge()
    # The page is asked in a child of Apache: its parent is Apache.
    bridge.start(Reporter(bridge.loop, CHILD, os.getppid(), Lines()))
    yield bridge
    bridge.stop()


def test_before_the_first_websocket_there_is_an_empty_status(temporary: Path) -> None:
    code, headers, body = ask("json")
    assert (code, headers["Content-Type"]) == ("200 OK", "application/json")
    assert Status.decode(body).processes == ()
    assert not temporary.exists()  # asking makes nothing
    code, _, body = ask("metrics")
    assert code == "200 OK"
    assert b'apachews_processes{kind="child"} 0' in body


def test_the_figures(bridge: Bridge) -> None:
    (process,) = Status.decode(ask("json")[2]).processes
    assert process.pid == os.getpid()
    code, headers, body = ask("metrics")
    assert (code, headers["Content-Type"]) == (
        "200 OK",
        "text/plain; version=0.0.4; charset=utf-8",
    )
    assert f'apachews_loop_cpu_seconds_total{{pid="{os.getpid()}"'.encode() in body
    assert Status.decode(ask("json&connections=99999")[2]).processes
    # As Prometheus writes a parameter without a value.
    assert ask("metrics=")[1]["Content-Type"] == headers["Content-Type"]


@pytest.mark.parametrize("query", ["", "json", "metrics"])
def test_nothing_is_stored_and_head_has_no_body(query: str, bridge: Bridge) -> None:
    code, headers, body = ask(query)
    assert (code, headers["Cache-Control"], headers["log"]) == ("200 OK", "no-store", "")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert int(headers["Content-Length"]) == len(body) > 0
    head_code, head, nothing = ask(query, "HEAD")
    assert (head_code, head["Content-Type"], nothing) == (code, headers["Content-Type"], b"")


def test_what_it_does_not_know_is_refused() -> None:
    code, headers, body = ask("", "POST")
    assert (code, headers["Allow"]) == ("405 Method Not Allowed", "GET, HEAD")
    for query in (
        "jso",
        "json&connections=",
        "json&connections=-1",
        "json&x=1",
        "json=1",
        "metrics&x",
    ):
        code, _, body = ask(query)
        assert code == "400 Bad Request"
        assert b"?metrics" in body


@pytest.mark.parametrize("query", ["", "json", "metrics"])
def test_an_htaccess_file_does_not_lead_to_the_page(
    query: str, httpd_request: FakeRequest, bridge: Bridge
) -> None:
    httpd_request.foreign_htaccess = "/srv/mallory/"
    code, headers, body = ask(query)
    assert (code, headers["Apachews-Refused"]) == ("500 Internal Server Error", "htaccess")
    assert "'/srv/mallory/'" in headers["log"]
    assert b"mallory" not in body


def test_a_page_without_the_request_is_refused(bridge: Bridge) -> None:
    code, headers, _ = ask("json", has_request=False)
    assert (code, headers["Apachews-Refused"]) == ("500 Internal Server Error", "pass-request")


def test_a_directory_that_may_not_be_read_is_a_500_with_a_line(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary.touch()  # no directory at all
    code, headers, body = ask("json")
    assert code == "500 Internal Server Error"
    assert rundir.path() in headers["log"]
    assert rundir.path().encode() not in body


def test_the_page_runs_nothing_that_its_policy_does_not_name() -> None:
    _, headers, body = ask()
    page = body.decode()
    policy = dict(
        item.strip().split(" ", 1) for item in headers["Content-Security-Policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    for tag in ("style", "script"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert policy[f"{tag}-src"] == f"'sha256-{digest}'"
    # Nothing from elsewhere, nothing inline, nothing that parses data as HTML.
    outside = page.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?://|\bsrc=|<link|@import|url\(", outside)
    assert not re.search(
        r"\bstyle=|\bon\w+=|innerHTML|insertAdjacentHTML|document\.write|eval", page
    )


def test_requests_that_wait_for_a_process_that_hangs_are_few(bridge: Bridge) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(MAX_COLLECTING):
            stack.enter_context(waiting.place_for_status())
        code, headers, _ = ask("json")
    assert code == "503 Service Unavailable"
    assert headers["Retry-After"] == "5"
    assert headers["log"].count("\n") == 1
    assert "apachews status" in headers["log"]
    assert headers["Apachews-Refused"] == "status-busy"
    assert ask("json")[0] == "200 OK"
