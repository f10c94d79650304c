"""Debian's releases for the tests of the packages: a chroot to build in, and a machine.

Contract: ``obstacle()`` says why this machine cannot have chroots.  ``build(suite)`` returns the
packages, built by ``deploy/package``.  ``Machine(suite)`` is a fresh minimal installation in which
systemd runs; its services have a network of their own, so that Apache listens on ports 80 and
443.  Commands of ``run`` use this machine's network, because apt needs it.

How this works: a chroot of debootstrap is kept as an archive, and unpacked for each machine.
systemd is process 1 of new namespaces, which end with it.  Mounts of a namespace end with its last
process, so that a failure leaves directories only.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

from ..conftest import wait_for
from ..support.checkout import copy_checkout

T = TypeVar("T")

CLONE_NEWNET: Final = 0x40000000
MIRROR: Final = os.environ.get("APACHEWS_MIRROR", "http://deb.debian.org/debian")
# A mirror, or this machine, may be slow.
COMMAND_TIMEOUT_S: Final = 900
BOOT_TIMEOUT_S: Final = 60
# A machine with Apache, PHP and a compiler has 1 GiB, one that changes its release 3 GiB.
ROOM_BYTES: Final = 4 << 30
_PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT: Final = ("HOME=/root", _PATH, "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive")
# Arguments: the root, the directory of downloaded packages, the command.
_CHROOT: Final = """
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
mount -t tmpfs -o mode=1777 tmpfs "$1/tmp"
mkdir -p "$1/var/cache/apt/archives"
mount --bind "$2" "$1/var/cache/apt/archives"
root=$1
shift 2
exec chroot "$root" "$@"
"""
# Arguments: the root, the directory of downloaded packages.  Kernel settings are read-only,
# because they are those of this machine too.
_BOOT: Final = """
ip link set lo up
mount --make-rprivate /
mount --bind "$1" "$1"
mount -t proc proc "$1/proc"
mount --bind "$1/proc/sys" "$1/proc/sys"
mount -o remount,bind,ro "$1/proc/sys"
mount -t sysfs -o ro sysfs "$1/sys"
mount -t cgroup2 cgroup2 "$1/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$1/run"
mount -t tmpfs -o mode=1777 tmpfs "$1/tmp"
mount -t tmpfs -o mode=755 tmpfs "$1/dev"
for name in null zero full random urandom; do
    touch "$1/dev/$name"
    mount --bind "/dev/$name" "$1/dev/$name"
done
mkdir "$1/dev/pts" "$1/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$1/dev/pts"
ln -s pts/ptmx "$1/dev/ptmx"
mkdir -p "$1/var/cache/apt/archives"
mount --bind "$2" "$1/var/cache/apt/archives"
cd "$1"
exec chroot . /usr/bin/env -i container=apachews /lib/systemd/systemd
"""


def obstacle() -> str:
    """Return why chroots are not possible here, "" if they are."""
    if os.geteuid() != 0:
        return "a chroot needs root"
    if missing := [name for name in ("debootstrap", "unshare", "ip") if not shutil.which(name)]:
        return f"{missing[0]} is not installed"
    done = subprocess.run(
        ["unshare", "--mount", "--pid", "--net", "--cgroup", "--fork", "true"],
        capture_output=True,
        check=False,
    )
    return "" if done.returncode == 0 else "unshare may not create namespaces here"


def build(suite: str) -> list[Path]:
    """Build the packages of the checkout in a chroot that keeps the build's dependencies."""
    root = _cache() / f"{suite}-builder"
    if not root.is_dir():
        _unpack(suite, root.with_suffix(".new"))
        root.with_suffix(".new").rename(root)
    checkout = root / "checkout"
    shutil.rmtree(checkout, ignore_errors=True)
    copy_checkout(checkout)
    in_chroot(root, suite, "/checkout/deploy/package")
    return sorted((checkout / "dist").glob("*.deb"))


def in_chroot(root: Path, suite: str, command: str) -> str:
    """Run a command of the shell in a chroot, with this machine's network; return its output."""
    arguments = [root, _archives(suite), "/usr/bin/env", "-i", *_ENVIRONMENT, "sh", "-ec", command]
    enter = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "bash", "-ec", _CHROOT, "-"]
    return _run([*enter, *map(str, arguments)])


