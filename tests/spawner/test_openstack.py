"""The policy of a launch, where no hub is needed: what counts as an end, which server is taken, what people are told."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import AsyncMock

import pytest
from running_hub import free_port
from spawner_alone import spawner_alone

from spawner.agent_client import AgentFailed, AgentMismatch, AgentUnreachable
from spawner.cloud import Cloud
from spawner.cloud_errors import CloudError, Trouble
from spawner.devcloud.process import DevcloudProcess
from spawner.launch import LaunchError
from spawner.openstack import OpenStackSpawner
from spawner.servers import address_of, address_of_port, fault_of, foremost, is_moving

KNOWN = "11111111-2222-4333-8444-555555555555"


def listed(status: str, task: str | None = None, id: str = KNOWN, **more: Any) -> dict[str, Any]:
    """A server as Nova describes it, as far as the policy looks at it."""
    return {"id": id, "status": status, "OS-EXT-STS:task_state": task, "metadata": {}, "created": "2026-03-10T12:00:00Z"} | more


@pytest.fixture
def spawner(make_spawner: Callable[..., OpenStackSpawner], devcloud: DevcloudProcess) -> OpenStackSpawner:
    """One whose server was launched, and whose reflector is as fresh as can be."""
    spawner = make_spawner(cloud_name="devcloud", clouds_yaml=str(devcloud.clouds_yaml))
    spawner.server_id = KNOWN
    spawner.around.reflector.listed_at = time.monotonic()
    return spawner


def see(spawner: OpenStackSpawner, *servers: dict[str, Any]) -> None:
    spawner.around.reflector.servers = {server["id"]: server for server in servers}


RUNS, ENDED, BROKE = None, 0, 1


@pytest.mark.parametrize(
    ("status", "task", "exit_status"),
    [
        ("ACTIVE", None, RUNS),
        ("ACTIVE", "powering-off", RUNS),
        ("BUILD", "spawning", RUNS),
        ("REBOOT", "reboot_started", RUNS),
        ("HARD_REBOOT", "rebooting_hard", RUNS),
        ("PAUSED", "unpausing", RUNS),
        ("SUSPENDED", "resuming", RUNS),
        ("RESCUE", "unrescuing", RUNS),
        ("RESIZE", "resize_migrating", RUNS),
        ("VERIFY_RESIZE", None, RUNS),
        ("MIGRATING", "migrating", RUNS),
        ("UNKNOWN", None, RUNS),
        ("a state of a later Nova", None, RUNS),
        ("SHUTOFF", "powering-on", RUNS),
        ("SHELVED_OFFLOADED", "spawning", RUNS),
        ("PAUSED", None, ENDED),
        ("SUSPENDED", None, ENDED),
        ("RESCUE", None, ENDED),
        ("SHUTOFF", None, ENDED),
        ("SHELVED", None, ENDED),
        ("SHELVED_OFFLOADED", None, ENDED),
        ("VERIFY_RESIZE and off", None, ENDED),
        ("DELETED", None, ENDED),
        ("SOFT_DELETED", None, ENDED),
        ("ERROR", None, BROKE),
        ("ERROR", "deleting", RUNS),
    ],
    ids=lambda value: str(value),
)
async def test_an_end_is_only_what_the_cloud_is_certain_of(spawner, monkeypatch, status, task, exit_status):
    status, _, off = status.partition(" and ")
    seen = listed(status, task) | ({"OS-EXT-STS:power_state": 4} if off else {})
    see(spawner, seen)
    asked = AsyncMock(return_value=seen)
    monkeypatch.setattr(spawner.around.cloud, "server", asked)
    assert await spawner.poll() == exit_status
    # an end is asked for once more, and nothing else is
    assert asked.await_count == (exit_status is not RUNS)


@pytest.mark.parametrize(
    ("status", "task", "moving"),
    [
        ("ACTIVE", "powering-off", True),
        ("ACTIVE", "shelving_image_pending_upload", True),
        ("ACTIVE", "shelving_image_uploading", True),
        ("SHELVED", "shelving_offloading", True),
        ("SHELVED_OFFLOADED", "spawning", True),
        ("SHELVED_OFFLOADED", None, False),
        ("ACTIVE", None, False),
        ("ACTIVE", "image_snapshot", False),
        ("ACTIVE", "rescuing", True),
        ("RESCUE", "unrescuing", True),
    ],
    ids=lambda value: str(value),
)
def test_a_server_that_is_being_put_away_is_waited_for(status, task, moving):
    assert is_moving(listed(status, task)) is moving


async def test_an_old_listing_ends_nothing(spawner, monkeypatch):
    see(spawner, listed("SHUTOFF"))
    monkeypatch.setattr(spawner.around.cloud, "server", AsyncMock(return_value=listed("ACTIVE")))
    assert await spawner.poll() is RUNS


async def test_a_server_that_nova_itself_does_not_know_has_ended(spawner):
    see(spawner)
    assert await spawner.poll() == ENDED


@pytest.mark.parametrize(
    "fault",
    [{"action": "status", "status": 503}, {"action": "drop-before"}, {"action": "garbage"}, {"action": "status", "status": 401}],
    ids=["503", "dropped", "garbage", "401"],
)
async def test_a_server_that_is_only_missing_from_the_listing_has_not_ended(spawner, devcloud, fault):
    see(spawner)
    devcloud.fault(method="GET", path="/servers/", times=None, **fault)
    assert await spawner.poll() is RUNS


async def test_without_a_server_there_is_nothing_that_runs(make_spawner):
    assert await make_spawner().poll() == ENDED


async def test_a_launch_under_way_runs(make_spawner):
    spawner = make_spawner()
    spawner._starting = True
    assert await spawner.poll() is RUNS


def test_the_server_taken_is_the_oldest_that_is_not_broken():
    servers = [
        listed("ERROR", id="1", created="2026-03-10T12:00:00Z"),
        listed("ACTIVE", id="2", created="2026-03-10T12:00:02Z"),
        listed("ACTIVE", id="3", created="2026-03-10T12:00:01Z"),
    ]
    assert foremost(servers)["id"] == "3"


async def test_state_that_was_saved_is_loaded_again(make_spawner):
    before, after = make_spawner(), make_spawner()
    before.server_id, before.address, before.fingerprint = KNOWN, "10.0.0.7", "ab" * 32
    after.load_state(before.get_state())
    assert (after.server_id, after.address, after.fingerprint) == (KNOWN, "10.0.0.7", "ab" * 32)


def test_an_instance_is_the_same_at_every_start_and_another_for_each_server(make_spawner):
    assert make_spawner().instance_id == make_spawner().instance_id
    assert len({make_spawner(user=user, name=name).instance_id for user in ("ann", "bob") for name in ("", "films")}) == 4


def test_another_server_has_another_fingerprint(make_spawner):
    spawner = make_spawner()
    spawner._remember("1", "10.0.0.1")
    spawner.fingerprint = "ab" * 32
    spawner._remember("1", "10.0.0.1")
    assert spawner.fingerprint
    spawner._remember("2", "10.0.0.1")
    assert not spawner.fingerprint


@pytest.mark.parametrize(
    ("addresses", "address"),
    [
        pytest.param({}, "", id="none-yet"),
        pytest.param({"hutch": []}, "", id="no-address"),
        pytest.param({"hutch": [{"addr": "10.0.0.7", "OS-EXT-IPS:type": "fixed"}]}, "10.0.0.7", id="fixed"),
        pytest.param(
            {"hutch": [{"addr": "192.0.2.1", "OS-EXT-IPS:type": "floating"}, {"addr": "10.0.0.7", "OS-EXT-IPS:type": "fixed"}]},
            "10.0.0.7",
            id="not-the-floating-one",
        ),
        pytest.param({"hutch": [{"addr": "10.0.0.7"}]}, "10.0.0.7", id="untyped"),
        pytest.param({"hutch": [{"addr": "2001:db8::7"}, {"addr": "203.0.113.7"}]}, "203.0.113.7", id="dual-stack"),
        pytest.param({"one": [{"addr": "10.0.0.7"}], "two": [{"addr": "10.1.0.7"}]}, "10.0.0.7", id="two-networks"),
    ],
)
def test_the_address_is_the_first_fixed_one(addresses, address):
    assert address_of({"addresses": addresses}) == address


@pytest.mark.parametrize(
    ("fixed_ips", "address"), [([], ""), (["10.0.0.7", "10.1.0.7"], "10.0.0.7"), (["2001:db8::7", "203.0.113.7"], "203.0.113.7")]
)
def test_the_address_of_a_port_is_one_at_which_agents_listen(fixed_ips, address):
    assert address_of_port({"fixed_ips": [{"subnet_id": "1", "ip_address": one} for one in fixed_ips]}) == address


@pytest.mark.parametrize(
    ("server", "words"),
    [
        pytest.param({"status": "ERROR"}, "ERROR", id="without-a-fault"),
        pytest.param({"status": "ERROR", "fault": None}, "ERROR", id="empty-fault"),
        pytest.param({"status": "ERROR", "fault": {"code": 500, "message": "boom"}}, "500 boom", id="fault"),
    ],
)
def test_a_fault_in_words(server, words):
    assert fault_of(server) == words


@pytest.mark.parametrize(
    ("login", "account"),
    [
        ("ann", "ann"),
        ("Ann.Lind", "ann-lind"),
        ("ann@nth.example", "ann-nth-example"),
        ("4001", "u4001"),
        ("-ann", "u-ann"),
        ("åsa", "u-sa"),
        ("x" * 40, "x" * 32),
    ],
    ids=ascii,
)
def test_the_account_is_what_unix_allows(make_spawner, login, account):
    assert make_spawner(user=login).account() == account


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (CloudError(Trouble.QUOTA, "Used up.", "Quota exceeded"), "quota"),
        (AgentUnreachable("Nobody."), "agent-unreachable"),
        (AgentMismatch("Another."), "agent-mismatch"),
        (AgentFailed("It broke.", "notebook", "log"), "agent-failed"),
        (TimeoutError(), "cloud-unanswered"),
        (LaunchError("No.", reason="mine", detail="x"), "mine"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_each_failure_has_a_reason_a_sentence_and_a_stage(make_spawner, error, reason):
    failure = make_spawner()._as_launch_error(error)
    assert (failure.reason, failure.stage) == (reason, "create")
    assert str(failure.message).endswith(".") and failure.detail


@pytest.mark.parametrize(("asked_for", "given_up"), [(timedelta(0), False), (timedelta(hours=2), True)], ids=["new", "old"])
async def test_a_cloud_whose_clock_is_behind_makes_no_boot_look_long(spawner, monkeypatch, asked_for, given_up):
    ours = datetime.now(UTC)
    monkeypatch.setattr(spawner, "unused_since", lambda: ours - asked_for)
    nowhere = {"hutch": [{"addr": "127.0.0.1", "version": 4}]}
    spawner.agent_port = free_port()
    server = listed("ACTIVE", created=(ours - timedelta(hours=1)).isoformat(), addresses=nowhere)
    assert await spawner._is_stillborn(server) is given_up


@pytest.mark.parametrize("verb", ["pause", "suspend", "rescue", "shelve"])
async def test_a_stop_of_what_stands_still_is_done_at_once(devcloud, cloud, tmp_path, verb):
    """Nova would refuse to switch it off, again and again."""
    spawner = spawner_alone(devcloud.clouds_yaml, state_dir=str(tmp_path))
    await spawner.start()
    server = cloud.compute.wait_for_server(cloud.compute.get_server(spawner.server_id), interval=0.01)
    assert cloud.compute.post(f"/servers/{server.id}/action", json={verb: None}).ok
    states = {"pause": "PAUSED", "suspend": "SUSPENDED", "rescue": "RESCUE", "shelve": "SHELVED_OFFLOADED"}
    cloud.compute.wait_for_server(server, states[verb], interval=0.01)
    devcloud.clear_calls()
    await spawner.stop()
    assert spawner.is_off and not [call for call in devcloud.calls()["counts"] if call.endswith("/action")]


async def test_a_group_that_was_replaced_by_another_of_its_name_is_looked_up_once_more(devcloud, cloud, tmp_path):
    spawner = spawner_alone(devcloud.clouds_yaml, state_dir=str(tmp_path))
    await spawner.start()
    before = cloud.network.create_security_group(name="replaced")
    assert await spawner.around.cloud.security_group_id("replaced") == before.id
    cloud.network.delete_security_group(before)
    after = cloud.network.create_security_group(name="replaced")
    spawner.security_groups = ["replaced"]
    await spawner.start()
    (port,) = cloud.network.ports(device_id=spawner.server_id)
    assert port.security_group_ids == [after.id]


@pytest.mark.parametrize(
    ("status", "power", "is_unused", "made_anew"),
    [
        ("ERROR", 0, True, True),
        ("ERROR", 0, False, False),
        ("SOFT_DELETED", 4, True, True),
        ("SOFT_DELETED", 4, False, False),
        ("RESCUE", 1, True, False),
        ("RESCUE", 1, False, False),
        ("VERIFY_RESIZE", 4, True, False),
        ("VERIFY_RESIZE", 4, False, False),
    ],
)
async def test_only_what_failed_and_holds_nothing_is_made_anew(spawner, monkeypatch, status, power, is_unused, made_anew):
    monkeypatch.setattr(spawner, "unused_since", lambda: datetime.now(UTC) if is_unused else None)
    for name in ("_remove", "_create"):
        monkeypatch.setattr(spawner, name, AsyncMock())
    server = listed(status, **{"OS-EXT-STS:power_state": power})
    if made_anew:
        await spawner._take(server, [])
    else:
        with pytest.raises(LaunchError, match="instance") as refused:
            await spawner._take(server, [])
        assert refused.value.reason == "server-held"
    assert spawner._remove.await_count == spawner._create.await_count == made_anew


@pytest.mark.parametrize("task", ["powering-off", "deleting", "rescuing"])
async def test_a_server_that_is_stuck_in_a_task_is_not_waited_for_for_ever(spawner, monkeypatch, task):
    spawner.stop_timeout_seconds = 0.2
    monkeypatch.setattr(spawner.around.cloud, "act", AsyncMock())
    with pytest.raises(TimeoutError) as late:
        await spawner._take(listed("ACTIVE", task), [])
    assert "stuck" in spawner._as_launch_error(late.value).message and not spawner.around.cloud.act.await_count


@pytest.mark.parametrize(
    ("addresses", "agent_answers", "notebook_lacks", "lost"),
    [
        pytest.param(["10.0.0.7"], True, False, False, id="all-is-well"),
        pytest.param(["10.0.0.7"], True, True, True, id="rebooted"),
        pytest.param(["10.0.0.8"], True, None, False, id="still-there-at-the-old-address"),
        pytest.param(["10.0.0.8"], False, None, True, id="at-another-address"),
        pytest.param([], False, None, True, id="without-an-address"),
        pytest.param(None, False, None, False, id="the-cloud-does-not-say"),
    ],
)
async def test_a_server_that_runs_without_its_notebook_is_let_go(
    spawner, monkeypatch, addresses, agent_answers, notebook_lacks, lost
):
    spawner.address, spawner.fingerprint = "10.0.0.7", "ab" * 32
    known = {} if addresses is None else {"addresses": {"hutch": [{"addr": one} for one in addresses]}}
    see(spawner, listed("ACTIVE", **known))
    monkeypatch.setattr(type(spawner), "ready", True)
    monkeypatch.setattr(spawner.around.agents, "answers", AsyncMock(return_value=agent_answers))
    monkeypatch.setattr(spawner.around.agents, "lacks_notebook", AsyncMock(return_value=notebook_lacks))
    assert await spawner.poll() == (0 if lost else RUNS)
    # nobody is to take that for a server that was switched off
    assert spawner.ended is None


@pytest.fixture
def without_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neutron's ports of a routed network, as they are made: ip_allocation is deferred."""
    create_port = Cloud.create_port

    async def deferred(self: Cloud, body: dict[str, Any]) -> dict[str, Any]:
        return await create_port(self, body) | {"fixed_ips": [], "ip_allocation": "deferred"}

    monkeypatch.setattr(Cloud, "create_port", deferred)


@pytest.mark.usefixtures("without_addresses")
async def test_an_address_that_depends_on_the_host_is_waited_for(devcloud, tmp_path):
    spawner = spawner_alone(devcloud.clouds_yaml, state_dir=str(tmp_path))
    url = await spawner.start()
    assert spawner.address and spawner.address in url


@pytest.mark.usefixtures("without_addresses")
async def test_a_server_that_gets_no_address_is_not_looked_for_elsewhere(devcloud, tmp_path, monkeypatch):
    monkeypatch.setattr("spawner.openstack.address_of", lambda server: "")
    spawner = spawner_alone(devcloud.clouds_yaml, state_dir=str(tmp_path), boot_timeout_seconds=1)
    with pytest.raises(LaunchError, match="no network address"):
        await spawner.start()
