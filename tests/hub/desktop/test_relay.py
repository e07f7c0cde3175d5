"""The relay between real sockets: a browser's WebSocket, and a stub in the place of a desktop."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from hub.access.desktops import CONTROL, Right
from hub.desktop.relay import LONGEST_HEADER, LONGEST_READ, Connection, Limits, Refusal, serve
from spawner.agent_tls import HubIdentity
from spawner.desktop_tls import RECORD
from spawner.desktop_tls import connect as connect_tls

pytestmark = pytest.mark.any_database

HELLO = b"RFB 003.008\n"
KEY = bytes((4, 1, 0, 0, 0, 0, 0, 0x61))
SERVER_INIT = b"a server's init and all the rest"


@pytest.fixture(scope="module")
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    """Relays run on uvloop, whose transports are not asyncio's in all they do."""
    return uvloop.EventLoopPolicy()


class Desktop:
    """Stands where Xvnc is: says something at once, keeps what it hears. With an identity, behind TLS as agents are."""

    def __init__(self, identity: HubIdentity | None = None) -> None:
        self.identity, self.served = identity, None
        if identity:
            identity.hub_ca_pem()
            self.served = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.served.load_cert_chain(identity._certificate)
        self.heard = bytearray()
        self.writers: list[asyncio.StreamWriter] = []
        self.says = SERVER_INIT
        self.reads = True

    async def __aenter__(self) -> Desktop:
        self.server = await asyncio.start_server(self._talk, "127.0.0.1", 0, ssl=self.served)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.server.close()
        for writer in self.writers:
            writer.transport.abort()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        writer.write(self.says)
        while self.reads:
            if not (data := await reader.read(65536)):
                writer.close()
                return
            self.heard += data

    async def open(self, protocol_factory: Callable[[], asyncio.BaseProtocol]) -> Any:
        if self.identity:
            return await connect_tls(self.identity.client_context(), "127.0.0.1", self.port, protocol_factory())
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
async def relay(rights: Right = CONTROL, identity: HubIdentity | None = None, **limits: Any) -> AsyncIterator[Relay]:
    guests: list[Guest] = []

    def enter(connection: Connection) -> Guest:
        guests.append(Guest(connection, desktop, rights))
        return guests[-1]

    # pytest's own limit does not reach what waits in uvloop
    async with asyncio.timeout(60), Desktop(identity) as desktop:
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


# --- sessions


async def test_what_a_desktop_says_early_comes_first_and_whole() -> None:
    async with relay() as at, at.browser() as browser:
        at.desktop.says = bytes(range(256)) * 4000
        assert at.guests[0].connection.begin(CONTROL, at.desktop.open) == 2
        await until(lambda: len(at.desktop.writers) == 2)
        await enter(browser, session=2)
        received = b""
        while len(received) < len(at.desktop.says):
            received += await browser.recv()
        assert received == at.desktop.says


async def test_a_desktop_that_cannot_be_opened_is_the_rooms_affair() -> None:
    async with relay() as at, at.browser() as browser:
        problem = ConnectionRefusedError("no desktop")

        async def refuse(_factory: Any) -> Any:
            raise problem

        guest = at.guests[0]
        number = guest.connection.begin(CONTROL, refuse)
        await until(lambda: guest.lost)
        assert guest.lost == [(number, problem)]
        guest.connection.begin(CONTROL, at.desktop.open)
        await enter(browser, session=number + 1)
        assert await browser.recv() == SERVER_INIT


async def test_a_desktop_that_goes_is_the_rooms_affair() -> None:
    async with relay() as at, at.browser() as browser:
        await enter(browser)
        assert await browser.recv() == SERVER_INIT
        at.desktop.writers[0].close()
        await until(lambda: at.guests[0].lost == [(1, None)])


