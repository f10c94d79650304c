"""monitoring.close_log and log_file: lines as in httpd's logs, whatever the values are."""

from __future__ import annotations

import datetime
import os
import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apachews import wire
from apachews_handler.exceptions import BadSetting
from apachews_handler.monitoring import log_file
from apachews_handler.monitoring.close_log import (
    _DIRECTIVES,
    DEFAULT_FORMAT,
    MAX_VALUE_BYTES,
    BadFormat,
    Ending,
    Handshake,
    escape,
    parse_format,
)
from apachews_handler.settings import parse_settings

from ..support.site import IS_ROOT, ROOT
from .test_bridge import Lines

MANUAL = ROOT / "docs" / "reference" / "configuration.md"
OPENED = datetime.datetime(2026, 3, 4, 5, 6, 7, 250_000).astimezone()
ZONE = f"{OPENED:%z}"
ENVIRON = {
    "SERVER_PROTOCOL": "HTTP/1.1",
    "QUERY_STRING": "a=1",
    "HTTP_REFERER": "http://example.org/",
    "HTTP_USER_AGENT": 'Moz "illa"',
    "HTTP_X_EVIL": "a\nb\x7f\xfc",
    "CONTENT_TYPE": "text/x",
    "VARIABLE": "value",
    "wsgi.errors": object(),
}
OPEN = wire.Open(
    id="7f0c",
    uri="/chat.ws?a=1",
    remote=("203.0.113.7", 51514),
    local=("192.0.2.1", 443),
    scheme="wss",
    user="ann",
    vhost="example.org",
)


def line(format_: str, open_: wire.Open = OPEN, **ending: Any) -> str:
    facts: dict[str, Any] = {
        "code": 1000,
        "reason": "",
        "by": "client",
        "name": "CLIENT_CLOSED",
        "after_s": 12.3456789,
        "at": OPENED.timestamp() + 12.345,
        "traffic": (1, 20, 3, 400),
        "round_trip_s": 0.0251,
        "pid": 99,
    }
    begun = parse_format(format_).begin(
        Handshake(ENVIRON, open_, "chat.v2", "/srv/chat.ws", OPENED.timestamp())
    )
    written = begun.finish(Ending(**facts | ending)).decode("ascii")
    assert written.endswith("\n")
    return written[:-1]


def test_the_default_begins_as_the_combined_format() -> None:
    assert line(DEFAULT_FORMAT) == (
        f'203.0.113.7 - ann [04/Mar/2026:05:06:07 {ZONE}] "GET /chat.ws?a=1 HTTP/1.1" 1000 400'
        ' "http://example.org/" "Moz \\"illa\\"" CLIENT_CLOSED 12345 1 20 3 400'
    )


@pytest.mark.parametrize(
    ("format_", "text"),
    [
        ("100%% text", "100% text"),
        (r"a\tb\\c\"d", 'a\tb\\c"d'),
        ("%a %h %A %p", "203.0.113.7 203.0.113.7 192.0.2.1 443"),
        ("%{remote}p", "51514"),
        ("%l %u %v", "- ann example.org"),
        ("%r", "GET /chat.ws?a=1 HTTP/1.1"),
        ("%U %q", "/chat.ws ?a=1"),
        ("%s %>s %<s %{code}x", "1000 1000 1000 1000"),
        ("%b %P", "400 99"),
        ("%T %{ms}T", "12 12345"),
        ("%{VARIABLE}e %{NONE}e %{wsgi.errors}e", "value - -"),
        ("%{Content-Type}i %{x-evil}i", r"text/x a\nb\x7f\xfc"),
        ("%t", f"[04/Mar/2026:05:06:07 {ZONE}]"),
        ("%{end}t", f"[04/Mar/2026:05:06:19 {ZONE}]"),
        ("%{by}x %{name}x %{reason}x", "client CLIENT_CLOSED -"),
        ("%{messages_in}x %{bytes_in}x %{messages_out}x %{bytes_out}x", "1 20 3 400"),
        ("%{id}x %{scheme}x %{subprotocol}x", "7f0c wss chat.v2"),
        ("%{endpoint}x %{round_trip}x", "/srv/chat.ws 0.025100"),
    ],
)
def test_directives(format_: str, text: str) -> None:
    assert line(format_) == text


