"""A launch under the facility's rules, by whatever door it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from threading import Barrier
from typing import Any
from urllib.parse import urlencode

import pytest
from browser import chromium
from databases import database_url, upgrade
from facility_hub import EXAMPLE, FacilityHub, Visitor
from playwright.sync_api import expect
from running_hub import until
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from etl.adapters.files import Files
from etl.load import run
from etl.source import Source
from hub.configuration import Hutch
from hub.database.engine import open_database
from hub.database.tables import Experiment, ExperimentMember, Instance, Plan, User, now
from hub.facility import Facility
from hub.launching import Asked, grant
from spawner.launch import LaunchError


def refused(hub: FacilityHub, visitor: Visitor, answer: Any, status: int, words: str) -> None:
    """With the rule's own words, and nothing left behind: not in the records, not in the cloud."""
    assert (answer.status_code, words in answer.json()["message"]) == (status, True), answer.text
    assert "Traceback" not in answer.text
    assert hub.server(visitor.login, "films") == {}
    assert hub.instances(visitor) == []


def test_a_launch_with_ones_own_token(hub):
    visitor = hub.visitor()
    instance = hub.launched(visitor)
    (intent,) = instance.intents
    assert (intent.kind, intent.outcome, intent.actor, intent.message) == ("launch", "done", visitor.login, None)
    assert [experiment.id for experiment in instance.experiments] == [visitor.experiment]
    assert [(member.user_id, member.role) for member in instance.members] == [(visitor.id, "owner")]
    assert instance.ends_at - instance.created_at >= timedelta(days=13.9)
    assert instance.first_ready_at is not None
    told = " ".join(event.kind for event in instance.events)
    assert told == "created launch-asked rights create boot identify account environment notebook ready launch-done"
    (server,), (port,) = hub.servers(visitor), hub.ports(visitor)
    assert server["metadata"] == {"hutch-deployment": hub.deployment, "hutch-instance": instance.id}
    assert port["device_id"] == server["id"]


def test_nothing_in_the_cloud_names_a_person(hub):
    visitor = hub.visitor()
    hub.launched(visitor, display_name=f"Vera Visitor {visitor.login}", user_options=options(visitor))
    assert visitor.login not in str(hub.servers(visitor) + hub.ports(visitor))


def options(visitor: Visitor, **changed: Any) -> dict[str, Any]:
    return {"plan": "notebook", "experiments": [visitor.experiment]} | changed


@pytest.mark.parametrize(
    ("changed", "status", "words"),
    [
        pytest.param({"experiments": ["MA-5012-1"]}, 403, "You are not a member of experiment MA-5012-1", id="foreign-experiment"),
        pytest.param({"experiments": ["XX-1-1"]}, 404, "There is no experiment XX-1-1", id="unknown-experiment"),
        pytest.param({"experiments": []}, 403, "Choose at least one experiment", id="no-experiment"),
        pytest.param({"plan": "nope"}, 404, "There is no plan 'nope'", id="unknown-plan"),
        pytest.param({"plan": "staff-lab"}, 403, "Staff laboratory is only for admin, staff", id="limited-plan"),
        pytest.param({"plan": ""}, 400, "plan: String should have at least 1 character", id="empty-plan"),
        pytest.param({"plan": 1}, 400, "plan: Input should be a valid string", id="plan-a-number"),
        pytest.param({"plan": None}, 400, "plan: Input should be a valid string", id="plan-null"),
        pytest.param({"plan": ["notebook"]}, 400, "plan: Input should be a valid string", id="plan-a-list"),
        pytest.param({"plan": "x" * 251}, 400, "plan: String should have at most 250 characters", id="plan-too-long"),
        pytest.param({"experiments": "MA-5012-1"}, 400, "experiments: Input should be a valid list", id="experiments-a-string"),
        pytest.param({"experiments": [1]}, 400, "experiments.0: Input should be a valid string", id="experiments-numbers"),
        pytest.param({"experiments": ["x"] * 101}, 400, "experiments: List should have at most 100", id="too-many-experiments"),
        pytest.param({"image": "windows"}, 400, "image: Extra inputs are not permitted", id="an-image-of-ones-own"),
        pytest.param({"flavor": "m1.huge", "env": {}}, 400, "Extra inputs are not permitted", id="traits-of-the-spawner"),
        pytest.param({"plan": "notebook' OR 1=1 --"}, 404, "There is no plan", id="sql"),
    ],
)
def test_hand_made_options_are_refused_with_the_rules_words(hub, changed, status, words):
    visitor = hub.visitor()
    hub.devcloud.clear_calls()
    answer = hub.launch(visitor, display_name="Films", user_options=options(visitor, **changed))
    refused(hub, visitor, answer, status, words)
    assert not any(call.startswith(("POST /compute", "POST /network")) for call in hub.devcloud.calls()["counts"])


