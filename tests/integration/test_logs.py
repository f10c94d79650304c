"""What is written of WebSockets: the error log of their virtual host, and the log of closes."""

from __future__ import annotations

import os
import pwd
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from apachews import wire
from apachews_tools.httpd import private_apache

from ..conftest import wait_for
from ..support.frames import masked
from ..support.raw_client import RawClient, request
from ..support.site import IS_ROOT, MOD_PYTHON, Site, running_site
from .conftest import RESTART_MPMS

FORMAT = r"%h %u \"%r\" %>s \"%{reason}x\" \"%{X-Name}i\" %{bytes_in}x %{bytes_out}x %{name}x %P"


def directives(directory: Path, port: int) -> str:
    return f"""
Define APACHEWS_LOG_DIRECTORY "{directory}"
Listen 127.0.0.1:{port}
<VirtualHost 127.0.0.1:{port}>
    ErrorLog "{directory}/quiet.log"
    LogLevel warn {"python" if MOD_PYTHON else "wsgi"}:warn
</VirtualHost>
<Location /echo.ws>
    SetEnv APACHEWS_CLOSE_LOG "{directory}/logs/close.log"
    SetEnv APACHEWS_CLOSE_LOG_FORMAT "{FORMAT}"
</Location>
<Location /ws/default>
    SetEnv APACHEWS_CLOSE_LOG "{directory}/logs/default.log"
</Location>
<Location /ws/nowhere>
    SetEnv APACHEWS_CLOSE_LOG "{directory}/none/close.log"
</Location>
<Location /ws/bad>
    SetEnv APACHEWS_CLOSE_LOG_FORMAT "%Z"
</Location>
"""


class Logs:
    """A site and its logs."""

    def __init__(self, site: Site, directory: Path, quiet_port: int) -> None:
        self.site = site
        self.directory = directory
        self.quiet_port = quiet_port

    def lines(self, name: str = "close.log", count: int = 1) -> list[str]:
        """Return a log's lines, when there are so many."""
        path = self.directory / "logs" / name
        wait_for(lambda: path.exists() and path.read_text().count("\n") >= count)
        return path.read_text().splitlines()

    def close(self, path: str, code: int = 1000, reason: str = "", **headers: str) -> None:
        """Say something to an echo, and close."""
        with RawClient(self.site.dial("ws")) as client:
            client.upgrade(path, **headers)
            client.send(masked(0x81, b"hello"))
            assert client.read_data_frame() == (0x81, b"hello")
            client.send(masked(0x88, wire.encode_close(code, reason)))
            assert client.read_close() == code


@pytest.fixture(params=RESTART_MPMS)
def logs(request: pytest.FixtureRequest, short_path: Path) -> Iterator[Logs]:
    short_path.chmod(0o755)
    (short_path / "logs").mkdir()
    if IS_ROOT:
        account = pwd.getpwnam(private_apache.APACHE_USER)
        os.chown(short_path / "logs", account.pw_uid, account.pw_gid)
    port = private_apache.free_port()
    with running_site(request.param, extra=directives(short_path, port)) as site:
        for name in ("default", "nowhere", "bad"):
            (site.docroot / f"{name}.ws").symlink_to("echo.ws")
        yield Logs(site, short_path, port)


def test_logs(logs: Logs) -> None:
    """One Apache for all: starting one takes longer than what is looked at."""
    check_lines(logs)
    check_custodian_and_rotation(logs)
    check_what_cannot_be_written(logs)
    check_virtual_host(logs)


def check_lines(logs: Logs) -> None:
    logs.close("/echo.ws?a=%22b", 3999, 'done\n127.0.0.1 - "forged', X_Name='Ann "the \\ bold"')
    (line,) = logs.lines()
    parsed = re.fullmatch(r"(.*) (\d+)", line)
    assert parsed
    assert parsed[1] == (
        '127.0.0.1 - "GET /echo.ws?a=%22b HTTP/1.1" 3999 "done\\n127.0.0.1 - \\"forged"'
        ' "Ann \\"the \\\\ bold\\"" 5 5 CLIENT_CLOSED'
    )
    assert int(parsed[2]) in logs.site.apache.children()
    logs.close("/ws/default")
    (line,) = logs.lines("default.log")
    assert re.fullmatch(
        r"127\.0\.0\.1 - - \[\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\]"
        r' "GET /ws/default HTTP/1\.1" 1000 5 "-" "-" CLIENT_CLOSED \d+ 1 5 1 5',
        line,
    )


def check_custodian_and_rotation(logs: Logs) -> None:
    with RawClient(logs.site.dial("wss1.3")) as client:
        client.upgrade()
        logs.site.renew()
        (custodian,) = logs.site.custodians()
        (logs.directory / "logs" / "close.log").rename(logs.directory / "logs" / "close.log.1")
        client.send(masked(0x88, wire.encode_close(1000, "")))
        assert client.read_close() == 1000
    (line,) = logs.lines()
    assert line.endswith(f" CLIENT_CLOSED {custodian}")
    wait_for(lambda: not logs.site.custodians())


def check_what_cannot_be_written(logs: Logs) -> None:
    for _ in range(3):
        logs.close("/ws/nowhere")
    wait_for(lambda: len(logs.site.log_lines("/ws/nowhere closed by client")) == 3)
    found = logs.site.log_lines("cannot be written: No such file")
    pids = [re.search(r"\[pid (\d+)", line) for line in found]
    assert 1 <= len(found) <= len(logs.site.apache.children())
    assert len({pid[1] for pid in pids if pid}) == len(found), "more than one of a process"
    user = pwd.getpwuid(os.geteuid()).pw_name
    user = private_apache.APACHE_USER if IS_ROOT else user
    assert f"install -d -o {user} -m 2750 {logs.directory}/none" in found[0]
    with RawClient(logs.site.dial("ws")) as client:
        client.send(request("/ws/bad"))
        assert client.read_response()[0] == 500
    (line,) = logs.site.log_lines("APACHEWS_CLOSE_LOG_FORMAT")
    assert "'%Z' is not allowed" in line and "unknown directive %Z" in line


def check_virtual_host(logs: Logs) -> None:
    """A line goes to the log of the virtual host, where LogLevel lets it."""
    quiet = logs.directory / "quiet.log"
    before = len(logs.site.log_lines("closed by"))
    for opcode in (0x88, 0x83):  # a CLOSE, and what there is not
        sock = socket.create_connection(("127.0.0.1", logs.quiet_port), 10)
        with RawClient(sock) as client:
            client.upgrade()
            client.send(masked(opcode, wire.encode_close(1000, "")))
            client.read_close()
    wait_for(lambda: "PROTOCOL_ERROR" in quiet.read_text())
    lines = [line for line in quiet.read_text().splitlines() if "closed by" in line]
    (line,) = lines  # the other one is of level info
    assert re.search(r"\[\w*:warn\] \[pid \d+(?::tid \d+)?\] \[client 127\.0\.0\.1:\d+\]", line)
    assert len(logs.site.log_lines("closed by")) == before
    # Elsewhere, and with the other level, it is seen.
    logs.close("/echo.ws")
    wait_for(lambda: len(logs.site.log_lines(r":info\] .* closed by client")) > 0)
