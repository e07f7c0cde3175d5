"""Which security groups guard an instance: the rules as a table, the site's hook, and what the steward keeps in the cloud."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from facility_hub import FacilityHub, Visitor, facility
from running_hub import until
from traitlets.config import Config

from hub import firewall_hook
from hub.access import Person, PlanOffer, Terms, Visit
from hub.configuration import Hutch
from hub.database.tables import UserRole, now
from hub.firewall import Firewall, Subject, neutron_rule, spelled

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
DECLARED = {
    "hub_addresses": ["10.77.0.1"],
    "groups": {
        "staff": {"rules": [{"to": "10.1.0.0/16"}], "for": [{"roles": ["staff", "admin"]}]},
        "nano": {"rules": [{"to": "10.3.0.0/24", "ports": "5064-5065"}], "for": [{"instruments": ["ID16"], "within_days": 2}]},
        "nano-staff": {"for": [{"instruments": ["ID16"], "roles": ["staff"]}]},
        "graphics": {"for": [{"flavors": ["gpu"]}, {"groups": ["painters"]}]},
        "beamtime": {"for": [{"from": "2026-03-01", "until": "2026-03-10T12:00"}]},
        "asked": {"rules": [{"from": "10.9.0.0/16", "ports": 22}], "for": []},
        "everyone": {"rules": []},
    },
}


def visit(**more: Any) -> Visit:
    facts = {"starts_at": NOW - timedelta(days=1), "ends_at": NOW + timedelta(days=1), "roles": {"ann": "member"}}
    return Visit("E-1", "P-1", "ID16", "Films", **facts | more)


def subject(*visits: Visit, flavor: str = "small", **person: Any) -> Subject:
    held = {name: frozenset(value) for name, value in person.items()}
    return Subject(Person("ann", "ann", "Ann", **held), PlanOffer("p", "P", flavor=flavor), visits)


@pytest.mark.parametrize(
    ("who", "also"),
    [
        pytest.param(subject(), "", id="nobody-in-particular"),
        pytest.param(Subject(None, PlanOffer("p", "P", flavor="gpu"), [visit()]), "", id="no-longer-known"),
        pytest.param(subject(roles=["staff"]), "staff", id="role"),
        # VISA puts every group of the cloud on an admin's instances
        pytest.param(subject(roles=["admin"]), "staff", id="admin-is-no-exception"),
        pytest.param(subject(visit()), "nano", id="instrument"),
        pytest.param(subject(visit(), roles=["staff"]), "nano nano-staff staff", id="all-of-a-way"),
        pytest.param(subject(visit(roles={"bo": "member"})), "", id="not-on-the-team"),
        pytest.param(subject(visit(gone=True)), "", id="gone-from-the-source"),
        pytest.param(subject(visit(ends_at=NOW - timedelta(days=2, seconds=1))), "", id="long-over"),
        pytest.param(subject(visit(ends_at=NOW - timedelta(days=2))), "nano", id="just-over"),
        pytest.param(subject(visit(starts_at=NOW + timedelta(days=3))), "", id="not-yet"),
        pytest.param(subject(scientist_of=["ID16"]), "nano", id="its-scientist"),
        pytest.param(subject(flavor="gpu"), "graphics", id="flavor"),
        pytest.param(subject(groups=["painters"]), "graphics", id="the-other-way"),
    ],
)
def test_groups_by_role_instrument_flavor_and_date(who, also):
    firewall = Firewall(DECLARED)
    assert firewall.guards(who, Terms(NOW), set()) == {"base", "everyone", *also.split()}


def test_a_way_has_its_time():
    firewall, at = Firewall(DECLARED), NOW - timedelta(seconds=1)
    assert "beamtime" in firewall.guards(subject(), Terms(at), set())


def test_the_hook_chooses_among_what_is_declared():
    assert Firewall(DECLARED).guards(subject(), Terms(NOW), {"asked", "default", "nano"}) == {"base", "everyone", "asked", "nano"}


@pytest.mark.parametrize(
    ("present", "left"),
    [
        pytest.param((), {"base"}, id="at-a-launch"),
        pytest.param({"base", "asked", "staff"}, {"base", "asked"}, id="what-the-ways-give-no-more-goes"),
        pytest.param({"everyone"}, {"base", "everyone"}, id="the-base-is-never-missing"),
    ],
)
def test_a_hook_that_failed_adds_nothing(present, left):
    assert Firewall(DECLARED).guards(subject(visit()), Terms(NOW), None, present) == left


def test_only_the_hub_is_let_in_to_agent_and_notebook():
    rules = Firewall(DECLARED, (8765, 8888)).rules["base"]
    let_in = [rule for rule in rules if rule["direction"] == "ingress"]
    assert [(rule["remote_ip_prefix"], rule["port_range_min"], rule["port_range_max"]) for rule in let_in] == [
        ("10.77.0.1/32", 8765, 8765),
        ("10.77.0.1/32", 8888, 8888),
    ]
    assert {rule["protocol"] for rule in let_in} == {"tcp"}


@pytest.mark.parametrize(
    ("entry", "neutron"),
    [
        ({"to": "0.0.0.0/0"}, {"direction": "egress", "ethertype": "IPv4", "remote_ip_prefix": "0.0.0.0/0"}),
        ({"to": "::/0"}, {"direction": "egress", "ethertype": "IPv6", "protocol": None}),
        ({"from": "10.1.2.3"}, {"direction": "ingress", "ethertype": "IPv4", "remote_ip_prefix": "10.1.2.3/32"}),
        (
            {"from": "10.0.0.0/8", "protocol": "udp", "ports": "1-9"},
            {"direction": "ingress", "ethertype": "IPv4", "remote_ip_prefix": "10.0.0.0/8", "protocol": "udp"}
            | {"port_range_min": 1, "port_range_max": 9},
        ),
    ],
)
def test_a_rule_is_compared_as_neutron_shows_it(entry, neutron):
    assert spelled(neutron_rule(entry)) == spelled({"remote_group_id": None, "id": "x", **neutron})


@pytest.mark.parametrize(
    "declared",
    [
        {"groups": {}},
        {"hub_addresses": ["10.77.0.300"]},
        {"hub_addresses": [], "gruops": {}},
        {"hub_addresses": [], "groups": {"base": {}}},
        {"hub_addresses": [], "groups": {"a": {"rules": [{"ports": 1}]}}},
        {"hub_addresses": [], "groups": {"a": {"for": [{"rolls": ["staff"]}]}}},
    ],
)
def test_what_cannot_be_read_is_refused_at_the_start(declared):
    with pytest.raises(Exception, match="firewall"):
        Hutch(config=Config(Hutch={"firewall": declared}))


# --- the hook


def with_hook(hook: Any, seconds: float = 30) -> Firewall:
    return Firewall({"hub_addresses": [], "hook": hook, "hook_seconds": seconds})


async def late(facts: dict[str, Any]) -> list[str]:
    await asyncio.Event().wait()
    return ["asked"]


def stuck(facts: dict[str, Any]) -> list[str]:
    released.wait(20)
    return ["asked"]


async def soon(facts: dict[str, Any]) -> list[str]:
    return [facts["instance"]]


released = threading.Event()


@pytest.mark.parametrize(
    ("hook", "answer"),
    [
        pytest.param("", set(), id="none"),
        pytest.param(lambda facts: [facts["instance"]], {"i"}, id="function"),
        pytest.param(soon, {"i"}, id="coroutine"),
        pytest.param(lambda facts: 1 / 0, None, id="raises"),
        pytest.param(lambda facts: "asked", None, id="a-text"),
        pytest.param(lambda facts: [1], None, id="numbers"),
        pytest.param(lambda facts: None, None, id="nothing"),
        pytest.param(late, None, id="late"),
        pytest.param(stuck, None, id="stuck"),
        pytest.param("http://127.0.0.1:9/", None, id="nobody-listens"),
    ],
)
def test_a_hook_answers_in_time_or_has_failed(hook, answer):
    released.clear()
    try:
        assert asyncio.run(firewall_hook.ask(with_hook(hook, 0.3 if hook in (late, stuck) else 30), {"instance": "i"})) == answer
    finally:
        released.set()


@pytest.mark.parametrize(
    ("status", "body", "answer"), [(200, b'["asked"]', {"asked"}), (503, b'["asked"]', None), (302, b"", None), (200, b"<", None)]
)
def test_a_hook_over_http(status, body, answer):
    class Service(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Service) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        assert asyncio.run(firewall_hook.ask(with_hook(f"http://127.0.0.1:{server.server_port}/"), {"instance": "i"})) == answer


# --- in the cloud

CONFIG = f"""
import json
import hub.steward.firewall
import hub.steward.tasks
import spawner.cloud
hub.steward.tasks.AGAIN_SECONDS = hub.steward.firewall.ASK_AGAIN_SECONDS = 0.3
spawner.cloud.CATALOGUE_SECONDS = 0
c.Hutch.reconcile_interval_seconds = 3600
c.Hutch.firewall = {DECLARED | {"groups": {name: group for name, group in DECLARED["groups"].items() if "rules" in group}}!r}
c.Hutch.firewall["groups"]["cloud-owned"] = {{"for": [{{"roles": ["it-support"]}}]}}
def said(facts):
    answer = json.loads(Path(HOOK).read_text())
    return answer.get(facts["owner"], ["asked"]) if isinstance(answer, dict) else answer