@pytest.mark.parametrize("body", [{"user_options": []}, {"user_options": "plan"}, {"display_name": 1, "user_options": {}}], ids=str)
def test_bodies_that_are_none(hub, body):
    visitor = hub.visitor()
    assert hub.launch(visitor, **body).status_code == 400
    assert hub.instances(visitor) == []


def test_options_without_anything_name_what_is_missing(hub):
    visitor = hub.visitor()
    refused(hub, visitor, hub.start_again(visitor), 400, "plan: Field required")


@pytest.mark.parametrize("path", ["server", "servers/"], ids=["server", "servers"])
@pytest.mark.parametrize("named", [False, True], ids=["nothing", "options"])
def test_the_unnamed_server_is_refused_and_the_portal_named(hub, path, named):
    visitor = hub.visitor()
    body = {"user_options": options(visitor)} if named else {}
    answer = hub.api("POST", f"users/{visitor.login}/{path}", visitor.token, json=body)
    refused(hub, visitor, answer, 400, "Instances are launched from the portal")


@pytest.mark.parametrize("role", ["staff", "guest", "admin"])
def test_staff_and_guests_need_no_experiment(hub, role):
    visitor = hub.visitor(role)
    answer = hub.launch(visitor, display_name="Tests", user_options={"plan": "notebook"})
    assert answer.status_code in (201, 202), answer.text
    hub.until_ready(visitor.login, "films")
    assert hub.instance(visitor).experiments == []


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        pytest.param("Éclats 🔬 試料", True, id="emoji"),
        pytest.param("<script>alert(\"1\")</script> & 'x'; DROP TABLE", True, id="quotes"),
        pytest.param("עברית العربية", True, id="right-to-left"),
        pytest.param("x" * 250, True, id="250-characters"),
        pytest.param("x" * 255, False, id="255-characters"),
    ],
)
def test_a_display_name_is_kept_as_it_is(hub, name, kept):
    visitor = hub.visitor()
    hub.launched(visitor, display_name=name, user_options=options(visitor))
    assert hub.instance(visitor).display_name == (name if kept else name[:250])


@pytest.mark.parametrize("name", ["x" * 300, "line\nbreak", "two  spaces", "\u202e backwards"], ids=repr)
def test_a_display_name_that_cannot_be_shown_is_refused(hub, name):
    visitor = hub.visitor()
    refused(hub, visitor, hub.launch(visitor, display_name=name, user_options=options(visitor)), 400, "Invalid display_name")


# --- made first and started later


def test_a_server_that_was_made_first_is_checked_when_it_starts(hub):
    visitor = hub.visitor()
    path = f"users/{visitor.login}/servers/films"
    hub.api("PUT", path, visitor.token, json={"display_name": "Films", "user_options": options(visitor)}).raise_for_status()
    assert hub.instances(visitor) == []
    assert hub.start_again(visitor).status_code in (201, 202)
    hub.until_ready(visitor.login, "films")
    assert hub.instance(visitor).display_name == "Films"


def test_bad_options_that_were_put_are_refused_at_the_start(hub):
    visitor = hub.visitor()
    path = f"users/{visitor.login}/servers/films"
    hub.api("PUT", path, visitor.token, json={"user_options": options(visitor, plan="staff-lab")}).raise_for_status()
    refused(hub, visitor, hub.start_again(visitor), 403, "Staff laboratory is only")


