"""OpenStackSpawner in every situation of the contract suite, on devcloud; and a naive one beside it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from pytest_spawner_contract import Driver
from pytest_spawner_contract.situations import *  # noqa: F403

from spawner.devcloud.process import DevcloudProcess, running


class DevcloudDriver(Driver):
    """The things are devcloud's servers; their ports count as well."""

    name = "OpenStackSpawner"
    spawner_class = "spawner.openstack.OpenStackSpawner"

    def __init__(self, devcloud: DevcloudProcess) -> None:
        self.devcloud, self.cloud = devcloud, devcloud.connect()
        self._created, self._hung = -1, set[str]()
        self.config = f"""
c.OpenStackSpawner.cloud_name = "devcloud"
c.OpenStackSpawner.clouds_yaml = {str(devcloud.clouds_yaml)!r}
c.OpenStackSpawner.image = "hutch-notebook"
c.OpenStackSpawner.flavor = "m1.small"
c.OpenStackSpawner.fast_listing_seconds = 0.2
c.OpenStackSpawner.slow_listing_seconds = 0.5
c.OpenStackSpawner.stop_timeout_seconds = 30
"""

    def things(self) -> dict[str, bool]:
        servers = self.cloud.compute.get("/servers/detail").json()["servers"]
        found = {server["id"]: server["status"] in ("ACTIVE", "HARD_REBOOT") for server in servers}
        ports = self.cloud.network.get("/ports").json()["ports"]
        return found | {f"port {port['id']}": False for port in ports if port["device_id"] not in found}

    def restore(self) -> None:
        self.devcloud.clear_faults()
        self.devcloud.next_boot()
        for thing in self._hung & set(self.things()):
            self.cloud.compute.post(f"/servers/{thing}/action", json={"reboot": {"type": "HARD"}})
        self._hung.clear()

    def fail_next(self) -> dict[str, Any]:
        self.devcloud.next_boot(error="No valid host was found.")
        return {}

    def hold_next(self, seconds: float) -> dict[str, Any]:
        self._created = self._creates()
        self.devcloud.fault(method="POST", path="/servers$", action="delay", seconds=seconds)
        return {}

    def _creates(self) -> int:
        return sum(
            number for call, number in self.devcloud.calls()["counts"].items() if call.endswith("/servers") and "POST" in call
        )

    def held(self) -> bool:
        taken = not self.devcloud.control("GET", "/faults")["faults"]
        return taken and self._creates() == self._created

    def end(self, thing: str) -> None:
        self.devcloud.trouble(thing, "power-off")

    def vanish(self, thing: str) -> None:
        self.cloud.compute.delete_server(thing)

    def hang(self, thing: str) -> None:
        self._hung.add(thing)
        self.devcloud.trouble(thing, "crash")

    def check_can_move(self) -> None:
        """A port may be given another address."""

    def cut_off(self) -> None:
        self.devcloud.fault(path="^/(compute|network)", action="status", status=503, times=None)

    def fail_stops(self, times: int) -> None:
        self.devcloud.fault(method="POST", path="/action$", action="status", status=500, times=times)

    def hold_stops(self, seconds: float) -> None:
        self.devcloud.fault(method="POST", path="/action$", action="delay", seconds=seconds)


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


@pytest.fixture(scope="module", params=[DevcloudDriver, NaiveDriver], ids=["ours", "naive"])
def driver(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevcloudDriver]:
    with running(tmp_path_factory.mktemp("devcloud"), payload="stub") as devcloud:
        yield request.param(devcloud)
