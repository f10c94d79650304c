"""apachews.wire: headers, CLOSE, OPEN and ANSWER, against the tables of docs/reference/wire.md."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apachews import wire
from apachews.exceptions import WireError
from apachews.wire import channel
from apachews.wire.answer import MAX_ANSWER_BYTES, Answer

SPECIFICATION = Path(__file__).parents[2] / "docs" / "reference" / "wire.md"


@pytest.mark.parametrize(
    ("length", "header"),
    [
        (0, "8100"),
        (125, "817d"),
        (126, "817e007e"),
        (65535, "817effff"),
        (65536, "817f0000000000010000"),
    ],
)
def test_header_takes_the_shortest_form(length: int, header: str) -> None:
    encoded = wire.encode_header(wire.FIN | wire.TEXT, length)
    assert encoded.hex() == header
    assert wire.decode_header(encoded, 0) == (0x81, length, len(encoded))


@given(st.integers(0, 2**63 - 1), st.integers(0, 255), st.binary(max_size=3))
def test_header_reads_back_and_needs_every_byte(length: int, first: int, before: bytes) -> None:
    encoded = wire.encode_header(first, length)
    data = before + encoded
    assert wire.decode_header(data, len(before)) == (first, length, len(data))
    for cut in range(len(encoded)):
        assert wire.decode_header(data[: len(before) + cut], len(before)) is None


@pytest.mark.parametrize(
    "header", ["8185", "81fe0080", "817e007d", "817f000000000000ffff", "817f8000000000000000"]
)
def test_masked_long_and_absurd_lengths_are_refused(header: str) -> None:
    with pytest.raises(WireError):
        wire.decode_header(bytes.fromhex(header), 0)


@pytest.mark.parametrize("code", [1000, 1003, 1007, 1014, 3000, 4999])
def test_close_reads_back(code: int) -> None:
    assert wire.decode_close(wire.encode_close(code, "bye é")) == wire.Close(code, "bye é")


def test_close_without_code_is_empty() -> None:
    assert wire.encode_close(wire.NO_CODE) == b""
    assert wire.decode_close(b"") == wire.Close(wire.NO_CODE, "")


@pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535])
def test_close_with_a_code_that_may_not_be_sent_is_refused(code: int) -> None:
    with pytest.raises(WireError):
        wire.decode_close(code.to_bytes(2, "big"))
    with pytest.raises(ValueError, match=r"is not allowed|cannot carry"):
        wire.encode_close(code, "x")


def test_close_with_half_a_code_or_bad_text_is_refused() -> None:
    with pytest.raises(WireError) as one_byte:
        wire.decode_close(b"\x03")
    assert one_byte.value.code == wire.PROTOCOL_ERROR
    with pytest.raises(WireError) as text:
        wire.decode_close(b"\x03\xe8\xff")
    assert text.value.code == wire.INVALID_DATA


def test_close_reason_is_bounded() -> None:
    wire.encode_close(1000, "x" * 123)
    with pytest.raises(ValueError, match="124 bytes"):
        wire.encode_close(1000, "x" * 124)
    assert len(wire.truncate_reason("é" * 100).encode()) == 122


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
addresses = st.tuples(texts, st.integers(0, 65535))


@given(
    st.builds(
        wire.Open,
        id=texts,
        uri=texts,
        resumed=st.booleans(),
        method=texts,
        headers=st.lists(st.tuples(texts, texts), max_size=3).map(tuple),
        remote=addresses,
        local=addresses,
        scheme=st.sampled_from(["ws", "wss"]),
        tls=st.none() | st.builds(wire.TLS, texts, texts, st.none() | texts, st.none() | texts),
        user=st.none() | texts,
        vhost=texts,
        offered=st.lists(texts, max_size=2).map(tuple),
        subprotocol=st.none() | texts,
        env=st.dictionaries(texts, texts, max_size=2),
    )
)
def test_open_reads_back(open_: wire.Open) -> None:
    frame = open_.encode()
    header = wire.decode_header(frame, 0)
    assert header is not None
    first, length, start = header
    assert first == wire.FIN | wire.OPEN
    assert length == len(frame) - start
    assert wire.Open.decode(frame[start:]) == open_


def test_open_finds_headers_in_any_case() -> None:
    open_ = wire.Open(id="1", uri="/", headers=(("x-one", "1"),))
    assert open_.header("X-One") == "1"
    assert open_.header("x-two") is None


def good_open() -> dict[str, object]:
    document = json.loads(wire.Open(id="1", uri="/").encode()[4:])
    assert isinstance(document, dict)
    return document


def test_open_ignores_members_it_does_not_know() -> None:
    document = good_open() | {"later": [1]}
    assert wire.Open.decode(json.dumps(document).encode()).id == "1"


def test_open_of_an_older_bridge_has_no_tls() -> None:
    """As from a custodian of an older version, after an upgrade of Apache."""
    document = good_open()
    del document["tls"]
    assert wire.Open.decode(json.dumps(document).encode()).tls is None


@pytest.mark.parametrize("member", sorted(good_open().keys() - {"tls"}))
def test_open_without_a_member_is_refused(member: str) -> None:
    document = good_open()
    del document[member]
    with pytest.raises(WireError):
        wire.Open.decode(json.dumps(document).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"id": 1},
        {"request": []},
        {"request": {"method": "GET", "uri": "/", "headers": [["a"]]}},
        {"remote": ["127.0.0.1"]},
        {"remote": ["127.0.0.1", "80"]},
        {"user": 7},
        {"tls": {}},
        {"tls": {"version": None, "cipher": "", "server_name": None, "client_subject": None}},
        {"subprotocols": None},
        {"env": []},
    ],
)
def test_open_with_a_member_of_the_wrong_type_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(WireError):
        wire.Open.decode(json.dumps(good_open() | change).encode())


@given(st.binary(max_size=60) | st.just(b"[" * 100_000))
def test_open_from_arbitrary_bytes_is_an_open_or_a_wire_error(payload: bytes) -> None:
    try:
        wire.Open.decode(payload)
    except WireError:
        pass


def specified_frames() -> list[tuple[str, str]]:
    """The byte examples of the specification: ``hex | Python expression``."""
    rows = re.findall(
        r"^\| `([0-9a-f ]+)` \|.*\| `(\w+\(.*\))` \|$", SPECIFICATION.read_text(), re.MULTILINE
    )
    assert len(rows) >= 24
    return rows


@pytest.mark.parametrize(("example", "expression"), specified_frames())
def test_examples_of_the_specification_are_true(example: str, expression: str) -> None:
    names = {
        name: getattr(module, name)
        for module in (channel, wire)
        for name in dir(module)
        if not name.startswith("_")
    }
    assert eval(expression, names) == bytes.fromhex(example)


def test_the_documents_of_the_specification_are_read() -> None:
    texts = re.findall(r"```json\n(.+?)```", SPECIFICATION.read_text(), re.DOTALL)
    opens = [text for text in texts if '"version"' in text]
    answers = [text for text in texts if '"accept"' in text]
    assert (len(opens), len(answers), len(texts)) == (1, 2, 3)
    open_ = wire.Open.decode(opens[0].encode())
    assert open_.remote == ("203.0.113.7", 51514)
    # And it shows every member there is.
    sent = json.loads(open_.encode()[4:])
    assert json.loads(opens[0]).keys() == sent.keys()
    assert [Answer.decode(text.encode()).accepts for text in answers] == [True, False]


@pytest.mark.parametrize(
    ("uri", "path", "query"),
    [
        ("/a.ws", "/a.ws", {}),
        ("/ch%C3%A4t.ws?a=1&b=&a=%262", "/chät.ws", {"a": ["1", "&2"], "b": [""]}),
        ("/%FF.ws?%FF=%", "/\ufffd.ws", {"\ufffd": ["%"]}),
        ("//a?b?c=d", "//a", {"b?c": ["d"]}),
    ],
)
def test_what_a_uri_says(uri: str, path: str, query: dict[str, list[str]]) -> None:
    open_ = wire.Open(id="x", uri=uri)
    assert (open_.path, open_.query) == (path, query)


@pytest.mark.parametrize(
    ("header", "cookies"),
    [
        (None, {}),
        ("", {}),
        ("a=1; b=2", {"a": "1", "b": "2"}),
        ('a="1";b=x=y; a=2; ; nonsense', {"a": "1", "b": "x=y"}),
    ],
)
def test_cookies(header: str | None, cookies: dict[str, str]) -> None:
    headers = () if header is None else (("cookie", header),)
    assert wire.Open(id="x", uri="/", headers=headers).cookies == cookies


# apachews.wire.answer: the producer's yes and no, checked on both ends.


GOOD = [
    Answer.accept(None, ()),
    Answer.accept("chat.v2", [("Set-Cookie", "a=b; Path=/"), ("X-Empty", "")]),
    Answer.reject(403, (), ""),
    Answer.reject(401, [("WWW-Authenticate", 'Basic realm="x"')], "Who are you?\n"),
    Answer.reject(302, [("Location", "/é")], "é"),
]


@pytest.mark.parametrize("answer", GOOD)
def test_what_is_encoded_is_decoded(answer: Answer) -> None:
    frame = answer.encode()
    header = wire.decode_header(frame, 0)
    assert header is not None
    first, length, start = header
    assert first == wire.FIN | wire.ANSWER
    assert start + length == len(frame)
    assert Answer.decode(frame[start:]) == answer


BAD: list[tuple[dict[str, object], str]] = [
    ({"status": 200}, "status 200"),
    ({"status": 600}, "status 600"),
    ({"status": True}, "not a number"),
    ({"status": "403"}, "not a number"),
    ({"headers": [["a b", "c"]]}, "invalid header"),
    ({"headers": [["", "c"]]}, "invalid header"),
    ({"headers": [["X", "a\r\nY: b"]]}, "invalid header"),
    ({"headers": [["X", "a\0"]]}, "invalid header"),
    ({"headers": [["X", " a"]]}, "invalid header"),
    ({"headers": [["X", "€"]]}, "invalid header"),
    ({"headers": [["Content-Length", "0"]]}, "Apache sets it"),
    ({"headers": [["TRANSFER-ENCODING", "chunked"]]}, "Apache sets it"),
    ({"headers": [["Sec-WebSocket-Accept", "x"]]}, "Apache sets it"),
    ({"headers": [["X"]]}, "invalid ANSWER"),
    ({"headers": [["X", 1]]}, "not text"),
    ({"headers": {}, "body": 5}, "not text"),
    ({"accept": 1}, "neither true nor false"),
    ({"accept": True, "subprotocol": "a b"}, "expected a token"),
    ({"accept": True, "subprotocol": ["a"]}, "not text"),
]


@pytest.mark.parametrize(("changes", "text"), BAD)
def test_bad_answers_are_named(changes: dict[str, object], text: str) -> None:
    document = {"accept": False, "status": 403, "headers": [], "body": "", **changes}
    with pytest.raises(WireError) as caught:
        Answer.decode(json.dumps(document).encode())
    assert text in caught.value.reason


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"null",
        b"{}",
        b"\xff",
        b"[" * 100_000,
        '{"accept":true,"headers":[]}'.encode("utf-16"),
    ],
)
def test_no_answer_at_all(payload: bytes) -> None:
    with pytest.raises(WireError):
        Answer.decode(payload)


def test_an_answer_has_a_bound() -> None:
    with pytest.raises(ValueError, match=str(MAX_ANSWER_BYTES)):
        Answer.reject(403, (), "x" * MAX_ANSWER_BYTES).encode()


def test_members_that_are_not_known_are_ignored() -> None:
    assert Answer.decode(b'{"accept": true, "headers": [], "later": 1}') == Answer.accept(None, ())


@given(st.binary(max_size=100))
def test_arbitrary_bytes_are_an_answer_or_an_error(payload: bytes) -> None:
    try:
        Answer.decode(payload)
    except WireError:
        pass
