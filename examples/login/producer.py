"""A WebSocket that knows who is there, by either of two ways.

    python producer.py PATH             whom Apache has logged in: REMOTE_USER
    python producer.py PATH SECRET      whom a Flask application has: its session cookie

SECRET is the file with the application's ``SECRET_KEY``.  Flask's cookie is signed, not
encrypted: whoever has the secret can check it, and nobody else can make one.

A client receives ``{"you": "ann", "here": ["ann", "bob"]}`` when somebody comes or goes, and
``{"from": "ann", "text": "hello"}`` for each text that one of them sends.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

from itsdangerous import BadData, URLSafeTimedSerializer

from apachews import Event, Group, Server, wire

# As in app.py: after that long a login is over, and its WebSockets with it.
SESSION_S = 8 * 3600
LOOK_EVERY_S = 5.0
MAX_TEXT = 500  # characters

# Returns who it is and until when (seconds since 1970), or None.
Identify = Callable[[wire.Open], "tuple[str, float] | None"]


def by_remote_user(request: wire.Open) -> tuple[str, float] | None:
    """Believe Apache."""
    return (request.user, float("inf")) if request.user else None


def by_session(secret: str) -> Identify:
    """Believe a cookie that Flask has signed with this secret."""
    # As flask.sessions.SecureCookieSessionInterface has it.  (What it writes has tags for
    # what JSON lacks, tuples say; a name has none.)
    serializer = URLSafeTimedSerializer(
        secret,
        salt="cookie-session",
        signer_kwargs={"key_derivation": "hmac", "digest_method": hashlib.sha1},
    )

    def identify(request: wire.Open) -> tuple[str, float] | None:
        cookie = request.cookies.get("session", "")
        try:
            session, signed_at = serializer.loads(cookie, max_age=SESSION_S, return_timestamp=True)
            return str(session["user"]), signed_at.timestamp() + SESSION_S
        except (BadData, LookupError, TypeError):
            return None  # none, a wrong one, an old one, or nobody is logged in

    return identify


def main(path: str, secret_file: str | None = None) -> None:
    """Serve on a socket file until the server is closed."""
    identify = by_session(Path(secret_file).read_text().strip()) if secret_file else by_remote_user
    with Server(path) as server:
        members = server.group("members")
        look_at = time.monotonic()
        while True:
            event = server.dequeue(max(0.0, look_at - time.monotonic()))
            if event is not None:
                take(event, members, identify)
            if time.monotonic() >= look_at:
                look_at = time.monotonic() + LOOK_EVERY_S
                close_old_logins(members)


def take(event: Event, members: Group, identify: Identify) -> None:
    """Let in who is somebody; pass on what they say."""
    client = event.client_or_none()
    if client is None:
        return
    if event.type() is Event.Accept:
        client.state = identify(client.request)
        if client.state is not None:
            client.accept()
            members.add(client)
            tell_who_is_here(members)
        elif client.request.answer_required:
            client.reject(401, "Log in first.\n")
        else:
            client.close(wire.POLICY_VIOLATION, "log in first")
    elif client.state is None:
        return  # what else comes of somebody who is being closed
    elif event.type() is Event.ConnectionClosed:
        tell_who_is_here(members)
    elif event.type() is Event.IO:
        said = {"from": client.state[0], "text": str(event.read())[:MAX_TEXT]}
        members.broadcast_json(said)


def tell_who_is_here(members: Group) -> None:
    """Tell each member, and who it is itself."""
    here = sorted({client.state[0] for client in members})
    for client in members:
        client.send_json({"you": client.state[0], "here": here})


def close_old_logins(members: Group) -> None:
    """Say goodbye to those whose login is over."""
    for client in members:
        if client.state[1] < time.time():
            client.close(wire.POLICY_VIOLATION, "the login is over")


if __name__ == "__main__":
    main(*sys.argv[1:3])
