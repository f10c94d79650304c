"""apachews_handler.backend: the request to a backend, its answer, and the connection to it."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wsproto.utilities import generate_accept_token

from apachews_handler import entry_points
from apachews_handler.backend import answer as answers
from apachews_handler.backend import connect as connecting
from apachews_handler.backend.answer import (
    MAX_HEAD_BYTES,
    Accepted,
    Answered,
    AnswerReader,
    BadAnswer,
)
from apachews_handler.backend.connect import Resolver, connect
from apachews_handler.backend.exchange import READ_BYTES, SHORT_BODY_BYTES, Body, Relayed, ask
from apachews_handler.backend.request import encode, headers_of, target_of
from apachews_handler.backends import Backend, choose, cookie_of
from apachews_handler.exceptions import BadSetting, Refusal
from apachews_handler.settings import (
    Settings,
    for_tunnel,
    parse_settings,
    parse_tunnel_settings,
)

from ..conftest import wait_for

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="
ACCEPT = generate_accept_token(KEY)
GOOD = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: " + ACCEPT + b"\r\n"
)


# The setting.


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("http://127.0.0.1:3000", ("http://127.0.0.1:3000", "", "127.0.0.1", 3000, True, None)),
        ("ws://app/", ("ws://app", "", "app", 80, False, "")),
        ("http://app_1.local/a/b/", ("http://app_1.local", "", "app_1.local", 80, False, "/a/b")),
        ("http://[::1]:80/x", ("http://[::1]:80", "", "::1", 80, True, "/x")),
        ("unix:/run/a.sock", ("unix:/run/a.sock", "/run/a.sock", "localhost", 80, False, None)),
        (
            "http://[fe80::1%eth0]:3000",
            ("http://[fe80::1%eth0]:3000", "", "fe80::1%eth0", 3000, True, None),
        ),
        (
            "unix:/run/a.sock|http://localhost/",
            ("unix:/run/a.sock", "/run/a.sock", "localhost", 80, False, ""),
        ),
    ],
)
def test_a_backend_is_spelt_as_in_proxypass(text: str, found: tuple[Any, ...]) -> None:
    assert Backend.parse(text) == Backend(*found)


@pytest.mark.parametrize(
    "text",
    [
        *("", "127.0.0.1:3000", "https://127.0.0.1", "wss://a", "ftp://a", "http://", "http:///a"),
        *("http://a:0", "http://a:70000", "http://a:b", "http://u:p@a", "http://a?", "http://a#x"),
        *("http://a/b c", "http://a/%zz", "http://a b", "http://-a", "http://[::1", "http://[x]"),
        *("unix:run/a", "unix:/a|", "unix:/a|https://b", "unix:/" + "x" * 107, "balancer://a"),
        *("http://a\0", "http://a/é", "http://é"),
        *("http://[fe80::1%²]", "http://[fe80::1%25lo]", "http://[fe80::1%9999999999]"),
    ],
)
def test_another_spelling_is_refused(text: str) -> None:
    with pytest.raises(BadSetting, match="APACHEWS_BACKEND") as caught:
        parse_settings({"APACHEWS_BACKEND": text})
    assert "https) is not supported" in caught.value.allowed


def test_several_backends() -> None:
    settings = parse_settings(
        {"APACHEWS_BACKEND": " http://a  http://b/x\tunix:/c ", "APACHEWS_BACKEND_COOKIE": "R"}
    )
    assert settings.backend == ("http://a", "http://b/x", "unix:/c")
    assert settings.backend_cookie == "R"
    for name, bad in (
        ("APACHEWS_BACKEND", "http://a https://b"),
        ("APACHEWS_BACKEND_COOKIE", "a b"),
        ("APACHEWS_BACKEND_COOKIE", ""),
    ):
        with pytest.raises(BadSetting):
            parse_settings({name: bad})


@pytest.mark.parametrize(
    ("route", "number"),
    [(".1", 1), (".3", 3), ("session.2", 2), ("x.2.1", None), (".0", None), (".4", None)]
    + [(text, None) for text in ("", "2", ".", ".-1", ".02", ".1 ", ".٢", "." + "9" * 9999)],
)
def test_the_cookie_of_a_balancer_selects_a_backend(route: str, number: int | None) -> None:
    addresses = ("http://a", "http://b", "http://c")
    found = choose(addresses, route, "192.0.2.7")
    wanted = choose(addresses, "", "192.0.2.7") if number is None else addresses[number - 1]
    assert found == wanted
    assert choose(("http://a",), route, "192.0.2.7") == "http://a"


def test_an_address_has_one_backend_and_many_have_all() -> None:
    addresses = ("http://a", "http://b", "http://c")
    chosen = [choose(addresses, "", f"192.0.2.{host}") for host in range(256)]
    assert chosen == [choose(addresses, "", f"192.0.2.{host}") for host in range(256)]
    for address in addresses:
        assert 50 < chosen.count(address) < 120


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("R=.1", ".1"),
        ("a=b; R=.1; c=d", ".1"),
        ("a=b, R=.1", ".1"),  # httpd has joined two headers
        ('R=".1"', ".1"),
        ("R=.1; R=.2", ".1"),
        *((header, "") for header in ("", "XR=.1", "r=.1", "R", "a=R=.1")),
    ],
)
def test_a_cookie_is_found_in_its_header(header: str, value: str) -> None:
    assert cookie_of(header, "R") == value


def test_the_settings_of_a_tunnel() -> None:
    settings = parse_settings({"APACHEWS_TUNNEL": "Opaque", "APACHEWS_DROP_HEADERS": "X-A  x-b"})
    assert settings.drop_headers == ("x-a", "x-b")
    passed = parse_settings({"APACHEWS_PASS_HEADERS": "OIDC_CLAIM_* X-Role"})
    assert passed.pass_headers == ("oidc_claim_*", "x-role")
    opaque = for_tunnel(settings, is_message_limited=False)
    assert (opaque.wire, opaque.ping_interval_s, opaque.max_message_bytes) == ("opaque", 0, 0)
    frames = for_tunnel(Settings(), is_message_limited=True)
    assert (frames.wire, frames.ping_interval_s) == ("tunnel", 20)
    assert frames.max_message_bytes == Settings().max_message_bytes
    assert for_tunnel(Settings(), is_message_limited=True) is frames
    for name, bad in (
        ("APACHEWS_USER_HEADER", "X_User"),
        ("APACHEWS_DROP_HEADERS", "a, b"),
        ("APACHEWS_PASS_HEADERS", "*"),
        ("APACHEWS_PASS_HEADERS", "X-*-User"),
    ):
        with pytest.raises(BadSetting):
            parse_settings({name: bad})


def test_a_limit_of_messages_is_one_that_the_site_has_set() -> None:
    assert parse_tunnel_settings({}).max_message_bytes == 0
    limit = ("APACHEWS_MAX_MESSAGE", "1M")  # the default; set by the site, it is a limit
    assert parse_tunnel_settings(dict([limit])).max_message_bytes == 1024 * 1024
    assert parse_tunnel_settings({}, (limit,)).max_message_bytes == 1024 * 1024
    assert parse_tunnel_settings({}) is parse_tunnel_settings({})
    with pytest.raises(BadSetting):
        parse_tunnel_settings({"APACHEWS_MAX_MESSAGE": "0"})


# The request.


def environ(uri: str, prefix: str = "/app", rest: str | None = None, **more: str) -> dict[str, Any]:
    path, _, query = uri.partition("?")
    return {
        "REQUEST_URI": uri,
        "SCRIPT_NAME": prefix,
        "PATH_INFO": path.removeprefix(prefix) if rest is None else rest,
        "QUERY_STRING": query,
        "HTTP_HOST": "example.org",
        "wsgi.url_scheme": "http",
        **more,
    }


@pytest.mark.parametrize(
    ("path", "given", "sent"),
    [
        (None, environ("/app/x?a=1"), "/app/x?a=1"),
        (None, environ("/app"), "/app"),
        ("", environ("/app/x?a=1&b=%20"), "/x?a=1&b=%20"),
        ("", environ("/app"), "/"),
        ("/new", environ("/app/x"), "/new/x"),
        # As the client wrote it, if it means the same.
        ("", environ("/app/a%41%c3%a9", rest="/aA\xc3\xa9"), "/a%41%c3%a9"),
        # What Apache judged, if it does not.
        (None, environ("/app/../app/x", rest="/x"), "/app/x"),
        (None, environ("//app//x", rest="/x"), "/app/x"),
        ("", environ("/%61pp/x y", rest="/x y"), "/x%20y"),
        (None, environ("/app/%2e%2e/app/x", rest="/x"), "/app/x"),
        (None, environ("http://example.org/app/x", rest="/x"), "/app/x"),
        (None, environ("/old?token=1", "/app", "/rewritten"), "/app/rewritten?token=1"),
        # AllowEncodedSlashes, in both forms.
        (None, environ("/app/a%2fb", rest="/a/b"), "/app/a%2fb"),
        (None, environ("/app/a%2Fb", rest="/a%2Fb"), "/app/a%2Fb"),
        # An encoded slash that ends the prefix: the path of the backend needs one of its own.
        (None, environ("/app%2Fb", rest="/b"), "/app%2Fb"),
        ("", environ("/app%2Fb?a=1", rest="/b"), "/b?a=1"),
        ("/new", environ("/app%2fb%2Fc", rest="/b/c"), "/new/b/c"),
        # Bytes that are not ASCII are quoted.
        (None, environ("/app/\xe9?q=\xe9 \x7f", rest="/\xe9"), "/app/%E9?q=%E9%20%7F"),
        ("", environ("/app/x%0d%0ay", rest="/x\r\ny"), "/x%0d%0ay"),
        ("", environ("/app/x\x01", rest="/x\x01"), "/x%01"),
        (None, environ("/?a", "", "/"), "/?a"),
    ],
)
def test_the_target_is_what_apache_judged(
    path: str | None, given: dict[str, Any], sent: str
) -> None:
    backend = Backend("http://b", "", "b", 80, False, path)
    assert target_of(given, backend).decode() == sent


@given(st.text(st.characters(max_codepoint=255), max_size=30), st.text(max_size=10))
def test_a_target_cannot_break_the_request(path: str, query: str) -> None:
    backend = Backend("http://b", "", "b", 80, False, None)
    query = query.encode().decode("latin-1")
    given_ = environ("/app/" + path.partition("?")[0], rest="/" + path, QUERY_STRING=query)
    assert re.fullmatch(rb"/[!-~]*", target_of(given_, backend))


CLIENT = [
    (b"Host", b"example.org"),
    (b"Upgrade", b"websocket, h2c"),
    (b"Connection", b"Upgrade, X-Private"),
    (b"Sec-WebSocket-Key", KEY),
    (b"Sec-WebSocket-Protocol", b"chat"),
    (b"Origin", b"http://example.org"),
    (b"Authorization", b"Bearer x"),
    (b"Cookie", b"a=1; b=2"),
    (b"X-Private", b"1"),
    (b"Accept-Language", b"de"),
    *(
        (name, b"forged")
        for name in (
            *(
                b"X-Remote-User",
                b"X_Remote_User",
                b"Remote-User",
                b"X-Forwarded-User",
                b"X-Real-IP",
            ),
            *(b"X-Forwarded-Client-Cert", b"X-Forwarded-Uri", b"X-Auth-Request-Access-Token"),
            *(b"X-Forwarded-For", b"x-forwarded-proto", b"X-Forwarded-Host", b"X-Forwarded-Port"),
            *(b"Forwarded", b"HTTP2-Settings", b"TE", b"Keep-Alive", b"Proxy-Authorization"),
            *(b"Transfer-Encoding", b"Content-Length", b"Expect", b"X-Site-User", b"X-User"),
        )
    ),
]


def sent(settings: Settings, **more: str) -> list[tuple[bytes, bytes]]:
    return headers_of(CLIENT, environ("/app", **more), settings, address="192.0.2.7")


def test_identities_are_apaches() -> None:
    settings = Settings(user_header="X-User", drop_headers=("x-site-user",))
    found = sent(settings, REMOTE_USER="ann")
    assert found == [
        (b"Host", b"example.org"),
        (b"Sec-WebSocket-Key", KEY),
        (b"Sec-WebSocket-Protocol", b"chat"),
        (b"Origin", b"http://example.org"),
        (b"Authorization", b"Bearer x"),
        (b"Cookie", b"a=1; b=2"),
        (b"Accept-Language", b"de"),
        (b"Connection", b"Upgrade"),
        (b"Upgrade", b"websocket"),
        (b"X-Forwarded-For", b"192.0.2.7"),
        (b"X-Forwarded-Proto", b"http"),
        (b"X-Forwarded-Host", b"example.org"),
        (b"X-Forwarded-Port", b"80"),
        (b"X-User", b"ann"),
    ]
    assert encode(b"/x", found[:1]) == b"GET /x HTTP/1.1\r\nHost: example.org\r\n\r\n"


def test_without_a_login_there_is_no_user() -> None:
    assert b"forged" not in dict(sent(Settings(drop_headers=("x-site-user", "x-user")))).values()


@pytest.mark.parametrize(
    "name",
    [
        # Gateways with a login, as their documentation names the headers.
        *("Remote-Groups", "X-Remote-Group", "X-Remote-Extra-Scopes", "X-Auth-User"),
        *("X-Auth-Email", "X-Auth-Request-Groups", "X-Authenticated-Userid", "X-WEBAUTH-ROLE"),
        *("X-Forwarded-Groups", "X-Forwarded-Preferred-Username", "X-authentik-username"),
        *("X-Vouch-User", "X-Userinfo", "X-Pomerium-Claim-Email", "X-Consumer-Username"),
        *("OIDC-CLAIM-sub", "Shib-Session-ID", "Tailscale-User-Login", "X-Amzn-Oidc-Identity"),
        *("X-MS-CLIENT-PRINCIPAL-NAME", "X-Goog-Authenticated-User-Email"),
        *("Cf-Access-Authenticated-User-Email",),
        # Certificates and addresses.
        *("X-Client-Cert", "X-SSL-Client-DN", "Ssl-Client-Verify", "Client-Cert-Chain"),
        *("Cf-Connecting-Ip", "Fly-Client-IP", "Fastly-Client-IP", "True-Client-IP", "X-Real-IP"),
        *("X-Azure-ClientIP", "X-Envoy-External-Address", "X-Original-Forwarded-For"),
        # The same for a server that makes variables of them.
        *("X_Auth_User", "X-Auth_User", "OIDC_CLAIM_sub"),
        "Proxy",
    ],
)
def test_headers_of_gateways_are_removed_unless_apache_sets_them(name: str) -> None:
    header = (name.encode(), b"ann")
    given_, settings = environ("/app"), Settings(pass_headers=(name.lower(),))
    assert header not in headers_of([header], given_, Settings(), address="192.0.2.7")
    connection = (b"Connection", b"Upgrade, " + name.encode())
    # Nor does the client remove it again.
    assert header in headers_of([connection, header], given_, settings, address="192.0.2.7")


def test_a_header_of_apaches_has_one_spelling() -> None:
    def passed(*names: bytes) -> set[bytes]:
        headers = headers_of(
            [(name, b"x") for name in names], environ("/app"), settings, address="192.0.2.7"
        )
        return {name for name, value in headers if value == b"x"}

    settings = Settings(
        user_header="X-User",
        drop_headers=("x-secret-*", "x-off"),
        pass_headers=("x_role", "oidc_claim_*", "x-user", "x-forwarded-for", "forwarded", "x-off"),
    )
    assert passed(b"X_Role", b"X-Role", b"X-ROLE", b"x_ROLE") == {b"X_Role", b"x_ROLE"}
    assert passed(b"OIDC_CLAIM_sub", b"OIDC-CLAIM-sub", b"OIDC_CLAIM-sub") == {b"OIDC_CLAIM_sub"}
    # Apache adds these itself, and the site removes those.
    assert passed(b"X-User", b"X-Forwarded-For", b"Forwarded", b"X-Off", b"X-Secret-1") == set()
    # Credentials, which the backend checks.
    credentials = {b"Authorization", b"Cookie", b"X-Auth-Token", b"X-User-Id", b"X-Api-Key"}
    assert passed(*credentials) == credentials


@pytest.mark.parametrize(
    ("forwarded", "more", "expected"),
    [
        (
            "x-forwarded",
            {"HTTP_X_FORWARDED_PROTO": "https", "HTTP_X_FORWARDED_HOST": "site.org:8443"},
            {
                b"X-Forwarded-For": b"forged, 192.0.2.7",
                b"X-Forwarded-Proto": b"https",
                b"X-Forwarded-Host": b"site.org:8443",
                b"X-Forwarded-Port": b"8443",
            },
        ),
        (
            "forwarded",
            {"HTTP_FORWARDED": "for=192.0.2.1;proto=https;host=site.org"},
            {
                b"Forwarded": b"forged",
                b"X-Forwarded-For": b"192.0.2.7",
                b"X-Forwarded-Proto": b"https",
                b"X-Forwarded-Host": b"site.org",
                b"X-Forwarded-Port": b"443",
            },
        ),
        ("x-forwarded", {"HTTP_X_FORWARDED_PROTO": "?"}, {b"X-Forwarded-Proto": b"http"}),
    ],
)
def test_a_trusted_proxy_has_told_the_address(
    forwarded: str, more: dict[str, str], expected: dict[bytes, bytes]
) -> None:
    found = dict(sent(Settings(forwarded=forwarded), **more))
    assert {name: found.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ((b"Connection", b"Upgrade, Sec-WebSocket-Key"), "connection-header"),
        ((b"connection", b"upgrade,HOST"), "connection-header"),
        ((b"Connection", b"cookie"), "connection-header"),
        ((b"Connection", b"authorization"), "connection-header"),
        ((b"X-A", b"1\r\nX-Remote-User: root"), "control-character"),
        ((b"X-A", b"1\0"), "control-character"),
    ],
)
def test_a_header_that_would_change_the_handshake_is_refused(
    header: tuple[bytes, bytes], token: str
) -> None:
    with pytest.raises(Refusal) as caught:
        headers_of([header], environ("/app"), Settings(), address="192.0.2.7")
    assert caught.value.reason.token == token
    assert caught.value.status == "400 Bad Request"


# The answer.


def read(data: bytes, size: int = 0) -> Accepted | Answered | None:
    reader = AnswerReader(KEY)
    size = size or len(data)
    for at in range(0, len(data), size):
        answer = reader.receive(data[at : at + size])
        if isinstance(answer, Accepted):
            return Accepted(answer.head, answer.subprotocol, answer.first + data[at + size :])
        if answer is not None:
            return answer
    return None


@pytest.mark.parametrize("size", [0, 1, 7])
@pytest.mark.parametrize(
    ("more", "passed"),
    [
        (b"", []),
        (b"Sec-WebSocket-Protocol: chat\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n", None),
        (b"Keep-Alive: 1\r\nContent-Length: 0\r\nDate: now\r\n", [b"Date: now"]),
        (b"Content-Length: 0\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n", []),
        (b"X: a\tb\r\nY:\r\n", [b"X: a\tb", b"Y: "]),
    ],
)
def test_a_right_101_becomes_a_tunnel(size: int, more: bytes, passed: list[bytes] | None) -> None:
    answer = read(GOOD + more + b"\r\n\x81\x02hi", size)
    assert isinstance(answer, Accepted)
    lines = answer.head.split(b"\r\n")
    assert lines[:4] == [*GOOD.split(b"\r\n")[:4]]
    assert lines[-2:] == [b"", b""]
    assert lines[4:-2] == (more.split(b"\r\n")[:-1] if passed is None else passed)
    assert answer.subprotocol == ("chat" if passed is None else None)
    assert answer.first == b"\x81\x02hi"


@pytest.mark.parametrize(
    "data",
    [
        GOOD.replace(b"websocket", b"WebSocket") + b"\r\n",  # Mosquitto
        GOOD.replace(b"Connection: Upgrade", b"connection: keep-alive, UPGRADE") + b"\r\n",
        GOOD.replace(b" Switching Protocols", b"") + b"\r\n",
        GOOD.replace(b" Switching Protocols", b" \xc3\xa9") + b"\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
        + GOOD
        + b"\r\n",
        GOOD.replace(b"\r\n", b"\n") + b"\n",
    ],
)
def test_other_forms_of_a_101(data: bytes) -> None:
    for size in (0, 1, 5):
        answer = read(data + b"first", size)
        assert isinstance(answer, Accepted)
        assert answer.first == b"first"


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (GOOD.replace(ACCEPT, ACCEPT.lower()), "Sec-WebSocket-Accept"),
        (GOOD.replace(b"Sec-WebSocket-Accept", b"Sec-WebSocket-Accepted"), "Accept missing"),
        (GOOD + b"Sec-WebSocket-Accept: " + ACCEPT + b"\r\n", "Sec-WebSocket-Accept"),
        (GOOD.replace(b"Upgrade: websocket", b"Upgrade: h2c"), "Upgrade h2c"),
        (GOOD.replace(b"Upgrade: websocket", b"X: y"), "Upgrade missing"),
        (GOOD.replace(b"Connection: Upgrade", b"Connection: close"), "Connection: Upgrade"),
        (GOOD.replace(b": Upgrade", b": Upgrade, sec-websocket-accept"), "the Connection"),
        (GOOD.replace(b"HTTP/1.1", b"HTTP/1.0"), "101 of HTTP/1.0"),
        (GOOD + b"X: a\rb\r\n", ""),
        (GOOD + b"X : a\r\n", ""),
        (GOOD + b"X: \0\r\n", ""),
        (b"SSH-2.0-OpenSSH_9.2\r\n", ""),
        (b"\x81\x02hi", ""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n", "both"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n", ""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -3\r\n", ""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775808\r\n", "length of its body"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n", ""),
        (b"HTTP/1.1 999 Odd\r\n", "status is 999"),
        (b"HTTP/2 200\r\n", ""),
    ],
)
def test_nothing_else_becomes_one(data: bytes, why: str) -> None:
    for size in (0, 1):
        with pytest.raises(BadAnswer, match=why or None):
            read(data + b"\r\n" * 3, size)


@pytest.mark.parametrize("begin", [b"", GOOD[:5], GOOD, b"HTTP/1.1 200 OK\r\nX: "])
def test_an_end_inside_the_head_is_no_answer(begin: bytes) -> None:
    reader = AnswerReader(KEY)
    if begin:
        assert reader.receive(begin) is None
    with pytest.raises(BadAnswer, match="closed"):
        reader.receive(b"")


@pytest.mark.parametrize(
    "head",
    [
        GOOD + b"X: " + b"a" * MAX_HEAD_BYTES,
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * MAX_HEAD_BYTES,
        b"HTTP/1.1 100 Continue\r\n\r\n" * (MAX_HEAD_BYTES // 20),
        GOOD + b"X: b\r\n" * (MAX_HEAD_BYTES // 4),
    ],
)
@pytest.mark.parametrize("size", [1000, 65536])
def test_a_head_is_bounded_whole_or_not(head: bytes, size: int) -> None:
    reader, position = AnswerReader(KEY), 0
    data = head + b"\r\n\r\n"
    with pytest.raises(BadAnswer):
        while position < len(data):
            assert reader.room > 0
            size = min(size, reader.room)
            assert reader.receive(data[position : position + size]) is None
            position += size


def test_a_head_that_drips_is_searched_once(monkeypatch: pytest.MonkeyPatch) -> None:
    end, searched = answers._END, 0

    class Counting:
        @staticmethod
        def search(data: bytearray, start: int = 0) -> re.Match[bytes] | None:
            nonlocal searched
            searched += len(data) - start
            return end.search(data, start)

    monkeypatch.setattr(answers, "_END", Counting)
    head = GOOD + b"X: " + b"a" * 5000 + b"\r\n\r\n"
    assert isinstance(read(head, 1), Accepted)
    assert searched < 4 * len(head)


@pytest.mark.parametrize(
    ("head", "body", "status", "headers", "content"),
    [
        (
            b"200 OK\r\nContent-Length: 4\r\nConnection: X-Private, close\r\nX-Private: 1\r\nX: 2",
            b"body",
            "200 OK",
            {"Content-Length": "4", "X": "2"},
            b"body",
        ),
        (
            b"503 Busy\r\nTransfer-Encoding: chunked\r\nTrailer: X",
            b"2\r\nab\r\n1\r\nc\r\n0\r\nX: 1\r\n\r\n",
            "503 Busy",
            {},
            b"abc",
        ),
        (b"204 No Content\r\nContent-Length: 9", b"", "204 No Content", {}, b""),
        (
            b"426 Upgrade Required\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Content-Length: 0",
            b"",
            "426 Upgrade Required",
            {"Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Content-Length": "0"},
            b"",
        ),
        (b"404 \r\nContent-Length: 0", b"", "404 Not Found", {"Content-Length": "0"}, b""),
        (b"404\r\nContent-Length: 0", b"", "404 Not Found", {"Content-Length": "0"}, b""),
        (b"480 \xff\r\nContent-Length: 0", b"", "480 Unknown", {"Content-Length": "0"}, b""),
    ],
)
def test_another_answer_is_for_the_client(
    head: bytes, body: bytes, status: str, headers: dict[str, str], content: bytes
) -> None:
    data = b"HTTP/1.1 " + head + b"\r\n\r\n" + body
    for size in (1, 3, len(data)):
        reader, answer, position = AnswerReader(KEY), None, 0
        while answer is None:
            answer = reader.receive(data[position : position + size])
            position += size
        assert isinstance(answer, Answered)
        found = answer.body.receive(None)
        while not answer.body.is_complete:
            found += answer.body.receive(data[position : position + size])
            position += size
        assert f"{answer.status} {answer.reason}" == status
        assert dict(answer.headers) == headers
        assert found == content


def test_an_answer_of_http_1_0_ends_with_its_connection() -> None:
    answer = read(b"HTTP/1.0 403 Forbidden\r\nX: 1\r\n\r\npart")
    assert isinstance(answer, Answered)
    assert answer.body.receive(None) == b"part"
    assert answer.body.receive(b"ial") == b"ial"
    assert not answer.body.is_complete
    assert answer.body.receive(b"") == b""
    assert answer.body.is_complete


def test_an_answer_that_the_server_rejects_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise nothing would release its place, and its connection to the backend."""
    closed = []

    def start_response(status: str, headers: list[tuple[str, str]]) -> None:
        raise ValueError

    monkeypatch.setattr(entry_points, "_httpd_request", lambda environ: None)
    body = Body(b"", iter(()), lambda: closed.append(True))
    with pytest.raises(ValueError):
        entry_points.serve({}, start_response, lambda *_: Relayed("200 OK", [], body))
    assert closed == [True]


