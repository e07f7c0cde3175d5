"""Browsers' connections: a WebSocket on one side, a desktop on the other, a room of whoever uses this module in between.

How to use it. `serve(host, port, handler_factory)` listens. For each browser a `Connection` is made, and its `Handler` by
`handler_factory(connection)`, which is asked first whether to admit the browser and is told afterwards what happens:

    class Guest:
        def __init__(self, connection): self.connection = connection
        async def admit(self): return None                    # or Refusal(403, "not with this ticket")
        def on_open(self): self.connection.begin(CONTROL, open_desktop)
        def on_text(self, message): ...                       # a JSON object; {"do": "rfb"} is answered here and not passed on
        def on_input(self, kind): ...                         # "key", "pointer" or "clipboard": somebody did something
        def on_session_lost(self, session, problem): ...      # the desktop's side has gone; begin again, or end
        def on_closed(self): ...                              # once for each on_open; `connection.close_code` says why

`connection.begin(rights, open_upstream)` begins an RFB session and returns its number; a session that runs ends by it. Rights never
change within one. `open_upstream(protocol_factory)` is awaited and returns a transport whose protocol is the factory's, and which
gives the bytes of a desktop from ServerInit on. `connection.tell(message)` sends JSON. `connection.end(code, message)` says
farewell: from then on nothing passes in either direction, though on_closed may be some seconds away. `connection.counts` has
what the session and its forerunners let through.

What holds memory down and people apart:

- a side that does not take its bytes stops the reading of the other side, and only of that one; buffers have limits;
- reading from browsers goes through one small buffer, and a connection has so many frames a second, so that nobody keeps the
  others waiting by being busy;
- whoever takes nothing for a while, is silent, or does not finish its request, is let go.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, cast

from websockets.datastructures import Headers
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol

from hub.access.desktops import Right
from hub.desktop.rfb import KINDS, ClientStream, Counts, Handshake, ProtocolError

SUBPROTOCOL = Subprotocol("hutch.rfb")
MALFORMED, TOO_SLOW = 4400, 4408
# of its own and quiet: the library's would write tickets down when somebody sets the root logger to DEBUG
logger = logging.getLogger("hub.desktop.websocket")
logger.setLevel(logging.WARNING)

OpenUpstream = Callable[[Callable[[], asyncio.BaseProtocol]], Awaitable[asyncio.Transport]]


@dataclass(frozen=True, slots=True)
class Limits:
    request_seconds: float = 10
    request_bytes: int = 16 * 1024
    frame_bytes: int = 64 * 1024
    text_bytes: int = 4 * 1024
    frames_per_second: int = 1500
    texts_per_second: int = 30
    clipboard_bytes: int = 1 << 20
    # what is told to a browser that takes nothing; of its desktop's bytes there wait no more than were read at once
    browser_buffer: int = 256 * 1024
    # what waits for a desktop: input, which is small
    desktop_buffer: int = 64 * 1024
    stalled_seconds: float = 30
    ping_seconds: float = 20
    silent_pings: int = 3
    close_seconds: float = 5


@dataclass(frozen=True, slots=True)
class Refusal:
    """Answers a browser's request instead of opening a WebSocket."""

    status: int
    text: str = ""


class Handler(Protocol):
    async def admit(self) -> Refusal | None: ...
    def on_open(self) -> None: ...
    def on_text(self, message: dict[str, Any]) -> None: ...
    def on_input(self, kind: str) -> None: ...
    def on_session_lost(self, session: int, problem: Exception | None) -> None: ...
    def on_closed(self) -> None: ...


HandlerFactory = Callable[["Connection"], Handler]

# What is read from browsers, and from desktops; whoever reads is done with it before the next one comes. There is room for a
# frame's header before what is read from a desktop. That is much, if there is much: each turn costs about the same.
_read_buffer = memoryview(bytearray(16 * 1024))
LONGEST_HEADER, LONGEST_READ = 10, 512 * 1024
_outgoing = memoryview(bytearray(LONGEST_HEADER + LONGEST_READ))
_desktop_buffer = _outgoing[LONGEST_HEADER:]


