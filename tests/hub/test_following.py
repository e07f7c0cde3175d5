"""Who loses what when the records change; what that comes to in a running hub, and when the steward asks first."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from databases import database_url, upgrade
from facility_hub import FacilityHub
from running_hub import free_port, until
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session
from traitlets.config import Config

from hub import instances
from hub.access import Terms
from hub.configuration import Hutch
from hub.database.engine import open_database, sessions
from hub.database.tables import (
    EtlRun,
    Experiment,
    ExperimentMember,
    Instance,
    InstanceMember,
    Instrument,
    IntentKind,
    Notice,
    Outcome,
    Plan,
    Proposal,
    User,
    UserRole,
    now,
)
from hub.facility import Facility
from hub.steward.following import ALLOW_FILE, Following, guests_out, owners_out, with_a_part

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
A_DAY = timedelta(days=1)
TERMS = Terms(NOW)
RUN = {"source": "office", "ended_at": NOW - A_DAY}
TEAM = "no longer on the team of experiment P1-1"
SAID = "(source 'office', run 1, 9 March 2026, 12:00 UTC)"


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    engine = open_database(database_url(tmp_path_factory.mktemp("following")))
    upgrade(engine)
    with sessions(engine).begin() as session:
        catalogue(session)
    return engine


def catalogue(session: Session) -> None:
    session.add_all([Instrument(id="ID16", name="Nano-imaging"), Proposal(id="P1", title="Cracks", public_at=NOW - A_DAY)])
    session.add(Plan(id="notebook", name="Notebook", image="i", flavor="f", cores=1, memory_mb=1))
    session.flush()


@pytest.fixture
def session(engine: Engine):
    """What a test changes is taken back."""
    with engine.connect() as connection, Session(connection) as session:
        people(session)
        yield session
        session.rollback()


def people(session: Session) -> None:
    """Ann's instance for two experiments, which runs; bob and eve are on the team of both."""
    session.add_all(User(id=name, login=name, given_name=name.title(), family_name="L") for name in ("ann", "bob", "eve"))
    session.add_all(Experiment(id=name, proposal_id="P1", instrument_id="ID16") for name in ("P1-1", "P1-2"))
    session.add(EtlRun(id=1, source="office", adapter="files", outcome="done"))
    session.flush()
    for name in ("ann", "bob", "eve"):
        session.add_all(ExperimentMember(experiment_id=visit, user_id=name) for visit in ("P1-1", "P1-2"))
    session.flush()
    run(session, ["P1-1", "P1-2"])


def run(session: Session, experiments: list[str]) -> Instance:
    name = f"films{len(experiments)}"
    names = {"owner_id": "ann", "server_name": name, "display_name": name.title(), "plan_id": "notebook"}
    instance = instances.create(session, **names, experiment_ids=experiments, lifetime=None)
    instances.conclude(session, instances.intend(session, instance.id, IntentKind.LAUNCH, "ann"), Outcome.DONE)
    return instance


def off(session: Session, name: str, visit: str = "P1-1", **values: Any) -> None:
    member = session.get_one(ExperimentMember, (visit, name))
    for key, value in (RUN | values).items():
        setattr(member, key, value)
    session.flush()


def lost(session: Session, terms: Terms = TERMS) -> dict[str, str]:
    session.flush()
    session.expire_all()
    return {loss.login: loss.why for loss in (*owners_out(session, terms), *guests_out(session, terms))}


def test_while_all_are_on_the_team_nobody_loses_anything(session):
    assert lost(session) == {}


@pytest.mark.parametrize("name", ["ann", "bob"], ids=["owner", "guest"])
def test_who_is_off_one_of_the_experiments_loses_it_with_its_source_and_run(session, name):
    off(session, name, run_id=1)
    assert lost(session) == {name: f"{TEAM} {SAID}"}
    # by hand: no run said it
    off(session, name, run_id=None)
    assert lost(session) == {name: f"{TEAM} (9 March 2026, 12:00 UTC)"}
    off(session, name, ended_at=None)
    assert lost(session) == {}


def test_an_experiment_that_its_source_no_longer_names_is_lost_to_all(session):
    visit = session.get_one(Experiment, "P1-1")
    visit.source, visit.run_id, visit.ended_at = "office", 1, NOW - A_DAY
    assert lost(session) == dict.fromkeys(["ann", "bob", "eve"], f"{TEAM} {SAID}")


@pytest.mark.parametrize("name", ["ann", "bob"], ids=["owner", "guest"])
def test_whom_the_user_office_no_longer_knows_loses_it(session, name):
    user = session.get_one(User, name)
    user.source, user.run_id, user.ended_at = "office", 1, NOW - A_DAY
    assert lost(session) == {name: f"no longer known to the user office {SAID}"}


def test_a_membership_that_is_not_there_at_all_counts_for_the_owner(session):
    session.delete(session.get_one(ExperimentMember, ("P1-1", "ann")))
    assert lost(session) == {"ann": TEAM}


def test_open_data_stays_open(session):
    off(session, "ann"), off(session, "bob")
    assert lost(session, Terms(NOW, open_data=True)) == {}


def test_an_instance_without_an_experiment_is_lost_with_the_role(session):
    session.add(UserRole(user_id="ann", role="staff", expires_at=NOW + A_DAY))
    run(session, [])
    assert lost(session) == {}
    session.get_one(UserRole, ("ann", "staff")).expires_at = NOW
    assert lost(session) == {"ann": "no longer of those who may have an instance without an experiment"}


def test_an_instance_that_is_stopped_is_not_stopped_again_but_its_guests_lose_it(session):
    instance = session.scalars(select(Instance)).one()
    instances.conclude(session, instances.intend(session, instance.id, IntentKind.STOP, "ann"), Outcome.DONE)
    off(session, "ann"), off(session, "bob", run_id=1)
    assert lost(session) == {"bob": f"{TEAM} {SAID}"}
    instances.mark_deleted(session, instance, "ann", "", A_DAY)
    assert lost(session) == {}


