"""apachews.wire.answer: the producer's yes and no, checked on both ends."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apachews import wire
from apachews.exceptions import WireError
from apachews.wire.answer import MAX_ANSWER_BYTES, Answer

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
