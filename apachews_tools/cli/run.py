"""``apachews run``: a private Apache and its producers, for development."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import json
import os
import re
import sys
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from apachews._listening.endpoint import MAX_PATH_BYTES, Unreachable, is_listened_on
from apachews_tools.dev.program import Producer
from apachews_tools.dev.supervisor import ACCESS, APACHE, Supervisor
from apachews_tools.httpd import private_apache
from apachews_tools.httpd.private_apache import APACHE_USER, SHIPPED, PrivateApache
from apachews_tools.httpd.python_home import handler_in, interpreter_in, python_home
from apachews_tools.terminal.terminal import FAINT, paint, uses_colour

from .command import CommandError, exit_if_signalled, temporary_directory, utf8_text
from .log_lines import LogPrinter

SUMMARY: Final = "run producers with a private Apache, for development"

PORT: Final = 8080
TLS_PORT: Final = 8443
CHANNELS: Final = "apachews.channels"
# httpd's default of 75 exceeds MaxRequestWorkers, 50, and httpd would log a warning.
FEW_THREADS: Final = "MinSpareThreads 10"
# Characters with a meaning in a quoted argument of a directive.
_NOT_IN_DIRECTIVE: Final = re.compile(r'["\\\0-\x1f\x7f]|\$\{')

DESCRIPTION: Final = """\
Run producers with a private Apache, which is independent of the system's:
producer.py serves ws://127.0.0.1:8080/producer.ws.  Each program gets the path of
its socket file as its argument.  The output of the programs and Apache's error log
are shown.  Ctrl-C ends everything in order, a second Ctrl-C at once."""

EXAMPLES: Final = """\
examples:
  apachews run chat.py
  apachews run --reload --docroot site chat.py echo.py
  apachews run --tls --path /ws/chat.ws=chat.py
  apachews run --channels live.toml

With --reload, the next version of a program starts when its file, or a Python module
in or below its directory, changes.  Clients stay connected, and move to the new
version; if it does not start, the old version continues.  (event.resumed tells a
program that a client moved; its client.guid() is the same.)

exit status: 0 ended by Ctrl-C or SIGTERM; 1 it could not start, or Apache exited;
2 arguments; 130 killed by a second Ctrl-C"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument(
        "programs",
        metavar="PROGRAM",
        nargs="*",
        type=utf8_text,
        help="Python file of a producer",
    )
    parser.add_argument(
        "--path",
        metavar="/X.ws=FILE",
        type=utf8_text,
        action="append",
        default=[],
        help="a program, or a FILE.toml of channels, at another path; may be repeated",
    )
    parser.add_argument(
        "--channels",
        metavar="FILE",
        type=utf8_text,
        action="append",
        default=[],
        help="channels at /FILE.ws, with the configuration FILE.toml; may be repeated",
    )
    parser.add_argument(
        "--docroot",
        metavar="DIR",
        type=_directory,
        help="the document root, which also gets the socket files (default: a temporary directory)",
    )
    parser.add_argument(
        "--port", type=_port, default=PORT, help="default %(default)s; 0: a free one"
    )
    parser.add_argument("--tls", action="store_true", help=f"https and wss on port {TLS_PORT}")
    parser.add_argument("--tls-port", metavar="PORT", type=_port, help="the port for https and wss")
    parser.add_argument(
        "--listen",
        metavar="ADDRESS",
        type=_address,
        default="127.0.0.1",
        help="default %(default)s; 0.0.0.0: reachable from other machines",
    )
    parser.add_argument(
        "--mpm", choices=("event", "worker", "prefork"), default="event", help="httpd's MPM"
    )
    parser.add_argument("--reload", action="store_true", help="restart programs when they change")
    parser.add_argument(
        "--verbose", action="store_true", help="show the access log, and all lines of the error log"
    )


