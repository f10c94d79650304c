"""What ``apachews config`` prints, as the configuration of a real Apache."""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Iterator
from pathlib import Path

import pytest

from apachews_tools.cli import main
from apachews_tools.httpd import private_apache
from apachews_tools.httpd.control import Control
from apachews_tools.httpd.directives import Directive, find, walk
from apachews_tools.httpd.private_apache import (
    APACHE_USER,
    DEBIAN_MODULES,
    PrivateApache,
    find_httpd,
)
from apachews_tools.httpd.python_environment import PythonEnvironment
from apachews_tools.install.installation import choose_wsgi_module

from ..support.raw_client import RawClient
from ..support.site import HANDLER, IS_ROOT, Site, make_readable
from .test_answers import listening

MODULES = ("mpm_event", "authz_core", "alias", "dir", "env", "mime", "socache_shmcb", "ssl")


class ConfiguredApache(PrivateApache):
    """An Apache with a configuration of its own, ``httpd.conf`` in its root."""

    def command(self, *arguments: str) -> list[str]:
        return [str(find_httpd()), *arguments, "-f", str(self.root / "httpd.conf")]


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["config", *arguments]) == 0
    return capsys.readouterr().out


@pytest.fixture
def configured(short_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[PrivateApache]:
    """An Apache with nothing but what ``config`` prints, and the least that httpd needs."""
    make_readable()
    short_path.chmod(0o755)
    docroot = short_path / "htdocs"
    docroot.mkdir()
    port, tls_port = private_apache.free_port(), private_apache.free_port()
    environment = PythonEnvironment.running()
    module = choose_wsgi_module(environment)
    apache = ConfiguredApache(
        short_path,
        docroot,
        port=port,
        tls_port=tls_port,
        wsgi_module=module.path,
        python_home=environment.prefix,
        handler=HANDLER,
    )
    pem = apache.certificate
    private_apache.create_certificate(pem)
    lines = [
        f"ServerRoot {short_path}",
        f"PidFile {short_path}/apache.pid",
        f"ErrorLog {short_path}/error.log",
        f"DefaultRuntimeDir {short_path}",
        "ServerName localhost",
        f"Listen 127.0.0.1:{port}",
        f"Listen 127.0.0.1:{tls_port}",
        *(f"LoadModule {name}_module {DEBIAN_MODULES}/mod_{name}.so" for name in MODULES),
        "TypesConfig /dev/null",
    ]
    if IS_ROOT:
        lines += [f"User {APACHE_USER}", f"Group {APACHE_USER}"]
    if module.is_systems:  # whose configuration loads it
        lines.append(f"LoadModule wsgi_module {module.path}")
    # Without root this Apache runs as the user itself, whose directories www-data may not enter.
    user = APACHE_USER if IS_ROOT else pwd.getpwuid(os.geteuid()).pw_name
    host = printed(
        capsys,
        *("--tls-vhost", "localhost", "--docroot", str(docroot)),
        *("--certificate", str(pem), "--key", str(pem), "--user", user),
    )
    host = host.replace("*:80>", f"*:{port}>").replace("*:443>", f"*:{tls_port}>")
    text = "\n".join([*lines, printed(capsys, "--user", user), host])
    (short_path / "httpd.conf").write_text(text)
    try:
        apache.start()
        with listening(docroot / "echo.ws"):
            yield apache
    finally:
        apache.kill()


def get(apache: PrivateApache, path: str) -> tuple[int, dict[str, str]]:
    with RawClient(Site(apache).dial("ws")) as client:
        client.send(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        return client.read_head()


def test_a_virtual_host_with_tls_serves_websockets(
    configured: PrivateApache, capsys: pytest.CaptureFixture[str]
) -> None:
    program, *rest = configured.command()
    status = main(
        [
            *("doctor", f"wss://localhost:{configured.tls_port}/echo.ws", "--json"),
            *("--ca", str(configured.certificate), "--logrotate", str(configured.root)),
            *("--websockets", "100"),  # a shell's own limit is often 1024
            *("--apachectl", program, "--httpd-arguments", *rest),
        ]
    )
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert status == 0, findings
    # The owner of the checkout, whose packages this configuration names, and whether the
    # extensions are built in it, depend on the machine.
    found = [one for one in findings if one["id"] not in {"ownership", "extensions"}]
    assert {"ok"} == {one["level"] for one in found}, findings
    assert "handshake" in {one["id"] for one in findings}
    # From http everything goes to https, but for what certbot puts there.
    status, headers = get(configured, "/chat.html?room=1")
    assert (status, headers["location"]) == (301, "https://localhost/chat.html?room=1")
    assert get(configured, "/.well-known/acme-challenge/x")[0] == 404


def test_a_redirect_is_explained(
    configured: PrivateApache, capsys: pytest.CaptureFixture[str]
) -> None:
    program, *rest = configured.command()
    target = f"ws://localhost:{configured.port}/echo.ws"
    given = ["--json", "--apachectl", program, "--httpd-arguments", *rest]
    assert main(["doctor", target, *given]) == 1
    findings = {one["id"]: one for one in json.loads(capsys.readouterr().out)["findings"]}
    assert findings["handshake"]["level"] == "error"
    assert findings["handshake"]["remedy"] == "connect to wss://localhost/echo.ws"


def test_the_files_say_the_same_as_httpd(event_site: Site) -> None:
    """Without mod_info the files are read; the tree must be the one that httpd has."""
    program, *rest = event_site.apache.command()
    control = Control(program, rest)
    resolved = control.read()
    assert resolved.is_resolved
    # What mod_info does not show: it is done with once read.
    once = ("LoadModule", "Define", "ServerRoot", "DefaultRuntimeDir")

    def listed(directives: list[Directive]) -> list[tuple[str, object, str]]:
        left_out = {id(one) for one in find(directives, *once)}
        return [
            (one.name, one.arguments, one.where)
            for one in walk(directives)
            if id(one) not in left_out
        ]

    class WithoutInfo(Control):
        def _parse_dump(self, *_: object) -> None:
            return None

    files = WithoutInfo(program, rest).read()
    assert not files.is_resolved
    assert listed(files.directives) == listed(resolved.directives)
    assert files.loaded == resolved.loaded
    assert os.path.exists(files.loaded["wsgi_module"])
