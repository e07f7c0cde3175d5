"""In front of the real cloud: where its fake compute says that a server runs, an agent of devcloud's stands at its address.

All else is Keystone's, Glance's, Nova's and Neutron's own answer. A machine follows what the cloud says of its server, as soon as
anybody hears it: it boots when the server is shown as ACTIVE, and ends when it is shown as off.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web
from faults.proxy import Answer, FaultProxy, reset

from spawner.devcloud.folder import Folder
from spawner.devcloud.machine import AgentMachine, Machine, Spares
from spawner.devcloud.state import Options
from spawner.devcloud.stub import StubMachine

ZONE = "fake"
OFF = ("SHUTOFF", "SHELVED", "SHELVED_OFFLOADED", "ERROR")


class StandIn:
    """What is behind one server. port: Neutron's, through which it has its address."""

    def __init__(self, folder: Folder, port: str) -> None:
        self.folder, self.port = folder, port
        self._machine: Machine | None = None
        self._address = ""
        self._changing = asyncio.Lock()

    async def on(self, address: str, stand_ins: StandIns) -> None:
        async with self._changing:
            if self._machine is None:
                self._address = address
                _address("replace", address)
                self.folder.begin_console(self.folder.path.name, address, cold=True)
                self._machine = stand_ins.machine(self.folder, address)
                await self._machine.boot()

    async def off(self) -> None:
        async with self._changing:
            if self._machine is not None:
                await self._machine.kill()
                self._machine = None
                _address("del", self._address)


class StandIns(FaultProxy):
    """payload: "stub", or "agent" for the true agent and notebook as processes of this machine."""

    def __init__(self, folder: Path, payload: str) -> None:
        super().__init__()
        self._folder, self._payload = folder, payload
        self._addresses: dict[str, str] = {}  # by port
        self._all: dict[str, StandIn] = {}  # by server
        self._spares = Spares()

    def machine(self, folder: Folder, address: str) -> Machine:
        if self._payload == "stub":
            return StubMachine(folder, address)
        return AgentMachine(folder, address, Options(state_dir=self._folder), self._spares, lambda: None)

    async def close(self) -> None:
        for one in self._all.values():
            await one.off()
        await self._spares.close()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        one = self._all.get(request.path.rpartition("/servers/")[2].removesuffix("/action"))
        if one and "os-getConsoleOutput" in await request.text():
            self.taken.append(("POST", request.path))
            return web.json_response({"output": one.folder.read_console()})
        try:
            return await super()._serve(request)
        except aiohttp.ClientError:  # the service behind is down
            return reset(request)

    async def _fetch(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        """Runs to its end though the caller may be dead: what the cloud has taken is known here."""
        answer = await super()._fetch(method, target, headers, body)
        path = urlsplit(target).path
        if method == "DELETE" and (gone := self._all.pop(path.rpartition("/")[2], None)):
            await gone.off()
        elif answer.status < 300 and answer.body.startswith(b"{"):
            await self._hear(method, path, body, json.loads(answer.body))
        return answer

    async def _hear(self, method: str, path: str, body: bytes, said: dict[str, Any]) -> None:
        for port in _listed(said, "port"):
            if port.get("fixed_ips"):
                self._addresses[port["id"]] = port["fixed_ips"][0]["ip_address"]
        if method == "POST" and path.endswith("/servers"):
            self._make(said["server"]["id"], json.loads(body)["server"])
        for server in _listed(said, "server"):
            if one := self._all.get(server["id"]):
                if server.get("status") == "ACTIVE" and not server["OS-EXT-STS:task_state"]:
                    await one.on(self._addresses[one.port], self)
                elif server.get("status") in OFF:
                    await one.off()

    def _make(self, server_id: str, wanted: dict[str, Any]) -> None:
        if wanted.get("availability_zone") == ZONE and isinstance(wanted.get("networks"), list):
            folder = Folder(self._folder / server_id)
            folder.create(wanted.get("user_data"))
            self._all[server_id] = StandIn(folder, wanted["networks"][0]["port"])


def _listed(said: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return said[f"{kind}s"] if f"{kind}s" in said else [said[kind]] if kind in said else []


def _address(change: str, address: str) -> None:
    subprocess.run(["ip", "address", change, f"{address}/32", "dev", "lo"], check=change == "replace")


@contextmanager
def standing_in(real: Path, folder: Path, payload: str = "stub") -> Iterator[tuple[StandIns, Path]]:
    """In a thread of its own. Yields it with a clouds.yaml of the same clouds through it."""
    stand_ins, ready, loop = StandIns(folder / "servers", payload), threading.Event(), asyncio.new_event_loop()
    over = asyncio.Event()
    folder.mkdir(parents=True, exist_ok=True)

    async def serve() -> None:
        async with stand_ins:
            ready.set()
            await over.wait()
            await stand_ins.close()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), daemon=True)
    thread.start()
    ready.wait()
    try:
        yield stand_ins, stand_ins.clouds_yaml(real, folder)
    finally:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(over.set)
        thread.join(30)
