"""``python -m apachews``: the command line."""

from __future__ import annotations

import signal
import sys

# Until main() runs, nothing must be cleaned up: Ctrl-C ends the process without a traceback.
if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from apachews_tools.cli import main

if __name__ == "__main__":
    sys.exit(main())
