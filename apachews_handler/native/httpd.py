"""httpd's C API, through ctypes: the only module that touches it.

Contract: ``Request.from_capsule`` wraps the ``request_rec`` that mod_wsgi hands to
a request, for the duration of that request and on its thread.  Every premise is
checked before a pointer is followed on its strength; one that does not hold
raises ``HttpdError`` and leaves the connection as it was.  What comes out is
numbers, bytes and sockets; a number named ``…_address`` is for ``tls`` only.
``definition`` reads what only the server's configuration can say.
``ErrorLog`` outlives the request: a ``server_rec`` lives as long as the child, and
in a process that is forked from it.  ``is_threaded``, ``on_child_stopping`` and
``pid_file`` are about the child as a whole.

How this works: within httpd 2.4 the module magic number's major part, 20120211,
stands for the layout of the structures in the public headers; httpd refuses to
load a module built for another one, and so does this one.  The fields used are
declared below, in the headers' order; a test compiles a few lines of C against
the installed headers and compares.

Calls that may wait (a write for the client), or run other modules' code (filters, which
may be Python in mod_python), let go of the GIL; the others keep it, for handing it over
between a child's workers costs more than they do.

Sources: httpd.h, http_config.h, http_core.h, http_connection.h, http_protocol.h,
util_filter.h, util_script.h, http_log.h, ap_mpm.h, mpm_common.h; apr_portable.h,
apr_buckets.h, apr_network_io.h, apr_optional.h, apr_tables.h.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from ctypes import (
    POINTER,
    Structure,
    byref,
    c_char_p,
    c_int,
    c_int64,
    c_long,
    c_size_t,
    c_uint16,
    c_uint32,
    c_ulong,
    c_void_p,
)
from typing import Any, Final

# ap_mmn.h: MODULE_MAGIC_NUMBER_MAJOR of all of httpd 2.4, and http_config.h's
# "AP24", in every module record.
MODULE_MAGIC_NUMBER_MAJOR: Final = 20120211
MODULE_MAGIC_COOKIE: Final = 0x41503234

# httpd.h: ap_conn_keepalive_e
AP_CONN_CLOSE: Final = 1
# util_filter.h: ap_input_mode_t; apr_buckets.h: apr_read_type_e
AP_MODE_SPECULATIVE: Final = 3
# util_filter.h: ap_filter_type, of a filter on what a handler writes
AP_FTYPE_RESOURCE: Final = 10
# httpd.h
HTTP_OK: Final = 200
HTTP_INTERNAL_SERVER_ERROR: Final = 500
APR_NONBLOCK_READ: Final = 1
# apr_errno.h
APR_SUCCESS: Final = 0
APR_EOF: Final = 70014
# ap_mpm.h
AP_MPMQ_IS_THREADED: Final = 2
AP_MPMQ_MAX_THREADS: Final = 6
AP_MPMQ_MIN_SPARE_DAEMONS: Final = 7
AP_MPMQ_MIN_SPARE_THREADS: Final = 8
AP_MPMQ_MAX_DAEMONS: Final = 12
# apr_hooks.h
APR_HOOK_MIDDLE: Final = 10
# http_log.h
LOG_LEVELS: Final = {"error": 3, "warn": 4, "notice": 5, "info": 6, "debug": 7}


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


class WriteFailed(Exception):
    """The client did not take what was written to it: it is gone."""


class _SockAddr(Structure):
    """apr_network_io.h, struct apr_sockaddr_t, up to the port."""

    _fields_ = (
        ("pool", c_void_p),
        ("hostname", c_void_p),
        ("servname", c_void_p),
        ("port", c_uint16),
    )


class _ConnRec(Structure):
    """httpd.h, struct conn_rec, whole."""

    _fields_ = (
        ("pool", c_void_p),
        ("base_server", c_void_p),
        ("vhost_lookup_data", c_void_p),
        ("local_addr", POINTER(_SockAddr)),
        ("client_addr", POINTER(_SockAddr)),
        ("client_ip", c_void_p),
        ("remote_host", c_void_p),
        ("remote_logname", c_void_p),
        ("local_ip", c_char_p),
        ("local_host", c_void_p),
        ("id", c_long),
        ("conn_config", c_void_p),
        ("notes", c_void_p),
        ("input_filters", c_void_p),
        ("output_filters", c_void_p),
        ("sbh", c_void_p),
        ("bucket_alloc", c_void_p),
        ("cs", c_void_p),
        ("data_in_input_filters", c_int),
        ("data_in_output_filters", c_int),
        ("clogging_input_filters", ctypes.c_uint, 1),
        ("double_reverse", c_int, 2),
        ("aborted", ctypes.c_uint),
        ("keepalive", c_int),
        ("keepalives", c_int),
        ("log", c_void_p),
        ("log_id", c_void_p),
        ("current_thread", c_void_p),
        ("master", c_void_p),
        ("outgoing", c_int),
    )


class _Uri(Structure):
    """apr_uri.h, struct apr_uri_t, whole: its size counts."""

    _fields_ = (
        *((name, c_void_p) for name in ("scheme", "hostinfo", "user", "password", "hostname")),
        *((name, c_void_p) for name in ("port_str", "path", "query", "fragment", "hostent")),
        ("port", c_uint16),
        ("is_initialized", ctypes.c_uint, 1),
        ("dns_looked_up", ctypes.c_uint, 1),
        ("dns_resolved", ctypes.c_uint, 1),
    )


class _FileInfo(Structure):
    """apr_file_info.h, struct apr_finfo_t, whole: its size counts."""

    _fields_ = (
        ("pool", c_void_p),
        *((name, c_int) for name in ("valid", "protection", "filetype")),
        *((name, ctypes.c_uint) for name in ("user", "group")),
        *((name, c_ulong) for name in ("inode", "device")),
        ("nlink", c_int),
        *((name, c_int64) for name in ("size", "csize", "atime", "mtime", "ctime")),
        *((name, c_void_p) for name in ("fname", "name", "filehand")),
    )


class _RequestRec(Structure):
    """httpd.h, struct request_rec, up to useragent_ip."""

    _fields_ = (
        ("pool", c_void_p),
        ("connection", POINTER(_ConnRec)),
        ("server", c_void_p),
        ("next", c_void_p),
        ("prev", c_void_p),
        ("main", c_void_p),
        ("the_request", c_void_p),
        ("assbackwards", c_int),
        ("proxyreq", c_int),
        ("header_only", c_int),
        ("proto_num", c_int),
        ("protocol", c_void_p),
        ("hostname", c_void_p),
        ("request_time", c_int64),
        ("status_line", c_void_p),
        ("status", c_int),
        ("method_number", c_int),
        ("method", c_void_p),
        ("allowed", c_int64),
        ("allowed_xmethods", c_void_p),
        ("allowed_methods", c_void_p),
        ("sent_bodyct", c_int64),
        ("bytes_sent", c_int64),
        ("mtime", c_int64),
        ("range", c_void_p),
        ("clength", c_int64),
        ("chunked", c_int),
        ("read_body", c_int),
        ("read_chunked", c_int),
        ("expecting_100", ctypes.c_uint),
        ("kept_body", c_void_p),
        ("body_table", c_void_p),
        ("remaining", c_int64),
        ("read_length", c_int64),
        ("headers_in", c_void_p),
        ("headers_out", c_void_p),
        ("err_headers_out", c_void_p),
        ("subprocess_env", c_void_p),
        ("notes", c_void_p),
        *((name, c_void_p) for name in ("content_type", "handler", "content_encoding")),
        *((name, c_void_p) for name in ("content_languages", "vlist_validator")),
        *((name, c_void_p) for name in ("user", "ap_auth_type", "unparsed_uri", "uri")),
        *((name, c_void_p) for name in ("filename", "canonical_filename", "path_info", "args")),
        *((name, c_int) for name in ("used_path_info", "eos_sent")),
        *((name, c_void_p) for name in ("per_dir_config", "request_config", "log", "log_id")),
        *((name, c_void_p) for name in ("htaccess", "output_filters", "input_filters")),
        *((name, c_void_p) for name in ("proto_output_filters", "proto_input_filters")),
        *((name, c_int) for name in ("no_cache", "no_local_copy")),
        ("invoke_mtx", c_void_p),
        ("parsed_uri", _Uri),
        ("finfo", _FileInfo),
        ("useragent_addr", POINTER(_SockAddr)),
        ("useragent_ip", c_char_p),
    )


class _ServerRec(Structure):
    """httpd.h, struct server_rec, its first four fields."""

    _fields_ = (
        ("process", c_void_p),
        ("next", c_void_p),
        ("error_fname", c_char_p),
        ("error_log", c_void_p),
    )


class _FilterRec(Structure):
    """util_filter.h, struct ap_filter_rec_t, whole."""

    _fields_ = (
        ("name", c_char_p),
        ("filter_func", c_void_p),
        ("filter_init_func", c_void_p),
        ("next", c_void_p),
        ("providers", c_void_p),
        ("ftype", c_int),
        ("debug", c_int),
        ("proto_flags", ctypes.c_uint),
    )


class _Filter(Structure):
    """util_filter.h, struct ap_filter_t, whole."""

    _fields_ = tuple((name, c_void_p) for name in ("frec", "ctx", "next", "r", "c"))


class _ArrayHeader(Structure):
    """apr_tables.h, struct apr_array_header_t."""

    _fields_ = (
        ("pool", c_void_p),
        ("elt_size", c_int),
        ("nelts", c_int),
        ("nalloc", c_int),
        ("elts", c_void_p),
    )


class _TableEntry(Structure):
    """apr_tables.h, struct apr_table_entry_t."""

    _fields_ = (("key", c_char_p), ("val", c_char_p), ("key_checksum", c_uint32))


class _Module(Structure):
    """http_config.h, struct module_struct, up to the magic cookie."""

    _fields_ = (
        ("version", c_int),
        ("minor_version", c_int),
        ("module_index", c_int),
        ("name", c_char_p),
        ("dynamic_load_handle", c_void_p),
        ("next", c_void_p),
        ("magic", c_ulong),
    )


class _DlInfo(Structure):
    """dlfcn.h, Dl_info."""

    _fields_ = (
        ("dli_fname", c_char_p),
        ("dli_fbase", c_void_p),
        ("dli_sname", c_char_p),
        ("dli_saddr", c_void_p),
    )


_SIGNATURES: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "ap_get_server_description": (c_char_p, ()),
    "ap_find_linked_module": (POINTER(_Module), (c_char_p,)),
    "ap_get_module_config": (c_void_p, (c_void_p, c_void_p)),
    "ap_get_conn_socket": (c_void_p, (c_void_p,)),
    "ap_get_brigade": (c_int, (c_void_p, c_void_p, c_int, c_int, c_long)),
    "ap_fflush": (c_int, (c_void_p, c_void_p)),
    "ap_flush_conn": (None, (c_void_p,)),
    "ap_index_of_response": (c_int, (c_int,)),
    "ap_response_code_string": (c_char_p, (c_void_p, c_int)),
    "ap_add_output_filter_handle": (c_void_p, (POINTER(_FilterRec), c_void_p, c_void_p, c_void_p)),
    "ap_remove_output_filter": (None, (c_void_p,)),
    "ap_die": (None, (c_int, c_void_p)),
    "ap_add_cgi_vars": (None, (c_void_p,)),
    "ap_add_common_vars": (None, (c_void_p,)),
    "ap_set_content_type": (None, (c_void_p, c_void_p)),
    "ap_exists_config_define": (c_int, (c_char_p,)),
    "ap_resolve_env": (c_char_p, (c_void_p, c_char_p)),
    "ap_log_error_": (
        None,
        (c_char_p, c_int, c_int, c_int, c_int, c_void_p, c_char_p, c_char_p),
    ),
    "ap_get_server_module_loglevel": (c_int, (c_void_p, c_int)),
    "ap_mpm_query": (c_int, (c_int, POINTER(c_int))),
    "ap_server_root_relative": (c_char_p, (c_void_p, c_char_p)),
    "apr_os_file_get": (c_int, (POINTER(c_int), c_void_p)),
    "apr_os_sock_get": (c_int, (POINTER(c_int), c_void_p)),
    "apr_brigade_create": (c_void_p, (c_void_p, c_void_p)),
    "apr_brigade_length": (c_int, (c_void_p, c_int, POINTER(c_long))),
    "apr_brigade_write": (c_int, (c_void_p, c_void_p, c_void_p, c_char_p, c_size_t)),
    "apr_brigade_destroy": (c_int, (c_void_p,)),
    "apr_brigade_cleanup": (c_int, (c_void_p,)),
    "apr_dynamic_fn_retrieve": (c_void_p, (c_char_p,)),
    "apr_pstrdup": (c_void_p, (c_void_p, c_char_p)),
    "apr_table_add": (None, (c_void_p, c_char_p, c_char_p)),
    "apr_table_set": (None, (c_void_p, c_char_p, c_char_p)),
    "apr_table_elts": (POINTER(_ArrayHeader), (c_void_p,)),
    "dladdr": (c_int, (c_void_p, POINTER(_DlInfo))),
}
# Of these, the ones that let go of the GIL.
_MAY_WAIT: Final = frozenset(
    (
        # With TLS reading may write, an alert say, and wait for the client to take that;
        # and with mod_python a filter may be in Python.
        "ap_get_brigade",
        # Serves another request, perhaps with a program in Python.
        "ap_die",
        # An ErrorDocument is an expression, which may read a file.
        "ap_response_code_string",
        "ap_fflush",
        "ap_flush_conn",
        "ap_add_cgi_vars",
        "ap_add_common_vars",
        "ap_log_error_",
        "ap_resolve_env",  # logs a name without a value
        "apr_brigade_length",
        "apr_brigade_write",
    )
)
# mpm_common.h: what ap_hook_child_stopping takes.
_CHILD_STOPPING: Final = ctypes.CFUNCTYPE(None, c_void_p, c_int)
# util_filter.h: ap_out_filter_func.
_OUTPUT_FILTER: Final = ctypes.CFUNCTYPE(c_int, POINTER(_Filter), c_void_p)
# mod_ssl.h, two optional functions.
_SSL_IS_HTTPS: Final = ctypes.PYFUNCTYPE(c_int, c_void_p)
_SSL_VAR_LOOKUP: Final = ctypes.PYFUNCTYPE(
    c_char_p, c_void_p, c_void_p, c_void_p, c_void_p, c_char_p
)


# Python's C API: prototypes of our own, so that nobody else's are changed.
_capsule_is_valid: Final = ctypes.PYFUNCTYPE(c_int, ctypes.py_object, c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_capsule_pointer: Final = ctypes.PYFUNCTYPE(c_void_p, ctypes.py_object, c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


class _Api:
    """The functions of the httpd that this process is."""

    def __init__(self) -> None:
        process, waiting = ctypes.PyDLL(None), ctypes.CDLL(None)
        for name, (result, arguments) in _SIGNATURES.items():
            try:
                function = getattr(waiting if name in _MAY_WAIT else process, name)
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
        # Asks every module that may do TLS; not there before 2.4.47, when there
        # was only mod_ssl's optional function.
        self.conn_is_ssl = getattr(process, "ap_ssl_conn_is_ssl", None)
        if self.conn_is_ssl:
            self.conn_is_ssl.restype, self.conn_is_ssl.argtypes = c_int, (c_void_p,)
        # A filter function, whose address is handed to apr_brigade_write.
        self.ap_filter_flush = ctypes.cast(process.ap_filter_flush, c_void_p)
        host = self.find_module(b"mod_wsgi.c") or self.find_module(b"mod_python.c") or core
        self.log_index = host.module_index
        # As httpd's own log has it: "wsgi" for mod_wsgi.c.
        self.log_name = host.name.decode().removeprefix("mod_").removesuffix(".c")

    def find_module(self, name: bytes) -> Any:
        """Return a module's record, None where it is not loaded."""
        pointer = self.ap_find_linked_module(name)
        if not pointer:
            return None
        module = pointer.contents
        if module.magic != MODULE_MAGIC_COOKIE or module.version != MODULE_MAGIC_NUMBER_MAJOR:
            raise HttpdError(
                f"the magic number of httpd is {MODULE_MAGIC_NUMBER_MAJOR}, that of 2.4",
                f"{module.version} (cookie {module.magic:#x}) in {name.decode()}",
            )
        return module

    def __getattr__(self, name: str) -> Any:  # for mypy: set in __init__
        raise AttributeError(name)


