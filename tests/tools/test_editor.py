"""The line that is being typed: keys in, text and the row out."""

from __future__ import annotations

import pytest

from apachews_tools.terminal.editor import END, MAX_HISTORY, LineEditor

LEFT, RIGHT, UP, DOWN = "\x1b[D", "\x1b[C", "\x1b[A", "\x1b[B"

# What is typed, and what the line is then, with | where the cursor stands.
LINES = [
    ("abc", "abc|"),
    ("abc" + LEFT, "ab|c"),
    ("abc" + LEFT * 5 + "x", "x|abc"),
    ("abc\x01" + RIGHT + "x", "ax|bc"),
    ("abc\x01\x05x", "abcx|"),
    ("abc\x1b[Hx\x1b[Fy", "xabcy|"),
    ("abc\x1bOHx\x1bOFy", "xabcy|"),
    ("abc\x7f\x08", "a|"),
    ("\x7f", "|"),
    ("abc" + LEFT + "\x7f", "a|c"),
    ("abc\x01\x04", "|bc"),
    ("abc\x01\x1b[3~\x1b[3~", "|c"),
    ("one two\x17", "one |"),
    ("one two \x1b\x7f", "one |"),
    ("one two\x1bbx", "one x|two"),
    ("one two\x01\x1bfx", "onex| two"),
    ("one two\x01\x1bd", "| two"),
    ("one two\x01\x1b[1;5C\x1b[1;5Dx", "x|one two"),
    ("one two\x1bb\x0b", "one |"),
    ("one two\x1bb\x15", "|two"),
    ("one two\x1bb\x0b\x01\x19", "two|one "),
    ("grüße 🙂\x7f", "grüße |"),
    ("a\tb", "a\tb|"),
    ("a\x00\x07b", "ab|"),
    ("a\x1b[99;1Xb\x1bzc", "abc|"),  # keys that mean nothing
]


@pytest.mark.parametrize(("keys", "line"), LINES)
@pytest.mark.parametrize("at_once", [True, False])
def test_keys_edit_the_line(keys: str, line: str, at_once: bool) -> None:
    editor = LineEditor()
    for part in [keys] if at_once else keys:
        assert editor.type(part) == []
    assert f"{editor.text[: editor.cursor]}|{editor.text[editor.cursor :]}" == line


def test_lines_are_finished_by_enter_and_the_input_by_ctrl_d() -> None:
    editor = LineEditor()
    assert editor.type("one\rtwo\nthr") == ["one", "two"]
    assert editor.type("\x04") == []  # it deletes what is right of the cursor
    assert editor.type("ee\r\r\x04") == ["three", "", END]


def test_older_lines_come_back_and_can_be_changed() -> None:
    editor = LineEditor()
    editor.type("one\rtwo\rtwo\r\rne")
    editor.type(UP)
    assert editor.text == "two"
    editor.type(UP + UP + UP)
    assert editor.text == "one"
    assert editor.type("!\r") == ["one!"]
    editor.type("ne" + UP)
    assert editor.text == "one!"
    editor.type(DOWN + DOWN)
    assert editor.text == "ne"


def test_the_history_has_an_end() -> None:
    editor = LineEditor()
    for number in range(MAX_HISTORY + 10):
        editor.type(f"{number}\r")
    editor.type(UP * (MAX_HISTORY + 10))
    assert editor.text == "10"


@pytest.mark.parametrize(
    ("keys", "columns", "view"),
    [
        ("", 10, ("", 0)),
        ("abc", 10, ("abc", 3)),
        ("abc" + LEFT, 10, ("abc", 2)),
        ("123456789", 10, ("123456789", 9)),
        ("123456789a", 10, ("6789a", 5)),
        ("123456789abcdefghi\x01", 10, ("123456789", 0)),
        ("123456789abcdefghi" + LEFT * 4, 10, ("abcdefghi", 5)),
        ("日本語", 10, ("日本語", 6)),
        ("日本語日本", 10, ("日本", 4)),
        ("a\u0301b", 10, ("a\u0301b", 2)),
        ("a\tb", 10, ("a b", 3)),
        ("abc", 1, ("c", 1)),
    ],
)
def test_the_row_shows_the_part_around_the_cursor(
    keys: str, columns: int, view: tuple[str, int]
) -> None:
    editor = LineEditor()
    editor.type(keys)
    assert editor.view(columns) == view
