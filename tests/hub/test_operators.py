"""What a cloud's operators do to an instance's server: people read the truth, nothing is lost, and there is a way on."""

from __future__ import annotations

from typing import Any

import pytest
from facility_hub import CONTACT, FacilityHub, Visitor
from running_hub import until

TINY = {"flavorRef": "1"}


def same_again(hub: FacilityHub, visitor: Visitor, server: dict[str, Any]) -> None:
    """A start brings the same server back, and no other."""
    assert hub.start_again(visitor).status_code in (201, 202)
    hub.until_intent(visitor, kind="launch", outcome="done")
    hub.until_ready(visitor.login, "films")
    (after,), (port,) = hub.servers(visitor), hub.ports(visitor)
    assert (after["id"], port["device_id"]) == (server["id"], server["id"])


@pytest.fixture
def running(hub) -> Visitor:
    visitor = hub.visitor("it-support")
    hub.launched(visitor)
    return visitor


@pytest.mark.parametrize(
    ("verb", "status", "found"),
    [
        ("pause", "PAUSED", "paused"),
        ("suspend", "SUSPENDED", "suspended"),
        ("shelve", "SHELVED_OFFLOADED", "shelved"),
        ("os-stop", "SHUTOFF", "switched off"),
    ],
)
def test_what_stands_still_is_shown_as_stopped_and_a_start_goes_on(hub, running, verb, status, found):
    (server,) = hub.servers(running)
    assert hub.operate(running, verb) == status
    stop = hub.until_intent(running, kind="stop", outcome="done")
    assert (stop.actor, stop.reason) == ("cloud", f"the server was found {found}")
    hub.until_idle(running.login, "films")
    same_again(hub, running, server)


@pytest.mark.parametrize(
    ("verb", "argument", "undo", "words"),
    [
        ("rescue", None, ("unrescue", None), "The cloud's operators are repairing this instance. Its disk is kept."),
        ("error", None, ("reboot", {"type": "HARD"}), "The cloud reports an error with this instance. Its disk is kept."),
    ],
)
def test_what_operators_hold_is_said_with_whom_to_ask_and_starts_when_they_are_done(hub, running, verb, argument, undo, words):
    (server,) = hub.servers(running)
    hub.devcloud.trouble(server["id"], "error") if verb == "error" else hub.operate(running, verb, argument)
    sentence = f"{words} Please ask {CONTACT}."
    assert hub.until_intent(running, kind="launch", outcome="failed").message == sentence
    hub.until_idle(running.login, "films")
    first = hub.intent(running).id
    hub.start_again(running)
    until(lambda: hub.intent(running).id > first, "it was asked to start")
    assert hub.until_intent(running, kind="launch", outcome="failed").message == sentence
    hub.operate(running, *undo)
    same_again(hub, running, server)


def test_what_was_deleted_in_the_cloud_is_not_shown_as_stopped(hub, running):
    (server,) = hub.servers(running)
    hub.devcloud.trouble(server["id"], "forget")
    failed = hub.until_intent(running, kind="launch", outcome="failed")
    assert failed.message == f"The cloud no longer has the server of this instance, nor its disk. Please ask {CONTACT}."


def test_a_server_that_is_resized_while_it_runs_has_its_notebook_again(hub, running):
    (server,) = hub.servers(running)
    assert hub.operate(running, "resize", TINY) == "VERIFY_RESIZE"
    until(lambda: len(hub.instance(running).intents) > 1, "it is launched once more")
    assert hub.until_intent(running, kind="launch", outcome="done").actor == "steward"
    hub.until_ready(running.login, "films")
    assert hub.operate(running, "confirmResize") == "ACTIVE"
    assert [one["id"] for one in hub.servers(running)] == [server["id"]]
    assert hub.server(running.login, "films")["ready"]


def test_a_server_that_is_resized_while_it_is_off_starts_when_that_is_confirmed(hub, running):
    (server,) = hub.servers(running)
    hub.end(running)
    assert hub.operate(running, "resize", TINY) == "VERIFY_RESIZE"
    hub.start_again(running)
    failed = hub.until_intent(running, kind="launch", outcome="failed")
    assert failed.message.startswith("The cloud's operators are changing the size of this instance") and CONTACT in failed.message
    hub.until_idle(running.login, "films")
    assert hub.operate(running, "confirmResize") == "SHUTOFF"
    same_again(hub, running, server)


def test_a_locked_server_that_is_off_is_said_to_be_locked_and_starts_when_it_is_not(hub, running):
    (server,) = hub.servers(running)
    hub.end(running)
    hub.operate(running, "lock", {"locked_reason": "a look at its disk"})
    hub.start_again(running)
    failed = hub.until_intent(running, kind="launch", outcome="failed")
    assert failed.message.startswith("This instance is locked in the cloud") and CONTACT in failed.message
    assert "a look at its disk" in failed.detail and "a look at its disk" not in failed.message
    hub.until_idle(running.login, "films")
    hub.operate(running, "unlock")
    same_again(hub, running, server)


def test_a_stop_of_a_locked_server_stays_open_until_it_is_unlocked(hub, running):
    hub.operate(running, "lock")
    hub.end(running)
    stop = hub.intent(running)
    assert (stop.kind, stop.outcome, hub.servers(running)[0]["status"]) == ("stop", None, "ACTIVE")
    hub.operate(running, "unlock")
    hub.until_intent(running, kind="stop", outcome="done")
    assert hub.servers(running)[0]["status"] == "SHUTOFF"


def test_a_server_that_was_given_another_address_is_served_there(hub, running):
    (server,), (port,) = hub.servers(running), hub.ports(running)
    with hub.devcloud.connect("devcloud-admin") as admin:
        before = port["fixed_ips"][0]["ip_address"]
        spare = admin.network.create_port(network_id=port["network_id"])
        address = spare.fixed_ips[0]["ip_address"]
        admin.network.delete_port(spare)
        admin.network.update_port(port["id"], fixed_ips=[{"ip_address": address}])
    # what runs in it hears of it at the next boot
    hub.operate(running, "reboot", {"type": "HARD"})
    until(lambda: len(hub.instance(running).intents) > 1, "it is launched once more")
    assert hub.until_intent(running, kind="launch", outcome="done").actor == "steward"
    hub.until_ready(running.login, "films")
    state = hub.api("GET", f"users/{running.login}?include_stopped_servers=1", hub.token).json()["servers"]["films"]
    assert (state["state"]["address"], before != address) == (address, True)
    assert [one["id"] for one in hub.servers(running)] == [server["id"]]


def test_a_server_whose_port_was_taken_away_is_no_longer_said_to_run(hub, running):
    (server,), (port,) = hub.servers(running), hub.ports(running)
    hub.cloud.network.delete(f"/ports/{port['id']}")
    hub.devcloud.trouble(server["id"], "crash")
    failed = hub.until_intent(running, kind="launch", outcome="failed")
    assert failed.message == "The cloud gave this server no network address."
    assert [one["id"] for one in hub.servers(running)] == [server["id"]]


def test_a_renamed_server_is_the_same_instance(hub, running):
    (server,) = hub.servers(running)
    hub.cloud.compute.put(f"/servers/{server['id']}", json={"server": {"name": "beamtime-7"}})
    hub.end(running)
    same_again(hub, running, server)
