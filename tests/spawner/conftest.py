"""A devcloud for the tests of this room, and short ways to ask it."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from running_hub import PATIENCE_SECONDS

from spawner.devcloud.process import DevcloudProcess, running
from spawner.openstack import OpenStackSpawner


@pytest.fixture(scope="session")
def shared_devcloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevcloudProcess]:
    """One devcloud with stub payloads for all tests that leave nothing of theirs behind but servers and ports."""
    with running(tmp_path_factory.mktemp("devcloud"), payload="stub") as process:
        yield process


@pytest.fixture
def devcloud(shared_devcloud: DevcloudProcess) -> DevcloudProcess:
    """The shared devcloud without any server, port, fault or order of an earlier test."""
    shared_devcloud.reset()
    return shared_devcloud


@pytest.fixture
def cloud(devcloud: DevcloudProcess) -> Iterator[Any]:
    """An openstacksdk connection to the shared devcloud."""
    with devcloud.connect() as connection:
        yield connection


def server_request(connection: Any, **more: Any) -> dict[str, Any]:
    """What the SDK is told to create a server; an image named by name becomes its id."""
    image = connection.image.find_image(more.pop("image", "hutch-notebook"), ignore_missing=False)
    return {"name": "hutch-1", "flavor_id": "2", "image_id": image.id, "networks": "auto"} | more


@pytest.fixture
def boot() -> Callable[..., Any]:
    """Create a server and wait until it has settled (ACTIVE unless `status` says otherwise)."""

    def boot(connection: Any, status: str = "ACTIVE", **more: Any) -> Any:
        server = connection.compute.create_server(**server_request(connection, **more))
        failures = [] if status == "ERROR" else ["ERROR"]
        return connection.compute.wait_for_server(server, status=status, failures=failures, interval=0.01, wait=PATIENCE_SECONDS)

    return boot


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """Wait until a condition holds, and return what it returned."""

    def eventually(condition: Callable[[], Any], seconds: float = PATIENCE_SECONDS) -> Any:
        deadline = time.monotonic() + seconds
        while not (result := condition()):
            assert time.monotonic() < deadline, f"still {result!r} after {seconds} s"
            time.sleep(0.01)
        return result

    return eventually


@pytest.fixture
def raw(devcloud: DevcloudProcess, cloud: Any) -> Callable[..., requests.Response]:
    """Plain HTTP with a valid token: what the SDK would hide or mend."""

    def raw(method: str, path: str, body: Any = None, version: str | None = None, **headers: str) -> requests.Response:
        sent = {"X-Auth-Token": cloud.session.get_token()} | {key.replace("_", "-"): value for key, value in headers.items()}
        if version is not None:
            sent["OpenStack-API-Version"] = f"compute {version}"
        return requests.request(method, devcloud.url + path, json=body, headers=sent, timeout=30)

    return raw


@pytest.fixture
def make_spawner(tmp_path: Path) -> Callable[..., OpenStackSpawner]:
    """A spawner without a hub around it; options are its traits."""

    def make(user: str = "ann", name: str = "films", **traits: Any) -> OpenStackSpawner:
        person = SimpleNamespace(name=user, id=1, url=f"/user/{user}/", settings={})
        record = SimpleNamespace(name=name, display_name=name, server=None, user=person)
        traits = {"state_dir": str(tmp_path), "fast_listing_seconds": 0.05, "slow_listing_seconds": 0.2} | traits
        return OpenStackSpawner(user=person, orm_spawner=record, **traits)

    return make
