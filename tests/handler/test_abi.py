"""The two ctypes modules against the installed headers: offsets and constants.

A C program is made of the tables and prints what the compiler thinks.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from apachews_handler.bridge.transport import TCP_INFO
from apachews_handler.native import httpd_abi, openssl

STRUCTURES = {
    "conn_rec": httpd_abi.ConnRec,
    "apr_uri_t": httpd_abi.Uri,
    "apr_finfo_t": httpd_abi.FileInfo,
    "request_rec": httpd_abi.RequestRec,
    "struct htaccess_result": httpd_abi.HtaccessResult,
    "server_rec": httpd_abi.ServerRec,
    "ap_filter_rec_t": httpd_abi.FilterRec,
    "ap_filter_t": httpd_abi.Filter,
    "module": httpd_abi.Module,
    "Dl_info": httpd_abi.DlInfo,
    "apr_sockaddr_t": httpd_abi.SockAddr,
    "apr_array_header_t": httpd_abi.ArrayHeader,
    "apr_table_entry_t": httpd_abi.TableEntry,
}
CONSTANTS = {
    "MODULE_MAGIC_NUMBER_MAJOR": httpd_abi.MODULE_MAGIC_NUMBER_MAJOR,
    "MODULE_MAGIC_COOKIE": httpd_abi.MODULE_MAGIC_COOKIE,
    "AP_CONN_CLOSE": httpd_abi.AP_CONN_CLOSE,
    "AP_MODE_SPECULATIVE": httpd_abi.AP_MODE_SPECULATIVE,
    "AP_FTYPE_RESOURCE": httpd_abi.AP_FTYPE_RESOURCE,
    "HTTP_OK": httpd_abi.HTTP_OK,
    "HTTP_INTERNAL_SERVER_ERROR": httpd_abi.HTTP_INTERNAL_SERVER_ERROR,
    "sizeof(ap_filter_rec_t)": ctypes.sizeof(httpd_abi.FilterRec),
    "APR_NONBLOCK_READ": httpd_abi.APR_NONBLOCK_READ,
    "APR_SUCCESS": httpd_abi.APR_SUCCESS,
    "APR_EOF": httpd_abi.APR_EOF,
    "AP_MPMQ_IS_THREADED": httpd_abi.AP_MPMQ_IS_THREADED,
    "AP_MPMQ_MAX_THREADS": httpd_abi.AP_MPMQ_MAX_THREADS,
    "AP_MPMQ_MIN_SPARE_DAEMONS": httpd_abi.AP_MPMQ_MIN_SPARE_DAEMONS,
    "AP_MPMQ_MIN_SPARE_THREADS": httpd_abi.AP_MPMQ_MIN_SPARE_THREADS,
    "AP_MPMQ_MAX_DAEMONS": httpd_abi.AP_MPMQ_MAX_DAEMONS,
    "APR_HOOK_MIDDLE": httpd_abi.APR_HOOK_MIDDLE,
    "APLOG_ERR": httpd_abi.LOG_LEVELS["error"],
    "APLOG_WARNING": httpd_abi.LOG_LEVELS["warn"],
    "APLOG_NOTICE": httpd_abi.LOG_LEVELS["notice"],
    "APLOG_INFO": httpd_abi.LOG_LEVELS["info"],
    "APLOG_DEBUG": httpd_abi.LOG_LEVELS["debug"],
    "sizeof(apr_uri_t)": ctypes.sizeof(httpd_abi.Uri),
    "sizeof(apr_finfo_t)": ctypes.sizeof(httpd_abi.FileInfo),
    "sizeof(apr_off_t)": ctypes.sizeof(ctypes.c_long),
    "sizeof(apr_table_entry_t)": ctypes.sizeof(httpd_abi.TableEntry),
}
TLS_CONSTANTS = {name: getattr(openssl, name) for name in dir(openssl) if name.startswith("SSL_")}


def compiled(directory: Path, source: str, *flags: str) -> dict[str, int]:
    """Compile and run a program that prints ``name value`` lines."""
    file = directory / "layout.c"
    file.write_text(source)
    program = directory / "layout"
    subprocess.run(["cc", "-o", str(program), str(file), *flags], check=True)
    output = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    return {name: int(value) for name, value in (line.split("=") for line in output.splitlines())}


def program(headers: str, expressions: list[str]) -> str:
    lines = "".join(f'printf("{e}=%lld\\n", (long long)({e}));' for e in expressions)
    return f"{headers}\n#include <stdio.h>\n#include <stddef.h>\nint main(void) {{ {lines} }}"


def fields(structure: type[ctypes.Structure]) -> list[str]:
    return [field[0] for field in structure._fields_ if len(field) == 2]  # no bit-fields


@pytest.mark.skipif(not shutil.which("apxs"), reason="no apxs: apt-get install apache2-dev")
def test_httpd_layout_is_that_of_the_headers(tmp_path: Path) -> None:
    def apxs(name: str) -> str:
        return subprocess.run(
            ["apxs", "-q", name], check=True, capture_output=True, text=True
        ).stdout.strip()

    expected = {
        f"offsetof({name}, {field})": getattr(structure, field).offset
        for name, structure in STRUCTURES.items()
        for field in fields(structure)
    } | CONSTANTS
    headers = (
        "#define _GNU_SOURCE\n#include <dlfcn.h>\n#include <httpd.h>\n"
        "#include <http_config.h>\n#include <http_log.h>\n#include <util_filter.h>\n"
        "#include <apr_errno.h>\n#include <apr_buckets.h>\n#include <apr_network_io.h>\n"
        "#include <ap_mpm.h>\n#include <apr_hooks.h>"
    )
    flags = [f"-I{apxs('INCLUDEDIR')}", f"-I{apxs('APR_INCLUDEDIR')}", *apxs("CPPFLAGS").split()]
    flags += ["-D_LARGEFILE64_SOURCE", *apxs("EXTRA_CPPFLAGS").split()]
    assert compiled(tmp_path, program(headers, list(expected)), *flags) == expected


@pytest.mark.skipif(
    not Path("/usr/include/openssl/ssl.h").exists(), reason="no headers: apt-get install libssl-dev"
)
def test_tls_constants_are_those_of_the_headers(tmp_path: Path) -> None:
    headers = "#include <openssl/ssl.h>"
    source = program(headers, list(TLS_CONSTANTS))
    assert compiled(tmp_path, source) == TLS_CONSTANTS


def test_tcp_info_is_that_of_the_kernels_headers(tmp_path: Path) -> None:
    members = ["tcpi_rtt", "tcpi_rttvar", "tcpi_bytes_acked", "tcpi_snd_wnd"]
    expressions = [f"offsetof(struct tcp_info, {member})" for member in members]
    found = compiled(tmp_path, program("#include <linux/tcp.h>", expressions))
    # Each member's offset is its value in a record of bytes that hold their own offsets.
    record = bytes(range(TCP_INFO.size))
    for expression, value in zip(expressions, TCP_INFO.unpack(record), strict=True):
        assert value & 0xFF == found[expression], expression
