"""deploy/: what the scripts say where something is missing, taken or out of reach."""

from __future__ import annotations

import argparse
import configparser
import itertools
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from apachews_tools.httpd import private_apache
from apachews_tools.httpd.private_apache import PrivateApache
from apachews_tools.install.debian_module import DebianModule
from deploy.demo import announcement

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


def checkout_files(checkout: Path) -> set[str]:
    """Return the files that a package is built from."""
    script = f'. {ROOT}/deploy/lib.sh; cd "$1"; checkout_files'
    command = ["/bin/bash", "-euo", "pipefail", "-c", script, "bash", str(checkout)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {os.path.normpath(name) for name in output.split("\0") if name}


def git_checkout(path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", path], check=True)
    (path / ".gitignore").write_text("/dist/\n")
    for name in ("kept", "gone"):
        (path / name).touch()
    subprocess.run(["git", "-C", path, "add", "--all"], check=True)


def test_the_files_of_a_checkout_are_those_that_git_does_not_ignore(tmp_path: Path) -> None:
    git_checkout(tmp_path)
    (tmp_path / "gone").unlink()
    (tmp_path / "new").touch()
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "package.deb").touch()
    assert checkout_files(tmp_path) == {".gitignore", "kept", "new"}


@pytest.mark.skipif(not IS_ROOT, reason="root only: it gives files away")
def test_root_lists_the_checkout_of_another_user(tmp_path: Path) -> None:
    git_checkout(tmp_path)
    for path in (tmp_path, tmp_path / ".git"):
        os.chown(path, 1000, 1000)
    assert checkout_files(tmp_path) == {".gitignore", "kept", "gone"}


def test_an_archive_below_a_checkout_has_its_own_files(tmp_path: Path) -> None:
    """Git ignores dist/, and would list nothing there."""
    git_checkout(tmp_path)
    archive = tmp_path / "dist" / "apachews-0.1.0"
    for name in (".ci/run", "README.md", "dist/old.deb", ".venv/x", "tests/__pycache__/x.pyc"):
        (archive / name).parent.mkdir(parents=True, exist_ok=True)
        (archive / name).touch()
    assert checkout_files(archive) == {".ci/run", "README.md"}


def package_version(checkout: Path) -> str:
    """Return the version of packages that are built from a checkout of version 0.1.0."""
    script = f'. {ROOT}/deploy/lib.sh; cd "$1"; package_version 0.1.0'
    command = ["/bin/bash", "-euo", "pipefail", "-c", script, "bash", str(checkout)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return output.split()[0]


def commit(checkout: Path, date: str) -> None:
    options = ("-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(
        ["git", "-C", checkout, *options, "commit", "--quiet", "--allow-empty", "--message=x"],
        env={**os.environ, "GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date},
        check=True,
    )


def test_packages_of_later_commits_have_higher_versions(tmp_path: Path) -> None:
    git_checkout(tmp_path)
    commit(tmp_path, "2026-11-30T12:00:00+0200")
    versions = [package_version(tmp_path)]
    commit(tmp_path, "2026-11-30T12:00:01+0100")
    versions.append(package_version(tmp_path))
    subprocess.run(["git", "-C", tmp_path, "tag", "v0.1.0"], check=True)
    versions.append(package_version(tmp_path))
    commit(tmp_path, "2026-12-01T12:00:00+0000")
    versions.append(package_version(tmp_path))
    assert versions == [
        "0.1.0~git20261130100000",
        "0.1.0~git20261130110001",
        "0.1.0",
        "0.1.0+git20261201120000",
    ]
    for older, newer in itertools.pairwise(["0.1.0~", *versions, "0.1.1~git20261201120000"]):
        subprocess.run(["dpkg", "--compare-versions", older, "lt", newer], check=True)


def test_packages_of_uncommitted_changes_have_the_time_of_the_build(tmp_path: Path) -> None:
    git_checkout(tmp_path)
    commit(tmp_path, "2020-01-01T12:00:00+0000")
    subprocess.run(["git", "-C", tmp_path, "tag", "v0.1.0"], check=True)
    assert package_version(tmp_path) == "0.1.0"
    before = time.strftime("%Y%m%d%H%M%S", time.gmtime())
    (tmp_path / "kept").write_text("changed")
    assert f"0.1.0+git{before}" <= package_version(tmp_path) < "0.1.0+git3"


def test_packages_of_a_source_archive_have_the_version_of_the_release(tmp_path: Path) -> None:
    assert package_version(tmp_path) == "0.1.0"


def run_maintainer_script(name: str, apache: Path, *arguments: str) -> None:
    """Run a script of the package of the module, with another directory for /etc/apache2."""
    text = (ROOT / "debian" / f"libapache2-mod-apachews.{name}").read_text()
    assert "/etc/apache2" in text
    # The rest of postinst changes the system.
    own = text.replace("/etc/apache2", str(apache)).partition("#DEBHELPER#")
    script = own[0] if name == "postinst" else "".join(own)
    subprocess.run(["/bin/sh", "-c", script, name, *arguments], check=True)


@pytest.fixture
def files_of_pip(tmp_path: Path) -> dict[str, str]:
    """The module's files, as ``apachews config --debian`` writes them: name -> text."""
    (tmp_path / "mods-available").mkdir()
    DebianModule(tmp_path).write({".load": "# Depends: wsgi\n", ".conf": "# of pip\n"})
    return texts_in(tmp_path / "mods-available")


def texts_in(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir()}


@pytest.mark.parametrize("action", ["abort-install", "remove"])
def test_an_aborted_installation_restores_the_files_of_pip(
    action: str, tmp_path: Path, files_of_pip: dict[str, str]
) -> None:
    assert set(files_of_pip) == {"apachews.load", "apachews.conf"}
    available = tmp_path / "mods-available"
    run_maintainer_script("preinst", tmp_path, "install")
    assert set(texts_in(available)) == {"apachews.load.dpkg-pip", "apachews.conf.dpkg-pip"}
    run_maintainer_script("postrm", tmp_path, action)
    assert texts_in(available) == files_of_pip


def test_an_installation_removes_the_files_of_pip(
    tmp_path: Path, files_of_pip: dict[str, str]
) -> None:
    available = tmp_path / "mods-available"
    edited = files_of_pip["apachews.conf"] + "# edited\n"
    (available / "apachews.conf").write_text(edited)
    run_maintainer_script("preinst", tmp_path, "install")
    assert set(texts_in(available)) == {"apachews.load.dpkg-pip", "apachews.conf"}
    run_maintainer_script("postinst", tmp_path, "configure")
    assert texts_in(available) == {"apachews.conf": edited}


@pytest.fixture
def simulated(tmp_path: Path) -> Path:
    """A directory for PATH: a simulated dpkg, and an apt that has every package but two."""
    program(tmp_path / "dpkg-query", 'test "$4" = there && echo installed')
    program(
        tmp_path / "apt-cache",
        'case $2 in gone) ;; virtual) echo "  Candidate: (none)" ;;'
        ' *) echo "  Candidate: 1.0-2" ;; esac',
    )
    return tmp_path


@pytest.mark.parametrize(
    ("package", "status"), [("there", 0), ("absent", 0), ("gone", 1), ("virtual", 1)]
)
def test_a_package_is_available_if_apt_has_a_candidate(
    simulated: Path, package: str, status: int
) -> None:
    assert run(f"is_available {package}", simulated).returncode == status


TABLE = re.compile(r"^packages_of\(\) \{\n.*?^\}\n", re.M | re.S)


def test_every_environment_of_tox_has_its_packages() -> None:
    """The table of deploy/test rejects a name that it does not have."""
    (function,) = TABLE.findall((ROOT / "deploy" / "test").read_text())
    configuration = configparser.ConfigParser(interpolation=None)
    configuration.read(ROOT / "tox.ini")
    # (An environment with a point builds a wheel for others.)
    names = re.findall(r"testenv:([^.]\S*)", "\n".join(configuration))
    names += [name.strip() for name in configuration["tox"]["env_list"].split(",")]
    for name in sorted(set(names)):
        result = subprocess.run(
            ["/bin/bash", "-euc", f'{function}packages_of "$1"', "bash", name],
            capture_output=True,
            text=True,
            check=True,
        )
        assert re.fullmatch(r"[a-z0-9.+?\-\s]+", result.stdout), name


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with deploy/ and simulated programs: all packages but mod_python, and a tox.

    The tox lists the environments of ``-e``, and reports how it is run.
    """
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    programs, tox = tmp_path / "bin", tmp_path / ".venv" / "tox" / "bin"
    programs.mkdir()
    tox.mkdir(parents=True)
    program(programs / "dpkg-query", "case $4 in *mod-python*) ;; *) echo installed ;; esac")
    program(programs / "apt-cache", "echo '  Candidate: (none)'")
    program(programs / "apt-get", "exit 1")
    program(programs / "pyenv", "exit 1")
    program(programs / "npm", "exit 1")
    program(programs / "node", "exit 1")
    program(tox / "python", "exit 0")
    program(
        tox / "tox",
        'if [ "$1" = config ]; then echo "$3" | tr , "\\n" | sed "s/^/env_name = /";'
        ' else echo "tox: $*"; exit 3; fi',
    )
    return tmp_path


def deploy_test(checkout: Path, *arguments: str) -> tuple[int, list[str]]:
    """Return the exit status of deploy/test, and the lines of its standard output."""
    result = subprocess.run(
        [checkout / "deploy" / "test", *arguments],
        env={**os.environ, "PATH": f"{checkout / 'bin'}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    return result.returncode, result.stdout.splitlines()


def test_an_environment_without_its_packages_is_skipped_by_name(checkout: Path) -> None:
    status, lines = deploy_test(checkout, "-q", "-e", "lint,modpython,php", "--", "-e", "x")
    assert status == 3
    assert lines[0] == "tox: run -e lint,php -q -- -e x"
    assert re.fullmatch(r"Skipped: modpython: \w+ \w+ has no libapache2-mod-python", lines[1])


def test_it_fails_if_every_environment_is_skipped(checkout: Path) -> None:
    status, (line,) = deploy_test(checkout, "-emodpython")
    assert status == 1
    assert line.startswith("Skipped: modpython: ")


def test_an_environment_that_does_not_exist_is_an_error(checkout: Path) -> None:
    assert deploy_test(checkout, "-e", "lint,debain") == (1, [])


def test_a_run_in_a_chroot_needs_a_command() -> None:
    command = [str(ROOT / "deploy" / "test-on"), "trixie", "--run"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "usage: deploy/test-on trixie --run COMMAND" in result.stderr


def test_a_chroot_without_root_is_skipped(tmp_path: Path) -> None:
    program(tmp_path / "id", "echo 1000")
    result = subprocess.run(
        [ROOT / "deploy" / "test-on", "trixie"],
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.stdout, result.returncode) == ("Skipped: trixie: a chroot needs root\n", 77)


def test_a_build_leaves_nothing_in_the_checkout(tmp_path: Path) -> None:
    """Leftovers of root, after a pip install with sudo, would stop the next build by a user."""
    checkout = tmp_path / "checkout"
    for name in ("apachews", "apachews_handler", "apachews_tools", "deploy"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("*.so"))
    files = ("setup.py", "build_backend.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
    for name in files:
        shutil.copy(ROOT / name, checkout)
    before = sorted(checkout.rglob("*"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps"]
    subprocess.run(
        [*command, "--no-build-isolation", "--wheel-dir", str(tmp_path), "."],
        cwd=checkout,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "APACHEWS_COMPILE": "0"},
        check=True,
    )
    assert list(tmp_path.glob("apachews-*.whl"))
    assert sorted(checkout.rglob("*")) == before


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


def test_the_page_removes_the_copies_that_an_installation_with_pip_has() -> None:
    copied = set()
    for line in (ROOT / "docs/howto/pip.md").read_text().splitlines():
        if re.match(r"sudo (cp|install -D) ", line):
            *sources, target = (word for word in line.split()[2:] if re.search(r"[./]", word))
            names = [Path(source).name for source in sources] if target.endswith("/") else [""]
            copied |= {target + name for name in names}
    page = (ROOT / "docs/howto/packages.md").read_text()
    removals = re.findall(r"^sudo rm .*", page, re.MULTILINE)
    assert set(re.findall(r"/etc/\S+", "\n".join(removals))) == copied
    assert len(copied) == 6


def test_no_page_enables_or_disables_a_pattern_of_units() -> None:
    """systemctl prints a warning then, does nothing, and exits with status 0."""
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        text = page.read_text(errors="replace")
        assert not re.search(r"systemctl (enable|disable|mask|unmask) [^\n]*\*", text), page


def test_the_services_of_the_package_run_with_the_systems_python(tmp_path: Path) -> None:
    subprocess.run([ROOT / "debian/services", tmp_path], cwd=ROOT, check=True)
    units = tmp_path / "usr/lib/systemd/system"
    service = (units / "apachews-producer@.service").read_text()
    assert "\nExecStart=/usr/bin/python3 -m apachews.runner --hold" in service
    channels = (units / "apachews-channels@.service").read_text()
    assert "\nExecStart=/usr/bin/python3 -m apachews.runner --hold -m apachews.ch" in channels
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


@pytest.mark.parametrize(
    ("machines", "is_second", "expected"),
    [
        (1, False, ["running:"]),
        (2, False, ["first of two machines", "127.0.0.1:8080/chat/", "127.0.0.1:8081/chat/"]),
        (1, True, ["running on the second machine"]),
    ],
)
def test_the_demo_names_its_machines_and_the_chat_of_the_second(
    machines: int, is_second: bool, expected: list[str]
) -> None:
    apache = SimpleNamespace(port=8080, tls_port=8443, root="/tmp/demo")
    arguments = argparse.Namespace(machines=machines, second=is_second)
    text = announcement(cast(PrivateApache, apache), arguments)
    assert all(part in text for part in expected)
    assert ("8081" in text) == (machines == 2)