def test_what_is_not_there_is_a_dash() -> None:
    unknown = wire.Open(id="", uri="", remote=("", 0))
    assert line("%h %{remote}p %u %v", unknown) == "- - - -"
    assert line("%b %{round_trip}x", traffic=(0, 0, 0, 0), round_trip_s=None) == "- -"


def test_a_socket_files_name_is_its_bytes() -> None:
    begun = parse_format("%{endpoint}x").begin(
        Handshake(ENVIRON, OPEN, None, os.fsdecode(b"/\xc3\xa9\xff.ws"), 0.0)
    )
    ending = Ending(1000, "", "client", "X", 0.0, 0.0, (0, 0, 0, 0), None, 1)
    assert begun.finish(ending) == rb"/\xc3\xa9\xff.ws" + b"\n"


def test_a_reason_is_utf_8() -> None:
    assert line("%{reason}x", reason='grün "\U0001f642"\n') == (
        r"gr\xc3\xbcn \"\xf0\x9f\x99\x82\"\n"
    )


@pytest.mark.parametrize(
    ("format_", "what"),
    [
        ("", "empty"),
        ("%", "unknown directive %"),
        ("%Z", "unknown directive %Z"),
        ("%{x}Z", "unknown directive %{x}Z"),
        ("%{}i", "unknown directive %{}i"),
        ("%i", "unknown directive %i"),
        ("%{code}s", "unknown directive %{code}s"),
        ("%{cookie}x", "unknown directive %{cookie}x"),
        ("%{min}T", "unknown directive %{min}T"),
        ("%{%Y-%m-%d}t", "unknown directive %{%Y-%m-%d}t"),
        ("%{far}p", "unknown directive %{far}p"),
        ("%400,501{Referer}i", "unknown directive %4"),
        ("%{unfinished", "unknown directive %{"),
        ("a\nb", r"'\n'"),
        ("é", "'é'"),
    ],
)
def test_a_bad_format_is_a_bad_setting(format_: str, what: str) -> None:
    with pytest.raises(BadFormat, match=re.escape(what)):
        parse_format(format_)
    with pytest.raises(BadSetting) as caught:
        parse_settings({"APACHEWS_CLOSE_LOG_FORMAT": format_})
    assert what in caught.value.logged
    assert "docs/reference/configuration.md" in caught.value.logged


@given(st.text())
def test_no_value_leaves_its_line_or_its_quotes(text: str) -> None:
    escaped = escape(text)
    assert escaped.isascii() and escaped.isprintable()
    assert not re.search(r'(?<!\\)(?:\\\\)*"', escaped), "a quote that is not escaped"
    assert re.fullmatch(r"(?:[^\\]|\\[bntvfr\"\\]|\\x[0-9a-f]{2})*", escaped)
    assert len(escaped) <= 4 * MAX_VALUE_BYTES


@given(st.text(st.characters(max_codepoint=255), max_size=200))
def test_what_is_escaped_can_be_read_again(text: str) -> None:
    if text not in ("", "-"):
        data = escape(text).encode("ascii").decode("unicode_escape")
        assert data == text


@given(st.text(max_size=40))
def test_any_format_is_read_or_refused(format_: str) -> None:
    try:
        written = line(format_)
    except BadFormat:
        return
    assert "\n" not in written


@given(reason=st.text(), uri=st.text(), user=st.text())
def test_the_fields_of_a_line_stay_where_they_are(reason: str, uri: str, user: str) -> None:
    written = line('"%r" "%u" "%{reason}x"', wire.Open(id="", uri=uri, user=user), reason=reason)
    assert len(re.findall(r'"(?:[^"\\]|\\.)*"', written)) == 3
    assert re.fullmatch(r'"(?:[^"\\]|\\.)*" "(?:[^"\\]|\\.)*" "(?:[^"\\]|\\.)*"', written)


def test_the_manual_lists_every_directive() -> None:
    text = MANUAL.read_text()
    table = text.partition("## The log of closes")[2].partition("\n## ")[0]
    documented = set(re.findall(r"`%((?:\{[^}`]*\})?[A-Za-z])`", table))
    assert documented == set(_DIRECTIVES) | {"{NAME}i", "{NAME}e"}


@pytest.fixture(autouse=True)
def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_file, "_broken", set())


