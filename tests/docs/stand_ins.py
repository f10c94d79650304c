"""Replacements for programs that a page's commands need and that do not work in a sandbox.

    python stand_ins.py apt-get|apt|sudo|systemctl|pip|deploy ARG…

Standard library only: they run like the commands of a page, with Debian's Python.

- ``apt-get``: unpacks Debian's ``apache2`` and enables the modules that its postinst enables;
  all other packages are installed already, or the test is skipped.
- ``apt install ./dist/*.deb``: puts the files of the test's environment into the places of the
  packages of apachews.  (tests/packages builds and installs the packages themselves.)
- ``deploy/package`` and ``pip wheel``: do nothing, for ``apt`` and ``pip install`` do the rest.
- ``sudo``: runs the command, with ``-u`` as that user; ``pip install`` copies the packages of
  the test's environment, because the sandbox has no network.
- ``systemctl``: starts and signals Apache by ``apache2ctl`` as its unit does, and
  producers as their units say; ``unit NAME`` is systemd for one of these.
"""

from __future__ import annotations

import configparser
import os
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

UNITS = (Path("/etc/systemd/system"), Path("/usr/lib/systemd/system"))
DEPLOY = Path(os.environ.get("STAND_IN_DEPLOY", ""))
STATE = Path("/run/stand-ins")
PID_FILE = Path("/run/apache2/apache2.pid")
DEADLINE_S = 30.0
MODULES = """authz_host auth_basic access_compat authn_file authz_user alias dir autoindex env
    mime negotiation setenvif filter deflate status reqtimeout mpm_event"""
CONFIGURATIONS = "charset localized-error-pages other-vhosts-access-log security serve-cgi-bin"


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"timeout while waiting for {what}")
        time.sleep(0.02)


def apt_get(arguments: Sequence[str]) -> None:
    if "apache2" not in arguments or Path("/etc/apache2/apache2.conf").exists():
        return
    shutil.copytree(os.environ["STAND_IN_APACHE"], "/", symlinks=True, dirs_exist_ok=True)
    for command, names in (("a2enmod", MODULES), ("a2enconf", CONFIGURATIONS)):
        subprocess.run([command, "-q", *names.split()], check=True)
    subprocess.run(["a2enmod", "-q", "wsgi"], check=True)
    subprocess.run(["a2ensite", "-q", "000-default"], check=True)
    Path("/var/www/html").mkdir(parents=True, exist_ok=True)
    systemctl(["start", "apache2"])


def apt(arguments: Sequence[str]) -> None:
    """Install the packages of apachews, as ``apt install ./dist/*.deb``."""
    assert list(arguments) == ["install", "./dist/*.deb"], arguments
    apt_get(["install", "apache2"])
    modules = Path("/usr/lib/python3/dist-packages")
    copy_packages(modules)
    write_program(Path("/usr/bin/apachews"), "/usr/bin/python3")
    available = Path("/etc/apache2/mods-available")
    (available / "apachews.load").write_text("# Depends: wsgi\n")
    (available / "apachews.conf").write_text(
        f"Define APACHEWS_HANDLER {modules}/apachews_handler\n"
        f"Include {modules}/apachews_tools/httpd/apachews.conf\n"
    )
    units = UNITS[1]
    for source in DEPLOY.glob("systemd/apachews-producer@.*"):
        text = source.read_text().replace("/opt/apachews/bin/python", "/usr/bin/python3")
        (units / source.name).write_text(text)
    Path("/etc/apachews/producers").mkdir(parents=True, exist_ok=True)
    shutil.copy(DEPLOY / "systemd" / "apachews.tmpfiles.conf", "/usr/lib/tmpfiles.d/apachews.conf")
    subprocess.run(["systemd-tmpfiles", "--create", "apachews.conf"], check=True)


def sudo(arguments: Sequence[str]) -> None:
    if arguments[0].endswith("/bin/pip"):
        install(Path(arguments[0]).parents[1])
        return
    user = ["--reuid=0"]
    if arguments[0] == "-u":
        user = [f"--reuid={arguments[1]}", f"--regid={arguments[1]}", "--init-groups"]
        arguments = arguments[2:]
    if list(arguments[:3]) == ["python3", "-m", "venv"]:
        create_environment(Path(arguments[3]))
        return
    os.execvp("setpriv", ["setpriv", *user, *arguments])


def create_environment(home: Path) -> None:
    """Create an environment; its pip is slow, and is replaced."""
    subprocess.run(["python3", "-m", "venv", "--without-pip", home], check=True)
    (home / "bin" / "pip").symlink_to(shutil.which("pip") or "")


def pip(arguments: Sequence[str]) -> None:
    """Build wheels: nothing, because ``sudo pip install`` copies the packages."""
    assert arguments[0] == "wheel", arguments