c.Hutch.firewall["hook"] = said
c.Hutch.firewall["hook_seconds"] = 60
"""


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FacilityHub]:
    """A hub with a firewall, whose hook says what a file says."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "hook").write_text('["asked"]')
    with facility(folder, f"HOOK = {str(folder / 'hook')!r}" + CONFIG) as hub:
        until(lambda: len(groups(hub)) == 5, "the steward has made the groups")
        hub.hook = folder / "hook"  # type: ignore[attr-defined]
        yield hub


def groups(hub: FacilityHub) -> dict[str, dict[str, Any]]:
    """This deployment's, by their names in the configuration."""
    listed = hub.cloud.network.get("/security-groups").json()["security_groups"]
    mark = f"hutch-{hub.deployment} "
    return {group["description"].removeprefix(mark): group for group in listed if group["description"].startswith(mark)}


def guards(hub: FacilityHub, visitor: Visitor) -> set[str]:
    (port,) = hub.ports(visitor)
    names = {group["id"]: group["name"] for group in hub.cloud.network.get("/security-groups").json()["security_groups"]}
    return {names[group_id].removeprefix(f"hutch-{hub.deployment[:8]}-") for group_id in port["security_groups"]}


def test_a_launch_has_its_groups_and_none_of_the_cloud(guarded):
    visitor = guarded.visitor("staff")
    guarded.launched(visitor)
    assert guards(guarded, visitor) == {"base", "everyone", "staff", "nano", "asked"}


