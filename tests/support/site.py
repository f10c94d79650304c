"""A site to test against: a real Apache, its document root, and producers behind it.

What runs is what ships: ``apachews_tools/httpd``.
Every site ends with the same questions: did a child die, was there a traceback, is
a process or a descriptor left.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from apachews import Event, Server
from apachews_tools.httpd import private_apache
from apachews_tools.httpd.private_apache import PrivateApache

from ..conftest import wait_for
from .raw_client import dial_tcp

ROOT = Path(__file__).parents[2]
ECHO = ROOT / "deploy" / "producers" / "echo.py"
# What is installed in this environment, not the checkout: Apache imports that.
HANDLER = Path(sysconfig.get_path("purelib")) / "apachews_handler"
IS_ROOT = os.geteuid() == 0
# Where the suite is tried in mod_python instead: its module.
MOD_PYTHON = (
    Path("/usr/lib/apache2/modules/mod_python.so")
    if os.environ.get("APACHEWS_HOST") == "mod_python"
    else None
)
# A worker that has logged its request so long ago no longer has the connection.  Spare children
# come a second apart: httpd does not start the next one so soon.
SETTLED_S = 0.5
# proc(5): a signal's bit in SigBlk.
SIGTERM_BIT = 1 << (signal.SIGTERM - 1)

# The other way to a producer: /ws/chat is the socket chat.ws in APACHEWS_ROOT.
WS_ALIAS = """
WSGIScriptAlias /ws "${APACHEWS_HANDLER}/wsgi.py" \\
    process-group=%{GLOBAL} application-group=%{GLOBAL}
<Location /ws>
    Require all granted
    SetEnv APACHEWS_ROOT "${DOCROOT}"
</Location>
"""

MOD_PYTHON_ALIAS = """
# A child takes longer to begin; one of the last generation that begins during a restart
# would have clients of its own.
<IfModule !mpm_prefork_module>
    MinSpareThreads 1
</IfModule>
<Location /ws>
    SetHandler mod_python
    PythonHandler apachews_handler.modpython::application
    PythonInterpreter main_interpreter
    PythonOption apachews.prefix /ws
    Require all granted
    SetEnv APACHEWS_ROOT "${DOCROOT}"
