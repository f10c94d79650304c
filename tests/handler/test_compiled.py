"""The modules of setup.py's COMPILED, in the form that this run tests: compiled or interpreted."""

from __future__ import annotations

import ast
import importlib
import os
import traceback

import pytest

from apachews import wire
from apachews.exceptions import WireError
from apachews_handler.bridge.reporter import IS_COMPILED

from ..support.site import ROOT


def compiled_names() -> list[str]:
    """Return setup.py's list, without running setup.py."""
    (value,) = (
        node.value
        for node in ast.parse((ROOT / "setup.py").read_text()).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "COMPILED"
    )
    names: list[str] = eval(compile(ast.Expression(value), "setup.py", "eval"))
    return names


def test_all_have_one_form() -> None:
    names = compiled_names()
    assert len(names) == len(set(names)) > 20
    modules = [
        importlib.import_module(name.removesuffix(".py").replace("/", ".")) for name in names
    ]
    forms = {not str(module.__file__).endswith(".py") for module in modules}
    assert forms == {IS_COMPILED}
    if os.environ.get("APACHEWS_INSTALLED"):
        assert IS_COMPILED


def test_a_traceback_names_file_and_line() -> None:
    with pytest.raises(WireError) as caught:
        wire.decode_header(b"\x81\xff", 0)
    last = traceback.extract_tb(caught.tb)[-1]
    assert last.filename.endswith("apachews/wire/frames.py")
    assert last.name == "decode_header"
    assert last.lineno
    line = (ROOT / "apachews/wire/frames.py").read_text().splitlines()[last.lineno - 1]
    assert line.strip() == 'raise WireError("masked frame: the wire never masks")'
