"""``apachews config``: the directives for this installation."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Final

from apachews_tools.httpd.ownership import read_as_root, weakness
from apachews_tools.httpd.python_environment import PythonEnvironment
from apachews_tools.install.debian_module import DIRECTORY, NAME, DebianModule, package_of
from apachews_tools.install.installation import (
    USERS,
    WsgiModule,
    apache_account,
    choose_wsgi_module,
    load_file,
    require_packages,
    require_readable,
    server_directives,
    tls_virtual_host,
)
from apachews_tools.install.tunnels import SOFTWARE, software_lines

from .command import CommandError

# A file of this installation, for dpkg.
HERE: Final = Path(__file__).resolve()

SUMMARY: Final = "print the directives for Apache, or install them on Debian"

DESCRIPTION: Final = """\
Print the directives that this installation needs in Apache's configuration: the Python
environment, the handler, and mod_wsgi if pip installed it.  The Debian package
libapache2-mod-apachews brings them, and a2enmod apachews is enough.

With --tunnel they are those that lead the WebSockets of existing software through Apache
(docs/howto/tunnel.md), for its virtual host.

With --debian they become a module that a2enmod enables and a2dismod disables. Files that
are up to date, or that were edited, stay as they are.

The command fails if the installation cannot work: if mod_wsgi is built for another Python,
or if Apache's user cannot read it. With --debian, as root, it also fails if other users can
change the installation, because Apache reads parts of it as root."""

EXAMPLES: Final = """\
examples:
  sudo apachews config --debian
  sudo apachews config --debian --undo
  apachews config | sudo tee /etc/httpd/conf.d/apachews.conf
  apachews config --tls-vhost chat.example.org --docroot /var/www/chat \\
      | sudo tee /etc/apache2/sites-available/chat.conf
  apachews config --tunnel jupyter --backend http://127.0.0.1:8888 --path /jupyter

