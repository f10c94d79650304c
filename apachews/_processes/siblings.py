"""Workers that hear what is published through another of them.

Contract: ``Siblings(count)`` before the workers are forked; ``become(index)`` in each.
``relay`` and ``receive_nowait`` never block.

How this works: each worker has a datagram socket that all others can send to.  A message
of any size goes in a file without a name (memfd_create(2)) that all of them read; with it
goes one end of a socket for their answers, which ends when the last of them has closed
it, or has died.  A worker that is replaced leaves its socket, and what waits there, to
the next one in its place.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from apachews.client import Delivery

_ANSWER = struct.Struct("=QQ")
# The name of a group is the only thing in a datagram that can be long.
MAX_HEADER_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Relayed:
    """A message from a sibling; ``answer`` when it was delivered."""

    group: str | None
    message: str | bytes
    _reply: socket.socket

    def answer(self, delivery: Delivery) -> None:
        """Say whom it reached, and close."""
        with self._reply:
            try:
                self._reply.send(_ANSWER.pack(*delivery))
            except OSError:
                pass  # who asked has gone


class Siblings:
    """The workers of one supervisor; ``receiver`` is this one's."""

    def __init__(self, count: int) -> None:
        self._pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(count)]
        for pair in self._pairs:
            for sock in pair:
                sock.setblocking(False)
        self._others: list[socket.socket] = []
        self.receiver = self._pairs[0][0]

    def become(self, index: int) -> None:
        """Be the worker in this place; what only others need is closed."""
        self.receiver = self._pairs[index][0]
        for number, (receiver, sender) in enumerate(self._pairs):
            if number == index:
                sender.close()
            else:
                receiver.close()
                self._others.append(sender)
        self._pairs = []

    def relay(self, group: str | None, message: str | bytes) -> socket.socket | None:
        """Pass a message on to all others.

        Returns:
            What ``read_answers`` reads from, non-blocking; the caller closes it.  None
            where there is nobody, or nobody takes it.
        """
        data = message.encode() if isinstance(message, str) else message
        header = json.dumps({"group": group, "is_text": isinstance(message, str)}).encode()
        if len(header) > MAX_HEADER_BYTES:
            return None  # nobody can have joined a group of such a name
        answers, reply = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        answers.setblocking(False)
        has_reached = False
        file = os.memfd_create("apachews")
        try:
            with open(file, "wb", closefd=False) as writer:
                writer.write(data)
            for other in self._others:
                try:
                    socket.send_fds(other, [header], [file, reply.fileno()])
                    has_reached = True
                except OSError:
                    pass  # it hangs: its queue is full
        finally:
            os.close(file)
            reply.close()
        if has_reached:
            return answers
        answers.close()
        return None

    def receive_nowait(self) -> Iterator[Relayed]:
        """Give the messages that others have passed on."""
        while True:
            try:
                header, fds, _, _ = socket.recv_fds(self.receiver, MAX_HEADER_BYTES, 2)
            except BlockingIOError:
                return
            file, reply = fds
            try:  # at a place of its own: the others read the same open file
                data = os.pread(file, os.fstat(file).st_size, 0)
            finally:
                os.close(file)
            document = json.loads(header)
            message = data.decode() if document["is_text"] else data
            yield Relayed(document["group"], message, socket.socket(fileno=reply))

    def close(self) -> None:
        """Close everything of this process's."""
        self.receiver.close()
        for other in self._others:
            other.close()
        for pair in self._pairs:
            for sock in pair:
                sock.close()


def read_answers(answers: socket.socket) -> tuple[Delivery, bool]:
    """Return what has been answered since the last call, added up, and whether that is all."""
    reached = skipped = 0
    while True:
        try:
            data = answers.recv(_ANSWER.size)
        except BlockingIOError:
            return Delivery(reached, skipped), False
        if not data:
            return Delivery(reached, skipped), True
        more = _ANSWER.unpack(data)
        reached, skipped = reached + more[0], skipped + more[1]
