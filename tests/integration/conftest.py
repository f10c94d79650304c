"""Apaches for the tests, one a kind and run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from ..support.site import MOD_PYTHON, Site, running_site

MPMS = ["event", "worker", "prefork"]
# What starts an Apache for itself takes seconds: behind all of them where tox.ini says so.
RESTART_MPMS = MPMS if os.environ.get("APACHEWS_RESTARTS") == "all" else MPMS[:1]
SCHEMES = ["ws", "wss1.2", "wss1.3"]


@pytest.fixture(scope="session", autouse=True)
def host() -> None:
    """Skip what is to be tried in mod_python where there is none."""
    if MOD_PYTHON and not MOD_PYTHON.exists():
        pytest.skip("mod_python is not installed (libapache2-mod-python): deploy/test installs it")


@pytest.fixture(scope="session")
def sites() -> Iterator[dict[str, Site]]:
    """One running Apache for each MPM, started when first asked for."""
    with ExitStack() as stack:

        class Sites(dict[str, Site]):
            def __missing__(self, mpm: str) -> Site:
                site = stack.enter_context(running_site(mpm))
                self[mpm] = site
                return site

        yield Sites()


@pytest.fixture(params=MPMS)
def site(request: pytest.FixtureRequest, sites: dict[str, Site]) -> Site:
    """An Apache of each MPM in turn."""
    return sites[request.param]


@pytest.fixture
def event_site(sites: dict[str, Site]) -> Site:
    """An Apache with the event MPM, for what has nothing to do with the MPM."""
    return sites["event"]


@pytest.fixture(params=SCHEMES)
def scheme(request: pytest.FixtureRequest) -> str:
    """Each way to connect in turn."""
    return str(request.param)