async def test_a_session_that_is_over_before_its_desktop_came_up_leaves_nothing_behind() -> None:
    async with relay() as at, at.browser():
        guest, late = at.guests[0], asyncio.Event()

        async def open_late(factory: Any) -> Any:
            transport = await at.desktop.open(factory)
            await late.wait()
            return transport

        await until(lambda: at.desktop.writers)
        guest.connection.begin(CONTROL, open_late)
        await until(lambda: len(at.desktop.writers) == 2)
        guest.connection.end(4403)
        late.set()
        await until(lambda: all(writer.transport.is_closing() for writer in at.desktop.writers))


async def test_after_the_end_nothing_passes() -> None:
    async with relay() as at, at.browser() as browser:
        await enter(browser)
        at.guests[0].connection.end(4403)
        await browser.send(KEY)
        await asyncio.wait_for(at.guests[0].closed.wait(), 5)
        assert at.desktop.heard == b""


async def test_a_browsers_close_is_answered_and_ends_the_desktops_side() -> None:
    async with relay() as at, at.browser() as browser:
        await enter(browser)
        await browser.close(1000)
        await asyncio.wait_for(at.guests[0].closed.wait(), 5)
        assert at.guests[0].connection.close_code == 1000
        await until(lambda: at.desktop.writers[0].transport.is_closing())


# --- a browser that is not one


def frame(payload: bytes, opcode: int = 2, *, final: bool = True, masked: bool = True) -> bytes:
    size = len(payload)
    length = (
        bytes((size,)) if size < 126 else b"\x7e" + size.to_bytes(2, "big") if size < 65536 else b"\x7f" + size.to_bytes(8, "big")
    )
    mark = 0x80 if masked else 0
    return bytes((opcode | 0x80 * final, length[0] | mark)) + length[1:] + bytes(4 if masked else 0) + payload


