"""An HTTP proxy that stands in front of any OpenStack and does to its answers what networks, proxies and clouds do.

It fronts every service: addresses in what the cloud answers (catalogue, versions, links) are turned into its own, which carry the
real one: http://127.0.0.1:PORT/https/cloud.example:8774/v2.1/servers.

    async with FaultProxy() as proxy:
        clouds_yaml = proxy.clouds_yaml(real_clouds_yaml, folder)
        proxy.faults = [Fault("reset-after", method="POST", path="/servers$")]
"""

from __future__ import annotations

import asyncio
import re
import socket
import struct
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web
from multidict import CIMultiDict

ORIGIN = re.compile(rb"(https?)://([^/\"\s\\]+)")
HTML = "<html><head><title>Not Found</title></head><body><h1>Not Found</h1><hr>nginx</body></html>"
HOP_BY_HOP = {"connection", "content-encoding", "content-length", "host", "keep-alive", "transfer-encoding"}
DRIPS, DRIP_SECONDS = 12, 1.0


@dataclass
class Fault:
    """action: a name in ACTIONS. path: a pattern that is found in the cloud's own path and query. times: None for ever."""

    action: str
    method: str = ""
    path: str = ""
    times: int | None = None

    def is_for(self, request: web.Request, path: str) -> bool:
        return self.method in ("", request.method) and re.search(self.path, path) is not None


@dataclass
class Answer:
    status: int
    headers: CIMultiDict[str] = field(default_factory=CIMultiDict)
    body: bytes = b""

    def response(self) -> web.Response:
        return web.Response(status=self.status, headers=self.headers, body=self.body)


class FaultProxy:
    """taken: the calls that reached the cloud, as (method, path), oldest first."""

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.taken: list[tuple[str, str]] = []
        self.met: list[str] = []  # actions of the faults that came into force
        self._older: dict[str, Answer] = {}

    async def __aenter__(self) -> FaultProxy:
        self._client = aiohttp.ClientSession(
            auto_decompress=True, timeout=aiohttp.ClientTimeout(total=60), skip_auto_headers=["Content-Type"]
        )
        app = web.Application(client_max_size=2**24)
        app.router.add_route("*", "/{scheme}/{netloc}{tail:.*}", self._serve)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()
        await self._runner.cleanup()

    def address(self, url: str) -> str:
        """The proxy's address for one of the cloud."""
        parts = urlsplit(url)
        return f"{self.url}/{parts.scheme}/{parts.netloc}{parts.path}"

    def clouds_yaml(self, real: Path, folder: Path) -> Path:
        """The same clouds, through the proxy."""
        path = folder / "clouds.yaml"
        path.touch(0o600)
        path.write_bytes(self._own(real.read_bytes()))
        return path

    def _own(self, content: bytes) -> bytes:
        """With the proxy's addresses for the cloud's."""
        return ORIGIN.sub(rb"%b/\1/\2" % self.url.encode(), content)

    # --- one call

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        path = request.path_qs.split("/", 3)[3] if request.path_qs.count("/") > 2 else ""
        fault = next((one for one in self.faults if one.is_for(request, f"/{path}")), None)
        if fault is None:
            return (await self._forward(request, f"/{path}")).response()
        self.met.append(fault.action)
        if fault.times is not None:
            fault.times -= 1
            if fault.times <= 0:
                self.faults.remove(fault)
        return await ACTIONS[fault.action](self, request, f"/{path}")

    async def _forward(self, request: web.Request, path: str) -> Answer:
        self.taken.append((request.method, path))
        target = f"{request.match_info['scheme']}://{request.match_info['netloc']}{path}"
        headers = {name: value for name, value in request.headers.items() if name.lower() not in HOP_BY_HOP}
        # a caller that gives up does not undo what it asked for
        answer = await asyncio.shield(asyncio.ensure_future(self._fetch(request.method, target, headers, await request.read())))
        if request.method == "GET":
            self._older.setdefault(target, answer)
        return answer

    async def _fetch(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        async with self._client.request(method, target, headers=headers, data=body or None, allow_redirects=False) as real:
            kept = CIMultiDict((name, value) for name, value in real.headers.items() if name.lower() not in HOP_BY_HOP)
            content = self._own(await real.read())
            if "Location" in kept:
                kept["Location"] = self.address(kept["Location"])
            return Answer(real.status, kept, content)

    # --- faults; those that take the call let the cloud carry it out

    async def _reset_before(self, request: web.Request, path: str) -> web.StreamResponse:
        return reset(request)

    async def _reset_after(self, request: web.Request, path: str) -> web.StreamResponse:
        await self._forward(request, path)
        return reset(request)

    async def _time_out(self, request: web.Request, path: str) -> web.StreamResponse:
        await self._forward(request, path)
        await asyncio.sleep(120)
        return reset(request)

    async def _drip(self, request: web.Request, path: str) -> web.StreamResponse:
        """Byte by byte, so that no read of the caller's times out; after some seconds all of the rest."""
        answer = await self._forward(request, path)
        response = web.StreamResponse(status=answer.status, headers=answer.headers)
        response.content_length = len(answer.body)
        await response.prepare(request)
        for at in range(min(DRIPS, len(answer.body))):
            await response.write(answer.body[at : at + 1])
            await asyncio.sleep(DRIP_SECONDS)
        await response.write(answer.body[DRIPS:])
        return response

    async def _truncated(self, request: web.Request, path: str) -> web.StreamResponse:
        answer = await self._forward(request, path)
        answer.body = answer.body[: len(answer.body) // 2]
        return answer.response()

    async def _wrong_json(self, request: web.Request, path: str) -> web.StreamResponse:
        answer = await self._forward(request, path)
        answer.body = b'{"status": "ok"}'
        answer.headers["Content-Type"] = "application/json"
        answer.status = 200 if answer.status == 204 else answer.status
        return answer.response()

    async def _stale(self, request: web.Request, path: str) -> web.StreamResponse:
        """What a cache in between kept: the first answer that it saw."""
        target = f"{request.match_info['scheme']}://{request.match_info['netloc']}{path}"
        return (self._older.get(target) or await self._forward(request, path)).response()

    async def _twice(self, request: web.Request, path: str) -> web.StreamResponse:
        """A proxy that repeats what it takes for lost."""
        await self._forward(request, path)
        return (await self._forward(request, path)).response()


def reset(request: web.Request) -> web.Response:
    if request.transport is not None:
        request.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        request.transport.abort()
    return web.Response(status=500)


def _says(status: int, *, html: bool = False, **headers: str) -> Callable[..., Coroutine[Any, Any, web.StreamResponse]]:
    """The call is not carried out."""

    async def answer(proxy: FaultProxy, request: web.Request, path: str) -> web.StreamResponse:
        if html:
            return web.Response(status=status, text=HTML, content_type="text/html", headers=headers)
        body = {"error": {"code": status, "message": f"A fault that a test asked for ({status})"}}
        return web.json_response(body, status=status, headers=headers)

    return answer


ACTIONS: dict[str, Callable[..., Coroutine[Any, Any, web.StreamResponse]]] = {
    "500": _says(500),
    "503": _says(503),
    "429": _says(429, **{"Retry-After": "1"}),
    "409": _says(409),
    "401": _says(401),
    "404-html": _says(404, html=True),
    "reset-before": FaultProxy._reset_before,
    "reset-after": FaultProxy._reset_after,
    "time-out": FaultProxy._time_out,
    "drip": FaultProxy._drip,
    "truncated": FaultProxy._truncated,
    "wrong-json": FaultProxy._wrong_json,
    "stale": FaultProxy._stale,
    "twice": FaultProxy._twice,
}
