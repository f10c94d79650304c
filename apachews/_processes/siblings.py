"""Channels between workers: a message for all clients reaches those of every worker.

Contract: ``Siblings(count)`` before the workers are forked; ``become(index)`` in each worker.
``relay``, ``send_nowait`` and ``receive_nowait`` never block.

Each worker has a socket of packets (SOCK_SEQPACKET: bounded by bytes, and not by ten packets as
datagrams are) that all others can send to.  A packet is a line of JSON and a short message, or
the line and an unnamed file (memfd_create(2)) with a longer one, which all of them read.  With
``relay`` it carries one end of a socket for the answers as well, which reaches its end when the
last worker has closed it or has died.  A worker that replaces another one inherits its socket,
and the messages in it.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from apachews import wire
from apachews.delivery import Delivery

from .board import Board

_ANSWER = struct.Struct("=QQ")
# The longest packet; the name of a group is the only long part of a line.
MAX_PACKET_BYTES: Final = 65536
# Longer messages are written to a file once, and not copied into the queue of each worker.
MAX_INLINE_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Relayed:
    """A message from a sibling; call ``answer`` once it is delivered."""

    group: str | None
    frame: bytes
    _reply: socket.socket | None

    @property
    def is_published(self) -> bool:
        """True for the message of a publisher, which waits for the answer."""
        return self._reply is not None

    def answer(self, delivery: Delivery) -> None:
        """Report the delivery to a sibling that waits for it, and close the channel."""
        if self._reply is None:
            return
        with self._reply:
            try:
                self._reply.send(_ANSWER.pack(delivery.reached, delivery.skipped))
            except OSError:
                pass  # the sibling that relayed it has exited


class Packet:
    """A message on its way to other workers; ``close`` it when all of them have it.

    Args:
        group: that receives it; None: all clients.
        content: the message; UTF-8 if it is text.
        opcode: of the message's frame.

    Attributes:
        data: the packet.
        file: the descriptor of the file with a long message, or None.
    """

    __slots__ = ("data", "file")

    def __init__(self, group: str | None, content: bytes, opcode: int) -> None:
        is_file = len(content) > MAX_INLINE_BYTES
        document = {"group": group, "opcode": opcode, "is_file": is_file}
        line = json.dumps(document).encode() + b"\n"
        self.file: int | None = None
        self.data = line if is_file else line + content
        if is_file:
            self.file = os.memfd_create("apachews")
            with open(self.file, "wb", closefd=False) as writer:
                writer.write(content)

    @property
    def is_sendable(self) -> bool:
        """False if the name of the group is too long for a packet."""
        return len(self.data) <= MAX_PACKET_BYTES

    def close(self) -> None:
        """Close the file; closing again does nothing."""
        if self.file is not None:
            os.close(self.file)
            self.file = None


class Siblings:
    """The workers of one supervisor.

    Attributes:
        receiver: the socket of this worker.
        place: of this worker among all.
        board: the counters of the relays of all.
    """

    def __init__(self, count: int) -> None:
        self._pairs = [
            socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(count)
        ]
        for pair in self._pairs:
            for sock in pair:
                sock.setblocking(False)
        self._others: list[socket.socket] = []
        self.receiver = self._pairs[0][0]
        self.place = 0
        self.board = Board(count)

    def become(self, index: int) -> None:
        """Become the worker in this place; close the sockets that only others need."""
        self.receiver = self._pairs[index][0]
        self.place = index
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
        content = message.encode() if isinstance(message, str) else message
        packet = Packet(group, content, wire.TEXT if isinstance(message, str) else wire.BINARY)
        if not packet.is_sendable:
            packet.close()
            return None
        answers, reply = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        answers.setblocking(False)
        try:
            # Of a sibling that hangs the queue is full: it is skipped.
            has_reached = sum([self._send(other, packet, reply) for other in self._others])
        finally:
            packet.close()
            reply.close()
        if has_reached:
            return answers
        answers.close()
        return None

    @property
    def others(self) -> range:
        """The numbers of the other workers, for ``send_nowait``."""
        return range(len(self._others))

    def send_nowait(self, other: int, packet: Packet) -> bool:
        """Send a packet to one other worker; return False if its queue is full."""
        return self._send(self._others[other], packet, None)

    def _send(self, other: socket.socket, packet: Packet, reply: socket.socket | None) -> bool:
        fds = [] if packet.file is None else [packet.file]
        if reply is not None:
            fds.append(reply.fileno())
        try:
            if fds:
                socket.send_fds(other, [packet.data], fds)
            else:
                other.send(packet.data)
        except OSError:
            return False
        return True

    def receive_nowait(self) -> Iterator[Relayed]:
        """Yield the messages that other workers have relayed."""
        while True:
            try:
                data, fds, _, _ = socket.recv_fds(self.receiver, MAX_PACKET_BYTES, 2)
            except BlockingIOError:
                return
            if not data:
                return  # all other processes have exited
            line, _, content = data.partition(b"\n")
            document = json.loads(line)
            if document["is_file"]:
                file = fds.pop(0)
                try:  # pread: the workers share the offset of the open file
                    content = os.pread(file, os.fstat(file).st_size, 0)
                finally:
                    os.close(file)
            reply = socket.socket(fileno=fds[0]) if fds else None
            frame = wire.encode_frame(document["opcode"], content)
            yield Relayed(document["group"], frame, reply)

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
