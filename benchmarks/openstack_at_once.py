"""Ten launches at the same moment on the real API: Hutch against a plain parallel script of openstacksdk, in time and in calls.

The servers are those of the fake compute, which boots nothing: beside each port's address, as soon as Neutron has it, stands
devcloud's stub of agent and notebook, and the console shows its fingerprint. Everything else is Keystone's, Glance's, Nova's and
Neutron's own answer, through a proxy that counts the calls of both. Needs the cloud of `make test-openstack`: run by
`make bench-openstack`.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web
from bench_at_once import LOOK_SECONDS, Rounds, emptied, script, some_user_data
from common import (
    INSTANCE,
    BenchHub,
    at_once,
    furnish,
    furnished_session,
    launch_options,
    private_folder,
    report,
    running_hub,
    until,
)
from openstack.config import OpenStackConfig
from openstack.connection import Connection

from hub.database.tables import Plan
from spawner.devcloud.folder import Folder
from spawner.devcloud.stub import StubAgent
from tests.faults.proxy import Answer, FaultProxy
from tests.openstack import conftest as real

LAUNCHES, ROUNDS = 10, 3
USERS = [f"u{number}" for number in range(LAUNCHES * ROUNDS + 1)]
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

    def let_go(self) -> None:
        """Of the addresses: a machine that gets one of them later could not be reached."""
        for address in self._agents:
            subprocess.run(["ip", "address", "del", f"{address}/32", "dev", "lo"], check=True)

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
    rounds = Rounds(LAUNCHES)
    real.put_image()
    with ExitStack() as stack:
        folder = stack.enter_context(private_folder())
        user_data = some_user_data(folder / "hub" / ".hutch" / "agent-tls")
        proxy = Surroundings(folder / "servers", user_data)
        in_background(proxy)
        stack.callback(proxy.let_go)
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
                rounds.measure(name, way, lambda: len(proxy.taken))
                if name == "script":
                    emptied(plain)
    against = f"a parallel script, a look each {LOOK_SECONDS:g} s, real API, fake compute, same run (stub payload)"
    report(*rounds.figures("at once on the real API", against))


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
