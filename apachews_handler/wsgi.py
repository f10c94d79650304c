"""The file that mod_wsgi loads, by its path: ``handle_request`` and ``application``.

``entry_points`` has both.  This file also works if the Python of mod_wsgi does not find the
packages, as after an upgrade of the system, when a virtual environment still has those for the
previous Python: then every request is a 500 with its token, and the error log says what to do.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

_PAGE = "docs/howto/after-a-system-upgrade.md"
# The row refusals.NO_PACKAGES, which this Python cannot import; a test compares them.
_TOKEN = "no-packages"


def _refuse_all(missing: str) -> Callable[..., Iterable[bytes]]:
    """Return the entry point of a Python without the packages, and log why."""
    version = ".".join(map(str, sys.version_info[:2]))
    problem = (
        f"mod_wsgi's Python {version} does not find {missing}, which"
        f" {Path(__file__).resolve().parents[1]} may have for another Python; after an upgrade of"
        f" the system, install apachews again: {_PAGE}"
    )
    # mod_wsgi writes it to Apache's error log, once for each child that starts.
    print(f"apachews: no WebSockets: {problem}", file=sys.stderr)

    def refuse(
        environ: dict[str, Any], start_response: Callable[..., Any], die: object = None
    ) -> Iterable[bytes]:
        uri = environ.get("REQUEST_URI", "")
        environ["wsgi.errors"].write(f"apachews: 500 {_TOKEN} for {uri[:200]}: {problem}\n")
        start_response(
            "500 Internal Server Error",
            [
                ("Apachews-Refused", _TOKEN),
                ("Content-Length", "0"),
                ("Cache-Control", "no-store"),
            ],
        )
        return []

    return refuse


try:
    from apachews_handler.entry_points import application, handle_request
except ModuleNotFoundError as error:
    application = handle_request = _refuse_all(error.name or str(error))

__all__ = ["application", "handle_request"]
