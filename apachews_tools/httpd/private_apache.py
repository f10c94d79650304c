"""A private Apache, for ``apachews run``, the demo and the tests.

Contract: ``PrivateApache(…)`` describes the server, ``start`` runs httpd with
``private.conf`` in the foreground and waits until it answers, ``stop`` ends it.  A caller
with a loop of its own uses ``launch``, ``is_answering``, ``terminate`` and ``poll``, which
do not wait.  This module does not read, change or signal the system's Apache.  Standard
library only.

As root, httpd's children run as www-data, as on any site; the caller checks that they can
read all they must (``unreadable_parts``).
"""

from __future__ import annotations

import errno
import grp
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from apachews._processes.supervise import children_of
from apachews.exceptions import ApachewsError

from .permissions import Account

SHIPPED = Path(__file__).resolve().parent
DEBIAN_MODULES = Path("/usr/lib/apache2/modules")
DEBIAN_WSGI_MODULE = DEBIAN_MODULES / "mod_wsgi.so"
# mod_python uses the Python in PATH: this one finds the system's, which it was built for.
SYSTEM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
# The user of httpd's children if root starts it.
APACHE_USER = "www-data"
# A first start creates a certificate and imports Python in every child.
START_TIMEOUT_S = 30.0
# httpd gives its children 9 s from its first SIGTERM to SIGKILL.
STOP_TIMEOUT_S = 20.0
# The variables of root's environment that another user gets, besides the locale.
_PASSED = ("PATH", "LANG", "TZ", "TMPDIR")


class ApacheError(ApachewsError):
    """httpd cannot be started, or cannot be stopped; the text says why."""


