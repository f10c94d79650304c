"""``apachews doctor``: its checks, over texts and files; and its report."""

from __future__ import annotations

import base64
import contextlib
import errno
import hashlib
import json
import os
import re
import socket
import struct
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from apachews._listening import loopback
from apachews.monitoring import refusals
from apachews.monitoring.refusals import Reason
from apachews_tools.cli import main
from apachews_tools.cli.doctor import report
from apachews_tools.doctor import machine
from apachews_tools.doctor.finding import CHECKS, Finding, Level, error, note, ok, warning
from apachews_tools.doctor.handshake import check_url, explain
from apachews_tools.doctor.machine import (
    check_confinement,
    check_logrotate,
    check_process,
    check_reload,
    check_unit,
    check_visible,
    has_private_tmp,
    parse_properties,
    room,
    rotations,
)
from apachews_tools.doctor.server import check_ownership, check_server, listens_on
from apachews_tools.doctor.site import check_scope, check_socket, sockets_in
from apachews_tools.doctor.syntax import check_syntax
from apachews_tools.httpd.address import Address, AddressError
from apachews_tools.httpd.answers import CAUSES, Answer, Cause, joined
from apachews_tools.httpd.configuration import Configuration, RunConfig
from apachews_tools.httpd.control import Control, ControlError
from apachews_tools.httpd.directives import IncludedFile, parse_files
from apachews_tools.httpd.mapping import scope_of
from apachews_tools.httpd.permissions import ENTER, READ, WRITE, Account, obstacles
from apachews_tools.httpd.process import Httpd, limit_in, running, unit_in
from apachews_tools.httpd.shell import shipped, this_program, word

from ..conftest import DEADLINE_S
from ..support.site import IS_ROOT

TROUBLESHOOTING = Path(__file__).parents[2] / "docs" / "howto" / "troubleshooting.md"
SOMEBODY = Account("somebody", 40_000, frozenset({40_000, 40_001}))


def levels(findings: Iterator[Finding] | list[Finding]) -> dict[str, str]:
    return {finding.id: finding.level.value for finding in findings}


def test_every_finding_is_documented() -> None:
    headings = re.findall(r"^### `([a-z0-9-]+)`", TROUBLESHOOTING.read_text(), re.MULTILINE)
    assert headings == list(CHECKS)


# Permissions.


def test_a_users_rights_are_those_of_its_first_class(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    own = os.stat(file)
    for mode, may in ((0o400, READ), (0o040, 0), (0o200, WRITE), (0o007, 0)):
        file.chmod(mode)
        account = Account("me", own.st_uid or 1, frozenset({own.st_gid}))
        status = os.stat_result((file.stat().st_mode, *own[1:4], account.uid, *own[5:10]))
        assert sum(right for right in (READ, WRITE, ENTER) if account.may(status, right)) == may
    assert Account("root", 0, frozenset()).may(own, WRITE)


def test_all_that_is_in_the_way_is_named(short_path: Path) -> None:
    short_path.chmod(0o755)
    inner = short_path / "a" / "b"
    inner.mkdir(parents=True)
    file = inner / "c.ws"
    file.touch()
    inner.parent.chmod(0o700)
    inner.chmod(0o710)
    file.chmod(0o640)
    found = obstacles(SOMEBODY, file, READ | WRITE)
    assert [(str(one.path), one.mode, one.remedy) for one in found] == [
        (f"{short_path}/a", "0700", f"chmod o+x {short_path}/a"),
        (f"{short_path}/a/b", "0710", f"chmod o+x {short_path}/a/b"),
        (f"{short_path}/a/b/c.ws", "0640", f"chmod o+rw {short_path}/a/b/c.ws"),
    ]


# Commands to paste.


@pytest.mark.parametrize(
    "name",
    [
        "plain.ws",
        "a b",
        "$(id)",
        "a;reboot",
        "it's",
        "a\x1b[2J",
        "a\nb",
        "\\\t'",
        "é\u202e",
        "\udcff",
    ],
)
def test_a_name_is_one_word_to_the_shell(name: str, tmp_path: Path) -> None:
    written = word(tmp_path / name)
    assert written.isprintable()
    done = subprocess.run(["bash", "-c", f"printf %s {written}"], capture_output=True, check=True)
    assert done.stdout == os.fsencode(tmp_path / name)


def test_a_chmod_is_of_this_file_only(short_path: Path) -> None:
    directory = short_path / "a;reboot"
    directory.mkdir(mode=0o700)
    short_path.chmod(0o755)
    (directory / "$(id).ws").touch(mode=0o600)
    first, second = obstacles(SOMEBODY, directory / "$(id).ws", WRITE)
    assert first.remedy == f"chmod o+x '{directory}'"
    assert second.remedy == f"chmod o+w '{directory}/$(id).ws'"


@pytest.mark.parametrize(
    ("argv", "command"),
    [
        ("/opt/my env/bin/apachews", "'/opt/my env/bin/apachews'"),
        ("/opt/lib/apachews/__main__.py", f"{sys.executable} -m apachews"),
        ("/usr/local/bin/apachews", "/usr/local/bin/apachews"),
        ("/usr/bin/apachews", "apachews"),
        ("apachews", "apachews"),
    ],
)
def test_sudo_is_told_where_the_program_is(
    argv: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [argv])
    assert this_program() == command


def test_a_file_to_copy_is_named_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sysconfig, "get_path", {"data": str(tmp_path)}.get)
    assert shipped("systemd/a.conf") == "deploy/systemd/a.conf"
    (tmp_path / "share" / "apachews" / "systemd").mkdir(parents=True)
    (tmp_path / "share" / "apachews" / "systemd" / "a.conf").touch()
    assert shipped("systemd/a.conf") == f"{tmp_path}/share/apachews/systemd/a.conf"


# What httpd refuses.

UNKNOWN = "Invalid command '%s', perhaps misspelled or defined by a module not included"
GONE = "Could not open configuration file /opt/e/python3.11/%s: No such file or directory"
NOT_LOADED = "Cannot load /opt/e/mod_wsgi-py311.so into server: x.so: cannot open: No such file"


