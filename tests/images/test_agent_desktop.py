"""The owner's desktop, as the hub reaches it: a real Xvnc behind the agent, over real TLS."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import stat
import struct
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import uvloop
from hub_certificates import context_for
from Xlib import XK, X
from Xlib.display import Display

from images.guest import desktop, rfb
from images.guest.nurse import LaunchError
from spawner.agent_client import DESKTOP_PROTOCOL, AgentFailed, AgentMismatch, AgentUnreachable
from spawner.agent_tls import HubIdentity

MISSING = [name for name in desktop.NEEDED if not shutil.which(name)]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} is missing: tools/setup installs it, as root")
SCREEN = {"width": 800, "height": 600, "layout": "us"}
SHOWN = desktop.Screen(**SCREEN)
X_SERVER = "Xtigervnc"
MEGABYTE = 1 << 20


class Viewer(asyncio.Protocol):
    """As much of a VNC viewer as it takes: it asks for raw pixels, and notes what it is sent."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.news = asyncio.Event()
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.got += data
        self.news.set()

    def connection_lost(self, error: Exception | None) -> None:
        self.ended.set_result(None)

    async def read(self, size: int) -> bytes:
        while len(self.got) < size:
            self.news.clear()
            await asyncio.wait_for(self.news.wait(), 20)
        taken = bytes(self.got[:size])
        del self.got[:size]
        return taken

    async def begin(self) -> tuple[int, int, str]:
        """The screen's size and name."""
        width, height, length = struct.unpack(">HH16xI", await self.read(24))
        name = (await self.read(length)).decode()
        self.transport.write(struct.pack(">BxHi", 2, 1, 0))
        return width, height, name

    def key(self, name: str) -> None:
        symbol = XK.string_to_keysym(name)
        self.transport.write(struct.pack(">BBxxIBBxxI", 4, 1, symbol, 4, 0, symbol))

    def ask_for(self, width: int, height: int) -> None:
        self.transport.write(struct.pack(">BBHHHH", 3, 0, 0, 0, width, height))

    async def until_heard(self) -> None:
        """What was sent so far has been acted on: an answer to what is sent now has come."""
        self.got.clear()
        self.ask_for(1, 1)
        await self.read(1)


async def look(guest, user: str = "ann", *, control: bool = True, on_stage=None, **screen) -> Viewer:
    viewer = []

    def make() -> Viewer:
        viewer.append(Viewer())
        return viewer[0]

    asked = {"user": user, "control": control, **SCREEN, **screen}
    await guest.client.open_desktop(guest.address, guest.fingerprint, make, on_stage=on_stage, **asked)
    return viewer[0]


@asynccontextmanager
async def looking(guest, *whom: tuple[str, bool]):
    viewers = [await look(guest, user, control=control) for user, control in whom]
    for viewer in viewers:
        await viewer.begin()
    yield viewers
    for viewer in viewers:
        viewer.transport.abort()


async def desktop_of(guest) -> dict:
    return (await guest.status())["desktop"]


def display_of(guest, monkeypatch) -> Display:
    """A program's connection to the X server, with the variables that the session on the desktop was given."""
    variables = guest.processes("openbox")[0].environ()
    monkeypatch.setenv("XAUTHORITY", variables["XAUTHORITY"])
    return Display(variables["DISPLAY"])


@pytest.fixture(scope="module")
def desk(shared_guest):
    """An instance with its desktop begun by a first viewer."""

    async def begin() -> None:
        (await look(shared_guest)).transport.abort()

    asyncio.run(begin())
    return shared_guest


