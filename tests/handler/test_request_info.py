"""apachews_handler.handshake.request_info: what the producer, the status and the log are told."""

from __future__ import annotations

import re
import uuid

import pytest

from apachews import wire
from apachews_handler.handshake.request_info import (
    connection_info,
    describe,
    log_name,
    new_id,
)
from apachews_handler.settings import Settings

from .test_upgrade import GOOD, negotiate


def test_what_the_producer_is_told() -> None:
    settings = Settings(pass_env=("SSL_CLIENT_S_DN", "ABSENT"), subprotocols=("x", "superchat"))
    environ = {**GOOD, "REMOTE_USER": "ann", "SSL_CLIENT_S_DN": "CN=ann"}
    remote, local = ("203.0.113.7", 51514), ("192.0.2.1", 443)
    tls = wire.TLS("TLSv1.3", "TLS_AES_256_GCM_SHA384", "server.example.com")
    open_ = describe(environ, settings, negotiate(), "id-1", tls=tls, remote=remote, local=local)
    assert open_.env == {"SSL_CLIENT_S_DN": "CN=ann"}
    assert open_.subprotocol == "superchat"
    assert open_.local == local
    assert not open_.answer_required
    assert open_.id == "id-1"
    assert open_.uri == "/chat.ws?room=1"
    assert open_.remote == remote
    assert open_.scheme == "wss"
    assert open_.tls is tls
    assert open_.user == "ann"
    assert open_.vhost == "server.example.com"
    assert open_.offered == ("chat", "superchat")
    assert open_.header("Host") == "server.example.com"
    assert not open_.resumed
    assert open_.rewritten_query is None


@pytest.mark.parametrize(
    ("query", "rewritten"), [("room=1", None), ("room=7&room=1", "room=7&room=1"), ("", "")]
)
def test_the_query_of_a_rewriting_rule_is_told(query: str, rewritten: str | None) -> None:
    environ = {**GOOD, "QUERY_STRING": query}
    address = ("203.0.113.7", 51514)
    open_ = describe(environ, Settings(), negotiate(), "1", tls=None, remote=address, local=address)
    assert open_.rewritten_query == rewritten
    assert open_.uri == "/chat.ws?room=1"


def open_document(**changes: str) -> wire.Open:
    environ = {**GOOD, **changes}
    remote, local = ("203.0.113.7", 51514), ("192.0.2.1", 80)
    return describe(environ, Settings(), negotiate(), "1", tls=None, remote=remote, local=local)


def test_the_status_shows_no_query_and_a_bounded_path() -> None:
    info = connection_info(open_document(REMOTE_USER="ann"), "chat")
    assert (info.path, info.user, info.subprotocol) == ("/chat.ws", "ann", "chat")
    long = connection_info(open_document(REQUEST_URI="/" + "x" * 9000 + "?secret"), None)
    assert len(long.path) == 200
    assert (long.user, long.subprotocol) == ("", "")


def test_the_log_names_client_user_and_uri() -> None:
    assert log_name(open_document()) == "[client 203.0.113.7:51514] user=- /chat.ws?room=1"
    environ = {**GOOD, "REMOTE_USER": "ann", "REQUEST_URI": "/" + "x" * 9000}
    address = ("203.0.113.7", 0)
    open_ = describe(environ, Settings(), negotiate(), "1", tls=None, remote=address, local=address)
    assert log_name(open_) == "[client 203.0.113.7] user=ann /" + "x" * 199


def test_an_id_is_a_random_uuid() -> None:
    made = {new_id() for _ in range(100)}
    assert len(made) == 100
    for text in made:
        parsed = uuid.UUID(text)
        assert (parsed.version, parsed.variant) == (4, uuid.RFC_4122)
        assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", text)
