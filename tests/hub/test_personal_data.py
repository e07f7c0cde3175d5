"""What is kept of people: complete, told, forgotten, and not kept for ever."""

import json
import re
from datetime import timedelta
from pathlib import Path

import pytest
from databases import database_url, upgrade
from sqlalchemy import func, select

from hub import instances, personal_data
from hub.database.engine import open_database, sessions
from hub.database.tables import (
    Affiliation,
    Base,
    DesktopSession,
    DesktopTicket,
    EtlChange,
    EtlRejection,
    EtlRun,
    Experiment,
    ExperimentMember,
    Identity,
    Instance,
    Instrument,
    Invitation,
    Notice,
    Plan,
    Proposal,
    SupportAccess,
    Thumbnail,
    User,
    now,
)

DOCS = Path(__file__).parents[2] / "docs" / "personal-data.md"
TRACES = (
    *("u-7", '"ada"', "ada is no longer", "Ada", "Lovelace", "ada@example.org", "0000-0002-1825-0097"),
    *("the-sub-of-ada", "my secret film"),
)


@pytest.fixture
def session(tmp_path):
    engine = open_database(database_url(tmp_path))
    upgrade(engine)
    with sessions(engine)() as session:
        yield session
    engine.dispose()


@pytest.fixture
def ada(session):
    """Somebody who has left, with something in every place where people leave traces; and Ben, who shares what she did."""
    run = EtlRun(source="office", adapter="files", outcome="done")
    session.add_all(
        [
            run,
            Affiliation(id="lab", name="Lab"),
            Instrument(id="ID16", name="Nano"),
            Proposal(id="P1", title="Cracks"),
            Plan(id="notebook", name="Notebook", image="i", flavor="f", cores=1, memory_mb=1),
        ]
    )
    session.flush()
    session.add(
        User(
            id="u-7",
            login="ada",
            given_name="Ada",
            family_name="Lovelace",
            email="ada@example.org",
            orcid="0000-0002-1825-0097",
            affiliation_id="lab",
            source="office",
            run_id=run.id,
            ended_at=now(),
        )
    )
    session.add_all(
        [
            User(id="u-8", login="ben", given_name="Ben", family_name="Ek"),
            Experiment(id="E1", proposal_id="P1", instrument_id="ID16"),
        ]
    )
    session.flush()
    session.add_all(
        [
            ExperimentMember(experiment_id="E1", user_id="u-7"),
            ExperimentMember(experiment_id="E1", user_id="u-8"),
            Identity(issuer="https://sso", subject="the-sub-of-ada", user_id="u-7", linked_by="login"),
            Identity(issuer="https://sso", subject="the-sub-of-ben", user_id="u-8", linked_by="ada"),
            Notice(user_id="u-7", subject="Hello Ada", text="Dear Ada"),
            EtlChange(run_id=run.id, record="user", key={"id": "u-7"}, before={"family_name": "Lovelace"}),
            EtlChange(
                run_id=run.id, record="experiment_member", key={"experiment_id": "E1", "user_id": "u-8"}, before={"role": "member"}
            ),
            EtlRejection(run_id=run.id, record="user", place="users.csv", line=3, key="u-7", field="email", reason="is no address"),
            EtlRejection(run_id=run.id, record="experiment_member", place="team.csv", line=4, key="E2,u-7", reason="no E2"),
        ]
    )
    instance = instances.create(
        session,
        owner_id="u-7",
        server_name="film",
        display_name="my secret film",
        plan_id="notebook",
        experiment_ids=["E1"],
        lifetime=None,
    )
    instance.purged_at = instance.deleted_at = now()
    instances.intend(session, instance.id, "launch", "ada", "because Ada said so")
    instances.record_event(session, instance.id, "ready", actor="ada", message="Ada is in")
    bens = instances.create(
        session, owner_id="u-8", server_name="b", display_name="b", plan_id="notebook", experiment_ids=["E1"], lifetime=None
    )
    session.add_all(
        [
            SupportAccess(instance_id=bens.id, user_id="u-7", reason="Ada wants to help"),
            Invitation(instance_id=bens.id, code_hash="x", role="viewer", one_time=True, created_by="u-7", expires_at=now()),
            DesktopTicket(hash="y", instance_id=bens.id, user_id="u-7", expires_at=now()),
            DesktopSession(instance_id=instance.id, user_id="u-7", part="owner", control=True),
            Thumbnail(instance_id=instance.id, picture=b"Lovelace"),
        ]
    )
    instances.record_event(session, bens.id, "access-ended", actor="steward", message="ada is no longer on the team")
    session.commit()
    return session.get(User, "u-7")


