"""What goes wrong during a launch: people read a plain sentence, nothing is left over, and the next start works."""

from __future__ import annotations

import pytest
from facility_hub import FacilityHub, Visitor
from running_hub import until
from sentences import is_plain

from hub.database.engine import take_turn
from hub.database.tables import Intent
from hub.queue import waiting

STAGES = {"create", "boot", "identify", "account", "environment", "notebook"}


def failed(hub: FacilityHub, visitor: Visitor, stage: str = "", words: str = "") -> Intent:
    """The launch ended with a plain sentence in its intent."""
    intent = hub.until_intent(visitor, kind="launch", outcome="failed")
    hub.until_idle(visitor.login, "films")
    assert words in intent.message, intent.message
    assert is_plain(intent.message), intent.message
    assert intent.stage in ({stage} if stage else STAGES)
    assert intent.ended_at and intent.detail
    return intent


def works_at_last(hub: FacilityHub, visitor: Visitor) -> None:
    """The next start succeeds, with one server and one port, and the cloud holds nothing that nobody owns."""
    answer = hub.start_again(visitor)
    assert answer.status_code in (201, 202), answer.text
    hub.until_ready(visitor.login, "films")
    (server,), (port,) = hub.servers(visitor), hub.ports(visitor)
    assert port["device_id"] == server["id"]
    assert hub.until_intent(visitor, kind="launch", outcome="done").message is None
    assert hub.orphans() == []


CALLS = {
    "image": ("GET", "/image/v2/images"),
    "flavor": ("GET", "/flavors"),
    "network": ("GET", "/networks"),
    "port": ("POST", "/ports$"),
    "server": ("POST", "/servers$"),
    "console": ("POST", "/action$"),
}
FAULTS = {
    "500": {"action": "status", "status": 500},
    "503": {"action": "status", "status": 503},
    "garbage": {"action": "garbage"},
    "truncated": {"action": "truncate"},
    "dropped": {"action": "drop-after"},
}


# of Glance's 503 openstacksdk asks again and again, for a quarter of a minute
TABLE = [(call, fault) for call in CALLS for fault in FAULTS if (call, fault) != ("image", "503")]


@pytest.mark.parametrize(("call", "fault"), TABLE, ids=map("-".join, TABLE))
def test_a_call_that_fails_throughout_a_launch(hub, call, fault):
    visitor = hub.visitor()
    method, path = CALLS[call]
    hub.devcloud.fault(method=method, path=path, times=None, **FAULTS[fault])
    hub.launch(visitor)
    if call in ("server", "port") and fault in ("garbage", "truncated", "dropped"):
        # it was carried out: what was made is found, and not made again
        hub.until_ready(visitor.login, "films")
        assert len(hub.servers(visitor)) == len(hub.ports(visitor)) == 1
        return
    intent = failed(hub, visitor, "identify" if call == "console" else "create")
    assert ("--- console ---" in intent.detail) is (call == "console")
    assert hub.orphans() == [] and len(hub.servers(visitor)) == (call == "console")
    hub.devcloud.clear_faults()
    works_at_last(hub, visitor)


@pytest.mark.parametrize("fault", ["500", "dropped"])
def test_a_create_that_fails_once_is_repeated_but_never_done_twice(hub, fault):
    visitor = hub.visitor()
    hub.devcloud.fault(method="POST", path="/servers$", **FAULTS[fault])
    hub.launched(visitor)
    assert len(hub.servers(visitor)) == len(hub.ports(visitor)) == 1


@pytest.mark.parametrize("fault", FAULTS)
def test_a_listing_that_fails_holds_no_first_launch_up(hub, fault):
    visitor = hub.visitor()
    hub.devcloud.fault(method="GET", path="/servers/detail", times=None, **FAULTS[fault])
    hub.launched(visitor)