@pytest.fixture
def stopped(hub) -> Visitor:
    """Somebody with an instance that was stopped."""
    visitor = hub.visitor()
    hub.launched(visitor)
    assert hub.end(visitor).status_code in (202, 204)
    hub.until_intent(visitor, kind="stop", outcome="done")
    return visitor


@pytest.mark.parametrize("by", ["PATCH", "POST"])
def test_options_cannot_be_changed_later(hub, stopped, by):
    """Nor does the attempt spoil the instance: the next start is by the old options."""
    changed = options(stopped, plan="notebook-large")
    path = f"users/{stopped.login}/servers/films"
    if by == "PATCH":
        hub.api("PATCH", path, stopped.token, json={"user_options": changed}).raise_for_status()
        answer = hub.start_again(stopped)
    else:
        answer = hub.api("POST", path, stopped.token, json={"display_name": "films", "user_options": changed})
    assert answer.status_code == 409 and "cannot be changed" in answer.json()["message"]
    assert hub.intent(stopped).kind == "stop"
    assert hub.start_again(stopped).status_code in (201, 202)
    hub.until_ready(stopped.login, "films")
    (server,) = hub.servers(stopped)
    assert server["flavor"]["original_name"] == "m1.small"


def test_a_renamed_server_is_the_same_instance(hub, stopped):
    before = hub.instance(stopped)
    answer = hub.api("PATCH", f"users/{stopped.login}/servers/films", stopped.token, json={"name": "movies"})
    assert answer.status_code == 200, answer.text
    hub.start_again(stopped, "movies")
    hub.until_ready(stopped.login, "movies")
    (after,) = hub.instances(stopped)
    assert (after.id, after.server_name) == (before.id, "movies")
    assert len(hub.servers(stopped)) == 1


# --- resumes


def end_experiment(session, visitor):
    session.get_one(Experiment, visitor.experiment).ended_at = now()


def end_person(session, visitor):
    session.get_one(User, visitor.id).ended_at = now()


def lock_out(session, visitor):
    session.get_one(User, visitor.id).instance_quota = 0


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        pytest.param(None, 403, "You are not a member of experiment", id="membership-ended"),
        pytest.param(end_experiment, 403, "is no longer in the user office's records", id="experiment-withdrawn"),
        # by the rule, or by the end of their token, whichever is first
        pytest.param(end_person, 403, "", id="person-left"),
        pytest.param(lock_out, 403, "Your instance quota is 0", id="locked-out"),
    ],
)
def test_a_resume_asks_the_records_as_they_are_now(hub, stopped, change, status, words):
    if change:
        hub.change(lambda session: change(session, stopped))
    else:
        hub.end_membership(stopped)
    answer = hub.start_again(stopped)
    assert (answer.status_code, words in answer.json()["message"]) == (status, True), answer.text
    assert hub.intent(stopped).kind == "stop"
    assert [server["status"] for server in hub.servers(stopped)] == ["SHUTOFF"]


def test_a_resume_of_a_plan_that_was_withdrawn(hub):
    visitor, plan = hub.visitor(), hub.plan("passing")
    hub.launched(visitor, plan=plan)
    hub.end(visitor)

    def withdraw(session):
        session.get_one(Plan, plan).ended_at = now()

    hub.change(withdraw)
    answer = hub.start_again(visitor)
    assert answer.status_code == 404 and "There is no plan 'passing' (any more)" in answer.json()["message"]


# --- the quota


def test_an_instance_whose_server_is_gone_is_not_replaced_by_an_empty_one(hub, stopped):
    (server,) = hub.servers(stopped)
    hub.devcloud.trouble(server["id"], "forget")
    hub.start_again(stopped)
    failed = hub.until_intent(stopped, kind="launch", outcome="failed")
    assert "no longer has the server" in failed.message
    assert hub.servers(stopped) == []