@pytest.mark.parametrize(
    ("problem", "on_debian", "elsewhere"),
    [
        (UNKNOWN % "WSGIPythonHome", "sudo a2enmod wsgi", "LoadModule wsgi_module"),
        (UNKNOWN % "wsgipythonhome", "sudo a2enmod wsgi", "LoadModule wsgi_module"),
        (UNKNOWN % "SSLEngine", "sudo a2enmod ssl", "LoadModule ssl_module"),
        (UNKNOWN % "Header", "sudo a2enmod headers", "LoadModule headers_module"),
        (UNKNOWN % "RewriteEngine", "sudo a2enmod rewrite", "LoadModule rewrite_module"),
        (UNKNOWN % "ProxyPass", "sudo a2enmod proxy_http", "LoadModule proxy_http_module"),
        (UNKNOWN % "RemoteIPHeadr", "check it with httpd -t", "LoadModule remoteip"),
        (UNKNOWN % "Listne", "check it with httpd -t", "check it with httpd -t"),
        (GONE % "apachews.conf", "config --debian", "by those of apachews config"),
        (GONE % "else.conf", "check it with httpd -t", "check it with httpd -t"),
        (NOT_LOADED, "config --debian", "by those of apachews config"),
    ],
)
def test_the_remedy_for_a_line_that_httpd_rejects(
    problem: str,
    on_debian: str,
    elsewhere: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", ["apachews"])
    modules = tmp_path / "mods-available"
    for directory, name in ((modules, "wsgi"), (tmp_path / "mods-enabled", "remoteip")):
        directory.mkdir()
        (directory / f"{name}.load").touch()
    text = f"Syntax error on line 3 of {tmp_path}/mods-enabled/apachews.conf: {problem}"
    (found,) = check_syntax(text, "httpd", True, modules)
    assert (found.id, found.level, found.text) == ("syntax", Level.ERROR, text)
    assert on_debian in found.remedy
    (found,) = check_syntax(text, "httpd", True, None)
    assert elsewhere in found.remedy


def test_a_module_that_debian_has_not_installed(tmp_path: Path) -> None:
    (found,) = check_syntax(UNKNOWN % "WSGIPythonHome", "httpd", True, tmp_path / "mods-available")
    assert found.remedy.startswith("sudo apt-get install libapache2-mod-wsgi-py3 && sudo a2enmod")


@pytest.mark.parametrize(
    "says",
    [
        "SSLCertificateKeyFile: file '%s' does not exist or is empty",
        "Could not open configuration file %s: Permission denied",
    ],
)
def test_an_unreadable_file_is_not_a_mistake(says: str, short_path: Path) -> None:
    short_path.chmod(0o700)
    file = short_path / "chat.key"
    file.touch(0o600)
    text = says % file
    with without_rights(short_path):
        (found,) = check_syntax(text, "httpd", False)
    assert (found.id, found.level) == ("privileges", Level.WARNING)
    assert found.text.startswith(f"{file} is not readable")
    assert found.remedy.startswith("sudo ")
    assert found.remedy.endswith(" doctor")
    (found,) = check_syntax(text, "httpd", True)
    assert found.id == "syntax"
    file.unlink()
    (found,) = check_syntax(text, "httpd", False)
    assert found.id == "syntax"


# The server's configuration.


def server(text: str, modules: str = "wsgi mpm_event", **loaded: str) -> dict[str, str]:
    names = frozenset(f"{name}_module" for name in modules.split())
    directives = parse_files(IncludedFile("/c", 0), lambda _: text, names, {})
    read = Configuration(directives, loaded, names, RunConfig())
    return levels(check_server(read, SOMEBODY, (2, 4, 62)))


def test_without_mod_wsgi_nothing_else_is_asked() -> None:
    found = server("", "mpm_event")
    assert found["mod-wsgi"] == "error"
    assert "handler-script" not in found


def test_without_the_handler_nothing_else_is_asked() -> None:
    found = server("")
    assert (found["mod-wsgi"], found["handler-script"]) == ("ok", "error")
    assert "import-script" not in found


def test_a_handler_for_another_python(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "python3.13" / "site-packages"
    (packages / "apachews_handler").mkdir(parents=True)
    script = packages / "apachews_handler" / "wsgi.py"
    script.touch()
    module = tmp_path / "mod_wsgi.so"
    module.write_bytes(b"\0libpython3.11.so.1.0\0")
    found = server(f"WSGIHandlerScript websocket {script}", wsgi_module=str(module))
    assert found["python-version"] == "error"
    assert "packages" not in found
    module.write_bytes(b"\0libpython3.13.so.1.0\0")
    found = server(f"WSGIHandlerScript websocket {script}", wsgi_module=str(module))
    assert found["python-version"] == "ok"


def test_where_to_install_is_not_said_of_what_is_there(
    short_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short_path.chmod(0o755)
    home = short_path / "apachews"
    (home / "apachews_handler").mkdir(parents=True)
    script = home / "apachews_handler" / "wsgi.py"
    script.touch()
    home.chmod(0o700)
    text = f"WSGIHandlerScript websocket {script}"
    directives = parse_files(IncludedFile("/c", 0), lambda _: text, (), {})
    names = frozenset({"wsgi_module"})
    for opt, has_advice in ((home, False), (short_path / "opt", True)):
        monkeypatch.setattr("apachews_tools.doctor.python.OPT", opt)
        found = check_server(Configuration(directives, {}, names, RunConfig()), SOMEBODY, ())
        (remedy,) = [one.remedy for one in found if one.id == "readable"]
        assert remedy.startswith(f"chmod o+x {home}")
        assert ("elsewhere" in remedy) is has_advice


@pytest.mark.parametrize(
    ("text", "listens"),
    [
        ("Listen 8080", True),
        ("Listen 127.0.0.1:8080 http", True),
        ("Listen [::]:8080", True),
        ("Listen 80\n<VirtualHost *:8080>\n</VirtualHost>", True),
        ("Listen 80\nListen 443 https", False),
        ("Listen 80\nListen 127.0.0.1:18080", False),
        ("Listen ${PORT}", True),  # it cannot be told
        ("", True),
    ],
)
def test_ports_of_a_configuration(text: str, listens: bool) -> None:
    directives = parse_files(IncludedFile("/c", 0), lambda _: text, (), {})
    assert listens_on(Configuration(directives, {}, frozenset(), RunConfig()), 8080) is listens


def test_an_environment_that_is_gone(tmp_path: Path) -> None:
    script = tmp_path / "wsgi.py"
    script.touch()
    text = f"WSGIHandlerScript websocket {script}\nWSGIPythonHome {tmp_path}/gone"
    assert server(text)["readable"] == "error"


@pytest.mark.parametrize(
    ("text", "modules", "level"),
    [
        ("", "mpm_event", None),
        ("", "mpm_event http2", "ok"),
        ("Protocols h2 http/1.1", "mpm_event http2", "ok"),
        ("H2WebSockets on", "mpm_event http2", "ok"),
        ("Protocols h2 http/1.1\nH2WebSockets off", "mpm_event http2", "ok"),
        ("Protocols h2 http/1.1\nH2WebSockets on", "mpm_event http2", "error"),
    ],
)
def test_websockets_over_http_2(text: str, modules: str, level: str | None) -> None:
    assert server(text, modules).get("http2") == level


def test_old_httpds_and_other_tls() -> None:
    read = Configuration([], {}, frozenset({"mpm_event_module", "gnutls_module"}), RunConfig())
    found = levels(check_server(read, SOMEBODY, (2, 4, 48)))
    assert (found["restart-support"], found["tls-module"]) == ("warning", "warning")
    read = Configuration([], {}, frozenset({"mpm_prefork_module"}), RunConfig())
    assert levels(check_server(read, SOMEBODY, (2, 4, 48)))["restart-support"] == "ok"


@pytest.mark.parametrize(
    ("section", "remedy"),
    [
        ("<Directory />", "<Directory /srv/ws> with Require all granted"),
        ("<Directory /srv>", "<Directory /srv/ws> with Require all granted"),
        ("<Directory /srv/ws>", "replace Require all denied at /c:3 by: Require all granted"),
        ("<Directory /srv/*>", "replace Require all denied at /c:3 by: Require all granted"),
        ("<Directory ~ ws>", "replace Require all denied at /c:3 by: Require all granted"),
        ("<DirectoryMatch ws>", "replace Require all denied at /c:3 by: Require all granted"),
        ("<Files *.ws>", "replace Require all denied at /c:3 by: Require all granted"),
        ("<LocationMatch ws>", "replace Require all denied at /c:3 by: Require all granted"),
    ],
)
@pytest.mark.parametrize("around", ["", "RequireAll"])
def test_a_line_is_overridden_where_it_can_be(section: str, remedy: str, around: str) -> None:
    rule = "Require all denied"
    lines = [section, f"<{around}>" if around else "#", rule, f"</{around}>" if around else "#"]
    text = "\n".join([*lines, f"</{section[1:].split()[0].rstrip('>')}>"])
    directives = parse_files(IncludedFile("/c", 0), lambda _: text, (), {})
    read = Configuration(directives, {}, frozenset(), RunConfig(document_root="/srv"))
    found = {
        one.id: one for one in check_scope(scope_of(read, read.virtual_hosts()[0], "/ws/a.ws"))
    }
    assert found["access"].remedy.startswith(remedy)
    assert section in found["access"].text


def test_what_apache_reads_as_root_is_roots(short_path: Path) -> None:
    short_path.chmod(0o755)
    file, module = short_path / "apachews.conf", short_path / "mod_wsgi.so"
    for path in (file, module):
        path.touch(0o644)
    files = (str(short_path / "another.conf"), str(file))
    read = Configuration([], {"wsgi_module": str(module)}, frozenset(), RunConfig(), files=files)
    trusted = frozenset({0, os.geteuid()})
    assert levels(check_ownership(read, trusted)) == {"ownership": "ok"}
    for path in (file, module):
        path.chmod(0o666)
        (found,) = check_ownership(read, trusted)
        assert (found.level, found.id) == (Level.WARNING, "ownership")
        assert found.text == f"Apache reads {path} as root, and {path} has mode 0666"
        path.chmod(0o644)


# The machine.


def httpd(**changes: object) -> Httpd:
    values = {
        "pid": os.getpid(),
        "children": (1, 2),
        "uid": 33,
        "descriptor_limit": 8192,
        "descriptors": 20,
        "unit": "apache2.service",
        "renewed_at": 0.0,
    }
    return Httpd(**(values | changes))  # type: ignore[arg-type]


def test_descriptors_are_two_for_each_websocket() -> None:
    assert room(8192) == 4064
    assert room(10) == 0
    assert levels(check_process(httpd(), "", 4064))["descriptors"] == "ok"
    (_, found) = check_process(httpd(), "", 4065)
    assert found.level is Level.WARNING
    assert found.when.startswith("4064 WebSockets")
    assert "/etc/systemd/system/apache2.service.d/apachews.conf" in found.remedy
    (_, found) = check_process(httpd(unit="", descriptor_limit=1024), "", 1000)
    assert "ulimit -n 65536" in found.remedy
    assert levels(check_process(httpd(descriptor_limit=None), "", 1))["descriptors"] == "note"
    assert levels(check_process(None, "/run/a.pid", 1)) == {"running": "warning"}


def test_without_the_right_it_is_unknown_whether_httpd_runs(short_path: Path) -> None:
    (short_path / "pid").touch(0o600)
    short_path.chmod(0o700)
    path = str(short_path / "pid")
    with without_rights(short_path):
        found = levels(check_process(None, path, 1))
    assert found == {"privileges": "note"}
    assert levels(check_process(None, path, 1)) == {"running": "warning"}


@contextmanager
def without_rights(directory: Path) -> Iterator[None]:
    """Remove the rights of this process in a directory."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        directory.chmod(0o000)
        try:
            yield
        finally:
            directory.chmod(0o700)


def test_the_service_to_start_is_the_distributions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, name in ((tmp_path, "apache2"), (tmp_path / "none", "httpd")):
        monkeypatch.setattr(machine, "ETC_APACHE2", place)
        (found,) = check_process(None, "", 1)
        assert found.remedy == f"systemctl start {name}"


LIMITS = """\
Limit                     Soft Limit           Hard Limit           Units
Max processes             7823                 7823                 processes
Max open files            %s                 524288               files
"""


def test_limits_are_read_from_proc() -> None:
    assert limit_in(LIMITS % "1024") == 1024
    assert limit_in(LIMITS % "unlimited") == 1 << 30
    assert limit_in("") is None


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/system.slice/apache2.service\n", "apache2.service"),
        ("12:pids:/system.slice/httpd.service/x\n1:name=systemd:/x\n", "httpd.service"),
        (
            "0::/system.slice/system-apache2.slice/apache2@intern.service\n",
            "apache2@intern.service",
        ),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/x.scope\n", ""),
        ("0::/user.slice/user-0.slice/session-1.scope\n", ""),
        ("0::/\n", ""),
    ],
)
def test_a_unit_is_read_from_its_cgroup(cgroup: str, unit: str) -> None:
    assert unit_in(cgroup) == unit


def test_a_pid_file_of_another_program(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    assert running(str(file)) is None
    file.write_text("no number")
    assert running(str(file)) is None
    file.write_text(f"{os.getpid()}\n")
    assert running(str(file)) is None


DEBIANS_UNIT = """\
LoadState=loaded
KillMode=mixed
PrivateTmp=yes
LimitNOFILESoft=1024
Environment=APACHE_STARTED_BY_SYSTEMD=true
ExecStart={ path=/usr/sbin/apachectl ; argv[]=/usr/sbin/apachectl start ; status=0/0 }
"""
WITH_DROP_IN = DEBIANS_UNIT.replace("mixed", "control-group").replace(
    "SYSTEMD=true", 'SYSTEMD=true "APACHE_ULIMIT_MAX_FILES=ulimit -n 65536"'
)
FEDORAS_UNIT = """\
LoadState=loaded
KillMode=mixed
PrivateTmp=yes
LimitNOFILESoft=1024
Environment=LANG=C
ExecStart={ path=/usr/sbin/httpd ; argv[]=/usr/sbin/httpd -DFOREGROUND ; status=0/0 }
"""


@pytest.mark.parametrize(
    ("text", "drop_in", "descriptors"),
    [
        (DEBIANS_UNIT, "note", "ok"),  # apachectl sets 8192
        (WITH_DROP_IN, "ok", "ok"),
        (FEDORAS_UNIT, "note", "warning"),
    ],
)
def test_units(text: str, drop_in: str, descriptors: str) -> None:
    found = levels(check_unit("apache2.service", parse_properties(text), 1000))
    assert found == {"systemd-drop-in": drop_in, "descriptors-unit": descriptors}


def test_the_drop_in_that_ships_is_enough() -> None:
    shipped = Path(__file__).parents[2] / "deploy/systemd/apache2.service.d/apachews.conf"
    properties = parse_properties(DEBIANS_UNIT)
    for name, value in parse_properties(shipped.read_text()).items():
        properties[name] = value
    found = levels(check_unit("apache2.service", properties, 32_000))
    assert set(found.values()) == {"ok"}


def test_a_private_tmp_hides_sockets(tmp_path: Path) -> None:
    private = {"PrivateTmp": "yes"}
    assert levels(check_visible(None, private, "/tmp/a.ws")) == {"private-tmp": "error"}
    assert levels(check_visible(None, {}, "/tmp/a.ws")) == {"private-tmp": "ok"}
    assert levels(check_visible(None, private, "/run/apachews/a.ws")) == {"private-tmp": "ok"}
    # If httpd runs, its own view decides.
    file = tmp_path / "a.ws"
    file.touch()
    assert levels(check_visible(httpd(), private, str(file))) == {"private-tmp": "ok"}


def test_a_link_into_a_private_tmp(
    short_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "a.ws"
    link.symlink_to("/tmp/apachews-test-absent.ws")
    unit = "apache2.service"
    (found,) = check_visible(None, {"PrivateTmp": "yes"}, str(link))
    assert found.level is Level.ERROR
    assert f"{link}, a link to /tmp/apachews-test-absent.ws" in found.text
    (found,) = check_visible(None, {}, str(link), unit)
    assert (found.id, found.level) == ("private-tmp", Level.WARNING)
    assert f"{link}, a link to /tmp/apachews-test-absent.ws" in found.text
    assert levels(check_visible(None, {}, "/srv/a.ws", unit)) == {"private-tmp": "ok"}
    # Not for us to see whether the running one does: what its unit says counts.
    link.unlink()
    link.symlink_to(short_path / "b.ws")
    (short_path / "b.ws").touch()
    theirs = tmp_path / "proc" / "7" / "root"
    theirs.mkdir(parents=True)
    theirs.chmod(0o700)
    monkeypatch.setattr(machine, "PROC", tmp_path / "proc")
    assert levels(check_visible(httpd(pid=7), {}, str(link))) == {"private-tmp": "error"}


def test_units_with_a_private_tmp_are_told_from_their_files(tmp_path: Path) -> None:
    unit = "apache2.service"
    etc, lib = tmp_path / "etc", tmp_path / "lib"
    for directory in (etc, lib):
        (directory / f"{unit}.d").mkdir(parents=True)
    places = (etc, lib)
    assert not has_private_tmp(unit, places)
    (lib / unit).write_text("[Service]\nPrivateTmp=true\n")
    assert has_private_tmp(unit, places)
    drop_in = etc / f"{unit}.d" / "a.conf"
    drop_in.write_text("[Service]\nPrivateTmp=no\n")
    assert not has_private_tmp(unit, places)
    drop_in.write_text("[Service]\n# PrivateTmp=no\n")
    assert has_private_tmp(unit, places)
    (etc / unit).write_text("[Service]\nRestart=always\n")
    assert not has_private_tmp(unit, places)


def test_another_file_in_apaches_own_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.ws"
    file.touch()
    theirs = tmp_path / "proc" / "7" / "root" / str(file).lstrip("/")
    theirs.parent.mkdir(parents=True)
    monkeypatch.setattr(machine, "PROC", tmp_path / "proc")
    assert levels(check_visible(httpd(pid=7), {}, str(file))) == {"private-tmp": "error"}
    theirs.touch()
    assert levels(check_visible(httpd(pid=7), {}, str(file))) == {"private-tmp": "error"}
    theirs.unlink()
    os.link(file, theirs)
    assert levels(check_visible(httpd(pid=7), {}, str(file))) == {"private-tmp": "ok"}


def test_files_that_httpd_has_not_read_yet(tmp_path: Path) -> None:
    file = tmp_path / "a.conf"
    file.touch()
    os.utime(file, (1000.0, 1000.0))
    assert levels(check_reload(httpd(renewed_at=1001.0), [str(file)])) == {"reload": "ok"}
    (found,) = check_reload(httpd(renewed_at=999.0), ["/nonexistent", str(file)])
    assert (found.level, found.remedy) == (Level.WARNING, "systemctl reload apache2")
    assert list(check_reload(None, [str(file)])) == []


LOGROTATE = """\
# see "man logrotate"
weekly
include /etc/logrotate.d
"/var/log/apache2/*.log" /var/log/other.log {
	daily
	sharedscripts
	prerotate
		if [ -d /x ]; then
			run-parts /x ${Y}
		fi
	endscript
	postrotate
		%s
	endscript
}
/var/log/third.log
{
	missingok
}
"""


def test_blocks_of_logrotate() -> None:
    first, second = rotations(LOGROTATE % "invoke-rc.d apache2 reload")
    assert first[0] == ["/var/log/apache2/*.log", "/var/log/other.log"]
    assert first[1].endswith("invoke-rc.d apache2 reload")
    assert second == (["/var/log/third.log"], "")


@pytest.mark.parametrize(
    ("command", "level"),
    [
        ("invoke-rc.d apache2 reload 2>&1 | logger -t apache2.logrotate", "ok"),
        ("/usr/sbin/apachectl graceful", "ok"),
        ("kill -USR1 $(cat /run/apache2.pid)", "ok"),
        ("/bin/systemctl reload httpd.service > /dev/null 2>/dev/null || true", "ok"),
        ("systemctl restart apache2", "warning"),
        ("/etc/init.d/apache2 restart > /dev/null", "warning"),
        ("systemctl try-restart apache2", "warning"),
        ("apachectl -k restart", "warning"),
        ("kill -HUP `cat /run/apache2.pid`", "warning"),
        ("kill -s HUP $pid", "warning"),
        ("systemctl \\\n    restart apache2", "warning"),
        ("# systemctl restart apache2 would drop all\n\t\tsystemctl reload apache2", "ok"),
        ("apachectl graceful # no restart of apache2", "ok"),
        ("service rsyslog restart", "ok"),
        ("kill -HUP `cat /run/rsyslogd.pid`", "ok"),
        ("systemctl kill -s HUP rsyslog.service", "ok"),
        ("pkill -HUP rsyslogd", "ok"),
        ("service rsyslog restart\n\t\tservice httpd restart", "warning"),
    ],
)
def test_a_rotation_ends_in_a_reload(tmp_path: Path, command: str, level: str) -> None:
    (tmp_path / "apache2").write_text(LOGROTATE % command)
    assert levels(check_logrotate(tmp_path, ["/var/log/apache2/error.log"])) == {"logrotate": level}


def test_logs_that_nothing_rotates(tmp_path: Path) -> None:
    (tmp_path / "apache2").write_text(LOGROTATE % "systemctl restart apache2")
    for logs in (["/srv/error.log"], ["|/usr/bin/rotatelogs x"], []):
        assert levels(check_logrotate(tmp_path, logs)) == {"logrotate": "note"}
    assert levels(check_logrotate(tmp_path / "none", ["/a"])) == {"logrotate": "note"}


CONFINED = ("httpd-profile (enforce)", "unconfined"), ("docker (enforce)", "docker (enforce)")


@pytest.mark.parametrize(("context", "ours"), [*CONFINED, ("httpd (complain)", "unconfined")])
def test_a_profile_of_httpds_own(
    context: str, ours: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("7", context), ("self", ours)):
        (tmp_path / name / "attr").mkdir(parents=True)
        (tmp_path / name / "attr" / "current").write_text(f"{text}\n")
    monkeypatch.setattr(machine, "PROC", tmp_path)
    is_told = (context, ours) == CONFINED[0]
    assert levels(check_confinement(httpd(pid=7))) == (
        {"confinement": "warning"} if is_told else {}
    )
    assert list(check_confinement(httpd(pid=8))) == []


# Sockets.


def test_sockets_are_found_below_a_directory(short_path: Path) -> None:
    (short_path / "ws").mkdir()
    (short_path / "file.ws").touch()
    for name in ("b.ws", "ws/a.ws", "ws/c.sock"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(short_path / name))
    (short_path / "link.ws").symlink_to("ws/c.sock")
    names = [path.removeprefix(f"{short_path}/") for path in sockets_in(str(short_path))]
    assert names == ["b.ws", "link.ws", "ws/a.ws"]
    assert len(sockets_in(str(short_path), limit=1)) == 1
    assert sockets_in(str(short_path / "absent")) == []


def test_a_backlog_that_is_full(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apachews_tools.doctor.site.CONNECT_TIMEOUT_S", 0.05)
    short_path.chmod(0o755)
    path = short_path / "a.ws"
    with socket.socket(socket.AF_UNIX) as sock, socket.socket(socket.AF_UNIX) as first:
        sock.bind(str(path))
        path.chmod(0o666)
        sock.listen(0)
        first.connect(str(path))
        found = levels(check_socket(str(path), SOMEBODY))
    assert found == {"socket": "ok", "socket-permission": "ok", "producer": "error"}


@pytest.mark.skipif(not IS_ROOT, reason="root only: it makes links of other users")
def test_a_link_of_another_user(short_path: Path) -> None:
    short_path.chmod(0o755)
    real = short_path.resolve()
    (real / "run").mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(real / "run" / "a.ws"))
        os.chmod(real / "run" / "a.ws", 0o666)
        sock.listen()
        (real / "alias").symlink_to("run/../run")
        for name, target in (("x.ws", "alias/a.ws"), ("y.ws", f"{real}/x.ws")):
            (real / name).symlink_to(target)
        path = str(real / "y.ws")
        fine = {"socket": "ok", "socket-permission": "ok", "producer": "ok"}
        assert levels(check_socket(path, SOMEBODY)) == fine
        for name in ("y.ws", "x.ws", "alias"):
            os.chown(real / name, 23001, 23001, follow_symlinks=False)
            *_, found = check_socket(path, SOMEBODY)
            assert (found.id, found.level) == ("socket-link", Level.ERROR)
            assert f"the symbolic link {real / name} to {real}/run/a.ws" in found.text
            assert found.remedy.startswith("only if this site")
            assert f"Define APACHEWS_ENDPOINT_DIRECTORIES {real}/run" in found.remedy
            assert levels(check_socket(path, SOMEBODY, True, [f"{real}/alias"])) == fine
            os.chown(real / name, 0, 0, follow_symlinks=False)
        os.chown(real / "y.ws", 23001, 23001, follow_symlinks=False)
        os.chown(real / "run" / "a.ws", 23001, 23001)
        assert levels(check_socket(path, SOMEBODY)) == fine


def test_a_path_with_more_components_than_the_handler_follows(short_path: Path) -> None:
    short_path.chmod(0o755)
    real = short_path.resolve()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(real / "a.ws"))
        os.chmod(real / "a.ws", 0o666)
        sock.listen()
        # The link's own path, and its target.
        own = len((real / "link.ws").parts)
        for components, level in ((64, None), (65, "error")):
            target = "./" * (components - own - 1) + "a.ws"
            (real / "link.ws").unlink(missing_ok=True)
            (real / "link.ws").symlink_to(target)
            findings = list(check_socket(str(real / "link.ws"), SOMEBODY))
            assert levels(findings).get("socket-link") == level
        assert findings[-1].text.endswith(f"has {components} components, with symbolic links")
        assert str(real / "a.ws") in findings[-1].remedy
        # Without links there is no limit.
        deep = real / ("d/" * 70)
        deep.mkdir(parents=True)
        (real / "a.ws").rename(deep / "a.ws")
        assert "socket-link" not in levels(check_socket(str(deep / "a.ws"), SOMEBODY))


def test_a_producer_at_a_path_too_long_for_a_socket(short_path: Path) -> None:
    short_path.chmod(0o755)
    directory = short_path / ("d" * 100)
    directory.mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(short_path / "a.ws"))
        sock.listen()
        moved = (short_path / "a.ws").rename(directory / "a.ws")
        moved.chmod(0o666)
        assert levels(check_socket(str(moved), SOMEBODY))["producer"] == "ok"


LOOPBACK_FILE = loopback.Address(9, bytes(32)).encode()


def test_a_loopback_socket(short_path: Path) -> None:
    path = short_path / "a.ws"
    path.write_bytes(LOOPBACK_FILE)
    me = Account("me", os.geteuid(), frozenset({os.getegid()}))
    path.chmod(0o660)
    found = levels(check_socket(str(path), me))
    assert found == {"socket": "ok", "socket-permission": "ok", "producer": "error"}
    assert sockets_in(str(short_path)) == [str(path)]
    path.chmod(0o664)
    _, found_mode = check_socket(str(path), me)
    assert (found_mode.id, found_mode.level) == ("socket-permission", Level.ERROR)
    assert found_mode.remedy.startswith(f"chmod o= {path}")
    path.chmod(0o600)
    short_path.chmod(0o755)
    _, found_reader, _ = check_socket(str(path), SOMEBODY)
    assert (found_reader.id, found_reader.level) == ("socket-permission", Level.ERROR)
    assert 'transport="loopback", group=<a group of somebody>' in found_reader.remedy


def test_a_loopback_socket_that_may_not_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> tuple[bytes, int]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(loopback, "read_file", refuse)
    path = tmp_path / "a.ws"
    path.write_bytes(LOOPBACK_FILE)
    path.chmod(0o660)
    me = Account("me", os.geteuid(), frozenset({os.getegid()}))
    found = levels(check_socket(str(path), me))
    assert found == {"socket": "ok", "socket-permission": "ok", "privileges": "warning"}
    path.write_bytes(LOOPBACK_FILE[1:] + bytes(10))
    assert levels(check_socket(str(path), me)) == {"socket": "error"}


def test_a_socket_that_lies_beside_is_named(short_path: Path) -> None:
    (short_path / "other.ws").touch()
    for name in ("echo.ws", "numbers.ws"):
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(str(short_path / name))
    for name, near in (
        ("echo", "echo.ws"),
        ("ecko.ws", "echo.ws"),
        ("numbrs.ws", "numbers.ws"),
        ("othr.ws", ""),
        ("x.ws", ""),
    ):
        (found,) = check_socket(str(short_path / name), SOMEBODY)
        assert found.id == "socket"
        assert (f"connect to {near} beside it" in found.remedy) is bool(near)
        assert "start the producer" in found.remedy


def test_a_directory_for_sockets_is_to_be_made(short_path: Path) -> None:
    me = Account("me", os.geteuid() or 40_000, frozenset())
    short_path.chmod(0o755)
    (found,) = check_socket(str(short_path / "a.ws"), SOMEBODY)
    own = f"{short_path}/ws"
    assert f"install -d -o somebody {own}, and Server('{own}/a.ws')" in found.remedy
    (found,) = check_socket(str(short_path / "b" / "a.ws"), SOMEBODY)
    assert found.remedy.startswith(f"install -d -o somebody {short_path}/b, and start the producer")
    short_path.chmod(0o777)
    (found,) = check_socket(str(short_path / "a.ws"), me)
    assert found.remedy == f"start the producer, with Server('{short_path}/a.ws')"


@pytest.mark.parametrize("name", ["index.html", "passwd", ".", "directory.ws"])
def test_nothing_that_a_url_leads_to_is_to_be_removed(name: str, tmp_path: Path) -> None:
    (tmp_path / "directory.ws").mkdir()
    for file in ("index.html", "passwd"):
        (tmp_path / file).touch()
    (found,) = check_socket(str(tmp_path / name), SOMEBODY)
    assert (found.id, found.level) == ("socket", Level.ERROR)
    assert found.remedy == "check the path: the name of a socket ends in .ws"


def test_a_file_in_the_way_of_a_socket_is_to_be_moved(tmp_path: Path) -> None:
    path = tmp_path / "$(reboot).ws"
    path.touch()
    (found,) = check_socket(str(path), SOMEBODY)
    assert found.remedy.startswith(f"move the file '{path}' away, and start the producer")


# The handshake.


@pytest.mark.parametrize(
    ("url", "host", "port", "path", "origin"),
    [
        ("ws://a.example/x.ws?y=1", "a.example", 80, "/x.ws?y=1", "http://a.example"),
        ("wss://a.example/x.ws", "a.example", 443, "/x.ws", "https://a.example"),
        ("https://a.example:8443", "a.example", 8443, "/", "https://a.example:8443"),
        ("ws://[::1]:8080/a.ws", "::1", 8080, "/a.ws", "http://[::1]:8080"),
        ("ws://a/b c%20d.ws", "a", 80, "/b%20c%20d.ws", "http://a"),
        ("ws://a/\r\nX: y", "a", 80, "/X:%20y", "http://a"),
        (
            "ws://b\u00fccher.example/é",
            "xn--bcher-kva.example",
            80,
            "/%C3%A9",
            "http://xn--bcher-kva.example",
        ),
    ],
)
def test_urls(url: str, host: str, port: int, path: str, origin: str) -> None:
    address = Address.parse(url)
    assert (address.host, address.port, address.target, address.origin) == (
        host,
        port,
        path,
        origin,
    )


@pytest.mark.parametrize(
    "url",
    [
        *("a.example/x.ws", "ftp://a/x", "ws://", "ws://a:port/", "/x.ws", "ws://a:0/x.ws"),
        *("ws://a/x.ws#there", "ws://a..b/", f"ws://{'a' * 64}.example/"),
    ],
)
def test_what_is_no_url_is_refused(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(AddressError):
        Address.parse(url)
    assert main(["doctor", url]) == 1
    told = capsys.readouterr().err
    assert url in told or "invalid host name" in told


def test_a_password_is_refused_and_not_repeated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "ws://ann:secret@a/x.ws"]) == 1
    told = capsys.readouterr().err
    assert "list of processes" in told
    assert "secret" not in told


ADDRESS = Address.parse("wss://a.example/x.ws")


def refused_by_the_handler(reason: Reason, body: str = "any words") -> Answer:
    return Answer(reason.status or 403, {"apachews-refused": reason.token}, body)


@pytest.mark.parametrize(
    ("status", "body", "says", "remedy"),
    [
        (200, "<html>", "a page answered instead of the handler", "RewriteRule"),
        (204, "", "a page answered instead of the handler", "RewriteRule"),
        (400, "You're speaking plain HTTP to an SSL-enabled server port.", "for TLS", "wss://"),
        (400, "Bad Request", "does not understand the handshake", "proxy"),
        (401, "", "login", "log in"),
        (403, "<html>", "FollowSymLinks", "Options +FollowSymLinks"),
        (404, "<html>", "not come to the handler", "right virtual host"),
        (500, "<html>", "cannot run the handler", "cannot read"),
        (501, "", "a proxy", "ProxyPass"),
        (503, "<html>", "a proxy", "ProxyPass"),
        (418, "", "does not give this answer", "error log"),
    ],
)
def test_answers_of_other_servers_are_explained(
    status: int, body: str, says: str, remedy: str
) -> None:
    found = explain(ADDRESS, Answer(status, {}, body), None, "AH0: why")
    assert f": {status}: " in found.text
    assert says in found.text
    assert found.text.endswith("the error log says: AH0: why")
    assert remedy in found.remedy


@pytest.mark.parametrize("token", refusals.REASONS)
def test_a_refusal_is_known_by_its_token_whatever_its_words(token: str) -> None:
    reason = refusals.REASONS[token]
    for body in (f"{reason.body}\n", "other words", "<html>", "This page's origin", ""):
        found = explain(ADDRESS, refused_by_the_handler(reason, body), None)
        assert reason.meaning in found.text
        assert found.remedy == reason.remedy
        # A proxy may remove the header; the log of the same machine has the token as well.
        logged = f"apachews: {reason.status or 403} {token} for /x.ws: a fact; a remedy"
        found = explain(ADDRESS, Answer(reason.status or 403, {}, body), None, logged)
        assert reason.meaning in found.text
        assert found.remedy == reason.remedy


def test_the_words_of_a_body_do_not_make_a_refusal() -> None:
    for reason in refusals.REASONS.values():
        found = explain(ADDRESS, Answer(reason.status or 403, {}, f"{reason.body}\n"), None)
        assert reason.meaning not in found.text
    unknown = Answer(404, {"apachews-refused": "of-a-later-version"}, "")
    assert "not come to the handler" in explain(ADDRESS, unknown, None).text


def test_a_websocket_as_error_document_has_the_reason_of_the_first_request() -> None:
    pairs = [("Apachews-Refused", "no-such-endpoint"), ("apachews-refused", "error-document")]
    assert joined([*pairs, ("X", "y")]) == {
        "apachews-refused": "no-such-endpoint, error-document",
        "x": "y",
    }
    assert Answer(404, joined(pairs)).refusal() is refusals.NO_SUCH_ENDPOINT


@pytest.mark.parametrize(
    "cause",
    [cause for cause in CAUSES if cause.marker and not cause.status],
    ids=lambda c: c.marker,
)
def test_what_was_logged_is_known_better_than_the_status(cause: Cause) -> None:
    logged = f"{cause.marker}: and more" + "x" * 400
    found = explain(ADDRESS, Answer(403, {}, "<html>"), None, logged)
    assert cause.meaning in found.text
    assert found.text.endswith("x…")
    assert found.remedy == cause.remedy
    assert cause.marker in TROUBLESHOOTING.read_text()


def test_a_finding_that_is_the_reason_has_the_remedy() -> None:
    denied = error("access", "denied", breaks="b", remedy="line 3")
    closed = error("socket-permission", "closed", breaks="b", remedy="chmod o+x /a")
    refused = Answer(403, {}, "<html>")
    found = explain(ADDRESS, refused, None, "AH00035: access denied", [denied, closed])
    assert "may not enter a directory" in found.text
    assert found.remedy == "chmod o+x /a (socket-permission, above)"
    found = explain(ADDRESS, refused, None, "", [closed])
    assert (found.text, found.remedy) == (
        f"{ADDRESS.url}: 403: closed",
        "chmod o+x /a (socket-permission, above)",
    )
    # The handler has had the request: Require did not deny it.
    found = explain(ADDRESS, refused_by_the_handler(refusals.ORIGIN), None, "", [denied])
    assert "APACHEWS_ORIGINS" in found.remedy
    unpermitted = refused_by_the_handler(refusals.PERMISSION)
    found = explain(ADDRESS, unpermitted, None, "", [denied, closed])
    assert found.remedy == "chmod o+x /a (socket-permission, above)"
    found = explain(ADDRESS, refused, None, "AH00038: no link", [denied])
    assert found.remedy == "Options +FollowSymLinks, for the directory"


def test_the_origin_that_was_asked_for_may_be_refused() -> None:
    answer = refused_by_the_handler(refusals.ORIGIN, "")
    found = explain(ADDRESS, answer, "https://evil.example")
    assert (found.level, found.breaks) == (
        Level.WARNING,
        "no WebSocket for pages of https://evil.example",
    )
    assert explain(ADDRESS, answer, None).level is Level.ERROR
    other = refused_by_the_handler(refusals.NOT_A_SOCKET, "This page's origin may not connect")
    assert explain(ADDRESS, other, "https://evil.example").level is Level.ERROR


def test_a_redirect_leads_to_a_url_for_websockets() -> None:
    answer = Answer(301, {"location": "https://b.example/x.ws"}, "")
    found = explain(ADDRESS, answer, None)
    assert (found.level, found.remedy) == (Level.ERROR, "connect to wss://b.example/x.ws")


@contextmanager
def serving(serve: Callable[[socket.socket, bytes], None]) -> Iterator[Address]:
    """A server that reads one head, and does as it is told."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(DEADLINE_S)

        def accept() -> None:
            client, _ = server.accept()
            with client:
                client.settimeout(DEADLINE_S)
                head = b""
                while b"\r\n\r\n" not in head:
                    head += client.recv(4096)
                serve(client, head)

        thread = threading.Thread(target=accept)
        thread.start()
        yield Address.parse(f"ws://127.0.0.1:{server.getsockname()[1]}/a.ws")
        thread.join(DEADLINE_S)


@contextmanager
def answering(*pieces: bytes) -> Iterator[Address]:
    """A server that answers with the same bytes, whatever comes."""

    def answer(client: socket.socket, head: bytes) -> None:
        for piece in pieces:
            client.sendall(piece)

    with serving(answer) as address:
        yield address


@pytest.mark.parametrize(
    ("answer", "id"),
    [
        (b"", "connect"),
        (b"220 mail ready\r\n\r\n", "connect"),
        (b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: x\r\n\r\n", "handshake"),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: no\r\n\r\n", "handshake"),
        (b"\x15\x03\x01\x00\x02\x02\x50" * 20, "connect"),
    ],
)
def test_servers_that_are_none_of_a_websocket(answer: bytes, id: str) -> None:
    with answering(answer) as address:
        assert levels(check_url(address, timeout_s=DEADLINE_S)) == {id: "error"}


def test_a_port_on_which_nobody_listens() -> None:
    with socket.socket() as sock:  # bound, and never listening
        sock.bind(("127.0.0.1", 0))
        address = Address.parse(f"ws://127.0.0.1:{sock.getsockname()[1]}/a.ws")
        assert levels(check_url(address, timeout_s=DEADLINE_S)) == {"connect": "error"}


def switching(head: bytes) -> bytes:
    """Return the answer that a handshake wants."""
    match = re.search(rb"Sec-WebSocket-Key: (\S+)", head)
    assert match is not None
    accept = hashlib.sha1(match[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nSec-WebSocket-Accept: "
        + base64.b64encode(accept)
        + b"\r\n\r\n"
    )


def test_a_server_that_hangs_up_after_its_answer() -> None:
    is_gone = threading.Event()

    def reset(client: socket.socket, head: bytes) -> None:
        client.sendall(switching(head))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        is_gone.set()

    with serving(reset) as address:
        findings = check_url(address, timeout_s=DEADLINE_S)
        assert next(findings).id == "handshake"
        assert is_gone.wait(DEADLINE_S)
        assert list(findings) == []


def test_a_server_that_trickles_has_the_timeout_in_all() -> None:
    is_enough = threading.Event()

    def trickle(client: socket.socket, head: bytes) -> None:
        until = time.monotonic() + DEADLINE_S
        with contextlib.suppress(OSError):
            while not is_enough.wait(0.02) and time.monotonic() < until:
                client.sendall(b"x")

    with serving(trickle) as address:
        begun_at = time.monotonic()
        (found,) = check_url(address, timeout_s=0.3)
        is_enough.set()
        assert time.monotonic() - begun_at < DEADLINE_S
    assert (found.id, found.text) == ("connect", f"{address.url}: timed out")


# The command.


@pytest.mark.parametrize("text", ["-1", "0", "nan", "inf", "1e9", "soon"])
def test_what_is_no_timeout_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "ws://localhost/a.ws", f"--timeout={text}"])
    assert ended.value.code == 2
    assert f"{text!r}: expected seconds between 0 and 86400" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--ca", "--cafile"])
def test_certificates_to_trust_that_are_not_there(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["doctor", "wss://localhost/a.ws", option]
    assert main([*given, "/nonexistent"]) == 1
    assert capsys.readouterr().err == (
        "apachews doctor: --ca /nonexistent: No such file or directory\n"
    )
    (tmp_path / "empty").touch()
    assert main([*given, str(tmp_path / "empty")]) == 1
    assert "expected certificates in PEM form" in capsys.readouterr().err


def test_without_httpd_it_says_where_to_look(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "--apachectl", "/nonexistent/apachectl"]) == 1
    (found,) = json.loads(capsys.readouterr().out)["findings"]
    assert (found["id"], found["level"]) == ("httpd", "error")
    assert "--apachectl" in found["remedy"]
    with pytest.raises(ControlError, match="not an executable program"):
        Control("/nonexistent/apachectl")


def test_without_httpd_a_url_is_still_tried(capsys: pytest.CaptureFixture[str]) -> None:
    with answering(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n") as address:
        assert main(["doctor", address.url, "--apachectl", "/nonexistent/apachectl"]) == 1
    told = capsys.readouterr().out
    assert re.search(r"^warning  httpd ", told, re.MULTILINE)
    assert re.search(r"^error    handshake ", told, re.MULTILINE)
    assert told.endswith("2 checks: 1 error, 1 warning\n")


def test_an_httpd_that_never_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("apachews_tools.httpd.control.TIMEOUT_S", 0.05)
    program = tmp_path / "apachectl"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    assert main(["doctor", "--apachectl", str(program)]) == 1
    assert "did not exit within 0.05 s" in capsys.readouterr().out


FINDINGS = [
    ok("syntax", "it is good"),
    note("reqtimeout", "harmless"),
    warning("running", "it does not run", breaks="all", remedy="start it"),
    error(
        "access", "denied " + "to everybody " * 8, breaks="b", when="w", remedy="m", where="/c:1"
    ),
]


def test_the_report_is_a_table() -> None:
    lines = report(FINDINGS, None, False).splitlines()
    assert lines[0] == "ok       syntax      it is good"
    assert lines[2] == "warning  running     it does not run"
    assert lines[3] == "                     breaks: all"
    assert lines[4] == "                     when:   always"
    assert lines[7:11] == [
        "                     at:     /c:1",
        "                     breaks: b",
        "                     when:   w",
        "                     remedy: m",
    ]
    assert lines[-1] == "4 checks: 1 error, 1 warning"
    assert report(FINDINGS[:2], None, False).endswith("\n2 checks: nothing is wrong")
    assert report(FINDINGS[:1], None, False).endswith("\n1 check: nothing is wrong")


def test_the_report_fits_a_terminal() -> None:
    lines = report(FINDINGS, 60, False).splitlines()
    assert max(map(len, lines)) <= 60
    text = " ".join(line.strip() for line in lines)
    assert FINDINGS[3].text.strip() in text


def test_the_report_has_colours_on_a_terminal_only() -> None:
    assert "\033[31merror" in report(FINDINGS, 80, True)
    assert "\033" not in report(FINDINGS, 80, False)


def test_what_others_have_said_does_not_steer_the_terminal() -> None:
    rude = "a\033]0;title\007b\nok       fine\u202e"
    told = report(
        [warning("running", rude, breaks=rude, remedy=rude, when=rude, where=rude)], 80, False
    )
    assert told.count("\n") == 5
    assert all(line.isprintable() for line in told.splitlines())
    answer = Answer(301, {"location": "http://b/\033[2J"}, "")
    assert "\033" not in report([explain(ADDRESS, answer, None)], None, False)


@pytest.mark.parametrize(
    ("variables", "has_colours"),
    [({}, True), ({"NO_COLOR": ""}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_colours_are_those_of_all_commands(
    variables: dict[str, str],
    has_colours: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    main(["doctor", "--apachectl", "/nonexistent/apachectl"])
    assert ("\033[" in capsys.readouterr().out) is has_colours


def test_json_is_one_object_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--json", "--apachectl", "/nonexistent/apachectl"])
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["healthy"] is False
