"""Channels between workers: a message that one of them publishes reaches the clients of all.

Contract: ``Siblings(count)`` before the workers are forked; ``become(index)`` in each worker.
``relay`` and ``receive_nowait`` never block.

Each worker has a datagram socket that all others can send to.  A message of any size is written
to an unnamed file (memfd_create(2)) that all of them read.  The datagram carries that file and
one end of a socket for the answers, which reaches its end when the last worker has closed it or
has died.  A worker that replaces another one inherits its socket, and the messages in it.
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
# The name of the group is the only part of a datagram that can be long.
MAX_HEADER_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Relayed:
    """A message from a sibling; call ``answer`` once it is delivered."""

    group: str | None
    message: str | bytes
    _reply: socket.socket

    def answer(self, delivery: Delivery) -> None:
        """Report the delivery, and close the channel."""
        with self._reply:
            try:
                self._reply.send(_ANSWER.pack(*delivery))
            except OSError:
                pass  # the sibling that relayed it has exited


class Siblings:
    """The workers of one supervisor; ``receiver`` is the socket of this worker."""

    def __init__(self, count: int) -> None:
        self._pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(count)]
        for pair in self._pairs:
            for sock in pair:
                sock.setblocking(False)
        self._others: list[socket.socket] = []
        self.receiver = self._pairs[0][0]

    def become(self, index: int) -> None:
        """Become the worker in this place; close the sockets that only others need."""
        self.receiver = self._pairs[index][0]
        for number, (receiver, sender) in enumerate(self._pairs):
            if number == index:
                sender.close()
            else:
                receiver.close()
                self._others.append(sender)
        self._pairs = []

    def relay(self, group: str | None, message: str | bytes) -> socket.socket | None:
        """Send a message to all other workers.

        Returns:
            The socket for ``read_answers``, non-blocking; the caller closes it.  None if
            there are no other workers, or none of them has room for it.
        """
        data = message.encode() if isinstance(message, str) else message
        header = json.dumps({"group": group, "is_text": isinstance(message, str)}).encode()
        if len(header) > MAX_HEADER_BYTES:
            return None  # a group with such a long name has no members elsewhere
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
                    pass  # its queue is full, because its program hangs: skip it
        finally:
            os.close(file)
            reply.close()
        if has_reached:
            return answers
        answers.close()
        return None

    def receive_nowait(self) -> Iterator[Relayed]:
        """Yield the messages that other workers have relayed."""
        while True:
            try:
                header, fds, _, _ = socket.recv_fds(self.receiver, MAX_HEADER_BYTES, 2)
            except BlockingIOError:
                return
            file, reply = fds
            try:  # pread: the workers share the offset of the open file
                data = os.pread(file, os.fstat(file).st_size, 0)
            finally:
                os.close(file)
            document = json.loads(header)
            message = data.decode() if document["is_text"] else data
            yield Relayed(document["group"], message, socket.socket(fileno=reply))

    def close(self) -> None:
        """Close all sockets of this process."""
        self.receiver.close()
        for other in self._others:
            other.close()
        for pair in self._pairs:
            for sock in pair:
                sock.close()


def read_answers(answers: socket.socket) -> tuple[Delivery, bool]:
    """Return the sum of the answers since the last call, and whether all have arrived."""
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