def test_an_instance_whose_cell_is_down_is_not_taken_for_gone_nor_made_twice(hub, stopped):
    (server,) = hub.servers(stopped)
    hub.devcloud.trouble(server["id"], "cell-down", down=True)
    hub.start_again(stopped)
    failed = hub.until_intent(stopped, kind="launch", outcome="failed")
    assert failed.message == "A part of the cloud does not answer. Nothing was changed."
    hub.devcloud.trouble(server["id"], "cell-down", down=False)
    hub.start_again(stopped)
    hub.until_ready(stopped.login, "films")
    assert [one["id"] for one in hub.servers(stopped)] == [server["id"]] and len(hub.ports(stopped)) == 1


def test_launches_at_once_never_exceed_the_quota(hub):
    visitor = hub.visitor(quota=2)
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda number: hub.launch(visitor, f"films-{number}"), range(5)))
    for number in range(5):
        until(lambda name=f"films-{number}": not hub.server(visitor.login, name).get("pending"), "the launches are over")
    assert len(hub.instances(visitor)) == len(hub.servers(visitor)) == 2
    refusals = [answer for answer in answers if answer.status_code >= 400]
    # on a busy machine JupyterHub has answered 202 before the refusal is there
    assert {(answer.status_code, answer.json()["message"]) for answer in refusals} <= {
        (403, "You have 2 of at most 2 instances. Delete one to launch another.")
    }


@pytest.fixture
def facility_alone(tmp_path) -> Iterator[Facility]:
    """A facility without a hub or a steward, who would act on what was granted."""
    upgrade(engine := open_database(database_url(tmp_path)))
    engine.dispose()
    facility = Facility(Hutch(database_url=database_url(tmp_path)))
    run(facility.engine, Source(name="example"), Files(folder=EXAMPLE), allow_removals=True)
    yield facility
    facility.engine.dispose()


def test_grants_at_once_never_exceed_the_quota(facility_alone):
    """The decision itself, without a hub between: all ask at the same moment, again and again."""
    threads = 4
    together = Barrier(threads)

    def ask(visit: str, login: str, name: str) -> bool:
        asked = Asked(login, name, name, {"plan": "notebook", "experiments": [visit]}, actor="tests", by_service=True)
        together.wait()
        try:
            facility_alone.ask_here(lambda session: grant(session, facility_alone, asked))
        except LaunchError as error:
            assert error.reason == "quota", error.message
            return False
        return True

    with ThreadPoolExecutor(threads) as pool:
        for round in range(15):
            login = f"quick{round}"
            visit = facility_alone.ask_here(partial(new_member, login=login))
            granted = list(pool.map(partial(ask, visit, login), ["one", "two", "three", "four"]))
            owned = select(func.count()).where(Instance.owner_id == login)
            assert granted.count(True) == facility_alone.ask_here(lambda session, query=owned: session.scalar(query)) == 2


def new_member(session: Session, login: str) -> str:
    """Somebody who may own two instances; returns the experiment that they are a member of."""
    session.add(User(id=login, login=login, given_name="Quick", family_name="Clicker", instance_quota=2))
    visit = session.scalars(select(Experiment.id).where(Experiment.ended_at.is_(None)).limit(1)).one()
    session.flush()
    session.add(ExperimentMember(experiment_id=visit, user_id=login))
    return visit


def test_a_stopped_instance_counts_and_a_deleted_one_does_not(hub):
    visitor = hub.visitor(quota=1)
    hub.launched(visitor)
    hub.end(visitor)
    assert hub.launch(visitor, "more").status_code == 403
    hub.end(visitor, remove=True)
    hub.launched(visitor, "more")


# --- deletion


def test_a_deletion_only_marks(hub):
    visitor = hub.visitor()
    hub.launched(visitor)
    hub.end(visitor, remove=True)
    instance = until(lambda: (found := hub.instance(visitor)).deleted_at and found, "the instance is marked")
    assert (instance.purge_at - instance.deleted_at, instance.purged_at) == (timedelta(days=7), None)
    assert instance.intents[-1].kind == "delete"
    assert len(hub.servers(visitor)) == len(hub.ports(visitor)) == 1


