"""What JupyterHub does to a spawner in trouble: in each situation ours loses nothing, and the naive one does."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running_hub import RunningHub, until

from spawner.devcloud.process import DevcloudProcess, running

OURS, NAIVE = "spawner.openstack.OpenStackSpawner", "naive_spawner.NaiveSpawner"
both = pytest.mark.parametrize(("spawner", "safe"), [(OURS, True), (NAIVE, False)], ids=["ours", "naive"])

CONFIG = """
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.JupyterHub.allow_named_servers = True
c.JupyterHub.cleanup_servers = False
c.JupyterHub.spawner_class = {spawner!r}
c.Spawner.http_timeout = 3
c.Spawner.start_timeout = 60
c.Spawner.poll_interval = 1
c.OpenStackSpawner.cloud_name = "devcloud"
c.OpenStackSpawner.clouds_yaml = {clouds_yaml!r}
c.OpenStackSpawner.image = "hutch-notebook"
c.OpenStackSpawner.flavor = "m1.small"
c.OpenStackSpawner.fast_listing_seconds = 0.2
c.OpenStackSpawner.slow_listing_seconds = 0.5
c.OpenStackSpawner.stop_timeout_seconds = 30
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 0.1, "slow_stop_timeout": 30}}
"""


@pytest.fixture
def devcloud(tmp_path: Path) -> Iterator[DevcloudProcess]:
    with running(tmp_path / "devcloud", payload="stub") as process:
        yield process


@pytest.fixture
def launch_hub(tmp_path: Path, devcloud: DevcloudProcess) -> Iterator[Callable[..., RunningHub]]:
    """Starts a hub with the named spawner class on a fresh devcloud."""
    hubs = []

    def launch(spawner: str, extra: str = "") -> RunningHub:
        hub = RunningHub(tmp_path / "hub", CONFIG.format(spawner=spawner, clouds_yaml=str(devcloud.clouds_yaml)) + extra)
        hubs.append(hub)
        hub.start()
        hub.add_user("ann")
        return hub

    yield launch
    for hub in hubs:
        hub.stop()


def start(hub: RunningHub, name: str = "films") -> int:
    return hub.api("POST", f"users/ann/servers/{name}", json={}).status_code


def servers(devcloud: DevcloudProcess) -> list[dict[str, Any]]:
    with devcloud.connect() as cloud:
        return cloud.compute.get("/servers/detail").json()["servers"]


def ports(devcloud: DevcloudProcess) -> list[dict[str, Any]]:
    with devcloud.connect() as cloud:
        return cloud.network.get("/ports").json()["ports"]


def was_asked(devcloud: DevcloudProcess, call: str) -> bool:
    """call: method and the end of the path, "POST /ports"."""
    method, _, path = call.partition(" ")
    return any(known.startswith(method) and known.endswith(path) for known in devcloud.calls()["counts"])


def one_server_in(devcloud: DevcloudProcess, status: str) -> dict[str, Any]:
    def found() -> dict[str, Any] | None:
        return next((server for server in servers(devcloud) if server["status"] == status), None)

    return until(found, f"a server is {status}")


@both
def test_a_server_that_fails_to_build_is_not_left_behind(spawner: str, safe: bool, launch_hub: Any, devcloud: Any) -> None:
    """T1: stop() is never called when start() raised and poll() says that nothing runs."""
    hub = launch_hub(spawner)
    devcloud.next_boot(error="No valid host was found.")
    start(hub)
    hub.until_idle("ann", "films")
    if safe:
        assert servers(devcloud) == [] and ports(devcloud) == []
    else:
        assert servers(devcloud) != []


@both
def test_a_stop_during_the_create_call_loses_no_server(spawner: str, safe: bool, launch_hub: Any, devcloud: Any) -> None:
    """T2: start() is cancelled between "the cloud took it" and the next line."""
    hub = launch_hub(spawner)
    devcloud.fault(method="POST", path="/servers$", action="delay", seconds=3)
    start(hub)
    until(lambda: was_asked(devcloud, "POST /ports"), "the launch has got to its create call")
    assert hub.api("DELETE", "users/ann/servers/films").status_code in (202, 204)
    hub.until_idle("ann", "films")
    until(lambda: was_asked(devcloud, "POST /servers"), "the cloud has done what it was asked")
    if safe:
        one_server_in(devcloud, "SHUTOFF")
    start(hub)
    hub.until_ready("ann", "films")
    assert (len(servers(devcloud)) == 1) is safe


@both
def test_a_stop_that_the_cloud_fails_is_repeated(spawner: str, safe: bool, launch_hub: Any, devcloud: Any) -> None:
    """T3: what stop() raises is swallowed, the API answers 204 and the state is wiped."""
    hub = launch_hub(spawner)
    start(hub)
    hub.until_ready("ann", "films")
    devcloud.fault(method="POST", path="/action$", action="status", status=500, times=2)
    assert hub.api("DELETE", "users/ann/servers/films").status_code in (202, 204)
    hub.until_idle("ann", "films")
    assert (servers(devcloud)[0]["status"] == "SHUTOFF") is safe


@both
def test_a_hub_killed_during_a_launch_finds_the_server_again(spawner: str, safe: bool, launch_hub: Any, devcloud: Any) -> None:
    """T4: the state is saved only after start() has returned."""
    hub = launch_hub(spawner)
    devcloud.next_boot(seconds=5)
    start(hub)
    until(lambda: servers(devcloud), "the cloud has the server")
    hub.kill()
    hub.start()
    start(hub)
    hub.until_ready("ann", "films")
    assert (len(servers(devcloud)) == 1) is safe


@both
def test_a_launch_that_takes_too_long_loses_no_server(spawner: str, safe: bool, launch_hub: Any, devcloud: Any) -> None:
    """T5: start() is cancelled when start_timeout is over."""
    hub = launch_hub(spawner, "c.OpenStackSpawner.start_timeout = 1")
    devcloud.fault(method="POST", path="/servers$", action="delay", seconds=3)
    start(hub)
    until(lambda: "failed to start in 1 seconds" in hub.log(), "the launch is given up")
    hub.until_idle("ann", "films")
    until(lambda: servers(devcloud), "the cloud has done what it was asked")
    hub.stop()
    hub.config_file.write_text(hub.config_file.read_text() + "\nc.OpenStackSpawner.start_timeout = 60\n")
    hub.start()
    start(hub)
    hub.until_ready("ann", "films")
    assert (len(servers(devcloud)) == 1) is safe


@both
def test_a_cloud_that_is_down_while_the_hub_restarts_ends_no_server(
    spawner: str, safe: bool, launch_hub: Any, devcloud: Any
) -> None:
    """T6: an exception in poll() at the hub's start means "not running"."""
    hub = launch_hub(spawner)
    start(hub)
    hub.until_ready("ann", "films")
    hub.kill()
    devcloud.fault(method="GET", path="/compute", action="status", status=503, times=None)
    hub.start()
    devcloud.clear_faults()
    assert bool(hub.server("ann", "films").get("ready")) is safe


