"""Start the measured servers: an Apache, if the peer has one, and its program.

``start`` is a context manager: its servers run inside it, and have ended after it.  ``ours`` is
the shipped product: the configuration in ``apachews_tools/httpd`` and the installed packages.
mod_proxy's Apache is the same one without mod_wsgi, with a worker for each connection, because
mod_proxy holds a worker for each WebSocket.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import select
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from apachews_tools.httpd import private_apache
from apachews_tools.httpd.private_apache import PrivateApache

from . import processes
from .cases import Peer
from .limits import BACKLOG, MAX_MESSAGE_BYTES

BACKENDS: Final = Path(__file__).parent / "backends"
# What bench/run unpacks and installs.
NGINX: Final = Path(sys.prefix) / "nginx"
NODE_MODULES: Final = Path(sys.prefix) / "node" / "node_modules"
# The URL path of the WebSocket, with every peer.
PATH: Final = "/echo.ws"
# That of a client of Socket.IO, without a handshake by HTTP before.
SOCKETIO_PATH: Final = "/socket.io/?EIO=4&transport=websocket"
START_TIMEOUT_S: Final = 10.0
# The page of mod_status, in our Apache and in the proxy's.
STATUS_PATH: Final = "/server-status"
STATUS: Final = f"""
LoadModule status_module "${{MODULES}}/mod_status.so"
ExtendedStatus Off
<Location "{STATUS_PATH}">
    SetHandler server-status
</Location>
"""
# Workers of a child of ours, which has one bridge: Debian's number.
OUR_THREADS: Final = 25
# Threads of each child of mod_proxy's Apache: the maximum without ThreadLimit.
PROXY_THREADS: Final = 64
# Workers for the next connections, in addition to those that hold one.
PROXY_SPARE: Final = 32
TAIL_BYTES: Final = 3000

# As with all peers: without pings, and without a line in a log for a connection.
OURS = """
LogLevel warn
SetEnv APACHEWS_PING_INTERVAL off
"""
# The URL of the backend as mod_proxy has it: the alias's path is replaced by "/".
TUNNEL = """
WSGIScriptAlias {path} "${{APACHEWS_HANDLER}}/tunnel.py" \\
    process-group=%{{GLOBAL}} application-group=%{{GLOBAL}}
<Location {path}>
    SetEnv APACHEWS_BACKEND http://127.0.0.1:{port}/
</Location>
"""
PROXY = """
LogLevel warn
LoadModule proxy_module "${{MODULES}}/mod_proxy.so"
LoadModule proxy_http_module "${{MODULES}}/mod_proxy_http.so"
ProxyPass "{path}" "http://127.0.0.1:{port}/" upgrade=websocket
ProxyTimeout 600
"""
# All children run from the beginning.
CHILDREN = """
ServerLimit {children}
StartServers {children}
MinSpareThreads {workers}
MaxSpareThreads {workers}
"""


class PeerFailed(Exception):
    """A peer did not start, or ended; the text has the end of its log."""


@dataclass
class Backend:
    """A program of ``backends`` that runs.

    Attributes:
        process: its process.
        where: its port, or the path of its socket file.
    """

    process: subprocess.Popen[str]
    where: str
    log: Path

    def require_alive(self) -> None:
        """Check that the program runs.

        Raises:
            PeerFailed
        """
        if self.process.poll() is not None:
            raise PeerFailed(f"{self.process.args!r} ended:\n{tail(self.log)}")


@dataclass
class Running:
    """A peer that runs.

    Attributes:
        url: of its WebSocket.
        certificate: the file that proves its TLS certificate, or "".
        backends: its programs.
        apache: its Apache, or None.
    """

    url: str
    certificate: str
    backends: list[Backend]
    apache: PrivateApache | None = None

    def apache_pids(self) -> list[int]:
        """Return the processes of its Apache, with the custodians."""
        return processes.of_apache(self.apache.root) if self.apache else []

    def backend_pids(self) -> list[int]:
        """Return the processes of its programs, with nginx's workers."""
        return [
            pid for backend in self.backends for pid in processes.of_session(backend.process.pid)
        ]

    def broker_pids(self) -> list[int]:
        """Return the processes of the broker between several machines."""
        return []

    def pids(self) -> list[int]:
        """Return all processes that serve."""
        return self.apache_pids() + self.backend_pids() + self.broker_pids()

    def log_tail(self) -> str:
        """Return the ends of its logs, for a failure's text."""
        logs = [backend.log for backend in self.backends]
        if self.apache:
            logs += [self.apache.root / "error.log", self.apache.root / "output.log"]
        return "\n".join(f"--- {log.name} ---\n{tail(log)}" for log in logs)


def tail(log: Path) -> str:
    """Return the end of a log."""
    try:
        return log.read_bytes()[-TAIL_BYTES:].decode(errors="replace")
    except FileNotFoundError:
        return ""