def test_a_cloud_that_cannot_be_listed_starts_nothing_again(hub):
    """As what it has of the instance is unknown, creating another server could be one too many."""
    visitor = hub.visitor()
    hub.launched(visitor)
    hub.end(visitor)
    hub.devcloud.fault(method="GET", path="/servers/detail", times=None, **FAULTS["503"])
    hub.start_again(visitor)
    failed(hub, visitor, "create", "The cloud does not answer. Nothing was changed.")
    hub.devcloud.clear_faults()
    works_at_last(hub, visitor)


# --- what the cloud does not have, or does not give


@pytest.mark.parametrize(
    ("values", "words"),
    [
        pytest.param({"image": "nowhere"}, "The cloud has no image named nowhere.", id="image"),
        pytest.param({"flavor": "m1.nowhere"}, "The cloud has no flavor named m1.nowhere.", id="flavor"),
    ],
)
def test_a_plan_that_names_what_the_cloud_does_not_have(hub, values, words):
    visitor = hub.visitor()
    hub.launch(visitor, plan=hub.plan(f"ghost-{visitor.login}", **values))
    failed(hub, visitor, "create", words)
    assert hub.servers(visitor) == hub.ports(visitor) == []


def test_a_network_that_does_not_exist(hub):
    visitor = hub.visitor("instrument-control")
    hub.launch(visitor)
    failed(hub, visitor, "create", "The cloud has no network named nowhere.")
    assert hub.servers(visitor) == hub.ports(visitor) == []


@pytest.fixture
def quota(hub):
    yield hub.devcloud.quota
    hub.devcloud.quota(instances=4000, port=8000)


@pytest.mark.parametrize("what", ["instances", "port"])
def test_a_quota_of_the_cloud_that_is_used_up(hub, quota, what):
    visitor = hub.visitor()
    quota(**{what: 0})
    answer = hub.launch(visitor)
    until(lambda: waits(hub, visitor), "it waits for room")
    assert answer.status_code == 202 or answer.json()["message"] == "The facility's share of the cloud is used up."
    assert hub.servers(visitor) == hub.ports(visitor) == []
    quota(instances=4000, port=8000)
    started_by_itself(hub, visitor)


def waits(hub: FacilityHub, visitor: Visitor) -> bool:
    """The launch is not over: it is in the queue."""
    with hub.session() as session:
        return visitor.id in {one.user_id for one in waiting(session)}


def started_by_itself(hub: FacilityHub, visitor: Visitor) -> None:
    hub.until_ready(visitor.login, "films")
    hub.until_intent(visitor, kind="launch", outcome="done")
    assert len(hub.instance(visitor).intents) == 1 and not waits(hub, visitor)
    (server,), (port,) = hub.servers(visitor), hub.ports(visitor)
    assert port["device_id"] == server["id"] and hub.orphans() == []


def test_a_server_for_which_there_is_no_host(hub):
    visitor = hub.visitor()
    hub.devcloud.next_boot(error="No valid host was found. ")
    answer = hub.launch(visitor)
    assert answer.status_code == 202 or answer.json()["message"] == "There is no room in the cloud for this plan just now."
    started_by_itself(hub, visitor)


def test_a_server_that_fails_to_build(hub):
    visitor, error = hub.visitor(), "libvirt: <b>boom</b>"
    hub.devcloud.next_boot(error=error)
    hub.launch(visitor)
    intent = failed(hub, visitor, "boot", "The cloud could not build this server.")
    assert error in intent.detail
    assert hub.servers(visitor) == hub.ports(visitor) == []
    works_at_last(hub, visitor)


def test_credentials_that_are_wrong(hub):
    visitor = hub.visitor()
    hub.devcloud.fault(method="POST", path="/auth/tokens", action="status", status=401, times=None)
    hub.devcloud.control("POST", "/expire-tokens")
    hub.launch(visitor)
    failed(hub, visitor, "create", "The cloud does not accept Hutch's credentials")
    hub.devcloud.clear_faults()
    works_at_last(hub, visitor)


def test_a_token_that_ran_out_is_fetched_anew(hub):
    visitor = hub.visitor()
    hub.devcloud.control("POST", "/expire-tokens")
    hub.launched(visitor)


