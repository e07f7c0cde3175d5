"""The example facility loads as it is, and has in it what the demo shows."""

import unicodedata
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import func, select

import etl
from etl.adapters.files import Files
from etl.load import run
from etl.source import Source
from hub.database.engine import open_database, sessions, upgrade
from hub.database.tables import (
    Affiliation,
    Experiment,
    ExperimentMember,
    Instrument,
    InstrumentScientist,
    Plan,
    Proposal,
    User,
    UserGroup,
    UserRole,
)

FOLDER = Path(etl.__file__).parent / "example"
# the end of the day, when what runs "today" is most likely to be over
NOW = datetime(2026, 3, 10, 23, 59, tzinfo=UTC)


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    engine = open_database(f"sqlite:///{tmp_path_factory.mktemp('example')}/hutch.sqlite")
    upgrade(engine)
    report = run(engine, Source(name="example"), Files(folder=FOLDER), today=NOW)
    assert report.rejections.is_empty()
    assert report.objections == []
    with sessions(engine)() as session:
        yield session


def experiments(session, login):
    mine = select(Experiment).join(ExperimentMember).join(User).where(User.login == login)
    return {experiment.id: when(experiment) for experiment in session.scalars(mine)}


def when(experiment):
    if experiment.starts_at and experiment.starts_at > NOW:
        return "to come"
    return "past" if experiment.ends_at and experiment.ends_at < NOW else "running"


@pytest.mark.parametrize(
    ("table", "number"),
    [(Affiliation, 12), (User, 61), (Instrument, 8), (Proposal, 50), (Experiment, 120), (Plan, 4)],
    ids=lambda value: getattr(value, "__tablename__", value),
)
def test_its_size(session, table, number):
    assert session.scalar(select(func.count()).select_from(table)) == number


def test_experiments_are_running_past_and_to_come(session):
    states = [when(experiment) for experiment in session.scalars(select(Experiment)) if experiment.starts_at]
    assert {state: states.count(state) >= 10 for state in set(states)} == {"running": True, "past": True, "to come": True}


def test_people_with_parts_in_the_demo(session):
    ann, bob, carol = (experiments(session, login) for login in ("ann", "bob", "carol"))
    assert len(ann) == 5
    assert set(ann.values()) == set(bob.values()) == {"running", "past", "to come"}
    assert not ann.keys() & bob.keys()
    assert len(ann.keys() & carol.keys()) == 1
    assert len(carol.keys() - ann.keys()) >= 2


@pytest.mark.parametrize(
    ("login", "roles"),
    [
        ("ann", set()),
        ("bob", set()),
        ("carol", set()),
        ("dave", {"staff"}),
        ("erin", {"staff", "instrument-scientist"}),
        ("frank", {"staff", "it-support"}),
        ("grace", {"staff", "admin"}),
        ("gus", {"guest"}),
        ("lena", {"staff", "instrument-control"}),
        ("pweber", {"staff", "scientific-computing"}),
        ("rwest", set()),
    ],
)
def test_roles_that_hold_now(session, login, roles):
    held = session.scalars(select(UserRole).join(User).where(User.login == login))
    assert {role.role for role in held if role.expires_at is None or role.expires_at > NOW} == roles


def test_one_guest_has_expired(session):
    assert [role.user.login for role in session.scalars(select(UserRole)) if role.expires_at and role.expires_at < NOW] == ["rwest"]


def test_every_experiment_has_one_principal_investigator_a_team_and_a_local_contact(session):
    scientists = {(row.instrument_id, row.user_id) for row in session.scalars(select(InstrumentScientist))}
    for experiment in session.scalars(select(Experiment)):
        roles = [member.role for member in experiment.members]
        assert roles.count("principal-investigator") == 1
        assert len(roles) >= 3
        [contact] = [member for member in experiment.members if member.role == "local-contact"]
        assert (experiment.instrument_id, contact.user_id) in scientists


def test_an_instrument_scientist_has_an_instrument_where_she_is_not_a_member(session):
    erin = session.scalars(select(InstrumentScientist.instrument_id).join(User).where(User.login == "erin")).all()
    running = [name for name, state in experiments(session, "ann").items() if state == "running"]
    assert session.get_one(Experiment, running[0]).instrument_id in erin
    assert running[0] not in experiments(session, "erin")


def test_logins_are_plain_and_names_are_not(session):
    users = session.scalars(select(User)).all()
    assert all(user.login.isascii() and user.login.isalnum() and user.login.islower() and user.login[0].isalpha() for user in users)
    assert all(unicodedata.is_normalized("NFC", user.name) for user in users)
    scripts = {unicodedata.name(letter).split()[0] for user in users for letter in user.name if letter.isalpha()}
    assert scripts >= {"LATIN", "CYRILLIC", "GREEK", "ARABIC", "CJK", "HEBREW", "HANGUL", "DEVANAGARI", "GEORGIAN"}


def test_plans(session):
    plans = {plan.id: plan for plan in session.scalars(select(Plan).order_by(Plan.position))}
    assert list(plans) == ["notebook", "notebook-large", "imaging", "staff-lab"]
    assert (plans["notebook"].image, plans["notebook"].flavor) == ("hutch-notebook", "m1.small")
    assert (plans["notebook-large"].cores, plans["notebook-large"].memory_mb) == (8, 32768)
    assert plans["imaging"].limits == [{"instruments": ["ID16", "BM05"]}]
    assert plans["staff-lab"].limits == [{"roles": ["staff", "admin"]}]


def test_some_data_is_open_and_some_under_embargo(session):
    dated = session.scalars(select(Proposal).where(Proposal.public_at.is_not(None))).all()
    assert {state: sum((one.public_at < NOW) is state for one in dated) for state in (True, False)} == {True: 3, False: 2}
    assert any(one.doi for one in dated)


def test_people_are_in_groups_and_one_has_left_theirs(session):
    memberships = session.scalars(select(UserGroup)).all()
    assert {one.group for one in memberships} == {"Tomography school", "Battery hub"}
    assert sum(one.expires_at is not None and one.expires_at < NOW for one in memberships) == 1
