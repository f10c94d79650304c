"""deploy/docker: what the files name exists, and process 1 of the container stops all others."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from apachews.server import DRAIN_TIMEOUT_S

from ..conftest import wait_for
from ..support.checkout import ignore_patterns
from ..support.site import IS_ROOT, ROOT

DOCKER = ROOT / "deploy" / "docker"
DOCKERFILE = DOCKER / "Dockerfile"
CONTROL = ROOT / "debian" / "control"
HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


def instructions() -> list[list[str]]:
    """Return the instructions of the Dockerfile, as words; continued lines are joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.startswith("#")]
    return [line.split() for line in "\n".join(lines).replace("\\\n", " ").splitlines() if line]


def stages() -> set[str]:
    return {words[3] for words in instructions() if words[0] == "FROM"}


# The Dockerfile.


@pytest.mark.skipif(HADOLINT is None, reason="hadolint is not installed: deploy/test -e archives")
def test_hadolint_finds_nothing() -> None:
    assert HADOLINT
    done = subprocess.run([HADOLINT, DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 0)


def test_the_dockerfile_names_what_exists() -> None:
    for words in instructions():
        if words[0] != "COPY":
            continue
        if words[1].startswith("--from="):
            assert words[1].removeprefix("--from=") in stages()
        else:
            assert all((ROOT / source).exists() for source in words[1:-1]), words
    assert os.access(DOCKER / "apache-foreground", os.X_OK)


def test_the_packages_are_those_of_debian_control() -> None:
    assert ["RUN", "/src/deploy/package"] in instructions()
    assert os.access(ROOT / "deploy" / "package", os.X_OK)
    packages = set(re.findall(r"^Package: (\S+)", CONTROL.read_text(), re.MULTILINE))
    installed = set(re.findall(r"/src/dist/([a-z0-9-]+)_", DOCKERFILE.read_text()))
    assert installed
    assert installed <= packages


def test_no_ignored_file_is_copied() -> None:
    expected = {".git"}
    for pattern in ignore_patterns():
        name = pattern.rstrip("/")
        expected.add(name[1:] if name.startswith("/") else f"**/{name}")
    lines = (DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line for line in lines if not line.startswith("#")} == expected


# compose.yaml.


@pytest.fixture(scope="module")
def compose() -> Any:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: deploy/test -e archives")
    return yaml.safe_load((DOCKER / "compose.yaml").read_text())


def sources_of(service: Any) -> dict[str, str]:
    """Return what is mounted: source by target."""
    return {volume.split(":")[1]: volume.split(":")[0] for volume in service["volumes"]}


def test_compose_names_what_exists(compose: Any) -> None:
    assert set(compose) == {"name", "services", "volumes"}
    for service in compose["services"].values():
        assert (DOCKER / service["build"]["context"]).resolve() == ROOT
        assert ROOT / service["build"]["dockerfile"] == DOCKERFILE
        assert service["build"]["target"] in stages()
        for source in sources_of(service).values():
            assert source in compose["volumes"] or (DOCKER / source).is_dir()


def test_the_page_uses_the_images_that_compose_builds(compose: Any) -> None:
    built = {service["image"] for service in compose["services"].values()}
    page = (ROOT / "docs/howto/docker.md").read_text()
    assert set(re.findall(r"(?:image: |`FROM )([a-z-]+)", page)) == built
    assert set(re.findall(r"--tag ([a-z-]+)", DOCKERFILE.read_text())) == built


def test_the_producer_listens_in_the_volume_of_apache(compose: Any) -> None:
    apache, echo = (sources_of(compose["services"][name]) for name in ("apache", "echo"))
    *_, program, socket = compose["services"]["echo"]["command"]
    directory = Path(program).parent
    assert (DOCKER / echo[str(directory)] / Path(program).name).is_file()
    sockets = str(Path(socket).parent)
    assert echo[sockets] == apache[sockets] == "sockets"
    assert f"Alias /ws {sockets}\n" in (DOCKER / "sockets.conf").read_text()


def test_the_producer_has_time_to_move_its_clients(compose: Any) -> None:
    grace = compose["services"]["echo"]["stop_grace_period"]
    assert float(grace.removesuffix("s")) > DRAIN_TIMEOUT_S


# Process 1.

# Stands for Apache: a child with a session of its own is the custodian, which needs a moment
# for its clients.  The file "held" makes Apache run on; else it exits with status 3.
APACHE = """
import os, pathlib, signal, subprocess, sys, time
custodian = '''
import pathlib, signal, sys, time
def close(*_):
    time.sleep(0.3)
    pathlib.Path("closed").touch()
    sys.exit()
signal.signal(signal.SIGTERM, close)
pathlib.Path("ready").touch()
signal.pause()
'''
subprocess.Popen([sys.executable, "-c", custodian], start_new_session=True)
while not os.path.exists("ready"):
    time.sleep(0.01)
pathlib.Path("arguments").write_text(" ".join(sys.argv[1:]))
pathlib.Path("pid-file-exists").write_text(str(os.path.exists("run/apache2.pid")))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
signal.signal(signal.SIGWINCH, lambda *_: sys.exit(0))
pathlib.Path("started").touch()
if not os.path.exists("held"):
    sys.exit(3)
signal.pause()
"""
ENVVARS = """
export APACHE_RUN_DIR=$PWD/run APACHE_LOCK_DIR=$PWD/lock APACHE_PID_FILE=$PWD/run/apache2.pid
"""


@pytest.fixture
def container(tmp_path: Path) -> Path:
    """A directory with a program apache2, and a pid file of a previous run."""
    if not (IS_ROOT and shutil.which("unshare")):
        pytest.skip("needs root and unshare: it is process 1 of a namespace")
    (tmp_path / "envvars").write_text(ENVVARS)
    apache = tmp_path / "apache2"
    apache.write_text(f"#!{sys.executable}\n{APACHE}")
    apache.chmod(0o755)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "apache2.pid").write_text("1")
    return tmp_path


@contextmanager
def process_1(directory: Path) -> Iterator[subprocess.Popen[str]]:
    """Run apache-foreground as process 1 of a namespace; yield the process that waits for it."""
    command = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    with subprocess.Popen(
        [*command, DOCKER / "apache-foreground", "-e", "info"],
        cwd=directory,
        env={
            "PATH": f"{directory}:{os.environ['PATH']}",
            "APACHE_ENVVARS": str(directory / "envvars"),
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def stop(process: subprocess.Popen[str], number: int) -> None:
    """Send a signal to process 1, as docker stop does."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    os.kill(int(children), number)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGWINCH"])
def test_a_stop_waits_for_custodians(name: str, container: Path) -> None:
    (container / "held").touch()
    with process_1(container) as process:
        wait_for((container / "started").exists)
        assert not (container / "closed").exists()
        stop(process, signal.Signals[name])
        assert process.wait(10) == 0, process.communicate()
    assert (container / "closed").exists()


def test_custodians_stop_when_apache_ends(container: Path) -> None:
    with process_1(container) as process:
        assert process.wait(10) == 3, process.communicate()
    assert (container / "closed").exists()


def test_apache_starts_in_the_foreground_without_an_old_pid_file(container: Path) -> None:
    with process_1(container) as process:
        process.wait(10)
    assert (container / "arguments").read_text() == "-D FOREGROUND -e info"
    assert (container / "pid-file-exists").read_text() == "False"
    assert (container / "lock").is_dir()


def test_it_refuses_to_run_outside_of_a_container(tmp_path: Path) -> None:
    command = [DOCKER / "apache-foreground"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "is not process 1 of a container" in done.stderr