@pytest.mark.parametrize("framing", [b"Content-Length: 9", b"Transfer-Encoding: chunked"])
def test_a_body_that_ends_early_is_noticed(framing: bytes) -> None:
    answer = read(b"HTTP/1.1 200 OK\r\n" + framing + b"\r\n\r\n2\r\nab\r\n")
    assert isinstance(answer, Answered)
    answer.body.receive(None)
    with pytest.raises(BadAnswer):
        answer.body.receive(b"")


TOKENS = st.sampled_from(
    [
        *(GOOD.split(b"\r\n")[0], b"HTTP/1.1 101", b"HTTP/1.1 101 ", b"HTTP/1.1 200 OK"),
        *(b"Upgrade: websocket", b"Upgrade:websocket ", b"Upgrade:\twebsocket", b"upgrade: h2c"),
        *(b"Connection: Upgrade", b"Connection: keep-alive , upgrade", b"Connection: X"),
        *(b"Sec-WebSocket-Accept: " + ACCEPT, b"Sec-WebSocket-Accept: x", b"X: a b", b"X:", b"X: "),
        *(b" folded", b"X: \x80", b"X: a\tb", b"bad header", b"Content-Length: 0", b"\x00", b""),
        *(b"Transfer-Encoding: chunked", b"Keep-Alive: 1", b"Sec-WebSocket-Protocol: a"),
    ]
)


