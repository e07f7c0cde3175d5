"""Why, and why not: each answer names its records, their source and run, what was not taken, and whom to ask."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from databases import database_url, upgrade
from sqlalchemy.orm import Session
from typer.testing import CliRunner

import hutch
from hub.access import Terms
from hub.configuration import CONFIG_VARIABLE
from hub.database.engine import open_database, sessions
from hub.database.tables import (
    EtlRejection,
    EtlRun,
    Experiment,
    ExperimentMember,
    Instance,
    InstanceExperiment,
    InstanceMember,
    Instrument,
    Plan,
    Proposal,
    User,
    UserRole,
)
from hub.explaining import QuestionError, about, explain

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
A_DAY = timedelta(days=1)
TERMS = Terms(NOW)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A facility after two runs of one source, of which the second ended records, and left rows out."""
    folder = tmp_path_factory.mktemp("explain")
    url = database_url(folder)
    (folder / "jupyterhub_config.py").write_text(f"c.Hutch.database_url = {url!r}\nc.Hutch.contact = 'help@facility.example'\n")
    upgrade(open_database(url))
    with sessions(open_database(url)).begin() as session:
        for at in (NOW - 3 * A_DAY, NOW - A_DAY):
            session.add(EtlRun(source="office", adapter="files", started_at=at, finished_at=at, outcome="done"))
            session.flush()
        for rows in facility():
            session.add_all(rows)
            session.flush()
    return folder


def facility() -> list[list]:
    first, second = {"source": "office", "run_id": 1}, {"source": "office", "run_id": 2}
    ended = second | {"ended_at": NOW - A_DAY}
    people = {"1": "ada", "2": "bob", "3": "eve", "4": "ida", "5": "old"}
    visits = {"E-1": first, "E-2": ended, "E-3": first}
    return [
        [Instrument(id="7", name="Nano", **first), Proposal(id="P", title="Secret films", **first)],
        [
            User(id=key, login=login, given_name=login.title(), family_name="L", **(ended if login == "old" else first))
            for key, login in people.items()
        ],
        [UserRole(user_id="2", role="staff", expires_at=NOW - A_DAY, **first), UserRole(user_id="4", role="it-support")],
        [Experiment(id=name, proposal_id="P", instrument_id="7", starts_at=NOW, **origin) for name, origin in visits.items()],
        [
            ExperimentMember(experiment_id="E-1", user_id="1", role="principal-investigator", **first),
            ExperimentMember(experiment_id="E-2", user_id="1", **ended),
            ExperimentMember(experiment_id="E-1", user_id="2", **ended),
        ],
        [
            plan("notebook", [], **first),
            plan("lab", [{"roles": ["staff"]}], **first),
            plan("nano", [{"instruments": ["7"]}], **first),
            plan("past", [], **ended),
        ],
        [Instance(id="i-1", owner_id="1", server_name="films", display_name="Films", plan_id="notebook")],
        [
            InstanceExperiment(instance_id="i-1", experiment_id="E-1"),
            InstanceMember(instance_id="i-1", user_id="2", role="viewer", since=NOW - 9 * A_DAY),
            EtlRejection(
                run_id=2, record="experiment", place="visits.csv", line=3, key="E-4", field="ends_at", reason="not a date"
            ),
            EtlRejection(run_id=2, record="experiment_member", place="team.csv", line=9, key="E-4,3", reason="no experiment E-4"),
        ],
    ]


def plan(name: str, limits: list, **origin) -> Plan:
    return Plan(id=name, name=name.title(), image="i", flavor="f", cores=2, memory_mb=1, limits=limits, **origin)


@pytest.fixture
def session(folder):
    with sessions(open_database(database_url(folder)))() as session:
        yield session


def told(session: Session, question: str, **more) -> tuple[str, list[str], list[str], str]:
    """The rule, what each record says and by which run, the rows in quarantine, and whom to ask."""
    login, action, *objects = question.split()
    answer = explain(session, TERMS, login, action, objects, **more)
    facts = [f"{fact.words}: {fact.holds(NOW)}, {f'run {fact.run.id}' if fact.run else 'by hand'}" for fact in answer.facts]
    assert answer.decision.allowed or answer.decision.reason.endswith(".")
    assert bool(answer.loads) is not answer.decision.allowed
    return answer.decision.rule, facts, [f"{one.place}:{one.line}" for one in answer.quarantine], answer.ask


MEMBER = "principal-investigator of experiment E-1: yes, run 1"
PLACE = "experiment E-1 of proposal P on Nano, 10 Mar 2026 to …: yes, run 1"