def test_only_a_part_that_rests_on_an_experiment_ends_with_it(session):
    instance = session.scalars(select(Instance)).one()
    session.add_all(
        [
            InstanceMember(instance_id=instance.id, user_id="bob", role="viewer"),
            InstanceMember(instance_id=instance.id, user_id="eve", role="support"),
        ]
    )
    session.flush()
    assert with_a_part(session, {instance.id}) == {(instance.id, "bob")}


# --- in a running hub


def told(hub: FacilityHub, user_id: str) -> list[str]:
    return hub.change(lambda session: list(session.scalars(select(Notice.subject).where(Notice.user_id == user_id))))


def test_too_much_at_once_waits_until_an_operator_allows_it(hub):
    admin, visitors = hub.visitor("admin"), [hub.visitor() for _ in range(4)]
    for visitor in visitors:
        hub.launched(visitor)

    def leave(session: Session) -> None:
        for visitor in visitors:
            session.get_one(ExperimentMember, (visitor.experiment, visitor.id)).ended_at = now()

    hub.change(leave)
    until(lambda: told(hub, admin.id), "the admin is asked")
    assert all(hub.intent(visitor).kind == "launch" for visitor in visitors)
    (hub.state / ALLOW_FILE).touch()
    for visitor in visitors:
        hub.until_intent(visitor, kind="stop", outcome="done")
        assert told(hub, visitor.id) == ["films was stopped"]
    # asked once, and allowed once
    assert told(hub, admin.id) == ["The steward waits for a decision"]
    assert not (hub.state / ALLOW_FILE).exists()


def test_a_share_with_a_group_lets_nobody_in(hub):
    """Were it otherwise, hub.revoking would have to look at groups too."""
    visitor, guest = hub.visitor(), hub.visitor()
    hub.launched(visitor)
    scope, group = f"access:servers!server={visitor.login}/films", f"proposal-{guest.experiment.removesuffix('-1')}"
    until(lambda: group in hub.api("GET", f"users/{guest.login}").json()["groups"], "the guest is in the group")
    hub.api("POST", f"shares/{visitor.login}/films", json={"group": group}).raise_for_status()
    assert scope not in hub.api("GET", "user", guest.token).json()["scopes"]
    hub.api("POST", f"shares/{visitor.login}/films", json={"user": guest.login}).raise_for_status()
    assert scope in hub.api("GET", "user", guest.token).json()["scopes"]


def test_a_guest_who_is_off_the_team_loses_the_share_and_both_are_told(hub):
    visitor, guest = hub.visitor(), hub.visitor()
    instance = hub.launched(visitor)
    hub.change(lambda session: session.add(ExperimentMember(experiment_id=visitor.experiment, user_id=guest.id)))
    hub.change(lambda session: session.add(InstanceMember(instance_id=instance.id, user_id=guest.id, role="driver")))
    hub.api("POST", f"shares/{visitor.login}/films", json={"user": guest.login}).raise_for_status()

    def leave(session: Session) -> None:
        session.get_one(ExperimentMember, (visitor.experiment, guest.id)).ended_at = now()

    hub.change(leave)
    until(lambda: told(hub, guest.id), "the guest is told")
    assert hub.api("GET", f"users/{guest.login}/shared/{visitor.login}/films").status_code == 404
    assert [len(told(hub, one.id)) for one in (guest, visitor)] == [1, 1]
    assert {one.user_id: one.ended_at is None for one in hub.instance(visitor).members} == {visitor.id: True, guest.id: False}
    assert hub.server(visitor.login, "films")["ready"] and hub.intent(visitor).kind == "launch"


def off_the_team(folder: Path, *logins: str) -> Facility:
    """A facility that these have left."""
    url = database_url(folder)
    upgrade(open_database(url))
    facility = Facility(Hutch(config=Config(Hutch={"database_url": url})))

    def prepare(session: Session) -> None:
        catalogue(session)
        people(session)
        for login in logins:
            off(session, login)

    facility.ask_here(prepare)
    return facility


async def test_while_the_hub_does_not_answer_nothing_is_done_and_nothing_forgotten(tmp_path):
    facility = off_the_team(tmp_path, "ann", "bob")
    async with aiohttp.ClientSession(f"http://127.0.0.1:{free_port()}/hub/api/") as nobody:
        following = Following(facility, nobody)
        for _ in range(2):
            with pytest.raises(aiohttp.ClientConnectionError):
                await following.follow_runs()
    assert facility.ask_here(lambda session: session.scalar(select(func.count()).select_from(Notice))) == 0
    assert [loss.login for loss in facility.ask_here(lambda session: owners_out(session, TERMS))] == ["ann"]


@pytest.mark.parametrize("refused", ["GET", "DELETE"])
async def test_what_the_hub_cannot_do_about_one_guest_keeps_no_other_in(tmp_path, refused):
    facility = off_the_team(tmp_path, "bob", "eve")

    async def answer(request: web.Request) -> web.Response:
        wrong = (request.method, request.match_info["name"]) == (refused, "bob")
        return web.json_response({}, status=500 if wrong else 200)

    app = web.Application()
    app.router.add_route("*", "/users/{name}/shared/{of:.*}", answer)
    async with TestServer(app) as hub, aiohttp.ClientSession(hub.make_url("/")) as session:
        with pytest.raises(aiohttp.ClientResponseError):
            await Following(facility, session).follow_runs()
    ended = select(Notice.user_id).where(Notice.user_id != "ann")
    assert facility.ask_here(lambda session: session.scalars(ended).all()) == ["eve"]
