"""A Flask application with a form to log in, in the same Apache as its WebSocket.

It stores the user's name in Flask's signed session cookie; ``producer.py`` checks the same
cookie with the same secret.  mod_wsgi runs ``app.wsgi``.
"""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

from flask import Flask, jsonify, request, session
from flask.typing import ResponseReturnValue
from werkzeug.security import check_password_hash, generate_password_hash

# Lifetime of a login; the producer applies the same limit to the cookie.
SESSION_S = 8 * 3600


def create_app(secret: str, users: Path) -> Flask:
    """Return the application.

    Args:
        secret: the key that signs the cookies.
        users: a JSON file, ``{"ann": generate_password_hash("…")}``.
    """
    app = Flask(__name__)
    app.config.update(
        SECRET_KEY=secret,
        PERMANENT_SESSION_LIFETIME=timedelta(seconds=SESSION_S),
        # Forms of other sites cannot use the login.  (apachews' check of the origin keeps
        # their pages from opening the WebSocket with it.)
        SESSION_COOKIE_SAMESITE="Lax",
        # Scripts of the page cannot read the cookie; the browser still sends it with a WebSocket.
        SESSION_COOKIE_HTTPONLY=True,
        # Add SESSION_COOKIE_SECURE=True on a site with https only, which is recommended.
    )
    # An unknown name takes as long to check as a wrong password.
    unknown = generate_password_hash("")

    @app.post("/login")
    def log_in() -> ResponseReturnValue:
        name, password = request.form.get("name", ""), request.form.get("password", "")
        hashes = json.loads(users.read_text())
        is_right = check_password_hash(hashes.get(name, unknown), password)
        if name not in hashes or not is_right:
            return jsonify(problem="Name and password do not match."), 403
        session.permanent = True
        session["user"] = name
        return jsonify(user=name)

    @app.post("/logout")
    def log_out() -> ResponseReturnValue:
        session.clear()
        return jsonify(user=None)

    @app.get("/me")
    def me() -> ResponseReturnValue:
        return jsonify(user=session.get("user"))

    return app
