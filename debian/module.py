"""Writes the module's files for the package: python3 debian/module.py DIRECTORY.

``apachews config --debian`` writes the same lines for an installation with pip.
"""

from __future__ import annotations

import sys
from pathlib import Path

from apachews_tools.httpd.private_apache import DEBIAN_WSGI_MODULE
from apachews_tools.httpd.python_environment import DIST_PACKAGES, PythonEnvironment
from apachews_tools.install.debian_module import NAME
from apachews_tools.install.installation import WsgiModule, load_file, server_directives


def write(directory: Path) -> None:
    """Write ``apachews.load`` and ``apachews.conf``."""
    environment = PythonEnvironment(sys.version_info[:2], Path("/usr"), Path("/usr"), DIST_PACKAGES)
    module = WsgiModule(DEBIAN_WSGI_MODULE, is_systems=True)
    directory.mkdir(parents=True)
    (directory / f"{NAME}.load").write_text(load_file(module))
    (directory / f"{NAME}.conf").write_text(server_directives(environment, module))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
