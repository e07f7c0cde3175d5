"""What Hutch adds to the boot of a real machine, split within each boot; on `tests/openstack/cloud`, which has our image already.

click -> Nova has accepted; the agent listens (seen by a prober beside) -> the hub acts; the notebook answers (seen by another) ->
the hub says ready, and the page opens. Beside it, what a plain script of openstacksdk needs until Nova has accepted.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

import requests
from openstack.config import OpenStackConfig
from openstack.connection import Connection

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent), str(HERE.parents[1] / "benchmarks")]

from common import Figure, report  # noqa: E402
from running_hub import RunningHub  # noqa: E402
from test_launch import CONFIG, PORT  # noqa: E402

BOOTS, LIMIT_SECONDS = 3, 1.5
LOOK_SECONDS = 0.01
CLOUDS_YAML = os.environ["HUTCH_TEST_CLOUD"]


class Prober(threading.Thread):
    """Looks for the machine's port in Neutron, then for its agent, then for its notebook; says when each was there."""

    def __init__(self, cloud: Connection, name: str) -> None:
        super().__init__(daemon=True)
        self.cloud, self.name_of_server = cloud, name
        self.listens = self.answers = 0.0
        self.start()

    def run(self) -> None:
        while not (ports := [one for one in self.cloud.network.ports() if one.name.startswith("hutch-")]):
            time.sleep(0.2)
        address = ports[0].fixed_ips[0]["ip_address"]
        self.listens = self._seen(f"https://{address}:{PORT}/")
        self.answers = self._seen(f"http://{address}:8888/user/ann/{self.name_of_server}/api")

    @staticmethod
    def _seen(url: str) -> float:
        """When anything was answered, or the connection was taken and refused as a stranger's."""
        while True:
            with suppress(requests.ConnectTimeout):
                try:
                    requests.get(url, timeout=(0.5, 5), verify=False)  # noqa: S501 - whoever answers
                    return time.monotonic()
                except requests.exceptions.SSLError:
                    return time.monotonic()
                except requests.ConnectionError as error:
                    if "Connection aborted" in str(error):
                        return time.monotonic()
            time.sleep(LOOK_SECONDS)


def main() -> None:
    config = OpenStackConfig(config_files=[CLOUDS_YAML], secure_files=[], vendor_files=[], load_envvars=False)
    sums = []
    with Connection(config=config.get_one("hutch-app")) as cloud, tempfile.TemporaryDirectory() as folder:
        hub = RunningHub(Path(folder, "hub"), CONFIG)
        hub.start()
        try:
            hub.add_user("ann")
            for number in range(BOOTS):
                sums.append(one_boot(hub, cloud, f"films{number}"))
                print(f"  a plain script: port and server accepted after {plain(cloud):.2f} s", flush=True)
        finally:
            hub.stop()
    words = "click to accepted, listening to acting, answering to open; the median of a few boots"
    report(Figure("what Hutch adds to a real boot", round(statistics.median(sums), 2), "s", LIMIT_SECONDS, words))


def one_boot(hub: RunningHub, cloud: Connection, name: str) -> float:
    prober, at = Prober(cloud, name), {}
    began = time.monotonic()
    hub.api("POST", f"users/ann/servers/{name}", json={}).raise_for_status()
    with hub.api("GET", f"users/ann/servers/{name}/progress", stream=True) as answer:
        for line in answer.iter_lines():
            for stage in ("create", "boot", "notebook"):
                if f'"stage": "{stage}", "state": "done"'.encode() in line:
                    at[stage] = time.monotonic()
            if b'"ready": true' in line:
                at["ready"] = time.monotonic()
                break
            assert b'"failed": true' not in line, line
    prober.join(30)
    accepted, acts, opens = at["create"] - began, at["boot"] - prober.listens, at["ready"] - prober.answers
    print(
        f"boot of {at['ready'] - began:.1f} s: accepted {accepted:.2f}",
        f"listening -> acting {acts:.2f}, answering -> open {opens:.2f}",
        sep=", ",
        flush=True,
    )
    hub.api("DELETE", f"users/ann/servers/{name}", json={"remove": True}).raise_for_status()
    gone(cloud)
    return accepted + acts + opens


def plain(cloud: Connection) -> float:
    image, flavor = cloud.image.find_image("base-notebook").id, cloud.compute.find_flavor("m1.small").id
    network = cloud.network.find_network("hutch").id
    began = time.monotonic()
    port = cloud.network.create_port(network_id=network, name="plain")
    body = {"image_id": image, "flavor_id": flavor, "networks": [{"port": port.id}], "availability_zone": "fake"}
    server = cloud.compute.create_server(name="plain", config_drive=True, **body)
    seconds = time.monotonic() - began
    cloud.compute.wait_for_server(server)
    cloud.compute.delete_server(server)
    gone(cloud)
    cloud.network.delete_port(port)
    return seconds


def gone(cloud: Connection) -> None:
    while list(cloud.compute.servers(details=False)):
        time.sleep(0.5)


if __name__ == "__main__":
    main()