class Machine:
    """A fresh minimal Debian in which systemd runs.

    Args:
        suite: for example trixie.
        packages: of Debian, to install besides the minimal ones.
    """

    def __init__(self, suite: str, packages: tuple[str, ...] = ()) -> None:
        self._suite = suite
        self.root = Path(tempfile.mkdtemp(prefix=f"{suite}-", dir=_fast_directory()))
        self._log = self.root.with_name(f"{self.root.name}.log")
        _unpack(suite, self.root)
        wanted = " ".join(("systemd-sysv", *packages))
        in_chroot(self.root, suite, f"apt-get -qq install --no-install-recommends -y {wanted}")
        # It forbids the start of services in a chroot.
        (self.root / "usr/sbin/policy-rc.d").unlink()
        self._process: subprocess.Popen[bytes] | None = None
        self._systemd = 0

    def boot(self) -> None:
        """Start systemd; return when its services run."""
        # The machine's cgroups are below one of its own, which stop() removes.
        (_cgroup_root() / self.root.name).mkdir()
        enter = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup", "--fork"]
        enter += ["--kill-child", "bash", "-ec", _BOOT, "-"]
        in_cgroup = ["sh", "-c", 'echo 0 >"$1" && shift && exec "$@"', "-"]
        cgroup = _cgroup_root() / self.root.name / "cgroup.procs"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*in_cgroup, cgroup, *enter, self.root, _archives(self._suite)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_for(self._is_booted, BOOT_TIMEOUT_S, self._log.read_text)
        # systemd delegates controllers to its services only if its own cgroup has no process.
        (_cgroup_root() / "cgroup.procs").write_text(str(self._process.pid))

    def _is_booted(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self._log.read_text()
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        if not children:
            return False
        self._systemd = int(children.split()[0])
        asked = self._inside("systemctl is-system-running")
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        # Degraded: a container lacks the devices of some units.
        return done.stdout.strip() in ("running", "degraded")

    def stop(self) -> None:
        """End all processes of the machine, and remove its directory."""
        if self._process is not None:
            if self._systemd:
                os.kill(self._systemd, signal.SIGKILL)  # ends all processes of its namespace
            else:
                self._process.kill()
            self._process.wait(60)
            directory = _cgroup_root() / self.root.name
            cgroups = [directory, *(path for path in directory.rglob("*") if path.is_dir())]
            for cgroup in sorted(cgroups, key=lambda path: -len(path.parts)):
                wait_for(lambda: _is_removed(cgroup))  # noqa: B023  called at once
        self._log.unlink(missing_ok=True)
        shutil.rmtree(self.root)

    def run(self, command: str) -> str:
        """Run a command of the shell as root; return what it prints.

        Raises:
            AssertionError: its exit status is not 0.
        """
        return _run(self._inside(command))

    def _inside(self, command: str) -> list[str]:
        enter = ["nsenter", f"--target={self._systemd}", "--mount", "--pid", "--uts", "--ipc"]
        enter += ["--cgroup", "--root", "--wd", "/usr/bin/env", "-i", *_ENVIRONMENT]
        return [*enter, "sh", "-ec", command]

    def write(self, path: str, text: str) -> None:
        """Write a file, with the directories above it."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def connect(self, port: int) -> socket.socket:
        """Return a connection from outside the chroot to a port of the machine."""
        return self.in_network(lambda: socket.create_connection(("127.0.0.1", port), 10))

    def in_network(self, action: Callable[[], T]) -> T:
        """Return the result of an action, whose sockets and programs use the machine's network.

        The action sees the files and processes outside the chroot.
        """
        # Only this thread enters the machine's network; its sockets and programs remain in it.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(self._enter_network_for, action).result()

    def _enter_network_for(self, action: Callable[[], T]) -> T:
        with open(f"/proc/{self._systemd}/ns/net") as network:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(network.fileno(), CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
        return action()


def _run(command: list[str]) -> str:
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
        timeout=COMMAND_TIMEOUT_S,
    )
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}"
    return done.stdout


def _cache() -> Path:
    """Return the directory of the chroots, which stay for the next run."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "apachews/chroots")
    directory = Path(os.environ.get("APACHEWS_CHROOTS", default)) / "packages"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _fast_directory() -> Path:
    """Return the directory for a machine: in memory if there is enough of it."""
    memory = Path("/dev/shm")
    has_room = memory.is_dir() and shutil.disk_usage(memory).free > ROOM_BYTES
    return memory if has_room else _cache()


def _archives(suite: str) -> Path:
    """Return the directory of the packages of Debian that apt has downloaded."""
    directory = _cache() / f"{suite}-archives"
    (directory / "partial").mkdir(parents=True, exist_ok=True)
    return directory


def _unpack(suite: str, root: Path) -> None:
    """Make a chroot, with current package lists."""
    archive = _cache() / f"{suite}.tar"
    if not archive.exists():
        _create(suite, archive)
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    root.chmod(0o755)
    _run(["tar", "--extract", "--numeric-owner", f"--directory={root}", f"--file={archive}"])
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    # No fsync: a machine that fails is made again.
    (root / "etc/dpkg/dpkg.cfg.d/unsafe-io").write_text("force-unsafe-io\n")
    in_chroot(root, suite, "apt-get -qq update")


def _create(suite: str, archive: Path) -> None:
    with tempfile.TemporaryDirectory(dir=archive.parent) as directory:
        root = Path(directory, "root")
        _run(["debootstrap", "--variant=minbase", suite, str(root), MIRROR])
        lines = [f"deb {MIRROR} {suite} main", f"deb {MIRROR} {suite}-updates main"]
        security = MIRROR.removesuffix("/debian") + "/debian-security"
        lines.append(f"deb {security} {suite}-security main")
        (root / "etc/apt/sources.list").write_text("\n".join(lines) + "\n")
        # How this machine reaches a mirror, and checks it.
        settings = _run(["apt-config", "dump"]).splitlines()
        kept = [one for one in settings if one.startswith(("Acquire::http", "Acquire::Check"))]
        (root / "etc/apt/apt.conf.d/99host").write_text("\n".join(kept) + "\n")
        policy = root / "usr/sbin/policy-rc.d"
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
        new = archive.with_suffix(".new")
        with tarfile.open(new, "w") as tar:
            tar.add(root, ".")
        new.rename(archive)


def _cgroup_root() -> Path:
    """Return the directory of cgroups of the second version."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    raise AssertionError("no cgroup2 file system is mounted")


def _is_removed(cgroup: Path) -> bool:
    """Remove a cgroup, unless a process in it is still ending."""
    try:
        cgroup.rmdir()
    except OSError:
        return not cgroup.exists()
    return True
