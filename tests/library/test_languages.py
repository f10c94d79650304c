"""apachews._server.languages: the language a browser prefers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apachews._server.languages import preferred_language


@pytest.mark.parametrize(
    ("header", "language"),
    [
        ("", None),
        ("de", "de"),
        ("en-GB,en;q=0.9,de;q=0.8", "en-GB"),
        ("de;q=0.5, fr ; q=0.8", "fr"),
        ("de;q=0, *;q=0.5", None),
        ("de;q=x,en;q=0.1", "en"),
        ("de;q=7,en;q=0.1", "en"),
        ("da, en", "da"),
    ],
)
def test_preferred_language(header: str, language: str | None) -> None:
    assert preferred_language(header) == language


@given(st.text(max_size=50))
def test_arbitrary_headers(header: str) -> None:
    preferred_language(header)
