"""handshake: which requests become WebSockets, and what the producer is told of them."""

from __future__ import annotations

import ctypes
import re
import uuid
from typing import Any

import pytest
from h11 import LocalProtocolError
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import ConnectionType
from wsproto.events import AcceptConnection, Request
from wsproto.handshake import H11Handshake
from wsproto.utilities import RemoteProtocolError

from apachews import wire
from apachews.monitoring import refusals
from apachews_handler.exceptions import Refusal
from apachews_handler.handshake.request_info import (
    Peer,
    connection_info,
    describe,
    log_name,
    new_id,
)
from apachews_handler.handshake.upgrade import (
    Upgrade,
    require_no_error_document,
    require_own_htaccess,
)
from apachews_handler.native import httpd, httpd_abi
from apachews_handler.protocol.deflate import Agreement, Negotiation
from apachews_handler.settings import Settings

# The example of RFC 6455 1.3.
GOOD: dict[str, Any] = {
    "REQUEST_METHOD": "GET",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "REQUEST_URI": "/chat.ws?room=1",
    "QUERY_STRING": "room=1",
    "SERVER_NAME": "server.example.com",
    "REMOTE_ADDR": "203.0.113.7",
    "REMOTE_PORT": "51514",
    "wsgi.url_scheme": "http",
    "HTTP_HOST": "server.example.com",
    "HTTP_UPGRADE": "websocket",
    "HTTP_CONNECTION": "keep-alive, Upgrade",
    "HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jZQ==",
    "HTTP_SEC_WEBSOCKET_PROTOCOL": "chat, superchat",
    "HTTP_SEC_WEBSOCKET_VERSION": "13",
}


def negotiate(
    changes: dict[str, str | None] | None = None, settings: Settings | None = None
) -> Upgrade:
    environ = {**GOOD, **(changes or {})}
    return Upgrade.negotiate(
        {name: value for name, value in environ.items() if value is not None},
        settings or Settings(),
    )


def test_the_answer_is_that_of_the_rfc() -> None:
    head, _ = negotiate().accept(Settings())
    lines = head.decode().split("\r\n")
    assert lines[0] == "HTTP/1.1 101 Switching Protocols"
    assert lines[-2:] == ["", ""]
    fields = {line.split(": ")[0].lower(): line.split(": ")[1] for line in lines[1:-2]}
    assert fields == {
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-accept": "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
    }


REFUSED: list[tuple[dict[str, str | None], str]] = [
    ({"HTTP_UPGRADE": None}, "426"),
    # SetEnv sets it too: it tells nothing.
    ({"REDIRECT_STATUS": "404", "HTTP_UPGRADE": None}, "426"),
    ({"HTTP_UPGRADE": "h2c"}, "426"),
    ({"HTTP_CONNECTION": None}, "426"),
    ({"HTTP_CONNECTION": "keep-alive"}, "426"),
    ({"REQUEST_METHOD": "POST"}, "426"),
    ({"SERVER_PROTOCOL": "HTTP/1.0"}, "426"),
    ({"SERVER_PROTOCOL": "HTTP/2.0"}, "403"),
    ({"SERVER_PROTOCOL": "HTTP/2.0", "HTTP_UPGRADE": None}, "426"),
    ({"HTTP_SEC_WEBSOCKET_VERSION": None}, "426"),
    ({"HTTP_SEC_WEBSOCKET_VERSION": "8"}, "426"),
    ({"HTTP_SEC_WEBSOCKET_VERSION": "13, 8"}, "426"),
    ({"HTTP_SEC_WEBSOCKET_KEY": None}, "400"),
    ({"HTTP_SEC_WEBSOCKET_KEY": ""}, "400"),
    ({"HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jZQ"}, "400"),
    ({"HTTP_SEC_WEBSOCKET_KEY": "x" * 24}, "400"),
    ({"HTTP_SEC_WEBSOCKET_KEY": "A" * 10_000}, "400"),
    ({"HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jZQ==, x"}, "400"),
    ({"HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jé=="}, "400"),
    ({"HTTP_HOST": None}, "400"),
    ({"HTTP_HOST": "é"}, "400"),
    ({"HTTP_CONNECTION": "Upgrade, é"}, "400"),
    ({"CONTENT_LENGTH": "5"}, "400"),
    ({"HTTP_TRANSFER_ENCODING": "chunked"}, "400"),
    ({"HTTP_X": "a\nb"}, "400"),
    ({"HTTP_ORIGIN": "http://evil.example"}, "403"),
    ({"HTTP_ORIGIN": "https://server.example.com"}, "403"),
    ({"HTTP_ORIGIN": "http://server.example.com:8080"}, "403"),
    ({"HTTP_ORIGIN": "null"}, "403"),
    ({"HTTP_ORIGIN": ""}, "403"),
]