async def test_the_first_who_looks_has_it_started_as_large_as_their_screen(guest, until):
    await guest.push(guest.session())
    assert await desktop_of(guest) == {"state": "none", "restarts": 0, "viewers": 0, "idle_seconds": None}
    stages: list[str] = []
    viewer = await look(guest, width=1024, height=700, layout="de", on_stage=stages.append)
    assert await viewer.begin() == (1024, 700, "Hutch")
    assert stages == ["The desktop is starting."]
    second = await look(guest, on_stage=stages.append)
    assert (await second.begin())[:2] == (1024, 700)
    assert len(stages) == 1
    status = await desktop_of(guest)
    assert status == {**status, "state": "running", "restarts": 0, "viewers": 2}

    server = guest.processes(X_SERVER)[0]
    assert server.net_connections("inet") == []
    folder = guest.state / "desktop"
    modes = {name: stat.S_IMODE((folder / name).stat().st_mode) for name in (".", "passwords", "cookie", "rfb")}
    assert modes == {".": 0o700, "passwords": 0o600, "cookie": 0o600, "rfb": 0o600}
    await until(lambda: guest.processes("openbox"), "the session runs")

    await guest.client.end(guest.address, guest.fingerprint)
    await asyncio.wait_for(asyncio.gather(viewer.ended, second.ended), 10)
    assert not folder.exists()
    assert not guest.processes(X_SERVER)
    await until(lambda: not guest.processes("openbox"), "the session has ended")
    assert (await desktop_of(guest))["state"] == "none"


async def test_without_a_launch_there_is_no_desktop(guest):
    with pytest.raises(AgentFailed, match="not been launched"):
        await look(guest)
    assert (await desktop_of(guest))["state"] == "none"


async def test_nothing_of_it_outlives_the_agent(guest, until):
    await guest.push(guest.session())
    await look(guest)
    await until(lambda: guest.processes("openbox"), "the session runs")
    alive = psutil.Process(guest.process.pid).children(recursive=True)
    assert X_SERVER in [process.name() for process in alive]
    guest.switch_off()
    await until(lambda: not any(process.is_running() and process.status() != "zombie" for process in alive), "all have ended")
    guest.boot()
    await guest.push(guest.session(launch="2"))
    viewer = await look(guest)
    assert (await viewer.begin())[2] == "Hutch"


def test_the_hub_may_use_another_event_loop(desk):
    async def greet() -> tuple[int, int, str]:
        viewer = await look(desk)
        greeting = await viewer.begin()
        viewer.transport.abort()
        return greeting

    assert uvloop.run(greet())[2] == "Hutch"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        pytest.param("{", "Expecting", id="no JSON"),
        pytest.param("[]", "JSON object", id="no object"),
        pytest.param({"user": "", "control": True, **SCREEN}, "'user'", id="nobody"),
        pytest.param({"user": "ann", "control": 1, **SCREEN}, "'control'", id="control that is a number"),
        pytest.param({"user": "ann", **SCREEN}, "'control'", id="no word on control"),
        pytest.param({"user": "ann", "control": True, **SCREEN, "width": 0}, "'width'", id="no width"),
        pytest.param({"user": "ann", "control": True, **SCREEN, "height": 10**6}, "'width'", id="too high"),
        pytest.param({"user": "ann", "control": True, **SCREEN, "height": True}, "'width'", id="height that is no number"),
        pytest.param({"user": "ann", "control": True, **SCREEN, "layout": "de -option x"}, "'layout'", id="layout with options"),
        pytest.param({"layout": "../de"}, "'layout'", id="layout with a path"),
        pytest.param({"layout": "zz"}, "no keyboard layout zz", id="layout that nobody has"),
    ],
)
async def test_a_malformed_first_line_is_refused_with_a_reason(desk, hub_identity, line, says):
    assert says in await answer_to(desk, hub_identity.client_context(DESKTOP_PROTOCOL), line)


async def test_a_first_line_without_end_ends_the_connection(desk, hub_identity):
    assert (
        await answer_to(desk, hub_identity.client_context(DESKTOP_PROTOCOL), "x" * 9000)
        == "The line must not be longer than 4096 bytes."
    )


async def test_the_right_authority_with_another_name_is_refused(desk, tmp_path, hub_identity):
    context = context_for(tmp_path, hub_identity, "hutch-portal")
    context.set_alpn_protocols([DESKTOP_PROTOCOL])
    assert "hutch-hub" in await answer_to(desk, context, {"user": "ann", "control": False, **SCREEN})


async def answer_to(guest, context, line: str | dict) -> str:
    reader, writer = await asyncio.open_connection(guest.address, guest.port, ssl=context)
    writer.write((line if isinstance(line, str) else json.dumps(line)).encode() + b"\n")
    try:
        said = await asyncio.wait_for(reader.read(), 10)
    except ConnectionError:
        said = b""
    writer.close()
    return json.loads(said)["message"] if said else ""


