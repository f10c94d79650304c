"""After an upgrade of the system's Python: the packages of apachews are those of another Python."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

from apachews.monitoring import refusals
from apachews_tools.cli import main
from apachews_tools.httpd.private_apache import PrivateApache

from ..support.site import HANDLER, ROOT, configured_apache, running_without_path
from .test_answers import listening
from .test_doctor import doctor

LAUNCHER = ROOT / "apachews_tools" / "cli" / "apachews"
PAGE = "docs/howto/after-a-system-upgrade.md"
# Another minor version than that of the tests.
OTHER = "python3.9"


@pytest.fixture
def environment(short_path: Path, request: pytest.FixtureRequest) -> Path:
    """A virtual environment of this Python, without packages, and with the launcher.

    Indirect parametrization names its directory.
    """
    short_path.chmod(0o755)
    place = short_path / getattr(request, "param", "apachews")
    make = [sys.executable, "-m", "venv", "--without-pip", str(place)]
    subprocess.run(make, check=True, capture_output=True)
    shutil.copy(LAUNCHER, place / "bin" / "apachews")
    return place


def install(environment: Path, python: str) -> Path:
    """Install the packages for a version of Python; return their directory."""
    packages = environment / "lib" / python / "site-packages"
    packages.mkdir(parents=True, exist_ok=True)
    # Those of the environment of the tests: the checkout's have no extensions.
    installed = Path(sysconfig.get_path("purelib"))
    for name in ("apachews", "apachews_handler", "apachews_tools", "wsproto", "h11"):
        shutil.copytree(installed / name, packages / name)
    return packages


def this_python() -> str:
    return f"python{sysconfig.get_python_version()}"


def run(environment: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Without the variables of the tests, which could name their packages.
    return subprocess.run(
        [environment / "bin" / "apachews", *arguments],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"]},
        check=False,
    )


def test_the_launcher_runs_the_command(environment: Path) -> None:
    install(environment, this_python())
    done = run(environment, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: apachews" in done.stdout
    # A link, as /usr/local/bin/apachews, leads to the Python beside its target.
    link = environment.parent / "link"
    link.symlink_to(environment / "bin" / "apachews")
    done = subprocess.run([link, "publish"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "the following arguments are required: PATH" in done.stderr


def test_the_launcher_shows_a_mistake_of_its_own_packages(environment: Path) -> None:
    packages = install(environment, this_python())
    shutil.rmtree(packages / "apachews")
    done = run(environment, "doctor")
    assert done.returncode == 1
    assert "ModuleNotFoundError: No module named 'apachews'" in done.stderr


@pytest.mark.parametrize("arguments", [[], ["doctor"], ["config", "--debian"]])
def test_a_command_of_an_environment_whose_python_has_changed(
    arguments: list[str], environment: Path
) -> None:
    install(environment, OTHER)
    done = run(environment, *arguments)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"apachews: {environment} has apachews for Python 3.9, but")
    assert f"python3 -m venv {environment}" in line
    assert f"{environment}/bin/apachews config --debian" in line
    assert PAGE in line


def test_a_command_of_an_environment_whose_python_is_gone(environment: Path) -> None:
    install(environment, OTHER)
    python = environment / "bin" / "python3"
    python.unlink()
    python.symlink_to("/usr/bin/python3.0")
    done = run(environment, "doctor")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"apachews: the Python of {environment} does not exist any more")
    assert f"rm {environment}/bin/python* && " in line
    assert PAGE in line


@pytest.mark.parametrize("environment", ["apachews", "admin's own"], indirect=True)
@pytest.mark.parametrize("python", [sys.executable, "/usr/bin/python3.0"])
def test_the_remedy_makes_the_environment_work_again(python: str, environment: Path) -> None:
    install(environment, OTHER)
    link = environment / "bin" / "python3"
    link.unlink()
    link.symlink_to(python)
    program = environment / "echo.py"
    program.touch()
    line = run(environment).stderr
    again = re.search(r"make it again: (.*?), then install", line)
    assert again is not None
    # The python3 of PATH may lack ensurepip, and is not that of these tests.
    command = again[1].replace("sudo ", "").replace("python3 -m venv", "$PYTHON -m venv")
    subprocess.run(
        command,
        shell=True,
        check=True,
        capture_output=True,
        env={"PATH": os.environ["PATH"], "PYTHON": f"{sys.executable}"},
    )
    install(environment, this_python())
    assert run(environment, "--help").returncode == 0
    assert program.exists()


def test_a_python_without_apachews(environment: Path) -> None:
    done = run(environment, "doctor")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("apachews: not installed for Python 3.")
    assert PAGE in line


@contextmanager
def upgraded_apache(environment: Path, handler: Path) -> Iterator[PrivateApache]:
    apache = configured_apache(PrivateApache, environment.parent, handler, environment)
    with running_without_path(apache), listening(apache.docroot / "echo.ws"):
        yield apache


def test_the_handler_refuses_with_the_reason(
    environment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packages = install(environment, OTHER)
    with upgraded_apache(environment, packages / "apachews_handler") as apache:
        for _ in range(2):
            answer = requests.get(f"http://127.0.0.1:{apache.port}/echo.ws", timeout=10)
            assert answer.status_code == 500
            assert answer.headers[refusals.HEADER] == refusals.NO_PACKAGES.token
        log = apache.error_log
        assert main(["connect", f"ws://127.0.0.1:{apache.port}/echo.ws"]) == 1
    assert "after an upgrade of the system, install again" in capsys.readouterr().err
    line = next(line for line in log.splitlines() if "500 no-packages for /echo.ws: " in line)
    assert "does not find apachews" in line
    assert str(packages) in line
    assert PAGE in line
    # Each child says so when it starts, and the log has no traceback of this file.
    assert "apachews: no WebSockets: mod_wsgi's Python" in log
    assert not re.search(r'wsgi\.py", line', log)


def test_the_handler_finds_its_entry_points() -> None:
    """The file for mod_wsgi, in the Python that has the packages."""
    spec = importlib.util.spec_from_file_location("_mod_wsgi_test", HANDLER / "wsgi.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.handle_request.__module__ == "apachews_handler.entry_points"
    assert module.application.__module__ == "apachews_handler.entry_points"


def test_the_doctor_describes_the_installation(
    environment: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packages = install(environment, this_python())
    with upgraded_apache(environment, packages / "apachews_handler") as apache:
        assert doctor(capsys, apache) == (0, [])
        told = verbose(capsys, apache)
        version = sysconfig.get_python_version()
        assert told["installation"] == (
            f"Apache uses the installation by pip in {environment}, for Python {version}"
        )
        assert told["extensions"] == "the C extensions are built: _mask, _pump, _tls_relay"
        form = "compiled" if list(packages.glob("apachews/*__mypyc*.so")) else "interpreted"
        assert told["compiled"].startswith(f"the modules that messages pass are {form}")
        for extension in packages.rglob("_*.abi3.so"):
            extension.unlink()
        status, (finding,) = doctor(capsys, apache)
        assert (status, finding["id"], finding["level"]) == (0, "extensions", "warning")
        assert finding["text"] == "not built: _mask, _pump, _tls_relay"
        assert "gcc python3-dev" in finding["remedy"]


def verbose(capsys: pytest.CaptureFixture[str], apache: PrivateApache) -> dict[str, str]:
    """Return the doctor's findings of every level: id -> text."""
    program, *rest = apache.command()
    given = ["--json", "--verbose", "--apachectl", program, "--httpd-arguments", *rest]
    main(["doctor", *given])
    findings = json.loads(capsys.readouterr().out)["findings"]
    return {finding["id"]: finding["text"] for finding in findings}
