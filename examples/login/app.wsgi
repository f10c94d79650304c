"""The entry point for mod_wsgi: the application, with the files that apache.conf names."""

import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from app import create_app


@functools.cache
def app_with(secret, users):
    return create_app(Path(secret).read_text().strip(), Path(users))


def application(environ, start_response):
    # A program gets the variables of SetEnv with each request, not at its start.
    app = app_with(environ["LOGIN_SECRET"], environ["LOGIN_USERS"])
    return app(environ, start_response)
