"""Faults on request: what a test asks of /devcloud/faults, and how it is done to the calls that match.

action       what the caller sees
status       `status` in the service's own error body; the call is not carried out
retry-after  the same (429 unless said otherwise) with Retry-After: `seconds`
delay        the right answer, `seconds` later
drop-before  the connection is reset; the call is not carried out
drop-after   the call is carried out; then the connection is reset without an answer
garbage      the call is carried out; the answer is not JSON though it says so
truncate     the call is carried out; half the answer, then a reset
"""

import asyncio
import re
import socket
import struct
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from typing import Any

from aiohttp import web

from spawner.devcloud.errors import ApiError, response, title

ACTIONS = ("status", "retry-after", "delay", "drop-before", "drop-after", "garbage", "truncate")
GARBAGE = b'{"servers": [<html>502 Bad Gateway\x00\xff'


@dataclass
class Fault:
    action: str
    method: str = ""
    path: str = ""
    status: int = 0
    message: str = ""
    seconds: float = 0.0
    times: int | None = 1
    skip: int = 0
    done: int = 0

    def __post_init__(self) -> None:
        if self.action not in ACTIONS:
            raise ValueError(f"action {self.action!r} is not one of {', '.join(ACTIONS)}")
        self.status = self.status or (429 if self.action == "retry-after" else 503)
        re.compile(self.path)

    def matches(self, request: web.Request) -> bool:
        return self.method.upper() in ("", request.method) and re.search(self.path, request.path_qs) is not None


class Faults:
    """The faults in force, and a latency that every call pays."""

    def __init__(self) -> None:
        self.active: list[Fault] = []
        self.latency_seconds = 0.0

    def describe(self) -> list[dict[str, Any]]:
        return [asdict(fault) for fault in self.active]

    def take(self, request: web.Request) -> Fault | None:
        """The first fault that is due for this request. It counts as used."""
        for fault in self.active:
            if not fault.matches(request):
                continue
            if fault.skip > 0:
                fault.skip -= 1
                continue
            fault.done += 1
            if fault.times is not None and fault.done >= fault.times:
                self.active.remove(fault)
            return fault
        return None

    async def apply(
        self, request: web.Request, service: str, answer: Callable[[], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if self.latency_seconds:
            await asyncio.sleep(self.latency_seconds)
        fault = self.take(request)
        if fault is None:
            return await answer()
        if fault.action in ("status", "retry-after"):
            headers = {"Retry-After": f"{fault.seconds:g}"} if fault.action == "retry-after" else {}
            message = fault.message or f"{title(fault.status)} (a fault that a test asked devcloud for)"
            return response(service, ApiError(fault.status, message, title(fault.status).replace(" ", ""), headers))
        if fault.action == "drop-before":
            return reset(request)
        if fault.action == "delay":
            await asyncio.sleep(fault.seconds)
            return await answer()
        # A caller that gives up does not undo what it asked for.
        right = await asyncio.shield(asyncio.ensure_future(answer()))
        if fault.action == "drop-after":
            return reset(request)
        if fault.action == "truncate":
            return await half(request, right)
        return web.Response(body=GARBAGE, status=right.status, content_type="application/json")


def reset(request: web.Request) -> web.Response:
    """End the connection with RST, as a dying proxy does."""
    if request.transport is not None:
        connection = request.transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
    return web.Response(status=500)


async def half(request: web.Request, whole: web.StreamResponse) -> web.StreamResponse:
    body = bytes(whole.body) if isinstance(whole, web.Response) and isinstance(whole.body, bytes | bytearray) else b""
    part = web.StreamResponse(status=whole.status, headers={"Content-Type": "application/json"})
    part.content_length = max(len(body), 2)
    await part.prepare(request)
    await part.write(body[: len(body) // 2])
    if request.transport is not None:
        request.transport.close()
    return part
