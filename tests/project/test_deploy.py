"""deploy/: what the scripts say where something is missing, taken or out of reach."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from apachews_tools.httpd import private_apache

from ..support.site import IS_ROOT, ROOT


def run(script: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run a script that sources lib.sh, with nothing but the given directory on its PATH."""
    return subprocess.run(
        ["/bin/bash", "-c", f". {ROOT}/deploy/lib.sh; {script}", "deploy/demo"],
        env={"PATH": str(path)},
        capture_output=True,
        text=True,
        check=False,
    )


def program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_elsewhere_than_on_debian_it_says_what_to_install(tmp_path: Path) -> None:
    result = run("install_packages apache2-bin openssl", tmp_path)
    assert result.returncode == 1
    assert "this is not Debian" in result.stderr
    assert "apache2-bin openssl" in result.stderr


def test_without_sudo_it_says_what_root_is_to_do(tmp_path: Path) -> None:
    program(tmp_path / "dpkg-query", 'test "$4" = there && echo installed')
    program(tmp_path / "apt-get", "exit 1")
    program(tmp_path / "id", "echo 1000")
    assert run("install_packages there", tmp_path).returncode == 0
    result = run("install_packages there absent", tmp_path)
    assert result.returncode == 1
    assert "as root: apt-get install absent" in result.stderr


@pytest.mark.skipif(not IS_ROOT, reason="root only: it becomes another user")
def test_what_an_install_with_sudo_has_left_is_named(short_path: Path) -> None:
    short_path.chmod(0o755)
    (short_path / "build").mkdir()

    def require(**account: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["/bin/bash", "-c", f"{library}\nrequire_own_leftovers", "deploy/demo"],
            cwd=short_path,
            capture_output=True,
            text=True,
            check=False,
            **account,
        )

    library = (ROOT / "deploy" / "lib.sh").read_text()
    assert require().returncode == 0
    result = require(**private_apache.as_apache_user())
    assert result.returncode == 1
    assert "sudo rm -rf build apachews.egg-info" in result.stderr


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(private_apache.ApacheError, match=f"port {port} cannot be used"):
            private_apache.require_free_port(port)
    private_apache.require_free_port(port)


@pytest.mark.skipif(not IS_ROOT, reason="root only: otherwise Apache is the user itself")
def test_directories_that_apaches_user_cannot_enter_are_named(short_path: Path) -> None:
    closed = short_path / "closed"
    deep = closed / "a" / "b"
    deep.mkdir(parents=True)
    short_path.chmod(0o711)
    closed.chmod(0o700)
    (deep / "file").touch()
    assert private_apache.unreadable_parts([deep / "file", deep]) == [closed]
    closed.chmod(0o701)
    assert private_apache.unreadable_parts([deep / "file"]) == []
    os.chown(closed, private_apache.as_apache_user()["user"], -1)
    closed.chmod(0o100)
    assert private_apache.unreadable_parts([deep / "file"]) == []


def test_the_packages_have_the_version_of_the_distribution() -> None:
    version = re.search(r"^version = (\S+)", (ROOT / "setup.cfg").read_text(), re.MULTILINE)
    assert version
    changelog = (ROOT / "debian/changelog").read_text()
    assert changelog.startswith(f"apachews ({version[1]}) ")
    c = (ROOT / "bindings/c/CMakeLists.txt").read_text()
    assert f"project(apachews VERSION {version[1]} " in c


def test_the_page_names_every_package() -> None:
    page = (ROOT / "docs/howto/packages.md").read_text()
    control = (ROOT / "debian/control").read_text()
    packages = re.findall(r"^Package: (\S+)", control, re.MULTILINE)
    assert len(packages) == 5
    assert [name for name in packages if f"`{name}`" not in page] == []


def test_the_services_of_the_package_run_with_the_systems_python(tmp_path: Path) -> None:
    subprocess.run([ROOT / "debian/services", tmp_path], cwd=ROOT, check=True)
    units = tmp_path / "usr/lib/systemd/system"
    service = (units / "apachews-producer@.service").read_text()
    assert "\nExecStart=/usr/bin/python3 -m apachews.runner --hold" in service
    assert (units / "apache2.service.d/apachews.conf").read_text().count("[Service]") == 1
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        text = path.read_text()
        assert "/opt/apachews" not in text, path
        assert "copy this" not in text, path


def test_a_changed_text_that_is_not_derived_fails_the_build(tmp_path: Path) -> None:
    """A path of an installation with pip must not reach the package unnoticed."""
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    socket_unit = tmp_path / "deploy/systemd/apachews-producer@.socket"
    socket_unit.write_text(f"# Runs /opt/apachews/bin/apachews.\n{socket_unit.read_text()}")
    command = [ROOT / "debian/services", tmp_path / "package"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "/opt/apachews/bin/apachews" in result.stdout