</Location>
"""

# What a child that came to harm leaves in the error log.
HARM = re.compile(r"exit signal|Traceback|Segmentation|AH00051|AH00052|double free|corrupt")


def for_two_threads(context: ssl.SSLContext) -> ssl.SSLContext:
    """Make a context fit for websockets' threaded client; return it.

    That reads in one thread while it writes in another, which OpenSSL allows no connection.
    Where it reads a ticket of TLS 1.3 while it writes the request, it hangs (15 of 3,200 times
    with Python 3.11), or finds its memory corrupted; before TLS 1.3 no such record comes
    behind the handshake.
    """
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


class Site:
    """A running Apache and the ways to reach it."""

    def __init__(self, apache: PrivateApache) -> None:
        self.apache = apache
        self.docroot = apache.docroot
        self.expected_harm = ""  # a pattern that a test provokes
        self.echo: subprocess.Popen[bytes]  # of /echo.ws

    def ws(self, path: str = "/echo.ws") -> str:
        return f"ws://127.0.0.1:{self.apache.port}{path}"

    def wss(self, path: str = "/echo.ws") -> str:
        return f"wss://localhost:{self.apache.tls_port}{path}"

    def http(self, path: str = "/index.html") -> str:
        return f"http://127.0.0.1:{self.apache.port}{path}"

    def tls_context(self, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self.apache.certificate))
        if version:
            context.minimum_version = context.maximum_version = version
        return context

    def dial(self, scheme: str) -> socket.socket:
        """Connect by ``ws``, ``wss1.2`` or ``wss1.3``."""
        if scheme == "ws":
            return dial_tcp(self.apache.port)
        version = ssl.TLSVersion.TLSv1_2 if scheme == "wss1.2" else ssl.TLSVersion.TLSv1_3
        plain = dial_tcp(self.apache.tls_port)
        return self.tls_context(version).wrap_socket(plain, server_hostname="localhost")

    def custodians(self) -> list[int]:
        """Return the processes that were forked from Apache's children and run its loop."""
        return [pid for pid in self.carriers() if not _is_relay(pid)]

    def relays(self) -> list[int]:
        """Return those that only keep the TLS of clients that a custodian has."""
        return [pid for pid in self.carriers() if _is_relay(pid)]

    def carriers(self) -> list[int]:
        """Return the processes that have clients of children that were replaced."""
        root = str(self.apache.root).encode()
        ours = {self.apache.pid, *self.apache.children()}
        found = [
            int(entry.name)
            for entry in Path("/proc").iterdir()
            if entry.name.isdigit() and _is_httpd(entry, root)
        ]
        return [pid for pid in found if pid not in ours and pid not in self.apache.children()]

    def renew(self, timeout_s: float = 60.0, number: int = signal.SIGUSR1) -> float:
        """Restart, gracefully by default; return after how many seconds the old children had ended.

        The children that it ends were ready: those of restarts in quick succession would end
        before they accept a connection.  httpd's own restart is over as well: httpd forgets a
        signal that arrives in the middle of one.
        """
        wait_for(self.is_ready, timeout_s)
        old = set(self.apache.children())
        begins = self._begins()
        begun_at = time.monotonic()
        os.kill(self.apache.pid, number)
        wait_for(lambda: self._begins() > begins, timeout_s)
        wait_for(lambda: not old & set(self.apache.children()), timeout_s)
        return time.monotonic() - begun_at

    def _begins(self) -> int:
        """Return how often httpd has begun its work."""
        return self.apache.error_log.count("-- resuming normal operations")

    def kill_children(self) -> None:
        """Kill all children; return when those that take their place are ready."""
        victims = set(self.apache.children())
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        wait_for(lambda: self.is_ready() and not victims & set(self.apache.children()), 60)

    def settle(self) -> None:
        """Wait until a stop meets each child at a moment that httpd guards.

        A child of the event and worker MPMs ends at once on SIGTERM until its main
        thread, which has just started the others, says otherwise (child_main); a
        stop that comes in between can crash it, whatever it has loaded.  And a stop
        closes the sockets that workers have; one that has just freed its own can
        still be in the list (close_worker_sockets).
        """
        log = self.apache.root / "access.log"
        wait_for(
            lambda: (
                self.apache.poll() is not None
                or (self.is_ready() and time.time() - log.stat().st_mtime > SETTLED_S)
            ),
            60,
        )

    def is_ready(self) -> bool:
        """Tell whether each child accepts connections, and httpd is not about to start another."""
        processes = (Path(f"/proc/{pid}") for pid in self.apache.children())
        children = [process for process in processes if _is_httpd(process)]
        return bool(children) and all(
            _accepts(child) and _age_s(child) > SETTLED_S for child in children
        )

    def descriptors(self) -> int:
        """Return how many descriptors the child with the most has open."""
        counts = [0]
        for pid in self.apache.children():
            try:
                counts.append(len(os.listdir(f"/proc/{pid}/fd")))
            except FileNotFoundError:
                pass  # the child has ended meanwhile
        return max(counts)

    def processor_s(self) -> float:
        """Return the processor time that all children have used, seconds."""
        ticks = 0
        for pid in self.apache.children():
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except FileNotFoundError:
                continue
            ticks += int(fields[11]) + int(fields[12])  # proc(5): utime, stime
        return ticks / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        """Return the memory that the child with the most has resident."""
        sizes = [0]
        for pid in self.apache.children():
            try:
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            except FileNotFoundError:
                continue
            sizes.append(pages * os.sysconf("SC_PAGE_SIZE"))
        return max(sizes)

    def log_lines(self, pattern: str) -> list[str]:
        if MOD_PYTHON:  # httpd names the module that hosts us
            pattern = pattern.replace("wsgi:", "python:")
        return [line for line in self.apache.error_log.splitlines() if re.search(pattern, line)]

    @contextmanager
    def producer(
        self, name: str, serve: Callable[[Event], None], **settings: Any
    ) -> Iterator[Server]:
        """Run a producer in a thread of the test; ``serve`` gets every event."""
        path = self.docroot / name
        # Apache's children run as another user where root starts them.
        server = Server(path, **({"mode": 0o666} | settings))
        failed: list[BaseException] = []
        ended = threading.Event()

        def run() -> None:
            try:
                while not ended.is_set():
                    event = server.dequeue(0.05)
                    if event is not None:
                        serve(event)
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        try:
            yield server
        finally:
            ended.set()
            thread.join()
            server.close()
        if failed:
            raise failed[0]

    @contextmanager
    def echo_process(self, name: str, *options: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run the seed's program, as Apache's user where that differs.

        Args:
            name: of its socket file.
            options: Python's own, such as those that run the program in the runner.
        """
        path = self.docroot / name
        process = subprocess.Popen(
            [sys.executable, *options, str(ECHO), str(path)],
            stderr=subprocess.PIPE,
            **private_apache.as_apache_user(),
        )
        try:
            wait_for(path.exists, what=process.poll)
            yield process
        finally:
            process.kill()
            _, stderr = process.communicate()
            path.unlink(missing_ok=True)
        assert b"Traceback" not in stderr, stderr.decode()


def _accepts(child: Path) -> bool:
    """Tell whether a child of Apache has imported Python's modules and started its threads.

    Only then does it make the epoll instance for the listening sockets (prefork's child_main,
    the others' listener).  The main thread of event and worker has SIGTERM blocked until it has
    started the others.
    """
    try:
        status = (child / "status").read_text()
    except OSError:
        return False  # it has ended
    blocked = re.search(r"^SigBlk:\t(\w+)$", status, re.MULTILINE)
    if blocked is None or int(blocked[1], 16) & SIGTERM_BIT:
        return False
    return "anon_inode:[eventpoll]" in descriptors_of(child)


def _age_s(process: Path) -> float:
    """Return the age of a process, a directory of /proc; 0 if it has ended."""
    try:
        stat = (process / "stat").read_text()
    except OSError:
        return 0.0
    started = int(stat.rpartition(")")[2].split()[19])  # proc(5): starttime
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started / os.sysconf("SC_CLK_TCK")


def descriptors_of(process: Path) -> list[str]:
    """Return what the descriptors of a process, a directory of /proc, are."""
    links = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
        for entry in (process / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                links.append(str(entry.readlink()))
    return links


def _is_relay(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/comm").read_text() == "apachews-relay\n"
    except OSError:
        return False  # it has ended


def _is_httpd(process: Path, argument: bytes = b"") -> bool:
    """Tell whether a process, a directory of /proc, runs httpd with this in its arguments."""
    try:
        command = (process / "cmdline").read_bytes()
    except OSError:
        return False  # it has ended
    program = command.partition(b"\0")[0].rpartition(b"/")[2]
    return program in (b"apache2", b"httpd") and argument in command


def private_mib(pid: int) -> float:
    """Return the memory that a process shares with nobody, MiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
    return (kib["Private_Dirty"] + kib["Private_Clean"]) / 1024


def echo(event: Event) -> None:
    """Send every message back, the empty ones as well."""
    if event.type() in (Event.IO, Event.NoData):
        event.write(event.read())


def make_readable() -> None:
    """Let Apache's user reach the interpreter, the packages and the checkout.

    That is ``chmod o+x`` on directories such as root's home.  ``restore_modes`` puts
    them back and tells.
    """
    wanted = [HANDLER, Path(sys.base_prefix), ROOT, ECHO]
    for directory in private_apache.unreadable_parts(wanted):
        _changed_modes[directory] = directory.stat().st_mode
        directory.chmod(_changed_modes[directory] | 0o001)


def restore_modes() -> list[str]:
    """Undo ``make_readable``; return a line for each directory, for the report."""
    lines = []
    while _changed_modes:
        directory, mode = _changed_modes.popitem()
        directory.chmod(mode)
        lines.append(
            f"{directory} had mode o+x for this run, so that Apache's user"
            f" {private_apache.APACHE_USER} could read the interpreter and the packages"
        )
    return lines


_changed_modes: dict[Path, int] = {}


AnyApache = TypeVar("AnyApache", bound=PrivateApache)


def configured_apache(
    kind: type[AnyApache], root: Path, handler: Path, python_home: Path, extra: str = ""
) -> AnyApache:
    """Return an Apache that is not started, with an empty document root in ``root``."""
    make_readable()
    root.chmod(0o755)
    docroot = root / "htdocs"
    docroot.mkdir()
    return kind(
        root,
        docroot,
        port=private_apache.free_port(),
        tls_port=private_apache.free_port(),
        wsgi_module=private_apache.find_wsgi_module(),
        python_home=python_home,
        handler=handler,
        extra=extra,
    )


@contextmanager
def running_without_path(apache: PrivateApache) -> Iterator[None]:
    """Run an Apache whose Python does not find the tests' environment by PATH."""
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            apache.start()
        yield
    finally:
        apache.kill()


@contextmanager
def running_site(
    mpm: str = "event", workers: int = 50, threads: int = 25, extra: str = ""
) -> Iterator[Site]:
    """Start an Apache with an echo producer on ``/echo.ws``; look for harm at its end."""
    root = Path(tempfile.mkdtemp(prefix="aws"))
    root.chmod(0o755)
    docroot = root / "htdocs"
    docroot.mkdir()
    (docroot / "index.html").write_text("<!doctype html><title>here</title>")
    if IS_ROOT:
        os.chown(docroot, pwd.getpwnam(private_apache.APACHE_USER).pw_uid, -1)
    make_readable()
    apache = PrivateApache(
        root,
        docroot,
        port=private_apache.free_port(),
        tls_port=private_apache.free_port(),
        wsgi_module=None if MOD_PYTHON else private_apache.find_wsgi_module(),
        python_module=MOD_PYTHON,
        python_home=Path(sys.prefix),
        handler=HANDLER,
        mpm=mpm,
        workers=workers,
        threads=threads,
        extra=(MOD_PYTHON_ALIAS if MOD_PYTHON else WS_ALIAS) + extra,
    )
    site = Site(apache)
    try:
        apache.start()
        with site.echo_process("echo.ws") as site.echo:
            yield site
            site.settle()
            children = apache.children()
            apache.stop()
        log = apache.error_log
        harm = [line for line in log.splitlines() if HARM.search(line)]
        if site.expected_harm:
            harm = [line for line in harm if not re.search(site.expected_harm, line)]
        assert not harm, "\n".join(harm)
        wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in children))
    except BaseException:
        print(f"--- error log ---\n{apache.error_log}", file=sys.stderr)
        raise
    finally:
        apache.kill()
        shutil.rmtree(root)