async def test_another_authority_is_refused_and_another_fingerprint_is_told_nothing(desk, tmp_path):
    stranger = HubIdentity(tmp_path / "other")
    with pytest.raises(AgentUnreachable):
        await type(desk.client)(stranger.client_context, port=desk.port).set_layout(desk.address, desk.fingerprint, "us")
    with pytest.raises(AgentMismatch):
        await desk.client.set_layout(desk.address, "0" * 64, "us")


async def test_who_may_only_look_cannot_type_even_past_the_relay(desk, monkeypatch, until):
    async with looking(desk, ("ann", True), ("bob", False)) as (owner, guest):
        await until(lambda: desk.processes("openbox"), "the session runs")
        display = display_of(desk, monkeypatch)
        # whichever window has the focus
        display.screen().root.grab_keyboard(True, X.GrabModeAsync, X.GrabModeAsync, X.CurrentTime)
        display.sync()

        async def idle(condition) -> None:
            async def holds() -> bool:
                return condition((await desktop_of(desk))["idle_seconds"])

            await until(holds, "the idle time is as it should be")

        await idle(lambda seconds: seconds > 0.5)
        guest.key("x")
        await guest.until_heard()
        await idle(lambda seconds: seconds > 0.5)
        owner.key("b")
        await owner.until_heard()
        guest.key("y")
        await guest.until_heard()
        owner.key("c")
        await owner.until_heard()
        assert (await desktop_of(desk))["idle_seconds"] < 20
        display.sync()
        pressed = []
        while display.pending_events():
            event = display.next_event()
            if event.type == X.KeyPress:
                pressed.append(XK.keysym_to_string(display.keycode_to_keysym(event.detail, 0)))
        assert pressed == ["b", "c"]
        display.close()


async def test_the_layout_changes_while_it_runs(desk, monkeypatch, until):
    async with looking(desk, ("ann", True)):
        await until(lambda: desk.processes("openbox"), "the session runs")
        display = display_of(desk, monkeypatch)
        keycode = display.keysym_to_keycode(XK.XK_Escape) + 15
        for layout, symbol in (("fr", "a"), ("us", "q"), ("de(nodeadkeys)", "q")):
            await desk.client.set_layout(desk.address, desk.fingerprint, layout)
            mapping = display.get_keyboard_mapping(keycode, 1)[0]
            assert XK.keysym_to_string(mapping[0]) == symbol, layout
        with pytest.raises(AgentFailed, match="no keyboard layout zz"):
            await desk.client.set_layout(desk.address, desk.fingerprint, "zz")
        display.close()


async def test_what_is_started_in_the_notebook_appears_on_the_desktop(desk, start_kernel, until):
    async def shown() -> bool:
        async with desk.browser() as browser:
            kernel = await start_kernel(browser)
            code = "from subprocess import run; print(run(['setxkbmap', '-query'], capture_output=True).returncode)"
            printed = await kernel.run(code)
            await kernel.shut_down()
            return printed == "0"

    await until(shown, "a program in the notebook finds the display")


async def test_who_lost_their_access_is_out_and_the_others_stay(desk, until):
    async with looking(desk, ("ann", True), ("bob", False), ("bob", True)) as (ann, *bobs):
        await desk.client.send_away(desk.address, desk.fingerprint, "bob")
        await asyncio.wait_for(asyncio.gather(*(viewer.ended for viewer in bobs)), 5)
        await ann.until_heard()
        assert (await desktop_of(desk))["viewers"] == 1


async def test_one_who_does_not_read_costs_no_memory_and_slows_nobody(desk):
    async with looking(desk, ("ann", True), ("bob", False)) as (ann, bob):
        agent = psutil.Process(desk.process.pid)
        before = agent.memory_info().rss
        bob.transport.pause_reading()
        frame = SCREEN["width"] * SCREEN["height"] * 4
        for _ in range(40):
            bob.ask_for(SCREEN["width"], SCREEN["height"])
            ann.got.clear()
            ann.ask_for(SCREEN["width"], SCREEN["height"])
            await ann.read(frame)
        # bob asked for as much as ann, who has been sent 76 MB
        assert agent.memory_info().rss - before < 12 * MEGABYTE
        bob.got.clear()
        bob.transport.resume_reading()
        await bob.read(frame)


