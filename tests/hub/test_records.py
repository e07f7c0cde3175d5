"""Which records hold now: what the rules get from the database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from databases import database_url, upgrade
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from hub import records
from hub.access import Consent, Limit, Person, Quota, Terms, Usage, may_pick, may_use_experiments
from hub.database.engine import open_database, sessions
from hub.database.tables import (
    Experiment,
    ExperimentMember,
    Instance,
    InstanceExperiment,
    InstanceMember,
    Instrument,
    InstrumentScientist,
    Plan,
    Proposal,
    SupportAccess,
    User,
    UserGroup,
    UserRole,
)

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
A_DAY, A_SECOND = timedelta(days=1), timedelta(seconds=1)
TERMS = Terms(NOW, {"": Quota(2), "staff": Quota(5, 32)})


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    engine = open_database(database_url(tmp_path_factory.mktemp("records")))
    upgrade(engine)
    with sessions(engine).begin() as session:
        session.add_all(
            [Instrument(id="ID16", name="Nano-imaging"), Proposal(id="P1", title="Cracks"), Proposal(id="P2", title="Bone")]
        )
    return engine


@pytest.fixture
def session(engine: Engine):
    """Everything that a test adds is taken back."""
    with engine.connect() as connection, Session(connection) as session:
        session.add_all(User(id=key, login=login, given_name=login.title(), family_name="L") for key, login in PEOPLE.items())
        session.add(Experiment(**EXPERIMENT))
        session.flush()
        yield session
        session.rollback()


PEOPLE = {"1": "ann", "2": "bob"}
EXPERIMENT = {"id": "P1-1", "proposal_id": "P1", "instrument_id": "ID16"}


def found(session: Session, login: str = "ann") -> Person | None:
    session.flush()
    return records.find_person(session, login, TERMS)


def test_a_person_is_found_with_all_that_they_hold_in_one_query(session):
    session.add_all([UserRole(user_id="1", role=role) for role in ("staff", "guest")])
    session.add_all(
        [UserGroup(user_id="1", group="school"), UserRole(user_id="2", role="admin"), UserGroup(user_id="2", group="x")]
    )
    session.add(InstrumentScientist(user_id="1", instrument_id="ID16"))
    assert found(session) == Person(
        "1", "ann", "Ann L", frozenset({"staff", "guest"}), frozenset({"school"}), frozenset({"ID16"}), 5, 32
    )
    assert found(session, "bob").groups == {"x"}


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
def test_an_expired_role_or_group_is_none(session, dates, holds):
    session.add(UserRole(user_id="1", role="admin", **dates))
    session.add(UserGroup(user_id="1", group="school", **dates))
    assert (found(session).is_admin, bool(found(session).groups)) == (holds, holds)


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
    assert may_use_experiments(found(session), records.experiments_named(session, ["P1-1"], "1"), TERMS)
    assert [visit.id for visit in records.experiments_of(session, "1")] == ["P1-1"]
    assert records.groups_of(session, ["ann"], NOW) == {"ann": {"proposal-P1"}}
    membership.ended_at = NOW
    session.flush()
    session.expire_all()
    assert not may_use_experiments(found(session), records.experiments_named(session, ["P1-1"], "1"), TERMS)
    assert records.experiments_of(session, "1") == []
    assert records.groups_of(session, ["ann"], NOW) == {"ann": set()}


def test_what_was_withdrawn_is_not_offered(session):
    plan = Plan(id="imaging", name="Imaging", image="i", flavor="f", cores=1, memory_mb=1)
    session.add_all([plan, ExperimentMember(experiment_id="P1-1", user_id="1")])
    session.flush()
    assert records.find_plan(session, "imaging") and records.experiments_of(session, "1")
    plan.ended_at = session.get_one(Experiment, "P1-1").ended_at = NOW
    session.flush()
    assert records.find_plan(session, "imaging") is None and records.experiments_of(session, "1", ["P1-1"]) == []
    assert [visit.gone for visit in records.experiments_named(session, ["P1-1"], "1")] == [True]


def test_a_plan_is_read_once_until_it_or_an_instrument_changes(session):
    plan = Plan(id="imaging", name="Imaging", image="i", flavor="f", cores=1, memory_mb=1, limits=[{"instruments": ["ID16"]}])
    session.add(plan)
    session.flush()
    (before,) = records.plans_offered(session)
    assert records.plans_offered(session)[0] is before and before.instruments == {"ID16": "Nano-imaging"}
    plan.limits = [{"roles": ["staff"]}]
    session.flush()
    assert records.plans_offered(session)[0].limits == (Limit.read({"roles": ["staff"]}),)
    plan.limits, session.get_one(Instrument, "ID16").name = [{"instruments": ["ID16"]}], "Nano"
    session.flush()
    (after,) = records.plans_offered(session)
    assert after.instruments == {"ID16": "Nano"}
    assert may_pick(found(session), after, [], TERMS).reason == "Imaging is only for experiments on Nano."


def test_what_is_named_beside_ones_own_comes_with_its_embargo(session):
    session.add(Experiment(**EXPERIMENT | {"id": "P2-1", "proposal_id": "P2"}))
    session.add(ExperimentMember(experiment_id="P1-1", user_id="1"))
    session.get_one(Proposal, "P2").public_at = NOW
    session.flush()
    visits = records.experiments_of(session, "1", ["P2-1", "none", "P1-1"])
    found = {visit.id: (dict(visit.roles), visit.public_at) for visit in visits}
    assert len(visits) == 2 and found == {"P1-1": ({"1": "member"}, None), "P2-1": ({}, NOW)}


def test_groups_are_proposals_roles_and_instruments(session):
    session.add_all([Experiment(**EXPERIMENT | {"id": "P2-1", "proposal_id": "P2"})])
    session.flush()
    session.add_all(ExperimentMember(experiment_id=name, user_id="1") for name in ("P1-1", "P2-1"))
    session.add_all([UserRole(user_id="1", role="staff"), UserRole(user_id="1", role="made-up-at-home")])
    session.add(InstrumentScientist(user_id="1", instrument_id="ID16"))
    assert records.groups_of(session, ["ann", "nobody"], NOW) == {
        "ann": {"instrument-ID16", "proposal-P1", "proposal-P2", "role-staff"}
    }


def test_a_plan_comes_with_its_limits_and_the_names_of_their_instruments(session):
    limits = [{"instruments": ["ID16"], "until": "2026-04-01T00:00:00+00:00"}, {"groups": ["school"]}]
    session.add(Plan(id="i", name="I", image="i", flavor="f", cores=1, memory_mb=1, limits=limits, lifetimes={"staff": 30}))
    session.flush()
    offer = records.find_plan(session, "i")
    assert [(limit.instruments, limit.groups) for limit in offer.limits] == [({"ID16"}, None), (None, {"school"})]
    assert (offer.limits[0].until, offer.lifetimes) == (datetime(2026, 4, 1, tzinfo=UTC), {"staff": 30})
    assert offer.instruments == {"ID16": "Nano-imaging"}


def launched(session: Session, name: str, owner: str = "1", **more) -> Instance:
    if session.get(Plan, "p") is None:
        session.add(Plan(id="p", name="P", image="i", flavor="f", cores=4, memory_mb=1))
        session.flush()
    instance = Instance(id=name, owner_id=owner, server_name=name, display_name=name, plan_id="p", **more)
    session.add(instance)
    session.flush()
    return instance


def test_what_is_marked_for_deletion_takes_no_room(session):
    assert records.find_usage(session, "1") == Usage(0, 0, "")
    launched(session, "a"), launched(session, "b"), launched(session, "c", owner="2")
    assert records.find_usage(session, "1") == Usage(2, 8, "p")
    launched(session, "d", deleted_at=NOW)
    assert records.find_usage(session, "1") == Usage(2, 8, "p")


@pytest.mark.parametrize("ended", ["nothing", "member", "staff-role", "experiment", "membership"])
def test_an_instance_as_the_rules_see_it(session, ended):
    instance = launched(session, "a")
    member = InstanceMember(instance_id="a", user_id="2", role="driver")
    session.add_all([InstanceExperiment(instance_id="a", experiment_id="P1-1"), member])
    staff, joined = UserRole(user_id="1", role="staff"), ExperimentMember(experiment_id="P1-1", user_id="2")
    session.add_all([staff, joined])
    {"member": member, "membership": joined, "experiment": session.get_one(Experiment, "P1-1")}.get(ended, EXPIRED).ended_at = NOW
    staff.expires_at = NOW if ended == "staff-role" else NOW + A_SECOND
    place = records.find_place(session, instance, found(session, "bob"), TERMS)
    assert (place.id, place.owner_id, place.owner_is_staff) == ("a", "1", ended != "staff-role")
    assert place.members == ({} if ended == "member" else {"2": "driver"})
    assert [(visit.gone, bool(visit.roles)) for visit in place.visits] == [(ended == "experiment", ended != "membership")]
    assert not (place.owner_here or place.members_enter_freely or place.consented)


@pytest.mark.parametrize("became", ["granted", "not-answered", "refused", "ended", "of-another"])
def test_what_the_owner_granted_to_support(session, became):
    instance = launched(session, "a", when_owner_leaves="lock", members_enter_freely=True)
    right = None if became in ("not-answered", "refused") else "view"
    user = "1" if became == "of-another" else "2"
    row = SupportAccess(instance_id="a", user_id=user, reason="help", right=right, until=NOW if right else None)
    row.ended_at = NOW if became in ("refused", "ended") else None
    session.add(row)
    session.flush()
    place = records.find_place(session, instance, found(session, "bob"), TERMS)
    assert place.consented == ({"2": Consent("view", NOW, row.id)} if became == "granted" else {})
    assert (place.when_owner_leaves, place.members_enter_freely) == ("lock", True)


EXPIRED = UserRole()