class RawBrowser:
    """A socket that says what it likes, and reads when it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def say(self, *parts: bytes) -> None:
        self.writer.write(b"".join(parts))

    async def frame(self) -> tuple[int, bytes]:
        head = await self.reader.readexactly(2)
        size = head[1]
        if size > 125:
            size = int.from_bytes(await self.reader.readexactly(2 if size == 126 else 8), "big")
        return head[0] & 15, await self.reader.readexactly(size)

    async def close_code(self) -> int:
        """What the relay closes with, after whatever else it says."""
        while True:
            opcode, payload = await self.frame()
            if opcode == 8:
                self.say(frame(payload, 8))
                return int.from_bytes(payload[:2], "big")

    async def enter(self) -> None:
        await self.frame()
        self.say(frame(b'{"do": "rfb", "session": 1}', 1), frame(HELLO), frame(b"\x01"), frame(b"\x01"))
        assert [(await self.frame())[1] for _ in range(3)] == [HELLO, b"\x01\x01", bytes(4)]


REQUEST = (
    b"GET /rooms/1 HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: hutch.rfb, hutch.ticket.x\r\n"
)


@asynccontextmanager
async def raw(at: Relay) -> AsyncIterator[RawBrowser]:
    reader, writer = await asyncio.open_connection("127.0.0.1", at.port, limit=4096)
    try:
        yield RawBrowser(reader, writer)
    finally:
        writer.transport.abort()


@asynccontextmanager
async def raw_websocket(at: Relay) -> AsyncIterator[RawBrowser]:
    async with raw(at) as browser:
        browser.say(REQUEST, b"\r\n")
        answer = await browser.reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 101 ") and b"Sec-WebSocket-Protocol: hutch.rfb\r\n" in answer
        yield browser


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(b"x", masked=False), 1002),
        (frame(b"x", 3), 1002),
        (frame(b"x", 0), 1002),
        (frame(b"x" * 126, 9), 1002),
        (frame(b"{", 1, final=False) + frame(b"x", 2), 1002),
        (b"\x82\xff" + (1 << 62).to_bytes(8, "big") + bytes(4), 1009),
        (frame(bytes(70_000)), 1009),
        (frame(b"not json", 1), 4400),
        (frame(b"[1]", 1), 4400),
        (frame(b"[" * 4000, 1), 4400),
        (frame(b"\xff\xfe", 1), 4400),
        (frame(b'{"do": "' + b"x" * 5000 + b'"}', 1), 4400),
        (frame(b"{" + b" " * 3000, 1, final=False) + frame(b" " * 3000, 0), 4400),
        (frame(b'{"do": "ask"}', 1) * 40, 4400),
    ],
    ids=[
        "no mask",
        "unknown opcode",
        "continues nothing",
        "long ping",
        "text within text",
        "a length without end",
        "too long a frame",
        "no JSON",
        "no object",
        "deep JSON",
        "no UTF-8",
        "too long a text",
        "too long a text in fragments",
        "too many texts",
    ],
)
async def test_what_is_malformed_ends_it_with_its_code(sent: bytes, code: int) -> None:
    async with relay() as at, raw_websocket(at) as browser:
        browser.say(sent)
        assert await browser.close_code() == code
        await asyncio.wait_for(at.guests[0].closed.wait(), 5)
        assert at.guests[0].connection.close_code == code


@pytest.mark.parametrize(
    "sent", [b"\x63", b"\xff\x01" + bytes(10), KEY + b"\x01"], ids=["unknown", "QEMU's unknown", "after a key"]
)
async def test_what_is_not_rfb_ends_it_with_the_reason(sent: bytes) -> None:
    async with relay() as at, at.browser() as browser:
        await enter(browser)
        await browser.send(sent)
        said: list[Any] = []
        with pytest.raises(ConnectionClosed):
            while True:
                said.append(await browser.recv())
        assert browser.close_code == 4400
        assert json.loads(said[-1])["rule"] == "malformed" and "unknown" in json.loads(said[-1])["text"]


async def test_rfb_in_fragments_with_pings_between_is_understood() -> None:
    async with relay() as at, raw_websocket(at) as browser:
        await browser.enter()
        browser.say(frame(KEY[:3], 2, final=False), frame(b"?", 9), frame(KEY[3:6], 0, final=False), frame(KEY[6:], 0))
        await until(lambda: at.desktop.heard == KEY)
        while (await browser.frame()) != (10, b"?"):
            pass


async def test_a_long_clipboard_is_thrown_away_and_typing_goes_on() -> None:
    async with relay(clipboard_bytes=10_000) as at, at.browser() as browser:
        await enter(browser)
        await browser.send(bytes((6, 0, 0, 0)) + (500_000).to_bytes(4, "big"))
        for _ in range(50):
            await browser.send(bytes(10_000))
        await browser.send(KEY)
        await until(lambda: at.desktop.heard)
        assert at.desktop.heard == KEY
        assert at.guests[0].inputs == ["key"]


# --- requests


@pytest.mark.parametrize(
    ("request_bytes", "answer"),
    [
        (b"GET /rooms/1 HTTP/1.1\r\nHost: localhost\r\n\r\n", b"426"),
        (REQUEST.replace(b"13", b"7") + b"\r\n", b"400"),
        (REQUEST.replace(b"hutch.rfb", b"binary") + b"\r\n", b"400"),
        (REQUEST.replace(b"/rooms/1", b"/rooms/../rooms/1") + b"\r\n", b"404"),
        (b"POST" + REQUEST[3:] + b"\r\n", b"405"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b""),
        (REQUEST + b"Cookie: " + b"x" * 9000 + b"\r\n\r\n", b"431"),
        (REQUEST + b"Cookie: x\r\n" * 2000 + b"\r\n", b""),
    ],
    ids=["no upgrade", "old version", "no subprotocol", "path with dots", "post", "TLS", "long header", "many headers"],
)
async def test_a_request_that_is_not_for_a_desktop_is_refused(request_bytes: bytes, answer: bytes) -> None:
    async with relay() as at, raw(at) as browser:
        browser.say(request_bytes)
        try:
            received = await asyncio.wait_for(browser.reader.read(), 5)
        except ConnectionResetError:
            received = b""
        assert received.split(b" ")[1:2] == ([answer] if answer else [])
        assert at.desktop.writers == []


@pytest.mark.parametrize("start", [b"", REQUEST[:40], REQUEST], ids=["nothing", "a line", "all but the end"])
async def test_a_request_that_takes_too_long_is_cut_off(start: bytes) -> None:
    async with relay(request_seconds=0.2) as at, raw(at) as browser:
        browser.say(start)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(browser.reader.readexactly(1), 5)


async def test_frames_before_the_answer_to_the_request_do_no_harm() -> None:
    async with relay() as at, raw(at) as browser:
        browser.say(REQUEST, b"\r\n", frame(b"?", 9))
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await asyncio.wait_for(browser.reader.readexactly(1), 5)
        assert at.desktop.writers == []


# --- those that do not read, or do not stop


def sent_of(at: Relay, number: int = 0) -> int:
    return at.guests[number].connection.counts.bytes_out


async def flood(writer: asyncio.StreamWriter, megabytes: int) -> None:
    chunk = bytes(1 << 16)
    with suppress(ConnectionError):
        for _ in range(megabytes * 16):
            writer.write(chunk)
            await writer.drain()


@pytest.fixture(params=["plain", "TLS"])
def behind(request: pytest.FixtureRequest, tmp_path: Path) -> HubIdentity | None:
    return HubIdentity(tmp_path / "hub") if request.param == "TLS" else None


async def test_a_desktop_that_floods_a_browser_that_does_not_read_is_held_back_and_the_browser_let_go(
    behind: HubIdentity | None,
) -> None:
    async with relay(identity=behind, stalled_seconds=0.5, close_seconds=0.5) as at, raw_websocket(at) as browser:
        await browser.enter()
        guest = at.guests[0]
        await until(lambda: at.desktop.writers)
        flooding = asyncio.ensure_future(flood(at.desktop.writers[0], 200))
        await until(lambda: guest.connection.congested)
        held = guest.connection._transport.get_write_buffer_size()
        await asyncio.wait_for(guest.closed.wait(), 15)
        # what was read of TLS may end a record later, in a frame of its own
        assert held <= LONGEST_READ + LONGEST_HEADER + (2 * RECORD if behind else 0)
        assert sent_of(at) < 20 << 20
        assert guest.connection.close_code == 4408
        await asyncio.wait_for(flooding, 5)


async def test_a_slow_browser_slows_nobody_else(behind: HubIdentity | None) -> None:
    async with relay(identity=behind) as at, raw_websocket(at) as slow, at.browser() as quick:
        await slow.enter()
        await enter(quick)
        await until(lambda: len(at.desktop.writers) == 2)
        flooding = [asyncio.ensure_future(flood(writer, 60)) for writer in at.desktop.writers]
        received = 0
        while received < 60 << 20:
            received += len(await quick.recv())
        assert at.guests[0].connection.congested
        assert sent_of(at, 0) < 20 << 20
        # who was slow has missed nothing
        await browser_takes(slow, at.guests[0])
        for task in flooding:
            task.cancel()


async def browser_takes(browser: RawBrowser, guest: Guest) -> None:
    received = 0
    while received < len(SERVER_INIT) + (60 << 20):
        received += len((await browser.frame())[1])


async def test_all_bytes_arrive_in_their_order_however_slowly_they_are_taken(behind: HubIdentity | None) -> None:
    said = b"".join(number.to_bytes(4, "big") for number in range(2_000_000))
    async with relay(identity=behind) as at, raw_websocket(at) as browser:
        await browser.enter()
        await until(lambda: at.desktop.writers)
        at.desktop.writers[0].write(said)
        received = bytearray()
        while len(received) < len(SERVER_INIT) + len(said):
            opcode, data = await browser.frame()
            assert opcode == 2
            received += data
        assert received == SERVER_INIT + said


async def test_who_asks_for_answers_and_does_not_read_them_is_read_no_more() -> None:
    async with relay() as at, raw_websocket(at) as browser:
        await browser.enter()
        connection = at.guests[0].connection
        flooding = asyncio.ensure_future(flood(at.desktop.writers[0], 100))
        await until(lambda: connection.congested)
        pings = frame(b"x" * 125, 9)
        browser.say(pings * 50_000)
        await until(lambda: "pongs" in connection._reasons_not_to_read)
        assert connection._transport.get_write_buffer_size() < LONGEST_READ + 256 * 1024
        flooding.cancel()


async def test_texts_for_a_browser_that_does_not_read_are_not_kept_without_end() -> None:
    async with relay() as at, raw_websocket(at):
        await until(lambda: at.desktop.writers)
        connection = at.guests[0].connection
        for _ in range(20_000):
            connection.tell({"do": "say", "text": "x" * 4000})
        assert connection._transport.get_write_buffer_size() < 1 << 20
        await asyncio.wait_for(at.guests[0].closed.wait(), 5)


async def test_a_desktop_that_takes_no_input_is_given_up_and_the_browser_is_not(behind: HubIdentity | None) -> None:
    async with relay(identity=behind, stalled_seconds=0.5, frames_per_second=1 << 30) as at, at.browser() as browser:
        await enter(browser)
        at.desktop.reads = False
        await browser.send(KEY)
        guest = at.guests[0]

        async def type_on() -> None:
            while not guest.lost:
                await browser.send(KEY * 1000)

        typing = asyncio.ensure_future(type_on())
        await until(lambda: guest.lost, within=30)
        assert isinstance(guest.lost[0][1], TimeoutError)
        await typing
        guest.texts.clear()
        await browser.send('{"do": "ask"}')
        await until(lambda: guest.texts)


async def test_who_sends_too_many_frames_is_read_later() -> None:
    async with relay(frames_per_second=100) as at, raw_websocket(at) as browser:
        await browser.enter()
        connection = at.guests[0].connection
        browser.say(frame(KEY) * 5000)
        await until(lambda: "frames" in connection._reasons_not_to_read)
        assert connection.counts.keys < 5000
        await until(lambda: not connection._reasons_not_to_read)


async def test_who_has_gone_silent_is_let_go() -> None:
    async with relay(ping_seconds=0.05) as at, raw_websocket(at) as browser:
        assert await browser.close_code() == 4408
        assert at.guests[0].connection.close_code == 4408


async def test_who_answers_pings_may_be_still() -> None:
    async with relay(ping_seconds=0.05) as at, raw_websocket(at) as browser:
        for _ in range(10):
            while (await browser.frame())[0] != 9:
                pass
            browser.say(frame(b"", 10))
        assert not at.guests[0].closed.is_set()


async def test_a_storm_of_browsers_that_come_and_go_leaves_nothing_behind() -> None:
    async with relay() as at:
        before = asyncio.all_tasks()

        async def come_and_go(number: int) -> None:
            async with raw(at) as browser:
                browser.say(REQUEST)
                if number % 4:
                    browser.say(b"\r\n")
                if number % 4 > 1:
                    await browser.reader.readuntil(b"\r\n\r\n")
                if number % 4 == 3:
                    await browser.enter()
                    browser.say(frame(KEY))

        for _ in range(5):
            await asyncio.gather(*(come_and_go(number) for number in range(80)))
        await until(lambda: all(guest.closed.is_set() for guest in at.guests if guest.connection.session))
        await until(lambda: all(writer.transport.is_closing() for writer in at.desktop.writers))
        await until(lambda: asyncio.all_tasks() <= before)
        async with at.browser() as browser:
            await enter(browser)
            assert await browser.recv() == SERVER_INIT
