"""The limits on connections: in all, per client address, per endpoint.

Contract: ``admit(settings, address, path)`` acquires a slot under each limit that is set, or
raises ``Refusal``.  The slots of the ``Permit`` that it returns are free again when it is
released or when the process exits.  For any thread.

How this works: ``slots`` is the semaphore.  Its file is in the run directory, one per running
Apache, and is created when the first limit is checked.
"""

from __future__ import annotations

import ipaddress
import os
import threading
from typing import Final

from apachews_handler.endpoints.endpoint import OUT_OF_RESOURCES, out_of_descriptors
from apachews_handler.exceptions import NotSetUp, Refusal, Unavailable
from apachews_handler.settings import Settings

from . import rundir
from .slots import Permit, SlotFile

# Without limits.
_FREE: Final = Permit(None, [])
_lock = threading.Lock()
_slots: SlotFile | None = None


def admit(settings: Settings, address: str, path: str) -> Permit:
    """Acquire a slot under each limit.

    Args:
        settings: the limits.
        address: the client's; the first 64 bits of an IPv6 address, because a network of
            that size belongs to one client.
        path: the endpoint.

    Raises:
        Refusal: 503, 429 for the limit per address, or 500 if the file cannot be made.
    """
    if not any(
        (
            settings.max_connections,
            settings.max_connections_per_address,
            settings.max_connections_per_endpoint,
        )
    ):
        return _FREE
    wanted = [
        ("all", settings.max_connections, _too_many("APACHEWS_MAX_CONNECTIONS")),
        (
            f"address {_client(address)}",
            settings.max_connections_per_address,
            Refusal(
                "429 Too Many Requests",
                "There are too many connections from your address.",
                f"{_client(address)} has as many connections as"
                f" APACHEWS_MAX_CONNECTIONS_PER_ADDRESS allows:"
                f" {settings.max_connections_per_address}",
            ),
        ),
        (
            f"endpoint {path}",
            settings.max_connections_per_endpoint,
            _too_many("APACHEWS_MAX_CONNECTIONS_PER_ENDPOINT"),
        ),
    ]
    slots = _open_slots()
    positions: list[int] = []
    for key, limit, refusal in wanted:
        if not limit:
            continue
        try:
            # The limit is part of the key: sites with different limits count separately.
            position = slots.acquire(f"{key} of {limit}", limit)
        except OSError as error:
            refusal = Unavailable(f"the connection cannot be counted: {error.strerror}")
            position = None
        if position is None:
            Permit(slots, positions).release()
            raise refusal
        positions.append(position)
    return Permit(slots, positions)


def _too_many(name: str) -> Refusal:
    return Unavailable(f"there are as many connections as SetEnv {name} allows")


def _client(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, 64), strict=False))


def _open_slots() -> SlotFile:
    global _slots
    with _lock:
        if _slots is None:
            directory = ""
            try:
                directory = rundir.open_directory(os.getppid())
                _slots = SlotFile(os.path.join(directory, f"{os.getppid()}.slots"))
            except OSError as error:
                if error.errno in OUT_OF_RESOURCES:
                    raise Unavailable(out_of_descriptors(error)) from error
                raise NotSetUp(
                    f"connections cannot be counted in {error.filename or directory or '/tmp'}:"
                    f" {error.strerror}; Apache's user must own it and be able to write there:"
                    " remove it if it belongs to another user, or set TMPDIR for Apache"
                ) from error
        return _slots


def descriptor() -> int | None:
    """Return the descriptor that holds the locks; None if a slot was never acquired."""
    return _slots.fileno() if _slots else None
