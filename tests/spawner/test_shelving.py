"""A site that has stopped servers shelved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from running_hub import RunningHub, until

from spawner.devcloud.process import DevcloudProcess, running

CONFIG = """
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.JupyterHub.allow_named_servers = True
c.JupyterHub.cleanup_servers = False
c.JupyterHub.spawner_class = "spawner.openstack.OpenStackSpawner"
c.OpenStackSpawner.cloud_name = "devcloud"
c.OpenStackSpawner.clouds_yaml = {clouds_yaml!r}
c.OpenStackSpawner.image = "hutch-notebook"
c.OpenStackSpawner.flavor = "m1.small"
c.OpenStackSpawner.fast_listing_seconds = 0.2
c.OpenStackSpawner.slow_listing_seconds = 0.5
c.OpenStackSpawner.stop_timeout_seconds = 30
c.OpenStackSpawner.stop_by = "shelve"
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 0.1, "slow_stop_timeout": 30}}
"""


def test_a_stop_shelves_where_the_site_wants_that_and_a_start_brings_the_same_server_back(tmp_path: Path) -> None:
    with running(tmp_path / "devcloud", payload="stub") as devcloud:
        hub = RunningHub(tmp_path / "hub", CONFIG.format(clouds_yaml=str(devcloud.clouds_yaml)))
        try:
            hub.start()
            hub.add_user("ann")
            shelve_and_start(hub, devcloud)
        finally:
            hub.stop()


def shelve_and_start(hub: RunningHub, devcloud: DevcloudProcess) -> None:
    def start() -> dict[str, Any]:
        hub.api("POST", "users/ann/servers/films", json={})
        hub.until_ready("ann", "films")
        (server,) = servers(devcloud)
        return server

    before = start()
    hub.api("DELETE", "users/ann/servers/films")
    hub.until_idle("ann", "films")
    until(lambda: servers(devcloud)[0]["status"] == "SHELVED_OFFLOADED", "the server is shelved")
    after = start()
    assert (after["id"], after["addresses"]) == (before["id"], before["addresses"])


def servers(devcloud: DevcloudProcess) -> list[dict[str, Any]]:
    with devcloud.connect() as cloud:
        return cloud.compute.get("/servers/detail").json()["servers"]