async def test_an_x_server_that_dies_is_brought_back_and_its_session_too(desk, until):
    async with looking(desk, ("ann", True)) as (viewer,):
        before = (await desktop_of(desk))["restarts"]
        desk.processes(X_SERVER)[0].kill()
        await asyncio.wait_for(viewer.ended, 5)
        stages: list[str] = []
        again = await look(desk, on_stage=stages.append)
        assert (await again.begin())[2] == "Hutch"
        assert stages == ["The desktop is starting."]
        assert (await desktop_of(desk))["restarts"] == before + 1
        await until(lambda: desk.processes("openbox"), "the session runs again")
        again.transport.abort()


async def test_a_session_that_crashes_is_brought_back_under_the_same_viewers(desk, until):
    async with looking(desk, ("ann", True)) as (viewer,):
        crashed = (await until(lambda: desk.processes("openbox"), "the session runs"))[0]
        crashed.send_signal(signal.SIGSEGV)
        await until(lambda: crashed not in (now := desk.processes("openbox")) and now, "another session runs")
        await viewer.until_heard()


@pytest.mark.parametrize(
    ("says", "sentence"),
    [
        (b"RFB 003.003\n", "version"),
        (b"HTTP/1.1 400 ", "version"),
        (b"RFB 003.008\n\x01\x01", "no password"),
        (b"RFB 003.008\n\x00\x00\x00\x00\x04busy", "no password"),
        (b"RFB 003.008\n\x01\x02" + bytes(16) + b"\x00\x00\x00\x01", "its own password"),
    ],
)
async def test_a_vnc_server_that_is_not_as_it_should_be_is_left_with_a_reason(says, sentence):
    reader = asyncio.StreamReader()
    reader.feed_data(says)
    with pytest.raises(rfb.RfbError, match=sentence):
        await rfb.log_in(reader, Mute(), b"12345678")


async def test_one_who_comes_before_its_death_is_noticed_is_let_in_by_the_next(tmp_path):
    class Second(desktop.Desktop):
        async def _start(self) -> Any:
            return SimpleNamespace(ended=asyncio.get_running_loop().create_future())

        async def _let_in(self, control: bool) -> Any:
            if not self.restarts:
                first.set_result(None)
                raise ConnectionRefusedError
            return "a connection"

    first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    owners, said = Second(None, None, tmp_path), []
    owners._watch_over(SimpleNamespace(ended=first))
    assert await owners.connect(True, SHOWN, said.append) == "a connection"
    assert said == ["The desktop is starting."]
    owners._keeper.cancel()


class Mute(asyncio.WriteTransport):
    def write(self, data: bytes) -> None:
        pass


@pytest.mark.parametrize("begins", [b"", b"RFB 003.008\n\x01\x02"], ids=["silent", "silent after a while"])
async def test_a_vnc_server_that_says_nothing_is_not_waited_for(tmp_path, monkeypatch, begins):
    monkeypatch.setattr(desktop, "ANSWER_LIMIT_SECONDS", 0.1)
    monkeypatch.chdir(tmp_path)

    def greet(_, writer) -> None:
        writer.write(begins)

    owners = desktop.Desktop(None, None, tmp_path)
    owners._folder, owners.state, owners._process = Path(), "running", SimpleNamespace(ended=asyncio.Future())
    async with await asyncio.start_unix_server(greet, "rfb"):
        with pytest.raises(LaunchError, match="does not answer"):
            await owners.connect(True, SHOWN, print)


async def test_an_image_without_a_desktop_says_what_it_lacks(tmp_path):
    class Nobody:
        def person(self):
            return None, {"PATH": str(tmp_path)}

    with pytest.raises(LaunchError, match="no desktop: it lacks Xtigervnc, setxkbmap, xkbcomp"):
        await desktop.Desktop(None, Nobody(), tmp_path).connect(True, SHOWN, print)
