"""How much is enough: seconds by default, all of it with APACHEWS_STRESS=full.

``deploy/test -e stress`` runs all of it, some minutes on two cores.
"""

from __future__ import annotations

import os
import resource

# Thousands of clients, and Apache and its producers inherit it.
_, _most = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (min(_most, 65536), _most))

FULL = os.environ.get("APACHEWS_STRESS") == "full"


def scaled(full: int, small: int) -> int:
    """Return how many, or how much, this run is to take."""
    return full if FULL else small
