"""The Centrifuge client protocol in its JSON form: commands, replies, pushes and codes.

Contract: sans-I/O and pure.  A WebSocket message has one or more JSON objects, each on a line of
its own.  ``decode`` returns the commands of one message; the other functions return texts to send.

Sources: Centrifugo's documentation of the client protocol, of its error codes and of its
disconnect codes; the clients ``centrifuge`` (npm) and ``centrifuge-python``.
"""

from __future__ import annotations

import base64
import json
import math
from typing import Any, Final, NamedTuple

from apachews.exceptions import ApachewsError
from apachews.history import PastMessage, Position, Replay

# Commands in one WebSocket message; clients send at most a few more than they have channels.
MAX_COMMANDS: Final = 1024
# Of the reason in a CLOSE (RFC 6455 5.5).
MAX_REASON_BYTES: Final = 123
METHODS: Final = frozenset(
    {
        "connect",
        "subscribe",
        "unsubscribe",
        "publish",
        "presence",
        "presence_stats",
        "history",
        "ping",
        "send",
        "rpc",
        "refresh",
        "sub_refresh",
    }
)
# Begins a stored message that has more than its data: the rest are members of a JSON object.  A
# JSON text cannot begin with it (RFC 8259 2).
WITH_INFO: Final = "\x1e"


class ReplyError(ApachewsError):
    """The answer to a command is an error; hooks may raise it.

    Attributes:
        code: 100 to 1999; 100 and more are the server's.
        message: for the developer of the page.
        is_temporary: the client may try again.
    """

    def __init__(self, code: int, message: str, *, is_temporary: bool = False) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.is_temporary = is_temporary


class Disconnect(ApachewsError):
    """The connection is closed; hooks may raise it.

    Attributes:
        code: 3000 to 4999.  A client connects again after 3000 to 3499 and 4000 to 4499.
        reason: for the developer of the page; at most 123 bytes.

    Raises:
        ValueError: a code or a reason that a WebSocket cannot have.
    """

    def __init__(self, code: int, reason: str) -> None:
        if not 3000 <= code <= 4999 or len(reason.encode()) > MAX_REASON_BYTES:
            raise ValueError(f"Disconnect({code}, {reason!r}): expected 3000 to 4999, 123 bytes")
        super().__init__(f"{code}: {reason}")
        self.code = code
        self.reason = reason


def bad_request(message: str) -> ReplyError:
    """Return the error for invalid arguments."""
    return ReplyError(107, message)


# For ReplyError: code and message.
INTERNAL: Final = (100, "internal server error")
UNAUTHORIZED: Final = (101, "unauthorized")
UNKNOWN_CHANNEL: Final = (102, "unknown channel")
PERMISSION_DENIED: Final = (103, "permission denied")
METHOD_NOT_FOUND: Final = (104, "method not found")
ALREADY_SUBSCRIBED: Final = (105, "already subscribed")
LIMIT_EXCEEDED: Final = (106, "limit exceeded")
NOT_AVAILABLE: Final = (108, "not available")
# The client asks its page for another token.
TOKEN_EXPIRED: Final = (109, "token expired")
UNRECOVERABLE: Final = (112, "unrecoverable position")

# For Disconnect: code and reason.  After these a client connects again.
CONNECTION_EXPIRED: Final = (3005, "connection expired")
FORCE_RECONNECT: Final = (3011, "force reconnect")
NO_PONG: Final = (3012, "no pong")
# After these it does not.
INVALID_TOKEN: Final = (3500, "invalid token")
BAD_REQUEST: Final = (3501, "bad request")
STALE: Final = (3502, "stale")
FORCE_DISCONNECT: Final = (3503, "force disconnect")
# Of the push that ends a subscription; with 2500 and more the client subscribes again.
SERVER_UNSUBSCRIBE: Final = (2000, "server unsubscribe")
INSUFFICIENT_STATE: Final = (2500, "insufficient state")
SUBSCRIPTION_EXPIRED: Final = (2501, "subscription expired")


class Command(NamedTuple):
    """A command of a client.

    Attributes:
        id: of the reply; 0 for ``send`` and for the answer to a ping, which have none.
        method: one of ``METHODS``; "" for the answer to a ping.
        params: its arguments.
    """

    id: int
    method: str
    params: dict[str, Any]


def decode(message: str | bytes) -> list[Command]:
    """Return the commands of a WebSocket message.

    Raises:
        Disconnect: it is not one of the protocol.
    """
    if isinstance(message, bytes):
        raise Disconnect(3506, "inappropriate protocol: expected JSON")
    # Empty lines are allowed, as at the end of the message.
    lines = [line for line in message.split("\n") if line.strip()]
    if not lines or len(lines) > MAX_COMMANDS:
        raise Disconnect(BAD_REQUEST[0], f"bad request: {len(lines)} commands")
    return [_decode_command(line) for line in lines]


