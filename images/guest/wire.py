"""Messages between the agent and its processes: one JSON object per packet, with file descriptors beside it.

Secrets travel this way and not as arguments or environment, which other processes can read.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]

# a packet must fit the kernel's default socket buffer (net.core.wmem_max, 208 KiB)
MAX_PACKET = 192 * 1024

NUMBER = "number"


class Closed(ConnectionError):
    """The process at the other end is gone."""


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends: packets keep their boundaries, and a closed end reads as empty."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(connection: socket.socket, message: Message, descriptors: Sequence[int] = ()) -> None:
    try:
        socket.send_fds(connection, [json.dumps(message).encode()], list(descriptors))
    except (BrokenPipeError, ConnectionResetError) as error:
        raise Closed("the process at the other end is gone") from error


def receive(connection: socket.socket) -> tuple[Message, list[int]]:
    try:
        packet, descriptors, _, _ = socket.recv_fds(connection, MAX_PACKET, 4)
    except ConnectionResetError as error:
        raise Closed("the process at the other end is gone") from error
    if not packet:
        raise Closed("the process at the other end is gone")
    for descriptor in descriptors:
        os.set_inheritable(descriptor, False)
    return json.loads(packet), descriptors


def answer(connection: socket.socket, question: Message, message: Message, descriptors: Sequence[int] = ()) -> None:
    send(connection, {**message, NUMBER: question[NUMBER]}, descriptors)


class Channel:
    """Questions from an event loop to one process, one at a time, each with one answer.

    They are numbered, so that an answer that nobody waits for any more is not taken for that of the next question. A channel is
    never closed while somebody may wait at it: the other end's death wakes whoever does, and it closes when nobody holds it.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._connection = connection
        self._turn = asyncio.Lock()
        self._asked = 0

    async def ask(self, message: Message, descriptors: Sequence[int] = ()) -> tuple[Message, list[int]]:
        async with self._turn:
            self._asked += 1
            send(self._connection, {**message, NUMBER: self._asked}, descriptors)
            while True:
                await until_readable(self._connection.fileno())
                reply, received = receive(self._connection)
                if reply[NUMBER] == self._asked:
                    return reply, received
                for descriptor in received:
                    os.close(descriptor)


async def until_ended(pidfd: int) -> None:
    """Wait for the end of a process, and close its descriptor."""
    try:
        await until_readable(pidfd)
    finally:
        os.close(pidfd)


async def until_readable(descriptor: int) -> None:
    """Wait for a descriptor: a socket with something to read, or a process (pidfd) that has ended."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(descriptor, _resolve, ready)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)


def _resolve(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
