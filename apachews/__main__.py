"""``python -m apachews``: the command line."""

from __future__ import annotations

import sys

from apachews_tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
