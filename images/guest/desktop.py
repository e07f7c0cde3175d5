"""The owner's desktop: Xvnc, and what runs on it.

It begins when somebody first looks at it, and goes on with or without them until the session ends. Xvnc listens on no network: its
one way in is a socket in a folder of the owner's, and only the agent knows the passwords.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import re
import secrets
import shutil
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from . import identity, rfb, wire
from .nurse import LaunchError, Nurse, Process, open_log
from .session import Session
from .upkeep import STOPPING_LIMIT_SECONDS, Upkeep

X_SERVER = "Xtigervnc"
X_SOCKETS = Path("/tmp/.X11-unix")  # noqa: S108 (it is the same everywhere)
NEEDED = (X_SERVER, "setxkbmap", "xkbcomp")
STARTING_LIMIT_SECONDS = 30.0
ANSWER_LIMIT_SECONDS = 10.0
IDLE_LIMIT_SECONDS = 1.0
PAUSE_SECONDS = 0.02
LAYOUT = re.compile(r"[a-z]{2,12}(\([A-Za-z0-9_-]{1,32}\))?")
SMALLEST, LARGEST = 160, 8192

IN = "-rfbunixpath rfb -rfbport -1 -localhost -nolisten tcp -SecurityTypes VncAuth -PasswordFile passwords -auth cookie"
# keys come as places on the keyboard, and the desktop's own layout says what they write: else dead keys are lost. What is selected
# with the mouse stays in there: only what is copied is passed on. The keyboard stays as it was set when the last
# program ends, and the screen never goes dark
MANNERS = (
    "-displayfd 1 -AlwaysShared -RawKeyboard -AcceptSetDesktopSize -SendPrimary=0 -MaxCutText 1048576 "
    "-desktop Hutch -noreset -s 0 -dpi 96 -depth 24"
)
SESSION_OF_THE_OWNER = """
for session in "$HOME/.config/hutch/desktop" /etc/hutch/desktop-session; do [ -x "$session" ] && exec "$session"; done
exec sh "$0"
"""
SESSION_OF_OURS = Path(__file__).with_name("desktop_files") / "session"

COOKIE_NAME = b"MIT-MAGIC-COOKIE-1"
LOCAL_FAMILY, ANY_FAMILY = 256, 0xFFFF


@dataclass(frozen=True)
class Screen:
    """The screen and keyboard of whoever is the first to look."""

    width: int
    height: int
    layout: str


class Programs(Upkeep[Process]):
    """The session on the desktop: window manager, panel, whatever its owner has chosen."""

    what = "The session on the desktop"

    def __init__(self, nurse: Nurse, log_path: Path) -> None:
        super().__init__(log_path)
        self._nurse = nurse
        self._account: str | None = None
        self._environment: dict[str, str] = {}

    async def begin(self, account: str | None, environment: dict[str, str]) -> None:
        await self.stop()
        # they ended with the last display, which has been counted there
        self.restarts = 0
        self._account, self._environment = account, environment
        self._watch_over(await self._start())

    async def _start(self) -> Process:
        command = ["/bin/sh", "-c", SESSION_OF_THE_OWNER, str(SESSION_OF_OURS)]
        with open_log(self._log_path) as log:
            home = Path(self._environment["HOME"])
            return await self._nurse.run(self._account, home, self._environment, command, log.fileno())


class Desktop(Upkeep[Process]):
    what = "The desktop"

    def __init__(self, nurse: Nurse, session: Session, state: Path) -> None:
        super().__init__(state / "desktop.log")
        self._nurse, self._session = nurse, session
        self.programs = Programs(nurse, self._log_path)
        self._folder = state / "desktop"
        self._passwords = {control: secrets.token_urlsafe(6).encode() for control in (True, False)}
        self._cookie = secrets.token_bytes(16)
        self._display = ""
        self._screen = Screen(0, 0, "")
        self._turn = asyncio.Lock()
        self._beginning: asyncio.Task[Process] | None = None
        self._furnishing: asyncio.Task[None] | None = None

    async def connect(self, control: bool, screen: Screen, tell: Callable[[str], None]) -> asyncio.Transport:
        """A connection to Xvnc that was let in, to control or to look only; Xvnc is started for it, or waited for."""
        await self._ready(screen, tell)
        process = self._process
        assert process
        with contextlib.suppress(OSError, EOFError):
            return await self._let_in(control)
        async with _within(ANSWER_LIMIT_SECONDS, "The desktop does not answer."):
            await asyncio.wait({process.ended})
        await self._ready(screen, tell)
        try:
            return await self._let_in(control)
        except (OSError, EOFError) as error:
            raise LaunchError("The desktop ended just now; it is started again.") from error

    async def _ready(self, screen: Screen, tell: Callable[[str], None]) -> None:
        """Return when it runs; whoever comes first has it started, as large as their screen and with their keyboard."""
        if self._runs():
            return
        tell("The desktop is starting.")
        async with self._turn:
            if self._keeper is None:
                # what a power cut left behind goes too
                self._forget()
                self.state, self._screen = "starting", screen
                self._beginning = asyncio.create_task(self._start())
                try:
                    self._watch_over(await self._beginning)
                except BaseException as error:
                    await self.programs.stop()
                    self._forget()
                    if isinstance(error, asyncio.CancelledError):
                        raise LaunchError("The session ended while its desktop was starting.") from error
                    raise
        limit = time.monotonic() + STARTING_LIMIT_SECONDS
        while not self._runs():
            if time.monotonic() > limit:
                raise LaunchError("The desktop ended, and has not been brought back yet.")
            await asyncio.sleep(PAUSE_SECONDS)

    async def _let_in(self, control: bool) -> asyncio.Transport:
        reader = asyncio.StreamReader()
        async with _within(ANSWER_LIMIT_SECONDS, "The desktop does not answer."):
            transport = await self._reach(lambda: asyncio.StreamReaderProtocol(reader))
            try:
                await rfb.log_in(reader, transport, self._passwords[control])
            except BaseException:
                transport.abort()
                raise
        return transport

    async def _reach(self, protocol: Callable[[], asyncio.Protocol]) -> asyncio.Transport:
        # by the number of its folder, whose name may be too long for a socket's
        folder = os.open(self._folder, os.O_PATH)
        try:
            connect = asyncio.get_running_loop().create_unix_connection
            transport, _ = await connect(protocol, f"/proc/self/fd/{folder}/rfb")
        finally:
            os.close(folder)
        return transport

    async def set_layout(self, layout: str) -> None:
        if self.state not in ("starting", "running"):
            raise LaunchError("There is no desktop whose keyboard could be set.")
        account, environment = self._session.person()
        with _pipe() as (reading, writing):
            command = ["setxkbmap", "-layout", layout.partition("(")[0], "-variant", layout.partition("(")[2].rstrip(")")]
            async with _within(ANSWER_LIMIT_SECONDS, "The desktop does not answer."):
                await self._nurse.run(account, Path("/"), environment | self._variables(), command, writing.fileno())
                writing.close()
                said = await _read(reading.fileno())
        if said:
            raise LaunchError(f"This desktop has no keyboard layout {layout}.", said)
        self._screen = replace(self._screen, layout=layout)

    async def idle_seconds(self) -> float | None:
        """Since the last key or movement of the pointer, as the X server knows it; None if it cannot say."""
        if self.state != "running":
            return None
        with contextlib.suppress(OSError, EOFError, TimeoutError, struct.error, IndexError):
            async with asyncio.timeout(IDLE_LIMIT_SECONDS):
                return await _idle_seconds(str(X_SOCKETS / f"X{self._display}"), self._cookie)
        return None

    async def stop(self) -> None:
        if self._beginning:
            self._beginning.cancel()
        async with self._turn:
            if self._furnishing:
                self._furnishing.cancel()
            await self.programs.stop()
            await super().stop()
            # a new start that was under way may have begun them again
            await self.programs.stop()
            self._forget()

    async def _start(self) -> Process:
        account, environment = self._session.person()
        if missing := [name for name in NEEDED if not shutil.which(name, path=environment["PATH"])]:
            raise LaunchError(f"This instance has no desktop: it lacks {', '.join(missing)}.")
        self._prepare_folder(account)
        command = [X_SERVER, *IN.split(), *MANNERS.split(), "-geometry", f"{self._screen.width}x{self._screen.height}"]
        with _pipe() as (reading, writing), open_log(self._log_path) as log:
            process = await self._nurse.run(account, self._folder, environment, command, log.fileno(), writing.fileno())
            writing.close()
            try:
                async with _within(STARTING_LIMIT_SECONDS, "The desktop's X server did not start in time."):
                    self._display = (await _read(reading.fileno())).strip()
                if not self._display.isdecimal():
                    raise LaunchError("The desktop's X server ended while it was starting.")
                self._write("cookie", self._cookies(), account)
                await self.programs.begin(account, environment | self._variables())
            except BaseException:
                await process.end(STOPPING_LIMIT_SECONDS)
                raise
        self._furnishing = asyncio.create_task(self._furnish())
        return process

    async def _furnish(self) -> None:
        """What nobody has to wait for."""
        with contextlib.suppress(LaunchError):  # an unknown layout is no reason to have no desktop
            await self.set_layout(self._screen.layout)
        await self._session.show_on(self._variables())

    def _variables(self) -> dict[str, str]:
        return {"DISPLAY": f":{self._display}", "XAUTHORITY": f"{self._folder}/cookie"}

    def _prepare_folder(self, account: str | None) -> None:
        """The same for as long as the session lasts: programs in the notebook know it."""
        if not self._folder.exists():
            self._folder.mkdir(mode=0o700)
            self._write("passwords", rfb.password_file(self._passwords[True], self._passwords[False]), account)
            self._write("cookie", self._cookies(), account)
            if account:
                shutil.chown(self._folder, account)
                if not X_SOCKETS.exists():
                    # where X servers listen; one that is not root's makes no such folder
                    X_SOCKETS.mkdir()
                    X_SOCKETS.chmod(0o1777)
        (self._folder / "rfb").unlink(missing_ok=True)

    def _write(self, name: str, content: bytes, account: str | None) -> None:
        identity.write_private(self._folder / name, content, pwd.getpwnam(account).pw_uid if account else -1)

    def _cookies(self) -> bytes:
        """As `xauth` would write them: for this display of this machine, and for whatever its name becomes."""
        host, display = socket.gethostname().encode(), self._display.encode()
        return b"".join(
            struct.pack(">H", family)
            + b"".join(struct.pack(">H", len(part)) + part for part in (*whose, COOKIE_NAME, self._cookie))
            for family, whose in ((LOCAL_FAMILY, (host, display)), (ANY_FAMILY, (b"", b"")))
        )

    def _forget(self) -> None:
        self.state = "none"
        shutil.rmtree(self._folder, ignore_errors=True)


@contextlib.asynccontextmanager
async def _within(seconds: float, otherwise: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise LaunchError(otherwise) from error


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[BinaryIO, BinaryIO]]:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as out, os.fdopen(writing, "wb") as into:
        yield out, into


async def _read(descriptor: int) -> str:
    """Up to the end of a line, or of the program that writes it."""
    said = b""
    while not said.endswith(b"\n"):
        await wire.until_readable(descriptor)
        more = os.read(descriptor, 1024)
        if not more:
            break
        said += more
    return said.decode(errors="replace")


async def _idle_seconds(path: str, cookie: bytes) -> float:
    """Ask the X server itself, in the few bytes that this takes. ref: https://www.x.org/releases/X11R7.7/doc/"""
    reader, writer = await asyncio.open_unix_connection(path)
    try:
        writer.write(struct.pack("<BxHHHHxx18sxx16s", ord("l"), 11, 0, 18, 16, COOKIE_NAME, cookie))
        size = struct.unpack("<6xH", await reader.readexactly(8))[0] * 4
        about = await reader.readexactly(size)
        vendor, formats = struct.unpack_from("<16xHxxxB", about)
        root = struct.unpack_from("<I", about, 32 + (vendor + 3) // 4 * 4 + 8 * formats)[0]
        writer.write(struct.pack("<BxHHxx16s", 98, 6, 16, b"MIT-SCREEN-SAVER"))
        opcode = struct.unpack("<9xB22x", await reader.readexactly(32))[0]
        writer.write(struct.pack("<BBHI", opcode, 1, 2, root))
        return struct.unpack("<16xI12x", await reader.readexactly(32))[0] / 1000
    finally:
        writer.transport.abort()