@functools.cache
def _api() -> _Api:
    return _Api()


def _server_description(process: ctypes.PyDLL) -> str:
    try:
        function = process.ap_get_server_description
    except AttributeError:
        return "this process, which is not httpd"
    function.restype = c_char_p
    return str((function() or b"httpd").decode())


@functools.cache
def _pid_file_name() -> bytes | None:
    """Return what PidFile says: the same for as long as the child lives."""
    try:
        return c_char_p.in_dll(ctypes.PyDLL(None), "ap_pid_fname").value
    except ValueError:
        return None


def is_threaded() -> bool:
    """Tell whether this MPM's children have several threads: event and worker, not prefork."""
    return _ask_mpm(AP_MPMQ_IS_THREADED) != 0


@functools.cache
def spare_workers() -> int:
    """Return how many workers this httpd keeps idle; of a small one, how many it has."""
    if is_threaded():
        spare = _ask_mpm(AP_MPMQ_MIN_SPARE_THREADS)
        workers = _ask_mpm(AP_MPMQ_MAX_DAEMONS) * _ask_mpm(AP_MPMQ_MAX_THREADS)
    else:
        spare, workers = _ask_mpm(AP_MPMQ_MIN_SPARE_DAEMONS), _ask_mpm(AP_MPMQ_MAX_DAEMONS)
    # An MPM that does not know the answer says 0.
    return max(1, min(spare, workers))