@both
def test_a_server_that_does_not_answer_while_the_hub_restarts_stays_up(
    spawner: str, safe: bool, launch_hub: Any, devcloud: Any
) -> None:
    """T7: the hub stops servers that do not answer within http_timeout at its start."""
    hub = launch_hub(spawner)
    start(hub)
    hub.until_ready("ann", "films")
    hub.kill()
    devcloud.trouble(servers(devcloud)[0]["id"], "crash")
    hub.start()
    until(lambda: "does not appear to be running" in hub.log(), "the hub has given the server up")
    hub.until_idle("ann", "films")
    assert (servers(devcloud)[0]["status"] == "ACTIVE") is safe


@pytest.mark.parametrize(
    ("spawner", "safe"), [(OURS, True), ("naive_spawner.RecordKeepingSpawner", False)], ids=["ours", "record-keeping"]
)
def test_a_server_that_switched_itself_off_can_be_started_again(spawner: str, safe: bool, launch_hub: Any, devcloud: Any) -> None:
    hub = launch_hub(spawner)
    start(hub)
    hub.until_ready("ann", "films")
    devcloud.trouble(servers(devcloud)[0]["id"], "power-off")
    one_server_in(devcloud, "SHUTOFF")
    if not safe:
        assert start(hub) == 400
        return
    hub.until_idle("ann", "films")
    assert start(hub) in (201, 202)
    hub.until_ready("ann", "films")
    assert len(servers(devcloud)) == 1


@pytest.mark.parametrize(("spawner", "safe"), [(OURS, True), ("naive_spawner.ResumingSpawner", False)], ids=["ours", "will-resume"])
def test_tokens_end_with_each_stop(spawner: str, safe: bool, launch_hub: Any, devcloud: Any) -> None:
    hub = launch_hub(spawner)
    for _ in range(3):
        start(hub)
        hub.until_ready("ann", "films")
        hub.api("DELETE", "users/ann/servers/films")
        hub.until_idle("ann", "films")
    tokens = [token for token in hub.api("GET", "users/ann/tokens").json()["api_tokens"] if token["note"].startswith("Server at")]
    assert (tokens == []) is safe


def test_a_stop_shelves_where_the_site_wants_that_and_a_start_brings_the_same_server_back(launch_hub: Any, devcloud: Any) -> None:
    hub = launch_hub(OURS, 'c.OpenStackSpawner.stop_by = "shelve"\n')
    start(hub)
    hub.until_ready("ann", "films")
    (before,) = servers(devcloud)
    hub.api("DELETE", "users/ann/servers/films")
    hub.until_idle("ann", "films")
    one_server_in(devcloud, "SHELVED_OFFLOADED")
    start(hub)
    hub.until_ready("ann", "films")
    (after,) = servers(devcloud)
    assert (after["id"], after["addresses"]) == (before["id"], before["addresses"])
