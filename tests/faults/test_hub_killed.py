"""A hub that is killed at any point of a launch, a stop or a deletion, and started again: nothing is lost, nothing is doubled.

It is killed once, with one person's instance at each point, as each start of a hub takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from facility_hub import FacilityHub, Visitor
from running_hub import until

from hub.database.tables import Outcome

# at which call a launch is held, the last one for the shortest time: the hub is killed before any goes on
HELD = {
    "reading the console": {"method": "POST", "path": "/action$", "action": "delay", "seconds": 8},
    "creating the port": {"method": "POST", "path": "/ports$", "action": "delay", "seconds": 5},
    "creating the server": {"method": "POST", "path": "/servers$", "action": "delay", "seconds": 3},
}
LAUNCHES = ["running", "booting", *HELD]


@pytest.fixture(scope="module")
def after(facility_hub: FacilityHub) -> dict[str, Visitor]:
    """Who was where when the hub was killed; it runs again."""
    hub, devcloud = facility_hub, facility_hub.devcloud
    visitors = {point: hub.visitor() for point in (*LAUNCHES, "stopping", "deleting")}
    visitors["crashed meanwhile"] = hub.visitor("it-support")  # whose boots are given up soon
    for point in ("running", "stopping", "deleting", "crashed meanwhile"):
        hub.launched(visitors[point])
    for point in ("stopping", "deleting"):
        visitor, (server,) = visitors[point], hub.servers(visitors[point])
        devcloud.fault(method="POST", path=f"/servers/{server['id']}/action", action="status", status=503, times=None)
        hub.api("DELETE", f"users/{visitor.login}/servers/films", visitor.token, json={"remove": point == "deleting"})
        hub.until_intent(visitor, kind="delete" if point == "deleting" else "stop", outcome=None)
    devcloud.next_boot(seconds=6)
    hub.launch(visitors["booting"])
    until(lambda: hub.servers(visitors["booting"]), "the server boots")
    for point, fault in HELD.items():
        devcloud.fault(**fault)
        hub.launch(visitors[point])
        until(lambda: all(one["times"] is None for one in devcloud.control("GET", "/faults")["faults"]), f"the hub is {point}")
    hub.kill()
    (crashed,) = hub.servers(visitors["crashed meanwhile"])
    devcloud.trouble(crashed["id"], "crash")
    devcloud.clear_faults()
    hub.start()
    return visitors


@pytest.mark.parametrize("point", LAUNCHES)
def test_a_launch_is_taken_up_again_by_itself(hub, after, point):
    visitor = after[point]
    hub.until_ready(visitor.login, "films")
    intent = hub.until_intent(visitor, kind="launch", outcome=Outcome.DONE)
    (instance,), (server,), (port,) = hub.instances(visitor), hub.servers(visitor), hub.ports(visitor)
    assert (server["metadata"]["hutch-instance"], port["device_id"]) == (instance.id, server["id"])
    if point != "running":
        assert intent.actor == "steward"
        assert instance.intents[0].outcome == "cancelled" and "overtaken" in instance.intents[0].message


def test_a_stop_that_was_cut_off_is_finished(hub, after):
    visitor = after["stopping"]
    hub.until_intent(visitor, kind="stop", outcome=Outcome.DONE)
    assert [server["status"] for server in hub.servers(visitor)] == ["SHUTOFF"]
    hub.until_idle(visitor.login, "films")


def test_a_deletion_that_was_cut_off_goes_on(hub, after):
    visitor = after["deleting"]
    until(
        lambda: [server["status"] for server in hub.servers(visitor)] == ["SHUTOFF"], "the server is off, for as long as the grace"
    )
    hub.until_idle(visitor.login, "films")
    assert hub.instance(visitor).deleted_at
    hub.launched(visitor)
    assert len(hub.instances(visitor)) == 2, "the name is free"


def test_a_server_that_was_lost_meanwhile_is_unreachable_and_taken_back_when_it_answers(hub, after):
    visitor = after["crashed meanwhile"]
    (server,) = hub.servers(visitor)
    assert server["status"] == "ACTIVE"
    until(tried(hub, visitor, 2), "the steward has tried to take it back")
    assert not hub.server(visitor.login, "films").get("ready")
    assert hub.intent(visitor).outcome is None
    hub.cloud.compute.post(f"/servers/{server['id']}/action", json={"reboot": {"type": "HARD"}})
    hub.until_ready(visitor.login, "films")
    assert [one["id"] for one in hub.servers(visitor)] == [server["id"]]


def tried(hub: FacilityHub, visitor: Visitor, times: int) -> Callable[[], bool]:
    return lambda: sum(intent.actor == "steward" for intent in hub.instance(visitor).intents) >= times


def test_nothing_is_orphaned(hub, after):
    assert hub.orphans() == []
