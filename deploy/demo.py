"""The demo: a private Apache with the examples, and a page that leads to each.

``deploy/demo`` installs what is missing and runs this.  It is ``apachews run`` with a
site of its own, and without the logs.  Everything it makes lies in one temporary
directory, which goes when it ends; Ctrl-C, SIGTERM or SIGHUP ends it.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from apachews_tools.cli.command import temporary_directory
from apachews_tools.cli.run import FEW_THREADS
from apachews_tools.dev.supervisor import APACHE, Supervisor
from apachews_tools.httpd import private_apache
from apachews_tools.httpd.private_apache import ApacheError, PrivateApache
from apachews_tools.httpd.python_home import handler_in, interpreter_in, python_home

from .examples import Examples

DEPLOY = Path(__file__).resolve().parent
# For what asks who one is.
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
    arguments = parser.parse_args()
    try:
        with temporary_directory("apachews-demo-") as root:
            status = run(arguments, root)
    except ApacheError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        return 130
    if not status:
        print("\ndemo: everything has ended", file=sys.stderr)
    return status


def run(arguments: argparse.Namespace, root: Path) -> int:
    """Run everything until told to end; return the exit status."""
    root.chmod(0o755)
    docroot = root / "htdocs"
    shutil.copytree(DEPLOY / "site", docroot)
    home = python_home(root / "python")
    if home != Path(sys.prefix):
        say(f"{private_apache.APACHE_USER} cannot read {sys.prefix}; Apache gets a copy")
    examples = Examples(
        root, docroot, log=root / "access.log", python_home=home, passwords=PASSWORDS
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
        on_ready=lambda: announce(apache),
    ).run()


def announce(apache: PrivateApache) -> None:
    """Print where it is."""
    print(
        f"""apachews demo is running:

    http://127.0.0.1:{apache.port}/    WebSockets over ws://
    https://localhost:{apache.tls_port}/   WebSockets over wss://
                              (the browser warns of its self-made certificate)
    http://127.0.0.1:{apache.port}/websocket-status
                              what is connected, and how busy it is

Where it asks for a name: ann or bob, with the password demo.
Logs are in {apache.root}.  Ctrl-C stops everything.""",
        flush=True,
    )


def show(name: str, line: str, colour: str | None) -> None:
    """Show what a producer writes: it has something to complain of."""
    if name != APACHE:
        say(f"{name}: {line}")


def say(text: str) -> None:
    """Say something on standard error."""
    print(f"demo: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
