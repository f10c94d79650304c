"""The entries of an APR table: headers and variables of a request.

Contract: ``entries(table)`` follows the pointers of a table that the caller knows to be set, and
returns copies.

Sources: apr_tables.h.
"""

from __future__ import annotations

import ctypes

from . import httpd_abi as abi
from .httpd_process import HttpdError, functions


def entries(table: int) -> list[tuple[bytes, bytes]]:
    """Return keys and values, in the table's order.

    Args:
        table: address of an ``apr_table_t``, not 0.

    Raises:
        HttpdError: the table's entries have another layout.
    """
    # (Not apr_table_do: its callback would call PyGILState_Ensure, which does not know the
    # thread states of mod_python's threads; the process crashes.)
    pointer = functions().apr_table_elts(table)
    if not pointer:
        raise HttpdError("a table has an array", "NULL")
    array = pointer.contents
    if array.elt_size != ctypes.sizeof(abi.TableEntry):
        raise HttpdError(
            f"an entry of a table has {ctypes.sizeof(abi.TableEntry)} bytes", str(array.elt_size)
        )
    if array.nelts <= 0:
        return []
    if not array.elts:
        raise HttpdError("the entries of a table are set", "NULL")
    found = (abi.TableEntry * array.nelts).from_address(array.elts)
    return [
        (entry.key, entry.val) for entry in found if entry.key is not None and entry.val is not None
    ]
