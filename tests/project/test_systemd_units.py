"""deploy/systemd: units that systemd understands, each directive with its reason."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from apachews.server import DRAIN_TIMEOUT_S

from ..support.site import ROOT

SYSTEMD = ROOT / "deploy" / "systemd"
FILES = sorted(path for path in SYSTEMD.rglob("*") if path.is_file())
# As far as the drop-in is concerned, Debian's.
APACHE = """
[Unit]
Description=Apache
[Service]
Type=forking
ExecStart=/bin/true
KillMode=mixed
PrivateTmp=true
"""


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd-analyze is not installed")
def test_systemd_understands_them(tmp_path: Path) -> None:
    shutil.copytree(SYSTEMD, tmp_path, dirs_exist_ok=True)
    for service in tmp_path.glob("*.service"):
        service.write_text(service.read_text().replace("/opt/apachews/bin/python", sys.executable))
    (tmp_path / "apache2.service").write_text(APACHE)
    units = (
        *("apachews-producer@chat.service", "apachews-producer@chat.socket"),
        *("apachews-channels@live.service", "apache2.service"),
    )
    result = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *units],
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
        capture_output=True,
        text=True,
        check=False,
    )
    # (What else is installed here may have its own faults.)
    ours = [line for line in result.stderr.splitlines() if re.search("apachews|apache2", line)]
    assert (ours, result.returncode) == ([], 0)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_directive_has_a_comment(path: Path) -> None:
    before = ""
    for line in path.read_text().splitlines():
        if line and line[0] not in "#[":  # those of one group have one reason
            assert before and before[0] != "[", line
        before = line


@pytest.mark.parametrize("name", ["producer", "channels"])
def test_times_are_in_order(name: str) -> None:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.read(SYSTEMD / f"apachews-{name}@.service")
    service = parser["Service"]
    assert float(service["TimeoutStopSec"]) > DRAIN_TIMEOUT_S
    assert float(service["RestartSec"]) < 30 / 3  # APACHEWS_HOLD: there is time for some
    help_text = subprocess.run(
        [sys.executable, "-m", "apachews.runner", "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    start_timeout = re.search(r"listen, on HUP\s+\(default: (\d+)\)", help_text)
    assert start_timeout and float(service["TimeoutStartSec"]) > float(start_timeout[1])
    for option in re.findall(r"--[a-z-]+", service["ExecStart"].partition(" /run/")[0]):
        assert option in help_text


def test_all_of_them_are_installed() -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    data_files = parser["options.data_files"]
    installed = {ROOT / line for text in data_files.values() for line in text.split()}
    assert {*FILES, *(ROOT / "deploy" / "logrotate").iterdir()} <= installed
