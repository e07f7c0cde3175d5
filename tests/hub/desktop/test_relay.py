"""The relay between real sockets: a browser's WebSocket, and a stub in the place of a desktop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvloop
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from hub.access.desktops import CONTROL, Right
from hub.desktop.relay import Connection, Limits, Refusal, serve

HELLO = b"RFB 003.008\n"
KEY = bytes((4, 1, 0, 0, 0, 0, 0, 0x61))
SERVER_INIT = b"a server's init and all the rest"


@pytest.fixture(scope="module", params=[uvloop.EventLoopPolicy, asyncio.DefaultEventLoopPolicy], ids=["uvloop", "asyncio"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    """Relays run on uvloop, whose transports are not asyncio's in all they do."""
    return request.param()


class Desktop:
    """Stands where Xvnc is: says something at once, keeps what it hears."""

    def __init__(self) -> None:
        self.heard = bytearray()
        self.writers: list[asyncio.StreamWriter] = []
        self.says = SERVER_INIT
        self.reads = True

    async def __aenter__(self) -> Desktop:
        self.server = await asyncio.start_server(self._talk, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.server.close()
        for writer in self.writers:
            writer.transport.abort()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        writer.write(self.says)
        while self.reads and (data := await reader.read(65536)):
            self.heard += data

    async def open(self, protocol_factory: Callable[[], asyncio.BaseProtocol]) -> Any:
        transport, _ = await asyncio.get_running_loop().create_connection(protocol_factory, "127.0.0.1", self.port)
        return transport


class Guest:
    """A room of one."""

    def __init__(self, connection: Connection, desktop: Desktop, rights: Right) -> None:
        self.connection, self.desktop, self.rights = connection, desktop, rights
        self.texts: list[dict[str, Any]] = []
        self.inputs: list[str] = []
        self.lost: list[tuple[int, Exception | None]] = []
        self.closed = asyncio.Event()

    async def admit(self) -> Refusal | None:
        return None if self.connection.path == "/rooms/1" else Refusal(404, "no such room")

    def on_open(self) -> None:
        self.connection.begin(self.rights, self.desktop.open)

    def on_text(self, message: dict[str, Any]) -> None:
        self.texts.append(message)

    def on_input(self, kind: str) -> None:
        self.inputs.append(kind)

    def on_session_lost(self, session: int, problem: Exception | None) -> None:
        self.lost.append((session, problem))

    def on_closed(self) -> None:
        self.closed.set()


class Relay:
    def __init__(self, desktop: Desktop, server: asyncio.Server, guests: list[Guest]) -> None:
        self.desktop, self.guests = desktop, guests
        self.port = server.sockets[0].getsockname()[1]

    def browser(self, **options: Any) -> connect:
        given = {"subprotocols": ["hutch.rfb"], "compression": None, "max_size": None, "proxy": None} | options
        return connect(f"ws://127.0.0.1:{self.port}/rooms/1", **given)


@asynccontextmanager
async def relay(rights: Right = CONTROL, **limits: Any) -> AsyncIterator[Relay]:
    guests: list[Guest] = []

    def enter(connection: Connection) -> Guest:
        guests.append(Guest(connection, desktop, rights))
        return guests[-1]

    async with Desktop() as desktop:
        server = await serve("127.0.0.1", 0, enter, limits=Limits(**limits))
        try:
            yield Relay(desktop, server, guests)
        finally:
            server.close()


async def until(condition: Callable[[], Any], within: float = 10) -> Any:
    async with asyncio.timeout(within):
        while not (answer := condition()):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        return answer


async def enter(browser: ClientConnection, session: int = 1) -> None:
    """Agrees to a session, and goes through the handshake as a browser does."""
    while True:
        said = await browser.recv()
        if isinstance(said, str) and json.loads(said).get("session") == session:
            break
    await browser.send(json.dumps({"do": "rfb", "session": session}))
    assert await browser.recv() == HELLO
    await browser.send(HELLO)
    assert await browser.recv() == b"\x01\x01"
    await browser.send(b"\x01")
    assert await browser.recv() == bytes(4)
    await browser.send(b"\x01")


async def test_a_controller_sees_the_desktop_and_types() -> None:
    async with relay() as at, at.browser() as browser:
        assert browser.subprotocol == "hutch.rfb"
        await enter(browser)
        assert await browser.recv() == SERVER_INIT
        await browser.send(KEY)
        await until(lambda: at.desktop.heard == KEY)
        guest = at.guests[0]
        assert (guest.inputs, guest.connection.counts.keys) == (["key"], 1)


async def test_a_viewer_sees_the_desktop_and_types_in_vain() -> None:
    async with relay(Right.VIEW) as at, at.browser() as browser:
        await enter(browser)
        assert await browser.recv() == SERVER_INIT
        request = bytes((3, 1)) + bytes(8)
        await browser.send(KEY + request)
        await until(lambda: at.desktop.heard)
        assert at.desktop.heard == request


async def test_another_session_begins_on_the_same_websocket() -> None:
    async with relay(Right.VIEW) as at, at.browser() as browser:
        await enter(browser)
        assert await browser.recv() == SERVER_INIT
        guest = at.guests[0]
        assert guest.connection.begin(CONTROL, at.desktop.open) == 2
        await browser.send(KEY)  # meant for the first session, so it is nobody's
        await enter(browser, session=2)
        assert await browser.recv() == SERVER_INIT
        await browser.send(KEY)
        await until(lambda: at.desktop.heard)
        assert at.desktop.heard == KEY


async def test_who_is_refused_hears_why() -> None:
    async with relay() as at:
        with pytest.raises(Exception, match="404"):
            async with connect(f"ws://127.0.0.1:{at.port}/rooms/2", subprotocols=["hutch.rfb"], proxy=None):
                pass


async def test_an_end_comes_with_its_reason_and_its_code() -> None:
    async with relay() as at, at.browser() as browser:
        await enter(browser)
        at.guests[0].connection.end(4403, {"do": "end", "rule": "removed", "text": "You were removed."})
        said = []
        with pytest.raises(ConnectionClosed):
            while True:
                said.append(await browser.recv())
        assert json.loads(said[-1])["rule"] == "removed"
        assert browser.close_code == 4403
        await asyncio.wait_for(at.guests[0].closed.wait(), 5)
        assert at.guests[0].connection.close_code == 4403


async def test_texts_go_to_the_room() -> None:
    async with relay() as at, at.browser() as browser:
        await browser.send(json.dumps({"do": "ask"}))
        await until(lambda: at.guests[0].texts == [{"do": "ask"}])