def test_a_deletion_that_jupyterhub_carried_out_alone_is_caught_up_with(hub):
    visitor = hub.visitor()
    hub.launched(visitor)
    hub.end(visitor, remove=True)

    def lose_it(session) -> None:
        # as when the database is away for the moment in which JupyterHub drops its row
        session.execute(update(Instance).where(Instance.owner_id == visitor.id).values(deleted_at=None, purge_at=None))

    hub.until_dropped(visitor)
    hub.change(lose_it)
    assert hub.end(visitor, remove=True).status_code == 204
    assert hub.instance(visitor).deleted_at
    assert hub.end(visitor, remove=True).status_code == 404


def test_a_name_is_free_again_after_a_deletion(hub):
    visitor = hub.visitor()
    first = hub.launched(visitor)
    hub.end(visitor, remove=True)
    until(lambda: hub.instance(visitor).deleted_at, "the instance is marked")
    second = hub.launched(visitor)
    assert second.id != first.id
    assert {server["metadata"]["hutch-instance"] for server in hub.servers(visitor)} == {first.id, second.id}


# --- other people's instances


@pytest.fixture
def admin(hub) -> Visitor:
    admin = hub.visitor("admin")
    hub.sign_on(admin.login)
    return admin


def test_an_admin_neither_opens_an_instance_of_others_nor_makes_their_tokens(hub, admin):
    visitor = hub.visitor()
    hub.launched(visitor)
    scopes = set(hub.api("GET", "user", admin.token).json()["scopes"])
    assert {"admin-ui", "servers"} <= scopes
    assert not {"access:servers", "tokens", "shares"} & scopes
    assert hub.api("POST", f"users/{visitor.login}/tokens", admin.token, json={}).status_code in (403, 404)


def test_an_admin_neither_reads_the_sign_on_of_others_nor_takes_their_name(hub, admin):
    visitor = hub.visitor()
    hub.launched(visitor)
    assert "auth_state" not in hub.api("GET", f"users/{visitor.login}", admin.token).json()
    assert hub.api("PATCH", f"users/{admin.login}", admin.token, json={"name": f"{visitor.login}-2"}).status_code == 403


def test_an_admin_starts_and_stops_for_others_and_it_is_noted_who_did(hub, admin):
    visitor = hub.visitor()
    hub.launched(visitor)
    hub.end(visitor, token=admin.token)
    stop = hub.until_intent(visitor, kind="stop", outcome="done")
    assert hub.start_again(visitor, token=admin.token).status_code in (201, 202)
    hub.until_ready(visitor.login, "films")
    launch = hub.until_intent(visitor, kind="launch", outcome="done")
    assert (stop.actor, launch.actor) == (admin.login, admin.login)


def test_the_admin_panel_says_why_a_start_was_refused(hub, admin):
    visitor = hub.visitor()
    hub.launched(visitor)
    hub.end(visitor)
    hub.end_membership(visitor)
    with chromium() as browser:
        page = browser.new_page()
        page.goto(f"http://localhost:{hub.port}/hub/admin")
        if not (button := page.locator(f"button[value={admin.login}]")).is_visible():
            page.get_by_text("Everybody else").click()
        button.click()
        page.get_by_placeholder("Search Users").fill(visitor.login)
        page.get_by_test_id(f"user-row-{visitor.login}-films").get_by_role("button", name="Start Server").click()
        expect(page.get_by_role("alert").first).to_contain_text("not a member of experiment")


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_an_admin_deletes_for_others_and_it_is_noted_who_did(hub, admin, running):
    visitor = hub.visitor()
    hub.launched(visitor)
    if not running:
        hub.end(visitor)
    hub.end(visitor, token=admin.token, remove=True)
    assert hub.until_intent(visitor, kind="delete").actor == admin.login


def test_what_an_admin_starts_is_for_its_owner_to_be_allowed(hub, admin, stopped):
    hub.end_membership(stopped)
    answer = hub.start_again(stopped, token=admin.token)
    assert answer.status_code == 403 and "not a member" in answer.json()["message"]


def test_an_admin_can_stop_what_somebody_left_behind(hub, admin):
    visitor = hub.visitor()
    hub.launched(visitor)
    hub.change(lambda session: end_person(session, visitor))
    hub.end(visitor, token=admin.token)
    assert hub.until_intent(visitor, kind="stop", outcome="done").actor == admin.login


