"""The tables of refusals and of close codes: their form, and their documentation."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from apachews import wire
from apachews.monitoring import refusals
from apachews.monitoring.refusals import REASONS, Reason
from apachews_handler.native.httpd_abi import LOG_LEVELS
from apachews_handler.protocol.close_causes import CloseCause
from apachews_tools.doctor.finding import CHECKS

from ..support.checkout import files

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "refusals.md"
HANDLER = ROOT / "apachews_handler"
# A cell of a table in the documentation.
MAX_CELL_CHARS = 120


def cell(text: str) -> str:
    return re.sub(r"[|*<>]", r"\\\g<0>", text)


def row(reason: Reason) -> str:
    """Return the row of the documentation."""
    status = str(reason.status or "any")
    findings = ", ".join(f"`{finding}`" for finding in reason.findings)
    cells = (f"`{reason.token}`", status, cell(reason.meaning), cell(reason.remedy), findings)
    return f"| {' | '.join(cells)} |"


def bodies() -> list[str]:
    """Return the rows of the documentation that look a token up by its body."""
    by_body: dict[str, list[str]] = {}
    for reason in REASONS.values():
        if reason.body:
            by_body.setdefault(reason.body, []).append(f"`{reason.token}`")
    rows = []
    for body, tokens in by_body.items():
        shown = ", ".join(tokens) if len(tokens) < 4 else "several: see the header or the log"
        rows.append(f"| {body} | {shown} |")
    return rows


@pytest.mark.parametrize("token", REASONS)
def test_a_token_is_a_stable_word(token: str) -> None:
    reason = REASONS[token]
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", token)
    assert reason.status in (0, *range(400, 600))
    for text in (reason.body, reason.meaning, reason.remedy):
        assert len(text) <= MAX_CELL_CHARS
        assert text.isascii()  # httpd escapes all other bytes in its log
        assert text.isprintable() or not text
    assert not reason.remedy.endswith(".")
    assert not reason.meaning.endswith(".")


def test_the_documented_table_is_this_one() -> None:
    """To write it anew: print(*map(row, REASONS.values()), sep="\\n"), and bodies() likewise."""
    lines = PAGE.read_text().splitlines()
    assert [line for line in lines if re.match(r"\| `[a-z0-9-]+` \|", line)] == [
        *map(row, REASONS.values())
    ]
    start = lines.index("| body | token |") + 2
    assert lines[start : start + len(bodies())] == bodies()


def test_findings_are_those_of_the_doctor() -> None:
    for reason in REASONS.values():
        assert set(reason.findings) <= set(CHECKS), reason


def test_every_row_is_raised_and_nothing_else() -> None:
    names = {name for name, value in vars(refusals).items() if isinstance(value, Reason)}
    sources = "".join(path.read_text() for path in HANDLER.rglob("*.py"))
    used = set(re.findall(r"refusals\.([A-Z][A-Z0-9_]+)\b", sources)) - {"HEADER"}
    assert used == names
    assert len(REASONS) == len(names)


def test_the_tools_match_no_words_of_a_body() -> None:
    """Every sentence that a client may be sent is in the table, and nowhere else in the product."""
    packages = ("apachews/", "apachews_handler/", "apachews_tools/")
    for name in files():
        path = ROOT / name
        if path.suffix != ".py" or name == "apachews/monitoring/refusals.py":
            continue
        if not name.startswith(packages):
            continue
        text = path.read_text()
        for reason in REASONS.values():
            assert not reason.body or reason.body not in text, (name, reason.body)


@pytest.mark.parametrize(
    ("header", "logged", "expected"),
    [
        ("origin", "", refusals.ORIGIN),
        (" origin , error-document", "", refusals.ORIGIN),
        ("of-a-later-version", "", None),
        ("", "", None),
        ("", "AH00038: Forbidden", None),
        ("", "apachews: 403 origin for /x.ws: a fact; a remedy", refusals.ORIGIN),
        ("http2", "apachews: 403 origin for /x.ws: a fact", refusals.HTTP2),
        ("of-a-later-version", "apachews: 403 origin for /x.ws: a fact", refusals.ORIGIN),
    ],
)
def test_a_row_is_found_by_header_and_by_log(
    header: str, logged: str, expected: Reason | None
) -> None:
    assert refusals.find(header, logged) is expected


# apachews_handler.protocol.close_causes: documentation and code have the same table.


TABLE = Path(__file__).parents[2] / "docs" / "reference" / "close-codes.md"


def test_the_documented_table_is_the_enumeration() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (\w+) \| (.+?) \| (\w+) \|", TABLE.read_text(), re.M)
    assert [name for name, *_ in rows] == [end.name for end in CloseCause]
    for name, by, code, level in rows:
        end = CloseCause[name]
        assert (by, level) == (end.by, end.level)
        assert code == (str(end.code) if end.code else "its own")


@pytest.mark.parametrize("end", list(CloseCause))
def test_every_row_can_be_sent_and_logged(end: CloseCause) -> None:
    assert end.level in LOG_LEVELS
    assert end.code in (0, wire.ABNORMAL) or wire.is_sendable_code(end.code)


def test_every_violation_has_its_row() -> None:
    for code in (wire.PROTOCOL_ERROR, wire.INVALID_DATA, wire.POLICY_VIOLATION, wire.TOO_BIG):
        assert CloseCause.of_violation(code).code == code
