"""apachews_handler.modpython, where there is no mod_python; tests/integration has the real one."""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from apachews_handler.lifecycle.child import the_child


class Calls:
    """What is asked of mod_python and of ``the_child``."""

    def __init__(self) -> None:
        self.cleanups: list[object] = []
        self.is_told = False


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Put something in the place of mod_python."""
    calls = Calls()
    module: Any = ModuleType("mod_python")
    module.apache = SimpleNamespace(
        register_cleanup=calls.cleanups.append, OK=0, APLOG_ERR=3, import_module=None
    )

    def end_is_called_by_host() -> None:
        calls.is_told = True

    monkeypatch.setitem(sys.modules, "mod_python", module)
    monkeypatch.delitem(sys.modules, "apachews_handler.modpython", raising=False)
    monkeypatch.setattr(the_child, "end_is_called_by_host", end_is_called_by_host)
    return calls


def load() -> Any:
    return importlib.import_module("apachews_handler.modpython")


def in_a_thread(task: Callable[[], object]) -> None:
    thread = threading.Thread(target=task)
    thread.start()
    thread.join()


def test_the_main_thread_is_told_of_the_end_by_mod_python(calls: Calls) -> None:
    load()
    assert calls.is_told
    assert calls.cleanups == [the_child.end]


def test_a_worker_that_imports_it_expects_nothing(calls: Calls) -> None:
    in_a_thread(load)
    assert not calls.is_told
    assert not calls.cleanups


@pytest.mark.parametrize("is_prepared", [True, False])
def test_a_site_without_python_import_is_told_so_once(
    calls: Calls, is_prepared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    modpython = load()
    logged: list[tuple[str, str]] = []
    log = SimpleNamespace(write=lambda level, text: logged.append((level, text)))
    request = SimpleNamespace(
        variables=dict,
        is_tls=False,
        error_log=lambda: log,
        client_address=lambda: ("203.0.113.7", 0),
    )
    monkeypatch.setattr(modpython.Request, "from_capsule", lambda capsule: request)
    monkeypatch.setattr(the_child, "is_prepared", lambda: is_prepared)
    written: list[bytes] = []
    req = SimpleNamespace(
        interpreter="main_interpreter", _request_rec=object(), write=written.append
    )
    for _ in range(2):
        assert modpython._run(req, lambda environ, start_response, die: [b"here"]) == 0
    assert written == [b"here"] * 2
    if is_prepared:
        assert not logged
    else:
        ((level, text),) = logged
        assert level == "warn"
        assert "PythonImport apachews_handler.modpython main_interpreter" in text


def test_the_status_goes_to_httpd_if_the_site_has_an_error_document(
    calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    modpython = load()
    headers: list[tuple[str, str]] = []
    request = SimpleNamespace(
        variables=dict,
        is_tls=False,
        error_log=lambda: SimpleNamespace(write=lambda level, text: None),
        client_address=lambda: ("203.0.113.7", 51514),
        add_response_header=lambda name, value: headers.append((name, value)),
    )
    monkeypatch.setattr(modpython.Request, "from_capsule", lambda capsule: request)
    req = SimpleNamespace(interpreter="main_interpreter", _request_rec=object(), status=200)

    def refuse(
        environ: dict[str, Any], start_response: Callable[..., Any], die: Callable[[int], None]
    ) -> list[bytes]:
        die(503)
        start_response("503 Service Unavailable", [("X", "y")])
        return []

    assert modpython._run(req, refuse) == 503
    assert (req.status, headers) == (200, [])