def run(arguments: argparse.Namespace) -> int:
    """Run everything until a signal."""
    with contextlib.ExitStack() as undo:
        # The first act: from here on a signal interrupts nothing, and the supervisor reads it.
        root, signals = undo.enter_context(temporary_directory("apachews-run-"))
        root.chmod(0o755)
        docroot = _docroot(arguments.docroot, root)
        producers = find_producers(arguments.programs, arguments.path, docroot, arguments.channels)
        for producer in producers:
            undo.enter_context(_directory_for_socket(producer))
            _require_free(producer.socket)
        _require_readable(docroot, producers)
        home = python_home(root / "python", lambda: exit_if_signalled(signals))
        if home != Path(sys.prefix):
            _say(f"{APACHE_USER} cannot read {sys.prefix}; Apache gets a copy")
        port = arguments.port or private_apache.free_port()
        tls_port = arguments.tls_port
        if tls_port is None:
            tls_port = TLS_PORT if arguments.tls else 0
        elif tls_port == 0:
            while (tls_port := private_apache.free_port()) == port:
                pass
        if tls_port == port:
            raise CommandError(
                f"http and https cannot both use port {port}; choose another with --tls-port"
            )
        paths = [
            urllib.parse.quote(f"/{producer.socket.relative_to(docroot)}") for producer in producers
        ]
        apache = PrivateApache(
            root,
            docroot,
            port=port,
            tls_port=tls_port,
            wsgi_module=private_apache.find_wsgi_module(),
            python_home=home,
            handler=handler_in(home),
            mpm=arguments.mpm,
            address=arguments.listen,
            page=None if (docroot / "index.html").exists() else make_page(root / "page", paths),
            extra="" if arguments.mpm == "prefork" else FEW_THREADS,
        )
        names = [*(producer.name for producer in producers), APACHE]
        if arguments.verbose:
            names.append(ACCESS)
        supervisor = Supervisor(
            apache,
            producers,
            python=interpreter_in(home),
            reload=arguments.reload,
            verbose=arguments.verbose,
            show=LogPrinter(sys.stdout, names).print,
            say=_say,
            on_ready=lambda: _announce(apache, paths),
            signals=signals,
        )
        return supervisor.run()


def find_producers(
    programs: Sequence[str], mappings: Sequence[str], docroot: Path, channels: Sequence[str] = ()
) -> list[Producer]:
    """Return the producers that the arguments name.

    Args:
        programs: files; the socket file has the same name with .ws, in the document root.
        mappings: a path and a file, ``/x.ws=file``; channels if it ends in ``.toml``.
        docroot: the document root.
        channels: configuration files of ``apachews.channels``, with socket files like programs.

    Raises:
        CommandError: no program is given, one is unusable, or two have the same path.
    """
    wanted = [(f"{Path(program).stem}.ws", program, "") for program in programs]
    wanted += [(f"{Path(file).stem}.ws", file, CHANNELS) for file in channels]
    for mapping in mappings:
        path, equals, program = mapping.partition("=")
        if not equals or not program or not path.startswith("/") or not path.endswith(".ws"):
            raise CommandError(
                f"--path {mapping}: expected /x.ws=program.py, a path that ends in .ws"
            )
        if ".." in Path(path).parts:
            raise CommandError(f"--path {mapping}: the path leaves the document root")
        wanted.append((path.lstrip("/"), program, CHANNELS if program.endswith(".toml") else ""))
    if not wanted:
        raise CommandError("no program given; usage: apachews run PROGRAM…")
    producers: dict[Path, Producer] = {}
    for path, program, module in wanted:
        file = Path(program).absolute()
        try:
            with file.open("rb"):
                pass
        except OSError as error:
            raise CommandError(f"{program}: {error.strerror}") from None
        at = docroot / path
        if len(os.fsencode(at)) > MAX_PATH_BYTES:
            raise CommandError(
                f"{at}: the path of a socket file must not exceed {MAX_PATH_BYTES} bytes; use"
                " --path, or a shorter --docroot"
            )
        if at in producers:
            raise CommandError(
                f"{producers[at].program} and {file} have the same path /{path}; use --path"
            )
        producers[at] = Producer(path.removesuffix(".ws"), file, at, module=module)
    return list(producers.values())


def make_page(directory: Path, paths: Sequence[str]) -> Path:
    """Make a page for a document root without index.html; return its directory."""
    directory.mkdir()
    # JSON in HTML: the text must not contain the end of the element.
    sockets = json.dumps(list(paths)).replace("<", "\\u003c")
    page = (SHIPPED / "page.html").read_text()
    marker = '<script type="application/json" id="sockets">'
    (directory / "index.html").write_text(page.replace(f"{marker}[]", marker + sockets))
    return directory