def _ask_mpm(question: int) -> int:
    """Return the MPM's answer, 0 for a question that it does not know."""
    result = c_int(0)
    _api().ap_mpm_query(question, byref(result))
    return result.value


def on_child_stopping(callback: Callable[[bool], None]) -> None:
    """Have a function called when a child of the event or worker MPM is told to end.

    Called from the main thread while there is no other, as ``WSGIImportScript`` does:
    the list of hooks has no lock.

    Args:
        callback: called on the main thread or the listener's, before httpd waits for
            its workers, with True where requests may be finished (a graceful
            restart, MaxConnectionsPerChild) and False for a stop; it may be called
            with True first and with False later.  It must return at once.

    Raises:
        HttpdError: this httpd has no such hook (it is older than 2.4.49).
    """
    hook = getattr(ctypes.CDLL(None), "ap_hook_child_stopping", None)
    if hook is None:
        raise HttpdError("httpd tells how a child ends", "it is older than 2.4.49")
    hook.restype, hook.argtypes = None, (_CHILD_STOPPING, c_void_p, c_void_p, c_int)
    function = _CHILD_STOPPING(lambda pool, is_graceful: callback(bool(is_graceful)))
    _callbacks.append(function)  # httpd has its address for as long as the child lives
    hook(function, None, None, APR_HOOK_MIDDLE)


