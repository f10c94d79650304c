"""A few seconds of Autobahn in every environment; ``tests/conformance`` has the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from ..support import autobahn

SELECTION = ["1.*", "2.*", "4.*", "5.*", "7.1.*", "7.7.*", "7.9.*", "13.3.3"]


@pytest.mark.skipif(not autobahn.KOSOKU.exists(), reason="no kosoku: pip install kosoku")
def test_a_selection(tmp_path: Path) -> None:
    with autobahn.running_target() as site:
        assert autobahn.check(site.apache.port, SELECTION, tmp_path / "report") == 86
