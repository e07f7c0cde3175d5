"""What may be done with an instance that exists: the whole matrix, cell by cell."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product

import pytest

from hub.access import (
    MAY,
    TASKS,
    Action,
    Consent,
    Part,
    Person,
    Place,
    Right,
    Task,
    Terms,
    Visit,
    may_act,
    may_run,
    standing,
)
from hub.access.desktops import CONTROL as ALL_RIGHTS
from hub.database.tables import FacilityRole

pytestmark = pytest.mark.any_database

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
A_DAY, A_SECOND = timedelta(days=1), timedelta(seconds=1)
TERMS = Terms(NOW, support_window=7 * A_DAY)

# what a cell stands for
RULES = {
    "+": None,
    "part": "part",
    "away": "owner-away",
    "ask": "consent-needed",
    "look": "consent-view",
    "lock": "locked",
    "sent": "sent-away",
    "left": "experiment-membership",
    "gone": "experiment-gone",
    "needs": "experiment-needed",
    "none": "not-yours",
}

# of an instance of ann's for one experiment on ID16, which runs now, unless the row says otherwise
MATRIX = """
who                                     see   open  watch control start stop extend share delete log
ann, its owner                          +     +     +     +       +     +    +      +     +      +
ann, when the experiment is long over   +     +     +     +       +     +    +      +     +      +
ann, no longer in the experiment        +     left  left  left    +     +    left   left  +      +
ann, the experiment no longer named     +     gone  gone  gone    +     +    gone   gone  +      +
ann, data open since now                +     +     +     +       +     +    +      +     +      +
ann, data open in a second              +     left  left  left    +     +    left   left  +      +
ann, staff, without experiment          +     +     +     +       +     +    +      +     +      +
ann, guest, without experiment          +     +     +     +       +     +    +      +     +      +
ann, no longer guest, without one       +     needs needs needs   +     +    needs  needs +      +
driver, owner there                     +     +     +     +       part  part part   part  part   part
driver, owner away                      +     away  away  away    part  part part   part  part   part
driver, who may come freely             +     +     +     +       part  part part   part  part   part
driver, owner left, out                 +     away  away  away    part  part part   part  part   part
driver, owner left, locked              +     away  +     lock    part  part part   part  part   part
driver, owner left, stays               +     away  +     +       part  part part   part  part   part
driver, comes to a locked one           +     away  away  away    part  part part   part  part   part
driver, comes to one that goes on       +     away  away  away    part  part part   part  part   part
driver, sent away                       +     +     sent  sent    part  part part   part  part   part
ann, sent away by herself               +     +     +     +       +     +    +      +     +      +
viewer, owner left, locked              +     part  +     part    part  part part   part  part   part
viewer, owner left, stays               +     part  +     part    part  part part   part  part   part
driver, no longer in the experiment     +     left  left  left    part  part part   part  part   part
driver, instance without experiment     +     +     +     +       part  part part   part  part   part
driver, no longer one                   none  none  none  none    none  none none   none  none   none
viewer, owner there                     +     part  +     part    part  part part   part  part   part
viewer, owner away                      +     part  away  part    part  part part   part  part   part
viewer, no longer in the experiment     +     part  left  part    part  part part   part  part   part
support by invitation                   +     part  +     +       part  part part   part  part   +
support by invitation, owner staff      +     part  ask   ask     part  part part   part  part   +
support by invitation, owner consents   +     part  +     +       part  part part   part  part   +
support by invitation, sent away        +     part  sent  sent    part  part part   part  part   +
member whose row says owner             none  none  none  none    none  none none   none  none   none
a stranger                              none  none  none  none    none  none none   none  none   none
a stranger in the same experiment       none  none  none  none    none  none none   none  none   none
staff                                   none  none  none  none    none  none none   none  none   none
guest                                   none  none  none  none    none  none none   none  none   none
scientific-computing                    none  none  none  none    none  none none   none  none   none
role instrument-scientist alone         none  none  none  none    none  none none   none  none   none
scientist of ID16                       +     part  +     +       part  part part   part  part   +
scientist of ID16, owner staff          +     part  ask   ask     part  part part   part  part   +
scientist of ID16, owner consents       +     part  +     +       part  part part   part  part   +
scientist of ID16, experiment gone      none  none  none  none    none  none none   none  none   none
scientist of D22                        none  none  none  none    none  none none   none  none   none
scientist, instance without experiment  none  none  none  none    none  none none   none  none   none
instrument-control, running             +     part  +     +       part  part part   part  part   +
instrument-control, starts in 7 days    +     part  +     +       part  part part   part  part   +
instrument-control, a second later      none  none  none  none    none  none none   none  none   none
instrument-control, ended 7 days ago    +     part  +     +       part  part part   part  part   +
instrument-control, a second earlier    none  none  none  none    none  none none   none  none   none
instrument-control, open ends           +     part  +     +       part  part part   part  part   +
instrument-control, owner staff         +     part  ask   ask     part  part part   part  part   +
instrument-control, experiment gone     none  none  none  none    none  none none   none  none   none
instrument-control, without experiment  none  none  none  none    none  none none   none  none   none
control, too early, and scientist       +     part  +     +       part  part part   part  part   +
it-support                              +     part  +     +       part  part part   part  part   +
it-support, owner staff                 +     part  ask   ask     part  part part   part  part   +
it-support, owner consents              +     part  +     +       part  part part   part  part   +
it-support, owner lets them see         +     part  +     look    part  part part   part  part   +
it-support, owner consented until now   +     part  ask   ask     part  part part   part  part   +
it-support, consent for a second more   +     part  +     +       part  part part   part  part   +
it-support, owner consents and leaves   +     part  +     +       part  part part   part  part   +
it-support, members come freely         +     part  ask   ask     part  part part   part  part   +
it-support, consent to somebody else    +     part  ask   ask     part  part part   part  part   +
it-support, without experiment          +     part  +     +       part  part part   part  part   +
it-support and driver, owner there      +     +     +     +       part  part part   part  part   +
it-support and driver, owner away       +     away  +     +       part  part part   part  part   +
admin                                   +     part  +     +       +     +    +      part  +      +
admin, owner staff                      +     part  ask   ask     +     +    +      part  +      +
admin, without experiment               +     part  +     +       +     +    +      part  +      +
admin and viewer, owner staff           +     part  +     ask     +     +    +      part  +      +
"""


def visit(*members: str, starts: timedelta | None = -A_DAY, ends: timedelta | None = A_DAY, **more) -> Visit:
    dates = [None if one is None else NOW + one for one in (starts, ends)]
    return Visit("P1-1", "P1", "ID16", "Cracks", "ID16", *dates, roles=dict.fromkeys(members, "member"), **more)


def person(*roles: str, id: str = "bob", on: str = "") -> Person:
    return Person(id, id, id.title(), frozenset(roles), scientist_of=frozenset(on.split()))


def place(*visits: Visit, part: str = "", there: bool = True, **more) -> Place:
    return Place("i1", "ann", members={"bob": part} if part else {}, visits=visits, owner_here=there, **more)


def consent(right: str = "control", until: timedelta = A_DAY, to: str = "bob") -> dict:
    return {"owner_is_staff": True, "consented": {to: Consent(right, NOW + until, 7)}}


TEAM, OWNERS = visit("ann", "bob"), visit("ann")
GONE, PAST = visit(gone=True), visit("ann", starts=-40 * A_DAY, ends=-30 * A_DAY)
ANN, BOB = person(id="ann"), person()
STAFFED, AGREED = {"owner_is_staff": True}, consent()
LEFT = {"there": False, "inside": frozenset({"bob"})}
SENT = {"sent_away": frozenset({"ann", "bob"})}
CONTROL, HELP, ADMIN = person("instrument-control"), person("it-support"), person("admin")
ON_ID16 = person(on="ID16")

ROWS = {
    "ann, its owner": (ANN, place(OWNERS, there=False)),
    "ann, when the experiment is long over": (ANN, place(PAST)),
    "ann, no longer in the experiment": (ANN, place(visit())),
    "ann, the experiment no longer named": (ANN, place(GONE)),
    "ann, data open since now": (ANN, place(visit(public_at=NOW))),
    "ann, data open in a second": (ANN, place(visit(public_at=NOW + A_SECOND))),
    "ann, staff, without experiment": (person("staff", id="ann"), place(**STAFFED)),
    "ann, guest, without experiment": (person("guest", id="ann"), place()),
    "ann, no longer guest, without one": (ANN, place()),
    "driver, owner there": (BOB, place(TEAM, part="driver")),
    "driver, owner away": (BOB, place(TEAM, part="driver", there=False)),
    "driver, who may come freely": (BOB, place(TEAM, part="driver", there=False, members_enter_freely=True)),
    "driver, owner left, out": (BOB, place(TEAM, part="driver", **LEFT)),
    "driver, owner left, locked": (BOB, place(TEAM, part="driver", **LEFT, when_owner_leaves="lock")),
    "driver, owner left, stays": (BOB, place(TEAM, part="driver", **LEFT, when_owner_leaves="stay")),
    "driver, comes to a locked one": (BOB, place(TEAM, part="driver", there=False, when_owner_leaves="lock")),
    "driver, comes to one that goes on": (BOB, place(TEAM, part="driver", there=False, when_owner_leaves="stay")),
    "driver, sent away": (BOB, place(TEAM, part="driver", **SENT)),
    "ann, sent away by herself": (ANN, place(OWNERS, **SENT)),
    "viewer, owner left, locked": (BOB, place(TEAM, part="viewer", **LEFT, when_owner_leaves="lock")),
    "viewer, owner left, stays": (BOB, place(TEAM, part="viewer", **LEFT, when_owner_leaves="stay")),
    "driver, no longer in the experiment": (BOB, place(OWNERS, part="driver")),
    "driver, instance without experiment": (BOB, place(part="driver", **STAFFED)),
    "driver, no longer one": (BOB, place(TEAM)),
    "viewer, owner there": (BOB, place(TEAM, part="viewer")),
    "viewer, owner away": (BOB, place(TEAM, part="viewer", there=False)),
    "viewer, no longer in the experiment": (BOB, place(OWNERS, part="viewer")),
    "support by invitation": (BOB, place(OWNERS, part="support", there=False)),
    "support by invitation, owner staff": (BOB, place(OWNERS, part="support", **STAFFED)),
    "support by invitation, owner consents": (BOB, place(OWNERS, part="support", **AGREED)),
    "support by invitation, sent away": (BOB, place(OWNERS, part="support", **SENT)),
    "member whose row says owner": (BOB, place(TEAM, part="owner")),
    "a stranger": (BOB, place(OWNERS)),
    "a stranger in the same experiment": (BOB, place(TEAM)),
    "staff": (person("staff"), place(TEAM)),
    "guest": (person("guest"), place(TEAM)),
    "scientific-computing": (person("scientific-computing"), place(TEAM)),
    "role instrument-scientist alone": (person("instrument-scientist"), place(TEAM)),
    "scientist of ID16": (ON_ID16, place(OWNERS, there=False)),
    "scientist of ID16, owner staff": (ON_ID16, place(OWNERS, **STAFFED)),
    "scientist of ID16, owner consents": (ON_ID16, place(OWNERS, **AGREED)),
    "scientist of ID16, experiment gone": (ON_ID16, place(GONE)),
    "scientist of D22": (person(on="D22"), place(OWNERS)),
    "scientist, instance without experiment": (ON_ID16, place()),
    "instrument-control, running": (CONTROL, place(OWNERS, there=False)),
    "instrument-control, starts in 7 days": (CONTROL, place(visit(starts=7 * A_DAY, ends=9 * A_DAY))),
    "instrument-control, a second later": (CONTROL, place(visit(starts=7 * A_DAY + A_SECOND, ends=9 * A_DAY))),
    "instrument-control, ended 7 days ago": (CONTROL, place(visit(starts=-9 * A_DAY, ends=-7 * A_DAY))),
    "instrument-control, a second earlier": (CONTROL, place(visit(starts=-9 * A_DAY, ends=-7 * A_DAY - A_SECOND))),
    "instrument-control, open ends": (CONTROL, place(visit(starts=None, ends=None))),
    "instrument-control, owner staff": (CONTROL, place(OWNERS, **STAFFED)),
    "instrument-control, experiment gone": (CONTROL, place(GONE)),
    "instrument-control, without experiment": (CONTROL, place()),
    "control, too early, and scientist": (person("instrument-control", on="ID16"), place(PAST)),
    "it-support": (HELP, place(PAST, there=False)),
    "it-support, owner staff": (HELP, place(OWNERS, **STAFFED)),
    "it-support, owner consents": (HELP, place(OWNERS, **AGREED)),
    "it-support, owner lets them see": (HELP, place(OWNERS, **consent("view"))),
    "it-support, owner consented until now": (HELP, place(OWNERS, **consent(until=0 * A_DAY))),
    "it-support, consent for a second more": (HELP, place(OWNERS, **consent(until=A_SECOND))),
    "it-support, owner consents and leaves": (HELP, place(OWNERS, there=False, **AGREED)),
    "it-support, members come freely": (HELP, place(OWNERS, members_enter_freely=True, **STAFFED)),
    "it-support, consent to somebody else": (HELP, place(OWNERS, **consent(to="eve"))),
    "it-support, without experiment": (HELP, place()),
    "it-support and driver, owner there": (HELP, place(TEAM, part="driver")),
    "it-support and driver, owner away": (HELP, place(TEAM, part="driver", there=False)),
    "admin": (ADMIN, place(PAST, there=False)),
    "admin, owner staff": (ADMIN, place(OWNERS, **STAFFED)),
    "admin, without experiment": (ADMIN, place()),
    "admin and viewer, owner staff": (ADMIN, place(TEAM, part="viewer", **STAFFED)),
}


def cells() -> list:
    head, *lines = MATRIX.strip().splitlines()
    actions = head.split()[1:]
    assert actions == [action.value for action in Action]
    rows = {line[:40].strip(): line[40:].split() for line in lines}
    assert rows.keys() == ROWS.keys()
    return [
        pytest.param(*ROWS[who], Action(action), cell, id=f"{who}: {action}")
        for who, line in rows.items()
        for action, cell in zip(actions, line, strict=True)
    ]


@pytest.mark.parametrize(("who", "where", "action", "cell"), cells())
def test_what_may_be_done_with_an_instance(who, where, action, cell):
    decision = may_act(who, action, where, Terms(NOW, support_window=7 * A_DAY, open_data=True))
    assert (bool(decision), decision.rule if not decision else None) == (cell == "+", RULES[cell])
    assert decision.records
    assert decision.allowed or decision.reason.endswith(".")


@pytest.mark.parametrize("action", Action)
def test_open_data_is_nobodys_without_the_sites_word(action):
    opened = place(visit(public_at=NOW - A_DAY))
    assert may_act(ANN, action, opened, TERMS).allowed is (
        action in (Action.SEE, Action.START, Action.STOP, Action.DELETE, Action.LOG)
    )


def test_a_notebook_is_opened_by_the_owner_and_drivers_only():
    assert {part for part, actions in MAY.items() if Action.OPEN in actions} == {Part.OWNER, Part.DRIVER}


@pytest.mark.parametrize(
    ("decision", "records"),
    [
        (may_act(ANN, Action.STOP, place(OWNERS), TERMS), ["instance:i1"]),
        (may_act(BOB, Action.SEE, place(TEAM, part="viewer"), TERMS), ["instance_member:i1/bob"]),
        (may_act(ON_ID16, Action.WATCH, place(OWNERS), TERMS), ["instrument_scientist:ID16/bob", "experiment:P1-1"]),
        (may_act(CONTROL, Action.WATCH, place(OWNERS), TERMS), ["user_role:bob/instrument-control", "experiment:P1-1"]),
        (may_act(ADMIN, Action.DELETE, place(OWNERS), TERMS), ["user_role:bob/admin"]),
        (
            may_act(HELP, Action.WATCH, place(OWNERS, **AGREED), TERMS),
            ["user_role:bob/it-support", "support_access:7"],
        ),
        (may_act(ANN, Action.OPEN, place(visit()), TERMS), ["experiment:P1-1", "experiment_member:P1-1/ann"]),
    ],
    ids=["owner", "member", "scientist", "control", "admin", "consent", "left"],
)
def test_a_decision_names_the_records_that_it_rests_on(decision, records):
    assert list(decision.records) == records


@pytest.mark.parametrize(("task", "role"), product(Task, [*FacilityRole, "none"]), ids=str)
def test_tasks_of_staff(task, role):
    helpdesk = {"admin", "it-support"}
    allowed = {Task.EXPLAIN: helpdesk | {"staff"}, Task.FACILITY_DATA: helpdesk | {"staff"}, Task.CONFIRM_IDENTITY: helpdesk}
    assert TASKS[task] == allowed[task]
    assert bool(may_run(person(role), task)) is (role in allowed[task])


# --- at a desktop: policy x whether the owner is there x part x whose turn it is


def _expected(policy: str, there: bool, freely: bool, part: str, drives: bool) -> Right:
    if part == "stranger":
        return Right(0)
    if part in ("driver", "viewer") and not there and not freely:
        if policy == "disconnect":
            return Right(0)
        if policy == "lock":
            return Right.VIEW
    return ALL_RIGHTS if drives and part != "viewer" else Right.VIEW


POLICIES = ("disconnect", "lock", "stay")
PARTS = ("owner", "driver", "viewer", "it-support", "admin", "stranger")


@pytest.mark.parametrize(
    ("policy", "there", "freely", "part", "drives"), product(POLICIES, *[[False, True]] * 2, PARTS, [False, True])
)
def test_what_passes_through_a_connection_of_somebody_inside(policy, there, freely, part, drives):
    who = ANN if part == "owner" else person(*{part}.intersection(("it-support", "admin")))
    where = place(TEAM, part=part if part in ("driver", "viewer") else "", there=there, inside=frozenset({"bob"}))
    judged = standing(who, replace(where, when_owner_leaves=policy, members_enter_freely=freely), TERMS)
    assert judged.right(drives) == _expected(policy, there, freely, part, drives)
    assert judged.part == (part if judged.right(drives) else "")


@pytest.mark.parametrize("drives", [False, True])
def test_who_is_granted_to_see_never_drives(drives):
    judged = standing(HELP, place(OWNERS, **consent("view")), TERMS)
    assert (judged.right(drives), judged.part, judged.control.rule) == (Right.VIEW, "it-support", "consent-view")


def test_a_viewer_has_nothing_that_goes_in_and_no_clipboard():
    assert Right.VIEW == ALL_RIGHTS & ~(Right.POINTER | Right.KEYBOARD | Right.CLIPBOARD_IN | Right.CLIPBOARD_OUT | Right.RESIZE)
