"""The demo: a private Apache, an echo and a chat producer, a page that uses them.

``deploy/demo`` installs what is missing and runs this.  Everything it makes lies in
one temporary directory, which goes when it ends; Ctrl-C or SIGTERM ends it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from apachews.apache import private_apache
from apachews.apache.private_apache import ApacheError, PrivateApache

DEPLOY = Path(__file__).resolve().parent
PRODUCERS = {"echo.ws": "echo.py", "chat.ws": "chat.py"}
START_TIMEOUT_S = 10.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stop(Exception):
    """Somebody wants the demo to end."""


def main() -> int:
    """Run the demo; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="deploy/demo", description="Run a private Apache with an echo and a chat WebSocket."
    )
    parser.add_argument("--port", type=int, default=8080, help="HTTP port (default 8080)")
    parser.add_argument("--tls-port", type=int, default=8443, help="HTTPS port (default 8443)")
    parser.add_argument(
        "--mpm", choices=("event", "worker", "prefork"), default="event", help="httpd's MPM"
    )
    arguments = parser.parse_args()

    def stop(number: int, frame: object) -> None:
        raise Stop

    for number in SIGNALS:
        signal.signal(number, stop)
    try:
        with contextlib.ExitStack() as undo:
            return run(arguments, undo)
    except Stop:
        print("\ndemo: everything has ended", file=sys.stderr)
        return 0
    except ApacheError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1


def run(arguments: argparse.Namespace, undo: contextlib.ExitStack) -> int:
    """Start everything and wait; what ends it again goes on ``undo``."""
    root = Path(tempfile.mkdtemp(prefix="apachews-demo-"))
    undo.callback(shutil.rmtree, root)
    python_home = prepare(root)
    producers = []
    for name in PRODUCERS:
        producers.append(start_producer(root, python_home, name))
        undo.callback(producers[-1].wait)
        undo.callback(producers[-1].terminate)
        wait_for_socket(root / "htdocs" / name, producers[-1])
    apache = PrivateApache(
        root,
        root / "htdocs",
        port=arguments.port,
        tls_port=arguments.tls_port,
        wsgi_module=private_apache.find_wsgi_module(),
        python_home=python_home,
        handler=handler_in(python_home),
        mpm=arguments.mpm,
    )
    undo.callback(apache.stop)
    undo.callback(ignore_signals)  # ending is under way from here on
    apache.start()
    print(
        f"""apachews demo is running:

    http://127.0.0.1:{arguments.port}/    WebSockets over ws://
    https://localhost:{arguments.tls_port}/   WebSockets over wss://
                              (the browser warns of its self-made certificate)
    http://127.0.0.1:{arguments.port}/websocket-status
                              what is connected, and how busy it is

Logs are in {root}.  Ctrl-C stops everything.""",
        flush=True,
    )
    return watch(apache, producers)


def ignore_signals() -> None:
    """Let nothing interrupt the end."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def prepare(root: Path) -> Path:
    """Make the document root; return a Python environment that Apache can read.

    As root, Apache serves as www-data, who may not be able to reach a checkout in
    root's home: it then gets a copy, rather than root's home another mode.

    Raises:
        ApacheError: it cannot read the interpreter itself either.
    """
    root.chmod(0o755)
    docroot = root / "htdocs"
    shutil.copytree(DEPLOY / "site", docroot)
    programs = root / "producers"
    shutil.copytree(DEPLOY / "producers", programs)
    if os.geteuid() == 0:
        account = private_apache.as_apache_user()
        os.chown(docroot, account["user"], account["group"])  # the producers' sockets
    if blocking := private_apache.unreadable_parts([Path(sys.base_prefix)]):
        raise ApacheError(
            f"Apache's user {private_apache.APACHE_USER} cannot read the Python in"
            f" {sys.base_prefix}: chmod o+x {' '.join(map(str, blocking))}, or run this as a"
            " user other than root"
        )
    home = Path(sys.prefix)
    if not private_apache.unreadable_parts([handler_in(home)]):
        return home
    copy = root / "python"
    print(
        f"demo: {private_apache.APACHE_USER} cannot read {home}; Apache gets a copy",
        file=sys.stderr,
    )
    shutil.copytree(home, copy, symlinks=True)
    return copy


def handler_in(python_home: Path) -> Path:
    """Return the handler's directory in an environment like the running one."""
    packages = Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    return python_home / packages / "apachews_handler"


def start_producer(root: Path, python_home: Path, name: str) -> subprocess.Popen[bytes]:
    """Start a producer, as Apache's user where that is another."""
    program = root / "producers" / PRODUCERS[name]
    return subprocess.Popen(
        [str(python_home / "bin" / "python3"), str(program), str(root / "htdocs" / name)],
        cwd="/",
        # Ctrl-C is for the demo, which ends them in order.
        start_new_session=True,
        **private_apache.as_apache_user(),
    )


def wait_for_socket(path: Path, producer: subprocess.Popen[bytes]) -> None:
    """Wait until a producer listens.

    Raises:
        ApacheError: it ended instead.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while not path.exists():
        if producer.poll() is not None or time.monotonic() > deadline:
            raise ApacheError(f"the producer of {path.name} did not start")
        time.sleep(0.02)


def watch(apache: PrivateApache, producers: list[subprocess.Popen[bytes]]) -> int:
    """Wait until something ends that should not; return the exit status."""
    while True:
        if (status := apache.wait(1)) is not None:
            print(f"demo: Apache ended with {status}\n{apache.error_log}", file=sys.stderr)
            return 1
        for producer, program in zip(producers, PRODUCERS.values(), strict=True):
            if producer.poll() is not None:
                print(f"demo: {program} ended with {producer.returncode}", file=sys.stderr)
                return 1


if __name__ == "__main__":
    sys.exit(main())