def everything(session) -> str:
    rows = [dict(row) for table in Base.metadata.sorted_tables for row in session.execute(select(table)).mappings()]
    return json.dumps(rows, default=str)


def test_the_inventory_names_every_table_and_the_docs_say_the_same():
    assert set(personal_data.INVENTORY) == set(Base.metadata.tables)
    told = dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", DOCS.read_text(), re.MULTILINE))
    assert told == {name: kept.why for name, kept in personal_data.INVENTORY.items()}
    days = dict(re.findall(r"^\| `(\w+)` \| .+? \| (\d+) \|", DOCS.read_text(), re.MULTILINE))
    assert days == {name: str(kept.days) for name, kept in personal_data.INVENTORY.items() if kept.days}


def test_an_export_holds_all_traces_of_a_person_and_nobody_elses(session, ada):
    exported = personal_data.export(session, "ada")
    text = json.dumps(exported, default=str)
    assert [trace for trace in TRACES if trace not in text] == []
    assert "u-8" not in text and "Ben" not in text
    assert {
        "user",
        "identity",
        "notice",
        "experiment_member",
        "instance",
        "intent",
        "instance_event",
        "etl_change",
        "etl_rejection",
        "support_access",
        "desktop_session",
        "thumbnail",
    } <= set(exported)


def test_forgetting_leaves_no_trace_and_keeps_the_counts(session, ada):
    before = {
        name: session.scalar(select(func.count()).select_from(Base.metadata.tables[name]))
        for name in ("user", "instance", "experiment_member", "intent", "instance_event")
    }
    pseudonym = personal_data.forget(session, "ada", now())
    session.commit()
    left = everything(session)
    assert [row for row in left.split("}, {") for trace in TRACES if trace in row] == []
    assert {name: session.scalar(select(func.count()).select_from(Base.metadata.tables[name])) for name in before} == before
    assert session.scalar(select(Instance.owner_id).filter_by(server_name="film")) == pseudonym
    assert session.get(ExperimentMember, ("E1", "u-8")) and "Ben" in left


def test_who_is_still_at_the_user_office_is_not_forgotten(session, ada):
    ada.ended_at = None
    before = everything(session)
    with pytest.raises(personal_data.PersonError, match=r"ada is still named by the source 'office'"):
        personal_data.forget(session, "ada", now())
    assert everything(session) == before


def test_who_owns_an_instance_is_not_forgotten(session, ada):
    session.scalar(select(Instance).filter_by(server_name="film")).purged_at = None
    with pytest.raises(personal_data.PersonError, match="still owns instances"):
        personal_data.forget(session, "ada", now())


def test_nobody_is_told_about_a_login_that_nobody_has(session):
    with pytest.raises(personal_data.PersonError, match="nobody with the login 'eve'"):
        personal_data.export(session, "eve")


@pytest.mark.parametrize(("days", "deleted"), [(89, 0), (91, 5)], ids=["young", "old"])
def test_what_is_too_old_goes(session, ada, days, deleted):
    before = now() - timedelta(days=days)
    session.scalar(select(EtlRun)).started_at = before
    session.scalar(select(Notice)).at = before
    assert personal_data.prune(session, now()) == deleted
    assert session.scalar(select(func.count()).select_from(EtlRun)) == 1
