"""The Python environment in which a private Apache runs the handler: the running one.

Contract: ``python_home(…)`` returns the prefix of an environment that Apache's user can
read.  If root runs this, Apache's user is www-data, which cannot read an environment in
root's home: it gets a copy, so that the mode of root's home stays as it is.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

from .private_apache import APACHE_USER, ApacheError, unreadable_parts
from .python_environment import PythonEnvironment


def python_home(copy: Path, before_file: Callable[[], object] = lambda: None) -> Path:
    """Return the prefix of an environment with the handler that Apache's user can read.

    Args:
        copy: the place for a copy of the running one, if it is needed; does not exist.
        before_file: called before each file is copied, and may raise to end the copying.

    Returns:
        ``sys.prefix``, or ``copy``.

    Raises:
        ApacheError: the handler is not installed, or Apache's user cannot read the
            interpreter.
    """
    home = Path(sys.prefix)
    _require_handler(home)
    if blocking := unreadable_parts([Path(sys.base_prefix)]):
        raise ApacheError(
            f"Apache's user {APACHE_USER} cannot read the Python in"
            f" {sys.base_prefix}: chmod o+x {' '.join(map(str, blocking))}, or run this as a"
            " user other than root"
        )
    if not unreadable_parts([home, handler_in(home)]):
        return home

    def copy_file(source: str, target: str) -> str:
        before_file()
        return shutil.copy2(source, target)

    shutil.copytree(home, copy, symlinks=True, copy_function=copy_file)
    copy.chmod(0o755)  # instead of the mode of the original
    if blocking := unreadable_parts([copy, handler_in(copy)]):
        real = copy.resolve()
        parts = " ".join(
            str(home / part.relative_to(real) if part.is_relative_to(real) else part)
            for part in blocking
        )
        raise ApacheError(
            f"Apache's user {APACHE_USER} cannot read all of {home}, nor of a copy:"
            f" chmod o+x {parts}, or run this as a user other than root"
        )
    return copy


def handler_in(home: Path) -> Path:
    """Return the handler's directory in an environment like the running one."""
    environment = PythonEnvironment.running()
    if environment.is_packaged:
        # Debian's Python answers with /usr/local, where pip installs.
        return environment.handler
    packages = Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    return home / packages / "apachews_handler"


def interpreter_in(home: Path) -> Path:
    """Return the interpreter of an environment that ``python_home`` returned."""
    if home == Path(sys.prefix):
        return Path(sys.executable)
    return home / "bin" / "python3"


def _require_handler(home: Path) -> None:
    """Check that the environment has the packages that Apache imports."""
    handler = handler_in(home)
    if not handler.is_dir():
        found = importlib.util.find_spec("apachews_handler")
        where = f" (but in {os.path.dirname(found.origin)})" if (found and found.origin) else ""
        raise ApacheError(
            f"apachews_handler is not in {handler.parent}, from where Apache imports it{where}:"
            " pip install 'apachews[bridge]' in a virtual environment, and run this with its"
            " Python"
        )
    if importlib.util.find_spec("wsproto") is None:
        raise ApacheError("wsproto is not installed: pip install 'apachews[bridge]'")