def test_the_pattern_reads_the_common_101() -> None:
    assert answers._read_switching(GOOD + b"\r\n")


@given(st.lists(TOKENS, max_size=8), st.binary(max_size=8))
def test_the_pattern_means_what_h11_means(lines: list[bytes], after: bytes) -> None:
    """What the pattern reads, h11 reads too, with the same outcome."""
    data = b"\r\n".join([GOOD.split(b"\r\n")[0], *lines, b"", b""])
    head = re.split(rb"(?<=\n)(?=\r?\n)", data, maxsplit=1)[0] + b"\r\n"
    if answers._read_switching(head) is None:
        return

    def outcome(*, by_h11: bool) -> object:
        reader = AnswerReader(KEY)
        if by_h11:
            reader._h11 = answers._client()
        try:
            return reader.receive(data + after)
        except BadAnswer as error:
            return str(error)

    assert outcome(by_h11=False) == outcome(by_h11=True)


# The exchange, with a real socket.


class Peer:
    """The other end of a connection, in a thread."""

    def __init__(self, *steps: bytes | float) -> None:
        self.near, self.far = socket.socketpair()
        self.near.setblocking(False)
        self.received = b""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, args=steps)
        self._thread.start()

    def _run(self, *steps: bytes | float) -> None:
        try:
            while b"\r\n\r\n" not in self.received:
                self.received += self.far.recv(65536)
            for step in steps:
                if isinstance(step, bytes):
                    self.far.sendall(step)
                else:
                    self._ended.wait(step)
        except OSError:
            pass  # the other end gave up
        self.far.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self.near.close()
        self._thread.join()

    def ask(self, timeout_s: float = 5.0) -> Any:
        return ask(self.near, encode(b"/", []), KEY, "http://b", timeout_s)


