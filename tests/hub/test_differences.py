"""What differs, and what is done about it: one table, and what must hold whatever is read."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.steward.differences import Finding, Meant, Policy, Recorded, Rule, State, View, compare, goes_on, step

pytestmark = pytest.mark.any_database

AT = datetime(2026, 3, 10, 12, tzinfo=UTC)
DAY = timedelta(days=1)
US, THEM = "deployment-1", "deployment-2"
GRACES = Policy(Rule.DELETE, timedelta(hours=1), timedelta(days=7))


def server(instance="one", **values):
    marks = {"hutch-deployment": US, "hutch-instance": instance}
    seen = {"id": f"server-of-{instance}", "status": "ACTIVE", "metadata": marks, "tags": [f"hutch-{US}"], "created": "2026-03-01"}
    return seen | values


def port(instance="one", device="", deployment=US):
    return {"id": f"port-of-{instance}", "name": "hutch", "description": f"hutch-{deployment} {instance}", "device_id": device}


def recorded(instance="one", **values):
    facts = {"login": "vera", "server_name": instance, "place": "", "meant": Meant.RUN, "since": AT - DAY, "came_up": True}
    return Recorded(instance, **(facts | {"is_deleted": False, "is_purged": False} | values))


def view(*things, served=None, **values):
    """served: "as recorded" unless said otherwise."""
    records = {one.instance_id: one for one in things if isinstance(one, Recorded)}
    seen = [one for one in things if isinstance(one, dict)]
    servers, ports = [one for one in seen if "status" in one], [one for one in seen if "device_id" in one]
    whole = {(one.login, one.server_name): True for one in records.values() if one.meant is Meant.RUN}
    return View(US, AT, servers, ports, records=records, served=whole if served is None else served, **values)


STOPPED, DELETED, JUST = {"meant": Meant.OFF}, {"meant": Meant.OFF, "is_deleted": True}, {"since": AT - timedelta(seconds=1)}
PURGED = {**DELETED, "is_purged": True}
MARK = {"hutch-deployment": US, "hutch-instance": "one"}
FOREIGN = {"hutch-deployment": THEM, "hutch-instance": "one"}

TABLE = [
    ("as it should be", view(server(), port(device="server-of-one"), recorded()), None),
    ("stopped as it should be", view(server(status="SHUTOFF"), port(), recorded(**STOPPED)), None),
    ("nothing at all", view(), None),
    # orphans
    ("on nobody's record", view(server()), State.ORPHAN),
    ("purged, and still there", view(server(), recorded(**PURGED)), State.PURGED),
    ("purged while the cloud was read", view(server(), recorded(**PURGED, **JUST)), None),
    ("of another deployment", view(server(metadata=FOREIGN, tags=[f"hutch-{THEM}"])), State.DISAGREES),
    # marks
    ("tagged as ours, and another's", view(server(metadata=FOREIGN)), State.DISAGREES),
    ("tagged as ours, and nobody's", view(server(metadata={})), State.DISAGREES),
    ("of us, and of no instance", view(server(metadata={"hutch-deployment": US})), State.DISAGREES),
    ("changed by hand to be nobody's", view(server("nobody", id="x"), port(device="x"), recorded()), State.DISAGREES),
    ("changed by hand to be another's", view(server("two", id="x"), port(device="x"), recorded()), State.DISAGREES),
    ("ours, and not tagged", view(server(tags=[]), recorded()), State.DISAGREES),
    ("a bare description, as its cell is down", view({"id": "x", "status": "UNKNOWN"}, recorded(came_up=False)), None),
    # states
    ("in error", view(server(status="ERROR"), recorded()), State.FAILED),
    ("in error and stopped", view(server(status="ERROR"), recorded(**STOPPED)), State.FAILED),
    ("runs though stopped", view(server(), recorded(**STOPPED)), State.RUNNING),
    ("runs though deleted", view(server(), recorded(**DELETED)), State.RUNNING),
    ("was stopped this moment", view(server(), recorded(**STOPPED, **JUST)), None),
    ("is going down", view(server(**{"OS-EXT-STS:task_state": "powering-off"}), recorded(**STOPPED)), None),
    ("nobody knows what it is to do", view(server(), recorded(meant=Meant.UNCLEAR)), None),
    ("waits for a launch, off", view(server(status="SHUTOFF"), recorded(meant=Meant.UNCLEAR)), None),
    # the hub
    ("not served", view(server(), recorded(), served={}), State.NOT_SERVED),
    ("just launched, not served yet", view(server(), recorded(**JUST), served={}), None),
    ("in another place of ours", view(server(), recorded(place="east")), State.TWIN),
    ("served, and not on record", view(served={("mallory", "films"): True}), State.STRANGER),
    ("about to be on record", view(served={("mallory", "films"): False}), None),
    ("served, and deleted", view(server(status="SHUTOFF"), recorded(**DELETED), served={("vera", "one"): True}), State.STRANGER),
    ("served, and deleted this moment", view(recorded(**DELETED, **JUST), served={("vera", "one"): True}), None),
    # absence
    ("lost", view(recorded()), State.LOST),
    ("lost while it was off", view(recorded(**STOPPED)), State.LOST),
    ("lost, so that its launch failed", view(recorded(meant=Meant.UNCLEAR)), State.LOST),
    ("being launched", view(recorded(meant=Meant.UNCLEAR, **JUST)), None),
    ("never came up", view(recorded(**STOPPED, came_up=False)), None),
    ("deleted, nothing there", view(recorded(**DELETED)), None),
    ("launched while the cloud was read", view(recorded(**JUST)), None),
    ("elsewhere", view(recorded(place="east")), None),
    ("a bare description of what came up", view({"id": "x", "status": "UNKNOWN"}, port(device="x"), recorded()), None),
    ("left out of the listing", view(recorded(), port(device="hidden")), None),
    ("left out, and certainly gone", view(recorded(), port(device="hidden"), gone=frozenset({"hidden"})), State.LOST),
    # ports
    ("a port of nobody", view(port()), State.PORT_LEFT),
    ("a port of what was purged", view(port(), recorded(**PURGED)), State.PORT_LEFT),
    ("a port that waits for its start", view(port(), recorded(**STOPPED, came_up=False)), None),
    ("a port held by who knows what", view(port(device="hidden")), None),
    ("a port held by what is gone", view(port(device="hidden"), gone=frozenset({"hidden"})), State.PORT_LEFT),
    ("a port of another deployment", view(port(deployment=THEM)), None),
    # what others made for instances
    ("a volume", view(volumes=[{"id": "v", "name": "", "metadata": MARK}]), State.VOLUME_LEFT),
    ("a volume of an instance", view(server(), recorded(), volumes=[{"id": "v", "name": "", "metadata": MARK}]), None),
    ("a volume of others", view(volumes=[{"id": "v", "name": "", "metadata": FOREIGN}]), None),
    (
        "a floating IP",
        view(addresses=[{"id": "f", "floating_ip_address": "10.0.0.1", "description": f"hutch-{US} one", "tags": []}]),
        State.ADDRESS_LEFT,
    ),
    (
        "a floating IP with our tag",
        view(addresses=[{"id": "f", "floating_ip_address": "10.0.0.1", "description": "", "tags": [f"hutch-{US}"]}]),
        State.ADDRESS_LEFT,
    ),
    (
        "a floating IP of others",
        view(addresses=[{"id": "f", "floating_ip_address": "10.0.0.1", "description": None, "tags": []}]),
        None,
    ),
]


@pytest.mark.parametrize(("read", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_what_is_found(read, expected):
    found, _ = compare(read)
    assert [one.state for one in found] == ([expected] if expected else [])


def test_every_difference_is_in_the_table():
    assert {row[2] for row in TABLE} == {None, *State}


def test_the_docs_name_every_difference_with_its_rule():
    lines = (Path(__file__).parents[2] / "docs" / "reconciling.md").read_text().splitlines()
    told = [line for line in lines if line.startswith("| `")]
    assert told == [f"| `{state.value}` | {state.rule} | {state.sentence} |" for state in State]


def test_of_two_servers_the_one_that_launches_use_is_none():
    older, newer = server(id="older"), server(id="newer", created="2026-03-02")
    assert [(one.resource_id, one.state) for one in compare(view(older, newer, recorded()))[0]] == [("newer", State.TWIN)]
    broken = server(id="older", status="ERROR")
    assert [(one.resource_id, one.state) for one in compare(view(broken, newer, recorded()))[0]] == [("older", State.TWIN)]
    # nobody uses either
    assert {one.state for one in compare(view(older, newer))[0]} == {State.ORPHAN}


@pytest.mark.parametrize(
    ("kind", "state", "unread"),
    [
        ("volume", State.VOLUME_LEFT, {"addresses": ()}),
        ("floating-ip", State.ADDRESS_LEFT, {"volumes": ()}),
        ("server", State.NOT_SERVED, {"served": None}),
        ("hub", State.STRANGER, {"served": None}),
    ],
)
def test_what_was_not_read_does_not_end(kind, state, unread):
    whole = {"volumes": (), "addresses": (), "served": {}}
    nothing = View(US, AT, **whole)
    assert not goes_on(kind, "x", state, nothing, set()) and goes_on(kind, "x", state, nothing, {"x"})
    assert goes_on(kind, "x", state, replace(nothing, **{name: None for name in whole if name not in unread} | unread), set())


# --- what is due

HOUR = timedelta(hours=1)
STEPS = [
    # rule, the site's most, found, quarantined, off -> due
    (State.ORPHAN, Rule.REPORT, 9 * DAY, None, False, None),
    (State.ORPHAN, Rule.QUARANTINE, HOUR / 2, None, False, None),
    (State.ORPHAN, Rule.QUARANTINE, HOUR, None, False, Rule.QUARANTINE),
    (State.ORPHAN, Rule.QUARANTINE, 99 * DAY, 90 * DAY, True, None),
    (State.ORPHAN, Rule.DELETE, 99 * DAY, None, True, Rule.QUARANTINE),
    (State.ORPHAN, Rule.DELETE, 9 * DAY, 6 * DAY, True, None),
    (State.ORPHAN, Rule.DELETE, 9 * DAY, 7 * DAY, True, Rule.DELETE),
    (State.ORPHAN, Rule.DELETE, 9 * DAY, 8 * DAY, False, Rule.QUARANTINE),
    (State.RUNNING, Rule.DELETE, HOUR, None, False, Rule.QUARANTINE),
    (State.RUNNING, Rule.DELETE, 99 * DAY, 90 * DAY, True, None),
    *((state, Rule.DELETE, 99 * DAY, quarantined, True, None)
      for state in State if state.rule in (Rule.REPORT, Rule.ADOPT) for quarantined in (None, 90 * DAY)),
]  # fmt: skip


@pytest.mark.parametrize(("state", "most", "found", "quarantined", "off", "due"), STEPS)
def test_what_is_due(state, most, found, quarantined, off, due):
    finding = Finding("server", "x", state, is_off=off)
    assert step(finding, AT - found, quarantined and AT - quarantined, replace(GRACES, most=most), AT) == due


# --- what must hold whatever is read

INSTANCES = st.sampled_from(["one", "two", "three"])
SERVERS = st.builds(
    lambda number, instance, deployment, tag, status, task: server(
        instance,
        id=f"server-{number}",
        metadata={"hutch-deployment": deployment, "hutch-instance": instance},
        tags=[f"hutch-{tag}"],
        status=status,
        **{"OS-EXT-STS:task_state": task},
    ),
    st.integers(0, 5),
    INSTANCES,
    st.sampled_from([US, US, THEM]),
    st.sampled_from([US, US, THEM]),
    st.sampled_from(["ACTIVE", "SHUTOFF", "ERROR", "BUILD"]),
    st.sampled_from([None, None, "powering-off"]),
)
PORTS = st.builds(port, INSTANCES, st.sampled_from(["", "server-0", "server-1", "hidden"]), st.sampled_from([US, US, THEM]))
RECORDS = st.builds(
    recorded,
    INSTANCES,
    place=st.sampled_from(["", "east"]),
    meant=st.sampled_from(Meant),
    since=st.sampled_from([AT - DAY, AT]),
    came_up=st.booleans(),
    is_deleted=st.booleans(),
    is_purged=st.booleans(),
)
VIEWS = st.builds(
    lambda servers, ports, records, gone: view(
        *{one["id"]: one for one in servers}.values(), *{one["id"]: one for one in ports}.values(), *records, served={}, gone=gone
    ),
    st.lists(SERVERS, max_size=6),
    st.lists(PORTS, max_size=4),
    st.lists(RECORDS, max_size=3),
    st.sampled_from([frozenset(), frozenset({"hidden"})]),
)


@given(VIEWS, st.booleans())
def test_only_what_is_ours_and_certain_is_ever_acted_upon(read, quarantined):
    servers = {one["id"]: one for one in read.servers}
    ports = {one["id"]: one for one in read.ports}
    for one in compare(read)[0]:
        long_ago = AT - 99 * DAY
        due = step(one, long_ago, long_ago if quarantined else None, GRACES, AT)
        assert step(one, long_ago, long_ago, replace(GRACES, most=Rule.REPORT), AT) is None
        if due is None:
            continue
        assert one.kind in ("server", "port")
        record = read.records.get(one.instance_id)
        unused = record is None or (record.is_purged and record.since < AT)
        if one.kind == "port":
            seen = ports[one.resource_id]
            assert unused and seen["description"].startswith(f"hutch-{US} ")
            assert seen["device_id"] == "" or seen["device_id"] in read.gone
            continue
        seen = servers[one.resource_id]
        assert seen["metadata"]["hutch-deployment"] == US and seen["tags"] == [f"hutch-{US}"]
        meant_off = record and record.meant is Meant.OFF and record.since < AT and seen["OS-EXT-STS:task_state"] is None
        assert unused or (meant_off and due is Rule.QUARANTINE)
        assert {p["description"] for p in ports.values() if p["device_id"] == seen["id"]} <= {
            f"hutch-{US} {one.instance_id}",
            *(p["description"] for p in ports.values() if THEM in p["description"]),
        }
        if due is Rule.DELETE:
            assert quarantined and unused and seen["status"] in ("SHUTOFF", "ERROR") and seen["OS-EXT-STS:task_state"] is None


@given(VIEWS)
def test_an_absence_is_told_only_where_nothing_was_left_out(read):
    for one in compare(read)[0]:
        if one.state is State.LOST:
            holders = {p["device_id"] for p in read.ports if p["description"] == f"hutch-{US} {one.instance_id}"} - {""}
            assert holders <= read.gone
