"""The hub's way to the desktop: one TLS connection for each viewer, beside the requests and on the same port.

It asks for this with the name of the protocol in the handshake (ALPN). The hub sends one line of JSON, the agent answers in
lines; after ``ready`` the hub goes on with RFB's ClientInit message to Xvnc, and nothing of what passes is looked at here.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

from . import identity, rfb
from .desktop import LARGEST, LAYOUT, SMALLEST, Desktop, Screen
from .nurse import LaunchError

log = logging.getLogger("hutch.agent")

PROTOCOL = "hutch.rfb"
PROTOCOLS = [PROTOCOL, "http/1.1"]
LINE_BYTES = 4096
LINE_SECONDS = 10.0
KEEPALIVE_SECONDS = 20


class Door(asyncio.Protocol):
    """Hands a new connection to whom it asked for."""

    def __init__(self, http: Callable[[], asyncio.BaseProtocol], tunnels: Tunnels) -> None:
        self._http, self._tunnels = http, tunnels

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        asked = transport.get_extra_info("ssl_object").selected_alpn_protocol()
        protocol = FirstLine(self._tunnels.serve) if asked == PROTOCOL else self._http()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)


class FirstLine(asyncio.StreamReaderProtocol):
    """Reads the line that a connection begins with, for whom it is then handed to."""

    def __init__(self, serve: Callable[[asyncio.StreamReader, asyncio.Transport], Coroutine[Any, Any, None]]) -> None:
        # held here: the base class and the loop hold neither of these
        self._reader = asyncio.StreamReader(limit=LINE_BYTES)
        self._task: asyncio.Task[None] | None = None
        self._serve = serve
        super().__init__(self._reader)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert isinstance(transport, asyncio.Transport)
        self._task = asyncio.create_task(self._serve(self._reader, transport))


class End(asyncio.Protocol):
    """One end of a tunnel: what comes in here goes out at the other, no faster than it is taken there."""

    def __init__(self, other: asyncio.Transport, ended: Callable[[], object]) -> None:
        self._other, self._ended = other, ended

    def data_received(self, data: bytes) -> None:
        self._other.write(data)

    def pause_writing(self) -> None:
        self._other.pause_reading()

    def resume_writing(self) -> None:
        self._other.resume_reading()

    def connection_lost(self, error: Exception | None) -> None:
        self._ended()


class Tunnels:
    """Who looks at the desktop."""

    def __init__(self, desktop: Desktop) -> None:
        self._desktop = desktop
        self._open: dict[asyncio.Transport, str] = {}

    def __len__(self) -> int:
        return len(self._open)

    def close(self, user: str) -> None:
        for transport in [transport for transport, who in self._open.items() if who == user]:
            transport.abort()

    async def serve(self, reader: asyncio.StreamReader, hub: asyncio.Transport) -> None:
        def say(state: str, message: str = "") -> None:
            hub.write(json.dumps({"state": state, "message": message}).encode() + b"\n")

        try:
            if not identity.is_hub(hub.get_extra_info("peercert")):
                raise ValueError(f"Only a certificate for the name {identity.HUB_NAME} is served.")
            async with asyncio.timeout(LINE_SECONDS):
                user, control, screen = parse(await reader.readuntil())
            if user is None:
                await self._desktop.set_layout(screen.layout)
                say("ready")
            else:
                # known from now on, so that somebody whose access ends while they wait does not come in
                self._open[hub] = user
                desktop = await self._desktop.connect(control, screen, partial(say, "starting"))
                self._join(hub, desktop, partial(say, "ready"))
                return
        except TimeoutError:
            say("failed", "The line that says whose desktop connection this is did not come in time.")
        except (ValueError, LaunchError, rfb.RfbError) as error:
            say("failed", str(error))
        except asyncio.LimitOverrunError:
            say("failed", f"The line must not be longer than {LINE_BYTES} bytes.")
        except (ConnectionError, EOFError):
            pass
        except Exception:
            log.exception("The desktop could not be shown")
            say("failed", "The agent met an error of its own.")
        self._open.pop(hub, None)
        hub.close()

    def _join(self, hub: asyncio.Transport, desktop: asyncio.Transport, ready: Callable[[], None]) -> None:
        if hub.is_closing():
            desktop.abort()
            raise ConnectionError("The hub went away.")

        def hub_ended() -> None:
            self._open.pop(hub, None)
            desktop.abort()

        tcp: socket.socket = hub.get_extra_info("socket")
        # a relay whose machine is gone says no farewell
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL):
            tcp.setsockopt(socket.IPPROTO_TCP, option, KEEPALIVE_SECONDS)
        hub.set_protocol(End(desktop, hub_ended))
        desktop.set_protocol(End(hub, hub.close))
        ready()


def parse(line: bytes) -> tuple[str | None, bool, Screen]:
    """Who wants to look, whether to control, and their screen; nobody, where only the keyboard's layout is to change."""
    asked = json.loads(line)
    if not isinstance(asked, dict):
        raise ValueError("The line must be a JSON object.")
    layout = asked.get("layout")
    if not (isinstance(layout, str) and LAYOUT.fullmatch(layout)):
        raise ValueError("'layout' must be the name of a keyboard layout.")
    if asked.keys() == {"layout"}:
        return None, False, Screen(0, 0, layout)
    user, control = asked.get("user"), asked.get("control")
    if not (isinstance(user, str) and 0 < len(user) <= 200):
        raise ValueError("'user' must be a text of 1 to 200 characters.")
    if not isinstance(control, bool):
        raise ValueError("'control' must be true or false.")
    sizes: list[Any] = [asked.get("width"), asked.get("height")]
    if not all(type(size) is int and SMALLEST <= size <= LARGEST for size in sizes):
        raise ValueError(f"'width' and 'height' must be numbers from {SMALLEST} to {LARGEST}.")
    return user, control, Screen(sizes[0], sizes[1], layout)
