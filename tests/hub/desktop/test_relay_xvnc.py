"""Two locks between a viewer and a desktop, each tried with the other taken away: the relay's filter, and Xvnc's own.

The relay and Xvnc are real; what a connection has done is asked of the X server.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import pytest
import uvloop
from running_hub import PATIENCE_SECONDS
from websockets.asyncio.client import connect
from Xlib import X, Xatom
from Xlib.display import Display
from Xlib.protocol.event import SelectionNotify

from hub.access.desktops import CONTROL, Right
from hub.desktop.relay import Connection, serve
from images.guest import rfb

X_SERVER = "Xtigervnc"
pytestmark = [
    pytest.mark.any_database,
    pytest.mark.skipif(not shutil.which(X_SERVER), reason=f"{X_SERVER} is missing: tools/setup installs it, as root"),
]
FULL, VIEW_ONLY = b"fullfull", b"viewonly"
SECRET = b"a secret on the desktop"
NOTHING: set[str] = set()
EVERYTHING = {"key", "key by its place", "pointer", "clipboard", "size"}
EXTENDED_CLIPBOARD = 0xC0A1E5CE


@pytest.fixture(scope="module")
def event_loop_policy() -> asyncio.AbstractEventLoopPolicy:
    return uvloop.EventLoopPolicy()


@pytest.fixture(scope="module")
def xvnc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The socket of an Xvnc, and the name of its display."""
    folder = tmp_path_factory.mktemp("xvnc")
    (folder / "passwords").write_bytes(rfb.password_file(FULL, VIEW_ONLY))
    options = "-rfbunixpath rfb -rfbport -1 -nolisten tcp -SecurityTypes VncAuth -PasswordFile passwords -AlwaysShared -noreset"
    reading, writing = os.pipe()
    command = [X_SERVER, *options.split(), "-geometry", "640x480", "-displayfd", str(writing)]
    with Popen(command, cwd=folder, pass_fds=[writing], stderr=(folder / "log").open("wb"), stdout=PIPE) as server:
        os.close(writing)
        with os.fdopen(reading) as says:
            display = says.readline().strip()
        yield folder / "rfb", f":{display}"
        server.terminate()


class Screen:
    """An X client that sees what is typed, where the pointer is, who has the clipboard, and how large the screen is."""

    def __init__(self, display: str) -> None:
        self.display = Display(display)
        self.root = self.display.screen().root
        self.window = self.root.create_window(0, 0, 640, 480, 0, X.CopyFromParent, event_mask=X.KeyPressMask, override_redirect=1)
        self.window.map()
        self.window.set_input_focus(X.RevertToParent, X.CurrentTime)
        self.clipboard = self.display.intern_atom("CLIPBOARD")
        self.size = self._size()
        self.root.warp_pointer(1, 1)
        self.window.set_selection_owner(self.clipboard, X.CurrentTime)
        self.display.sync()

    def _size(self) -> tuple[int, int]:
        geometry = self.root.get_geometry()
        return geometry.width, geometry.height

    def effects(self) -> set[str]:
        """What has happened here since the beginning."""
        self.display.sync()
        found = set()
        while self.display.pending_events():
            event = self.display.next_event()
            if event.type == X.KeyPress:
                typed = chr(self.display.keycode_to_keysym(event.detail, 0))
                found.add({"a": "key", "b": "key by its place"}[typed])
        pointer = self.root.query_pointer()
        if (pointer.root_x, pointer.root_y) != (1, 1):
            found.add("pointer")
        owner = self.display.get_selection_owner(self.clipboard)
        if owner != self.window:
            found.add("clipboard")
        if self._size() != self.size:
            found.add("size")
        return found

    def copy(self) -> None:
        """Something is copied here: whoever asks gets it, until nobody has asked for a while."""
        self.window.set_selection_owner(self.clipboard, X.CurrentTime)
        self.display.sync()

    def give_what_was_copied(self) -> None:
        while self.display.pending_events():
            event = self.display.next_event()
            if event.type == X.SelectionRequest:
                self._answer(event)

    def _answer(self, event: Any) -> None:
        utf8, targets = self.display.intern_atom("UTF8_STRING"), self.display.intern_atom("TARGETS")
        given = event.property
        if event.target == targets:
            event.requestor.change_property(given, Xatom.ATOM, 32, [targets, utf8, Xatom.STRING])
        elif event.target in (utf8, Xatom.STRING):
            event.requestor.change_property(given, event.target, 8, SECRET)
        else:
            given = X.NONE
        whose = {"requestor": event.requestor, "selection": event.selection, "target": event.target}
        event.requestor.send_event(SelectionNotify(time=event.time, property=given, **whose))
        self.display.flush()

    def close(self) -> None:
        self.window.destroy()
        self.display.close()


@pytest.fixture
def screen(xvnc: tuple[Path, str]) -> Iterator[Screen]:
    screen = Screen(xvnc[1])
    yield screen
    screen.close()


