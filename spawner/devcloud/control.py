"""The switches for tests, under /devcloud: no token, loopback only.

GET    /devcloud                      what this is, which payload, how many servers
POST   /devcloud/faults               a fault, see ``faults``: {"method": "POST", "path": "/servers$", "action": "status",
                                      "status": 503, "seconds": 1.0, "times": 1 (null: for ever), "skip": 0}
GET, DELETE /devcloud/faults          those in force; none any more
POST   /devcloud/latency              {"seconds": 1.0}: every call takes so much longer
GET, DELETE /devcloud/calls           the calls since the last DELETE: {"total": 3, "counts": {"GET /...": 3}, "calls": [...]}
POST   /devcloud/quota                {"instances": 10, "port": 5}: Nova's and Neutron's limits, -1 for none
POST   /devcloud/host                 {"VCPU": 8}: what its one host has, in Placement's words; what is more finds no valid host
POST   /devcloud/keep-deleted         {"keep": true}: the first DELETE of a server leaves it SOFT_DELETED, off and listed no more
POST   /devcloud/reset                as new: no server, port, security group or fault; the first quotas; calls not counted
POST   /devcloud/expire-tokens        no token is worth anything any more
POST   /devcloud/next-boot            how the next created server fares: {"error": "No valid host was found. "} or
                                      {"seconds": 2.5} (its build takes longer) or {"never_agent": true} (up, but no agent
                                      until a reboot); {"times": 3} for the next three; {} forgets what was ordered
POST   /devcloud/servers/<id>/power-off          the guest switches itself off: SHUTOFF
                             /crash              all that runs in it is killed; Nova still says ACTIVE
                             /mute               the agent answers no more (stub: port closed; agent: frozen, the port stays open)
                             /wrong-certificate  somebody else answers at the agent's port
                             /error              {"message": "..."}: state ERROR with that fault; what runs goes on running
                             /cell-down          {"down": true}: its cell does not answer: it is in no listing, and told of barely
                             /forget             the server vanishes, its ports stay
                             /console            {"text": "..."}: what the serial console shows
"""

import asyncio
import re
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from typing import Any

from aiohttp import web

from spawner.devcloud.faults import Fault, Faults
from spawner.devcloud.keystone import NOTE, Keystone
from spawner.devcloud.lifecycle import Lifecycle
from spawner.devcloud.machine import Machine
from spawner.devcloud.state import DEFAULT_HOST, DEFAULT_QUOTA, Record, Server, now

KEPT_CALLS = 10_000
IDENTIFIER = re.compile(r"/(?:[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})(?=/|$)")


@dataclass(frozen=True, slots=True)
class Call:
    method: str
    path: str
    status: int
    seconds: float
    at: float
    request_id: str


class Calls:
    """What was asked since a test last looked. Headers and bodies are not kept."""

    def __init__(self) -> None:
        self.calls: deque[Call] = deque(maxlen=KEPT_CALLS)
        self.counts: Counter[str] = Counter()

    def record(self, request: web.Request, status: int, started: float) -> None:
        took = round(time.monotonic() - started, 6)
        self.calls.append(Call(request.method, request.path_qs, status, took, time.time(), request["request_id"]))
        self.counts[f"{request.method} {IDENTIFIER.sub('/{id}', request.path)}"] += 1

    def clear(self) -> None:
        self.calls.clear()
        self.counts.clear()


