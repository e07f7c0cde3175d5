"""DockerSpawner, on the daemon at DOCKER_HOST (see `with-dockerd`)."""

import os

import pytest
from pytest_spawner_contract.situations import *  # noqa: F403


@pytest.fixture(scope="module")
def driver():
    if "DOCKER_HOST" not in os.environ:
        pytest.skip("no Docker daemon: set DOCKER_HOST, or run it through spawner-contract/with-dockerd")
    from pytest_spawner_contract.drivers.docker import DockerDriver

    driver = DockerDriver()
    yield driver
    driver.remove_all()
