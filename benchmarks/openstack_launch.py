"""What Hutch adds to the boot of a virtual machine on the real cloud: a launch, split where it waits for others.

The figure is of a hub at work, which has launched before; its first launch is shown too.

A prober beside the hub looks all the time for what the hub waits for: the machine's agent that listens, the notebook that answers.
What lies between these moments and Hutch's own is Hutch's; the boot, and the notebook's start on an emulated processor, are not.
Needs the cloud and the image of `make test-openstack`: run by `make bench-openstack`.
"""

from __future__ import annotations

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import requests
from common import (
    HUB,
    INSTANCE,
    SERVER,
    BenchHub,
    Figure,
    furnish,
    furnished_session,
    launch_options,
    private_folder,
    report,
    until,
)
from openstack.connection import Connection
from openstack_at_once import swept

from hub.database.tables import Plan
from tests.openstack import conftest as real

USERS, ALLOWED_SECONDS, LOOK_SECONDS, ROUNDS = ("ann", "bob"), 500, 0.02, 5
CONFIG = f"""
c.JupyterHub.authenticator_class = "hub.authenticator.DemoAuthenticator"
c.JupyterHub.hub_ip = {real.HUB_ADDRESS!r}
c.JupyterHub.internal_ssl = True
c.JupyterHub.trusted_alt_names = ["IP:{real.HUB_ADDRESS}"]
c.ConfigurableHTTPProxy.api_url = c.ConfigurableHTTPProxy.api_url.replace("http:", "https:")
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 1}}
c.Spawner.http_timeout = 120
c.OpenStackSpawner.cloud_name = "hutch-app"
c.OpenStackSpawner.clouds_yaml = {str(real.CLOUDS_YAML)!r}
c.OpenStackSpawner.network = "hutch"
c.OpenStackSpawner.availability_zone = "real"
c.OpenStackSpawner.boot_timeout_seconds = {ALLOWED_SECONDS}
"""


GROUP = "c.OpenStackSpawner.security_groups = [{!r}]\n"


@contextmanager
def let_in(cloud: Connection) -> Iterator[str]:
    """A security group that lets in who is on the hub's address, to everything."""
    group = cloud.network.create_security_group(name="bench")
    cloud.network.create_security_group_rule(
        security_group_id=group.id, direction="ingress", ether_type="IPv4", remote_ip_prefix=f"{real.HUB_ADDRESS}/32"
    )
    try:
        yield group.name
    finally:
        cloud.network.delete_security_group(group)


class Prober(threading.Thread):
    """Notes when the agent begins to listen and when the notebook's port first shakes hands; finds the address by itself."""

    def __init__(self, cloud: Connection) -> None:
        super().__init__(daemon=True)
        self._cloud = cloud
        self._known = {port.id for port in cloud.network.ports()}
        self.address, self.agent, self.notebook = "", 0.0, 0.0

    def run(self) -> None:
        self.address = until(self._find, "there is a port", ALLOWED_SECONDS, 0.3)
        self.agent = self._since(8765, lambda _: True)
        self.notebook = self._since(8888, self._shakes_hands)

    def _find(self) -> str:
        ours = self._cloud.network.ports(project_id=self._cloud.current_project_id)
        ports = [port for port in ours if port.name and port.id not in self._known]
        return ports[0].fixed_ips[0]["ip_address"] if ports else ""

    def _since(self, port: int, answers: Callable[[socket.socket], bool]) -> float:
        def looks() -> float:
            with suppress(OSError), socket.create_connection((self.address, port), timeout=2) as connection:
                return time.monotonic() if answers(connection) else 0.0
            return 0.0

        return until(looks, f"{self.address}:{port} answers", ALLOWED_SECONDS, LOOK_SECONDS)

    def _shakes_hands(self, connection: socket.socket) -> bool:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with context.wrap_socket(connection):
            return True


def main() -> None:
    real.put_image()
    with ExitStack() as stack:
        folder = stack.enter_context(private_folder())
        cloud = stack.enter_context(real.connection("hutch-app"))
        assert not list(cloud.compute.servers()), "the project must be empty"
        group = stack.enter_context(let_in(cloud))
        stack.callback(swept, stack.enter_context(real.connection("admin")))
        hub = BenchHub(folder, HUB + INSTANCE.format(state_dir=str(folder)) + CONFIG + GROUP.format(group))
        stack.callback(hub.stop)
        furnish(folder, USERS)
        with furnished_session(folder) as session:
            plan = session.get_one(Plan, "notebook")
            plan.image, plan.flavor = real.IMAGE, "m1.small"
        hub.start()
        hub.add_users(USERS)
        own = own_answers(cloud)
        for user in USERS:
            prober = Prober(cloud)
            prober.start()
            launched = launch(hub, user)
            prober.join(10)
            assert hub._as_user("DELETE", user, SERVER).status_code in (202, 204)
            until(lambda: {one.status for one in cloud.compute.servers()} == {"SHUTOFF"}, "it is off", ALLOWED_SECONDS, 0.5)
            print(f"{user}'s launch:")
            adds, seconds = told(*launched, prober, own)
    report(Figure("what Hutch adds to a boot", round(adds, 2), "s", 1.5, f"of {seconds:.0f} s from the click to the page"))


