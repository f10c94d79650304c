"""Who is in a group, over all producers: members, and the events of their coming and going.

Contract: ``Presence`` is sans-I/O: what happens goes in with the time, messages for the other
producers go out by ``send``, and changes by ``on_change``.  ``PresenceTimer`` runs it inside a
loop.  A *member* is a key: a user, for example, whose three tabs are one member.

How this works: each producer keeps, for each group that has clients here, the keys of every
producer, the *holders*.  A member joins with its first holder and leaves with its last one.
Holders tell each other ``+`` and ``-`` on the channel of the group, and ``=`` (all keys) as the
answer to ``?``, after a gap of the relay, and from time to time, because a message may be lost.
On the channel of all clients each says ``alive`` in every interval; the keys of a producer that
was not heard for ``TIMEOUT_S`` are gone.

A client that moves to the next producer, is held by Apache, or reloads its page (1001) has not
left: the key of a connection that ends without a normal CLOSE (1000, or no code) stays for
``LEAVE_DELAY_S``, and a producer that drains or dies says
nothing, so that its keys stay for ``TIMEOUT_S``, as long as Apache holds a client (APACHEWS_HOLD).
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, Final, Protocol

from apachews import wire
from apachews.client import Client
from apachews.events import Event, JoinEvent, LeaveEvent

from .envelope import PRESENCE

HEARTBEAT_S: Final = 5.0
# All keys are sent again in every sixth interval.
SNAPSHOT_INTERVALS: Final = 6
TIMEOUT_S: Final = 30.0
LEAVE_DELAY_S: Final = 3.0

Send = Callable[[str | None, dict[str, Any]], None]
OnChange = Callable[[str, str, bool], None]


class Presence:
    """The members of the groups that have clients here.

    Args:
        send: sends a message to the producers with clients of a group, or to all (None).
        on_change: called with group, member, and whether it has joined.
        on_idle: called with a group that has no members here any more.

    Attributes:
        id: of this producer; its messages have it.
    """

    def __init__(self, send: Send, on_change: OnChange, on_idle: Callable[[str], None]) -> None:
        self.id = os.urandom(8).hex()
        self._send = send
        self._on_change = on_change
        self._on_idle = on_idle
        # Group -> member -> the producers that hold it.
        self._holders: dict[str, dict[str, set[str]]] = {}
        # Group -> member -> number of its clients here.
        self._local: dict[str, Counter[str]] = {}
        # The keys without a client here, and until when they stay.  All stay equally long, so
        # that the first one is due first.  And the number of them in each group.  A dict would
        # pass over all entries that were removed before its first one, at each look.
        self._leaving: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._leaving_of: Counter[str] = Counter()
        # When a producer was heard last.  Group -> producer -> when it said last whom it has.
        self._heard: dict[str, float] = {}
        self._confirmed: dict[str, dict[str, float]] = {}
        self._unanswered: set[str] = set()
        self._beats = 0
        self._next_beat_at = 0.0

    def members(self, group: str) -> list[str]:
        """Return the members of a group, in the order in which they became known."""
        return list(self._holders.get(group, ()))

    def join(self, group: str, member: str) -> None:
        """Add a client of a member."""
        is_first = not self._local.get(group)
        clients = self._local.setdefault(group, Counter())
        clients[member] += 1
        was_leaving = self._stop_leaving(group, member)
        if clients[member] == 1 and not was_leaving:
            self._hold(group, member, self.id)
            self._send(group, {"do": "+", "key": member})
        if is_first:
            # Again with the next beat: the subscription may be later than the answers.
            self._unanswered.add(group)
            self._send(group, {"do": "?"})

    def leave(self, group: str, member: str, now: float, *, at_once: bool) -> None:
        """Remove a client of a member; without ``at_once`` the last one after a delay."""
        clients = self._local[group]
        clients[member] -= 1
        if clients[member] > 0:
            return
        del clients[member]
        if at_once:
            self._end(group, member)
        else:
            self._leaving[group, member] = now + LEAVE_DELAY_S
            self._leaving_of[group] += 1

    def receive(self, group: str | None, document: dict[str, Any], now: float) -> None:
        """Handle a message of another producer."""
        sender, do = document.get("from"), document.get("do")
        if not isinstance(sender, str) or sender == self.id:
            return
        if do == "bye":
            self._forget(sender)
            return
        self._heard[sender] = now
        if group is None or group not in self._local:
            return
        if do in ("+", "="):
            self._confirmed.setdefault(group, {})[sender] = now
        if do == "+" and isinstance(key := document.get("key"), str):
            self._hold(group, key, sender)
        elif do == "-" and isinstance(key := document.get("key"), str):
            self._release(group, key, sender)
        elif do == "=" and isinstance(keys := document.get("keys"), list):
            self._replace(group, {key for key in keys if isinstance(key, str)}, sender)
        elif do == "?":
            self._send_snapshot(group)

    def resynchronize(self, now: float) -> None:
        """Exchange all keys again: the relay is back after a gap."""
        for sender in self._heard:
            self._heard[sender] = now  # it could not be heard meanwhile
        for senders in self._confirmed.values():
            senders.update(dict.fromkeys(senders, now))
        for group in self._local:
            self._send_snapshot(group)
            self._send(group, {"do": "?"})

    def tick(self, now: float, is_up: bool) -> float:
        """Do what is due; return when the next tick is due at the latest.

        Args:
            now: ``time.monotonic()``.
            is_up: whether other producers can be heard; otherwise none of them is given up.
        """
        while self._leaving:
            (group, member), due = next(iter(self._leaving.items()))
            if due > now:
                break
            self._stop_leaving(group, member)
            self._end(group, member)
        if self._next_beat_at <= now:
            self._next_beat_at = now + HEARTBEAT_S
            self._beat(now, is_up)
        return min(self._next_beat_at, next(iter(self._leaving.values()), self._next_beat_at))

    def close(self) -> None:
        """Tell the others that all members of this producer have left."""
        self._send(None, {"do": "bye"})

    def _beat(self, now: float, is_up: bool) -> None:
        self._beats += 1
        self._send(None, {"do": "alive"})
        for group in self._unanswered:
            if group in self._local:
                self._send(group, {"do": "?"})
        self._unanswered.clear()
        if self._beats % SNAPSHOT_INTERVALS == 0:
            for group in self._local:
                self._send_snapshot(group)
        if is_up:
            for sender, heard_at in list(self._heard.items()):
                if heard_at + TIMEOUT_S <= now:
                    self._forget(sender)
            # The last "-" of a producer may be lost, and it sends nothing of a group that it has
            # forgotten.
            too_old = now - 2.5 * SNAPSHOT_INTERVALS * HEARTBEAT_S
            for group, senders in self._confirmed.items():
                for sender in [sender for sender, at in senders.items() if at <= too_old]:
                    del senders[sender]
                    self._replace(group, set(), sender)

    def _send_snapshot(self, group: str) -> None:
        holders = self._holders.get(group, {})
        keys = [key for key, producers in holders.items() if self.id in producers]
        self._send(group, {"do": "=", "keys": keys})

    def _end(self, group: str, member: str) -> None:
        """Release a key of this producer; forget the group with its last one."""
        self._send(group, {"do": "-", "key": member})
        self._release(group, member, self.id)
        if not self._local[group] and group not in self._leaving_of:
            # Without a client here nothing of the group arrives any more.
            del self._local[group]
            self._holders.pop(group, None)
            self._confirmed.pop(group, None)
            self._on_idle(group)

    def _stop_leaving(self, group: str, member: str) -> bool:
        """Return whether the key was about to leave, and let it stay."""
        if self._leaving.pop((group, member), None) is None:
            return False
        self._leaving_of[group] -= 1
        if not self._leaving_of[group]:
            del self._leaving_of[group]
        return True

    def _hold(self, group: str, member: str, holder: str) -> None:
        holders = self._holders.setdefault(group, {}).setdefault(member, set())
        is_new = not holders
        holders.add(holder)
        if is_new:
            self._on_change(group, member, True)

    def _release(self, group: str, member: str, holder: str) -> None:
        members = self._holders.get(group, {})
        holders = members.get(member)
        if holders is None or holder not in holders:
            return
        holders.discard(holder)
        if not holders:
            del members[member]
            self._on_change(group, member, False)

    def _replace(self, group: str, keys: set[str], holder: str) -> None:
        for key in keys:
            self._hold(group, key, holder)
        for key, holders in list(self._holders.get(group, {}).items()):
            if holder in holders and key not in keys:
                self._release(group, key, holder)

    def _forget(self, holder: str) -> None:
        self._heard.pop(holder, None)
        for senders in self._confirmed.values():
            senders.pop(holder, None)
        for group in list(self._holders):
            self._replace(group, set(), holder)


class Port(Protocol):
    """What the presence of a server needs of its loop."""

    @property
    def is_relay_up(self) -> bool:
        """Whether other producers can be heard."""

    def call_later(self, delay_s: float, function: Callable[[], object]) -> None:
        """Call a function inside ``dequeue()`` after some seconds."""

    def add_event(self, event: Event) -> None:
        """Queue an event for the program."""

    def publish_presence(self, group: str | None, frame: bytes) -> None:
        """Send a frame to other producers."""

    def end_subscription(self, group: str) -> None:
        """Receive nothing of a group any more, if it has no clients here."""


class PresenceTimer:
    """The presence of a server: its clients, timers and events.

    Contract: under the server's lock, inside ``dequeue()`` or a call of the program.
    """

    def __init__(self, port: Port) -> None:
        self._port = port
        self._presence = Presence(self._send, self._report, port.end_subscription)
        self._members: dict[tuple[str, Client], str] = {}
        self._tick_at = 0.0
        self._tick(0.0)

    def members(self, group: str) -> list[str]:
        """Return the members of a group."""
        return self._presence.members(group)

    def join(self, group: str, client: Client, member: str | None) -> None:
        """Add a client to a group.

        Args:
            group: its name.
            client: the client.
            member: the key; None: the user whom Apache has authenticated, else the
                connection's id.
        """
        if member is None:
            member = client.request.user or client.guid()
        before = self._members.get((group, client))
        if before == member:
            return
        self._members[group, client] = member
        self._presence.join(group, member)
        if before is not None:
            self._presence.leave(group, before, time.monotonic(), at_once=True)

    def leave(self, group: str, client: Client, *, at_once: bool) -> None:
        """Remove a client; without ``at_once`` after a delay."""
        member = self._members.pop((group, client), None)
        if member is not None:
            self._presence.leave(group, member, time.monotonic(), at_once=at_once)
            if not at_once:
                self._schedule(time.monotonic() + LEAVE_DELAY_S)

    def receive(self, group: str | None, payload: bytes) -> None:
        """Handle a message of another producer; ignore one that is not of this version."""
        try:
            document = json.loads(payload)
        except (ValueError, RecursionError):
            return
        if isinstance(document, dict):
            self._presence.receive(group, document, time.monotonic())

    def resynchronize(self) -> None:
        """Exchange all members again: the relay is back after a gap."""
        self._presence.resynchronize(time.monotonic())

    def close(self) -> None:
        """Tell the others that all members of this producer have left."""
        self._presence.close()

    def _tick(self, at: float) -> None:
        if at != self._tick_at:
            return  # an earlier call was made in place of this one
        now = time.monotonic()
        self._tick_at = 0.0
        self._schedule(self._presence.tick(now, self._port.is_relay_up))

    def _schedule(self, at: float) -> None:
        if not self._tick_at or at < self._tick_at:
            self._tick_at = at
            self._port.call_later(max(0.0, at - time.monotonic()), lambda: self._tick(at))

    def _send(self, group: str | None, document: dict[str, Any]) -> None:
        payload = json.dumps({"from": self._presence.id, **document}).encode()
        self._port.publish_presence(group, wire.encode_frame(PRESENCE, payload))

    def _report(self, group: str, member: str, has_joined: bool) -> None:
        self._port.add_event((JoinEvent if has_joined else LeaveEvent)(group, member))
