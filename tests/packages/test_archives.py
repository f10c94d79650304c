"""The source archive and the wheels: their content, their metadata, and that they work."""

from __future__ import annotations

import configparser
import email.message
import email.parser
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from apachews import wire

from ..conftest import wait_for
from ..support.bridge_by_hand import Bridge
from ..support.checkout import (
    copy_checkout,
    files,
    files_of_folder,
    files_of_git,
    ignore_patterns,
)
from ..support.site import ECHO, ROOT

pytest.importorskip("build", reason="build is not installed: deploy/test -e archives")

PACKAGES = ("apachews/", "apachews_handler/", "apachews_tools/")
EXTENSIONS = {
    "apachews_handler/protocol/_mask.abi3.so",
    "apachews_handler/bridge/_pump.abi3.so",
    "apachews_handler/native/_tls_relay.abi3.so",
}
VERSIONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
BUILD_TIMEOUT_S = 100
# A fixture builds more than once.
pytestmark = pytest.mark.timeout(3 * BUILD_TIMEOUT_S)
# Tests that need neither Apache nor the network.
PART_OF_THE_SUITE = (
    "tests/library/test_wire.py",
    "tests/project/test_architecture.py",
    "tests/project/test_language.py",
    "tests/project/test_layers.py",
    "tests/project/test_refusals.py",
    "tests/project/test_systemd_units.py",
)


def attempt(*command: str | Path, cwd: Path, **environment: str) -> tuple[int, str]:
    """Run a command; return its status and its output."""
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=BUILD_TIMEOUT_S,
        check=False,
    )
    return done.returncode, done.stdout


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command that must succeed; return its output."""
    status, output = attempt(*command, cwd=cwd, **environment)
    assert status == 0, output
    return output


def build(source: Path, into: Path, *options: str, **environment: str) -> Path:
    """Build what the options say, without the network; return the directory of the results."""
    environment = {"SOURCE_DATE_EPOCH": "1700000000", "APACHEWS_COMPILE": "0", **environment}
    command = (sys.executable, "-m", "build", "--no-isolation", *options)
    run(*command, "--outdir", into, ".", cwd=source, **environment)
    return into


@dataclass(frozen=True)
class Archives:
    """What ``python -m build`` makes: the source archive, and from it the wheel.

    Attributes:
        checkout: a copy of the checkout, with files that git ignores.
        sdist: the source archive.
        wheel: with the extensions.
        unpacked: the directory of the unpacked source archive.
    """

    checkout: Path
    sdist: Path
    wheel: Path
    unpacked: Path


def add_ignored_files(target: Path) -> list[str]:
    """Create a file for each pattern of .gitignore; return the paths."""
    added = []
    for pattern in ignore_patterns():
        name = pattern.replace("*", "left")
        # A pattern without a leading slash matches in any folder; setuptools writes its
        # egg-info to the root only.
        if not name.startswith("/") and "egg-info" not in name:
            name = f"apachews_tools/{name}"
        if name.endswith("/"):
            name += "left.pyc" if "__pycache__" in name else "left.txt"
        path = target / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        added.append(name.lstrip("/"))
    return added


def make(directory: Path) -> Archives:
    checkout = directory / "checkout"
    checkout.mkdir()
    copy_checkout(checkout)
    add_ignored_files(checkout)
    built = build(checkout, directory / "built")
    (sdist,), (wheel,) = built.glob("*.tar.gz"), built.glob("*.whl")
    run("tar", "-xzf", sdist, cwd=directory)
    return Archives(checkout, sdist, wheel, directory / sdist.name.removesuffix(".tar.gz"))


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Archives:
    return make(tmp_path_factory.mktemp("archives"))


@pytest.fixture(scope="module")
def pure_wheel(archives: Archives, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel that was built without a compiler."""
    directory = tmp_path_factory.mktemp("pure")
    (wheel,) = build(archives.unpacked, directory, "--wheel", CC="/bin/false").glob("*.whl")
    return wheel


def names_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def metadata_of(wheel: Path) -> email.message.Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return email.parser.BytesParser().parsebytes(archive.read(name))


# The source archive.


def test_the_source_archive_is_the_checkout(archives: Archives) -> None:
    unpacked = {
        str(path.relative_to(archives.unpacked))
        for path in archives.unpacked.rglob("*")
        if path.is_file()
    }
    made = {name for name in unpacked if name.startswith("apachews.egg-info/")} | {"PKG-INFO"}
    assert unpacked - made == set(files())


def test_every_file_is_unchanged(archives: Archives) -> None:
    for name in files():
        theirs, ours = archives.unpacked / name, ROOT / name
        assert theirs.stat().st_mode & 0o111 == ours.stat().st_mode & 0o111, name
        # setuptools adds a section to setup.cfg, and drops its comments.
        if name != "setup.cfg":
            assert theirs.read_bytes() == ours.read_bytes(), name


