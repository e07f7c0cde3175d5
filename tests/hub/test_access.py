"""Who may do what: each rule as a table, and what holds whatever the records are."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from hub import records
from hub.access import ADMIN_ACTIONS, Action, Limit, Person, PlanOffer, Visit, may_act, may_launch, may_own_another, may_pick
from hub.access import may_use_experiments as may_use
from hub.database.engine import open_database, sessions, upgrade
from hub.database.tables import (
    Experiment,
    ExperimentMember,
    FacilityRole,
    Instrument,
    InstrumentScientist,
    Plan,
    Proposal,
    User,
    UserRole,
)

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
A_DAY, A_SECOND = timedelta(days=1), timedelta(seconds=1)


def person(*roles: str, id: str = "ann", **more) -> Person:
    return Person(id, id, id.title(), frozenset(roles), **more)


def visit(*members: str, id: str = "P1-1", on: str = "ID16") -> Visit:
    return Visit(id, "P1", on, "Cracks", roles=dict.fromkeys(members, "member"))


def plan(instruments: str = "", roles: str = "") -> PlanOffer:
    named = Limit(frozenset(instruments.split())), Limit(roles=frozenset(roles.split()))
    return PlanOffer("imaging", "Imaging", limits=tuple(limit for limit in named if limit != Limit()))


HERS, HERS_TOO, FOREIGN = visit("ann", "bob"), visit("ann", id="P2-1", on="D22"), visit("bob", id="P3-1")


@pytest.mark.parametrize(
    ("who", "visits", "allowed", "rule"),
    [
        pytest.param(person(), [HERS], True, "experiment-membership", id="member"),
        pytest.param(person(), [HERS, HERS_TOO], True, "experiment-membership", id="member-of-both"),
        pytest.param(person(), [], False, "experiment-needed", id="nobody-special-without-experiment"),
        pytest.param(person("staff"), [], True, "experiment-membership", id="staff-without-experiment"),
        pytest.param(person("guest"), [], True, "experiment-membership", id="guest-without-experiment"),
        pytest.param(person("admin"), [], True, "experiment-membership", id="admin-without-experiment"),
        pytest.param(person("it-support"), [], False, "experiment-needed", id="it-support-alone-without-experiment"),
        pytest.param(person("instrument-scientist"), [], False, "experiment-needed", id="scientist-alone-without-experiment"),
        pytest.param(person(), [FOREIGN], False, "experiment-membership", id="not-a-member"),
        pytest.param(person(), [HERS, FOREIGN], False, "experiment-membership", id="member-of-one-of-two"),
        pytest.param(person("staff"), [FOREIGN], False, "experiment-membership", id="staff-is-no-member"),
        pytest.param(person("admin"), [FOREIGN], False, "experiment-membership", id="admin-is-no-member"),
        pytest.param(
            person(scientist_of=frozenset({"ID16"})), [FOREIGN], False, "experiment-membership", id="scientist-is-no-member"
        ),
    ],
)
def test_experiments_are_those_of_the_owner(who, visits, allowed, rule):
    decision = may_use(who, visits)
    assert (bool(decision), decision.rule) == (allowed, rule)


@pytest.mark.parametrize(
    ("who", "offer", "visits", "allowed", "rule"),
    [
        pytest.param(person(), plan(), [HERS], True, "plan-for-all", id="unlimited"),
        pytest.param(person(), plan("ID16"), [HERS], True, "plan-limit", id="experiment-on-the-instrument"),
        pytest.param(person(), plan("ID16"), [HERS_TOO], False, "plan-limited", id="experiment-elsewhere"),
        pytest.param(person(), plan("ID16"), [HERS_TOO, HERS], True, "plan-limit", id="one-experiment-there"),
        pytest.param(person(), plan("ID16"), [], False, "plan-limited", id="no-experiment"),
        pytest.param(person(scientist_of=frozenset({"ID16"})), plan("ID16"), [], True, "plan-limit", id="its-scientist"),
        pytest.param(person(scientist_of=frozenset({"D22"})), plan("ID16"), [], False, "plan-limited", id="another-scientist"),
        pytest.param(person("staff"), plan(roles="staff"), [], True, "plan-limit", id="role"),
        pytest.param(person("guest"), plan(roles="staff"), [], False, "plan-limited", id="another-role"),
        pytest.param(person("staff"), plan("ID16", "staff"), [HERS_TOO], True, "plan-limit", id="role-or-instrument-by-role"),
        pytest.param(person(), plan("ID16", "staff"), [HERS], True, "plan-limit", id="role-or-instrument-by-instrument"),
        pytest.param(person(), plan("ID16", "staff"), [HERS_TOO], False, "plan-limited", id="neither-role-nor-instrument"),
        pytest.param(person("admin"), plan("ID16", "staff"), [], True, "plan-admin", id="admin"),
    ],
)
def test_limited_plans(who, offer, visits, allowed, rule):
    decision = may_pick(who, offer, visits)
    assert (bool(decision), decision.rule) == (allowed, rule)


@pytest.mark.parametrize(
    ("quota", "owned", "allowed"),
    [
        pytest.param(2, 0, True, id="none-yet"),
        pytest.param(2, 1, True, id="the-last"),
        pytest.param(2, 2, False, id="used-up"),
        pytest.param(2, 3, False, id="lowered-below"),
        pytest.param(0, 0, False, id="zero-is-none"),
        pytest.param(-1, 1000, True, id="without-limit"),
    ],
)
def test_the_quota_counts_instances(quota, owned, allowed):
    assert bool(may_own_another(person(quota=quota), owned)) is allowed


@pytest.mark.parametrize(
    ("quota", "owned", "allowed"),
    [
        pytest.param(1, 1, False, id="another"),
        pytest.param(1, None, True, id="resume-at-the-limit"),
        pytest.param(0, None, False, id="resume-when-locked-out"),
        pytest.param(-1, None, True, id="resume-without-limit"),
    ],
)
def test_a_resume_takes_no_room_but_a_quota_of_zero_locks_out(quota, owned, allowed):
    assert bool(may_launch(person(quota=quota), plan(), [HERS], owned=owned)) is allowed


OWNER, ADMIN, STAFF = person(), person("admin", id="grace"), person("staff", "it-support", id="dave")
WHO_MAY = {
    "owner": (OWNER, set(Action)),
    "admin": (ADMIN, {Action.SEE, Action.START, Action.STOP, Action.DELETE}),
    "staff": (STAFF, set()),
    "colleague": (person(id="bob"), set()),
}


@pytest.mark.parametrize("action", list(Action))
@pytest.mark.parametrize("who", list(WHO_MAY))
def test_what_may_be_done_with_an_instance(who, action):
    actor, allowed = WHO_MAY[who]
    assert bool(may_act(actor, action, OWNER.id)) is (action in allowed)


@pytest.mark.parametrize(
    ("starts", "ends", "when"),
    [
        pytest.param(None, None, "running", id="open-ends"),
        pytest.param(NOW - A_DAY, NOW + A_DAY, "running", id="between"),
        pytest.param(NOW, None, "running", id="from-its-first-moment"),
        pytest.param(None, NOW, "past", id="not-in-its-last-moment"),
        pytest.param(NOW + A_DAY, None, "coming", id="coming"),
        pytest.param(NOW - A_DAY, NOW - A_SECOND, "past", id="past"),
        pytest.param(NOW + A_DAY, NOW - A_DAY, "past", id="dates-the-wrong-way-round"),
    ],
)
def test_when_an_experiment_is(starts, ends, when):
    assert replace(HERS, starts_at=starts, ends_at=ends).when(NOW) == when


# --- whatever the records are

names = st.sampled_from(["ID16", "D22", "BM05"])
logins = st.sampled_from(["ann", "bob", "carol", "grace"])
roles = st.frozensets(st.sampled_from(sorted(FacilityRole)), max_size=3)
people = st.builds(
    Person, id=logins, login=logins, name=st.just("N"), roles=roles, scientist_of=st.frozensets(names), quota=st.integers(-1, 3)
)
visits = st.lists(
    st.builds(
        Visit,
        id=st.sampled_from(["P1-1", "P2-1", "P3-1"]),
        proposal_id=st.just("P"),
        instrument_id=names,
        title=st.just("T"),
        roles=st.dictionaries(logins, st.just("member")),
    ),
    max_size=3,
)
limits = st.lists(st.builds(Limit, instruments=st.frozensets(names), roles=roles), max_size=3).map(tuple)
plans = st.builds(PlanOffer, id=st.just("p"), name=st.just("P"), limits=limits)
owned = st.none() | st.integers(0, 4)


@given(people, plans, visits, owned, roles, st.frozensets(names))
def test_more_roles_never_take_access_away(who, offer, chosen, count, more_roles, more_instruments):
    promoted = replace(who, roles=who.roles | more_roles, scientist_of=who.scientist_of | more_instruments)
    assert not may_launch(who, offer, chosen, owned=count) or may_launch(promoted, offer, chosen, owned=count)
    for action in Action:
        assert not may_act(who, action, "ann") or may_act(promoted, action, "ann")


@given(people, plans, visits, owned)
def test_more_memberships_never_take_access_away(who, offer, chosen, count):
    joined = [replace(one, roles={**one.roles, who.id: "member"}) for one in chosen]
    assert not may_launch(who, offer, chosen, owned=count) or may_launch(who, offer, joined, owned=count)


@given(people, plans, visits, st.integers(0, 3))
def test_a_higher_quota_never_takes_access_away(who, offer, chosen, count):
    raised = replace(who, quota=-1 if who.quota == -1 else who.quota + 1)
    assert not may_launch(who, offer, chosen, owned=count) or may_launch(raised, offer, chosen, owned=count)


@given(people, st.sampled_from(Action), logins)
def test_nobody_but_the_owner_and_admins_may_act(who, action, owner):
    allowed = who.id == owner or ("admin" in who.roles and action in ADMIN_ACTIONS)
    assert bool(may_act(who, action, owner)) is allowed


@given(people, plans, visits, owned)
def test_every_launch_is_for_experiments_of_the_owner(who, offer, chosen, count):
    if may_launch(who, offer, chosen, owned=count):
        assert all(who.id in one.roles for one in chosen)
        assert chosen or who.roles & {"admin", "staff", "guest"}


@given(people, plans, visits, owned)
def test_every_refusal_says_why_and_by_which_rule(who, offer, chosen, count):
    for decision in (may_launch(who, offer, chosen, owned=count), may_act(who, Action.OPEN, "ann")):
        assert decision.rule
        assert decision.allowed or decision.reason.endswith(".")


# --- which records hold now


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    engine = open_database(f"sqlite:///{tmp_path_factory.mktemp('access')}/hutch.sqlite")
    upgrade(engine)
    with sessions(engine).begin() as session:
        session.add_all([Instrument(id="ID16", name="ID16"), Proposal(id="P1", title="Cracks"), Proposal(id="P2", title="Bone")])
    return engine


@pytest.fixture
def session(engine: Engine):
    """Everything that a test adds is taken back."""
    with engine.connect() as connection, Session(connection) as session:
        session.add_all([User(id="1", login="ann", given_name="Ann", family_name="L"), Experiment(**EXPERIMENT)])
        session.flush()
        yield session
        session.rollback()


EXPERIMENT = {"id": "P1-1", "proposal_id": "P1", "instrument_id": "ID16"}


def found(session: Session, login: str = "ann") -> Person | None:
    session.flush()
    return records.find_person(session, login, NOW, default_quota=2)


@pytest.mark.parametrize(
    ("dates", "holds"),
    [
        pytest.param({}, True, id="without-end"),
        pytest.param({"expires_at": NOW + A_SECOND}, True, id="until-in-a-second"),
        pytest.param({"expires_at": NOW}, False, id="until-now"),
        pytest.param({"expires_at": NOW - A_DAY}, False, id="expired"),
        pytest.param({"ended_at": NOW - A_DAY}, False, id="taken-away"),
        pytest.param({"ended_at": NOW - A_DAY, "expires_at": NOW + A_DAY}, False, id="taken-away-before-its-end"),
    ],
)
def test_an_expired_role_is_no_role(session, dates, holds):
    session.add(UserRole(user_id="1", role="admin", **dates))
    assert found(session).is_admin is holds


@pytest.mark.parametrize("ended_at", [None, NOW - A_DAY], ids=["now", "once"])
def test_a_scientist_is_one_while_the_record_holds(session, ended_at):
    session.add(InstrumentScientist(user_id="1", instrument_id="ID16", ended_at=ended_at))
    assert found(session).scientist_of == (frozenset() if ended_at else {"ID16"})


@pytest.mark.parametrize(
    ("own", "quota"), [(None, 2), (0, 0), (7, 7), (-1, -1)], ids=["default", "none-at-all", "raised", "unlimited"]
)
def test_the_quota_is_ones_own_or_the_default(session, own, quota):
    session.get_one(User, "1").instance_quota = own
    assert found(session).quota == quota


def test_whom_the_user_office_no_longer_names_is_unknown(session):
    assert found(session) and not found(session, "ANN") and not found(session, "nobody")
    session.get_one(User, "1").ended_at = NOW
    assert found(session) is None


def test_a_member_who_was_removed_loses_the_experiment_at_once(session):
    membership = ExperimentMember(experiment_id="P1-1", user_id="1")
    session.add(membership)
    session.flush()
    assert may_use(found(session), records.experiments_named(session, ["P1-1"], "1"))
    assert [visit.id for visit in records.experiments_of(session, "1")] == ["P1-1"]
    assert records.groups_of(session, found(session)) == ["proposal-P1"]
    membership.ended_at = NOW
    session.flush()
    session.expire_all()
    assert not may_use(found(session), records.experiments_named(session, ["P1-1"], "1"))
    assert records.experiments_of(session, "1") == []
    assert records.groups_of(session, found(session)) == []


def test_what_was_withdrawn_is_not_offered(session):
    plan = Plan(id="imaging", name="Imaging", image="i", flavor="f", cores=1, memory_mb=1)
    session.add(plan)
    session.flush()
    assert records.find_plan(session, "imaging") and records.experiments_named(session, ["P1-1"], "1")
    plan.ended_at = session.get_one(Experiment, "P1-1").ended_at = NOW
    session.flush()
    assert records.find_plan(session, "imaging") is None and records.experiments_named(session, ["P1-1"], "1") == []


def test_groups_are_proposals_roles_and_instruments(session):
    session.add_all([Experiment(**EXPERIMENT | {"id": "P2-1", "proposal_id": "P2"})])
    session.flush()
    session.add_all(ExperimentMember(experiment_id=name, user_id="1") for name in ("P1-1", "P2-1"))
    session.add_all([UserRole(user_id="1", role="staff"), UserRole(user_id="1", role="made-up-at-home")])
    session.add(InstrumentScientist(user_id="1", instrument_id="ID16"))
    assert records.groups_of(session, found(session)) == ["instrument-ID16", "proposal-P1", "proposal-P2", "role-staff"]
