"""Histories in Redis: keys, scripts, and the messages that have an offset.

Contract: sans-I/O; for ``RedisEngine``.  docs/reference/wire.md, *The relay*, describes it for
programs in other languages.

How this works: a group with a history has a hash (epoch, offset of the last message, bounds) and a
stream (the last messages).  The script ``APPEND`` gives a message the next offset, adds it to the
stream and publishes it with its offset, in one step.  So all producers receive the messages in the
order of their offsets, and one that finds a number missing reads the stream with ``READ``.  All
keys have the slot of the channel, for a cluster.

An ``APPEND`` whose answer was lost is sent again.  Each process numbers its messages, and Redis
keeps the last number of each process for an hour, so that no message is stored twice.

If Redis has lost the hash (it was flushed or evicted, or a restart without persistence), or less
than a producer has seen (a failover), the script begins a new epoch.  After a failover, programs
that have seen nothing may have used the missing offsets again.  So each message has a stamp, the
time of Redis when it was stored, and the stamp of the message before it: a producer that finds
another stamp than its own before a message has seen another history, and ``READ`` begins a new
epoch.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any, Final, NamedTuple

from apachews.exceptions import WireError
from apachews.history import Bounds, Entry, Position, Reading, without_holes

from .engine import Question, Stored
from .envelope import Envelope

# The first byte of a message that has an offset.
MARK: Final = b"h"
# Redis keeps the history of a group without messages and readers for this time, or for its
# ``seconds`` if they are more.
KEEP_S: Final = 86400.0
# How long Redis remembers the last number of a process: longer than an outage.
SENDER_S: Final = 3600.0


def _sha(script: str) -> str:
    """Return the name that Redis has for a script."""
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


# Variables of both scripts: epoch, top, total, stamp; is_new: the epoch begins here.  Arguments:
# the three bounds, or "" and two zeros; what the caller has seen, epoch and offset; a new epoch;
# the hash of APPEND.  ``is_other`` is READ's: the caller has seen another history.
_COMMON: Final = f"""
local KEEP_MS, SENDER_MS = {round(KEEP_S * 1000)}, {round(SENDER_S * 1000)}
local meta, stream = KEYS[1], KEYS[2]
local count, ms, bytes = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local state = redis.call('HMGET', meta, 'epoch', 'top', 'total', 'count', 'ms', 'bytes', 'stamp')
local epoch, top, total, stamp = state[1], tonumber(state[2]), tonumber(state[3]), state[7] or ''
local is_new = not epoch or (epoch == ARGV[4] and (tonumber(ARGV[5]) > top or is_other(top, stamp)))
if count == '' and epoch then
  count, ms, bytes = state[4], tonumber(state[5]), tonumber(state[6])
end
if is_new and count ~= '' then
  redis.call('DEL', stream)
  epoch, top, total, stamp = ARGV[6], 0, 0, ''
end
local function save()
  redis.call('HSET', meta, 'epoch', epoch, 'top', top, 'total', total, 'stamp', stamp,
             'count', count, 'ms', ms, 'bytes', bytes)
  if ARGV[7] ~= '' then
    redis.call('HSET', meta, 'append', ARGV[7])
  end
  local keep = math.max(KEEP_MS, ms)
  redis.call('PEXPIRE', meta, keep)
  redis.call('PEXPIRE', stream, keep)
end
"""
# Returns the number of clients of Redis that have received the message; for a message that it has
# stored also epoch and offset.
APPEND: Final = (
    "local function is_other() return false end"
    + _COMMON
    + """
local command, channel, envelope, number, previous = ARGV[8], ARGV[9], ARGV[10], ARGV[11], ARGV[12]
if count == '' then  -- the group has no history
  return redis.call(command, channel, envelope)
end
if number ~= '' then
  local last = redis.call('GET', KEYS[3])
  if last and tonumber(last) >= tonumber(number) and not is_new then
    return 0
  end
  if previous ~= '' and (not last or tonumber(last) < tonumber(previous)) then
    return redis.error_reply('APACHEWS the message before this one was rejected')
  end
end
top, total = top + 1, total + #envelope
local before, id = stamp, string.format('%.0f-0', top)
stamp = string.format('%.0f', now)
redis.call('XADD', stream, 'MAXLEN', count, id, 'd', envelope, 't', stamp, 'b', total, 'p', before)
save()
if number ~= '' then  -- after XADD, which may fail: Redis takes nothing back
  redis.call('SET', KEYS[3], number, 'PX', SENDER_MS)
end
for _ = 1, 8 do  -- each message drops so many old ones at most
  local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  if not first or first[1] == id then break end
  local fields = first[2]
  local size = total - tonumber(fields[6]) + #fields[2]
  if tonumber(fields[4]) > now - ms and size <= bytes then break end
  redis.call('XDEL', stream, first[1])
