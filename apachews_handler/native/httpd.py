"""A request of httpd and the error log of a virtual host, by httpd's C API.

Contract: ``Request.from_capsule`` wraps the ``request_rec`` that mod_wsgi passes to a request,
for the duration of that request and on its thread.  Every premise is checked before a pointer
is followed; if one does not hold, ``HttpdError`` is raised and the connection stays as it was.
Results are numbers, bytes and file descriptors; a number named ``…_address`` is for ``openssl``
only.  ``definition`` reads what only the server's configuration can set.  ``ErrorLog``
outlives the request: a ``server_rec`` lives as long as the child, and in a process forked
from the child.

Long because ``Request`` is all that is known of one structure of httpd's.
"""

from __future__ import annotations

import ctypes
import functools
import os
from ctypes import byref, c_char_p, c_int, c_void_p
from typing import Any, Final

from . import httpd_abi as abi
from .apr_tables import entries
from .httpd_process import HttpdError, callbacks, functions, pid_file_name


class WriteFailed(Exception):
    """The client does not accept data any more: its connection is closed."""


# Python's C API: own prototypes, because attributes of ctypes.pythonapi are shared.
_capsule_is_valid: Final = ctypes.PYFUNCTYPE(c_int, ctypes.py_object, c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_capsule_pointer: Final = ctypes.PYFUNCTYPE(c_void_p, ctypes.py_object, c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


@functools.cache
def _die_filter() -> abi.FilterRec:
    """Return the filter of ``Request.die_after_handler``, which lives as long as the child."""
    function = abi.OUTPUT_FILTER(_die_at_end)
    record = abi.FilterRec(
        name=b"APACHEWS_DIE",
        filter_func=ctypes.cast(function, c_void_p).value,
        ftype=abi.AP_FTYPE_RESOURCE,
    )
    # Two threads can race here.  Only one record is cached, but httpd may use both.
    callbacks.extend((function, record))
    return record


def _die_at_end(this: Any, brigade: int) -> int:
    """Answer with the status in the filter's context; discard what the handler has written.

    httpd calls it on the request's thread at the end of the response.  httpd's own
    ap_http_header_filter does the same with an error that a filter reports.
    """
    api, filter_ = functions(), this.contents
    request, status = filter_.r, filter_.ctx
    rec = abi.RequestRec.from_address(request)
    api.ap_remove_output_filter(ctypes.addressof(filter_))
    api.apr_brigade_cleanup(brigade)
    # As in mod_wsgi's daemon mode for WSGIErrorOverride: with another status here, ap_die
    # sees an error inside an ErrorDocument and does not serve the document.
    rec.status, rec.status_line = abi.HTTP_OK, None
    api.ap_die(status, request)
    return abi.APR_SUCCESS


class ErrorLog:
    """The error log of a virtual host.  For any thread, as long as the child lives."""

    __slots__ = ("_server",)

    def __init__(self, server: int) -> None:
        self._server = server

    def descriptor(self) -> int | None:
        """Return the descriptor that lines are written to, which stays httpd's.

        None if the lines go to syslog.
        """
        log = abi.ServerRec.from_address(self._server).error_log
        descriptor = c_int(-1)
        if not log or functions().apr_os_file_get(byref(descriptor), log) != abi.APR_SUCCESS:
            return None
        return descriptor.value if descriptor.value >= 0 else None

    def style(self) -> tuple[str, int]:
        """Return the name of the module in its lines, and the last level that is kept."""
        api = functions()
        return api.log_name, api.ap_get_server_module_loglevel(self._server, api.log_index)

    def write(self, level: str, text: str) -> None:
        """Log a line; ``LogLevel`` decides whether it is kept.

        Args:
            level: error, warn, notice, info or debug.
            text: httpd escapes what would break the line.
        """
        api = functions()
        if abi.LOG_LEVELS[level] > api.ap_get_server_module_loglevel(self._server, api.log_index):
            return  # as httpd does, but without passing the GIL on
        # A line of httpd's log has at most 8192 bytes.
        line = text.encode(errors="replace")[:4096].replace(b"\0", b"\\0")
        api.ap_log_error_(
            b"apachews", 0, api.log_index, abi.LOG_LEVELS[level], 0, self._server, b"%s", line
        )


class Request:
    """A request that httpd is processing, and its connection."""

    __slots__ = ("_api", "_connection", "_is_tls", "_rec")

    def __init__(self, rec: abi.RequestRec) -> None:
        self._api = functions()
        self._rec = rec
        self._connection: abi.ConnRec = rec.connection.contents
        self._is_tls: bool | None = None  # asked for once

    @classmethod
    def from_capsule(cls, capsule: object) -> Request:
        """Wrap what mod_wsgi, or mod_python, gives as the ``request_rec``.

        Raises:
            HttpdError: httpd is not 2.4, or a field that must be set is not.
        """
        if not _capsule_is_valid(capsule, None):
            raise HttpdError("the request_rec is a nameless capsule", repr(type(capsule)))
        functions()  # before a pointer is followed: is this httpd 2.4?
        rec = abi.RequestRec.from_address(_capsule_pointer(capsule, None))
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
        """True if mod_ssl, or another module, encrypts the connection."""
        if self._is_tls is None:
            if self._api.conn_is_ssl:
                self._is_tls = bool(self._api.conn_is_ssl(self.connection_address))
            else:
                function = self._api.apr_dynamic_fn_retrieve(b"ssl_is_https")
                self._is_tls = bool(
                    function and abi.SSL_IS_HTTPS(function)(self.connection_address)
                )
        return self._is_tls

    def local_address(self) -> tuple[str, int]:
        """Return address and port of httpd that the client is connected to.

        Raises:
            HttpdError: the connection does not have them.
        """
        host, address = self._connection.local_ip, self._connection.local_addr
        if not host or not address:
            raise HttpdError("conn_rec.local_ip and local_addr are set", "NULL")
        return host.decode("ascii", "replace"), address.contents.port

    def client_address(self) -> tuple[str, int]:
        """Return address and port of the client; port 0 if only its address is known.

        mod_remoteip replaces the address of a proxy by that of the client.  The PROXY protocol
        has the client's port as well; a header does not, and then the port is still the
        proxy's.

        Raises:
            HttpdError: the connection does not have them.
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
        """Return a variable of mod_ssl about the connection, None if it does not have the variable.

        Args:
            name: an environment variable of mod_ssl, for example ``SSL_PROTOCOL``, with or
                without ``SSLOptions +StdEnvVars``.
        """
        function = self._api.apr_dynamic_fn_retrieve(b"ssl_var_lookup")
        if not function:
            return None
        rec = self._rec
        value: bytes | None = abi.SSL_VAR_LOOKUP(function)(
            rec.pool, rec.server, self.connection_address, ctypes.addressof(rec), name
        )
        return value.decode(errors="replace") if value else None

    def variables(self) -> dict[str, str]:
        """Return the variables that a CGI program would get, those of SetEnv included.

        Values are bytes as ISO 8859-1 text, as in WSGI.

        Raises:
            HttpdError: a table of the request is missing.
        """
        rec = self._rec
        if not rec.headers_in or not rec.subprocess_env:
            raise HttpdError("the tables of request_rec are set", "NULL")
        address = ctypes.addressof(rec)
        self._api.ap_add_common_vars(address)
        self._api.ap_add_cgi_vars(address)
        return {
            key.decode("latin-1"): value.decode("latin-1")
            for key, value in entries(rec.subprocess_env)
        }

    def request_headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers of the request, in order, as httpd has them after mod_headers.

        A CGI program gets fewer: httpd withholds ``Authorization`` from it.

        Raises:
            HttpdError: the table of these headers is missing.
        """
        if not self._rec.headers_in:
            raise HttpdError("request_rec.headers_in is set", "NULL")
        return entries(self._rec.headers_in)

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
            HttpdError: the table of these headers is missing.
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

    def set_user(self, name: str) -> None:
        """Set the user for httpd's logs; ISO 8859-1."""
        self._rec.user = self._api.apr_pstrdup(self._rec.pool, name.encode("latin-1"))

    @property
    def foreign_htaccess(self) -> str | None:
        """Directory whose .htaccess httpd has read, and which is not above the request's file.

        None for most requests.  httpd's list includes what it has read before an internal
        redirect, and for the request of which this one is a part.
        """
        rec = self._rec
        file = ctypes.string_at(rec.filename) + b"/" if rec.filename else b""
        address = rec.htaccess
        while address:
            found = abi.HtaccessResult.from_address(address)
            directory = found.dir or b""
            is_above = bool(directory) and file.startswith(directory.rstrip(b"/") + b"/")
            if found.htaccess and not is_above:  # NULL for a directory without the file
                return os.fsdecode(directory)
            address = found.next
        return None

    @property
    def failed_with(self) -> int | None:
        """Status of the request whose ErrorDocument this one is; None for other requests.

        From httpd's own record: ``SetEnv`` can set CGI's REDIRECT_STATUS to any text.
        """
        if not self._rec.prev:
            return None
        # Set by ap_die; after any other internal redirect the status is 200.
        status: int = abi.RequestRec.from_address(self._rec.prev).status
        return status if 400 <= status <= 599 else None

    def has_error_document(self, status: int) -> bool:
        """Tell whether the site has an ErrorDocument for a status, and httpd can serve it here.

        False for a request whose client has gone, and for a part of another one (SSI).
        """
        rec, index = self._rec, self._api.ap_index_of_response(status)
        if self.is_aborted or rec.main or not rec.err_headers_out:
            return False
        # httpd gives a status that it does not know the index of 500.
        index_of_500 = self._api.ap_index_of_response(abi.HTTP_INTERNAL_SERVER_ERROR)
        if index == index_of_500 and status != abi.HTTP_INTERNAL_SERVER_ERROR:
            return False
        return self._api.ap_response_code_string(ctypes.addressof(rec), index) is not None

    def add_error_header(self, name: str, value: str) -> None:
        """Add a header to the response that stays if httpd writes the response; ISO 8859-1.

        Raises:
            HttpdError: the table of these headers is missing.
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
            HttpdError: the table of these headers is missing.
        """
        if not self._rec.notes:
            raise HttpdError("request_rec.notes is set", "NULL")
        self._api.apr_table_set(self._rec.notes, b"ssl-renegotiate-forbidden", b"websocket")

    def error_log(self) -> ErrorLog:
        """Return the error log of the request's virtual host."""
        return ErrorLog(self._rec.server)

    def pid_file(self) -> str | None:
        """Return the path of httpd's pid file, which exists while httpd runs; None if unknown."""
        name = pid_file_name()
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
        """Return the file that mod_ssl was loaded from, None if it is linked into httpd."""
        module = self._api.find_module(b"mod_ssl.c")
        info = abi.DlInfo()
        if module is None or not module.dynamic_load_handle:
            return None
        if not self._api.dladdr(ctypes.addressof(module), byref(info)) or not info.dli_fname:
            raise HttpdError("dladdr knows the file of mod_ssl", "it does not")
        return os.fsdecode(info.dli_fname)

    def has_early_data(self) -> bool:
        """Tell whether the client has sent data after the head of the request.

        Reads a byte speculatively from httpd's filters, without blocking.  With TLS, OpenSSL
        can hold the beginning of a further record.

        Raises:
            WriteFailed: the client has closed the connection.
        """
        brigade = self._brigade()
        api = self._api
        get = api.ap_get_brigade if self.is_tls else api.ap_get_plain_brigade
        try:
            status = get(
                self._connection.input_filters,
                brigade,
                abi.AP_MODE_SPECULATIVE,
                abi.APR_NONBLOCK_READ,
                1,
            )
            if status == abi.APR_EOF:
                raise WriteFailed
            length = abi.APR_OFF_T(0)
            if status == abi.APR_SUCCESS:
                self._api.apr_brigade_length(brigade, 1, byref(length))
            return length.value != 0
        finally:
            self._api.apr_brigade_destroy(brigade)

    def write(self, data: bytes) -> None:
        """Write bytes to the client, below the response filters, and wait until they are sent.

        Raises:
            WriteFailed: the connection is closed, or httpd's Timeout expired.
        """
        connection = self._connection
        brigade = self._brigade()
        # Without a function that flushes: it only appends.
        status = self._api.apr_brigade_write(brigade, None, None, data, len(data))
        if status == abi.APR_SUCCESS:
            status = self._api.ap_fflush(connection.output_filters, brigade)
        if status != abi.APR_SUCCESS or connection.aborted or connection.data_in_output_filters:
            raise WriteFailed

    def flush_connection(self) -> None:
        """Flush with an end-of-connection bucket, at which mod_ssl releases its SSL."""
        self._api.ap_flush_conn(self.connection_address)

    def end_after_request(self) -> None:
        """Make httpd close the connection after this request, without reading again."""
        self._connection.keepalive = abi.AP_CONN_CLOSE

    def abandon(self) -> None:
        """Make httpd close the connection without writing to it again."""
        self._connection.aborted = 1
        self.end_after_request()

    def client_socket(self) -> int:
        """Return the descriptor of the connection, which stays httpd's.

        Raises:
            HttpdError: the connection does not have one.
        """
        apr_socket = self._api.ap_get_conn_socket(self.connection_address)
        if not apr_socket:
            raise HttpdError("the connection has a socket", "NULL")
        descriptor = c_int(-1)
        status = self._api.apr_os_sock_get(byref(descriptor), apr_socket)
        if status != abi.APR_SUCCESS or descriptor.value < 0:
            raise HttpdError("the connection has a descriptor", f"status {status}")
        return descriptor.value

    def _brigade(self) -> Any:
        brigade = self._api.apr_brigade_create(self._rec.pool, self._connection.bucket_alloc)
        if not brigade:
            raise MemoryError("apr_brigade_create")
        return brigade