class PrivateApache:
    """One private httpd.

    Args:
        root: its ServerRoot, an existing directory.
        docroot: its document root.
        port, tls_port: the ports it listens on; without TLS if ``tls_port`` is 0.
        wsgi_module: the file of mod_wsgi.
        python_home: prefix of the Python environment mod_wsgi uses.
        handler: the directory ``apachews_handler`` in that environment.
        mpm: event, worker or prefork.
        workers: MaxRequestWorkers; each child has ``threads`` of them.
        address: the IP address it listens on.
        page: a directory whose ``index.html`` replaces the missing one of the document root.
        extra: further directives.
        python_module: the file of mod_python, instead of mod_wsgi.
    """

    def __init__(
        self,
        root: Path,
        docroot: Path,
        *,
        port: int,
        tls_port: int,
        wsgi_module: Path | None,
        python_home: Path,
        handler: Path,
        mpm: str = "event",
        workers: int = 50,
        threads: int = 25,
        address: str = "127.0.0.1",
        page: Path | None = None,
        extra: str = "",
        python_module: Path | None = None,
    ) -> None:
        self.root = root
        self.docroot = docroot
        self.address = address
        self.port = port
        self.tls_port = tls_port
        self.certificate = root / "localhost.pem"
        self._extra = extra
        self._process: subprocess.Popen[bytes] | None = None
        self._defines = {
            "ROOT": root,
            "MODULES": DEBIAN_MODULES,
            "MPM": mpm,
            "WORKERS": workers,
            "THREADS": threads,
            **({"WSGI_MODULE": wsgi_module} if wsgi_module else {}),
            **({"PYTHON_MODULE": python_module} if python_module else {}),
            "PYTHON_HOME": python_home,
            "APACHEWS_HANDLER": handler,
            "ADDRESS": f"[{address}]" if ":" in address else address,
            "PORT": port,
            "DOCROOT": docroot,
            "SHIPPED": SHIPPED,
        }
        if tls_port:
            self._defines["TLS_PORT"] = tls_port
        if page is not None:
            self._defines["PAGE"] = page

    @property
    def pid(self) -> int:
        """Process id of httpd's parent process."""
        assert self._process is not None
        return self._process.pid

    @property
    def error_log(self) -> str:
        """The text of the error log."""
        return _read(self.root / "error.log")

    @property
    def access_log(self) -> str:
        """The text of the access log."""
        return _read(self.root / "access.log")

    def start(self) -> None:
        """Start httpd and wait until it answers.

        Raises:
            ApacheError: a port is taken, or httpd exited; with its output.
        """
        self.launch()
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self.is_answering(5):
            if self.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise ApacheError(self.why_not_started())
            time.sleep(0.02)

    def launch(self) -> None:
        """Start httpd without waiting for it.

        Raises:
            ApacheError: a port is taken, or httpd is not installed.
        """
        for port in (self.port, self.tls_port):
            if port:
                require_free_port(port, self.address)
        if self.tls_port:
            create_certificate(self.certificate)
        (self.root / "conf.d").mkdir(exist_ok=True)
        (self.root / "conf.d" / "extra.conf").write_text(self._extra)
        with (self.root / "output.log").open("wb") as log:
            self._process = subprocess.Popen(
                self.command("-D", "FOREGROUND"),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # httpd signals its process group when it exits: this process must not be in it.
                start_new_session=True,
                env=_clean_environment() | self._python_path(),
            )

    def _python_path(self) -> dict[str, str]:
        """Return the variable by which mod_python finds Python."""
        return {"PATH": SYSTEM_PATH} if "PYTHON_MODULE" in self._defines else {}

    def is_answering(self, timeout_s: float) -> bool:
        """Tell whether it answers a request within the timeout."""
        address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.address, self.address)
        try:
            with socket.create_connection((address, self.port), timeout_s) as probe:
                probe.sendall(b"HEAD / HTTP/1.0\r\n\r\n")
                return probe.recv(1) != b""
        except OSError:
            return False

    def why_not_started(self) -> str:
        """Return the text of an error, with the output of httpd."""
        output = _read(self.root / "output.log")
        return f"Apache did not start.\n{output}{self.error_log}".rstrip()

    def poll(self) -> int | None:
        """Return the exit status of httpd, None while it runs."""
        return None if self._process is None else self._process.poll()

    def command(self, *arguments: str) -> list[str]:
        """Return the command line of httpd with this configuration."""
        command = [str(find_httpd()), *arguments]
        defines = dict(self._defines)
        if os.geteuid() == 0:
            command += ["-D", "AS_ROOT"]
            group = grp.getgrgid(pwd.getpwnam(APACHE_USER).pw_gid).gr_name
            defines |= {"USER": APACHE_USER, "GROUP": group}
        for name, value in defines.items():
            command += ["-C", f'Define {name} "{value}"']
        return [*command, "-f", str(SHIPPED / "private.conf")]

    def graceful(self) -> None:
        """Make httpd read its configuration again and replace its children."""
        os.kill(self.pid, signal.SIGUSR1)

    def children(self) -> list[int]:
        """Return the process ids of httpd's children."""
        return children_of(self.pid)

    def wait(self, timeout_s: float) -> int | None:
        """Wait until httpd exits by itself; return its status, None after the timeout."""
        assert self._process is not None
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return None

    def stop(self) -> None:
        """Stop httpd and wait until it has exited; without effect if it does not run.

        Raises:
            ApacheError: it did not exit in time, and was killed.
        """
        if self._process is None or self._process.poll() is not None:
            return
        self.terminate()
        if self.wait(STOP_TIMEOUT_S) is None:
            self.kill()
            raise ApacheError(f"Apache did not exit within {STOP_TIMEOUT_S:g} s.\n{self.error_log}")

    def terminate(self) -> None:
        """Send httpd SIGTERM, upon which it closes every WebSocket with 1001."""
        if self._process is not None:
            self._process.terminate()

    def kill(self) -> None:
        """Kill httpd and its children."""
        if self._process is None or self._process.poll() is not None:
            return
        children = self.children()
        self._process.kill()
        self._process.wait()
        for pid in children:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it exited with its parent


def find_httpd() -> Path:
    """Return the program file of httpd.

    Raises:
        ApacheError: it is not installed.
    """
    for name in ("apache2", "httpd"):
        if found := shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin"):
            return Path(found)
    raise ApacheError("Apache httpd is not installed: on Debian, apt-get install apache2-bin")


def find_wsgi_module() -> Path:
    """Return the file of mod_wsgi: of this Python environment, else of Debian.

    Raises:
        ApacheError: neither exists, or Debian's is for another version of Python.
    """
    for directory in map(Path, sys.path):
        for found in sorted((directory / "mod_wsgi" / "server").glob("mod_wsgi-py*.so")):
            return found
    if DEBIAN_WSGI_MODULE.exists():
        # Debian's file is a link to one with the version in its name.
        _, _, built_for = DEBIAN_WSGI_MODULE.resolve().name.rpartition("-")
        running = f"{sys.version_info.major}.{sys.version_info.minor}"
        if built_for not in (running, DEBIAN_WSGI_MODULE.name):
            raise ApacheError(
                f"Debian's mod_wsgi is for Python {built_for}, but this is Python {running}:"
                " pip install mod_wsgi (which needs apache2-dev), or use Debian's python3"
            )
        return DEBIAN_WSGI_MODULE
    raise ApacheError(
        "mod_wsgi is not installed: on Debian, apt-get install libapache2-mod-wsgi-py3;"
        " elsewhere, pip install mod_wsgi"
    )


