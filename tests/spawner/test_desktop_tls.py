"""TLS of desktops against servers of the standard library, on both event loops."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
import uvloop

from spawner.agent_tls import HubIdentity
from spawner.desktop_tls import DesktopTls, connect

PICTURES = b"".join(number.to_bytes(4, "big") for number in range(1_000_000))


@pytest.fixture(scope="module")
def identity(tmp_path_factory) -> HubIdentity:
    identity = HubIdentity(tmp_path_factory.mktemp("hub"))
    identity.hub_ca_pem()
    return identity


class Viewer(asyncio.BufferedProtocol):
    def __init__(self, room: int) -> None:
        self.room, self.got = bytearray(room), bytearray()
        self.ended = asyncio.get_running_loop().create_future()
        self.full = asyncio.Event()

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.room

    def buffer_updated(self, nbytes: int) -> None:
        self.got += self.room[:nbytes]

    def pause_writing(self) -> None:
        self.full.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.ended.set_result(error)


def with_server(
    identity: HubIdentity,
    loop: str,
    serve: Callable[[ssl.SSLSocket], object],
    view: Callable[[DesktopTls, Viewer], object],
    room: int = 1 << 20,
) -> object:
    """`serve` in a thread, `view` in this loop; what either raises is raised."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity._certificate)

    def accept(listener: socket.socket) -> None:
        with listener, listener.accept()[0] as connection, context.wrap_socket(connection, server_side=True) as secured:
            secured.settimeout(20)
            serve(secured)

    async def run() -> object:
        listener = socket.create_server(("127.0.0.1", 0))
        served = asyncio.get_running_loop().run_in_executor(threads, accept, listener)
        viewer = Viewer(room)
        async with asyncio.timeout(30):
            connection = await connect(identity.client_context(), *listener.getsockname(), viewer)
            result = await view(connection, viewer)
            connection.abort()
            await served
        return result

    with ThreadPoolExecutor() as threads:
        return (uvloop if loop == "uvloop" else asyncio).run(run())


both = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])


@both
@pytest.mark.parametrize("room", [1000, 100_000, 1 << 20])
def test_all_bytes_arrive_in_their_order_however_little_room_there_is(identity, loop, room):
    async def view(_connection, viewer):
        assert await viewer.ended is None
        return viewer.got

    got = with_server(identity, loop, lambda server: server.sendall(PICTURES), view, room)
    assert got == PICTURES


@both
def test_a_server_that_does_not_read_makes_the_writer_pause_and_misses_nothing(identity, loop):
    async def view(connection, viewer):
        connection.set_write_buffer_limits(64 * 1024)
        written = 0
        while not viewer.full.is_set():
            connection.write(PICTURES)
            written += len(PICTURES)
        connection.write(b"the end")
        assert await viewer.ended is None
        assert viewer.got == str(written).encode()

    def serve(server):
        heard = bytearray()
        while not heard.endswith(b"the end"):
            heard += server.recv(1 << 20)
        assert heard[: len(PICTURES)] == PICTURES
        server.sendall(str(len(heard) - len(b"the end")).encode())

    with_server(identity, loop, serve, view)


@both
@pytest.mark.parametrize(
    "garbage", [b"\x17\x03\x03\x00\x20" + bytes(32), b"HTTP/1.1 200 OK\r\n"], ids=["a forged record", "no record"]
)
def test_what_is_not_the_peers_ends_it_after_what_was(identity, loop, garbage):
    def serve(server):
        server.sendall(b"good")
        os.write(server.fileno(), garbage)
        with suppress(ConnectionResetError):
            assert server.recv(1) == b""

    async def view(_connection, viewer):
        return type(await viewer.ended), bytes(viewer.got)

    assert with_server(identity, loop, serve, view) == (ssl.SSLError, b"good")


@pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""], ids=["another protocol", "the end"])
async def test_a_server_without_tls_is_an_error(identity, said):
    async def serve(_reader, writer):
        writer.write(said)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        with pytest.raises(OSError):
            await connect(identity.client_context(), *server.sockets[0].getsockname(), Viewer(1))


async def test_who_gives_up_waiting_for_a_silent_server_closes_the_connection(identity):
    closed = asyncio.Event()

    async def serve(reader, writer):
        with suppress(ConnectionError):
            await reader.read()
        closed.set()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await connect(identity.client_context(), *server.sockets[0].getsockname(), Viewer(1))
        await asyncio.wait_for(closed.wait(), 10)
