"""The extensions in C that the environment has installed."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sysconfig
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

INSTALLED = Path(sysconfig.get_path("platlib")) / "apachews_handler"


@cache
def extension(package: str, name: str) -> ModuleType:
    """Return an extension of ``apachews_handler``; the checkout may have none, and is not used."""
    if not INSTALLED.exists() and "TOX_ENV_NAME" not in os.environ:
        pytest.skip("apachews is not installed in this environment")
    (path,) = (INSTALLED / package).glob(f"{name}.*.so")  # these environments have a compiler
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module