def launch(hub: BenchHub, user: str) -> tuple[float, dict[str, float], float]:
    """When it was clicked; when each stage began and ended, as '<stage> <state>', and "served"; when the page was there."""
    clicked = time.monotonic()
    assert hub._as_user("POST", user, SERVER, json=launch_options(USERS, user)).status_code in (201, 202)
    heard: list[tuple[float, dict[str, Any]]] = []
    url = f"http://localhost:{hub.port}/hub/api/users/{user}/servers/{SERVER}/progress"
    headers = {"Authorization": f"token {hub.tokens[user]}"}
    with requests.get(url, headers=headers, stream=True, timeout=ALLOWED_SECONDS) as answer:
        for line in answer.iter_lines(chunk_size=1):
            if line.startswith(b"data: "):
                event: dict[str, Any] = json.loads(line.removeprefix(b"data: "))
                if event.get("failed"):
                    raise RuntimeError(event["message"])
                if event.get("ready"):
                    served = time.monotonic()
                if "stage" in event:
                    heard.append((time.monotonic(), event))
    until(lambda: requests.get(f"{hub.notebook_url(user)}lab", headers=headers, timeout=60).status_code == 200, "the page is there")
    opened = time.monotonic()
    # each event carries its time since the launch began; what came as it happened tells when that was
    began = min(at - event["elapsed_seconds"] for at, event in heard)
    stages = {f"{event['stage']} {event['state']}": began + event["elapsed_seconds"] for _, event in heard}
    return clicked, stages | {"served": served}, opened


def own_answers(cloud: Connection) -> dict[str, float]:
    """How long Neutron and Nova take to answer the two calls of a launch, asked by openstacksdk alone: the median of some."""
    image, flavor = cloud.image.find_image(real.IMAGE), cloud.compute.find_flavor("m1.small")
    network, taken = cloud.network.find_network("hutch"), []
    for _ in range(ROUNDS):
        began = time.monotonic()
        port = cloud.network.create_port(network_id=network.id)
        at = time.monotonic()
        server = cloud.compute.create_server(
            name="own", image_id=image.id, flavor_id=flavor.id, networks=[{"port": port.id}], availability_zone="fake"
        )
        taken.append((at - began, time.monotonic() - at))
        cloud.compute.delete_server(server)
        cloud.compute.wait_for_delete(server, wait=120)
        cloud.network.delete_port(port)
    return dict(zip(("Neutron", "Nova"), map(median, zip(*taken, strict=True)), strict=True))


def told(clicked: float, stages: dict[str, float], opened: float, prober: Prober, own: dict[str, float]) -> tuple[float, float]:
    """Prints where the time went; returns what is Hutch's of it, and all of it."""
    parts = {
        "click until Nova has accepted": stages["create done"] - clicked,
        "agent listens until the hub acts": stages["identify started"] - prober.agent,
        "notebook answers until the page is there": opened - prober.notebook,
    }
    others = {
        "boot": prober.agent - stages["create done"],
        "the agent's fingerprint on the console": stages["identify done"] - stages["identify started"],
        "account and environment": stages["notebook started"] - stages["identify done"],
        "JupyterLab starts in the machine": prober.notebook - stages["notebook started"],
    }
    of_these = {
        "until the rules have allowed it": stages["rights done"] - clicked,
        "Neutron's own answer, asked to make a port": own["Neutron"],
        "Nova's own answer, asked to make a server": own["Nova"],
        "notebook answers until the agent has said so": stages["ready done"] - prober.notebook,
        "JupyterHub's own look at it, and the route": stages["served"] - stages["ready done"],
        "JupyterLab's first page": opened - stages["served"],
    }
    for name, seconds in (parts | others | of_these).items():
        print(f"  {name}: {seconds:.2f} s")
    return sum(parts.values()), opened - clicked


if __name__ == "__main__":
    print(f"image {Path(real.IMAGE_FILE).name}")
    main()
