"""Calls of the site's own URLs: who a client is, and what it may do, is decided there.

Contract: each method of ``Proxy`` returns a future of the ``result`` of the answer, an object; the
future raises what the site answers (``ReplyError``, ``Disconnect``), or a temporary error if there
is no answer, with a line in the log.  A bounded number of threads; the standard library's HTTP.

Source: Centrifugo's documentation of its HTTP proxy.
"""

from __future__ import annotations

import http.client
import logging
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from . import protocol
from .config import Config, ConfigError, ProxyRules
from .connection import Connection
from .protocol import Disconnect, ReplyError

# Calls at a time, and with those that wait for a thread.
THREADS: Final = 16
MAX_CALLS: Final = 1000
MAX_ANSWER_BYTES: Final = 1024 * 1024

_logger: Final = logging.getLogger("apachews")


class Proxy:
    """Calls the URLs of the configuration.

    Args:
        rules: the URLs.

    Raises:
        ConfigError: a URL is invalid.
    """

    def __init__(self, rules: ProxyRules) -> None:
        for name in ("connect", "subscribe", "publish", "rpc"):
            _check_url(name, getattr(rules, name))
        self.rules = rules
        self._headers = {name.lower() for name in rules.headers}
        self._threads = ThreadPoolExecutor(THREADS, "apachews-proxy")
        self._places = threading.Semaphore(MAX_CALLS)
        # Neither redirects, which could lead to another host, nor the environment's proxies.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirects())

    def connect(self, connection: Connection) -> Future[dict[str, Any]]:
        """Ask who a client is: ``user``, ``info``, ``expire_at``, ``channels``, ``data``."""
        return self._ask(self.rules.connect, connection, {"data": connection.data})

    def subscribe(self, connection: Connection, channel: str, data: Any) -> Future[dict[str, Any]]:
        """Ask whether a client may subscribe: ``info``, ``expire_at``."""
        members = {"user": connection.user, "channel": channel, "data": data}
        return self._ask(self.rules.subscribe, connection, members)

    def publish(self, connection: Connection, channel: str, data: Any) -> Future[dict[str, Any]]:
        """Ask whether a client may publish: ``data`` in the place of its data."""
        members = {"user": connection.user, "channel": channel, "data": data}
        return self._ask(self.rules.publish, connection, members)

    def rpc(self, connection: Connection, method: str, data: Any) -> Future[dict[str, Any]]:
        """Pass a call on: ``data``."""
        members = {"user": connection.user, "method": method, "data": data}
        return self._ask(self.rules.rpc, connection, members)

    def _ask(
        self, url: str, connection: Connection, members: dict[str, Any]
    ) -> Future[dict[str, Any]]:
        if not self._places.acquire(blocking=False):
            _logger.warning("%s: %d calls wait already", url, MAX_CALLS)
            raise ReplyError(*protocol.INTERNAL, is_temporary=True)
        document = {
            "client": connection.id,
            "transport": "websocket",
            "protocol": "json",
            "encoding": "json",
            **{name: value for name, value in members.items() if value is not None},
        }
        headers = {
            name: value
            for name, value in connection.client.request.headers
            if name in self._headers
        }
        headers["Content-Type"] = "application/json"
        headers["X-Forwarded-For"] = connection.client.request.remote[0]
        request = urllib.request.Request(url, protocol.dumps(document).encode(), headers)
        future = self._threads.submit(self._run, request)
        future.add_done_callback(lambda future: self._places.release())
        return future

    def _run(self, request: urllib.request.Request) -> dict[str, Any]:
        """Call a URL; in a thread."""
        try:
            with self._opener.open(request, timeout=self.rules.timeout_seconds) as response:
                text = response.read(MAX_ANSWER_BYTES + 1)
            if len(text) > MAX_ANSWER_BYTES:
                raise ValueError(f"more than {MAX_ANSWER_BYTES} bytes")
            return _judge(protocol.loads(text))
        except (OSError, ValueError, RecursionError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()  # it has the connection
            _logger.warning("%s: %s", request.full_url, error)
            raise ReplyError(*protocol.INTERNAL, is_temporary=True) from None


class Answer:
    """The result of a call: each method returns a member of a checked type.

    Raises:
        ReplyError: a member is of another type; the log has it.
    """

    def __init__(self, result: dict[str, Any]) -> None:
        self._result = result

    def value(self, name: str) -> Any:
        """Return a member of any type; None without it."""
        return self._result.get(name)

    def text(self, name: str) -> str:
        """Return a text; "" without it."""
        return str(self._checked(name, "", lambda value: isinstance(value, str)))

    def texts(self, name: str) -> list[str]:
        """Return a list of texts."""

        def is_list(value: object) -> bool:
            return isinstance(value, list) and all(isinstance(one, str) for one in value)

        return list(self._checked(name, [], is_list))

    def expiry(self) -> float | None:
        """Return ``expire_at``, ``time.time()``; None for no end."""

        def is_time(value: Any) -> bool:
            # The difference of a greater integer and the clock overflows.
            return type(value) in (int, float) and abs(value) < 1e12

        return self._checked("expire_at", 0, is_time) or None

    def _checked(self, name: str, default: Any, is_valid: Callable[[object], bool]) -> Any:
        value = self._result.get(name)
        if value is None:
            return default
        if not is_valid(value):
            _logger.warning("an answer of the site has %s = %.100r", name, value)
            raise ReplyError(*protocol.INTERNAL, is_temporary=True)
        return value


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect is an error, as any status but 200."""

    def redirect_request(self, *arguments: Any) -> None:
        """Return None: the answer with the redirect is the final one."""


def _judge(document: object) -> dict[str, Any]:
    """Return the result of an answer.

    Raises:
        ReplyError, Disconnect: what the answer says.
        ValueError: it is invalid.
    """
    if not isinstance(document, dict):
        raise ValueError("the answer is not a JSON object")
    for name in ("error", "disconnect"):
        found = document.get(name)
        if found is None:
            continue
        code = found.get("code") if isinstance(found, dict) else None
        text = found.get("message" if name == "error" else "reason", "") if code else None
        if type(code) is not int or not isinstance(text, str):
            raise ValueError(f"{name}: expected a code and a text")
        if name == "disconnect":
            raise Disconnect(code, text)
        raise ReplyError(code, text, is_temporary=found.get("temporary") is True)
    result = document.get("result", {})
    if not isinstance(result, dict):
        raise ValueError("result: expected an object")
    return result


def proxy_of(config: Config) -> Proxy | None:
    """Return what calls the URLs of a configuration; None without any.

    Raises:
        ConfigError: a URL is invalid, or missing.
    """
    rules = config.proxy or ProxyRules()
    every = {"default": config.default, **config.namespaces}
    for place, namespace in every.items():
        for right in ("subscribe", "publish"):
            if namespace and "proxy" in getattr(namespace, right) and not getattr(rules, right):
                raise ConfigError(f'{place}: {right} = "proxy" needs [proxy] {right}')
    return None if config.proxy is None else Proxy(config.proxy)


def _check_url(name: str, url: str) -> None:
    try:
        parts = urllib.parse.urlsplit(url)
        is_valid = not url or (parts.scheme in ("http", "https") and bool(parts.hostname))
        _ = parts.port
    except ValueError:
        is_valid = False
    if not is_valid:
        raise ConfigError(
            f"proxy.{name} = {url!r:.100}: expected a URL, as http://localhost/{name}"
        )
