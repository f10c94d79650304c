"""apachews_handler.protocol.close_causes: documentation and code have the same table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from apachews import wire
from apachews_handler.native.httpd_abi import LOG_LEVELS
from apachews_handler.protocol.close_causes import CloseCause

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