class Connection(asyncio.BufferedProtocol):
    """One browser. `path`, `headers`, `origin`, `subprotocols` and `peer` are known when the handler is asked to admit it."""

    path: str
    headers: Headers
    origin: str | None
    subprotocols: list[str]
    peer: str

    def __init__(self, handler_factory: HandlerFactory, limits: Limits) -> None:
        self.limits = limits
        self.counts = Counts()
        self.close_code: int | None = None
        self.session = 0
        self.congested = False
        self._websocket = ServerProtocol(subprotocols=[SUBPROTOCOL], max_size=(None, limits.frame_bytes), logger=logger)
        self.handler = handler_factory(self)
        self._running: _Session | None = None
        self._opened = False
        self._request_bytes = 0
        self._text: bytearray | None = None
        self._frames = self._texts = 0
        self._second_began = 0.0
        self._unanswered_pings = 0
        self._reasons_not_to_read: set[str] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._admitting: asyncio.Task[None] | None = None

    # --- what a handler calls

    def begin(self, rights: Right, open_upstream: OpenUpstream) -> int:
        """Begins an RFB session of these rights, ends the one before it, and returns its number."""
        self._drop_session()
        self.session += 1
        self.tell({"do": "rfb", "session": self.session, "control": Right.KEYBOARD in rights})
        stream = ClientStream(rights, longest_clipboard=self.limits.clipboard_bytes, counts=self.counts)
        self._running = _Session(self, self.session, stream, open_upstream)
        return self.session

    def tell(self, message: dict[str, Any]) -> None:
        if self.open:
            self._websocket.send_text(json.dumps(message).encode())
            self._write_out()
            if self._transport.get_write_buffer_size() > LONGEST_READ + self.limits.browser_buffer:
                self._transport.abort()

    def end(self, code: int, message: dict[str, Any] | None = None) -> None:
        """Ends it all, after a last message."""
        self._drop_session()
        if message:
            self.tell(message)
        if self.open:
            self.close_code = code
            self._websocket.send_close(code, str((message or {}).get("rule", ""))[:100])
            self._write_out()
            self._later("close", self.limits.close_seconds, self._transport.abort)

    @property
    def open(self) -> bool:
        return self._opened and self._websocket.state is State.OPEN

    # --- the browser's side: asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # what uvloop makes is not derived from it
        self._transport = cast(asyncio.Transport, transport)
        self._descriptor = transport.get_extra_info("socket").fileno()
        # written at once; and if not all of it is, no more is read from the desktop until it has gone out
        self._transport.set_write_buffer_limits(0)
        self._later("request", self.limits.request_seconds, self._transport.abort)

    def get_buffer(self, sizehint: int) -> memoryview:
        return _read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        self._unanswered_pings = 0
        self._websocket.receive_data(bytes(_read_buffer[:nbytes]))
        events = self._websocket.events_received()
        if self._opened:
            self._count_frames(len(events))
            for event in events:
                assert isinstance(event, Frame)
                self._frame(event)
        else:
            self._requested(nbytes, events)
        self._write_out()

    def eof_received(self) -> None:
        self._transport.abort()

    def pause_writing(self) -> None:
        self.congested = True
        self._later("stalled", self.limits.stalled_seconds, self._too_slow)
        if self._running:
            self._running.flow()

    def resume_writing(self) -> None:
        self.congested = False
        self._cancel("stalled")
        self.read_again("pongs")
        if self._running:
            self._running.flow()

    def connection_lost(self, problem: Exception | None) -> None:
        for name in list(self._timers):
            self._cancel(name)
        if self._admitting:
            self._admitting.cancel()
        self._drop_session()
        if self._opened:
            self._opened = False
            if self.close_code is None:
                close = self._websocket.close_rcvd or self._websocket.close_sent
                self.close_code = int(close.code) if close else 1006
            self.handler.on_closed()

    # --- the request

    def _requested(self, nbytes: int, events: list[Any]) -> None:
        self._request_bytes += nbytes
        if self._request_bytes > self.limits.request_bytes or len(events) > 1 or self._admitting:
            self._transport.abort()
        elif events:
            request: Request = events[0]
            self.path, self.headers = request.path, request.headers
            self.origin = ", ".join(request.headers.get_all("Origin")) or None
            offered = ",".join(request.headers.get_all("Sec-WebSocket-Protocol")).split(",")
            self.subprotocols = [name.strip() for name in offered if name.strip()]
            self.peer = str((self._transport.get_extra_info("peername") or ("",))[0])
            self.stop_reading("admission")
            self._admitting = asyncio.get_running_loop().create_task(self._admit(request))

    async def _admit(self, request: Request) -> None:
        try:
            refusal = await self.handler.admit()
        except Exception:
            logging.getLogger(__name__).exception("nobody is admitted: the handler failed")
            refusal = Refusal(500)
        self._admitting = None
        response = self._websocket.reject(refusal.status, refusal.text) if refusal else self._websocket.accept(request)
        self._websocket.send_response(response)
        self._opened = response.status_code == 101
        self._write_out()
        if self._opened:
            self._cancel("request")
            self._later("ping", self.limits.ping_seconds, self._ping)
            self.read_again("admission")
            self.handler.on_open()

    # --- frames

    def _frame(self, frame: Frame) -> None:
        if not self.open:
            return
        if frame.opcode is Opcode.PING and self.congested:
            # who takes nothing and asks for answers would have them all kept
            self.stop_reading("pongs")
        if frame.opcode in (Opcode.TEXT, Opcode.BINARY):
            self._text = bytearray() if frame.opcode is Opcode.TEXT else None
        elif frame.opcode is not Opcode.CONT:
            return
        try:
            if self._text is not None:
                self._add_text(self._text, frame)
            elif self._running:
                self._running.from_browser(bytes(frame.data))
        except ProtocolError as problem:
            self.end(MALFORMED, {"do": "end", "rule": "malformed", "text": str(problem)})

    def _add_text(self, text: bytearray, frame: Frame) -> None:
        text += frame.data
        self._texts += frame.fin
        if len(text) > self.limits.text_bytes or self._texts > self.limits.texts_per_second:
            raise ProtocolError("too much text")
        if not frame.fin:
            return
        try:
            message = json.loads(text)
        except (ValueError, RecursionError) as problem:
            raise ProtocolError("a text that is not JSON") from problem
        if not isinstance(message, dict):
            raise ProtocolError("a text that is not a JSON object")
        if message.get("do") != "rfb":
            self.handler.on_text(message)
        elif self._running and message.get("session") == self._running.number:
            self._running.agreed()

    def send_read(self, nbytes: int) -> None:
        """What was just read from a desktop, past the transport if nothing waits there: only what is not taken is copied."""
        header = _frame_header(nbytes)
        start, sent = LONGEST_HEADER - len(header), 0
        _outgoing[start:LONGEST_HEADER] = header
        framed = _outgoing[start : LONGEST_HEADER + nbytes]
        self.counts.bytes_out += nbytes
        if not self._transport.get_write_buffer_size() and not self._transport.is_closing():
            # what fails here fails in the transport too, which knows what to do
            with suppress(OSError):
                sent = os.write(self._descriptor, framed)
        if sent < len(framed):
            self._transport.write(bytes(framed[sent:]))

    def send(self, data: bytes) -> None:
        self.counts.bytes_out += len(data)
        self._transport.write(_frame_header(len(data)) + data)

    def _write_out(self) -> None:
        for data in self._websocket.data_to_send():
            if data:
                self._transport.write(data)
            else:
                self._drop_session()
                self._transport.close()
                self._later("close", self.limits.close_seconds, self._transport.abort)

    # --- time

    def _ping(self) -> None:
        self._unanswered_pings += 1
        if self._unanswered_pings > self.limits.silent_pings:
            self._too_slow()
        elif self.open and not self.congested:
            self._websocket.send_ping(b"")
            self._write_out()
        self._later("ping", self.limits.ping_seconds, self._ping)

    def _count_frames(self, number: int) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._second_began >= 1:
            self._second_began, self._frames, self._texts = now, 0, 0
        self._frames += number
        if self._frames > self.limits.frames_per_second:
            self.stop_reading("frames")
            self._later("frames", 1, lambda: self.read_again("frames"))

    def _too_slow(self) -> None:
        self.end(TOO_SLOW, {"do": "end", "rule": "too-slow", "text": "The connection is too slow."})

    def _later(self, name: str, seconds: float, action: Callable[[], None]) -> None:
        self._cancel(name)
        self._timers[name] = asyncio.get_running_loop().call_later(seconds, action)

    def _cancel(self, name: str) -> None:
        if timer := self._timers.pop(name, None):
            timer.cancel()

    # --- flow and sessions

    def stop_reading(self, reason: str) -> None:
        if not self._reasons_not_to_read and not self._transport.is_closing():
            self._transport.pause_reading()
        self._reasons_not_to_read.add(reason)

    def read_again(self, reason: str) -> None:
        if reason in self._reasons_not_to_read:
            self._reasons_not_to_read.discard(reason)
            if not self._reasons_not_to_read and not self._transport.is_closing():
                self._transport.resume_reading()

    def session_lost(self, session: _Session, problem: Exception | None) -> None:
        if session is self._running:
            self._drop_session()
            self.handler.on_session_lost(session.number, problem)

    def _drop_session(self) -> None:
        if session := self._running:
            self._running = None
            session.stop()
            self.read_again("desktop")