_callbacks: list[Any] = []


@functools.cache
def _die_filter() -> _FilterRec:
    """Return the filter of ``Request.die_after_handler``, which lives as long as the child."""
    function = _OUTPUT_FILTER(_die_at_end)
    record = _FilterRec(
        name=b"APACHEWS_DIE",
        filter_func=ctypes.cast(function, c_void_p).value,
        ftype=AP_FTYPE_RESOURCE,
    )
    # Two threads may come here at once, and only one's record is cached; httpd has both.
    _callbacks.extend((function, record))
    return record


def _die_at_end(this: Any, brigade: int) -> int:
    """Answer with the status in the filter's context; discard what the handler has written.

    Called by httpd, on the request's thread, with the end of the response.  So does httpd's
    own ap_http_header_filter with an error that a filter reports.
    """
    api, filter_ = _api(), this.contents
    request, status = filter_.r, filter_.ctx
    rec = _RequestRec.from_address(request)
    api.ap_remove_output_filter(ctypes.addressof(filter_))
    api.apr_brigade_cleanup(brigade)
    # As mod_wsgi's daemon mode does for WSGIErrorOverride: ap_die takes another status for an
    # error in an ErrorDocument, and then serves none.
    rec.status, rec.status_line = HTTP_OK, None
    api.ap_die(status, request)
    return APR_SUCCESS