def _decode_command(line: str) -> Command:
    try:
        document = loads(line)
    except (ValueError, RecursionError):
        raise Disconnect(BAD_REQUEST[0], "bad request: not JSON") from None
    if not isinstance(document, dict):
        raise Disconnect(BAD_REQUEST[0], "bad request: not an object")
    if not document:
        return Command(0, "", {})
    number = document.pop("id", 0)
    if type(number) is not int or not 0 <= number < 1 << 32:
        raise Disconnect(BAD_REQUEST[0], "bad request: id")
    methods = [name for name in document if name in METHODS]
    if not methods:
        return Command(number, next(iter(document), ""), {})  # of a later protocol
    method, params = methods[0], document[methods[0]]
    if len(methods) > 1 or not isinstance(params, dict) or not (number or method == "send"):
        raise Disconnect(BAD_REQUEST[0], f"bad request: {method}")
    return Command(number, method, params)


def loads(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is not JSON, or has a number that ``dumps`` could not write as JSON.
        RecursionError: it is too deep.
    """
    return json.loads(text, parse_constant=_finite, parse_float=_finite)


def _finite(text: str) -> float:
    # Python reads 1e999 as infinity and writes it as Infinity, which browsers do not parse.
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text:.40} is not a finite number")
    return number


def dumps(value: object) -> str:
    """Return a JSON text in one line."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:  # half of a surrogate pair, which JSON can escape
            return json.dumps(value, separators=(",", ":"))
    return text


def reply(number: int, method: str, result: dict[str, Any]) -> str:
    """Return the answer to a command."""
    return dumps({"id": number, method: result})


def connect_reply(number: int, result: dict[str, Any], subscriptions: dict[str, str]) -> str:
    """Return the answer to ``connect``, with the JSON of results of subscriptions."""
    subs = ",".join(f"{dumps(name)}:{one}" for name, one in subscriptions.items())
    text = reply(number, "connect", result)
    return f'{text[:-2]},"subs":{{{subs}}}}}}}' if subs else text


def error_reply(number: int, error: ReplyError) -> str:
    """Return an answer with an error."""
    document: dict[str, Any] = {"code": error.code, "message": error.message}
    if error.is_temporary:
        document["temporary"] = True
    return dumps({"id": number, "error": document})


def push(channel: str, kind: str, value: dict[str, Any]) -> str:
    """Return a message about a channel that answers no command."""
    return dumps({"push": {"channel": channel, kind: value}})


def publication_push(channel: str, data: str | bytes, offset: int) -> str:
    """Return the push of a stored message; ``offset`` 0 is left out."""
    return f'{{"push":{{"channel":{dumps(channel)},"pub":{publication(data, offset)}}}}}'


def subscribe_result(result: dict[str, Any], messages: list[PastMessage]) -> str:
    """Return the result of a subscription with the messages that the client has missed."""
    text = dumps({**result, "publications": []})
    publications = ",".join(publication(message.data, message.offset) for message in messages)
    return f"{text[:-2]}{publications}]}}"


def presence_stats(members: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Return how many clients and users there are."""
    users = {member["user"] for member in members.values()}
    return {"num_clients": len(members), "num_users": len(users)}


def position(since: object) -> Position:
    """Return the position that a client has: an object with ``epoch`` and ``offset``.

    Raises:
        ReplyError: it is not one.
    """
    params = since if isinstance(since, dict) else {"offset": None}
    epoch, offset = params.get("epoch", ""), params.get("offset", 0)
    if not isinstance(epoch, str) or type(offset) is not int:
        raise bad_request("epoch, offset: expected a text and a number")
    # "" would be before all messages: the client knows of none.
    return Position(epoch or "?", offset)


def history_result(replay: Replay, limit: int, is_reverse: bool) -> str:
    """Return the result of ``history``.

    Args:
        replay: what the channel keeps after the position of the client.
        limit: number of publications; below 0: all.
        is_reverse: the newest first.
    """
    messages = replay.messages[::-1] if is_reverse else replay.messages
    epoch, offset = replay.position
    some = messages if limit < 0 else messages[:limit]
    return subscribe_result({"epoch": epoch, "offset": offset}, some)


def publication(data: str | bytes, offset: int) -> str:
    """Return a stored message as a publication."""
    members = data[1:] if isinstance(data, str) and data.startswith(WITH_INFO) else None
    if members is None:
        members = f'"data":{_json_of(data)}'
    return f'{{{members},"offset":{offset}}}' if offset else f"{{{members}}}"


def stored(data: object, info: dict[str, Any] | None, tags: dict[str, str] | None = None) -> str:
    """Return what the history keeps of a message that has more than its data."""
    members: dict[str, Any] = {"data": data}
    if info is not None:
        members["info"] = info
    if tags:
        members["tags"] = tags
    return WITH_INFO + dumps(members)[1:-1]


def _json_of(data: str | bytes) -> str:
    """Return a published message as JSON in one line: itself, or a string with it."""
    if isinstance(data, bytes):
        return dumps(base64.b64encode(data).decode("ascii"))
    try:
        value = loads(data)
    except (ValueError, RecursionError):
        return dumps(data)
    return dumps(value) if "\n" in data or "\r" in data else data