exit status: 0 printed, or installed; 1 the installation cannot work, or a file was edited"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument(
        "--debian",
        action="store_true",
        help="write the directives to mods-available, for a2enmod, instead of printing them",
    )
    kind.add_argument(
        "--tls-vhost", metavar="NAME", help="print a virtual host with TLS for NAME instead"
    )
    kind.add_argument(
        "--tunnel",
        metavar="NAME",
        choices=SOFTWARE,
        help="print the lines for a WebSocket server that exists already: " + ", ".join(SOFTWARE),
    )
    parser.add_argument(
        "--backend",
        metavar="URL",
        help="with --tunnel: its address, http://HOST:PORT or unix:/PATH|http://localhost"
        " (default: its usual one)",
    )
    parser.add_argument(
        "--path",
        metavar="PATH",
        help="with --tunnel: the path of the site's URLs that lead to it (default: its usual one)",
    )
    parser.add_argument(
        "--undo", action="store_true", help="with --debian: disable the module, remove its files"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="with --debian: overwrite edited files, and accept files that other users can change",
    )
    parser.add_argument(
        "--directory",
        type=Path,
        default=DIRECTORY,
        metavar="DIR",
        help=f"with --debian: Apache's configuration (default {DIRECTORY})",
    )
    parser.add_argument(
        "--docroot",
        type=Path,
        default=Path("/var/www/html"),
        metavar="DIR",
        help="with --tls-vhost or --tunnel: the site's document root (default /var/www/html)",
    )
    parser.add_argument(
        "--certificate", type=Path, metavar="FILE", help="with --tls-vhost (default: certbot's)"
    )
    parser.add_argument(
        "--key", type=Path, metavar="FILE", help="with --tls-vhost (default: certbot's)"
    )
    parser.add_argument(
        "--share-python",
        action="store_true",
        help="keep the WSGIPythonHome of the site, and print WSGIPythonPath instead",
    )
    parser.add_argument(
        "--wsgi-module", type=Path, metavar="FILE", help="the mod_wsgi that Apache already loads"
    )
    parser.add_argument(
        "--user", metavar="NAME", help=f"Apache's user (default: {', '.join(USERS)})"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the directives, or write them."""
    if (arguments.undo or arguments.force) and not arguments.debian:
        raise CommandError("--undo and --force need --debian")
    if (arguments.backend or arguments.path) and not arguments.tunnel:
        raise CommandError("--backend and --path need --tunnel")
    if bool(arguments.certificate) != bool(arguments.key):
        raise CommandError("--certificate and --key need each other")
    try:
        if arguments.tls_vhost:
            print(
                tls_virtual_host(
                    arguments.tls_vhost, arguments.docroot, arguments.certificate, arguments.key
                ),
                end="",
            )
        elif arguments.tunnel:
            lines = software_lines(
                arguments.tunnel, arguments.backend, arguments.path, str(arguments.docroot)
            )
            print("\n".join(lines))
        elif arguments.undo:
            _undo(DebianModule(arguments.directory), arguments.force)
        elif arguments.debian and (package := package_of(HERE)):
            _explain_package(DebianModule(arguments.directory), package)
        else:
            environment = PythonEnvironment.running()
            module = _checked(arguments, environment)
            if arguments.debian:
                _install(arguments, environment, module)
            else:
                print(
                    server_directives(environment, module, shares_python=arguments.share_python),
                    end="",
                )
    except PermissionError as error:
        raise CommandError(f"{error.filename}: {error.strerror}; run this with sudo") from error
    return 0


def _explain_package(place: DebianModule, package: str) -> None:
    """Say that a Debian package has done what ``--debian`` does."""
    print(f"nothing to write: the package {package} has the module's files in {place.directory}")
    if not place.is_enabled:
        print(f"\nrun next, as root:\n  a2enmod {NAME}\n  systemctl restart apache2")


def _checked(arguments: argparse.Namespace, environment: PythonEnvironment) -> WsgiModule:
    module = choose_wsgi_module(environment, arguments.wsgi_module)
    require_packages(environment)
    account = apache_account([arguments.user] if arguments.user else USERS)
    if account is None:
        if arguments.user:
            raise CommandError(f"unknown user {arguments.user!r}")
        print(
            "apachews config: Apache's user does not exist yet, so it is unknown whether it can"
            " read this installation",
            file=sys.stderr,
        )
    else:
        require_readable(environment, account)
    return module


def _install(
    arguments: argparse.Namespace, environment: PythonEnvironment, module: WsgiModule
) -> None:
    if os.geteuid() == 0 and not arguments.force:
        _require_ownership(environment, module)
    place = DebianModule(arguments.directory)
    fates = place.write(
        {
            ".load": load_file(module),
            ".conf": server_directives(
                environment, module, shares_python=arguments.share_python, loads_module=False
            ),
        },
        forced=arguments.force,
    )
    for path, fate in fates.items():
        print(f"{path}: {fate}")
    older = arguments.directory / "conf-enabled" / f"{NAME}.conf"
    if older.exists():
        print(f"{older} has these lines too: a2disconf {NAME}", file=sys.stderr)
    commands = [] if place.is_enabled else [f"a2enmod {NAME}"]
    if module.conflicts and (arguments.directory / "mods-enabled" / "wsgi.load").exists():
        commands.insert(0, "a2dismod wsgi")
    if commands or set(fates.values()) != {"unchanged"}:
        commands.append("systemctl restart apache2")
        print("\nrun next, as root:\n  " + "\n  ".join(commands))


def _require_ownership(environment: PythonEnvironment, module: WsgiModule) -> None:
    """Check that only root can change the files that Apache reads as root.

    Raises:
        CommandError: another user can.
    """
    for file in read_as_root(environment, module.path):
        if found := weakness(file):
            raise CommandError(
                f"Apache reads {file} as root, and {found}: a user who can write there could"
                " become root. Install apachews where only root can write (sudo python3 -m venv"
                " /opt/apachews && sudo /opt/apachews/bin/pip install 'apachews[bridge]'), and run"
                " its config --debian; --force skips this check"
            )


def _undo(place: DebianModule, forced: bool) -> None:
    removed = place.undo(forced=forced)
    for path in removed:
        print(f"{path}: removed")
    if removed:
        print("\nrun next, as root:\n  systemctl restart apache2")
    else:
        print(f"{place.directory}: unchanged; it does not have files of apachews")
