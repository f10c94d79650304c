"""``apachews doctor``: the running httpd, its unit, logrotate and confinement."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from apachews_tools.doctor import machine
from apachews_tools.doctor.finding import Level
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
from apachews_tools.httpd.process import Httpd, limit_in, running, unit_in

from .test_doctor import levels, without_rights


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
