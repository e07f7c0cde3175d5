"""Ten launches at the same moment on the real API: Hutch against a plain parallel script of openstacksdk, in time and in calls.

The servers are those of the fake compute, which boots nothing: beside each port's address, as soon as Neutron has it, stands
devcloud's stub of agent and notebook, and the console shows its fingerprint. Everything else is Keystone's, Glance's, Nova's and
Neutron's own answer, through a proxy that counts the calls of both. Needs the cloud of `make test-openstack`: run by
`make bench-openstack`.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from base64 import b64encode
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from aiohttp import web
from bench_at_once import LOOK_SECONDS, emptied, script
from common import (
    INSTANCE,
    BenchHub,
    Figure,
    at_once,
    furnish,
    furnished_session,
    launch_options,
    private_folder,
    report,
    running_hub,
    spread,
    until,
)
from openstack.config import OpenStackConfig
from openstack.connection import Connection

from hub.database.tables import Plan
from spawner import builders
from spawner.agent_tls import HubIdentity
from spawner.devcloud.folder import Folder
from spawner.devcloud.stub import StubAgent
from tests.faults.proxy import Answer, FaultProxy
from tests.openstack import conftest as real

LAUNCHES, ROUNDS = 10, 3
USERS = [f"u{number}" for number in range(LAUNCHES * ROUNDS + 1)]
AGENT_PORT = 8765
CONFIG = """
c.OpenStackSpawner.cloud_name = "hutch-app"
c.OpenStackSpawner.clouds_yaml = {clouds_yaml!r}
c.OpenStackSpawner.network = "hutch"
c.OpenStackSpawner.availability_zone = "fake"
"""


class Surroundings(FaultProxy):
    """In front of the cloud: has an agent at every address that Neutron gives, and its fingerprint on every console."""

    def __init__(self, folder: Path, user_data: str) -> None:
        super().__init__()
        self._folder, self._user_data = folder, user_data
        self._agents: dict[str, StubAgent] = {}

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if request.path.endswith("/action") and "os-getConsoleOutput" in await request.text():
            self.taken.append(("POST", request.path))
            # all agents have one key: nothing here tells a server from its console
            [one, *_] = self._agents.values()
            return web.json_response({"output": f"HUTCH-AGENT fingerprint sha256:{one.fingerprint}\n"})
        return await super()._serve(request)

    async def _forward(self, request: web.Request, path: str) -> Answer:
        answer = await super()._forward(request, path)
        if request.method == "POST" and path.endswith("/v2.0/ports") and answer.status == 201:
            await self._stand_at(json.loads(answer.body)["port"]["fixed_ips"][0]["ip_address"])
        return answer

    async def _stand_at(self, address: str) -> None:
        if address in self._agents:
            return
        added = await asyncio.create_subprocess_exec("ip", "address", "add", f"{address}/32", "dev", "lo")
        assert await added.wait() == 0
        folder = Folder(self._folder / address)
        folder.create(self._user_data)
        key = folder.path / "agent.pem"
        if self._agents:
            key.hardlink_to(self._folder / next(iter(self._agents)) / "agent.pem")
        self._agents[address] = StubAgent(folder, address)
        await self._agents[address].listen()


def in_background(proxy: Surroundings) -> None:
    """Serves in a thread of its own until the program ends."""
    ready = threading.Event()

    async def serve() -> None:
        async with proxy:
            ready.set()
            await asyncio.Event().wait()

    threading.Thread(target=lambda: asyncio.run(serve()), daemon=True).start()
    ready.wait()


def main() -> None:
    taken: dict[str, list[float]] = {"script": [], "Hutch": []}
    calls: dict[str, list[int]] = {"script": [], "Hutch": []}
    real.put_image()
    with ExitStack() as stack:
        folder = stack.enter_context(private_folder())
        user_data = b64encode(
            builders.user_data(HubIdentity(folder / "hub" / ".hutch" / "agent-tls").hub_ca_pem(), AGENT_PORT).encode()
        ).decode()
        proxy = Surroundings(folder / "servers", user_data)
        in_background(proxy)
        clouds_yaml = proxy.clouds_yaml(real.CLOUDS_YAML, folder)
        admin = stack.enter_context(real.connection("admin"))
        project = admin.identity.find_project("hutch").id
        admin.set_compute_quotas(project, instances=-1, cores=-1, ram=-1)
        admin.set_network_quotas(project, port=-1)
        hub = stack.enter_context(started(folder / "hub", str(clouds_yaml)))
        stack.callback(swept, admin)
        # credentials, catalogue and versions are asked for once, by both
        hub.launch(USERS[-1], launch_options(USERS, USERS[-1]))
        config = OpenStackConfig(config_files=[str(clouds_yaml)], secure_files=[], vendor_files=[], load_envvars=False)
        plain = stack.enter_context(Connection(config=config.get_one("hutch-app")))
        list(plain.compute.servers())
        for number in range(ROUNDS):
            users = USERS[number * LAUNCHES : (number + 1) * LAUNCHES]
            ways: dict[str, Callable[[], Any]] = {
                "script": partial(script, plain, users, user_data, real.IMAGE, availability_zone="fake"),
                "Hutch": partial(at_once, partial(launched, hub), users, LAUNCHES),
            }
            for name, way in sorted(ways.items(), reverse=number % 2 == 0):
                before, began = len(proxy.taken), time.perf_counter()
                way()
                taken[name].append(time.perf_counter() - began)
                calls[name].append(len(proxy.taken) - before)
                print(f"  round {number + 1}, {name}: {taken[name][-1]:.1f} s, {calls[name][-1]} calls", flush=True)
                if name == "script":
                    emptied(plain)
    for name in taken:
        print(f"{name}: {spread(taken[name], 1)} s for {LAUNCHES}; {median(calls[name]) / LAUNCHES:.1f} calls each")
    slower = [ours / theirs for ours, theirs in zip(taken["Hutch"], taken["script"], strict=True)]
    share = median(calls["Hutch"]) / median(calls["script"])
    against = f"a parallel script, a look each {LOOK_SECONDS:g} s, real API, fake compute, same run (stub payload)"
    report(
        Figure(f"{LAUNCHES} launches at once on the real API", round(median(slower), 2), "x", 1.1, against),
        Figure(f"calls of {LAUNCHES} launches at once on the real API", round(share, 2), "x", 0.33, against),
    )


def started(folder: Path, clouds_yaml: str) -> Any:
    """The hub, with a plan for the cloud's own image."""
    furnish(folder, USERS)
    with furnished_session(folder) as session:
        session.get_one(Plan, "notebook").image = real.IMAGE
    return running_hub(folder, INSTANCE.format(state_dir=str(folder)) + CONFIG.format(clouds_yaml=clouds_yaml), USERS)


def launched(hub: BenchHub, user: str) -> None:
    hub.launch(user, launch_options(USERS, user))


def swept(admin: Connection) -> None:
    for server in admin.compute.servers(all_projects=True):
        admin.compute.delete_server(server)
    until(lambda: not list(admin.compute.servers(all_projects=True)), "the servers are gone", 120, 0.5)
    for port in admin.network.ports():
        if port.name.startswith("hutch-"):
            admin.network.delete_port(port)


if __name__ == "__main__":
    main()