@pytest.mark.parametrize(("changes", "status"), REFUSED)
def test_refusals(changes: dict[str, str | None], status: str) -> None:
    with pytest.raises(Refusal) as caught:
        negotiate(changes)
    assert caught.value.status.startswith(status)
    assert caught.value.told
    if status == "426":
        headers = dict(caught.value.headers)
        assert headers["Upgrade"] == "websocket"
        version = changes.get("HTTP_SEC_WEBSOCKET_VERSION", "13")
        assert headers.get("Sec-WebSocket-Version") == (None if version == "13" else "13")


@pytest.mark.parametrize(
    ("failed_with", "status"),
    [(404, "404 Not Found"), (503, "503 Service Unavailable"), (499, "500 Internal Server Error")],
)
def test_an_error_document_has_the_status_of_the_error(failed_with: int, status: str) -> None:
    with pytest.raises(Refusal, match="name a page") as caught:
        require_no_error_document(failed_with)
    assert caught.value.status == status
    assert caught.value.told


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({"HTTP_UPGRADE": "WebSocket"}, None),
        ({"REDIRECT_STATUS": "101"}, None),
        ({"REDIRECT_STATUS": "404"}, None),
        ({"HTTP_UPGRADE": "h2c, websocket"}, None),
        ({"HTTP_CONNECTION": "UPGRADE"}, None),
        ({"HTTP_ORIGIN": "http://server.example.com"}, None),
        ({"HTTP_ORIGIN": "http://SERVER.example.com:80"}, None),
        ({"HTTP_ORIGIN": "http://evil.example"}, Settings(origins=("*",))),
        ({"HTTP_ORIGIN": "null"}, Settings(origins=("*",))),
        ({"HTTP_ORIGIN": "https://b.example"}, Settings(origins=("https://b.example",))),
        ({"CONTENT_LENGTH": "0"}, None),
    ],
)
def test_allowed(changes: dict[str, str | None], settings: Settings | None) -> None:
    head, _ = negotiate(changes, settings).accept(Settings())
    assert head.startswith(b"HTTP/1.1 101")


latin = st.text(st.characters(max_codepoint=255), max_size=30)


@given(st.dictionaries(st.sampled_from(sorted(GOOD)[:13]), latin | st.none(), max_size=4))
def test_any_headers_are_accepted_or_refused(changes: dict[str, str | None]) -> None:
    changes = {name: value for name, value in changes.items() if name.startswith("HTTP_")}
    try:
        negotiate(changes).accept(Settings())
    except Refusal as refusal:
        assert refusal.status[0] == "4"


tokens = st.lists(st.sampled_from(["a", "b", "chat", "websocket", "Upgrade", "", " x ", "é"]))
offers = st.lists(
    st.sampled_from(
        [
            *("permessage-deflate", "permessage-deflate; client_max_window_bits", "x; y=1"),
            *("permessage-deflate; server_max_window_bits=9; client_no_context_takeover", "é"),
            *("permessage-deflate;server_max_window_bits=8", "permessage-deflate; nonsense", ""),
        ]
    )
)