@pytest.mark.parametrize(
    ("question", "plan", "expected"),
    [
        pytest.param("ada see experiment:E-1", "", ("experiment-membership", [MEMBER], [], ""), id="her-own"),
        pytest.param(
            "ada launch experiment:E-1",
            "nano",
            ("launch", [MEMBER, "plan Nano, 2 cores: yes, run 1", PLACE, "Ada L, login ada: yes, run 1"], [], ""),
            id="a-launch",
        ),
        pytest.param(
            "ada see experiment:E-2",
            "",
            ("experiment-gone", ["experiment E-2: ended 9 Mar 2026, run 2", "member of experiment E-2: ended 9 Mar 2026, run 2"]),
            id="no-longer-named",
        ),
        pytest.param(
            "bob see experiment:E-1",
            "",
            ("experiment-membership", ["experiment E-1: yes, run 1", "member of experiment E-1: ended 9 Mar 2026, run 2"]),
            id="no-longer-a-member",
        ),
        pytest.param("eve see experiment:E-1", "", ("experiment-membership", ["experiment E-1: yes, run 1"]), id="never-a-member"),
        pytest.param("eve see experiment:E-9", "", ("unknown-experiment", [], [], "the user office"), id="no-such-experiment"),
        pytest.param("eve see experiment:E-4", "", ("unknown-experiment", [], ["visits.csv:3"]), id="in-quarantine"),
        pytest.param(
            "bob launch plan:lab",
            "",
            ("experiment-needed", ["role staff: expired 9 Mar 2026, run 1"], [], "the experiment's principal investigator"),
            id="role-expired",
        ),
        pytest.param(
            "ada launch experiment:E-1", "lab", ("plan-limited", ["plan Lab, 2 cores: yes, run 1"], [], ""), id="limited-plan"
        ),
        pytest.param(
            "ada launch experiment:E-1",
            "past",
            ("unknown-plan", ["plan Past, 2 cores: ended 9 Mar 2026, run 2"]),
            id="plan-withdrawn",
        ),
        pytest.param(
            "old see experiment:E-1", "", ("unknown-user", ["Old L, login old: ended 9 Mar 2026, run 2"]), id="left-the-facility"
        ),
        pytest.param("nobody see experiment:E-1", "", ("unknown-user", [], [], "the user office"), id="nobody"),
        pytest.param("ada open instance:films", "", ("owner",), id="own-instance-by-name"),
        pytest.param("ada start instance:i-1", "", ("launch",), id="start-asks-the-rules-of-a-launch"),
        pytest.param("bob see instance:ada/films", "", ("viewer",), id="shared-instance"),
        pytest.param("bob control instance:i-1", "", ("part", [], [], "the instance's owner"), id="as-a-viewer"),
        pytest.param("bob watch instance:i-1", "", ("experiment-membership",), id="left-the-experiment"),
        pytest.param("eve see instance:i-1", "", ("unknown-instance", [], [], ""), id="anothers-instance-is-not-there"),
        pytest.param("eve see instance:none", "", ("unknown-instance", [], [], ""), id="no-such-instance"),
        pytest.param("ida watch instance:i-1", "", ("it-support", ["role it-support: yes, by hand"], [], ""), id="support"),
        pytest.param("ida delete instance:i-1", "", ("part",), id="support-does-not-delete"),
    ],
)
def test_an_answer_names_its_records_and_whom_to_ask(session, question, plan, expected):
    answer = told(session, question, plan=plan)
    if expected[0] == "part":
        answer = (answer[0], [], *answer[2:])
    assert answer[: len(expected)] == expected


def test_who_may_come_in_is_told_that_it_is_stopped(session):
    decision = explain(session, TERMS, "ada", "watch", ["instance:i-1"]).decision
    assert decision and "stopped" in decision.reason


def test_staff_are_told_what_is_in_the_records_and_what_goes_with_them(session):
    assert told(session, "eve see experiment:E-1", wide=True)[1] == [PLACE]
    assert told(session, "eve see experiment:E-4", wide=True)[2] == ["team.csv:9", "visits.csv:3"]
    assert told(session, "eve see instance:i-1", wide=True)[:2] == ("not-yours", ["instance Films of ada: yes, by hand"])


@pytest.mark.parametrize(
    "question", ["eve see experiment:E-1", "eve launch experiment:E-1", "eve see instance:i-1", "bob see plan:x"]
)
def test_a_refusal_tells_nothing_of_what_is_not_theirs(session, question):
    login, action, *objects = question.split()
    try:
        # where objects lie in memory can read like a name
        words = re.sub("0x[0-9a-f]+", "", repr(explain(session, TERMS, login, action, objects)))
    except QuestionError as error:
        words = str(error)
    assert not any(secret in words for secret in ("Secret", "Nano", "Films", "ada", "Ada"))


@pytest.mark.parametrize(
    ("action", "objects"),
    [
        ("fly", ["experiment:E-1"]),
        ("see", ["E-1"]),
        ("see", ["experiment:"]),
        ("see", [":E-1"]),
        ("see", ["moon:1"]),
        ("see", []),
        ("see", ["experiment:E-1", "experiment:E-2"]),
        ("launch", ["experiment:E-1", "plan:lab"]),
    ],
    ids=str,
)
def test_what_is_no_question(session, action, objects):
    with pytest.raises(QuestionError, match=r"\.$"):
        explain(session, TERMS, "ada", action, objects)


def test_a_launch_for_several_experiments_needs_all_of_them(session):
    answer = explain(session, TERMS, "ada", "launch", ["experiment:E-1", "experiment:E-3"], plan="notebook")
    assert "not a member of experiment E-3" in answer.decision.reason


def test_what_is_known_of_a_person_shows_what_has_expired(session):
    assert [f"{fact.words}: {fact.holds(NOW)}" for fact in about(session, "2")] == [
        "Bob L, login bob: yes",
        "role staff: expired 9 Mar 2026",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("ada launch experiment:E-1 --plan notebook", ["allowed by rule launch", "run 1, 2026-03-07 12:00 UTC"]),
        (
            "bob see experiment:E-1",
            [
                "refused by rule experiment-membership",
                "What bob is told: You are not a member of experiment E-1",
                "ended 9 Mar 2026",
                "office",
                "Ask the experiment's principal investigator or help@facility.example.",
            ],
        ),
        ("eve see experiment:E-4", ["Not taken from the source", "visits.csv, 3", "not a date"]),
    ],
    ids=["allowed", "ended", "quarantine"],
)
def test_the_command_line(folder, monkeypatch, arguments, words):
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv(CONFIG_VARIABLE, str(folder / "jupyterhub_config.py"))
    answer = CliRunner().invoke(hutch.app, ["explain", *arguments.split()], catch_exceptions=False)
    assert answer.exit_code == 0
    assert all(one in answer.output for one in words), answer.output