def _docroot(wanted: Path | None, root: Path) -> Path:
    if wanted is None:
        docroot = root / "htdocs"
        docroot.mkdir()
        give_to_apache(docroot)
        return docroot
    if not wanted.is_dir():
        raise CommandError(f"--docroot {wanted}: the directory does not exist")
    docroot = wanted.resolve()
    if _NOT_IN_DIRECTIVE.search(str(docroot)):
        raise CommandError(
            f"--docroot {str(docroot)!r}: a quotation mark, a backslash, a control character or"
            " ${…} has another meaning in Apache's configuration; rename the directory"
        )
    return docroot


@contextlib.contextmanager
def _directory_for_socket(producer: Producer) -> Iterator[None]:
    """Make the directory of a socket file and its missing parents; remove them at the end."""
    directory = producer.socket.parent
    missing = [parent for parent in (directory, *directory.parents) if not parent.exists()]
    for made in reversed(missing):
        made.mkdir()
        give_to_apache(made)
    try:
        if not private_apache.is_permitted(directory, os.W_OK | os.X_OK):
            raise CommandError(
                f"root runs Apache and the producers as {APACHE_USER}, which cannot make socket"
                f" files in {directory}: run this as a user other than root; or install -d -o"
                f" {APACHE_USER} {directory}/ws, and"
                f" --path /ws/{producer.socket.name}={producer.program.name}"
            )
        if not os.access(directory, os.W_OK | os.X_OK):
            raise CommandError(f"{directory} is not writable, so it cannot have socket files")
        yield
    finally:
        for made in missing:
            with contextlib.suppress(OSError):  # another program has put a file there
                made.rmdir()


def _require_free(path: Path) -> None:
    """Check that no other producer listens on a socket file."""
    with contextlib.suppress(Unreachable):  # absent or not a socket: the program will report that
        if is_listened_on(str(path)):
            raise CommandError(f"{path}: another producer listens here; end it, or use --path")


def _require_readable(docroot: Path, producers: Sequence[Producer]) -> None:
    """Check that Apache's user can read the document root and the programs."""
    programs = [producer.program for producer in producers]
    blocking = private_apache.unreadable_parts([docroot, *programs])
    advice = ""
    if blocking:
        advice = f"chmod o+x {' '.join(map(str, blocking))}"
    else:
        closed = [file for file in programs if not private_apache.is_permitted(file, os.R_OK)]
        if not private_apache.is_permitted(docroot, os.R_OK):
            closed.append(docroot)
        if closed:
            advice = f"chmod o+r {' '.join(map(str, closed))}"
    if advice:
        raise CommandError(
            f"{APACHE_USER}, the user of Apache and the producers if root runs this, lacks a"
            f" permission: {advice}; or run this as a user other than root"
        )


def give_to_apache(directory: Path) -> None:
    """Let the producers make socket files in a directory, if they run as another user."""
    if account := private_apache.as_apache_user():
        # (Another user may have replaced it by a link, so the link is not followed.)
        os.chown(directory, account["user"], account["group"], follow_symlinks=False)


def _announce(apache: PrivateApache, paths: Sequence[str]) -> None:
    """Print the URLs."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(apache.address, apache.address)
    if ":" in host:
        host = f"[{host}]"
    lines = [f"  http://{host}:{apache.port}/"]
    lines += [f"  ws://{host}:{apache.port}{path}" for path in paths]
    if apache.tls_port:
        # The name in the certificate.
        if host in ("127.0.0.1", "[::1]"):
            host = "localhost"
        lines.append(f"  https://{host}:{apache.tls_port}/  (with a self-signed certificate)")
        lines += [f"  wss://{host}:{apache.tls_port}{path}" for path in paths]
    print("\n".join(lines), flush=True)


def _say(text: str) -> None:
    line = f"apachews run: {text}"
    print(paint(line, FAINT) if uses_colour(sys.stderr) else line, file=sys.stderr, flush=True)


def _port(argument: str) -> int:
    port = int(argument)
    if not 0 <= port <= 65535:
        raise ValueError(argument)
    return port


def _address(argument: str) -> str:
    return str(ipaddress.ip_address(argument))


def _directory(argument: str) -> Path:
    return Path(utf8_text(argument))


# For argparse's "invalid … value".
_port.__name__ = "port"
_address.__name__ = "IP address"