def test_a_right_that_ends_takes_its_group_along_while_the_instance_runs(guarded):
    visitor = guarded.visitor("staff")
    guarded.launched(visitor)

    def expire(session: Any) -> None:
        session.get_one(UserRole, (visitor.id, "staff")).expires_at = now() - timedelta(seconds=1)

    guarded.change(expire)
    until(lambda: guards(guarded, visitor) == {"base", "everyone", "nano", "asked"}, "the staff's group is gone")
    assert guarded.server(visitor.login, "films")["ready"]


@pytest.mark.parametrize(
    "fault",
    [
        {"method": "PUT", "path": "/ports/", "action": "status", "status": 503},
        {"method": "PUT", "path": "/ports/", "action": "drop-after"},
        {"method": "PUT", "path": "/ports/", "action": "garbage"},
    ],
    ids=["503", "dropped", "garbage"],
)
def test_what_the_cloud_fails_is_done_at_a_later_pass(guarded, fault):
    visitor = guarded.visitor("staff")
    guarded.launched(visitor)
    guarded.devcloud.fault(times=2, **fault)
    guarded.change(lambda session: setattr(session.get_one(UserRole, (visitor.id, "staff")), "expires_at", now()))
    try:
        until(lambda: guards(guarded, visitor) == {"base", "everyone", "nano", "asked"}, "the staff's group is gone")
    finally:
        guarded.devcloud.clear_faults()


def test_a_failing_hook_leaves_the_base_alone_and_says_so(guarded):
    visitor = guarded.visitor("staff")
    guarded.hook.write_text("broken")
    try:
        guarded.launched(visitor)
        assert guards(guarded, visitor) == {"base"}
        (note,) = [event.message for event in guarded.instance(visitor).events if event.kind == "firewall-hook-failed"]
        assert "only the base rules" in note
    finally:
        guarded.hook.write_text('["asked"]')
    until(lambda: guards(guarded, visitor) == {"base", "everyone", "staff", "nano", "asked"}, "the hook answers again")


def test_a_resume_brings_its_groups_up_to_date_before_it_runs(guarded):
    visitor = guarded.visitor()
    guarded.launched(visitor)
    guarded.end(visitor)
    assert guards(guarded, visitor) == {"base", "everyone", "nano", "asked"}
    guarded.hook.write_text("broken")
    try:
        guarded.start_again(visitor)
        guarded.until_ready(visitor.login, "films")
        assert guards(guarded, visitor) == {"base"}
    finally:
        guarded.hook.write_text('["asked"]')


