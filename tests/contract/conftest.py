"""The cloud that the contract is checked against: devcloud, or the real OpenStack that HUTCH_TEST_CLOUD (its clouds.yaml) names.

Where the two must be told apart, it is here: what they call things, and how long they take.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
from openstack.config import OpenStackConfig
from openstack.connection import Connection

from spawner.devcloud.process import running

REAL = os.environ.get("HUTCH_TEST_CLOUD", "")
VERSION = "2.79"
IMAGE = "hutch-contract"
WAIT_SECONDS = 240 if REAL else 100
PAUSE_SECONDS = 0.5 if REAL else 0.01


@dataclass(frozen=True)
class Contract:
    """One cloud, asked by plain HTTP, so that nothing is hidden or mended by a client."""

    cloud: Connection
    other: Connection
    admin: Connection
    image_id: str
    zone: str

    def ask(
        self, method: str, path: str, body: Any = None, *, service: str = "compute", version: str | None = VERSION, **more: Any
    ) -> requests.Response:
        """`who=` asks as somebody else; any other keyword is a header, with - for _."""
        connection = more.pop("who", self.cloud)
        headers = {name.replace("_", "-"): value for name, value in more.items()} | {"Accept": "application/json"}
        if service == "compute" and version:
            headers["OpenStack-API-Version"] = f"compute {version}"
        url = path if path.startswith("http") else base_url(connection, service) + path
        sent = {"X-Auth-Token": connection.session.get_token()} | headers
        return requests.request(method, url, json=body, headers=sent, timeout=120)

    def flavor_id(self, name: str) -> str:
        return next(flavor.id for flavor in self.cloud.compute.flavors() if flavor.name == name)

    @property
    def network_id(self) -> str:
        return self.cloud.network.find_network("hutch", ignore_missing=False).id

    def port(self, **more: Any) -> dict[str, Any]:
        answer = self.ask("POST", "/ports", {"port": {"network_id": self.network_id, **more}}, service="network")
        assert answer.status_code == 201, answer.text
        return answer.json()["port"]

    def request(self, **more: Any) -> dict[str, Any]:
        """The body of a create as Hutch's, without a port unless `networks` has one."""
        server = {
            "name": "hutch-contract",
            "imageRef": self.image_id,
            "flavorRef": self.flavor_id("m1.small"),
            "networks": [{"uuid": self.network_id}],
            "availability_zone": self.zone,
            **more,
        }
        return {"server": {key: value for key, value in server.items() if value is not None}}

    def create(self, **more: Any) -> str:
        answer = self.ask("POST", "/servers", self.request(**more))
        assert answer.status_code == 202, answer.text
        return answer.json()["server"]["id"]

    def server(self, server_id: str, **more: Any) -> dict[str, Any]:
        answer = self.ask("GET", f"/servers/{server_id}", **more)
        assert answer.status_code == 200, answer.text
        return answer.json()["server"]

    def act(self, server_id: str, action: str, argument: Any = None) -> requests.Response:
        return self.ask("POST", f"/servers/{server_id}/action", {action: argument})

    def until(self, server_id: str, *statuses: str) -> dict[str, Any]:
        """Waits until nothing is under way and the status is one of these."""

        def settled() -> dict[str, Any] | None:
            server = self.server(server_id)
            return server if server["status"] in statuses and server["OS-EXT-STS:task_state"] is None else None

        return wait_for(settled, f"{server_id} is {statuses}", lambda: self.server(server_id))

    def until_gone(self, server_id: str) -> None:
        wait_for(lambda: self.ask("GET", f"/servers/{server_id}").status_code == 404, f"{server_id} is gone")

    def until_true(self, condition: Callable[[], Any], what: str) -> None:
        wait_for(condition, what)

    def sweep(self) -> None:
        """Nothing of an earlier test is left: servers, ports, groups."""
        for server in self.ask("GET", "/servers").json()["servers"]:
            self.ask("DELETE", f"/servers/{server['id']}")
        wait_for(lambda: not self.ask("GET", "/servers").json()["servers"], "no server is left")
        for port in self.ask("GET", "/ports", service="network").json()["ports"]:
            if not port["device_owner"].startswith("network:"):
                self.ask("DELETE", f"/ports/{port['id']}", service="network")
        for group in self.ask("GET", "/security-groups", service="network").json()["security_groups"]:
            if group["name"] != "default":
                self.ask("DELETE", f"/security-groups/{group['id']}", service="network")


