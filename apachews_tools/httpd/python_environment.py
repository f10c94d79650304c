"""The Python environment of apachews, and the Python of a mod_wsgi.

Contract: ``PythonEnvironment.running()`` is the environment of this process;
``python_of(module)`` finds the Python version of a mod_wsgi in its file.  Neither
executes anything.
"""

from __future__ import annotations

import re
import site
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .private_apache import DEBIAN_WSGI_MODULE

# The places of Debian, and of Fedora and its derivatives.
SYSTEM_WSGI_MODULES: Final = (
    DEBIAN_WSGI_MODULE,
    Path("/usr/lib64/httpd/modules/mod_wsgi_python3.so"),
    Path("/usr/lib/httpd/modules/mod_wsgi_python3.so"),
)
# The modules of Debian's packages, whatever the version of the system's Python.
PACKAGED: Final = Path("/usr/lib/python3/dist-packages")
# Strings in a mod_wsgi that is linked with libpython, and in one that contains it.
_LINKED = re.compile(rb"libpython(3\.\d+)")
_INSIDE = re.compile(rb"lib/python(3\.\d+)")
_IN_NAME = re.compile(r"mod_wsgi-py(3)(\d+)|mod_wsgi\.so-(3)\.(\d+)")

Version = tuple[int, int]


@dataclass(frozen=True)
class PythonEnvironment:
    """The Python environment that has apachews.

    Attributes:
        version: of Python, for example (3, 11).
        prefix: of the environment, ``sys.prefix``.
        base_prefix: of the interpreter that the environment was made with.
        packages: the directory that has ``apachews`` and ``apachews_handler``.
        wsgi_module: the file of mod_wsgi from PyPI in this environment, or None.
        system_wsgi_module: the distribution's, or None.
    """

    version: Version
    prefix: Path
    base_prefix: Path
    packages: Path
    wsgi_module: Path | None = None
    system_wsgi_module: Path | None = None

    @classmethod
    def running(cls) -> PythonEnvironment:
        """Return the environment of this process."""
        packages = Path(__file__).resolve().parents[2]
        places = dict.fromkeys([packages, *map(Path, sys.path), *map(Path, site.getsitepackages())])
        modules = (
            module
            for place in places
            for module in sorted((place / "mod_wsgi" / "server").glob("mod_wsgi-py*.so"))
        )
        return cls(
            sys.version_info[:2],
            Path(sys.prefix),
            Path(sys.base_prefix),
            packages,
            next(modules, None),
            next((path for path in SYSTEM_WSGI_MODULES if path.exists()), None),
        )

    @property
    def is_distributions(self) -> bool:
        """Whether it is the Python of the system, instead of a virtual environment."""
        return self.prefix == self.base_prefix == Path("/usr")

    @property
    def is_packaged(self) -> bool:
        """Whether Debian's package installed apachews."""
        return self.packages == PACKAGED

    @property
    def handler(self) -> Path:
        """The directory of ``apachews_handler``."""
        return self.packages / "apachews_handler"

    @property
    def shipped(self) -> Path:
        """The configuration to include."""
        return self.packages / "apachews_tools" / "httpd" / "apachews.conf"


def python_of(module: Path) -> Version | None:
    """Return the version of Python that a mod_wsgi is built for, None if it is unknown.

    Raises:
        OSError: the file cannot be read.
    """
    data = module.read_bytes()
    if match := _LINKED.search(data) or _INSIDE.search(data):
        return parse_version(match[1].decode())
    if name := _IN_NAME.search(module.resolve().name):
        major, minor = (part for part in name.groups() if part)
        return int(major), int(minor)
    return None


def parse_version(text: str) -> Version:
    """Return ``3.11`` as (3, 11)."""
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


def version_text(version: Version) -> str:
    """Return (3, 11) as ``3.11``."""
    return ".".join(map(str, version))


def version_in(path: str) -> Version | None:
    """Return the version that a path of installed packages names, or None."""
    match = re.search(r"/python(3\.\d+)/", path)
    return parse_version(match[1]) if match else None