class ErrorLog:
    """The error log of a virtual host.  For any thread, as long as the child lives."""

    __slots__ = ("_server",)

    def __init__(self, server: int) -> None:
        self._server = server

    def descriptor(self) -> int | None:
        """Return the descriptor that lines are written to, which stays httpd's.

        None where there is none: the lines go to syslog.
        """
        log = _ServerRec.from_address(self._server).error_log
        descriptor = c_int(-1)
        if not log or _api().apr_os_file_get(byref(descriptor), log) != APR_SUCCESS:
            return None
        return descriptor.value if descriptor.value >= 0 else None

    def style(self) -> tuple[str, int]:
        """Return the name of the module in its lines, and the last level that is kept."""
        api = _api()
        return api.log_name, api.ap_get_server_module_loglevel(self._server, api.log_index)

    def write(self, level: str, text: str) -> None:
        """Log a line; ``LogLevel`` decides whether it is kept.

        Args:
            level: error, warn, notice, info or debug.
            text: httpd escapes what would break the line.
        """
        # A line of httpd's log has at most 8192 bytes.
        line = text.encode(errors="replace")[:4096].replace(b"\0", b"\\0")
        api = _api()
        api.ap_log_error_(
            b"apachews", 0, api.log_index, LOG_LEVELS[level], 0, self._server, b"%s", line
        )


