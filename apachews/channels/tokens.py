"""Tokens: what a page's server says of a connection, or of a subscription.

Contract: ``Tokens`` checks JSON Web Tokens (RFC 7519) by PyJWT, and holds no state.  The text of
an exception is for the log; a client gets a code.

Source: Centrifugo's documentation of its connection and subscription tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, NamedTuple

from apachews.exceptions import ApachewsError

from .config import ConfigError, TokenRules, warn_if_others_can_read

# RFC 7518 3.2: a key of HMAC has at least the length of the hash.
MIN_SECRET_BYTES: Final = 32
_HMAC: Final = frozenset({"HS256", "HS384", "HS512"})
_PUBLIC: Final = frozenset({"RS256", "RS384", "RS512", "ES256", "ES384", "ES512"})


class TokenError(ApachewsError):
    """A token is rejected: the text says why."""


class TokenExpired(TokenError):
    """A token was valid once."""


class ConnectionToken(NamedTuple):
    """What a token says of a connection.

    Attributes:
        user: its identity; "": anonymous.
        expires_at: ``time.time()``; None: never.
        info: for presence and publications; any JSON value.
        channels: to which the server subscribes the client.
    """

    user: str
    expires_at: float | None
    info: Any
    channels: tuple[str, ...]


class SubscriptionToken(NamedTuple):
    """What a token says of a subscription.

    Attributes:
        expires_at: ``time.time()``; None: never.
        info: for presence and publications; any JSON value.
    """

    expires_at: float | None
    info: Any


class Tokens:
    """Checks tokens.

    Args:
        rules: how.

    Raises:
        ConfigError: PyJWT is missing, or the rules cannot be used.
    """

    def __init__(self, rules: TokenRules) -> None:
        try:
            import jwt
        except ImportError as error:
            raise ConfigError(
                "tokens need PyJWT: pip install 'apachews[channels]', or on Debian: apt-get"
                " install python3-jwt"
            ) from error
        self._jwt = jwt
        self._rules = rules
        self._algorithms = sorted(rules.algorithms)
        self._key = _key_of(rules)
        known = jwt.algorithms.get_default_algorithms()
        for name in self._algorithms:
            if name not in known:
                raise ConfigError(
                    f"tokens.algorithms: {name} needs cryptography: pip install"
                    " 'apachews[channels]', or on Debian: apt-get install python3-cryptography"
                )
            try:
                known[name].prepare_key(self._key)
            except (jwt.PyJWTError, ValueError, TypeError) as error:
                raise ConfigError(
                    f"tokens: {rules.public_key_file or rules.secret_file or 'secret'} is not a key"
                    f" for {name}: {error}"
                ) from error

    def connection(self, token: str) -> ConnectionToken:
        """Return what a token for a connection says.

        Raises:
            TokenExpired, TokenError
        """
        claims = self._claims(token)
        if "channel" in claims:
            raise TokenError("it is a token for a channel, not for a connection")
        channels = claims.get("channels", [])
        if not isinstance(channels, list) or not all(isinstance(one, str) for one in channels):
            raise TokenError("channels: expected a list of names")
        return ConnectionToken(
            _text(claims, "sub"), _expiry(claims), claims.get("info"), tuple(channels)
        )

    def subscription(self, token: str, user: str, channel: str) -> SubscriptionToken:
        """Return what a token for a channel says.

        Raises:
            TokenExpired
            TokenError: also if it is for another channel or user.
        """
        claims = self._claims(token)
        if claims.get("channel") != channel:
            raise TokenError(f"it is for the channel {claims.get('channel')!r:.80}")
        if _text(claims, "sub") != user:
            raise TokenError(f"it is for the user {claims.get('sub')!r:.80}")
        return SubscriptionToken(_expiry(claims), claims.get("info"))

    def _claims(self, token: str) -> dict[str, Any]:
        rules = self._rules
        try:
            claims = self._jwt.decode(
                token,
                self._key,
                algorithms=self._algorithms,
                audience=rules.audience or None,
                issuer=rules.issuer or None,
                options={"verify_aud": bool(rules.audience), "verify_sub": False},
            )
        except self._jwt.ExpiredSignatureError as error:
            raise TokenExpired("the token has expired") from error
        except (
            self._jwt.PyJWTError,
            *(ValueError, TypeError, OverflowError, RecursionError),
        ) as error:
            raise TokenError(str(error) or type(error).__name__) from error
        return dict(claims)


def _key_of(rules: TokenRules) -> str | bytes:
    """Return the key, of the kind that the algorithms need."""
    is_public = bool(rules.public_key_file)
    allowed = _PUBLIC if is_public else _HMAC
    # A public key must never serve as a secret that is known.
    if unknown := rules.algorithms - allowed or (set() if rules.algorithms else {"none"}):
        raise ConfigError(
            f"tokens.algorithms: {', '.join(sorted(unknown))} with a"
            f" {'public key' if is_public else 'secret'}; expected of {', '.join(sorted(allowed))}"
        )
    if sum(map(bool, (rules.secret, rules.secret_file, rules.public_key_file))) != 1:
        raise ConfigError("tokens: expected one of secret, secret_file and public_key_file")
    if rules.secret:
        key = rules.secret.encode()
    else:
        path = rules.public_key_file or rules.secret_file
        try:
            key = Path(path).read_bytes()
        except OSError as error:
            raise ConfigError(f"tokens: {path}: {error.strerror}") from error
        if not is_public:
            warn_if_others_can_read(path)
        key = key if is_public else key.rstrip(b"\r\n")
    if not is_public and len(key) < MIN_SECRET_BYTES:
        raise ConfigError(f"tokens: a secret of {len(key)} bytes; expected {MIN_SECRET_BYTES}")
    return key


def _text(claims: dict[str, Any], name: str) -> str:
    value = claims.get(name, "")
    if not isinstance(value, str):
        raise TokenError(f"{name}: expected a text")
    return value


def _expiry(claims: dict[str, Any]) -> float | None:
    # PyJWT has checked that it is a number.
    return None if claims.get("exp") is None else float(claims["exp"])