def require_free_port(port: int, address: str = "127.0.0.1") -> None:
    """Check that a port of an IP address can be listened on.

    Raises:
        ApacheError: it cannot; the text says why.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError as error:
            if error.errno == errno.EACCES:
                advice = "choose a port from 1024 on, or run this as root"
            elif error.errno == errno.EADDRINUSE:
                advice = "end the program that listens there, or choose another port"
            else:
                advice = f"is {address} an address of this machine?"
            raise ApacheError(f"port {port} cannot be used ({error.strerror}): {advice}") from error


# Below the ports that Linux gives to outgoing connections (32768 and up): one of those could
# take a port before httpd listens on it.  Processes that start Apaches at the same time divide
# the range, because a port stays free until httpd listens on it.
ports = range(20_000, 32_000)
_given_ports: set[int] = set()


def free_port() -> int:
    """Return a port of 127.0.0.1, one of ``ports``, that is free; never the same port twice."""
    while True:
        port = random.choice(ports)
        if port in _given_ports:
            continue
        try:
            require_free_port(port)
        except ApacheError:
            continue
        _given_ports.add(port)
        return port


def create_certificate(path: Path) -> None:
    """Make a self-signed certificate for localhost and its key, unless the file exists.

    Raises:
        ApacheError: openssl is not installed, or it failed.
    """
    if path.exists():
        return
    key, certificate = path.with_suffix(".key"), path.with_suffix(".crt")
    command = [
        *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
        *("-nodes", "-days", "30", "-subj", "/CN=localhost"),
        *("-addext", "basicConstraints=critical,CA:FALSE"),
        *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
        *("-keyout", str(key), "-out", str(certificate)),
    ]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise ApacheError("openssl is not installed: apt-get install openssl") from error
    except subprocess.CalledProcessError as error:
        raise ApacheError(f"openssl cannot make a certificate: {error.stderr}") from error
    path.write_text(certificate.read_text() + key.read_text())
    path.chmod(0o600)
    key.unlink()


def unreadable_parts(paths: Iterable[Path], user: str = APACHE_USER) -> list[Path]:
    """Return the directories that prevent a user from reading the paths, outermost first.

    Empty unless root calls it: httpd runs as the user who started it otherwise.
    """
    blocking: list[Path] = []
    for path in paths:
        real = path.resolve()
        for directory in reversed([real, *real.parents]):
            if directory in blocking or not directory.is_dir():
                continue
            if not is_permitted(directory, os.X_OK, user):
                blocking.append(directory)
    return blocking


def is_permitted(path: Path, wanted: int, user: str = APACHE_USER) -> bool:
    """Tell whether the mode of a path, regardless of its parents, permits an access.

    True unless root calls it, as for ``unreadable_parts``.

    Args:
        path: an existing file or directory.
        wanted: ``os.R_OK``, ``W_OK``, ``X_OK``, or several of them.
        user: the name of the user.
    """
    return os.geteuid() != 0 or Account.named(user).may(path.stat(), wanted)


def as_apache_user() -> dict[str, Any]:
    """Return arguments for ``subprocess.Popen`` that run a program as Apache's user.

    Empty unless root calls it: another user neither can nor needs to.
    """
    if os.geteuid() != 0:
        return {}
    account = pwd.getpwnam(APACHE_USER)
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}


def environment() -> dict[str, str]:
    """Return the environment for programs that run as ``as_apache_user`` says.

    It is that of this process, except for root: root's environment may contain passwords
    and tokens, so Apache's user gets a few harmless variables and its own HOME.
    (PYTHONPATH is not among them: apachews is installed in the programs' environment.)
    """
    if not as_apache_user():
        return dict(os.environ)
    passed = {
        name: value
        for name, value in os.environ.items()
        if name in _PASSED or name.startswith("LC_")
    }
    return passed | {"HOME": pwd.getpwnam(APACHE_USER).pw_dir}


def _clean_environment() -> dict[str, str]:
    """Return an environment without variables that would mislead the embedded Python."""
    return {
        name: value
        for name, value in environment().items()
        if not name.startswith(("PYTHON", "VIRTUAL_ENV", "APACHE", "PYENV"))
    } | {"LC_ALL": "C.UTF-8"}


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
