"""The part of httpd's binary interface that is used: constants, structures, signatures.

Contract: declarations only.  No function is called and no pointer is followed here.

How this works: within httpd 2.4 the major part of the module magic number, 20120211, stands
for the layout of the structures in the public headers.  The structures are declared in the
order of the headers, as far as their fields are used; tests/handler/test_abi.py compiles some
lines of C against the installed headers and compares offsets, sizes and constants.

Sources: httpd.h, http_config.h, http_core.h, http_connection.h, http_protocol.h,
util_filter.h, util_script.h, http_log.h, ap_mpm.h, mpm_common.h; apr_portable.h,
apr_buckets.h, apr_network_io.h, apr_optional.h, apr_tables.h.
"""

from __future__ import annotations

import ctypes
from ctypes import (
    POINTER,
    Structure,
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


class SockAddr(Structure):
    """apr_network_io.h, struct apr_sockaddr_t, up to the port."""

    _fields_ = (
        ("pool", c_void_p),
        ("hostname", c_void_p),
        ("servname", c_void_p),
        ("port", c_uint16),
    )


class ConnRec(Structure):
    """httpd.h, struct conn_rec, whole."""

    _fields_ = (
        ("pool", c_void_p),
        ("base_server", c_void_p),
        ("vhost_lookup_data", c_void_p),
        ("local_addr", POINTER(SockAddr)),
        ("client_addr", POINTER(SockAddr)),
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


class Uri(Structure):
    """apr_uri.h, struct apr_uri_t, whole: its size counts."""

    _fields_ = (
        *((name, c_void_p) for name in ("scheme", "hostinfo", "user", "password", "hostname")),
        *((name, c_void_p) for name in ("port_str", "path", "query", "fragment", "hostent")),
        ("port", c_uint16),
        ("is_initialized", ctypes.c_uint, 1),
        ("dns_looked_up", ctypes.c_uint, 1),
        ("dns_resolved", ctypes.c_uint, 1),
    )


class FileInfo(Structure):
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


class RequestRec(Structure):
    """httpd.h, struct request_rec, up to useragent_ip."""

    _fields_ = (
        ("pool", c_void_p),
        ("connection", POINTER(ConnRec)),
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
        ("parsed_uri", Uri),
        ("finfo", FileInfo),
        ("useragent_addr", POINTER(SockAddr)),
        ("useragent_ip", c_char_p),
    )


class HtaccessResult(Structure):
    """httpd.h, struct htaccess_result, whole."""

    _fields_ = (
        ("dir", c_char_p),
        ("override", c_int),
        ("override_opts", c_int),
        ("override_list", c_void_p),
        ("htaccess", c_void_p),
        ("next", c_void_p),
    )


class ServerRec(Structure):
    """httpd.h, struct server_rec, its first four fields."""

    _fields_ = (
        ("process", c_void_p),
        ("next", c_void_p),
        ("error_fname", c_char_p),
        ("error_log", c_void_p),
    )


class FilterRec(Structure):
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


class Filter(Structure):
    """util_filter.h, struct ap_filter_t, whole."""

    _fields_ = tuple((name, c_void_p) for name in ("frec", "ctx", "next", "r", "c"))


class ArrayHeader(Structure):
    """apr_tables.h, struct apr_array_header_t."""

    _fields_ = (
        ("pool", c_void_p),
        ("elt_size", c_int),
        ("nelts", c_int),
        ("nalloc", c_int),
        ("elts", c_void_p),
    )


class TableEntry(Structure):
    """apr_tables.h, struct apr_table_entry_t."""

    _fields_ = (("key", c_char_p), ("val", c_char_p), ("key_checksum", c_uint32))


class Module(Structure):
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


class DlInfo(Structure):
    """dlfcn.h, Dl_info."""

    _fields_ = (
        ("dli_fname", c_char_p),
        ("dli_fbase", c_void_p),
        ("dli_sname", c_char_p),
        ("dli_saddr", c_void_p),
    )


# apr.h: 64 bits on every Linux, also if a long has 32.
APR_OFF_T: Final = ctypes.c_int64

SIGNATURES: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "ap_get_server_description": (c_char_p, ()),
    "ap_find_linked_module": (POINTER(Module), (c_char_p,)),
    "ap_get_module_config": (c_void_p, (c_void_p, c_void_p)),
    "ap_get_conn_socket": (c_void_p, (c_void_p,)),
    "ap_get_brigade": (c_int, (c_void_p, c_void_p, c_int, c_int, APR_OFF_T)),
    "ap_fflush": (c_int, (c_void_p, c_void_p)),
    "ap_flush_conn": (None, (c_void_p,)),
    "ap_index_of_response": (c_int, (c_int,)),
    "ap_response_code_string": (c_char_p, (c_void_p, c_int)),
    "ap_add_output_filter_handle": (c_void_p, (POINTER(FilterRec), c_void_p, c_void_p, c_void_p)),
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
    "apr_brigade_length": (c_int, (c_void_p, c_int, POINTER(APR_OFF_T))),
    "apr_brigade_write": (c_int, (c_void_p, c_void_p, c_void_p, c_char_p, c_size_t)),
    "apr_brigade_destroy": (c_int, (c_void_p,)),
    "apr_brigade_cleanup": (c_int, (c_void_p,)),
    "apr_dynamic_fn_retrieve": (c_void_p, (c_char_p,)),
    "apr_pstrdup": (c_void_p, (c_void_p, c_char_p)),
    "apr_table_add": (None, (c_void_p, c_char_p, c_char_p)),
    "apr_table_set": (None, (c_void_p, c_char_p, c_char_p)),
    "apr_table_elts": (POINTER(ArrayHeader), (c_void_p,)),
    "dladdr": (c_int, (c_void_p, POINTER(DlInfo))),
}
# The functions among them that release the GIL.
MAY_WAIT: Final = frozenset(
    (
        # With TLS a read can write, for example an alert, and block until the client reads
        # it; with mod_python a filter can be in Python.
        "ap_get_brigade",
        # Serves another request, which a Python program may answer.
        "ap_die",
        # An ErrorDocument is an expression, which can read a file.
        "ap_response_code_string",
        "ap_fflush",
        "ap_flush_conn",
        "ap_add_cgi_vars",
        "ap_add_common_vars",
        "ap_log_error_",
        "ap_resolve_env",  # logs a name without a value
        "apr_brigade_length",
    )
)
# mpm_common.h: what ap_hook_child_stopping takes.
CHILD_STOPPING: Final = ctypes.CFUNCTYPE(None, c_void_p, c_int)
# util_filter.h: ap_out_filter_func.
OUTPUT_FILTER: Final = ctypes.CFUNCTYPE(c_int, POINTER(Filter), c_void_p)
# mod_ssl.h, two optional functions.
SSL_IS_HTTPS: Final = ctypes.PYFUNCTYPE(c_int, c_void_p)
SSL_VAR_LOOKUP: Final = ctypes.PYFUNCTYPE(
    c_char_p, c_void_p, c_void_p, c_void_p, c_void_p, c_char_p
)
