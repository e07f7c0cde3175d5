"""JupyterHub's own SimpleLocalProcessSpawner."""

import pytest
from pytest_spawner_contract.drivers.local import LocalProcessDriver
from pytest_spawner_contract.situations import *  # noqa: F403


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    driver = LocalProcessDriver(tmp_path_factory.mktemp("home"))
    yield driver
    driver.remove_all()
