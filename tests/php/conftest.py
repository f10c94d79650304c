"""The Apache fixtures of the integration tests, for producers in PHP."""

from __future__ import annotations

from ..integration.conftest import event_site, site, sites

__all__ = ["event_site", "site", "sites"]
