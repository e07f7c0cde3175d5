"""The pages "Why?" and "Facility data", from a real hub: who is told what, and what staff may do there."""

from __future__ import annotations

import html
import re
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from databases import database_url
from sqlalchemy import delete, select

from hub.database import seal
from hub.database.engine import deployment_id, open_database
from hub.database.tables import (
    CloudFinding,
    EtlChange,
    EtlRejection,
    EtlRun,
    Experiment,
    ExperimentMember,
    Identity,
    IdentitySuggestion,
    Instance,
    Proposal,
    User,
)
from hub.instances import create
from hub.steward.differences import State

NUMBERS = count()
STAFF_ROLES = ["admin", "it-support", "staff"]


@pytest.fixture
def person(running_hub):
    return running_hub.add_person(f"will{next(NUMBERS)}", experiments={"Perovskite films": -1})


@pytest.fixture
def staff(running_hub):
    return running_hub.add_person(f"sam{next(NUMBERS)}", role="it-support")


@pytest.fixture
def a_run(running_hub, person):
    """A run that renamed the person's proposal, ended a membership and left a row out."""
    with running_hub.session() as session:
        run = EtlRun(source="office", adapter="files", outcome="done", finished_at=datetime.now(UTC))
        run.counts = {"proposal": {"added": 3, "changed": 1, "ended": 0, "unchanged": 7, "rejected": 1}}
        session.add(run)
        session.flush()
        proposal = session.get_one(Proposal, f"2026-{person}-0")
        before = {"id": proposal.id, "title": "Old <title>", "public_at": None, "source": "", "run_id": None, "ended_at": None}
        session.add(EtlChange(run_id=run.id, record="proposal", key={"id": proposal.id}, before=before))
        member = session.get_one(ExperimentMember, (f"{person}-0", f"id-{person}"))
        key = {"experiment_id": member.experiment_id, "user_id": member.user_id}
        session.add(
            EtlChange(run_id=run.id, record="experiment_member", key=key, before=key | {"role": "member", "ended_at": None})
        )
        member.ended_at, member.run_id, member.source = datetime.now(UTC), run.id, "office"
        out = {"record": "experiment", "place": "visits.csv", "key": f"{person}-9", "field": "ends_at", "reason": "is <not> a date"}
        session.add_all(EtlRejection(run_id=run.id, line=line, **out) for line in range(1, 61))
        return run.id


def test_one_is_told_why_for_oneself(running_hub, person, a_run):
    with running_hub.signed_in(person) as browser:
        answer = browser.get("why", params={"question": "experiment see", "key": f"{person}-0"})
        assert answer.status_code == 200
        told = "No: you may not see", "You are not a member of", f"run {a_run}", "ended by", "principal investigator"
        for words in told:
            assert words in answer.text
        left_out = browser.get("why", params={"question": "experiment see", "key": f"{person}-9"}).text
        assert "visits.csv, row" in left_out and "is &lt;not&gt; a date" in left_out
        allowed = browser.get("why", params={"question": "plan launch", "key": "quick"}).text
        assert "only staff and guests may launch without one" in allowed


def test_nobody_but_staff_asks_for_others(running_hub, person, staff):
    other = running_hub.add_person(f"wanda{next(NUMBERS)}", experiments={"Hidden": 1})
    query = {"question": "experiment see", "key": f"{other}-0", "user": other}
    with running_hub.signed_in(person) as browser:
        assert browser.get("why", params=query).status_code == 403
        assert "name=user" not in browser.get("why").text
        own = browser.get("why", params={"question": "experiment see", "key": f"{other}-0"}).text
        assert "not a member" in own and "ID16" not in own
    with running_hub.signed_in(staff) as browser:
        answer = browser.get("why", params=query)
        assert f"Yes: {other} may see experiment {other}-0" in re.sub(r"\s+", " ", answer.text)


def test_staff_ask_about_whom_nobody_knows(running_hub, staff):
    with running_hub.signed_in(staff) as browser:
        assert "know nobody with the login nemo" in browser.get("why", params={"user": "nemo"}).text


@pytest.mark.parametrize("question", ["experiment fly", "moon see", "see", "experiment launch plan"])
def test_a_question_that_is_none_is_said_so(running_hub, person, question):
    with running_hub.signed_in(person) as browser:
        answer = browser.get("why", params={"question": question, "key": "x"})
        assert (answer.status_code, "is no question" in answer.text) == (400, True)


