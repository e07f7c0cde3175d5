"""OpenStackSpawner in every situation of the contract suite, on devcloud."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from devcloud_driver import DevcloudDriver
from pytest_spawner_contract.situations import *  # noqa: F403

from spawner.devcloud.process import running


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevcloudDriver]:
    with running(tmp_path_factory.mktemp("devcloud"), payload="stub") as devcloud:
        yield DevcloudDriver(devcloud)
