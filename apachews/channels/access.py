"""Who a client is, and what it may do: tokens, the login of Apache, and the configuration's rights.

Contract: for ``Commands``; errors are those that the client gets.
"""

from __future__ import annotations

import logging
from typing import Final

from . import protocol
from .config import Config
from .connection import Connection
from .protocol import Disconnect, ReplyError
from .tokens import ConnectionToken, SubscriptionToken, TokenError, TokenExpired, Tokens

_logger: Final = logging.getLogger("apachews")


class Access:
    """Checks tokens and rights.

    Args:
        config: of the channels.

    Raises:
        ConfigError: the rules of tokens cannot be used.
    """

    def __init__(self, config: Config) -> None:
        self._tokens = None if config.tokens is None else Tokens(config.tokens)

    def connection_token(self, token: object) -> ConnectionToken:
        """Return what a token says of a connection.

        Raises:
            ReplyError: it has expired.
            Disconnect: it is invalid.
        """
        try:
            return self._checker().connection(str(token))
        except TokenExpired:
            raise ReplyError(*protocol.TOKEN_EXPIRED) from None
        except TokenError as error:
            _logger.info("a token for a connection is rejected: %s", error)
            raise Disconnect(*protocol.INVALID_TOKEN) from None

    def subscription_token(
        self, connection: Connection, channel: str, token: object
    ) -> SubscriptionToken:
        """Return what a token says of a subscription.

        Raises:
            ReplyError: it has expired, or is invalid.
        """
        try:
            return self._checker().subscription(str(token), connection.user, channel)
        except TokenExpired:
            raise ReplyError(*protocol.TOKEN_EXPIRED) from None
        except TokenError as error:
            _logger.info("a token for a channel is rejected: %s", error)
            raise ReplyError(*protocol.PERMISSION_DENIED) from None

    def _checker(self) -> Tokens:
        if self._tokens is None:
            raise TokenError("the configuration has no [tokens]")
        return self._tokens

    def may(self, connection: Connection, channel: str, rights: frozenset[str]) -> bool:
        """Return whether a client has one of these rights in a channel."""
        subscription = connection.channels.get(channel)
        return is_named(connection.user, channel) and (
            "all" in rights
            or ("user" in rights and bool(connection.user))
            or ("subscriber" in rights and subscription is not None)
            or ("token" in rights and subscription is not None and subscription.has_token)
        )

    def require(self, connection: Connection, channel: str, rights: frozenset[str]) -> None:
        """Raise ReplyError if a client has none of these rights in a channel."""
        if not self.may(connection, channel, rights):
            raise ReplyError(*protocol.PERMISSION_DENIED)


def is_named(user: str, channel: str) -> bool:
    """Return whether a channel is for a user: ``talk#ann,bob`` is for these two, others for all."""
    _, boundary, users = channel.rpartition("#")
    return not boundary or (bool(user) and user in users.split(","))
