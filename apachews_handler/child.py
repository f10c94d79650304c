"""The one bridge of an Apache child, made when it is first needed.

Contract: ``bridge()`` from any thread.  Subscribes to the child's end, so that
clients hear of it and the thread is gone before Python is taken down.
"""

from __future__ import annotations

import atexit
import threading

from .bridge import Bridge

_lock = threading.Lock()
_bridge: Bridge | None = None


def bridge() -> Bridge:
    """Return the child's bridge, started."""
    global _bridge
    with _lock:
        if _bridge is None:
            made = Bridge()
            made.start()
            _subscribe_end(made)
            _bridge = made
        return _bridge


def _subscribe_end(made: Bridge) -> None:
    def end(*_: object, **__: object) -> None:
        made.stop()

    try:
        # On the main thread, before Python's own end (mod_wsgi 4.9 and later).
        from mod_wsgi import subscribe_shutdown
    except ImportError:
        atexit.register(end)
    else:
        subscribe_shutdown(end)
