"""Many launches at the same moment: Hutch against a plain parallel script of openstacksdk, by the clock and in calls to the cloud.

The script does what it must and no more: a port and a server each, in threads of their own, then a look each second until
the server is ACTIVE and its agent's port is open. Hutch decides by its rules, hands over to the agent, and waits until the
notebook answers. The cloud is devcloud with its stub payload, told to take some seconds for each boot; it counts the calls itself.

A third side is JupyterHub alone, with a spawner that waits for as long as a boot takes and does nothing else: no spawner can be
faster than that.
"""

from __future__ import annotations

import socket
import time
from base64 import b64encode
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from common import (
    BenchHub,
    Figure,
    at_once,
    instance_config,
    launch_options,
    nothing_config,
    private_folder,
    report,
    running_hub,
    spread,
    stub_notebook,
    until,
)
from openstack.connection import Connection

from spawner import builders
from spawner.agent_tls import HubIdentity
from spawner.devcloud.process import running

LAUNCHES, ROUNDS = 200, 2
BOOT_SECONDS, LOOK_SECONDS = 20.0, 1.0
USERS = [f"u{number}" for number in range(LAUNCHES * ROUNDS + 1)]


def main() -> None:
    print(f"stub payload: devcloud answers in place of agent and notebook; each boot takes {BOOT_SECONDS:g} s")
    rounds = Rounds(LAUNCHES)
    with ExitStack() as stack:
        folder = stack.enter_context(private_folder())
        devcloud = stack.enter_context(running(folder / "devcloud", payload="stub"))
        devcloud.quota(instances=-1, cores=-1, ram=-1, port=-1)
        config = instance_config(devcloud, folder / "hub", USERS)
        hub = stack.enter_context(running_hub(folder / "hub", config, USERS))
        nothing = nothing_config(stack.enter_context(stub_notebook()), seconds=BOOT_SECONDS)
        alone = stack.enter_context(running_hub(folder / "alone", nothing, USERS))
        # credentials, catalogue and versions are asked for once, by both
        for each in (hub, alone):
            each.launch(USERS[-1], launch_options(USERS, USERS[-1]))
        plain = stack.enter_context(devcloud.connect())
        user_data = some_user_data(folder / "keys")
        for number in range(ROUNDS):
            users = USERS[number * LAUNCHES : (number + 1) * LAUNCHES]
            ways: dict[str, Callable[[], Any]] = {
                "script": partial(script, plain, users, user_data),
                "JupyterHub alone": partial(launches, alone, users),
                "Hutch": partial(launches, hub, users),
            }
            for name, way in ways.items():
                devcloud.next_boot(seconds=BOOT_SECONDS, times=LAUNCHES)
                rounds.measure(name, way, lambda: sum(devcloud.calls()["counts"].values()))
                if name == "script":
                    emptied(plain)
            for each in (hub, alone):
                at_once(each.end, users, 20)
    against = f"a parallel script, a look each {LOOK_SECONDS:g} s, boots of {BOOT_SECONDS:g} s, same run (stub payload)"
    alone_too = Figure(f"{LAUNCHES} launches at once of JupyterHub alone", rounds.slower("JupyterHub alone"), "x", None, against)
    report(*rounds.figures("at once", against), alone_too)


@dataclass
class Rounds:
    """The seconds and the calls to the cloud that each side needed for its launches, round by round."""

    launches: int
    taken: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    calls: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))

    def measure(self, name: str, way: Callable[[], Any], calls_so_far: Callable[[], int]) -> None:
        before, began = calls_so_far(), time.perf_counter()
        way()
        self.taken[name].append(time.perf_counter() - began)
        self.calls[name].append(calls_so_far() - before)
        words = f"{self.taken[name][-1]:.1f} s, {self.calls[name][-1]} calls"
        print(f"  round {len(self.taken[name])}, {name}: {words}", flush=True)

    def slower(self, name: str) -> float:
        """Than the script."""
        return round(median(one / plain for one, plain in zip(self.taken[name], self.taken["script"], strict=True)), 2)

    def figures(self, where: str, against: str) -> tuple[Figure, Figure]:
        for name, seconds in self.taken.items():
            calls = median(self.calls[name]) / self.launches
            print(f"{name}: {spread(seconds, 1)} s for {self.launches}; {calls:.1f} calls each")
        share = round(median(self.calls["Hutch"]) / median(self.calls["script"]), 2)
        what = f"{self.launches} launches {where}"
        return Figure(what, self.slower("Hutch"), "x", 1.1, against), Figure(f"calls of {what}", share, "x", 0.33, against)


def some_user_data(keys: Path, agent_port: int = 8765) -> str:
    return b64encode(builders.user_data(HubIdentity(keys).hub_ca_pem(), agent_port).encode()).decode()


def launches(hub: BenchHub, users: Sequence[str]) -> None:
    at_once(lambda user: hub.launch(user, launch_options(USERS, user)), users, LAUNCHES)


def script(cloud: Connection, names: Sequence[str], user_data: str, image: str = "hutch-notebook", **more: str) -> None:
    """more: other attributes of the servers."""
    what = {"image_id": cloud.image.find_image(image).id, "flavor_id": cloud.compute.find_flavor("m1.small").id, **more}
    network = cloud.network.find_network("hutch").id
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: one(cloud, name, network, user_data=user_data, **what), names))


def one(cloud: Connection, name: str, network: str, **what: str) -> None:
    port = cloud.network.create_port(network_id=network, name=f"plain-{name}")
    address = port.fixed_ips[0]["ip_address"]
    server = cloud.compute.create_server(name=f"plain-{name}", networks=[{"port": port.id}], config_drive=True, **what)
    while cloud.compute.get_server(server.id).status != "ACTIVE" or not accepts(address, 8765):
        time.sleep(LOOK_SECONDS)


def accepts(address: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((address, port), timeout=1):
        return True
    return False


def emptied(cloud: Connection) -> None:
    """Takes away what the script has made; nobody measures that."""
    for server in cloud.compute.servers(details=False):
        if server.name.startswith("plain-"):
            cloud.compute.delete_server(server)
    until(lambda: not any(one.name.startswith("plain-") for one in cloud.compute.servers(details=False)), "the servers are gone")
    for port in cloud.network.ports():
        if port.name.startswith("plain-"):
            cloud.network.delete_port(port)


if __name__ == "__main__":
    main()
