"""``apachews publish``: sends a message to a producer's clients, from a shell or cron."""

from __future__ import annotations

import argparse
import json
import os
import sys
import urllib.parse
from typing import Final

from apachews._relay.address import is_relay, without_password
from apachews.publishing import TIMEOUT_S, publish
from apachews_tools.httpd.permissions import Account
from apachews_tools.httpd.shell import this_program

from .command import CommandError, seconds, utf8_text

SUMMARY: Final = "send a message to the clients of a running producer"

DESCRIPTION: Final = """\
Send a message to the clients of the producer that listens on PATH.

The producer does not need code for that: its library forwards the message.  Every user
who may write to the socket file may publish.  Without --message, standard input is the
message; if it is empty, nothing is sent.

With --relay, the message goes through Redis or Valkey to the clients of every producer with
this relay, and PATH is the name of their relay: that of the socket file."""

EXAMPLES: Final = """\
examples:
  apachews publish /var/www/html/ws/chat.ws -m 'The server restarts at noon.'
  apachews publish --relay redis://10.0.0.5/0 chat.ws room -m 'Hello, room.'
  df -h / | apachews publish /var/www/html/ws/status.ws disks

exit status: 0 the producer or the relay has it, perhaps for no clients; 1 it was not sent"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command."""
    parser.description, parser.epilog = DESCRIPTION, EXAMPLES
    parser.add_argument("path", metavar="PATH", help="the socket file, or the name of the relay")
    parser.add_argument(
        "group",
        metavar="GROUP",
        nargs="?",
        type=utf8_text,
        help="only to the members of server.group(GROUP)",
    )
    parser.add_argument(
        "-m", "--message", type=utf8_text, help="the message, instead of standard input"
    )
    parser.add_argument("--binary", action="store_true", help="send a binary message")
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=TIMEOUT_S,
        metavar="SECONDS",
        help=f"for the answer of the producer (default {TIMEOUT_S:g})",
    )
    parser.add_argument(
        "--relay", metavar="URL", help="send it through this relay: redis://host:6379/0"
    )
    parser.add_argument("--json", action="store_true", help="print the number of clients as JSON")


def run(arguments: argparse.Namespace) -> int:
    """Send the message; print how many clients it reached."""
    if not arguments.path:
        raise CommandError("no socket file given; usage: apachews publish PATH [GROUP]")
    message = _message(arguments)
    if not message and arguments.message is None:
        print("nothing was sent: standard input is empty", file=sys.stderr)
        return 0
    target = _relay_target(arguments) if arguments.relay else arguments.path
    try:
        delivery = publish(target, message, arguments.group, timeout=arguments.timeout)
    except TimeoutError:
        raise CommandError(
            f"{arguments.path}: the producer did not answer within {arguments.timeout:g} s;"
            " it may still send the message"
        ) from None
    except PermissionError:
        raise CommandError(
            f"{arguments.path}: no permission to write to the socket file; run it as the user of"
            f" the producer: sudo -u {_owner(arguments.path)} {this_program()} publish …"
        ) from None
    if arguments.json:
        numbers = {"reached": delivery.reached, "skipped": delivery.skipped}
        print(json.dumps({**numbers, "relayed": delivery.relayed, "position": delivery.position}))
    elif arguments.relay:
        relayed = "relayed" if delivery.relayed else "no producer is subscribed to it"
        stored = "" if delivery.position is None else "stored in the history; "
        print(stored + relayed)
    else:
        skipped = f", {delivery.skipped} too slow and skipped" if delivery.skipped else ""
        relayed = ", and relayed" if delivery.relayed else ""
        print(f"{delivery.reached} reached{skipped}{relayed}")
    return 0


def _relay_target(arguments: argparse.Namespace) -> str:
    """Return the address of the relay with its name."""
    if not is_relay(arguments.relay):
        raise CommandError(
            f"--relay {without_password(arguments.relay)}: expected an address, as"
            " redis://host:6379/0"
        )
    name = urllib.parse.quote(os.path.basename(arguments.path), safe="")
    separator = "&" if "?" in arguments.relay else "?"
    return f"{arguments.relay}{separator}name={name}"


def _owner(path: str) -> str:
    try:
        return Account.of_uid(os.stat(path).st_uid).name
    except OSError:
        return "USER"  # a directory on the way is closed


def _message(arguments: argparse.Namespace) -> str | bytes:
    if arguments.message is not None:
        message: str = arguments.message
        return message.encode() if arguments.binary else message
    data = sys.stdin.buffer.read()
    if arguments.binary:
        return data
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise CommandError(
            f"standard input is not UTF-8 (byte {error.start}); --binary sends any bytes"
        ) from None
