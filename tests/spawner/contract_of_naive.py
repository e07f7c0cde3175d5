"""A naive spawner in every situation of the contract suite, on devcloud: `make spawner-contract` shows what it does not bear."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest
from devcloud_driver import DevcloudDriver
from pytest_spawner_contract.situations import *  # noqa: F403

from spawner.devcloud.process import running


class NaiveDriver(DevcloudDriver):
    """What it does not bear shows that the situations are real."""

    name = "a naive one"
    spawner_class = "naive_spawner.NaiveSpawner"
    known_failures: ClassVar = {
        "start_and_stop": "sometimes: stop() does not wait until it is off",
        "poll_during_a_start": "poll() knows of nothing before the cloud has answered",
        "start_fails": "the failed server is forgotten",
        "start_is_cancelled": "the server that was being made is forgotten",
        "start_times_out": "the server that was being made is forgotten",
        "hub_is_killed_during_a_start": "the server is not found again",
        "stop_fails": "stop() raises, and the server goes on, unknown to the hub",
        "cut_off_while_the_hub_starts": "poll() raises",
        "cut_off_while_it_runs": "poll() raises",
        "slow_while_the_hub_starts": "stop() ends whatever it is called for",
        "ends_by_itself": "a new server is made beside the one that is off",
        "ends_while_the_hub_is_down": "a new server is made beside the one that is off",
        "vanishes": "the port of the server that is gone stays",
        "tokens_end": "a new server is made at each start",
        "renamed": "the server is not found under the new name",
    }


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevcloudDriver]:
    with running(tmp_path_factory.mktemp("devcloud"), payload="stub") as devcloud:
        yield NaiveDriver(devcloud)