def base_url(connection: Connection, service: str) -> str:
    url = connection.session.get_endpoint(service_type=service, interface="public").rstrip("/")
    version = {"compute": "/v2.1", "network": "/v2.0", "image": "/v2", "identity": "/v3", "placement": ""}[service]
    return url if url.endswith(version) else url + version


def wait_for(condition: Callable[[], Any], what: str, last: Callable[[], Any] = lambda: "") -> Any:
    deadline = time.monotonic() + WAIT_SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {WAIT_SECONDS} s in vain until {what}: {last()}"
        time.sleep(PAUSE_SECONDS)
    return found


def connection(clouds_yaml: Path, name: str) -> Connection:
    config = OpenStackConfig(config_files=[str(clouds_yaml)], secure_files=[], vendor_files=[], load_envvars=False)
    return Connection(config=config.get_one(name))


@pytest.fixture(scope="session")
def contract_cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Contract]:
    if REAL:
        names = {"cloud": "other-app", "other": "hutch", "admin": "admin"}
        clouds = {part: connection(Path(REAL), name) for part, name in names.items()}
        # what the fake compute boots need not be bootable
        image = clouds["admin"].image.find_image(IMAGE) or clouds["admin"].create_image(
            IMAGE, data=io.BytesIO(bytes(2**20)), disk_format="raw", container_format="bare", visibility="public", wait=True
        )
        yield Contract(**clouds, image_id=image.id, zone="fake")
        return
    with running(tmp_path_factory.mktemp("devcloud"), "--boot-seconds", "0.2", payload="stub") as process:
        names = {"cloud": "devcloud-app", "other": "devcloud-other", "admin": "devcloud-admin"}
        clouds = {part: process.connect(name) for part, name in names.items()}
        image = next(image for image in clouds["admin"].image.images() if image.name == "hutch-notebook")
        yield Contract(**clouds, image_id=image.id, zone="nova")


@pytest.fixture(scope="session")
def swept(contract_cloud: Contract) -> Iterator[Contract]:
    contract_cloud.sweep()
    yield contract_cloud
    contract_cloud.sweep()


@pytest.fixture
def contract(swept: Contract) -> Contract:
    return swept


@pytest.fixture(scope="session")
def kept(swept: Contract) -> dict[str, Any]:
    """A server as Hutch makes it, for all tests that only look: id, port, and the answer of the create."""
    port = swept.port(name="hutch-contract", description="hutch-1 2", admin_state_up=True)
    more = {"metadata": {"hutch-instance": "2"}, "tags": ["hutch-1"], "config_drive": True, "user_data": "I2Nsb3VkLWNvbmZpZwo="}
    answer = swept.ask("POST", "/servers", swept.request(networks=[{"port": port["id"]}], **more))
    assert answer.status_code == 202, answer.text
    server_id = answer.json()["server"]["id"]
    first = swept.server(server_id)
    swept.until(server_id, "ACTIVE")
    return {"id": server_id, "port": port, "answer": answer, "first": first}


@pytest.fixture
def quota(contract: Contract) -> Iterator[Callable[..., None]]:
    """Sets quotas of the project until the test ends; those of Neutron by their names there."""
    project = contract.cloud.current_project_id
    before: list[tuple[str, dict[str, Any]]] = []

    def set_quota(service: str = "compute", **limits: int) -> None:
        path, name = (f"/os-quota-sets/{project}", "quota_set") if service == "compute" else (f"/quotas/{project}", "quota")
        old = contract.ask("GET", path, service=service, who=contract.admin).json()[name]
        before.append((service, {path: {name: {limit: old[limit] for limit in limits}}}))
        answer = contract.ask("PUT", path, {name: limits}, service=service, who=contract.admin)
        assert answer.status_code == 200, answer.text

    yield set_quota
    for service, bodies in before:
        for path, body in bodies.items():
            contract.ask("PUT", path, body, service=service, who=contract.admin)
