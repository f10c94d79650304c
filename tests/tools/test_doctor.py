"""``apachews doctor``: the server, and the report."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from apachews_tools.cli import main
from apachews_tools.cli.doctor import report
from apachews_tools.doctor.finding import CHECKS, Finding, Level, error, note, ok, warning
from apachews_tools.doctor.handshake import explain
from apachews_tools.doctor.server import check_ownership, check_server, listens_on
from apachews_tools.doctor.site import check_scope
from apachews_tools.doctor.syntax import check_syntax
from apachews_tools.httpd.address import Address
from apachews_tools.httpd.answers import Answer
from apachews_tools.httpd.configuration import Configuration, RunConfig
from apachews_tools.httpd.control import Control, ControlError
from apachews_tools.httpd.directives import IncludedFile, parse_files
from apachews_tools.httpd.mapping import scope_of
from apachews_tools.httpd.permissions import ENTER, READ, WRITE, Account, obstacles
from apachews_tools.httpd.shell import shipped, this_program, word

TROUBLESHOOTING = Path(__file__).parents[2] / "docs" / "howto" / "troubleshooting.md"
SOMEBODY = Account("somebody", 40_000, frozenset({40_000, 40_001}))


def levels(findings: Iterator[Finding] | list[Finding]) -> dict[str, str]:
    return {finding.id: finding.level.value for finding in findings}


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
    assert "\033" not in report([explain(Address.parse("ws://a/b.ws"), answer, None)], None, False)


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
