"""How the contract suite for spawners handles devcloud."""

from __future__ import annotations

from typing import Any

from pytest_spawner_contract import Driver

from spawner.devcloud.process import DevcloudProcess


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
        # what answers already may be called BUILD for a moment more
        found = {server["id"]: server["status"] in ("BUILD", "ACTIVE", "HARD_REBOOT") for server in servers}
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