def test_groups_are_repaired_and_those_of_others_are_left_alone(guarded):
    network = guarded.cloud.network
    other = network.post("/security-groups", json={"security_group": {"name": "hutch-other", "description": "hutch-other base"}})
    rule = {"direction": "ingress", "protocol": "tcp", "port_range_min": 22, "port_range_max": 22}
    ours, other_id = groups(guarded)["base"], other.json()["security_group"]["id"]
    before = sorted(map(spelled, ours["security_group_rules"]), key=str)
    for group_id in (ours["id"], other_id):
        network.post("/security-group-rules", json={"security_group_rule": rule | {"security_group_id": group_id}})
    network.delete(f"/security-group-rules/{ours['security_group_rules'][0]['id']}")
    until(
        lambda: sorted(map(spelled, groups(guarded)["base"]["security_group_rules"]), key=str) == before,
        "the rules are as they are declared",
    )
    left = network.get(f"/security-groups/{other_id}").json()["security_group"]
    assert len(left["security_group_rules"]) == 3
    network.delete(f"/security-groups/{other_id}")


def test_a_group_that_was_renamed_or_is_there_twice_is_the_one_that_launches_find(guarded):
    network, (name, ours) = guarded.cloud.network, ("everyone", groups(guarded)["everyone"])
    twin = {"name": ours["name"], "description": ours["description"]}
    network.post("/security-groups", json={"security_group": twin})
    network.put(f"/security-groups/{ours['id']}", json={"security_group": {"name": "my-own"}})

    def named() -> list[str]:
        listed = network.get("/security-groups").json()["security_groups"]
        return [group["name"] for group in listed if group["description"] == ours["description"]]

    until(lambda: named() == [twin["name"]], f"one group is {name}, under its name")
    visitor = guarded.visitor()
    guarded.launched(visitor)
    assert name in guards(guarded, visitor)


def test_a_group_that_cannot_be_kept_holds_up_nobodys_rights(guarded):
    visitor = guarded.visitor("staff")
    guarded.launched(visitor)
    rules = len(groups(guarded)["base"]["security_group_rules"])
    over = "Quota exceeded for resources: ['security_group_rule']."
    guarded.devcloud.fault(method="POST", path="/security-group-rules", action="status", status=409, message=over, times=None)
    try:
        guarded.cloud.network.delete(f"/security-group-rules/{groups(guarded)['base']['security_group_rules'][0]['id']}")
        guarded.change(lambda session: setattr(session.get_one(UserRole, (visitor.id, "staff")), "expires_at", now()))
        until(lambda: guards(guarded, visitor) == {"base", "everyone", "nano", "asked"}, "the staff's group is gone")
    finally:
        guarded.devcloud.clear_faults()
    until(lambda: len(groups(guarded)["base"]["security_group_rules"]) == rules, "the rule is back")


def test_a_hook_that_fails_for_one_instance_is_asked_about_the_others(guarded):
    first, second = guarded.visitor(), guarded.visitor()
    guarded.launched(first)
    guarded.launched(second)
    guarded.hook.write_text(json.dumps({first.login: "rubbish", second.login: []}))
    try:
        until(lambda: guards(guarded, second) == {"base", "everyone", "nano"}, "the hook's word on the second is kept")
        assert "asked" in guards(guarded, first)
    finally:
        guarded.hook.write_text('["asked"]')


def test_a_group_that_is_no_longer_declared_goes_and_a_port_loses_it(guarded):
    visitor = guarded.visitor()
    guarded.launched(visitor)
    network, (port,) = guarded.cloud.network, guarded.ports(visitor)
    before = guards(guarded, visitor)
    body = {"name": "hutch-former", "description": f"hutch-{guarded.deployment} former"}
    former = network.post("/security-groups", json={"security_group": body}).json()["security_group"]["id"]
    network.put(f"/ports/{port['id']}", json={"port": {"security_groups": [*port["security_groups"], former]}})
    until(lambda: "former" not in groups(guarded), "the former group is gone")
    assert guards(guarded, visitor) == before


def test_a_pass_asks_the_cloud_as_often_for_many_as_for_one(guarded):
    for _ in range(3):
        guarded.launched(guarded.visitor())

    def asked() -> list[tuple[str, str]]:
        return [(call["method"], call["path"]) for call in guarded.devcloud.calls()["calls"] if "/network/" in call["path"]]

    def passes() -> list[tuple[str, str]]:
        guarded.devcloud.clear_calls()
        until(lambda: sum(path.endswith("/security-groups") for _, path in asked()) >= 4, "four passes have begun")
        return asked()

    # what is as it should be is not written
    seen = until(lambda: (calls := passes()) and all(method == "GET" for method, _ in calls) and calls, "nothing is left to do")
    listings = [path for _, path in seen if "fields=security_groups" in path]
    assert len([path for _, path in seen if path.endswith("/security-groups")]) - len(listings) in (0, 1)
