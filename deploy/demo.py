"""The demo: a private Apache with the examples, and a page with links to them.

``deploy/demo`` installs missing packages and runs this module.  It works like ``apachews run``
with a fixed site, and without showing logs.  All files are in one temporary directory, which
is removed at the end; Ctrl-C, SIGTERM or SIGHUP ends the demo.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from apachews._processes.signals import Signals
from apachews_tools.cli.command import exit_if_signalled, temporary_directory
from apachews_tools.cli.run import FEW_THREADS
from apachews_tools.dev.supervisor import APACHE, Supervisor
from apachews_tools.httpd import private_apache
from apachews_tools.httpd.private_apache import ApacheError, PrivateApache
from apachews_tools.httpd.python_home import handler_in, interpreter_in, python_home

from .examples import Examples

DEPLOY = Path(__file__).resolve().parent
# For the examples with a login.
PASSWORDS = {"ann": "demo", "bob": "demo"}


def main() -> int:
    """Run the demo; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="deploy/demo", description="Run a private Apache with the examples."
    )
    parser.add_argument("--port", type=int, default=8080, help="HTTP port (default 8080)")
    parser.add_argument("--tls-port", type=int, default=8443, help="HTTPS port (default 8443)")
    parser.add_argument(
        "--mpm", choices=("event", "worker", "prefork"), default="event", help="httpd's MPM"
    )
    parser.add_argument(
        "--machines",
        type=int,
        choices=(1, 2),
        default=1,
        help="2: a second Apache on the next ports, as on another machine; a relay connects their"
        " chats",
    )
    parser.add_argument("--relay", default="", help="address of the relay of the chat")
    # The process that is the second machine.
    parser.add_argument("--second", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    try:
        with (
            temporary_directory("apachews-demo-") as (root, signals),
            machines(arguments, root) as arguments.relay,
        ):
            status = run(arguments, root, signals)
    except ApacheError as error:
        say(str(error))
        return 1
    if not status:
        print("\ndemo: all processes have ended", file=sys.stderr)
    return status


@contextlib.contextmanager
def machines(arguments: argparse.Namespace, root: Path) -> Iterator[str]:
    """Run the relay and the second demo, if they are wanted; yield the relay's address."""
    if arguments.machines == 1:
        yield arguments.relay
        return
    relay = f"unix://{root}/relay.sock"
    # Debian's package redis-tools has the server under another name, and starts none.
    program = shutil.which("redis-server") or shutil.which("redis-check-rdb")
    if program is None:
        raise ApacheError("--machines 2 needs Redis: apt-get install redis-tools")
    root.chmod(0o755)
    server = ["redis-server", "--port", "0", "--unixsocket", f"{root}/relay.sock"]
    server += ["--unixsocketperm", "777", "--save", "", "--logfile", f"{root}/relay.log"]
    second = [
        *(
            sys.executable,
            "-m",
            "deploy.demo",
            "--mpm",
            arguments.mpm,
            "--relay",
            relay,
            "--second",
        ),
        *("--port", str(arguments.port + 1), "--tls-port", str(arguments.tls_port + 1)),
    ]
    with contextlib.ExitStack() as stack:
        stack.callback(end, redis := subprocess.Popen(server, executable=program))
        stack.callback(end, subprocess.Popen(second))
        say(f"process {redis.pid} is Redis, the relay")
        yield relay


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process, and wait for it."""
    process.terminate()
    process.wait()


def run(arguments: argparse.Namespace, root: Path, signals: Signals) -> int:
    """Run everything until a signal ends it; return the exit status."""
    root.chmod(0o755)
    docroot = root / "htdocs"
    shutil.copytree(DEPLOY / "site", docroot)
    home = python_home(root / "python", lambda: exit_if_signalled(signals))
    if home != Path(sys.prefix):
        say(f"{private_apache.APACHE_USER} cannot read {sys.prefix}; Apache gets a copy")
    examples = Examples(
        root,
        docroot,
        log=root / "access.log",
        python_home=home,
        passwords=PASSWORDS,
        relay=arguments.relay,
    )
    apache = PrivateApache(
        root,
        docroot,
        port=arguments.port,
        tls_port=arguments.tls_port,
        wsgi_module=private_apache.find_wsgi_module(),
        python_home=home,
        handler=handler_in(home),
        mpm=arguments.mpm,
        extra=examples.configuration() + ("" if arguments.mpm == "prefork" else FEW_THREADS),
    )
    return Supervisor(
        apache,
        examples.producers,
        python=interpreter_in(home),
        show=show,
        say=say,
        on_ready=lambda: print(announcement(apache, arguments), flush=True),
        signals=signals,
    ).run()


def announcement(apache: PrivateApache, arguments: argparse.Namespace) -> str:
    """Return the addresses, and what connects the two machines if there are two."""
    machine, chats = "", ""
    if arguments.second:
        machine = " on the second machine"
    elif arguments.machines == 2:
        machine = " on the first of two machines"
        chats = f"""
    http://127.0.0.1:{apache.port}/chat/
                              the chat on this machine
    http://127.0.0.1:{apache.port + 1}/chat/
                              the same chat on the second one, which reports when it is ready
"""
    return f"""apachews demo is running{machine}:

    http://127.0.0.1:{apache.port}/    WebSockets over ws://
    https://localhost:{apache.tls_port}/   WebSockets over wss://
                              (the browser warns about its self-signed certificate)
    http://127.0.0.1:{apache.port}/websocket-status
                              the connections and their load
{chats}
To log in, use ann or bob with the password demo.
Logs are in {apache.root}.  Ctrl-C stops everything."""


def show(name: str, line: str, colour: str | None) -> None:
    """Show the output of producers, which is about problems; leave out Apache's."""
    if name != APACHE:
        say(f"{name}: {line}")


def say(text: str) -> None:
    """Write a line to standard error."""
    print(f"demo: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