def token_of(peer: Peer, timeout_s: float = 5.0) -> str:
    with pytest.raises(Refusal) as caught:
        peer.ask(timeout_s)
    return caught.value.reason.token


def test_an_exchange_gives_the_socket_to_the_tunnel() -> None:
    with Peer(GOOD + b"\r\n", 9.0) as peer:
        assert isinstance(peer.ask(), Accepted)
        assert peer.near.gettimeout() == 0
        assert peer.received == b"GET / HTTP/1.1\r\n\r\n"


def test_one_deadline_bounds_a_head_that_drips() -> None:
    steps: list[bytes | float] = []
    for byte in GOOD:
        steps += [bytes((byte,)), 0.02]
    begun_at = time.monotonic()
    with Peer(*steps) as peer:
        assert token_of(peer, 0.3) == "backend-timeout"
        assert time.monotonic() - begun_at < 2


@pytest.mark.parametrize(
    "steps",
    [(), (GOOD,), (b"garbage\r\n\r\n",), (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nab",)],
)
def test_what_is_no_answer_is_a_bad_one(steps: tuple[bytes, ...]) -> None:
    with Peer(*steps) as peer:
        assert token_of(peer) == "bad-backend-answer"


def test_a_short_body_is_read_at_once_and_a_long_one_as_it_comes() -> None:
    with Peer(b"HTTP/1.1 403 No\r\nContent-Length: 3\r\n\r\na", b"bc") as peer:
        answered, first, rest = peer.ask()
        assert (answered.status, first, rest) == (403, b"abc", None)
    long = bytes(SHORT_BODY_BYTES + 3 * READ_BYTES)
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(long)
    with Peer(head + long) as peer:
        answered, first, rest = peer.ask()
        assert len(first) < len(long)
        assert first + b"".join(rest) == long
    with Peer(head + long[:-1]) as peer:
        answered, first, rest = peer.ask()
        with pytest.raises(BadAnswer):
            list(rest)


# The connection.


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def tcp(host: str, port: int) -> Backend:
    return Backend.parse(f"http://{host}:{port}")


def test_a_backend_is_reached_by_address_name_and_socket(
    listener: socket.socket, short_path: Path
) -> None:
    port = listener.getsockname()[1]
    for host in ("127.0.0.1", "localhost"):
        with connect(tcp(host, port), 5.0) as sock:
            assert sock.gettimeout() == 0
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    path = short_path / "a.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        with connect(Backend.parse(f"unix:{path}"), 5.0) as sock:
            assert sock.gettimeout() == 0


@pytest.mark.parametrize("is_unix", [False, True])
def test_an_absent_backend_is_a_503(
    is_unix: bool, listener: socket.socket, short_path: Path
) -> None:
    port = listener.getsockname()[1]
    listener.close()
    backend = Backend.parse(f"unix:{short_path}/a.sock") if is_unix else tcp("127.0.0.1", port)
    with pytest.raises(Refusal, match="no connection to") as caught:
        connect(backend, 5.0)
    assert caught.value.reason.token == "no-backend"
    assert ("Retry-After", "5") in caught.value.headers


def test_a_full_backlog_is_waited_for(short_path: Path) -> None:
    path = str(short_path / "a.sock")
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as first:
        server.bind(path)
        server.listen(0)
        first.connect(path)
        with pytest.raises(Refusal, match=r"within 0\.1 s"):
            connect(Backend.parse(f"unix:{path}"), 0.1)

        def accept() -> None:
            server.accept()[0].close()

        timer = threading.Timer(0.05, accept)
        timer.start()
        connect(Backend.parse(f"unix:{path}"), 5.0).close()
        timer.join()


class Names:
    """Takes the place of getaddrinfo."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.error: OSError | None = None
        self.go_on = threading.Event()
        self.go_on.set()
        monkeypatch.setattr(socket, "getaddrinfo", self.resolve)

    def resolve(self, host: str, port: int, **_: object) -> list[tuple[Any, ...]]:
        self.calls += 1
        self.go_on.wait(10)
        if self.error:
            raise self.error
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"192.0.2.{self.calls}", port))]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    return Names(monkeypatch)


def resolved(resolver: Resolver, timeout_s: float = 5.0) -> str:
    found = resolver.resolve(tcp("app", 80), time.monotonic() + timeout_s)
    return found[0]


def test_a_name_is_asked_for_once_in_a_while(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = Resolver()
    assert resolved(resolver) == resolved(resolver) == "192.0.2.1"
    monkeypatch.setattr(connecting, "FRESH_S", 0.0)
    assert wait_for(lambda: resolved(resolver) == "192.0.2.3")
    # A resolver that fails later changes nothing.
    names.error = socket.gaierror(-3, "Temporary failure")
    assert resolved(resolver).startswith("192.0.2.")


def test_a_resolver_that_hangs_costs_the_timeout_and_one_thread(names: Names) -> None:
    resolver = Resolver()
    names.go_on.clear()
    begun_at = time.monotonic()
    for _ in range(3):
        with pytest.raises(TimeoutError, match="'app' was not resolved"):
            resolved(resolver, 0.05)
    assert time.monotonic() - begun_at < 2
    assert names.calls == 1
    names.go_on.set()
    assert resolved(resolver) == "192.0.2.1"


def test_an_unknown_name_is_a_503(names: Names, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connecting, "_resolver", Resolver())
    names.error = socket.gaierror(-2, "Name or service not known")
    with pytest.raises(Refusal, match=r"of http://app:80 cannot be resolved: Name or") as caught:
        connect(tcp("app", 80), 1.0)
    assert caught.value.reason.token == "no-backend"
