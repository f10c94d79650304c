"""apachews_handler.settings: values, refusals, and the table in the documentation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apachews_handler.exceptions import BadSetting
from apachews_handler.settings import FIELDS, Rate, Settings, parse_settings

TABLE = Path(__file__).parents[2] / "docs" / "reference" / "configuration.md"


def test_defaults_and_other_variables() -> None:
    assert parse_settings({"PATH": "/bin", "HTTP_APACHEWS_X": "1"}) == Settings()


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("APACHEWS_MAX_MESSAGE", "1", "max_message_bytes", 1),
        ("APACHEWS_MAX_MESSAGE", "64k", "max_message_bytes", 65536),
        ("APACHEWS_MAX_MESSAGE", " 2M ", "max_message_bytes", 2097152),
        ("APACHEWS_CONNECT_TIMEOUT", "250ms", "connect_timeout_s", 0.25),
        ("APACHEWS_CLOSE_TIMEOUT", "1.5s", "close_timeout_s", 1.5),
        ("APACHEWS_ORIGINS", "*", "origins", ("*",)),
        (
            "APACHEWS_ORIGINS",
            "https://A.example:443  http://b.example:8080",
            "origins",
            ("https://a.example", "http://b.example:8080"),
        ),
        ("APACHEWS_ROOT", "/srv/ws", "root", "/srv/ws"),
        ("APACHEWS_MAX_BUFFER", "16M", "max_buffer_bytes", 16 * 1024 * 1024),
        ("APACHEWS_MESSAGE_RATE", "50/s", "message_rate", Rate(50, 50.0)),
        ("APACHEWS_MESSAGE_RATE", "600/M", "message_rate", Rate(600, 10.0)),
        ("APACHEWS_MESSAGE_RATE", "off", "message_rate", None),
        ("APACHEWS_MAX_CONNECTIONS", "1048576", "max_connections", 1048576),
        ("APACHEWS_MAX_CONNECTIONS", "OFF", "max_connections", 0),
        ("APACHEWS_PING_INTERVAL", "off", "ping_interval_s", 0.0),
        ("APACHEWS_PING_TIMEOUT", "1s", "ping_timeout_s", 1.0),
        ("APACHEWS_REQUIRE_ORIGIN", "On", "require_origin", True),
        ("APACHEWS_FORWARDED", "X-Forwarded", "forwarded", "x-forwarded"),
        ("APACHEWS_SUBPROTOCOLS", "chat.v2, chat.v1", "subprotocols", ("chat.v2", "chat.v1")),
        ("APACHEWS_ACCEPT", "Producer", "accept", "producer"),
        ("APACHEWS_PASS_ENV", "SSL_CIPHER A", "pass_env", ("SSL_CIPHER", "A")),
        ("APACHEWS_DEFLATE", "off", "deflate", False),
        ("APACHEWS_DEFLATE_MIN_SIZE", "0", "deflate_min_size_bytes", 0),
        ("APACHEWS_DEFLATE_LEVEL", "9", "deflate_level", 9),
        ("APACHEWS_DEFLATE_WINDOW_BITS", "15", "deflate_window_bits", 15),
    ],
)
def test_good_values(name: str, text: str, field: str, value: Any) -> None:
    assert getattr(parse_settings({name: text}), field) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("APACHEWS_MAX_MESSAGE", ""),
        ("APACHEWS_MAX_MESSAGE", "0"),
        ("APACHEWS_MAX_MESSAGE", "-1"),
        ("APACHEWS_MAX_MESSAGE", "1G"),
        ("APACHEWS_MAX_MESSAGE", "1.5M"),
        ("APACHEWS_MAX_MESSAGE", "٣"),
        ("APACHEWS_CONNECT_TIMEOUT", "5"),
        ("APACHEWS_CONNECT_TIMEOUT", "0s"),
        ("APACHEWS_CONNECT_TIMEOUT", "0.0001ms"),
        ("APACHEWS_CLOSE_TIMEOUT", "1m"),
        ("APACHEWS_ORIGINS", "example.org"),
        ("APACHEWS_ORIGINS", "https://example.org/"),
        ("APACHEWS_ORIGINS", "https://u@example.org"),
        ("APACHEWS_ORIGINS", "https://example.org:99999"),
        ("APACHEWS_ORIGINS", "* https://example.org"),
        ("APACHEWS_ORIGINS", "null"),
        ("APACHEWS_ROOT", "sockets"),
        ("APACHEWS_CLOSE_LOG", "logs/close.log"),
        ("APACHEWS_CLOSE_LOG", "/var/www/html/close.php"),
        ("APACHEWS_CLOSE_LOG_FORMAT", "%Z"),
        ("APACHEWS_MAX_MESAGE", "1M"),
        ("APACHEWS_MAX_BUFFER", "1K"),
        ("APACHEWS_MAX_BUFFER", "17M"),
        ("APACHEWS_MESSAGE_RATE", "50"),
        ("APACHEWS_MESSAGE_RATE", "0/s"),
        ("APACHEWS_MESSAGE_RATE", "5/h"),
        ("APACHEWS_MAX_CONNECTIONS", "0"),
        ("APACHEWS_MAX_CONNECTIONS", "-1"),
        ("APACHEWS_MAX_CONNECTIONS", "1048577"),
        ("APACHEWS_PING_INTERVAL", "0"),
        ("APACHEWS_REQUIRE_ORIGIN", "yes"),
        ("APACHEWS_FORWARDED", "on"),
        ("APACHEWS_SUBPROTOCOLS", ""),
        ("APACHEWS_SUBPROTOCOLS", "a a"),
        ("APACHEWS_SUBPROTOCOLS", 'a "b"'),
        ("APACHEWS_ACCEPT", "client"),
        ("APACHEWS_PASS_ENV", "A,B"),
        ("APACHEWS_DEFLATE", "1"),
        ("APACHEWS_DEFLATE_MIN_SIZE", "-1"),
        ("APACHEWS_DEFLATE_LEVEL", "0"),
        ("APACHEWS_DEFLATE_LEVEL", "10"),
        ("APACHEWS_DEFLATE_WINDOW_BITS", "8"),
        ("APACHEWS_DEFLATE_WINDOW_BITS", "16"),
    ],
)
def test_bad_values_and_names_are_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(BadSetting) as caught:
        parse_settings({name: text})
    assert caught.value.status.startswith("500")
    assert name in caught.value.logged
    assert repr(text) in caught.value.logged
    assert caught.value.allowed


@given(st.sampled_from(sorted(FIELDS)), st.text(max_size=30))
def test_any_text_is_a_value_or_refused(name: str, text: str) -> None:
    for environ, definitions in (({name: text}, ()), ({}, ((name, text),))):
        try:
            parse_settings(environ, definitions)
        except BadSetting:
            pass


LOGS = (("APACHEWS_LOG_DIRECTORY", "/var/log/apachews"),)


@pytest.mark.parametrize(
    ("path", "directory", "is_allowed"),
    [
        ("/var/log/x.log", "/var/log", True),
        ("/var/log/x.log", "/var/log/", True),
        ("/var/log/site/x.log", "/var/log", True),
        ("/x.log", "/", True),
        ("/var/log.log", "/var/log", False),
        ("/var/logs/x.log", "/var/log", False),
        ("/var/log/../x.log", "/var/log", False),
        ("/var/log/./x.log", "/var/log", False),
        ("/var/log//x.log", "/var/log", False),
        ("/etc/x.log", "/var/log", False),
        ("/x.log", "", False),
    ],
)
def test_a_close_log_lies_in_the_servers_directory(
    path: str, directory: str, is_allowed: bool
) -> None:
    definitions = (("APACHEWS_LOG_DIRECTORY", directory),) if directory else ()
    environ = {"APACHEWS_CLOSE_LOG": path}
    if is_allowed:
        assert parse_settings(environ, definitions).close_log == path
        return
    with pytest.raises(BadSetting, match="Define APACHEWS_LOG_DIRECTORY /") as caught:
        parse_settings(environ, definitions)
    assert "SetEnv APACHEWS_CLOSE_LOG" in caught.value.logged


def test_the_server_alone_sets_what_reaches_beyond_a_site() -> None:
    names = [name for name, field in FIELDS.items() if field.metadata["server_only"]]
    assert names == [
        "APACHEWS_MAX_WAITING",
        "APACHEWS_LOG_DIRECTORY",
        "APACHEWS_ENDPOINT_DIRECTORIES",
    ]
    for name in names:
        for value in ("/srv", "", "1"):
            with pytest.raises(BadSetting, match=f"use Define {name} instead"):
                parse_settings({name: value})
    settings = parse_settings({}, (*LOGS, ("APACHEWS_ENDPOINT_DIRECTORIES", "/run/a  /srv/b")))
    assert settings.log_directory == "/var/log/apachews"
    assert settings.endpoint_directories == ("/run/a", "/srv/b")


@pytest.mark.parametrize(("text", "value"), [("Auto", 0), ("16", 16), ("0", None), ("off", None)])
def test_the_servers_bound_on_handshakes_that_wait(text: str, value: int | None) -> None:
    definitions = (("APACHEWS_MAX_WAITING", text),)
    if value is not None:
        assert parse_settings({}, definitions).max_waiting == value
        return
    with pytest.raises(BadSetting, match="Define APACHEWS_MAX_WAITING"):
        parse_settings({}, definitions)


def test_what_the_server_fixes_cannot_be_changed() -> None:
    fixed = (("APACHEWS_MAX_BUFFER", "64K"), ("APACHEWS_PING_INTERVAL", "off"))
    assert parse_settings({}, fixed).max_buffer_bytes == 65536
    assert parse_settings({"APACHEWS_MAX_BUFFER": "65536"}, fixed).ping_interval_s == 0.0
    for value in ("16M", "4K"):
        with pytest.raises(BadSetting, match="Define APACHEWS_MAX_BUFFER 64K"):
            parse_settings({"APACHEWS_MAX_BUFFER": value}, fixed)


# (An empty list of origins is the default.)
@pytest.mark.parametrize("name", sorted({*FIELDS} - {"APACHEWS_ORIGINS"}))
def test_a_bad_definition_is_no_default(name: str) -> None:
    with pytest.raises(BadSetting, match=f"^[^:]*: Define {name} '' is not allowed"):
        parse_settings({}, ((name, ""),))


def test_the_documented_table_is_the_dataclass() -> None:
    rows = re.findall(
        r"^\| `(APACHEWS_\w+)` \| (.+?) \| .+ \| (.+) \|$", TABLE.read_text(), re.MULTILINE
    )
    assert [name for name, _, _ in rows] == list(FIELDS)
    for name, default, protects in rows:
        field = FIELDS[name]
        assert protects == field.metadata["protects"]
        if default == "(none)":
            assert not field.default
        else:
            assert field.metadata["parse"](default.strip("`")) == field.default
