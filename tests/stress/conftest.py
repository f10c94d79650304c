"""How much is enough: seconds by default, all of it with APACHEWS_STRESS=full.

``deploy/test -e stress`` runs all of it, some minutes on two cores.
"""

from __future__ import annotations

import os

FULL = os.environ.get("APACHEWS_STRESS") == "full"


def scaled(full: int, small: int) -> int:
    """Return how many, or how much, this run is to take."""
    return full if FULL else small
