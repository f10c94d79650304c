"""A WebSocket for logged-in users, with either of two logins.

    python producer.py PATH             the login of Apache: REMOTE_USER
    python producer.py PATH SECRET      the login of a Flask application: its session cookie

SECRET is the file with the application's ``SECRET_KEY``.  Flask's cookie is signed, not
encrypted: the secret is needed to create a cookie, and sufficient to check one.

A client receives ``{"you": "ann", "here": ["ann", "bob"]}`` when the list of members changes,
and ``{"from": "ann", "text": "hello"}`` for each text that a member sends.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

from itsdangerous import BadData, URLSafeTimedSerializer

from apachews import Event, Group, Server, wire

# As in app.py: a login ends after this time, and its WebSockets with it.
SESSION_S = 8 * 3600
CHECK_EVERY_S = 5.0
MAX_TEXT = 500  # characters

# Returns the user's name and the expiry of the login (seconds since 1970), or None.
Identify = Callable[[wire.Open], "tuple[str, float] | None"]


def by_remote_user(request: wire.Open) -> tuple[str, float] | None:
    """Trust the login of Apache."""
    return (request.user, float("inf")) if request.user else None


def by_session(secret: str) -> Identify:
    """Trust a cookie that Flask has signed with this secret."""
    # The parameters of flask.sessions.SecureCookieSessionInterface.  (Flask tags values that
    # JSON lacks, such as tuples; a name has no tag.)
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
            return None  # no cookie, an invalid or expired one, or one without a user

    return identify


def main(path: str, secret_file: str | None = None) -> None:
    """Serve on a socket file until the server is closed."""
    identify = by_session(Path(secret_file).read_text().strip()) if secret_file else by_remote_user
    with Server(path) as server:
        members = server.group("members")
        check_at = time.monotonic()
        while True:
            event = server.dequeue(max(0.0, check_at - time.monotonic()))
            if event is not None:
                handle_event(event, members, identify)
            if time.monotonic() >= check_at:
                check_at = time.monotonic() + CHECK_EVERY_S
                close_expired_logins(members)


def handle_event(event: Event, members: Group, identify: Identify) -> None:
    """Accept clients with a login, and broadcast the messages of members."""
    client = event.client_or_none()
    if client is None:
        return
    if event.type() is Event.Accept:
        client.state = identify(client.request)
        if client.state is not None:
            client.accept()
            members.add(client)
            send_member_lists(members)
        elif client.request.answer_required:
            client.reject(401, "Log in first.\n")
        else:
            client.close(wire.POLICY_VIOLATION, "log in first")
    elif client.state is None:
        return  # a late event of a client that is being closed
    elif event.type() is Event.ConnectionClosed:
        send_member_lists(members)
    elif event.type() is Event.IO:
        message = {"from": client.state[0], "text": str(event.read())[:MAX_TEXT]}
        members.broadcast_json(message)


def send_member_lists(members: Group) -> None:
    """Send each member the list of members, and its own name."""
    here = sorted({client.state[0] for client in members})
    for client in members:
        client.send_json({"you": client.state[0], "here": here})


def close_expired_logins(members: Group) -> None:
    """Close the clients with an expired login."""
    for client in members:
        if client.state[1] < time.time():
            client.close(wire.POLICY_VIOLATION, "the login has expired")


if __name__ == "__main__":
    main(*sys.argv[1:3])
