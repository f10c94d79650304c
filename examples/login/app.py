"""A Flask application with a form to log in, in the same Apache as its WebSocket.

It keeps who somebody is in Flask's signed session cookie; ``producer.py`` checks the same
cookie with the same secret.  ``app.wsgi`` is what mod_wsgi runs.
"""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path

from flask import Flask, jsonify, request, session
from flask.typing import ResponseReturnValue
from werkzeug.security import check_password_hash, generate_password_hash

# For how long a login is good; the producer asks the same of the cookie.
SESSION_S = 8 * 3600


def create_app(secret: str, users: Path) -> Flask:
    """Return the application.

    Args:
        secret: what signs the cookies.
        users: a JSON file, ``{"ann": generate_password_hash("…")}``.
    """
    app = Flask(__name__)
    app.config.update(
        SECRET_KEY=secret,
        PERMANENT_SESSION_LIFETIME=timedelta(seconds=SESSION_S),
        # No form of another site can use the login.  (That no page of another site opens
        # the WebSocket with it is apachews' own check of the origin.)
        SESSION_COOKIE_SAMESITE="Lax",
        # No script of the page can read the cookie; a WebSocket has it all the same.
        SESSION_COOKIE_HTTPONLY=True,
        # SESSION_COOKIE_SECURE=True, on a site that is https: only, as it should be.
    )
    # For a name that nobody has it takes as long as for a wrong password.
    nobody = generate_password_hash("")

    @app.post("/login")
    def log_in() -> ResponseReturnValue:
        name, password = request.form.get("name", ""), request.form.get("password", "")
        hashes = json.loads(users.read_text())
        is_right = check_password_hash(hashes.get(name, nobody), password)
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
