"""What bench_relay.py runs, each as a process of its own: desktops that are stubs, the relay, and a bare copy of bytes.

desktop_servers.py desktops COUNT [folder of TLS]           as many at 127.0.1.1, 127.0.1.2 and so on, at a port that it prints
desktop_servers.py relay DESKTOPS_PORT [folder of TLS]      /rooms/N is the Nth desktop
desktop_servers.py copy DESKTOPS_PORT                       sends on what comes, in asyncio, to and from the first desktop
"""

from __future__ import annotations

import asyncio
import os
import ssl
import struct
import sys
from pathlib import Path

import uvloop

sys.path[:0] = [str(Path(__file__).parents[1])]

from hub.access.desktops import CONTROL, Right  # noqa: E402
from hub.desktop.relay import Connection, Limits, serve  # noqa: E402
from spawner.desktop_tls import connect as connect_tls  # noqa: E402

# a stub's desktop is told what to do by update requests, which a relay passes from anybody: what they ask for is in the x
FLOOD, ANIMATE, STILL = 1, 2, 3
UPDATE_REQUEST, FENCE = 3, 248
GREETING = bytes(24)  # in the place of a ServerInit
FLOOD_CHUNK = bytes(64 * 1024)
# noVNC on a plot of 30 fps: 0.9 MB/s in 30 to 50 messages a second
FRAME = bytes(20 * 1024)
FRAMES_PER_SECOND = 40


class Desktop(asyncio.Protocol):
    """Knows update requests (10 bytes) and fences (17 with 8 bytes in them, sent back as they are), and no other messages."""

    def __init__(self) -> None:
        self.left = 0
        self.animation: asyncio.TimerHandle | None = None
        self.buffer = b""
        self.full = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        transport.write(GREETING)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while self.buffer:
            length = 10 if self.buffer[0] == UPDATE_REQUEST else 17
            if len(self.buffer) < length:
                return
            message, self.buffer = self.buffer[:length], self.buffer[length:]
            if message[0] == FENCE:
                self.transport.write(message)
            else:
                self.asked(*struct.unpack(">HHHH", message[2:]))

    def asked(self, what: int, _y: int, megabytes: int, delay_ms: int) -> None:
        if what == FLOOD:
            self.left = megabytes << 20
            self.flood()
        elif what == ANIMATE:
            self.animation = asyncio.get_running_loop().call_later(delay_ms / 1000, self.frame)
        elif what == STILL and self.animation:
            self.animation.cancel()

    def flood(self) -> None:
        while self.left > 0 and not self.full:
            self.transport.write(FLOOD_CHUNK)
            self.left -= len(FLOOD_CHUNK)

    def frame(self) -> None:
        self.animation = asyncio.get_running_loop().call_later(1 / FRAMES_PER_SECOND, self.frame)
        if not self.full:
            self.transport.write(FRAME)

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        self.flood()

    def connection_lost(self, problem: Exception | None) -> None:
        self.left = 0
        if self.animation:
            self.animation.cancel()


def address(number: int) -> str:
    return f"127.0.1.{number}"


async def desktops(count: int, tls: ssl.SSLContext | None) -> None:
    loop = asyncio.get_running_loop()
    first = await loop.create_server(Desktop, address(1), 0, ssl=tls, backlog=1024)
    port = first.sockets[0].getsockname()[1]
    for number in range(2, count + 1):
        await loop.create_server(Desktop, address(number), port, ssl=tls, backlog=1024)
    ready(port)


class Room:
    """Lets everybody see, and do what a driver does, so that the filter has its full work."""

    def __init__(self, connection: Connection, port: int, tls: ssl.SSLContext | None) -> None:
        self.connection, self.port, self.tls = connection, port, tls

    async def admit(self) -> None:
        return None

    def on_open(self) -> None:
        host = address(int(self.connection.path.rpartition("/")[2]))
        loop = asyncio.get_running_loop()

        async def connect(protocol_factory):
            if self.tls:
                return await connect_tls(self.tls, host, self.port, protocol_factory(), hostname="desktop")
            return (await loop.create_connection(protocol_factory, host, self.port))[0]

        self.connection.begin(CONTROL & ~Right.CLIPBOARD_OUT, connect)

    def on_text(self, message: dict) -> None: ...
    def on_input(self, kind: str) -> None: ...
    def on_closed(self) -> None: ...

    def on_session_lost(self, session: int, problem: Exception | None) -> None:
        self.connection.end(4502)


async def relay(desktops_port: int, tls: ssl.SSLContext | None) -> None:
    limits = Limits(ping_seconds=600)
    server = await serve("127.0.0.1", 0, lambda connection: Room(connection, desktops_port, tls), limits=limits)
    ready(server.sockets[0].getsockname()[1])


class Half(asyncio.Protocol):
    """One side of a copy of bytes, with nothing but the back-pressure that any has."""

    def __init__(self, other: Half | None, desktops_port: int) -> None:
        self.other, self.port, self.early = other, desktops_port, b""

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        if self.other:
            self.other.other = self
            transport.write(self.other.early)
        else:
            loop = asyncio.get_running_loop()
            self.opening = loop.create_task(loop.create_connection(lambda: Half(self, self.port), address(1), self.port))

    def data_received(self, data: bytes) -> None:
        if self.other:
            self.other.transport.write(data)
        else:
            self.early += data

    def pause_writing(self) -> None:
        if self.other:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other:
            self.other.transport.resume_reading()

    def connection_lost(self, problem: Exception | None) -> None:
        if self.other:
            self.other.transport.close()


async def copy(desktops_port: int) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Half(None, desktops_port), "127.0.0.1", 0)
    ready(server.sockets[0].getsockname()[1])


def ready(port: int) -> None:
    print(port, flush=True)


def server_side(folder: str) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=f"{folder}/certificate.pem")
    context.load_cert_chain(f"{folder}/certificate.pem", f"{folder}/key.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_side(folder: str) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=f"{folder}/certificate.pem")
    context.load_cert_chain(f"{folder}/certificate.pem", f"{folder}/key.pem")
    return context


async def main(what: str, *arguments: str) -> None:
    # whoever started this holds the other end of stdin, and this ends with it
    ended = asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    if what == "desktops":
        await desktops(int(arguments[0]), server_side(arguments[1]) if arguments[1:] else None)
    elif what == "relay":
        await relay(int(arguments[0]), client_side(arguments[1]) if arguments[1:] else None)
    else:
        await copy(int(arguments[0]))
    await ended
    os._exit(0)


if __name__ == "__main__":
    runner = asyncio.run if sys.argv[1] == "copy" else uvloop.run
    runner(main(*sys.argv[1:]))