def install(home: Path) -> None:
    """Copy the packages into an environment, as pip would."""
    copy_packages(next(home.glob("lib/python*/site-packages")))
    write_program(home / "bin" / "apachews", f"{home}/bin/python")
    for name in ("systemd", "logrotate"):
        target = home / "share" / "apachews" / name
        shutil.copytree(DEPLOY / name, target, dirs_exist_ok=True)


def copy_packages(directory: Path) -> None:
    for package in os.environ["STAND_IN_PACKAGES"].split(":"):
        target = directory / Path(package).name
        # As dpkg and pip, which remove files before they create new ones: a child of Apache
        # that has an extension mapped would crash if that file were written over.
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(package, target)


def write_program(program: Path, python: str) -> None:
    """Write the command ``apachews``."""
    program.write_text(
        f"#!{python}\nimport sys\nfrom apachews_tools.cli import main\nsys.exit(main())\n"
    )
    program.chmod(0o755)


def systemctl(arguments: Sequence[str]) -> None:
    words = [word for word in arguments if not word.startswith("-")]
    command, units = words[0], words[1:]
    if command == "enable" and "--now" in arguments:
        command = "start"
    if command == "daemon-reload":
        return
    for unit in units:
        name = unit.removesuffix(".service")
        (apache if name == "apache2" else producer)(command, name)


def apache(command: str, name: str) -> None:
    def control(word: str) -> None:
        subprocess.run(["apache2ctl", word], check=True)

    if command in ("stop", "restart"):
        control("stop")
        wait_for(lambda: not PID_FILE.exists(), "Apache to end")
    if command in ("start", "restart"):
        control("start")
        wait_for(PID_FILE.exists, "Apache to start")
    if command == "reload":
        control("graceful")


def producer(command: str, name: str) -> None:
    STATE.mkdir(exist_ok=True)
    ready = STATE / f"{name}.ready"  # one byte per READY=1
    pid_file = STATE / f"{name}.pid"
    if command == "disable":
        command = "stop"
    if command in ("stop", "restart") and pid_file.exists():
        os.kill(int(pid_file.read_text()), signal.SIGTERM)
        wait_for(lambda: not pid_file.exists(), f"{name} to end")
    if command in ("start", "restart") and not pid_file.exists():
        ready.write_bytes(b"")
        with (STATE / f"{name}.log").open("wb") as journal:
            subprocess.Popen(
                [sys.executable, "-I", __file__, "unit", name],
                stdin=subprocess.DEVNULL,
                stdout=journal,
                stderr=journal,
                start_new_session=True,
            )
        wait_for(ready.read_bytes, f"{name} to be ready")
    elif command == "reload":
        before = len(ready.read_bytes())
        os.kill(int(pid_file.read_text()), signal.SIGHUP)
        wait_for(lambda: len(ready.read_bytes()) > before, f"{name} to be ready again")
    elif command == "status":
        os.kill(int(pid_file.read_text()), 0)
        print(f"{name}: active (running)")


def unit(name: str) -> None:
    """Run a service of ``Type=notify`` until it ends."""
    template, _, instance = name.partition("@")
    section = configparser.ConfigParser(interpolation=None, strict=False)
    section.optionxform = str  # type: ignore[assignment, method-assign]
    section.read(
        path / (f"{template}@.service" if instance else f"{name}.service") for path in UNITS
    )
    service = section["Service"]
    account = pwd.getpwnam(service["User"])
    address = f"{STATE}/{name}.notify"
    Path(address).unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(address)
        os.chmod(address, 0o666)
        process = subprocess.Popen(
            shlex.split(service["ExecStart"].replace("%i", instance)),
            env={**os.environ, "NOTIFY_SOCKET": address, "PYTHONUNBUFFERED": "1"},
            cwd="/",
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=[],
        )
        pid_file = STATE / f"{name}.pid"
        pid_file.write_text(str(process.pid))
        receiver.settimeout(0.1)
        while process.poll() is None:
            try:
                message = receiver.recv(4096)
            except TimeoutError:
                continue
            if b"READY=1" in message.split(b"\n"):
                with (STATE / f"{name}.ready").open("ab") as file:
                    file.write(b".")
        pid_file.unlink()


def main() -> None:
    name, arguments = sys.argv[1], sys.argv[2:]
    if name == "unit":
        unit(arguments[0])
    elif name != "deploy":  # of a checkout: deploy/package
        COMMANDS[name](arguments)


COMMANDS = {"apt-get": apt_get, "apt": apt, "sudo": sudo, "systemctl": systemctl, "pip": pip}


if __name__ == "__main__":
    main()
