"""Notifies a user, or everybody, from any program in Python.

python send.py PATH TITLE TEXT [USER]
"""

import json
import sys

from apachews import NobodyListens, publish


def notify(path: str, title: str, text: str, user: str | None = None) -> int:
    """Send a notification; return how many pages of the user's it reached."""
    try:
        return publish(path, json.dumps({"title": title, "text": text}), group=user).reached
    except NobodyListens:
        return 0  # no page is open while nobody serves them


if __name__ == "__main__":
    print(notify(*sys.argv[1:5]))