def handshake_of_wsproto(environ: dict[str, Any]) -> tuple[H11Handshake, Request]:
    handshake = H11Handshake(ConnectionType.SERVER)
    headers = [
        (name[5:].replace("_", "-").encode(), value.encode("latin-1"))
        for name, value in environ.items()
        if name.startswith("HTTP_") and value is not None
    ]
    handshake.initiate_upgrade_connection(headers, b"/")
    (request,) = handshake.events()
    assert isinstance(request, Request)
    return handshake, request


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "HTTP_UPGRADE": tokens.map(", ".join),
            "HTTP_CONNECTION": tokens.map(",".join),
            "HTTP_SEC_WEBSOCKET_PROTOCOL": tokens.map(", ".join),
            "HTTP_SEC_WEBSOCKET_EXTENSIONS": offers.map(", ".join),
            "HTTP_SEC_WEBSOCKET_KEY": latin,
            "HTTP_SEC_WEBSOCKET_VERSION": st.sampled_from(["13", "8", "", "13, 13"]),
            "HTTP_HOST": st.sampled_from(["a.example:80", "é", None]),
            "HTTP_X": latin,
        },
    ),
    st.booleans(),
    st.booleans(),
)
def test_the_answer_is_that_of_wsproto(
    changes: dict[str, str | None], deflate: bool, chooses: bool
) -> None:
    settings = Settings(deflate=deflate, subprotocols=("b", "chat") if chooses else ())
    # httpd has taken the blanks around a value away.
    changes = {name: value and value.strip(" \t") for name, value in changes.items()}
    environ = {**GOOD, **changes}
    try:
        upgrade = negotiate(changes)
    except Refusal:
        if "HTTP_SEC_WEBSOCKET_KEY" not in changes:  # at which wsproto does not look
            with pytest.raises((LocalProtocolError, RemoteProtocolError, UnicodeError)):
                handshake_of_wsproto(environ)
        return
    # Among several protocols to upgrade to wsproto does not see its own.
    theirs, request = handshake_of_wsproto({**environ, "HTTP_UPGRADE": "websocket"})
    assert upgrade.offered == tuple(request.subprotocols)
    subprotocol = upgrade.choose(settings)
    negotiation = Negotiation(settings.deflate_window_bits, settings.deflate_context_takeover)
    expected = theirs.send(
        AcceptConnection(subprotocol=subprotocol, extensions=[negotiation] if deflate else [])
    )
    head, agreement = upgrade.accept(settings, subprotocol)
    assert head.lower() == expected.lower()
    assert agreement == negotiation.agreed


def test_a_subprotocol_is_the_sites_first_that_was_offered() -> None:
    upgrade = negotiate()
    assert upgrade.choose(Settings()) is None
    assert upgrade.choose(Settings(subprotocols=("x", "superchat", "chat"))) == "superchat"
    assert upgrade.choose(Settings(subprotocols=("x", "y"))) is None
    assert (
        b"\r\nSec-WebSocket-Protocol: superchat\r\n" in upgrade.accept(Settings(), "superchat")[0]
    )


def test_compression_is_agreed_on_or_switched_off() -> None:
    offer: dict[str, str | None] = {
        "HTTP_SEC_WEBSOCKET_EXTENSIONS": "x, permessage-deflate; client_max_window_bits"
    }
    head, agreement = negotiate(offer).accept(Settings())
    assert b"Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits=12\r\n" in head
    assert agreement == Agreement(12, 12)
    head, agreement = negotiate(offer).accept(Settings(deflate=False))
    assert b"Extensions" not in head
    assert agreement is None
    invalid = negotiate({"HTTP_SEC_WEBSOCKET_EXTENSIONS": "permessage-deflate; nonsense"})
    head, agreement = invalid.accept(Settings())
    assert b"Extensions" not in head
    assert agreement is None


def test_a_header_that_would_break_the_answer_is_refused() -> None:
    with pytest.raises(LocalProtocolError):
        negotiate().accept(Settings(), headers=[("X", "a\r\nSet-Cookie: b")])


def test_headers_of_the_producer_are_added() -> None:
    head, _ = negotiate().accept(Settings(), headers=[("Set-Cookie", "a=é")])
    assert "\r\nSet-Cookie: a=é\r\n".encode("latin-1") in head


# apachews_handler.handshake.request_info: what the producer, the status and the log are told.

PEER = Peer("1", ("203.0.113.7", 51514), ("192.0.2.1", 80), None)


