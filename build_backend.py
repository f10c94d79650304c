"""The build backend: setuptools, which also gets mypy if the build compiles modules with it.

Contract: ``pyproject.toml`` names this module.  A build of a wheel compiles the modules of
``setup.py`` if this is CPython with a GIL, and the machine has a compiler and Python's headers.
``APACHEWS_COMPILE=0`` switches that off.  With ``APACHEWS_COMPILE=1`` the build fails if it cannot
compile; otherwise it goes on without, and says so.  An editable installation compiles nothing:
the files of the checkout are what runs.

mypy is a requirement of such a build only, and only on platforms for which it has wheels: it is
itself compiled.  Elsewhere the build uses a mypy that is installed (``pip wheel
--no-build-isolation``).
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403 - the hooks that are not here

# The version that the tests use: others may compile in another way.
MYPY: Final = "mypy==2.4.1"
SWITCH: Final = "APACHEWS_COMPILE"
_HAS_WHEELS: Final = ("x86_64", "aarch64")


def is_required() -> bool:
    """Return whether a build that cannot compile is to fail.

    Raises:
        SystemExit: ``APACHEWS_COMPILE`` has another value.
    """
    value = os.environ.get(SWITCH, "")
    if value not in ("", "0", "1"):
        raise SystemExit(f"{SWITCH} is {value!r}, but must be 0 or 1")
    return value == "1"


def why_not() -> str:
    """Return why this build does not compile modules; "" if it does."""
    if not is_required() and os.environ.get(SWITCH):
        return f"{SWITCH} is 0"
    if sys.implementation.name != "cpython":
        return f"this is {platform.python_implementation()}"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return "this Python has no GIL"
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    if not shutil.which(compiler):
        return f"there is no compiler: {compiler}"
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        return "Python's headers are not installed"
    return ""


def get_requires_for_build_wheel(
    config_settings: Mapping[str, str | list[str] | None] | None = None,
) -> list[str]:
    """Return what the build of a wheel needs besides setuptools."""
    needed = list(build_meta.get_requires_for_build_wheel(config_settings))
    has_wheels = sys.platform == "linux" and platform.machine() in _HAS_WHEELS
    if not why_not() and (has_wheels or is_required()):
        needed.append(MYPY)
    return needed