@contextmanager
def directory() -> Iterator[Path]:
    """Make a directory that Apache's user can read; remove it afterwards."""
    path = Path(tempfile.mkdtemp(prefix="apachews-bench-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def program(peer: Peer, mode: str, root: Path, relay: str = "") -> list[str]:
    """Return the command of a peer's program, ``apachews`` excepted."""
    if peer.backend in ("ws", "uws"):
        script = BACKENDS / f"{peer.backend}_server.js"
        return ["node", str(script), mode, str(BACKLOG), str(MAX_MESSAGE_BYTES)]
    options = []
    if peer.backend == "websockets":
        options = ["uvloop" if peer.uvloop else "asyncio", "deflate" * peer.compressed]
    elif peer.backend == "nchan":
        options = [str(root), str(NGINX)]
    elif peer.relayed:
        return processes.python("bench.backends.relayed_server", peer.backend, relay)
    return processes.python(f"bench.backends.{peer.backend}_server", mode, *options)


def producer(mode: str, path: Path, relay: str = "") -> list[str]:
    """Return the command of a producer of ours."""
    return processes.python("bench.backends.apachews_producer", mode, str(path), relay)


@contextmanager
def backend(log: Path, command: list[str]) -> Iterator[Backend]:
    """Run a program of ``backends``; wait until it prints its address.

    Raises:
        PeerFailed: it does not.
    """
    with log.open("w") as stream:
        process = subprocess.Popen(
            command,
            env=os.environ | {"NODE_PATH": str(NODE_MODULES)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stream,
            text=True,
            start_new_session=True,  # Ctrl-C goes to the benchmark only
        )
    assert process.stdout
    try:
        ready, _, _ = select.select([process.stdout], [], [], START_TIMEOUT_S)
        word, _, where = (process.stdout.readline() if ready else "").partition(" ")
        if word != "listening":
            raise PeerFailed(f"{' '.join(command)} does not listen:\n{tail(log)}")
        yield Backend(process, where.strip(), log)
    finally:
        processes.end(process)
        process.stdout.close()


@contextmanager
def apache(
    root: Path, *, ours: bool, workers: int, threads: int, extra: str, tls: bool = True
) -> Iterator[PrivateApache]:
    """Run an Apache with its document root; end it at once afterwards.

    Raises:
        PeerFailed: it does not start.
    """
    docroot = root / "htdocs"
    docroot.mkdir()
    (docroot / "index.html").write_text("<!doctype html><title>here</title>")
    if os.geteuid() == 0:
        os.chown(docroot, pwd.getpwnam(private_apache.APACHE_USER).pw_uid, -1)
    # Accesses are not logged, as with all peers.
    (root / "access.log").symlink_to(os.devnull)
    server = PrivateApache(
        root,
        docroot,
        port=private_apache.free_port(),
        tls_port=private_apache.free_port() if tls else 0,
        wsgi_module=private_apache.find_wsgi_module() if ours else None,
        python_home=Path(sys.prefix),
        handler=handler(),
        workers=workers,
        threads=threads,
        extra=STATUS + extra,
    )
    try:
        try:
            server.start()
        except private_apache.ApacheError as error:
            raise PeerFailed(str(error)) from error
        yield server
    finally:
        # The parent first: a custodian ends after it.
        server.kill()
        for pid in processes.of_apache(root):
            processes.kill(pid)


@contextmanager
def start(
    peer: Peer, mode: str, connections: int, our_children: int = 1, relay: str = ""
) -> Iterator[Running]:
    """Start a peer for a case with so many connections.

    Args:
        mode: ``echo`` or ``fan-out``.
        connections: number of workers that a proxy needs.
        our_children: number of Apache's children if the peer is ours.
        relay: the address of the Redis that it shares with others, if it is relayed.

    Raises:
        PeerFailed
    """
    with ExitStack() as stack:
        root = stack.enter_context(directory())
        log = root / "backend.log"
        if peer.backend == "apachews":
            server = stack.enter_context(_ours(root, our_children))
            mode = "one-by-one" if peer.one_by_one else mode
            serving = stack.enter_context(
                backend(log, producer(mode, server.docroot / PATH[1:], relay))
            )
        else:
            serving = stack.enter_context(backend(log, program(peer, mode, root, relay)))
            if peer.tunnelled:
                to_it = TUNNEL.format(path=PATH, port=serving.where)
                server = stack.enter_context(_ours(root, our_children, to_it))
            elif peer.proxied:
                server = stack.enter_context(_proxy(root, connections, serving.where))
            else:
                path = SOCKETIO_PATH if peer.speaks_socket_io else PATH
                yield Running(f"ws://127.0.0.1:{serving.where}{path}", "", [serving])
                return
        scheme, port = ("wss", server.tls_port) if peer.tls else ("ws", server.port)
        certificate = str(server.certificate) if peer.tls else ""
        yield Running(f"{scheme}://127.0.0.1:{port}{PATH}", certificate, [serving], server)


def _ours(
    root: Path, children: int, extra: str = ""
) -> contextlib.AbstractContextManager[PrivateApache]:
    """Run an Apache of ours with so many children."""
    workers = children * OUR_THREADS
    extra += OURS + CHILDREN.format(children=children, workers=workers)
    return apache(root, ours=True, workers=workers, threads=OUR_THREADS, extra=extra)


def _proxy(
    root: Path, connections: int, port: str
) -> contextlib.AbstractContextManager[PrivateApache]:
    """Run an Apache with mod_proxy, and a worker for each connection."""
    children = -(-(connections + PROXY_SPARE) // PROXY_THREADS)
    workers = children * PROXY_THREADS
    extra = PROXY.format(path=PATH, port=port)
    extra += CHILDREN.format(children=children, workers=workers)
    return apache(root, ours=False, workers=workers, threads=PROXY_THREADS, extra=extra)


def handler() -> Path:
    """Return the handler's directory in the environment that runs this."""
    return Path(sysconfig.get_path("purelib")) / "apachews_handler"


@contextmanager
def readable() -> Iterator[list[Path]]:
    """Let Apache's user reach the interpreter and the packages; restore modes afterwards.

    That is ``chmod o+x`` on directories above the checkout, such as root's home.  Yields the
    directories whose mode was changed.
    """
    changed = {
        path: path.stat().st_mode
        for path in private_apache.unreadable_parts([handler(), Path(sys.base_prefix)])
    }
    try:
        for path, mode in changed.items():
            path.chmod(mode | 0o001)
        yield list(changed)
    finally:
        for path, mode in changed.items():
            path.chmod(mode)
