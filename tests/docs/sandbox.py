"""Runs a page's commands and writes its files, as a reader would, on a copy of this machine.

    unshare --mount --net --pid --fork --mount-proc python -m tests.docs.sandbox PAGE…

Contract: runs in separate namespaces, and exits with status 0 if every command did.  Changes in
the checkout, ``/etc``, ``/opt``, ``/usr``, ``/var``, ``/run`` and ``/tmp`` are lost at the end:
they are in overlays and memory.  The only network interface is the loopback, so Apache can use
the ports 80 and 443, and the commands are exactly those of the page.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from ..conftest import wait_for
from ..support.site import ROOT
from . import checks
from .pages import Block, blocks_of

SCRATCH = Path("/mnt")
STAND_INS = ("apt-get", "apt", "pip", "sudo", "systemctl")
COPIES = ("/etc", "/opt", "/usr", "/var")
COMMAND_TIMEOUT_S = 60
RUNS_ON = "runs until Ctrl-C; makes "


def prepare() -> dict[str, str]:
    """Create the copy; return the environment for commands."""

    def mount(*arguments: str) -> None:
        subprocess.run(["mount", *arguments], check=True)

    def copy(directory: Path | str, name: str) -> None:
        """Mount a copy of a directory over it."""
        upper, work = SCRATCH / name / "upper", SCRATCH / name / "work"
        upper.mkdir(parents=True)
        work.mkdir()
        upper.chmod(0o755)
        options = f"lowerdir={directory},upperdir={upper},workdir={work}"
        mount("-t", "overlay", "none", "-o", options, str(directory))

    mount("-t", "tmpfs", "none", str(SCRATCH))
    checkout = SCRATCH / "checkout"
    checkout.mkdir()
    mount("--bind", str(ROOT), str(checkout))
    copy(checkout, "changes")
    for directory in COPIES:
        copy(directory, directory[1:])
    mount("-t", "tmpfs", "-o", "mode=755", "none", "/run")
    mount("-t", "tmpfs", "-o", "mode=1777", "none", "/tmp")
    ROOT.mkdir(parents=True, exist_ok=True)  # it is missing now if the checkout is in /tmp
    mount("--bind", str(checkout), str(ROOT))
    Path("/run/lock").mkdir()
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    # A bare Debian does not have it.
    shutil.rmtree("/opt/apachews", ignore_errors=True)
    programs = SCRATCH / "bin"
    programs.mkdir()
    for name in STAND_INS:
        write_stand_in(programs / name, name)
    write_stand_in(ROOT / "deploy" / "package", "deploy")
    packages = [
        str(Path(spec.origin).parent)
        for name in ("apachews", "apachews_handler", "apachews_tools", "wsproto", "h11")
        if (spec := importlib.util.find_spec(name)) and spec.origin
    ]
    return {
        "PATH": f"{programs}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
        "STAND_IN_APACHE": os.environ.get("APACHEWS_DEBIAN_APACHE", ""),
        "STAND_IN_PACKAGES": ":".join(packages),
        "STAND_IN_DEPLOY": str(ROOT / "deploy"),
    }


def write_stand_in(program: Path, name: str) -> None:
    """Write a program that runs a command of ``stand_ins.py``."""
    stand_ins = Path(__file__).with_name("stand_ins.py")
    program.unlink(missing_ok=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -I {stand_ins} {name} "$@"\n')
    program.chmod(0o755)


class Reader:
    """Follows the instructions of a page."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment
        self._running: list[tuple[subprocess.Popen[bytes], Block]] = []

    def read(self, page: Path) -> None:
        for block in blocks_of(page):
            if block.why_not_run:
                print(f"{block.name}: not run: {block.why_not_run}", flush=True)
                continue
            if block.file:
                path = Path(block.file)
                path.write_text(block.text)
            elif block.language == "sh":
                self._do(block)
            checks.after(block)
        self._interrupt()

    def _do(self, block: Block) -> None:
        begun_at = time.monotonic()
        if block.comment.startswith(RUNS_ON):
            process = subprocess.Popen(
                ["bash", "-c", f"exec {block.text}"],
                cwd=ROOT,
                env=self._environment,
                start_new_session=True,
            )
            self._running.append((process, block))
            wait_for(Path(block.comment.removeprefix(RUNS_ON)).exists)
            return
        # As in a terminal, but the first failed command ends the block.
        result = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block.text],
            cwd=ROOT,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=COMMAND_TIMEOUT_S,
            check=False,
        )
        output = result.stdout.decode()
        print(f"{block.name}: {time.monotonic() - begun_at:.1f} s", flush=True)
        if result.returncode:
            raise SystemExit(
                f"{block.name}: exited with status {result.returncode}\n{block.text}{output}"
            )
        checks.answered(block, output)
        self._interrupt()

    def _interrupt(self) -> None:
        """Press Ctrl-C in the other terminals."""
        while self._running:
            process, block = self._running.pop()
            assert process.poll() is None, f"{block.name}: exited by itself"
            os.killpg(process.pid, signal.SIGINT)
            process.wait(COMMAND_TIMEOUT_S)


def main() -> None:
    reader = Reader(prepare())
    try:
        for page in sys.argv[1:]:
            reader.read(ROOT / page)
    except BaseException:
        log = Path("/var/log/apache2/error.log")
        print(log.read_text() if log.exists() else "no error log", file=sys.stderr)
        raise


if __name__ == "__main__":
    main()