class Guest:
    def __init__(self, connection: Connection, socket: Path, rights: Right, password: bytes) -> None:
        self.connection, self.socket, self.rights, self.password = connection, socket, rights, password

    async def admit(self) -> None:
        return None

    def on_open(self) -> None:
        self.connection.begin(self.rights, self.open)

    async def open(self, protocol_factory: Any) -> asyncio.Transport:
        """As an agent does it: it logs in itself, and hands over what follows."""
        reader, protocol = asyncio.StreamReader(), protocol_factory()
        connect_to = asyncio.get_running_loop().create_unix_connection
        transport, _ = await connect_to(lambda: asyncio.StreamReaderProtocol(reader), str(self.socket))
        await rfb.log_in(reader, transport, self.password)
        transport.pause_reading()
        transport.set_protocol(protocol)
        transport.resume_reading()
        protocol.connection_made(transport)
        transport.write(b"\x01")  # ClientInit: shared
        return transport

    def on_text(self, message: dict[str, Any]) -> None: ...
    def on_input(self, kind: str) -> None: ...
    def on_session_lost(self, session: int, problem: Exception | None) -> None: ...
    def on_closed(self) -> None: ...


class Viewer:
    """A small RFB client behind the relay: says what it likes, and sees all that comes."""

    def __init__(self, websocket: Any) -> None:
        self.websocket = websocket
        self.seen = bytearray()

    async def begin(self) -> None:
        await self.websocket.recv()
        await self.websocket.send('{"do": "rfb", "session": 1}')
        for answer in (b"RFB 003.008\n", b"\x01", b"\x01"):
            await self.websocket.recv()
            await self.websocket.send(answer)
        await self.until(b"\x00\x00\x00")

    async def until(self, wanted: bytes) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while wanted not in self.seen:
                self.seen += await self.websocket.recv()

    async def until_heard(self) -> None:
        """All that was said has been acted on: a fence behind it has come back."""
        mark = os.urandom(8)
        await self.websocket.send(struct.pack(">BxH2i", 2, 2, 0, -312) + struct.pack(">B3xIB", 248, 1 << 31 | 1, 8) + mark)
        await self.until(mark)


@asynccontextmanager
async def viewer(socket: Path, rights: Right, password: bytes) -> AsyncIterator[Viewer]:
    server = await serve("127.0.0.1", 0, lambda connection: Guest(connection, socket, rights, password))
    address = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    async with asyncio.timeout(60), connect(address, subprotocols=["hutch.rfb"], compression=None, proxy=None) as websocket:
        viewer = Viewer(websocket)
        await viewer.begin()
        yield viewer
    server.close()


def everything() -> bytes:
    """One of each thing that a viewer may not do."""
    a, b = struct.pack(">BB2xI", 4, 1, ord("a")), struct.pack(">BBHII", 255, 0, 1, ord("b"), 0x30)
    released = struct.pack(">BB2xI", 4, 0, ord("a")) + struct.pack(">BBHII", 255, 0, 0, ord("b"), 0x30)
    pointer = struct.pack(">BBHH", 5, 0, 300, 200)
    text = struct.pack(">B3xi", 6, 5) + b"paste"
    size = struct.pack(">BxHHBxIHHHHI", 251, 800, 600, 1, 0, 0, 0, 800, 600, 0)
    return struct.pack(">BxH2i", 2, 2, 0, -308) + a + b + released + pointer + text + size


@pytest.mark.parametrize(
    ("rights", "password", "expected"),
    [
        pytest.param(CONTROL, FULL, EVERYTHING, id="who controls"),
        pytest.param(Right.VIEW, VIEW_ONLY, NOTHING, id="who views"),
        pytest.param(CONTROL, VIEW_ONLY, NOTHING, id="the relay's lock away"),
        pytest.param(Right.VIEW, FULL, NOTHING, id="Xvnc's lock away"),
    ],
)
async def test_what_a_connection_does_on_the_desktop(
    xvnc: tuple[Path, str], screen: Screen, rights: Right, password: bytes, expected: set[str]
) -> None:
    async with viewer(xvnc[0], rights, password) as somebody:
        await somebody.websocket.send(everything())
        await somebody.until_heard()
        assert screen.effects() == expected


@pytest.mark.parametrize(
    ("rights", "password", "gets_it"),
    [
        pytest.param(CONTROL, FULL, True, id="who controls"),
        pytest.param(Right.VIEW, VIEW_ONLY, False, id="who views"),
        pytest.param(CONTROL, VIEW_ONLY, False, id="the relay's lock away"),
        pytest.param(CONTROL & ~Right.CLIPBOARD_OUT, FULL, False, id="Xvnc's lock away"),
    ],
)
async def test_who_is_given_what_is_copied_on_the_desktop(
    xvnc: tuple[Path, str], screen: Screen, rights: Right, password: bytes, gets_it: bool
) -> None:
    async with viewer(xvnc[0], rights, password) as somebody, viewer(xvnc[0], CONTROL, FULL) as witness:
        await somebody.until_heard()
        await witness.until_heard()
        screen.copy()
        got_it = asyncio.ensure_future(witness.until(SECRET))
        while not got_it.done():
            screen.give_what_was_copied()
            await asyncio.wait([got_it], timeout=0.01)
        got_it.result()
        await somebody.until_heard()
        assert (SECRET in somebody.seen) == gets_it
