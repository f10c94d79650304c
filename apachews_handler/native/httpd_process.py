"""The httpd that this process is: its functions, its modules, its MPM, the end of a child.

Contract: ``functions()`` returns the functions of ``httpd_abi.SIGNATURES``, bound once per process.
It raises ``HttpdError`` if the process is not an httpd 2.4, so it is called before a pointer
of httpd's is followed.  ``is_threaded``, ``spare_workers``, ``on_child_stopping`` and
``pid_file_name`` are about the child as a whole.

How this works: httpd refuses to load a module that was built for another module magic number;
``find_module`` refuses it in the same way.

A function that may wait (a write to the client), or that runs code of other modules (filters,
which can be Python in mod_python), releases the GIL during the call.  The other functions keep
it, because passing the GIL between the workers of a child costs more than they do.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from ctypes import byref, c_char_p, c_int, c_void_p
from typing import Any

from . import httpd_abi as abi

# References to what httpd calls: ctypes frees a callback that Python no longer refers to.
callbacks: list[Any] = []


class HttpdError(Exception):
    """httpd is not what the code was written for, or the connection is not.

    Attributes:
        check: which premise did not hold.
        found: what was found instead.
    """

    def __init__(self, check: str, found: str) -> None:
        super().__init__(check, found)
        self.check = check
        self.found = found


class _Functions:
    """The functions of the httpd that this process is."""

    def __init__(self) -> None:
        process, waiting = ctypes.PyDLL(None), ctypes.CDLL(None)
        for name, (result, arguments) in abi.SIGNATURES.items():
            try:
                function = getattr(waiting if name in abi.MAY_WAIT else process, name)
            except AttributeError as error:
                raise HttpdError(
                    f"{name} is in this process",
                    f"no such symbol in {_server_description(process)}: httpd 2.4 is needed",
                ) from error
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)
        core = self.find_module(b"core.c")
        if core is None:
            raise HttpdError("this process is httpd", "no module core.c")
        # Asks every module that can do TLS.  httpd before 2.4.47 does not have it, only the
        # optional function of mod_ssl.
        self.conn_is_ssl = getattr(process, "ap_ssl_conn_is_ssl", None)
        if self.conn_is_ssl:
            self.conn_is_ssl.restype, self.conn_is_ssl.argtypes = c_int, (c_void_p,)
        # ap_get_brigade for a connection without TLS, whose filters do not block if they are told
        # so; unless one of them is in Python, and needs the GIL.
        self.ap_get_plain_brigade = self.ap_get_brigade
        if not self.find_module(b"mod_python.c"):
            self.ap_get_plain_brigade = process["ap_get_brigade"]
            result, arguments = abi.SIGNATURES["ap_get_brigade"]
            self.ap_get_plain_brigade.restype = result
            self.ap_get_plain_brigade.argtypes = arguments
        host = self.find_module(b"mod_wsgi.c") or self.find_module(b"mod_python.c") or core
        self.log_index = host.module_index
        # As in httpd's own log lines: "wsgi" for mod_wsgi.c.
        self.log_name = host.name.decode().removeprefix("mod_").removesuffix(".c")

    def find_module(self, name: bytes) -> Any:
        """Return the record of a module, None if it is not loaded."""
        pointer = self.ap_find_linked_module(name)
        if not pointer:
            return None
        module = pointer.contents
        magic = (module.magic, module.version)
        if magic != (abi.MODULE_MAGIC_COOKIE, abi.MODULE_MAGIC_NUMBER_MAJOR):
            raise HttpdError(
                f"the magic number of httpd is {abi.MODULE_MAGIC_NUMBER_MAJOR}, as in 2.4",
                f"{module.version} (cookie {module.magic:#x}) in {name.decode()}",
            )
        return module

    def __getattr__(self, name: str) -> Any:  # for mypy: set in __init__
        raise AttributeError(name)


@functools.cache
def functions() -> _Functions:
    """Return the functions of this httpd, bound at the first call.

    Raises:
        HttpdError: the process is not an httpd 2.4.
    """
    return _Functions()


def _server_description(process: ctypes.PyDLL) -> str:
    try:
        function = process.ap_get_server_description
    except AttributeError:
        return "this process, which is not httpd"
    function.restype = c_char_p
    return str((function() or b"httpd").decode())


@functools.cache
def pid_file_name() -> bytes | None:
    """Return the value of PidFile, which is constant during the life of a child."""
    try:
        return c_char_p.in_dll(ctypes.PyDLL(None), "ap_pid_fname").value
    except ValueError:
        return None


def is_threaded() -> bool:
    """Tell whether this MPM's children have several threads: event and worker, not prefork."""
    return _ask_mpm(abi.AP_MPMQ_IS_THREADED) != 0


@functools.cache
def spare_workers() -> int:
    """Return how many idle workers this httpd keeps, at most how many workers it has."""
    if is_threaded():
        spare = _ask_mpm(abi.AP_MPMQ_MIN_SPARE_THREADS)
        workers = _ask_mpm(abi.AP_MPMQ_MAX_DAEMONS) * _ask_mpm(abi.AP_MPMQ_MAX_THREADS)
    else:
        spare, workers = _ask_mpm(abi.AP_MPMQ_MIN_SPARE_DAEMONS), _ask_mpm(abi.AP_MPMQ_MAX_DAEMONS)
    # An MPM that does not know the answer says 0.
    return max(1, min(spare, workers))


def _ask_mpm(question: int) -> int:
    """Return the MPM's answer, 0 for a question that it does not know."""
    result = c_int(0)
    functions().ap_mpm_query(question, byref(result))
    return result.value


def on_child_stopping(callback: Callable[[bool], None]) -> None:
    """Register a callback for the end of a child of the event or worker MPM.

    To be called from the main thread while it is the only thread, as at
    ``WSGIImportScript``: httpd's list of hooks has no lock.

    Args:
        callback: called on the main thread or the listener's, before httpd waits for
            its workers, with True if requests may be finished (a graceful
            restart, MaxConnectionsPerChild) and False for a stop; it may be called
            with True first and with False later.  It must not block.

    Raises:
        HttpdError: this httpd has no such hook (it is older than 2.4.49).
    """
    hook = getattr(ctypes.CDLL(None), "ap_hook_child_stopping", None)
    if hook is None:
        raise HttpdError("httpd has the hook child_stopping", "it is older than 2.4.49")
    hook.restype, hook.argtypes = None, (abi.CHILD_STOPPING, c_void_p, c_void_p, c_int)
    function = abi.CHILD_STOPPING(lambda pool, is_graceful: callback(bool(is_graceful)))
    callbacks.append(function)  # httpd has its address for as long as the child lives
    hook(function, None, None, abi.APR_HOOK_MIDDLE)