class Request:
    """A request in httpd's hands, and its connection."""

    __slots__ = ("_api", "_connection", "_rec")

    def __init__(self, rec: _RequestRec) -> None:
        self._api = _api()
        self._rec = rec
        self._connection: _ConnRec = rec.connection.contents

    @classmethod
    def from_capsule(cls, capsule: object) -> Request:
        """Wrap what mod_wsgi, or mod_python, gives as the ``request_rec``.

        Raises:
            HttpdError: httpd is not 2.4, or a field that must be set is not.
        """
        if not _capsule_is_valid(capsule, None):
            raise HttpdError("the request_rec is a nameless capsule", repr(type(capsule)))
        _api()  # before a pointer is followed: is this httpd 2.4?
        rec = _RequestRec.from_address(_capsule_pointer(capsule, None))
        for name in ("pool", "connection", "server"):
            if not getattr(rec, name):
                raise HttpdError(f"request_rec.{name} is set", "NULL")
        request = cls(rec)
        connection = request._connection
        for name in ("pool", "conn_config", "input_filters", "output_filters", "bucket_alloc"):
            if not getattr(connection, name):
                raise HttpdError(f"conn_rec.{name} is set", "NULL")
        return request

    @property
    def connection_address(self) -> int:
        """Address of the ``conn_rec``."""
        return ctypes.addressof(self._connection)

    @property
    def is_secondary(self) -> bool:
        """True for a stream of HTTP/2, whose connection is a dummy."""
        return bool(self._connection.master)

    @property
    def is_aborted(self) -> bool:
        """True once httpd has noticed that the client is gone."""
        return bool(self._connection.aborted)

    @property
    def is_tls(self) -> bool:
        """True where mod_ssl, or another module, encrypts the connection."""
        if self._api.conn_is_ssl:
            return bool(self._api.conn_is_ssl(self.connection_address))
        function = self._api.apr_dynamic_fn_retrieve(b"ssl_is_https")
        return bool(function and _SSL_IS_HTTPS(function)(self.connection_address))

    def local_address(self) -> tuple[str, int]:
        """Return address and port of httpd that the client is connected to.

        Raises:
            HttpdError: the connection has none.
        """
        host, address = self._connection.local_ip, self._connection.local_addr
        if not host or not address:
            raise HttpdError("conn_rec.local_ip and local_addr are set", "NULL")
        return host.decode("ascii", "replace"), address.contents.port

    def client_address(self) -> tuple[str, int]:
        """Return address and port of the client; port 0 if only its address is known.

        mod_remoteip puts the client that a proxy names in the place of the proxy.  The PROXY
        protocol names its port as well; a header does not, and mod_remoteip leaves the
        proxy's port beside the client's address.

        Raises:
            HttpdError: the connection has none.
        """
        host, address = self._rec.useragent_ip, self._rec.useragent_addr
        peer = self._connection.client_addr
        if not host or not address or not peer:
            raise HttpdError("request_rec.useragent_addr and conn_rec.client_addr are set", "NULL")
        port = address.contents.port
        is_peer = ctypes.addressof(address.contents) == ctypes.addressof(peer.contents)
        if not is_peer and port == peer.contents.port:
            port = 0
        return host.decode("ascii", "replace"), port

    def ssl_variable(self, name: bytes) -> str | None:
        """Return what mod_ssl says of the connection, None where it has nothing to say.

        Args:
            name: of one of mod_ssl's environment variables, as ``SSL_PROTOCOL``; whether
                ``SSLOptions +StdEnvVars`` is set does not matter.
        """
        function = self._api.apr_dynamic_fn_retrieve(b"ssl_var_lookup")
        if not function:
            return None
        rec = self._rec
        value: bytes | None = _SSL_VAR_LOOKUP(function)(
            rec.pool, rec.server, self.connection_address, ctypes.addressof(rec), name
        )
        return value.decode(errors="replace") if value else None

    def variables(self) -> dict[str, str]:
        """Return the variables of the request that a CGI program gets, SetEnv's among them.

        Values are bytes as ISO 8859-1 text, as in WSGI.

        Raises:
            HttpdError: a table that must be there is not.
        """
        rec = self._rec
        if not rec.headers_in or not rec.subprocess_env:
            raise HttpdError("the tables of request_rec are set", "NULL")
        address = ctypes.addressof(rec)
        self._api.ap_add_common_vars(address)
        self._api.ap_add_cgi_vars(address)
        # (Not apr_table_do: mod_python's threads have thread states that ctypes' callbacks,
        # by PyGILState_Ensure, know nothing of; the process ends of it.)
        array = self._api.apr_table_elts(rec.subprocess_env).contents
        if array.elt_size != ctypes.sizeof(_TableEntry):
            raise HttpdError(
                f"an entry of a table has {ctypes.sizeof(_TableEntry)} bytes", str(array.elt_size)
            )
        if not array.nelts:
            return {}
        entries = (_TableEntry * array.nelts).from_address(array.elts)
        return {
            entry.key.decode("latin-1"): entry.val.decode("latin-1")
            for entry in entries
            if entry.key is not None and entry.val is not None
        }

    def definition(self, name: str) -> str | None:
        """Return the value of a ``Define`` of the server's configuration, None without one.

        httpd allows ``Define`` at the level of the server only, never in an .htaccess file.
        The values are those that the configuration had when the child started.  ISO 8859-1
        text, as all of WSGI's; "" for a ``Define`` without a value.
        """
        key = name.encode("ascii")
        if not self._api.ap_exists_config_define(key):
            return None
        reference = b"${%s}" % key
        value: bytes | None = self._api.ap_resolve_env(self._rec.pool, reference)
        # (A name without a value stays as it is written.)
        return "" if value in (None, reference) else value.decode("latin-1")

    def add_response_header(self, name: str, value: str) -> None:
        """Add a header to the response; ISO 8859-1.

        Raises:
            HttpdError: there is no table for it.
        """
        rec = self._rec
        data = value.encode("latin-1")
        if name.title() == "Content-Type":
            text = self._api.apr_pstrdup(rec.pool, data)
            self._api.ap_set_content_type(ctypes.addressof(rec), text)
            return
        if not rec.headers_out:
            raise HttpdError("request_rec.headers_out is set", "NULL")
        self._api.apr_table_add(rec.headers_out, name.encode("latin-1"), data)

    @property
    def failed_with(self) -> int | None:
        """Status of the request whose ErrorDocument this one is; None for other requests.

        httpd's own record: ``SetEnv`` sets CGI's REDIRECT_STATUS to any text.
        """
        if not self._rec.prev:
            return None
        # As ap_die does; after any other internal redirect the status is 200.
        status: int = _RequestRec.from_address(self._rec.prev).status
        return status if 400 <= status <= 599 else None

    def has_error_document(self, status: int) -> bool:
        """Tell whether the site has an ErrorDocument for a status, and httpd can serve it here.

        False for a request whose client has gone, and for a part of another one (SSI).
        """
        rec, index = self._rec, self._api.ap_index_of_response(status)
        if self.is_aborted or rec.main or not rec.err_headers_out:
            return False
        # httpd gives a status that it does not know the index of 500.
        index_of_500 = self._api.ap_index_of_response(HTTP_INTERNAL_SERVER_ERROR)
        if index == index_of_500 and status != HTTP_INTERNAL_SERVER_ERROR:
            return False
        return self._api.ap_response_code_string(ctypes.addressof(rec), index) is not None

    def add_error_header(self, name: str, value: str) -> None:
        """Add a header to the response that stays if httpd writes the response; ISO 8859-1.

        Raises:
            HttpdError: there is no table for it.
        """
        if not self._rec.err_headers_out:
            raise HttpdError("request_rec.err_headers_out is set", "NULL")
        data = name.encode("latin-1"), value.encode("latin-1")
        self._api.apr_table_add(self._rec.err_headers_out, *data)

    def die_after_handler(self, status: int) -> None:
        """Make httpd answer with an error of its own once the handler has returned.

        The handler returns OK and writes nothing.  mod_wsgi passes no other status on, and
        crashes in a request inside a request (wsgi_end_request), which an ErrorDocument that
        is a WSGI program would be: so ap_die has to wait until mod_wsgi has returned.
        """
        request = ctypes.addressof(self._rec)
        self._api.ap_add_output_filter_handle(
            byref(_die_filter()), status, request, self.connection_address
        )

    def require_http_1_1(self) -> None:
        """Make mod_http2 reset the stream with HTTP_1_1_REQUIRED if the response is a 403.

        RFC 9113 7: the client repeats the request over HTTP/1.1.  mod_http2 looks for this
        note of mod_ssl's; over HTTP/1.1 nothing does.

        Raises:
            HttpdError: there is no table for it.
        """
        if not self._rec.notes:
            raise HttpdError("request_rec.notes is set", "NULL")
        self._api.apr_table_set(self._rec.notes, b"ssl-renegotiate-forbidden", b"websocket")

    def error_log(self) -> ErrorLog:
        """Return the error log of the request's virtual host."""
        return ErrorLog(self._rec.server)

    def pid_file(self) -> str | None:
        """Return the file that is there as long as httpd is to run, None if unknown."""
        name = _pid_file_name()
        # As ap_log_pid does.
        path = self._api.ap_server_root_relative(self._rec.pool, name) if name else None
        return os.fsdecode(path) if path else None

    def ssl_address(self) -> int:
        """Return the address of mod_ssl's ``SSL`` for this connection, 0 for none.

        Raises:
            HttpdError: mod_ssl is not loaded, or has no record of the connection.
        """
        module = self._api.find_module(b"mod_ssl.c")
        if module is None:
            raise HttpdError("TLS comes from mod_ssl", "mod_ssl is not loaded")
        # ssl_private.h: SSLConnRec, whose first field is the SSL *.
        record = self._api.ap_get_module_config(
            self._connection.conn_config, ctypes.addressof(module)
        )
        if not record:
            raise HttpdError("mod_ssl has a record of the connection", "NULL")
        return c_void_p.from_address(record).value or 0

    def mod_ssl_path(self) -> str | None:
        """Return the file mod_ssl was loaded from, None where it is built in."""
        module = self._api.find_module(b"mod_ssl.c")
        info = _DlInfo()
        if module is None or not module.dynamic_load_handle:
            return None
        if not self._api.dladdr(ctypes.addressof(module), byref(info)) or not info.dli_fname:
            raise HttpdError("the file of mod_ssl is known", "dladdr knows none")
        return os.fsdecode(info.dli_fname)

    def has_early_data(self) -> bool:
        """Tell whether the client has sent something behind the request's head.

        Asks httpd's filters for a byte without taking it and without waiting;
        with TLS, OpenSSL may still hold the beginning of a record after that.

        Raises:
            WriteFailed: the client has closed the connection.
        """
        brigade = self._brigade()
        try:
            status = self._api.ap_get_brigade(
                self._connection.input_filters,
                brigade,
                AP_MODE_SPECULATIVE,
                APR_NONBLOCK_READ,
                1,
            )
            if status == APR_EOF:
                raise WriteFailed
            length = c_long(0)
            if status == APR_SUCCESS:
                self._api.apr_brigade_length(brigade, 1, byref(length))
            return length.value != 0
        finally:
            self._api.apr_brigade_destroy(brigade)

    def write(self, data: bytes) -> None:
        """Write bytes to the client, past the response filters, and wait until they are out.

        Raises:
            WriteFailed: the client is gone, or httpd's Timeout ran out.
        """
        connection = self._connection
        brigade = self._brigade()
        status = self._api.apr_brigade_write(
            brigade, self._api.ap_filter_flush, connection.output_filters, data, len(data)
        )
        if status == APR_SUCCESS:
            status = self._api.ap_fflush(connection.output_filters, brigade)
        if status != APR_SUCCESS or connection.aborted or connection.data_in_output_filters:
            raise WriteFailed

    def flush_connection(self) -> None:
        """Flush with the bucket that ends a connection: mod_ssl lets go of its SSL."""
        self._api.ap_flush_conn(self.connection_address)

    def end_after_request(self) -> None:
        """Have httpd close the connection after this request, without reading again."""
        self._connection.keepalive = AP_CONN_CLOSE

    def abandon(self) -> None:
        """Have httpd write nothing more to the connection, and close it."""
        self._connection.aborted = 1
        self.end_after_request()

    def client_socket(self) -> int:
        """Return the descriptor of the connection, which stays httpd's.

        Raises:
            HttpdError: there is none.
        """
        apr_socket = self._api.ap_get_conn_socket(self.connection_address)
        if not apr_socket:
            raise HttpdError("the connection has a socket", "NULL")
        descriptor = c_int(-1)
        status = self._api.apr_os_sock_get(byref(descriptor), apr_socket)
        if status != APR_SUCCESS or descriptor.value < 0:
            raise HttpdError("the connection has a descriptor", f"status {status}")
        return descriptor.value

    def _brigade(self) -> Any:
        brigade = self._api.apr_brigade_create(self._rec.pool, self._connection.bucket_alloc)
        if not brigade:
            raise MemoryError("apr_brigade_create")
        return brigade
