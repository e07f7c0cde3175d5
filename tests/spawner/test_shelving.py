"""OpenStackSpawner alone, at a site that has stopped servers shelved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from plain_hub import plain_hub
from running_hub import RunningHub, until

from spawner.devcloud.process import DevcloudProcess, running

SETTINGS = """
c.OpenStackSpawner.slow_listing_seconds = 0.5
c.OpenStackSpawner.stop_timeout_seconds = 30
c.OpenStackSpawner.stop_by = "shelve"
c.Spawner.poll_interval = 1
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 0.1, "slow_stop_timeout": 30}
"""


@pytest.fixture(scope="module")
def devcloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevcloudProcess]:
    with running(tmp_path_factory.mktemp("devcloud"), payload="stub") as devcloud:
        yield devcloud


@pytest.fixture(scope="module")
def hub(devcloud: DevcloudProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningHub]:
    with plain_hub(tmp_path_factory.mktemp("hub"), devcloud, SETTINGS) as hub:
        yield hub


def started(hub: RunningHub, devcloud: DevcloudProcess) -> dict[str, Any]:
    """The server, which is the only one."""
    hub.api("POST", "users/ann/servers/films", json={})
    hub.until_ready("ann", "films")
    (server,) = until(lambda: [one for one in servers(devcloud) if one["status"] == "ACTIVE"], "it is up")
    return server


def test_a_stop_shelves_where_the_site_wants_that_and_a_start_brings_the_same_server_back(hub, devcloud):
    before = started(hub, devcloud)
    hub.api("DELETE", "users/ann/servers/films")
    hub.until_idle("ann", "films")
    until(lambda: servers(devcloud)[0]["status"] == "SHELVED_OFFLOADED", "the server is shelved")
    after = started(hub, devcloud)
    assert (after["id"], after["addresses"]) == (before["id"], before["addresses"])


def test_a_server_that_was_booted_anew_is_let_go_and_a_start_gives_it_a_notebook(hub, devcloud):
    before = started(hub, devcloud)
    with devcloud.connect() as cloud:
        cloud.compute.reboot_server(before["id"], "HARD")
    hub.until_idle("ann", "films")
    assert started(hub, devcloud)["id"] == before["id"]


def servers(devcloud: DevcloudProcess) -> list[dict[str, Any]]:
    with devcloud.connect() as cloud:
        return cloud.compute.get("/servers/detail").json()["servers"]
