"""The HTTP API of channels, for other programs and machines: Centrifugo's server API.

Contract: ``Api.is_permitted(headers)`` checks the key of a request, ``run(path, body, done)`` calls
``done`` once with the JSON of the answer: at once, or in ``dequeue()`` when a store or another
process has answered.  Bad input is an error in the answer; nothing is raised.

How this works: Apache has received the request, and passes it on as a connection whose request
is a POST (``apachews_handler.channels_api``).  Every method is one of the library, or an order
for all processes (``control``).

Source: Centrifugo's documentation of its HTTP API; ``cent`` (PyPI).
"""

from __future__ import annotations

import functools
import hmac
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from apachews.exceptions import HistoryError, MessageTooLarge
from apachews.history import Position, Replay

from . import protocol
from .config import ApiRules, ConfigError, UnknownNamespace, warn_if_others_can_read
from .control import Control
from .protocol import ReplyError
from .subscriptions import Subscriptions

MIN_KEY_CHARS: Final = 16
# Of one broadcast or batch: each is a message to store.
MAX_COMMANDS: Final = 1000
# Of "Authorization: SCHEME KEY"; clients of earlier versions send the first one.
_SCHEMES: Final = ("apikey", "bearer")

_logger: Final = logging.getLogger("apachews")

# Called once with the member of an answer: ``result`` or ``error``, and its value as JSON.
Done = Callable[[str, str], object]


