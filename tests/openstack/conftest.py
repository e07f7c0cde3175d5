"""Tests that need the real cloud: only collected where HUTCH_TEST_CLOUD names its clouds.yaml (see `make test-openstack`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from openstack.config import OpenStackConfig
from openstack.connection import Connection

CLOUDS_YAML = Path(os.environ.get("HUTCH_TEST_CLOUD", ""))
IMAGE_FILE = Path(os.environ.get("HUTCH_TEST_IMAGE", ""))
IMAGE = "base-notebook"
GROUP = "hutch-hub"
HUB_ADDRESS = "10.77.0.1"
"""Of the machine on the network of its servers, as `tests/openstack/cloud` makes it."""
PORTS = (8765, 8888)

collect_ignore_glob = [] if os.environ.get("HUTCH_TEST_CLOUD") else ["test_*.py"]


def connection(name: str) -> Connection:
    config = OpenStackConfig(config_files=[str(CLOUDS_YAML)], secure_files=[], vendor_files=[], load_envvars=False)
    return Connection(config=config.get_one(name))


@pytest.fixture(scope="session")
def real_cloud() -> Iterator[Connection]:
    """The cloud as Hutch sees it, with the image, and with a group that lets in nobody but the hub."""
    with connection("admin") as admin:
        if admin.image.find_image(IMAGE) is None:
            admin.create_image(
                IMAGE, filename=str(IMAGE_FILE), disk_format="qcow2", container_format="bare", visibility="public", wait=True,
                hw_rng_model="virtio",
            )  # fmt: skip
    with connection("hutch-app") as cloud:
        if cloud.network.find_security_group(GROUP) is None:
            group = cloud.network.create_security_group(name=GROUP)
            for port in PORTS:
                cloud.network.create_security_group_rule(
                    security_group_id=group.id, direction="ingress", ethertype="IPv4", protocol="tcp", port_range_min=port,
                    port_range_max=port, remote_ip_prefix=f"{HUB_ADDRESS}/32",
                )  # fmt: skip
        yield cloud