def test_refusals_lead_to_why(running_hub, person):
    with running_hub.signed_in(person) as browser:
        form = browser.get("new").text
        link = re.search(r'href="[^"]*(why\?question=experiment\+launch[^"]*plan=gpu)"', form)
        assert link
        answer = browser.get(link[1].replace("&amp;", "&"))
        assert "GPU is only for experiments on ID11." in answer.text


def test_a_failed_instance_leads_to_why(running_hub, person):
    with running_hub.session() as session:
        made = create(
            session,
            owner_id=f"id-{person}",
            server_name="films",
            display_name="Films",
            plan_id="quick",
            experiment_ids=[f"{person}-0"],
            lifetime=timedelta(days=1),
        )
        name = made.id
    with running_hub.signed_in(person) as browser:
        answer = browser.get("why", params={"question": "instance start", "key": name})
        assert "Rule <code>launch</code>" in answer.text
    with running_hub.session() as session:
        assert session.get(Instance, name)


# --- facility data


@pytest.mark.parametrize("path", ["facility", "facility/runs/{run}"])
@pytest.mark.parametrize("role", ["", "guest", "instrument-control", "instrument-scientist", "scientific-computing", *STAFF_ROLES])
def test_facility_data_is_for_staff(running_hub, a_run, role, path):
    login = running_hub.add_person(f"fay{next(NUMBERS)}", role=role)
    with running_hub.signed_in(login) as browser:
        assert browser.get(path.format(run=a_run)).status_code == (200 if role in STAFF_ROLES else 403)
        assert ("Facility data" in browser.get("").text) is (role in STAFF_ROLES)


def test_the_overview_shows_sources_runs_and_loose_ends(running_hub, staff, a_run):
    alone = running_hub.add_person(f"xeno{next(NUMBERS)}")
    with running_hub.session() as session:
        session.add(Experiment(id=f"empty-{alone}", proposal_id=session.scalars(select(Proposal.id)).first(), instrument_id="ID16"))
    with running_hub.signed_in(staff) as browser:
        page = browser.get("facility").text
    assert re.search(r"office</span>\s+last loaded", page)
    assert f'facility/runs/{a_run}"' in page
    assert "without members" in page and f"empty-{alone}" in page
    assert alone in page


def test_a_run_that_was_refused_says_that_nothing_was_changed(running_hub, staff):
    with running_hub.session() as session:
        run = EtlRun(source="refusing", adapter="files", outcome="refused", message="it would end 40 % of user")
        run.counts = {"user": {"added": 0, "changed": 0, "ended": 4711, "unchanged": 0, "rejected": 0}}
        session.add(run)
        session.flush()
        number = run.id
    with running_hub.signed_in(staff) as browser:
        overview, page = browser.get("facility").text, browser.get(f"facility/runs/{number}").text
    assert re.search(r"refusing</span>\s+never loaded", overview) and "4711" not in overview
    assert "it would end 40 % of user" in page and "Nothing was changed. It would have done this:" in page


def test_a_run_shows_what_changed_and_what_was_not_taken_page_by_page(running_hub, staff, person, a_run):
    with running_hub.signed_in(staff) as browser:
        page = browser.get(f"facility/runs/{a_run}").text
        assert "<del>Old &lt;title&gt;</del>" in page and "<ins>Perovskite films</ins>" in page
        assert f"experiment_member {person}-0 id-{person}</span> ended" in page
        assert "visits.csv, row 50," in page and "row 51," not in page and "Page 1 of 2" in page
        second = browser.get(f"facility/runs/{a_run}?page=2").text
        assert "row 51," in second and "row 50," not in second
        assert browser.get(f"facility/runs/{a_run}?page=0").status_code == 404
        assert browser.get("facility/runs/999999").status_code == 404


@pytest.fixture
def suggestion(running_hub, person):
    form = {"issuer": "https://id.example", "subject": f"sub-{person}", "user_id": f"id-{person}"}
    other = running_hub.add_person(f"yan{next(NUMBERS)}")
    with running_hub.session() as session:
        session.add(IdentitySuggestion(**form, reason="has the same e-mail address"))
        session.add(IdentitySuggestion(**form | {"user_id": f"id-{other}"}, reason="has the same e-mail address"))
    yield form
    with running_hub.session() as session:
        session.execute(delete(IdentitySuggestion))