def _frame_header(length: int) -> bytes:
    """Of a binary frame (RFC 6455, 5.2): the library would make a copy of what it frames."""
    if length < 126:
        return bytes((0x82, length))
    return struct.pack(">BBH", 0x82, 126, length) if length < 65536 else struct.pack(">BBQ", 0x82, 127, length)


class _Session(asyncio.BufferedProtocol):
    """One RFB session, and the desktop's side of it."""

    def __init__(self, connection: Connection, number: int, stream: ClientStream, open_upstream: OpenUpstream) -> None:
        self.number = number
        self._connection = connection
        self._stream = stream
        self._handshake = Handshake()
        self._agreed = self._stopped = False
        self._transport: asyncio.Transport | None = None
        self._reading = True
        self._early = bytearray()
        self._unsent = b""
        self._stalled: asyncio.TimerHandle | None = None
        self._opening = asyncio.get_running_loop().create_task(self._open(open_upstream))

    async def _open(self, open_upstream: OpenUpstream) -> None:
        try:
            await open_upstream(lambda: self)
        except Exception as problem:
            self._connection.session_lost(self, problem)

    def stop(self) -> None:
        self._stopped = True
        self._opening.cancel()
        self.resume_writing()
        if self._transport:
            self._transport.abort()

    # --- from the browser

    def agreed(self) -> None:
        """The browser has a new RFB client ready for this session. What it sent before was meant for another."""
        if not self._agreed:
            self._agreed = True
            self._connection.send(self._handshake.greeting)

    def from_browser(self, data: bytes) -> None:
        if not self._agreed:
            return
        if not self._handshake.done:
            if answer := self._handshake.feed(data):
                self._connection.send(answer)
            data = self._handshake.rest
            self.flow()
        before = self._stream.counts.inputs
        self._to_desktop(self._stream.feed(data))
        for kind, so_often, until_then in zip(KINDS, self._stream.counts.inputs, before, strict=True):
            if so_often > until_then:
                self._connection.handler.on_input(kind)

    def _to_desktop(self, data: bytes) -> None:
        if self._transport:
            if data:
                self._transport.write(data)
            return
        self._unsent += data
        if len(self._unsent) > self._connection.limits.desktop_buffer:
            raise ProtocolError("too much for a desktop that has not come up yet")

    # --- the desktop's side: asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._stopped:
            self._transport.abort()
            return
        self._transport.set_write_buffer_limits(self._connection.limits.desktop_buffer)
        self._transport.write(self._unsent)
        self.flow()

    def get_buffer(self, sizehint: int) -> memoryview:
        return _desktop_buffer

    def buffer_updated(self, nbytes: int) -> None:
        if self._handshake.done and not self._stopped:
            self._connection.send_read(nbytes)
        else:
            self._early += _desktop_buffer[:nbytes]

    def flow(self) -> None:
        """Reads from the desktop while the browser is there for it and takes what it gets."""
        if not self._transport or self._stopped:
            return
        if self._handshake.done and self._early:
            self._connection.send(bytes(self._early))
            self._early.clear()
        wanted = self._handshake.done and not self._connection.congested
        if wanted != self._reading:
            self._reading = wanted
            (self._transport.resume_reading if wanted else self._transport.pause_reading)()

    def pause_writing(self) -> None:
        self._connection.stop_reading("desktop")
        stalled = TimeoutError("the desktop takes no input")
        self._stalled = asyncio.get_running_loop().call_later(
            self._connection.limits.stalled_seconds, self._connection.session_lost, self, stalled
        )

    def resume_writing(self) -> None:
        if self._stalled:
            self._stalled.cancel()
            self._stalled = None
        self._connection.read_again("desktop")

    def connection_lost(self, problem: Exception | None) -> None:
        self._connection.session_lost(self, problem)


async def serve(host: str, port: int, handler_factory: HandlerFactory, *, limits: Limits = Limits()) -> asyncio.Server:
    """Listens for browsers. The loop should be uvloop's."""
    server = await asyncio.get_running_loop().create_server(lambda: Connection(handler_factory, limits), host, port, backlog=1024)
    for listener in server.sockets:
        # It is the proxy of this machine that comes: where BBR is the default, the pace it keeps costs a fifth, and is of no use.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
    return server