def test_lines_are_added_and_a_file_may_be_moved_away(tmp_path: Path) -> None:
    path, log = tmp_path / "close.log", Lines()
    before = os.umask(0o022)
    try:
        for number in range(2):
            log_file.append(str(path.parent), str(path), b"%d\n" % number, log)
    finally:
        os.umask(before)
    assert path.read_bytes() == b"0\n1\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.rename(tmp_path / "close.log.1")
    log_file.append(str(path.parent), str(path), b"2\n", log)
    assert path.read_bytes() == b"2\n"
    assert log.lines == []


def test_what_is_wrong_is_said_once_with_its_mend(tmp_path: Path) -> None:
    directory = tmp_path / "none"
    path, log = directory / "close.log", Lines()
    for _ in range(3):
        log_file.append(str(path.parent), str(path), b"x\n", log)
    ((level, text),) = log.lines
    assert level == "error"
    assert text.startswith(f"APACHEWS_CLOSE_LOG {path} cannot be written: No such file")
    assert text.endswith(f" -m 2750 {directory}")
    directory.mkdir()
    log_file.append(str(path.parent), str(path), b"y\n", log)
    assert path.read_bytes() == b"y\n"
    assert [level for level, _ in log.lines] == ["error", "notice"]


def test_a_name_is_bytes_whatever_the_locale(tmp_path: Path) -> None:
    log = Lines()
    log_file.append(str(tmp_path), str(tmp_path / "\xc3\xa9.log"), b"x\n", log)  # as WSGI has it
    assert os.listdir(os.fsencode(tmp_path)) == ["é.log".encode()]
    for name in ("\u20ac.log", "\0.log"):  # which it never has
        log_file.append(str(tmp_path), str(tmp_path / name), b"x\n", log)
    assert len(log.lines) == 2


def test_a_link_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "app.php").touch()
    (tmp_path / "x.log").symlink_to(tmp_path / "app.php")
    log = Lines()
    log_file.append(str(tmp_path), str(tmp_path / "x.log"), b"<?php\n", log)
    assert (tmp_path / "app.php").read_bytes() == b""
    assert "it is a symbolic link" in log.lines[0][1]


def test_directories_on_the_way_are_no_links(tmp_path: Path) -> None:
    logs, elsewhere = tmp_path / "logs", tmp_path / "elsewhere"
    for directory in (logs / "site" / "deep", elsewhere):
        directory.mkdir(parents=True)
    log = Lines()
    log_file.append(f"{logs}/", f"{logs}/site/deep/x.log", b"x\n", log)
    assert (logs / "site" / "deep" / "x.log").read_bytes() == b"x\n"
    (logs / "site" / "link").symlink_to(elsewhere)
    log_file.append(str(logs), f"{logs}/site/link/x.log", b"x\n", log)
    assert list(elsewhere.iterdir()) == []
    assert "a symbolic link in the place of a directory" in log.lines[0][1]
    # The directory itself is the administrator's: it may be a link.
    (tmp_path / "named").symlink_to(elsewhere)
    log_file.append(f"{tmp_path}/named", f"{tmp_path}/named/x.log", b"y\n", log)
    assert (elsewhere / "x.log").read_bytes() == b"y\n"
    assert len(log.lines) == 1


def test_nobody_is_waited_for(tmp_path: Path) -> None:
    """A pipe that nobody reads, and a full disk."""
    log = Lines()
    os.mkfifo(tmp_path / "pipe")
    log_file.append(str(tmp_path), str(tmp_path / "pipe"), b"x\n", log)
    log_file.append("/dev", "/dev/full", b"x\n", log)
    assert len(log.lines) == 2
    assert "No space left" in log.lines[1][1]


@pytest.mark.skipif(
    not IS_ROOT or not shutil.which("logrotate"), reason="needs root, and apt-get install logrotate"
)
def test_logrotate_understands_its_file(short_path: Path) -> None:
    logs = short_path / "logs"
    logs.mkdir(mode=0o750)
    shutil.chown(logs, "www-data", "adm")
    short_path.chmod(0o755)
    (logs / "websocket.log").write_text("a line\n")
    shutil.chown(logs / "websocket.log", "www-data", "adm")
    snippet = (ROOT / "deploy" / "logrotate" / "apachews").read_text()
    configuration = short_path / "apachews"
    configuration.write_text(snippet.replace("/var/log/apachews", str(logs)))
    subprocess.run(
        ["logrotate", "--force", "--state", str(short_path / "state"), str(configuration)],
        check=True,
        capture_output=True,
    )
    assert (logs / "websocket.log.1").read_text() == "a line\n"