def test_deleting_a_user_marks_their_instances(hub, admin, stopped):
    assert hub.api("DELETE", f"users/{stopped.login}", admin.token).status_code == 204
    intent = hub.until_intent(stopped, kind="delete")
    assert (intent.actor, hub.instance(stopped).deleted_at is not None) == (admin.login, True)
    assert len(hub.servers(stopped)) == 1


def test_a_user_with_a_running_instance_is_not_deleted(hub, admin):
    visitor = hub.visitor()
    hub.launched(visitor)
    answer = hub.api("DELETE", f"users/{visitor.login}", admin.token)
    assert answer.status_code == 400 and "Stop films first" in answer.json()["message"]
    assert hub.server(visitor.login, "films")["ready"]
    assert hub.instance(visitor).deleted_at is None


@pytest.mark.parametrize(
    ("method", "path"),
    [
        pytest.param("POST", "servers/films", id="start"),
        pytest.param("POST", "servers/mine", id="start-a-new-one"),
        pytest.param("PUT", "servers/mine", id="make"),
        pytest.param("PATCH", "servers/films", id="change"),
        pytest.param("DELETE", "servers/films", id="stop"),
        pytest.param("GET", "servers/films", id="see"),
        pytest.param("GET", "servers/films/progress", id="follow"),
        pytest.param("DELETE", "", id="delete-the-user"),
        pytest.param("POST", "tokens", id="take-a-token"),
    ],
)
def test_others_cannot_touch_an_instance(hub, others, method, path):
    owner, colleague = others
    answer = hub.api(method, f"users/{owner.login}/{path}".rstrip("/"), colleague.token, json={"remove": True})
    assert answer.status_code in (403, 404), answer.text
    assert hub.server(owner.login, "films")["ready"]
    assert [intent.kind for intent in hub.instance(owner).intents] == ["launch"]


@pytest.mark.parametrize("role", [(), ("staff",), ("it-support",)], ids=["visitor", "staff", "it-support"])
def test_nobody_else_can_open_an_instance(hub, others, role):
    """A notebook lets in whom the hub gives a code for it, and the hub gives none."""
    owner, _ = others
    answer = ask_to_open(hub, owner, hub.visitor(*role))
    assert (answer.status_code, "Location" in answer.headers) == (403, False), answer.text


def test_the_owner_can_open_their_instance(hub, others):
    """So that the refusals above are no accident."""
    owner, _ = others
    assert "code=" in ask_to_open(hub, owner, owner).headers["Location"]


def ask_to_open(hub: FacilityHub, owner: Visitor, visitor: Visitor) -> Any:
    """What a notebook sends a browser to that comes without a cookie of its own."""
    browser, _ = hub.sign_on(visitor.login)
    asked = {
        "client_id": f"jupyterhub-user-{owner.login}-films",
        "redirect_uri": f"http://{owner.login}.localhost:{hub.port}/user/{owner.login}/films/oauth_callback",
        "response_type": "code",
        "state": "x",
    }
    return hub.page(f"/hub/api/oauth2/authorize?{urlencode(asked)}", browser, allow_redirects=False)


@pytest.fixture(scope="module")
def others(facility_hub: FacilityHub) -> tuple[Visitor, Visitor]:
    """An owner with a running instance, and a member of the same experiment who is no member of the instance."""
    owner, colleague = facility_hub.visitor(), facility_hub.visitor()
    facility_hub.change(lambda session: session.add(ExperimentMember(experiment_id=owner.experiment, user_id=colleague.id)))
    facility_hub.launched(owner)
    return owner, colleague


# --- pages


@pytest.mark.parametrize("path", ["/hub/home", "/hub/spawn", "/hub/spawn/ann", "/hub/spawn/ann/films", "/hub/spawn/bob"])
def test_jupyterhubs_own_pages_lead_to_the_portal(hub, path):
    browser, _ = hub.sign_on("ann")
    answer = hub.page(path, browser, allow_redirects=False)
    assert answer.status_code == 302 and answer.headers["Location"].endswith("/services/portal/")
