"""The ready-made producer: ``python3 -m apachews.channels SOCKET [--config FILE]``."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from collections.abc import Sequence

from apachews.exceptions import ApachewsError
from apachews.server import Server

from .api import key_of
from .channels import Channels
from .config import Config, ConfigError, Namespace, load
from .tokens import Tokens


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it; return the exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.INFO)
    try:
        config = Config() if options.config is None else load(options.config)
        if options.check:
            return _check(config)
        if options.socket is None:
            raise ApachewsError("the socket file is missing: python3 -m apachews.channels SOCKET")
        relay = options.relay or os.environ.get("APACHEWS_RELAY")
        if options.workers and not (options.history_file or relay):
            # Before they are forked: each would end with this, and be started again.
            raise ConfigError("--workers needs --history-file or --relay for the messages")
        with Server(
            options.socket,
            group=options.group,
            mode=options.mode,
            relay=options.relay,
            history_file=options.history_file,
            workers=options.workers,
            presence=config.needs_presence,
        ) as server:
            # Under apachews.runner the runner has its own handlers, and deploys.
            if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                signal.signal(signal.SIGTERM, lambda *_: server.call_soon(server.close))
            Channels(server, config).run()
    except (ApachewsError, OSError, ValueError) as error:
        print(f"apachews.channels: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m apachews.channels",
        description="Serve the clients of Centrifuge (npm: centrifuge) on a socket file.",
    )
    parser.add_argument("socket", metavar="SOCKET", nargs="?", help="the socket file, live.ws")
    parser.add_argument("--config", metavar="FILE", help="channels.toml")
    parser.add_argument("--check", action="store_true", help="check the configuration, and end")
    parser.add_argument("--group", help="the group of the socket file, as www-data")
    parser.add_argument(
        "--mode",
        type=lambda text: int(text, 8),
        default=0o660,
        help="permissions of the socket file (660)",
    )
    parser.add_argument("--relay", metavar="URL", help="of several machines: redis://host/0")
    parser.add_argument(
        "--history-file", metavar="FILE", help="keep the histories here over a restart"
    )
    parser.add_argument("--workers", type=int, default=0, metavar="N", help="worker processes")
    return parser


def _check(config: Config) -> int:
    """Print what a configuration means."""
    if config.tokens is not None:
        Tokens(config.tokens)
        print(f"tokens: {', '.join(sorted(config.tokens.algorithms))}")
    if config.api is not None:
        key_of(config.api)
    print(f"HTTP API: {'no' if config.api is None else 'with its key'}")
    print(f"anonymous clients: {'yes' if config.anonymous else 'no'}")
    if config.default is not None:
        _print_namespace("(channels without a namespace)", config.default)
    for name, namespace in config.namespaces.items():
        _print_namespace(f"{name}:…", namespace)
    return 0


def _print_namespace(name: str, namespace: Namespace) -> None:
    kept = f"{namespace.history_size} messages, {namespace.history_seconds:g} s"
    print(
        f"{name}\n"
        f"  history: {kept if namespace.history_size else 'none, and no recovery'}\n"
        f"  presence: {'yes' if namespace.presence else 'no'},"
        f" join and leave: {'yes' if namespace.join_leave else 'no'}\n"
        f"  subscribe: {_names(namespace.subscribe)}; publish: {_names(namespace.publish)};"
        f" history: {_names(namespace.history)}; presence: {_names(namespace.see_presence)}"
    )


def _names(rights: frozenset[str]) -> str:
    return ", ".join(sorted(rights)) or "the site only"


if __name__ == "__main__":
    sys.exit(main())