def test_setup_cfg_has_the_same_values(archives: Archives) -> None:
    theirs, ours = configparser.ConfigParser(), configparser.ConfigParser()
    theirs.read(archives.unpacked / "setup.cfg")
    ours.read(ROOT / "setup.cfg")
    theirs.remove_section("egg_info")
    assert {name: dict(theirs[name]) for name in theirs} == {
        name: dict(ours[name]) for name in ours
    }


def test_the_source_archive_tests_itself(archives: Archives) -> None:
    assert not (archives.unpacked / ".git").exists()
    output = run(
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *PART_OF_THE_SUITE),
        cwd=archives.unpacked,
        PYTHONDONTWRITEBYTECODE="1",
    )
    assert re.search(r"^\d+ passed", output, re.MULTILINE), output
    assert "failed" not in output


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is not a checkout of git")
def test_the_files_without_git_are_those_of_git() -> None:
    assert set(files_of_folder()) == {name for name in files_of_git() if (ROOT / name).is_file()}


# The wheel.


def test_the_wheel_has_the_packages_and_nothing_else(archives: Archives) -> None:
    names = names_in(archives.wheel)
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    programs = set(setup["options"]["scripts"].split())
    sources = {name for name in files() if name.startswith(PACKAGES)} - programs
    made_from = {name for name in sources if name.endswith((".c", ".h"))}
    data = {name for name in names if ".data/data/share/apachews/" in name}
    scripts = {name for name in names if ".data/scripts/" in name}
    metadata = {name for name in names if ".dist-info/" in name}
    assert names - data - scripts - metadata == (sources - made_from) | EXTENSIONS
    assert names_of(scripts) == names_of(programs)
    assert names_of(data) == names_of(
        {name for name in files() if name.startswith(("deploy/systemd/", "deploy/logrotate/"))}
    )
    assert names_of(metadata) == {"METADATA", "WHEEL", "RECORD", "top_level.txt", "LICENSE"}


def names_of(paths: set[str]) -> set[str]:
    return {path.rpartition("/")[2] for path in paths}


def test_the_wheel_is_for_all_versions_from_3_10_on(archives: Archives) -> None:
    assert re.search(r"-cp310-abi3-linux_\w+\.whl$", archives.wheel.name)


def test_a_build_without_a_compiler_has_no_extension(archives: Archives, pure_wheel: Path) -> None:
    assert names_in(pure_wheel) == names_in(archives.wheel) - EXTENSIONS


# The wheel with compiled modules.  A build takes a minute: tox makes one for the environment
# ``whole``, and the tests there use it.