def test_a_cloud_that_is_down(hub):
    visitor = hub.visitor()
    hub.devcloud.stop()
    try:
        hub.launch(visitor)
        failed(hub, visitor, "create", "The cloud did not answer when asked to look up the")
    finally:
        hub.devcloud.start()
    works_at_last(hub, visitor)


# --- the server and its agent


def test_an_agent_that_never_answers(hub):
    visitor = hub.visitor("it-support")
    hub.devcloud.next_boot(never_agent=True)
    hub.launch(visitor)
    intent = failed(hub, visitor, "boot", "Nothing listens at")
    assert "--- console ---" in intent.detail
    works_at_last(hub, visitor)


def test_somebody_else_who_answers_in_its_place(hub):
    visitor = hub.visitor()
    server = hold_at_console(hub, visitor)
    hub.devcloud.trouble(server, "wrong-certificate")
    intent = failed(hub, visitor, words="is not the agent whose fingerprint was on the console; nothing was sent.")
    assert "HUTCH-AGENT fingerprint" in intent.detail


@pytest.mark.parametrize("verb", ["crash", "mute"])
def test_an_agent_that_goes_away(hub, verb):
    visitor = hub.visitor()
    hub.devcloud.trouble(hold_at_console(hub, visitor), verb)
    failed(hub, visitor, words="cannot be reached")
    assert len(hub.servers(visitor)) == 1


def test_a_server_that_switches_itself_off_while_it_boots(hub):
    visitor = hub.visitor()
    hub.devcloud.next_boot(never_agent=True)
    hub.launch(visitor)
    (server,) = until(lambda: [one for one in hub.servers(visitor) if one["status"] == "ACTIVE"], "the server is up")
    hub.devcloud.trouble(server["id"], "power-off")
    failed(hub, visitor, "boot", "The server was found switched off while it booted.")
    works_at_last(hub, visitor)


def test_a_console_without_a_fingerprint(hub):
    """Until the log has caught up, it is asked for again."""
    visitor = hub.visitor()
    hub.devcloud.fault(method="POST", path="/action$", action="delay", seconds=1)
    hub.launch(visitor)
    (server,) = until(lambda: [one for one in hub.servers(visitor) if one["status"] == "ACTIVE"], "the server is up")
    console = hub.cloud.compute.post(f"/servers/{server['id']}/action", json={"os-getConsoleOutput": {}}).json()["output"]
    hub.devcloud.trouble(server["id"], "console", text="\x1b[2J nothing yet\n")
    until(lambda: hub.devcloud.calls()["counts"].get("POST /compute/v2.1/servers/{id}/action", 0) > 1, "the console was read")
    hub.devcloud.trouble(server["id"], "console", text=console)
    hub.until_ready(visitor.login, "films")


def hold_at_console(hub: FacilityHub, visitor: Visitor) -> str:
    """Launches, and returns the server while the hub still waits for its console."""
    hub.devcloud.fault(method="POST", path="/action$", action="delay", seconds=5)
    hub.launch(visitor)
    until(lambda: not hub.devcloud.control("GET", "/faults")["faults"], "the console is asked for")
    (server,) = hub.servers(visitor)
    return server["id"]


# --- the database


def test_a_database_that_stays_locked(hub):
    """A launch that cannot be written down is not begun; one that has begun goes on."""
    visitor, other = hub.visitor(), hub.visitor()
    hub.devcloud.fault(method="POST", path="/servers$", action="delay", seconds=1)
    hub.launch(other)
    until(lambda: hub.ports(other), "the other launch has begun")
    with hub.engine.connect() as locking:
        take_turn(locking)
        answer = hub.launch(visitor)
        until(lambda: not hub.server(other.login, "films").get("pending"), "the other launch is over")
        hub.until_idle(visitor.login, "films")
        locking.rollback()
    assert hub.instances(visitor) == [] and hub.orphans() == []
    assert answer.status_code in (202, 503)
    assert hub.launch(visitor).status_code in (201, 202)
    hub.until_ready(visitor.login, "films")
    hub.start_again(other)
    hub.until_ready(other.login, "films")
    assert len(hub.servers(other)) == 1