class Control:
    def __init__(self, lifecycle: Lifecycle, keystone: Keystone, faults: Faults, calls: Calls) -> None:
        self._lifecycle = lifecycle
        self._state = lifecycle.state
        self._keystone = keystone
        self._faults = faults
        self._calls = calls

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/devcloud", self.show),
            web.post("/devcloud/faults", self.add_fault),
            web.get("/devcloud/faults", self.list_faults),
            web.delete("/devcloud/faults", self.clear_faults),
            web.post("/devcloud/latency", self.set_latency),
            web.get("/devcloud/calls", self.list_calls),
            web.delete("/devcloud/calls", self.clear_calls),
            web.post("/devcloud/quota", self.set_quota),
            web.post("/devcloud/host", self.set_host),
            web.post("/devcloud/keep-deleted", self.keep_deleted),
            web.post("/devcloud/reset", self.reset),
            web.post("/devcloud/expire-tokens", self.expire_tokens),
            web.post("/devcloud/next-boot", self.next_boot),
            web.post("/devcloud/servers/{id}/{verb}", self.trouble),
        ]

    async def show(self, request: web.Request) -> web.Response:
        options = self._lifecycle.options
        kind = "stub: no process runs behind a server" if options.payload == "stub" else "agent: local processes"
        seen = {
            "devcloud": NOTE,
            "payload": options.payload,
            "payload_is": kind,
            "subnet": str(self._state.subnet),
            "servers": len(self._state.servers),
            "state_dir": str(options.state_dir),
        }
        return web.json_response(seen)

    async def add_fault(self, request: web.Request) -> web.Response:
        self._faults.active.append(Fault(**await request.json()))
        return web.json_response({"faults": self._faults.describe()}, status=201)

    async def list_faults(self, request: web.Request) -> web.Response:
        return web.json_response({"faults": self._faults.describe(), "latency_seconds": self._faults.latency_seconds})

    async def clear_faults(self, request: web.Request) -> web.Response:
        self._faults.active.clear()
        self._faults.latency_seconds = 0.0
        return web.Response(status=204)

    async def set_latency(self, request: web.Request) -> web.Response:
        self._faults.latency_seconds = float((await request.json())["seconds"])
        return web.Response(status=204)

    async def list_calls(self, request: web.Request) -> web.Response:
        calls = [asdict(call) for call in self._calls.calls]
        return web.json_response({"total": self._calls.counts.total(), "counts": dict(self._calls.counts), "calls": calls})

    async def clear_calls(self, request: web.Request) -> web.Response:
        self._calls.clear()
        return web.Response(status=204)

    async def set_quota(self, request: web.Request) -> web.Response:
        changes = {str(name): int(limit) for name, limit in (await request.json()).items()}
        if unknown := changes.keys() - self._state.quota.keys():
            raise ValueError(f"no such quota: {', '.join(sorted(unknown))}; there are {', '.join(self._state.quota)}")
        self._state.set_quota(changes)
        return web.json_response({"quota": self._state.quota})

    async def set_host(self, request: web.Request) -> web.Response:
        changes = {str(kind): int(count) for kind, count in (await request.json()).items()}
        if unknown := changes.keys() - self._state.host.keys():
            raise ValueError(f"a host has {', '.join(self._state.host)}, not {', '.join(sorted(unknown))}")
        self._state.set_host(changes)
        return web.json_response({"host": self._state.host})

    async def keep_deleted(self, request: web.Request) -> web.Response:
        self._lifecycle.keeps_deleted = bool((await request.json())["keep"])
        return web.Response(status=204)

    async def reset(self, request: web.Request) -> web.Response:
        self._faults.active.clear()
        self._faults.latency_seconds = 0.0
        self._lifecycle.next_boots.clear()
        self._lifecycle.keeps_deleted = False
        await asyncio.gather(*(self._lifecycle.forget(server) for server in list(self._state.servers.values())))
        state = self._state
        records: list[Record] = [*state.tombstones.values(), *state.ports.values(), *state.security_groups.values()]
        for record in records:
            state.erase(record)
        self._state.set_quota(DEFAULT_QUOTA)
        self._state.set_host(DEFAULT_HOST)
        self._calls.clear()
        return web.Response(status=204)

    async def expire_tokens(self, request: web.Request) -> web.Response:
        self._keystone.expire_all()
        return web.Response(status=204)

    async def next_boot(self, request: web.Request) -> web.Response:
        wanted = await request.json()
        times = int(wanted.pop("times", 1))
        if unknown := wanted.keys() - {"error", "seconds", "never_agent"}:
            raise ValueError(f"next-boot knows error, seconds and never_agent, not {', '.join(sorted(unknown))}")
        if wanted:
            self._lifecycle.next_boots += [dict(wanted) for _ in range(times)]
        else:
            self._lifecycle.next_boots.clear()
        return web.json_response({"next_boots": self._lifecycle.next_boots})

    async def trouble(self, request: web.Request) -> web.Response:
        server = self._state.servers.get(request.match_info["id"])
        verbs = {
            "power-off": self._power_off,
            "crash": self._crash,
            "mute": self._mute,
            "wrong-certificate": self._wrong_certificate,
            "error": self._error,
            "forget": self._forget,
            "cell-down": self._cell_down,
            "console": self._console,
        }
        verb = verbs.get(request.match_info["verb"])
        if server is None or verb is None:
            raise web.HTTPNotFound
        await verb(server, await request.json() if request.can_read_body else {})
        return web.Response(status=204)

    async def _power_off(self, server: Server, wanted: dict[str, Any]) -> None:
        machine = self._lifecycle.machines.get(server.id)
        if machine is not None:
            await machine.kill()
        self._lifecycle.powered_off(server)

    def _machine(self, server: Server) -> Machine:
        machine = self._lifecycle.machines.get(server.id)
        if machine is None:
            raise ValueError(f"nothing runs in server {server.id}, which is {server.vm_state}")
        return machine

    async def _crash(self, server: Server, wanted: dict[str, Any]) -> None:
        await self._machine(server).crash()

    async def _mute(self, server: Server, wanted: dict[str, Any]) -> None:
        await self._machine(server).mute()

    async def _wrong_certificate(self, server: Server, wanted: dict[str, Any]) -> None:
        await self._machine(server).impersonate()

    async def _error(self, server: Server, wanted: dict[str, Any]) -> None:
        message = str(wanted.get("message", "Unexpected error (a test asked devcloud for it)"))
        server.fault = {"code": 500, "created": now(), "message": message, "details": message}
        server.vm_state, server.task_state = "error", None
        self._state.save(server)

    async def _cell_down(self, server: Server, wanted: dict[str, Any]) -> None:
        server.cell_is_down = bool(wanted["down"])
        self._state.save(server)

    async def _forget(self, server: Server, wanted: dict[str, Any]) -> None:
        await self._lifecycle.forget(server)

    async def _console(self, server: Server, wanted: dict[str, Any]) -> None:
        self._lifecycle.folder(server).console.write_text(str(wanted["text"]))


def from_this_machine(request: web.Request) -> bool:
    """A caller on loopback that is no web page."""
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    return peer is not None and ip_address(peer[0]).is_loopback and "Origin" not in request.headers