@pytest.mark.parametrize(("role", "may"), [("admin", True), ("it-support", True), ("staff", False), ("", False)])
def test_an_identity_is_confirmed_by_admins_and_it_support(running_hub, suggestion, role, may):
    login = running_hub.add_person(f"zoe{next(NUMBERS)}", role=role)
    with running_hub.signed_in(login) as browser:
        assert ("Confirm<" in browser.get("facility").text) is may
        assert browser.submit("facility/identities", suggestion).status_code == (200 if may else 403)
        with running_hub.session() as session:
            identity = session.get(Identity, (suggestion["issuer"], suggestion["subject"]))
            assert (identity and (identity.user_id, identity.linked_by)) == ((suggestion["user_id"], login) if may else None)
            left = session.scalars(select(IdentitySuggestion).where(IdentitySuggestion.subject == suggestion["subject"])).all()
            assert len(left) == (0 if may else 2)
        assert not may or browser.submit("facility/identities", suggestion).status_code == 404, "a second click finds nothing"


def test_only_what_was_suggested_can_be_confirmed(running_hub, staff, suggestion):
    with running_hub.session() as session:
        victim = session.scalars(select(User.id)).first()
    with running_hub.signed_in(staff) as browser:
        assert browser.submit("facility/identities", suggestion | {"user_id": victim, "subject": "mine"}).status_code == 404
        assert browser.post("facility/identities", data=suggestion, headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403


# --- the cloud


@pytest.fixture
def findings(running_hub):
    """One that is only reported, one that waits, and one that is over."""
    rows = [
        CloudFinding(kind="server", resource_id="srv-<1>", state="orphan", instance_id="nobody", detail="hutch-1 ACTIVE"),
        CloudFinding(kind="instance", resource_id="lost-1", instance_id="lost-1", state="lost", place="east"),
        CloudFinding(kind="server", resource_id="over-1", state="failed", ended_at=datetime.now(UTC)),
    ]
    with running_hub.session() as session:
        session.add_all(rows)
    yield
    with running_hub.session() as session:
        session.execute(delete(CloudFinding))


@pytest.mark.parametrize("role", ["", "guest", "instrument-control", *STAFF_ROLES])
def test_the_cloud_is_shown_to_staff(running_hub, findings, role):
    login = running_hub.add_person(f"cleo{next(NUMBERS)}", role=role)
    with running_hub.signed_in(login) as browser:
        answer = browser.get("cloud")
        assert answer.status_code == (200 if role in STAFF_ROLES else 403)
        assert ("srv-&lt;1&gt;" in answer.text) is (role in STAFF_ROLES)


def test_each_difference_is_shown_with_what_is_done_about_it(running_hub, findings, staff):
    with running_hub.signed_in(staff) as browser:
        page = re.sub(r"\s+", " ", html.unescape(browser.get("cloud").text))
    assert "2 differences from the records" in page and "over-1" not in page
    assert State.ORPHAN.sentence in page and re.search("Instance *</span> in east", page)
    assert page.count("It is only shown") == 2, "nothing more is allowed by default"


@pytest.mark.parametrize("state", State)
def test_every_difference_can_be_shown(running_hub, staff, state):
    with running_hub.session() as session:
        session.add(CloudFinding(kind="server", resource_id="x", state=state, quarantined_at=datetime.now(UTC)))
    with running_hub.signed_in(staff) as browser:
        page = browser.get("cloud").text
    with running_hub.session() as session:
        session.execute(delete(CloudFinding))
    assert state.sentence in html.unescape(page) and "put in quarantine" in page


def test_a_database_that_was_restored_is_told_of(running_hub, staff):
    deployment_id(open_database(database_url(running_hub.folder)))
    with running_hub.signed_in(staff) as browser:
        assert "No differences from the records" in browser.get("cloud").text
        (running_hub.folder / seal.FILE).write_text("another")
        try:
            assert "hutch db seal --keep" in browser.get("cloud").text
        finally:
            (running_hub.folder / seal.FILE).unlink()
