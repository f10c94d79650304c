"""Channels: a ready-made producer for the clients of Centrifuge.

Pages use ``centrifuge`` (npm), apps its libraries for iOS, Android, Go, Python and others.  They
subscribe to named channels, catch up after a bad network, and see who is there.  Without code::

    python3 -m apachews.channels /run/apachews/live.ws --config channels.toml

In a program::

    from apachews import Server
    from apachews.channels import Channels

    with Server("/run/apachews/live.ws") as server:
        Channels(server).run()
"""

from __future__ import annotations

from .channels import Channels
from .config import (
    ApiRules,
    Config,
    ConfigError,
    Namespace,
    ProxyRules,
    TokenRules,
    UnknownNamespace,
    load,
)
from .connection import Connection
from .protocol import Disconnect, ReplyError

__all__ = [
    "ApiRules",
    "Channels",
    "Config",
    "ConfigError",
    "Connection",
    "Disconnect",
    "Namespace",
    "ProxyRules",
    "ReplyError",
    "TokenRules",
    "UnknownNamespace",
    "load",
]