end
local place = epoch .. ':' .. string.format('%.0f', top) .. ':' .. stamp .. ':' .. before
return {redis.call(command, channel, 'h' .. place .. ' ' .. envelope), epoch, top}
"""
)
# A program in another language finds it in the hash of the group, and need not have the script.
APPEND_SHA: Final = _sha(APPEND)
# Returns epoch, top, the time of Redis, and the messages after the position in the arguments.  The
# last argument is the stamp of the message at the position, or "".
READ: Final = (
    """
local function is_other(top, stamp)
  local seen = tonumber(ARGV[5])
  if ARGV[8] == '' or seen > top then return false end
  if seen == top then return stamp ~= ARGV[8] end
  local id = string.format('%.0f-0', seen + 1)
  local entry = redis.call('XRANGE', KEYS[2], id, id)[1]
  return entry and entry[2][8] ~= ARGV[8]
end
"""
    + _COMMON
    + """
save()
local from = '-'
if epoch == ARGV[4] then
  from = string.format('%.0f-0', ARGV[5] + 1)
end
return {epoch, top, now, redis.call('XRANGE', stream, from, '+')}
"""
)
READ_SHA: Final = _sha(READ)
SCRIPTS: Final = (APPEND, READ)


def keys_of(channel: bytes, sender: str) -> list[bytes]:
    """Return the keys of a group: hash, stream, and the last number of a process.

    All have the slot of the channel, which has no braces (``require_name``).
    """
    return [b"{%s}:%s" % (channel, kind) for kind in (b"meta", b"stream", sender.encode())]


def require_name(group: str) -> None:
    """Check the name of a group.

    Raises:
        ValueError: it has a brace, which Redis takes for the key's slot.
    """
    if "{" in group or "}" in group:
        raise ValueError(f"group({group!r:.80}, history=...): braces are not allowed in the name")


def append_arguments(
    stored: Stored, previous: int, command: str, channel: bytes, envelope: bytes
) -> tuple[Any, ...]:
    """Return the arguments of ``APPEND``.

    Args:
        stored: how the history stores the message.
        previous: number of the message that Redis must have stored before this one; 0: none.
        command: PUBLISH or SPUBLISH.
        channel, envelope: its arguments.
    """
    rest = (command, channel, envelope, stored.number or "", previous or "")
    if stored.bounds is None:
        return ("", 0, 0, "", 0, "", "", *rest)
    return (*_bounds(stored.bounds), *stored.seen, _new_epoch(), APPEND_SHA, *rest)


def read_arguments(question: Question) -> tuple[Any, ...]:
    """Return the arguments of ``READ``."""
    seen = question.after
    return (*_bounds(question.bounds), *seen, _new_epoch(), APPEND_SHA, question.stamp)


def reading_of(answer: Any, now: float) -> Reading:
    """Return what ``READ`` has answered.

    Args:
        answer: of redis-py.
        now: ``time.monotonic()``.
    """
    epoch, top, redis_now_ms, items = answer
    entries: list[Entry] = []
    for identifier, fields in items:
        offset = int(bytes(identifier).partition(b"-")[0])
        # An age, because the clocks of the machines differ.
        age_s = (redis_now_ms - int(fields[3])) / 1000
        try:
            data = Envelope.decode(fields[1]).message()
            entries.append(Entry(offset, now - age_s, data, fields[3].decode(), fields[7].decode()))
        except WireError:
            pass  # of another version: a hole
    return Reading(epoch.decode(), top, without_holes(entries, top))


class Place(NamedTuple):
    """Where a message is in a history.

    Attributes:
        position: its own.
        stamp, before: its stamp, and that of the message before it; "" before the first one.
    """

    position: Position
    stamp: str
    before: str


def split(data: bytes) -> tuple[Place, bytes]:
    """Return the place of a message with ``MARK``, and its envelope.

    Raises:
        WireError: it is not one.
    """
    place, separator, envelope = data[1:].partition(b" ")
    parts = place.split(b":")
    if (
        not separator
        or len(parts) != 4
        or not parts[0].isalnum()
        or not parts[1].isdigit()
        or not place.isascii()
    ):
        raise WireError(
            f"invalid relay message: {data[:40]!r}, expected b'hEPOCH:OFFSET:STAMP:BEFORE '"
        )
    epoch, offset, stamp, before = place.decode("ascii").split(":")
    return Place(Position(epoch, int(offset)), stamp, before), envelope


def _bounds(bounds: Bounds) -> tuple[int, int, int]:
    return bounds.length, round(bounds.seconds * 1000), bounds.size_bytes


def _new_epoch() -> str:
    return os.urandom(6).hex()
