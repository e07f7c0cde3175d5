"""Tests that need the real cloud: only collected where HUTCH_TEST_CLOUD names its clouds.yaml (see `make test-openstack`)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from openstack.config import OpenStackConfig
from openstack.connection import Connection
from running_hub import until

from hub.configuration import Hutch
from hub.database.engine import open_database, upgrade
from hub.facility import Facility
from hub.firewall import BASE, Firewall
from hub.steward.firewall import Keeping
from spawner.cloud import Cloud

CLOUDS_YAML = Path(os.environ.get("HUTCH_TEST_CLOUD", ""))
IMAGE_FILE = Path(os.environ.get("HUTCH_TEST_IMAGE", ""))
IMAGE = "base-desktop"
EMPTY_IMAGE = "hutch-notebook"
"""What the plans of the example facility name: for the fake compute, which reads none."""
HUB_ADDRESS = "10.77.0.1"
"""Of the machine on the network of its servers, as `tests/openstack/cloud` makes it."""
PORTS = (8765, 8888)

collect_ignore_glob = [] if os.environ.get("HUTCH_TEST_CLOUD") else ["test_*.py"]


def connection(name: str, clouds_yaml: Path = CLOUDS_YAML) -> Connection:
    config = OpenStackConfig(config_files=[str(clouds_yaml)], secure_files=[], vendor_files=[], load_envvars=False)
    return Connection(config=config.get_one(name))


def put_image() -> None:
    with connection("admin") as admin:
        if admin.image.find_image(IMAGE) is None:
            admin.create_image(
                IMAGE, filename=str(IMAGE_FILE), disk_format="qcow2", container_format="bare", visibility="public", wait=True,
                hw_rng_model="virtio",
            )  # fmt: skip
        if admin.image.find_image(EMPTY_IMAGE) is None:
            admin.create_image(
                EMPTY_IMAGE, data=b"empty", disk_format="raw", container_format="bare", visibility="public", wait=True
            )  # fmt: skip


@pytest.fixture(scope="session")
def real_cloud() -> Iterator[Connection]:
    """The cloud as Hutch sees it, with the image."""
    put_image()
    with connection("hutch-app") as cloud:
        yield cloud


@pytest.fixture(scope="module", autouse=True)
def emptied(real_cloud: Connection) -> Iterator[None]:
    """Whatever a file has left, the next one begins with an empty project."""
    yield
    for server in real_cloud.compute.servers():
        real_cloud.compute.delete_server(server)
    until(lambda: not list(real_cloud.compute.servers()), "the servers are gone")
    for port in real_cloud.network.ports():
        if port.name.startswith("hutch-"):
            real_cloud.network.delete_port(port)


@pytest.fixture(scope="session")
def firewall(real_cloud: Connection, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Has the steward's own code keep a firewall that lets in the hub at an address; tells the name of its group."""
    url = f"sqlite:///{tmp_path_factory.mktemp('facility') / 'hutch.sqlite'}"
    upgrade(open_database(url))
    facility = Facility(Hutch(database_url=url))

    def keep(address: str) -> str:
        declared = Firewall({"hub_addresses": [address]}, PORTS)

        async def once() -> None:
            cloud = Cloud("hutch-app", CLOUDS_YAML)
            await Keeping(facility, {"": cloud}, declared).keep_firewall()
            cloud.close()

        asyncio.run(once())
        return declared.cloud_name(BASE, facility.deployment_id)

    return keep
