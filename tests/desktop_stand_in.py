"""The desktop's page in front of a real Xvnc, without hub and agent: one room in one process, to try keys on.

`python tests/desktop_stand_in.py` shows it at the address that it prints.
"""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from aiohttp import WSMsgType, web

sys.path.insert(0, str(Path(__file__).parent.parent))
from running_hub import free_port

from hub.configuration import Hutch
from hub.portal.guard import HEADERS
from hub.portal.rendering import STATIC, Pages
from hub.portal.rooms import CLIPBOARD_BYTES
from images.guest.desktop import MANNERS

XVNC = ["Xtigervnc", "-geometry", "1024x640", "-SecurityTypes", "None", "-rfbport", "-1", "-nolisten", "tcp", *MANNERS.split()]
SECURITY_NONE, RESULT_OK = b"\x01\x01", b"\0\0\0\0"
ME = {"id": "1", "name": "Ann", "part": "owner", "control": True, "typing": False, "since": "2026-11-22T12:00:00+00:00"}


@contextmanager
def xvnc(folder: Path) -> Iterator[tuple[Path, str]]:
    """Its socket, and its DISPLAY."""
    socket = folder / "rfb"
    with (folder / "xvnc.log").open("wb") as log:
        process = subprocess.Popen([*XVNC, "-rfbunixpath", str(socket)], stdout=subprocess.PIPE, stderr=log, text=True)
    assert process.stdout
    number = process.stdout.readline().strip()
    try:
        yield socket, f":{number}"
    finally:
        process.terminate()
        process.wait()


class StandIn:
    """Speaks the room's side of the channel; `room` and `control` can be changed by a test."""

    def __init__(self, socket: Path, display: str) -> None:
        self.socket, self.display = socket, display
        self.control, self.layouts = True, []
        self.room: dict[str, Any] = {"you": "1", "people": [ME], "driver": "1", "asking": [], "locked": False, "owner_here": True}
        self.room |= {"support": [], "may": ["release"], "at": "2026-11-22T12:00:00+00:00"}
        self.pages = Pages(Hutch(), "/")
        self.loop: asyncio.AbstractEventLoop
        self.heard: list[dict[str, Any]] = []
        self.open: set[web.WebSocketResponse] = set()
        self.numbers = itertools.count(1)

    def say(self, message: dict[str, Any] | None) -> None:
        """To the pages that are open; None cuts them off."""

        async def said() -> None:
            for channel in list(self.open):
                await (channel.send_json(message) if message else channel.close(code=1012))

        asyncio.run_coroutine_threadsafe(said(), self.loop).result()

    def app(self) -> web.Application:
        app = web.Application(client_max_size=1 << 20)
        app.router.add_get("/", self.page)
        app.router.add_post("/instances/1/desktop/ticket", self.ticket)
        app.router.add_get("/rooms/1", self.channel)
        for name, folder in STATIC.items():
            app.router.add_static(f"/static/{name}", folder)
        return app

    async def page(self, _request: web.Request) -> web.Response:
        asked: Any = SimpleNamespace(state=SimpleNamespace(), method="GET", url=SimpleNamespace(path="/"))
        facts = {"id": "1", "title": "Perovskite films under load", "back": "/", "mine": True, "thumbnails": False}
        text = self.pages.fragment(asked, "desktop.html", clipboard_limit=CLIPBOARD_BYTES, **facts)
        return web.Response(text=text, content_type="text/html", headers=HEADERS)

    async def ticket(self, request: web.Request) -> web.Response:
        return web.json_response({"ticket": "trial", "url": f"ws://{request.host}/rooms/1"})

    async def channel(self, request: web.Request) -> web.WebSocketResponse:
        channel = web.WebSocketResponse(protocols=["hutch.rfb"])
        await channel.prepare(request)
        self.open.add(channel)
        reader, writer = await asyncio.open_unix_connection(str(self.socket))
        await self._handshake(reader, writer)
        number = next(self.numbers)
        await channel.send_json({"do": "rfb", "session": number, "control": self.control})
        await channel.send_json({"do": "room", **self.room})
        down, sent = None, b""
        async for message in channel:
            if message.type is WSMsgType.TEXT:
                self.heard.append(heard := message.json())
                if heard["do"] == "layout":
                    await asyncio.to_thread(set_layout, self.display, heard["layout"])
                    self.layouts.append(heard["layout"])
                elif heard == {"do": "rfb", "session": number}:
                    await channel.send_bytes(b"RFB 003.008\n" + SECURITY_NONE)
                    await channel.send_bytes(RESULT_OK)
                    down = asyncio.create_task(self._pump(reader, channel))
            elif message.type is WSMsgType.BINARY:
                # its version, the security type, ClientInit: the desktop has had ours
                before, sent = len(sent), (sent + message.data)[:14]
                writer.write(message.data[len(sent) - before :])
        self.open.discard(channel)
        if down:
            down.cancel()
        writer.close()
        return channel

    async def _handshake(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(12))
        await reader.readexactly(2)
        writer.write(b"\x01")
        await reader.readexactly(4)
        writer.write(b"\x01")

    async def _pump(self, reader: asyncio.StreamReader, channel: web.WebSocketResponse) -> None:
        while data := await reader.read(65536):
            await channel.send_bytes(data)


def set_layout(display: str, layout: str) -> None:
    subprocess.run(["setxkbmap", "-display", display, "-layout", layout], check=True)


@contextmanager
def shown(folder: Path) -> Iterator[tuple[StandIn, str]]:
    """A desktop with nothing on it, and the address of its page."""
    with xvnc(folder) as (socket, display):
        stand_in, loop, port = StandIn(socket, display), asyncio.new_event_loop(), free_port()
        stand_in.loop = loop
        runner = web.AppRunner(stand_in.app(), shutdown_timeout=0)
        thread = threading.Thread(target=loop.run_forever)
        thread.start()

        async def serve() -> None:
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", port).start()

        asyncio.run_coroutine_threadsafe(serve(), loop).result()
        yield stand_in, f"http://127.0.0.1:{port}/"
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, shown(Path(folder)) as (stand_in, url):
        print(f"{url} DISPLAY={stand_in.display}", flush=True)
        subprocess.run(["xterm", "-display", stand_in.display, "-fa", "monospace", "-geometry", "100x30+40+40"])


if __name__ == "__main__":
    main()