class Api:
    """Runs requests of the API.

    Args:
        rules: with the key.
        subscriptions: the channels.
        control: reaches the connections.

    Raises:
        ConfigError: the key cannot be used.
    """

    def __init__(self, rules: ApiRules, subscriptions: Subscriptions, control: Control) -> None:
        self._key = key_of(rules).encode()
        self._subscriptions = subscriptions
        self._control = control
        self._methods: dict[str, Callable[[_Params, Done], None]] = {
            "publish": self._publish,
            "broadcast": self._broadcast,
            "presence": self._presence,
            "presence_stats": self._presence_stats,
            "history": self._history,
            "subscribe": self._subscribe,
            "unsubscribe": self._unsubscribe,
            "disconnect": self._disconnect,
            "refresh": self._refresh,
            "batch": self._batch,
        }

    def is_permitted(self, headers: Mapping[str, str]) -> bool:
        """Return whether a request has the key.

        Args:
            headers: names in lower case; values in ISO 8859-1.
        """
        key = headers.get("x-api-key", "")
        scheme, _, credentials = headers.get("authorization", "").partition(" ")
        if not key and scheme.lower() in _SCHEMES:
            key = credentials.strip()
        return hmac.compare_digest(key.encode("latin-1", "replace"), self._key)

    def run(self, path: str, body: str | bytes, done: Callable[[str], object]) -> None:
        """Run a request.

        Args:
            path: what follows the address of the API: ``/publish``, or "" with the method in
                the body.
            body: a JSON object.
            done: called with the JSON of the answer.
        """

        def answer(member: str, value: str) -> None:
            is_batch = member == "result" and method == "batch"
            done(value if is_batch else f'{{"{member}":{value}}}')

        method: object = path.strip("/")
        try:
            document = protocol.loads(body)
            if not isinstance(document, dict):
                raise ValueError
        except (ValueError, RecursionError):
            answer("error", _error(protocol.bad_request("the body is not a JSON object")))
            return
        if not method:
            method, document = document.get("method"), document.get("params", {})
        self._run(method, document, answer)

    def _run(self, method: object, params: object, done: Done) -> None:
        try:
            function = self._methods.get(method) if isinstance(method, str) else None
            if function is None:
                raise ReplyError(*protocol.METHOD_NOT_FOUND)
            function(_Params(params), done)
            return
        except ReplyError as refusal:
            error = refusal
        except UnknownNamespace:
            error = ReplyError(*protocol.UNKNOWN_CHANNEL)
        except MessageTooLarge as failure:
            error = protocol.bad_request(str(failure))
        except HistoryError as failure:
            _logger.warning("%s", failure)
            error = ReplyError(*protocol.INTERNAL)
        except Exception:
            _logger.exception("%s of the API failed", method)
            error = ReplyError(*protocol.INTERNAL)
        done("error", _error(error))

    def _publish(self, params: _Params, done: Done) -> None:
        done("result", self._publish_to(params.channel(), params))

    def _publish_to(self, channel: str, params: _Params) -> str:
        params.refuse("skip_history", "b64data", "idempotency_key")
        message = protocol.stored(params.data(), None, params.tags())
        delivery = self._subscriptions.group(channel).broadcast(message)
        position = delivery.position
        if position is None or not self._subscriptions.namespace(channel).history_size:
            return "{}"
        return protocol.dumps({"offset": position.offset, "epoch": position.epoch})

    def _broadcast(self, params: _Params, done: Done) -> None:
        responses: list[str] = []
        for channel in params.texts("channels"):
            one = params.replaced(channel=channel)
            self._run("publish", one, lambda member, value: responses.append(_of(member, value)))
        done("result", f'{{"responses":[{",".join(responses)}]}}')

    def _presence(self, params: _Params, done: Done) -> None:
        self._control.ask_presence(
            params.channel(),
            lambda members: done("result", protocol.dumps({"presence": members})),
        )

    def _presence_stats(self, params: _Params, done: Done) -> None:
        self._control.ask_presence(
            params.channel(),
            lambda members: done("result", protocol.dumps(protocol.presence_stats(members))),
        )

    def _history(self, params: _Params, done: Done) -> None:
        limit, since = params.number("limit"), params.position()

        def answer(replay: Replay) -> None:
            if since is not None and replay.has_gap:
                done("error", _error(ReplyError(*protocol.UNRECOVERABLE)))
            else:
                done("result", protocol.history_result(replay, limit, params.flag("reverse")))

        self._subscriptions.history(params.channel(), since, answer)

    def _subscribe(self, params: _Params, done: Done) -> None:
        params.refuse("session", "b64info", "data", "b64data", "recover_since", "override")
        channel = params.channel()
        self._subscriptions.namespace(channel)
        self._control.order(
            "subscribe", {**params.who(), "channel": channel, "info": params.value("info")}
        )
        done("result", "{}")

    def _unsubscribe(self, params: _Params, done: Done) -> None:
        params.refuse("session")
        self._control.order("unsubscribe", {**params.who(), "channel": params.channel()})
        done("result", "{}")

    def _disconnect(self, params: _Params, done: Done) -> None:
        params.refuse("session")
        code, reason = params.disconnect()
        spared = params.texts("whitelist")
        order = {**params.who(), "code": code, "reason": reason, "whitelist": spared}
        self._control.order("disconnect", order)
        done("result", "{}")

    def _refresh(self, params: _Params, done: Done) -> None:
        params.refuse("session")
        expire_at = params.number("expire_at") or None
        order = {**params.who(), "expired": params.flag("expired"), "expire_at": expire_at}
        self._control.order("refresh", order)
        done("result", "{}")

    def _batch(self, params: _Params, done: Done) -> None:
        commands = params.value("commands")
        if not isinstance(commands, list) or len(commands) > MAX_COMMANDS:
            raise protocol.bad_request(f"commands: expected a list of at most {MAX_COMMANDS}")
        replies = [""] * len(commands)
        missing = len(commands)

        def put(index: int, method: str, member: str, value: str) -> None:
            nonlocal missing
            replies[index] = _of("error" if member == "error" else method, value)
            missing -= 1
            if not missing:
                done("result", f'{{"replies":[{",".join(replies)}]}}')

        for index, command in enumerate(commands):
            is_command = isinstance(command, dict) and len(command) == 1
            method, arguments = next(iter(command.items())) if is_command else ("", {})
            if method == "batch":
                method = ""  # not inside another one
            self._run(method, arguments, functools.partial(put, index, method))
        if not commands:
            done("result", '{"replies":[]}')


