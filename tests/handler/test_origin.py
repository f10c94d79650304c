"""apachews_handler.handshake.origin: which pages may connect, behind proxies too."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apachews_handler.exceptions import Refusal
from apachews_handler.handshake.origin import own_origin, require_origin
from apachews_handler.origins import normalise_origin
from apachews_handler.setting_values import parse_origins
from apachews_handler.settings import Settings

PLAIN = {"wsgi.url_scheme": "http", "HTTP_HOST": "inside:8080"}


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("HTTPS://Example.ORG:443", "https://example.org"),
        ("http://[::1]:8080", "http://[::1]:8080"),
        ("http://[0:0:0:0:0:0:0:1]", "http://[::1]"),
        ("http://[0000::0001]:80", "http://[::1]"),
        ("https://[2001:DB8::A:0:0:1]", "https://[2001:db8::a:0:0:1]"),
        ("https://[2001:db8:0:0:a:0:0:1]:443", "https://[2001:db8::a:0:0:1]"),
        ("http://[::ffff:192.0.2.1]", "http://[::ffff:c000:201]"),
        ("http://[0::FFFF:c000:0201]", "http://[::ffff:c000:201]"),
        ("http://[64:ff9b::192.0.2.1]", "http://[64:ff9b::c000:201]"),
        ("http://example.org:80", "http://example.org"),
        ("https://example.org:80", "https://example.org:80"),
    ],
)
def test_origins_are_normalised(text: str, origin: str) -> None:
    assert normalise_origin(text) == origin


@pytest.mark.parametrize(
    "host",
    [
        *("[fe80::1%eth0]", "[fe80::1%25eth0]", "[::1%]", "[v1.a]", "[127.0.0.1]", "[]", "[::1"),
        *(
            "::1",
            "[::1]x",
            "[1::2::3]",
            "[12345::]",
            "[::ffff:192.0.2.256]",
            "[::1].example",
            "x[::1]",
        ),
    ],
)
def test_what_is_no_address_in_brackets_makes_no_origin(host: str) -> None:
    with pytest.raises(ValueError):  # of the standard library's, with any text
        normalise_origin(f"http://{host}")
    assert not check(f"http://{host}", Settings(), HTTP_HOST=host)


@pytest.mark.parametrize("origin", ["http://[::1]:8080", "http://[0:0:0:0:0:0:0:1]:8080"])
@pytest.mark.parametrize("host", ["[::1]:8080", "[0::1]:8080", "[0:0:0:0:0:0:0.0.0.1]:8080"])
def test_all_spellings_of_an_address_are_one_origin(origin: str, host: str) -> None:
    assert check(origin, Settings(), HTTP_HOST=host)
    assert check(origin, Settings(origins=parse_origins(f"http://{host}")))
    assert check(origin, Settings(forwarded="x-forwarded"), HTTP_X_FORWARDED_HOST=host)
    assert not check(origin, Settings(), HTTP_HOST="[::2]:8080")
    # An IPv4 address is another host than the IPv6 address that contains it.
    assert not check("http://[::ffff:192.0.2.1]", Settings(), HTTP_HOST="192.0.2.1")


@pytest.mark.parametrize(
    ("forwarded", "headers", "origin"),
    [
        ("off", {}, "http://inside:8080"),
        ("off", {"X_FORWARDED_HOST": "a.example", "FORWARDED": "host=b"}, "http://inside:8080"),
        ("x-forwarded", {}, "http://inside:8080"),
        ("x-forwarded", {"X_FORWARDED_PROTO": "https"}, "https://inside:8080"),
        (
            "x-forwarded",
            {"X_FORWARDED_PROTO": "https", "X_FORWARDED_HOST": "a.example"},
            "https://a.example",
        ),
        (
            "x-forwarded",
            {"X_FORWARDED_PROTO": "wss, http", "X_FORWARDED_HOST": "a.example, b.example"},
            "https://a.example",
        ),
        (
            "x-forwarded",
            {"X_FORWARDED_HOST": "a.example", "X_FORWARDED_PORT": "8443"},
            "http://a.example:8443",
        ),
        (
            "x-forwarded",
            {"X_FORWARDED_HOST": "a.example:99", "X_FORWARDED_PORT": "8443"},
            "http://a.example:99",
        ),
        ("x-forwarded", {"FORWARDED": "host=a.example"}, "http://inside:8080"),
        ("forwarded", {"X_FORWARDED_HOST": "a.example"}, "http://inside:8080"),
        ("forwarded", {"FORWARDED": "for=192.0.2.1;proto=https"}, "https://inside:8080"),
        (
            "forwarded",
            {"FORWARDED": 'For="[2001:db8::1]:4711"; Proto=HTTPS;host="a.example:8443", host=b'},
            "https://a.example:8443",
        ),
        ("forwarded", {"FORWARDED": 'host="a\\.example"'}, "http://a.example"),
    ],
)
def test_the_sites_own_origin(forwarded: str, headers: dict[str, str], origin: str) -> None:
    environ = {**PLAIN, **{f"HTTP_{name}": value for name, value in headers.items()}}
    assert own_origin(environ, forwarded) == origin


@pytest.mark.parametrize("text", ["a" * 8179, "x" + " " * 8170 + "x", 'a="' + "x" * 8170])
def test_a_long_header_takes_no_time(text: str) -> None:
    started = time.process_time()
    assert own_origin({**PLAIN, "HTTP_FORWARDED": text}, "forwarded") == "http://inside:8080"
    assert time.process_time() - started < 0.1


def check(origin: str | None, settings: Settings, **environ: Any) -> bool:
    try:
        require_origin(
            {**PLAIN, **environ, **({"HTTP_ORIGIN": origin} if origin is not None else {})},
            settings,
        )
    except Refusal as refusal:
        assert refusal.status.startswith("403")
        return False
    return True


@pytest.mark.parametrize(
    ("origin", "host", "fact"),
    [
        (
            "https://evil.example",
            "inside:8080",
            "Origin 'https://evil.example' is not the site's own, 'http://inside:8080'",
        ),
        ("null", "inside:8080", "Origin 'null' is not the site's own, 'http://inside:8080'"),
        ("http://a.example", "[::1", "Origin 'http://a.example' is not the site's own, 'unknown'"),
        (
            "http://" + "a" * 200,
            "inside:8080",
            "Origin 'http://" + "a" * 92 + " is not the site's own, 'http://inside:8080'",
        ),
    ],
)
def test_the_log_names_both_origins_and_the_settings(origin: str, host: str, fact: str) -> None:
    environ = {**PLAIN, "HTTP_HOST": host, "HTTP_ORIGIN": origin}
    with pytest.raises(Refusal) as caught:
        require_origin(environ, Settings())
    assert caught.value.log_line("/chat.ws") == (
        f"apachews: 403 origin for /chat.ws: {fact};"
        " add it to SetEnv APACHEWS_ORIGINS; behind a proxy, SetEnv APACHEWS_FORWARDED"
    )


def test_the_log_says_that_the_origin_is_missing() -> None:
    with pytest.raises(Refusal) as caught:
        require_origin(PLAIN, Settings(require_origin=True))
    assert caught.value.log_line("/chat.ws") == (
        "apachews: 403 no-origin for /chat.ws:"
        " the request lacks the header Origin, and SetEnv APACHEWS_REQUIRE_ORIGIN is on;"
        " connect with an Origin as browsers do, or SetEnv APACHEWS_REQUIRE_ORIGIN off"
    )


def test_the_proxys_word_decides_only_where_the_owner_says_so() -> None:
    headers = {"HTTP_X_FORWARDED_HOST": "a.example", "HTTP_X_FORWARDED_PROTO": "https"}
    assert check("https://a.example", Settings(forwarded="x-forwarded"), **headers)
    assert not check("https://a.example", Settings(), **headers)
    assert not check("http://inside:8080", Settings(forwarded="x-forwarded"), **headers)
    assert check("http://inside:8080", Settings(), **headers)


def test_no_origin_is_allowed_and_deniable() -> None:
    assert check(None, Settings())
    assert not check(None, Settings(require_origin=True))
    assert not check(None, Settings(require_origin=True, origins=("*",)))
    assert check("http://inside:8080", Settings(require_origin=True))


def test_a_host_that_makes_no_origin_refuses_all_but_the_list() -> None:
    settings = Settings(origins=("https://a.example",))
    for host in ("", "a b", "x@y", "h:99999", "[::1"):
        assert check("https://a.example", settings, HTTP_HOST=host)
        assert not check("http://inside:8080", settings, HTTP_HOST=host)


@given(
    st.text(max_size=30), st.text(max_size=60), st.sampled_from(["off", "forwarded", "x-forwarded"])
)
def test_any_headers_are_allowed_or_refused(origin: str, text: str, forwarded: str) -> None:
    check(
        origin,
        Settings(forwarded=forwarded),
        HTTP_FORWARDED=text,
        HTTP_X_FORWARDED_HOST=text,
        HTTP_X_FORWARDED_PROTO=text,
        HTTP_X_FORWARDED_PORT=text,
    )
