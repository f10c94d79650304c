"""Autobahn's cases over ws and over wss.

All 517 take a quarter of an hour on two cores: ``deploy/test -e autobahn`` (which
sets APACHEWS_AUTOBAHN=all).  Otherwise those of compression are only the ones with
short messages.  The reports go to ``artefacts/autobahn-ws`` and ``-wss``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..support import autobahn
from ..support.site import Site

ALL = os.environ.get("APACHEWS_AUTOBAHN") == "all"
# 12 and 13 are compression: by kind of data (12) or parameters (13), then sizes, of
# which the first four are 16 to 1024 bytes; 12.1.11 has fragments.
COMPRESSION = [
    f"{kind}.{size}"
    for kind in (*(f"12.{i}" for i in range(1, 6)), *(f"13.{i}" for i in range(1, 8)))
    for size in range(1, 5)
] + ["12.1.11"]
UNCOMPRESSED = [f"{section}.*" for section in (*range(1, 8), 9, 10)]
INCLUDE = ["*"] if ALL else [*UNCOMPRESSED, *COMPRESSION]
UNCOMPRESSED_CASES = 301
CASES = autobahn.ALL_CASES if ALL else UNCOMPRESSED_CASES + len(COMPRESSION)


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with autobahn.running_target() as site:
        yield site


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_every_case(site: Site, scheme: str) -> None:
    report = autobahn.ARTEFACTS / f"autobahn-{scheme}"
    if scheme == "ws":
        assert autobahn.check(site.apache.port, INCLUDE, report) == CASES
        return
    if not shutil.which("socat"):
        pytest.skip("no socat: apt-get install socat")
    with autobahn.wrapped(site) as port:
        assert autobahn.check(port, INCLUDE, report) == CASES


@pytest.mark.timeout(1800)
def test_the_handler_without_compiled_code_passes_as_well() -> None:
    report = autobahn.ARTEFACTS / "autobahn-python"
    with autobahn.running_target_in_python() as site:
        maps = [Path(f"/proc/{pid}/maps").read_text() for pid in site.apache.children()]
        assert maps
        assert not any("_mask" in one or "__mypyc" in one for one in maps)
        assert autobahn.check(site.apache.port, UNCOMPRESSED, report) == UNCOMPRESSED_CASES