class _Params:
    """The arguments of a method.

    Contract: each method returns an argument of a checked type, or raises ``ReplyError``.
    An argument that is null is one that is missing.
    """

    def __init__(self, params: object) -> None:
        if isinstance(params, _Params):
            params = params._values
        if not isinstance(params, dict):
            raise protocol.bad_request("params: expected an object")
        self._values: dict[str, Any] = params

    def replaced(self, **values: object) -> _Params:
        """Return the arguments with other ones."""
        return _Params({**self._values, **values})

    def value(self, name: str) -> Any:
        """Return an argument of any type."""
        return self._values.get(name)

    def refuse(self, *names: str) -> None:
        """Refuse arguments that would be ignored."""
        for name in names:
            if self._values.get(name) not in (None, False, "", {}):
                raise protocol.bad_request(f"{name}: not supported")

    def text(self, name: str) -> str:
        """Return a text; "" for none."""
        value = self._values.get(name)
        if value is None:
            return ""
        if not isinstance(value, str):
            raise protocol.bad_request(f"{name}: expected a text")
        return value

    def texts(self, name: str) -> list[str]:
        """Return a list of texts."""
        value = self._values.get(name)
        if value is None:
            return []
        are_texts = isinstance(value, list) and all(isinstance(one, str) for one in value)
        if not are_texts or len(value) > MAX_COMMANDS:
            raise protocol.bad_request(f"{name}: expected a list of at most {MAX_COMMANDS} texts")
        return list(value)

    def number(self, name: str) -> int:
        """Return an integer; 0 for none."""
        value = self._values.get(name, 0)
        if value is None:
            return 0
        if type(value) is not int:
            raise protocol.bad_request(f"{name}: expected a number")
        return value

    def flag(self, name: str) -> bool:
        """Return true or false."""
        return self._values.get(name) is True

    def channel(self) -> str:
        """Return the channel."""
        return self.text("channel")

    def data(self) -> Any:
        """Return the data to publish, which may be any JSON value but null."""
        if self._values.get("data") is None:
            raise protocol.bad_request("data: missing")
        return self._values["data"]

    def tags(self) -> dict[str, str] | None:
        """Return the tags of a publication."""
        tags = self._values.get("tags")
        if tags is None:
            return None
        if not isinstance(tags, dict) or not all(isinstance(one, str) for one in tags.values()):
            raise protocol.bad_request("tags: expected an object of texts")
        return tags

    def position(self) -> Position | None:
        """Return ``since``."""
        since = self._values.get("since")
        return None if since is None else protocol.position(since)

    def who(self) -> dict[str, str]:
        """Return which connections are meant."""
        who = {"user": self.text("user"), "client": self.text("client")}
        if not any(who.values()):
            raise protocol.bad_request("user: missing")
        return who

    def disconnect(self) -> tuple[int, str]:
        """Return code and reason of a disconnect."""
        value = self._values.get("disconnect")
        if value is None:
            return protocol.FORCE_DISCONNECT
        params = _Params(value)
        code, reason = params.number("code") or protocol.FORCE_DISCONNECT[0], params.text("reason")
        try:
            error = protocol.Disconnect(code, reason)
        except ValueError as problem:
            raise protocol.bad_request(str(problem)) from None
        return error.code, error.reason


def key_of(rules: ApiRules) -> str:
    """Return the key.

    Raises:
        ConfigError: it is missing, too short, or cannot be read.
    """
    if bool(rules.key) == bool(rules.key_file):
        raise ConfigError("api: expected one of key and key_file")
    key = rules.key
    if rules.key_file:
        try:
            key = Path(rules.key_file).read_text(encoding="ascii").rstrip("\r\n")
        except (OSError, ValueError) as error:
            raise ConfigError(f"api.key_file: {rules.key_file}: {error}") from error
        warn_if_others_can_read(rules.key_file)
    if len(key) < MIN_KEY_CHARS or not (key.isascii() and key.isprintable()) or " " in key:
        raise ConfigError(
            f"api: a key of {len(key)} characters; expected {MIN_KEY_CHARS} of ASCII, no spaces"
        )
    return key


def _of(member: str, value: str) -> str:
    return f"{{{protocol.dumps(member)}:{value}}}"


def _error(error: ReplyError) -> str:
    return protocol.dumps({"code": error.code, "message": error.message})
