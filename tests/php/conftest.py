"""Apaches for the producers in PHP: those of the integration tests."""

from __future__ import annotations

from ..integration.conftest import event_site, site, sites

__all__ = ["event_site", "site", "sites"]