def files_below(directory: Path) -> set[Path]:
    return {path for path in directory.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.parametrize("switch", ["", "1"])
def test_a_compiler_that_fails(switch: str, archives: Archives, tmp_path: Path) -> None:
    before = files_below(archives.unpacked)
    command = (sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path)
    status, output = attempt(
        *command, ".", cwd=archives.unpacked, CC="/bin/false", APACHEWS_COMPILE=switch
    )
    assert files_below(archives.unpacked) == before
    if switch:
        assert status
        assert "apachews: the modules cannot be compiled: " in output
        assert not list(tmp_path.iterdir())
    else:
        assert "apachews: modules are interpreted, not compiled: " in output
        (wheel,) = tmp_path.glob("apachews-*-cp310-abi3-*.whl")
        assert names_in(wheel) == names_in(archives.wheel) - EXTENSIONS


def test_a_switch_with_another_value_is_an_error(archives: Archives, tmp_path: Path) -> None:
    command = (sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", tmp_path)
    status, output = attempt(*command, ".", cwd=archives.unpacked, APACHEWS_COMPILE="yes")
    assert status
    assert "APACHEWS_COMPILE is 'yes', but must be 0 or 1" in output


def test_an_editable_installation_compiles_nothing(archives: Archives, tmp_path: Path) -> None:
    program = (
        "import build_backend, sys;"
        "print(build_backend.get_requires_for_build_editable());"
        "print(build_backend.get_requires_for_build_wheel())"
    )
    output = run(sys.executable, "-c", program, cwd=archives.unpacked, APACHEWS_COMPILE="1")
    editable, wheel = output.splitlines()[-2:]
    assert "mypy" not in editable
    assert "'mypy==" in wheel


def test_the_build_has_the_tested_mypy() -> None:
    (pin,) = re.findall(r'^MYPY: Final = "(.*)"$', (ROOT / "build_backend.py").read_text(), re.M)
    environments = configparser.ConfigParser(interpolation=None)
    environments.read(ROOT / "tox.ini")
    for name in ("lint", "archives"):
        assert pin in environments[f"testenv:{name}"]["deps"].split()


@pytest.mark.skipif(
    "APACHEWS_EVERYTHING" not in os.environ, reason="two minutes: deploy/test --everything"
)
def test_two_builds_with_compiled_modules_are_equal(archives: Archives, tmp_path: Path) -> None:
    first, second = (
        build(archives.unpacked, tmp_path / name, "--wheel", APACHEWS_COMPILE="1")
        for name in ("first", "second")
    )
    version = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    (wheel,) = first.glob(f"apachews-*-{version}-{version}-*.whl")
    assert wheel.read_bytes() == (second / wheel.name).read_bytes()
    added = names_in(wheel) - names_in(archives.wheel)
    assert any("__mypyc" in name for name in added)
    assert all(name.endswith(".so") for name in added)


def content_of(sdist: Path) -> dict[str, tuple[int, bytes]]:
    """Return mode and content of each file."""
    with tarfile.open(sdist) as archive:
        opened = {member: archive.extractfile(member) for member in archive}
        return {member.name: (member.mode, file.read()) for member, file in opened.items() if file}


def test_two_builds_are_equal(archives: Archives, tmp_path: Path) -> None:
    again = make(tmp_path)
    assert again.wheel.read_bytes() == archives.wheel.read_bytes()
    assert content_of(again.sdist) == content_of(archives.sdist)


# The metadata.


def test_an_index_accepts_the_metadata(archives: Archives) -> None:
    command = (sys.executable, "-m", "twine", "check", "--strict", archives.sdist, archives.wheel)
    assert run(*command, cwd=archives.checkout, NO_COLOR="1").count("PASSED") == 2


def test_the_description_is_the_readme_without_relative_links(archives: Archives) -> None:
    metadata = metadata_of(archives.wheel)
    assert metadata["Description-Content-Type"] == "text/markdown"
    description = metadata.get_payload()
    assert isinstance(description, str)
    assert not re.search(r"\]\((?!https?:|mailto:|#)|<!--", description)
    readme = (ROOT / "README.md").read_text()
    for heading in re.findall(r"^#+ .*", readme, re.MULTILINE):
        assert heading in description
    for text in re.findall(r"(?<!!)\[([^]]+)\]\((?!https?:)[^)]+\)", readme):
        assert text in description


def test_the_metadata_names_the_tested_versions(archives: Archives) -> None:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    tested = re.findall(r"\bpy3(\d+)\b", tox["tox"]["env_list"])
    metadata = metadata_of(archives.wheel)
    prefix = "Programming Language :: Python :: 3."
    named = [text for text in metadata.get_all("Classifier", []) if text.startswith(prefix)]
    assert [text.removeprefix(prefix) for text in named] == tested
    assert [version.removeprefix("3.") for version in VERSIONS] == tested
    assert metadata["Requires-Python"] == f">=3.{tested[0]}"


# Installed.


def interpreter(version: str) -> str | None:
    """Return the path of a Python of this version, of pyenv or in PATH."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    found = sorted((pyenv / "versions").glob(f"{version}.*/bin/python3"))
    return str(found[-1]) if found else shutil.which(f"python{version}")


def install(python: str, wheel: Path, environment: Path) -> Path:
    """Install the wheel without its dependencies; return the directory of the programs."""
    run(python, "-m", "venv", environment, cwd=wheel.parent)
    programs = environment / "bin"
    options = ("--quiet", "--no-deps", "--no-index", "--no-compile")
    run(programs / "python", "-m", "pip", "install", *options, wheel, cwd=wheel.parent)
    return programs


def link_dependencies(directory: Path) -> Path:
    """Create a directory that has the handler's dependencies, which are pure Python."""
    directory.mkdir()
    for name in ("wsproto", "h11"):
        spec = importlib.util.find_spec(name)
        assert spec and spec.origin
        (directory / name).symlink_to(Path(spec.origin).parent)
    return directory


def echo(python: Path, socket: Path) -> None:
    """Check that the echo producer answers with this interpreter."""
    log = socket.with_suffix(".log")
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [python, ECHO, socket], cwd="/", stdin=subprocess.DEVNULL, stdout=output, stderr=output
        ) as producer,
    ):
        try:
            wait_for(lambda: socket.exists() or producer.poll() is not None)
            assert producer.poll() is None, log.read_text()
            bridge = Bridge(str(socket))
            bridge.send(wire.TEXT, b"hello")
            assert wait_for(bridge.read_available) == ["hello"]
            bridge.socket.close()
        finally:
            producer.terminate()


@pytest.mark.parametrize(
    ("version", "kind"), [*((version, "extensions") for version in VERSIONS), ("3.11", "pure")]
)
def test_an_installed_wheel_works(
    version: str, kind: str, archives: Archives, pure_wheel: Path, short_path: Path
) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"Python {version} is not installed")
    wheel = pure_wheel if kind == "pure" else archives.wheel
    programs = install(python, wheel, short_path / "environment")
    assert "doctor" in run(programs / "apachews", "--help", cwd=short_path)
    program = (
        "from apachews_handler.native import tls_relay;"
        "from apachews_handler.protocol import mask;"
        "import sys;"
        "print(mask.IS_IN_C, tls_relay.is_available, sys.version_info[:2])"
    )
    is_in_c = kind == "extensions"
    expected = f"{is_in_c} {is_in_c} {tuple(map(int, version.split('.')))}\n"
    dependencies = str(link_dependencies(short_path / "dependencies"))
    output = run(programs / "python", "-c", program, cwd=short_path, PYTHONPATH=dependencies)
    assert output == expected
    echo(programs / "python", short_path / "echo.ws")
