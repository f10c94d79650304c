"""Notify one user, or all, from any Python program.

python send.py PATH TITLE TEXT [USER]
"""

import json
import sys

from apachews import NobodyListens, publish


def notify(path: str, title: str, text: str, user: str | None = None) -> int:
    """Send a notification; return the number of pages that it reached."""
    try:
        return publish(path, json.dumps({"title": title, "text": text}), group=user).reached
    except NobodyListens:
        return 0  # without a producer no page is connected


if __name__ == "__main__":
    print(notify(*sys.argv[1:5]))