def test_what_the_producer_is_told() -> None:
    settings = Settings(pass_env=("SSL_CLIENT_S_DN", "ABSENT"), subprotocols=("x", "superchat"))
    environ = {**GOOD, "REMOTE_USER": "ann", "SSL_CLIENT_S_DN": "CN=ann"}
    remote, local = ("203.0.113.7", 51514), ("192.0.2.1", 443)
    tls = wire.TLS("TLSv1.3", "TLS_AES_256_GCM_SHA384", "server.example.com")
    open_ = describe(environ, settings, negotiate(), Peer("id-1", remote, local, tls), "b1")
    assert open_.env == {"SSL_CLIENT_S_DN": "CN=ann"}
    assert open_.subprotocol == "superchat"
    assert open_.local == local
    assert not open_.answer_required
    assert (open_.id, open_.bridge) == ("id-1", "b1")
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
    open_ = describe(environ, Settings(), negotiate(), PEER)
    assert open_.rewritten_query == rewritten
    assert open_.uri == "/chat.ws?room=1"


def test_the_status_shows_no_query_and_a_bounded_path() -> None:
    info = connection_info({**GOOD, "REMOTE_USER": "ann"}, PEER, "chat")
    assert (info.path, info.user, info.subprotocol) == ("/chat.ws", "ann", "chat")
    assert (info.id, info.address, info.port, info.scheme) == ("1", "203.0.113.7", 51514, "ws")
    long = connection_info({**GOOD, "REQUEST_URI": "/" + "x" * 9000 + "?secret"}, PEER, None)
    assert len(long.path) == 200
    assert (long.user, long.subprotocol) == ("", "")


def test_the_log_names_client_user_and_uri() -> None:
    assert log_name(GOOD, PEER, "/a?b") == "[client 203.0.113.7:51514] user=- /a?b"
    peer = PEER._replace(remote=("203.0.113.7", 0))
    name = log_name({**GOOD, "REMOTE_USER": "ann"}, peer, "/" + "x" * 9000)
    assert name == "[client 203.0.113.7] user=ann /" + "x" * 199


def test_an_id_is_a_random_uuid() -> None:
    made = {new_id() for _ in range(100)}
    assert len(made) == 100
    for text in made:
        parsed = uuid.UUID(text)
        assert (parsed.version, parsed.variant) == (4, uuid.RFC_4122)
        assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", text)


def read_htaccess(file: bytes | None, *found: tuple[bytes | None, bool]) -> str | None:
    """Return ``foreign_htaccess`` of a record of httpd's.

    Args:
        found: directories of its list, and whether each has the file.
    """
    kept = [ctypes.create_string_buffer(file or b"")]
    record = httpd_abi.RequestRec(filename=ctypes.addressof(kept[0]) if file else None)
    entries = []
    for directory, has_file in found:
        entry = httpd_abi.HtaccessResult(
            dir=directory, htaccess=1 if has_file else None, next=record.htaccess
        )
        entries.append(entry)
        record.htaccess = ctypes.addressof(entry)
    request = object.__new__(httpd.Request)
    request._rec = record
    return request.foreign_htaccess


def test_which_htaccess_files_are_foreign() -> None:
    file = b"/srv/ann/chat.ws"
    assert read_htaccess(file) is None
    assert read_htaccess(file, (b"/", True), (b"/srv/", True), (b"/srv/ann/", True)) is None
    assert read_htaccess(file, (b"/srv/ann", True)) is None
    assert read_htaccess(file, (b"/srv/bob/", False), (b"/srv/ann/", True)) is None
    assert read_htaccess(file, (b"/srv/bob/", True), (b"/srv/ann/", True)) == "/srv/bob/"
    assert read_htaccess(file, (b"/srv/an/", True)) == "/srv/an/"
    assert read_htaccess(file, (b"/srv/an", True)) == "/srv/an"
    assert read_htaccess(b"/srv/ann", (b"/srv/ann/", True)) is None
    assert read_htaccess(None, (b"/srv/ann/", True)) == "/srv/ann/"
    assert read_htaccess(file, (None, True)) == ""
    assert read_htaccess(None) is None


def test_a_foreign_htaccess_is_refused() -> None:
    require_own_htaccess(None)
    with pytest.raises(Refusal) as caught:
        require_own_htaccess("/srv/bob/")
    assert caught.value.reason is refusals.HTACCESS
    assert "'/srv/bob/'" in caught.value.logged
