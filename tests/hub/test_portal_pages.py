"""The portal's pages, asked for as a browser without scripts does, from a real hub and proxy."""

from __future__ import annotations

import re
import signal
import time
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import httpx
import pytest
from cryptography.fernet import Fernet
from databases import database_url, upgrade
from running_hub import PATIENCE_SECONDS

from hub import capacity
from hub.configuration import Hutch
from hub.database.engine import open_database
from hub.database.tables import Instance, User
from hub.instances import conclude, create, intend, mark_deleted, record_event
from hub.notices import tell
from hub.portal.app import create_app

NUMBERS = count()


@pytest.fixture
def person(running_hub):
    """A login of this test's own: a member of one experiment that runs now, and of one that is past."""
    return running_hub.add_person(f"user{next(NUMBERS)}", experiments={"Perovskite films": -1, "Tuesday night scans": -10})


@pytest.fixture
def browser(running_hub, person):
    running_hub.release.unlink(missing_ok=True)
    with running_hub.signed_in(person) as browser:
        yield browser


def launch(browser, person: str, plan: str = "quick", name: str = "My films", **fields) -> httpx.Response:
    return browser.submit("new", {"experiment": f"{person}-0", "plan": plan, "name": name, "suggested": "x"} | fields)


def launch_and_stop(browser, person: str) -> None:
    launch(browser, person)
    until(lambda: browser.get("instances/my-films"), "Open JupyterLab")
    browser.submit("instances/my-films/stop")
    until(lambda: browser.get("instances/my-films"), "Its disk is kept")


def until(page, words: str):
    """Ask for a page until it holds the words."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while words not in (answer := page()).text:
        assert time.monotonic() < deadline, answer.text
    return answer


def heading(page: httpx.Response) -> str:
    headings = re.findall(r"<h1[^>]*>(.*?)</h1>", page.text, re.DOTALL)
    assert len(headings) == 1, "a page has one h1"
    return headings[0].strip()


# --- who one is


def test_a_visit_leads_through_the_sign_in_and_back_to_the_page(running_hub, person):
    with running_hub.signed_in(person) as browser:
        browser.cookies.delete("hutch-portal")
        page = browser.get("new?search=films")
        assert str(page.url) == f"{running_hub.portal}new?search=films"
        assert heading(page) == "New instance"


def test_the_token_is_sealed_in_a_cookie_that_scripts_and_other_sites_do_not_get(running_hub, person):
    with running_hub.signed_in(person) as browser:
        browser.cookies.delete("hutch-portal")
        answer = browser.get("")
        set_cookie = next(
            value
            for one in [*answer.history, answer]
            for value in one.headers.get_list("set-cookie")
            if value.startswith("hutch-portal=")
        )
    assert "HttpOnly" in set_cookie
    assert "SameSite=lax" in set_cookie
    assert "Path=/services/portal/" in set_cookie
    key_file = Path(running_hub.folder) / "portal.key"
    assert key_file.stat().st_mode & 0o777 == 0o600
    sealed = set_cookie.split(";")[0].partition("=")[2]
    assert Fernet(key_file.read_bytes()).decrypt(sealed)


def test_a_sign_in_that_nobody_began_is_not_taken(browser):
    browser.cookies.delete("hutch-portal")
    answer = browser.get("oauth_callback?code=stolen&state=foreign", follow_redirects=False)
    assert answer.status_code == 302
    assert "/hub/api/oauth2/authorize" in answer.headers["location"]


def test_signing_out_ends_the_session_here_and_at_the_hub(browser):
    browser.get("sign-out")
    assert 'name="password"' in browser.get("").text


def test_a_form_sent_after_the_session_ended_does_nothing_and_says_so(running_hub, browser, person):
    browser.cookies.delete("hutch-portal")
    answer = launch(browser, person)
    assert (answer.status_code, heading(answer)) == (401, "You are signed out")
    assert running_hub.instance(person, "my-films") is None


def test_somebody_unknown_to_the_user_office_is_told_so_and_whom_to_ask(running_hub):
    with running_hub.signed_in("stranger") as browser:
        page = browser.get("")
    assert (page.status_code, heading(page)) == (403, "The facility does not know you")
    assert "help@facility.example" in page.text


@pytest.mark.parametrize("site", ["cross-site", "same-site", "none"])
def test_a_foreign_page_cannot_act(running_hub, browser, person, site):
    answer = browser.post("new", data={"plan": "quick", "name": "Foreign"}, headers={"Sec-Fetch-Site": site})
    assert answer.status_code == 403
    assert running_hub.instance(person, "foreign") is None


@pytest.mark.parametrize("path", ["", "new", "nonsense", "static/portal/hutch.css"])
def test_every_answer_is_guarded(browser, path):
    headers = browser.get(path).headers
    policy = headers["content-security-policy"]
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"


# --- my instances


def test_somebody_without_instances_is_told_what_one_is(browser):
    page = browser.get("")
    assert "There is nothing here yet." in page.text
    assert "You may have 2 at a time." in page.text


def test_what_somebody_else_owns_is_not_there(running_hub, browser, person):
    with running_hub.session() as session:
        session.add(User(id=f"id-{person}-other", login=f"{person}-other", given_name="O", family_name="O"))
        session.flush()
        theirs = create(
            session,
            owner_id=f"id-{person}-other",
            server_name="theirs",
            display_name="Theirs",
            plan_id="quick",
            experiment_ids=[],
            lifetime=timedelta(days=1),
        )
        mark_deleted(session, theirs, "other", "", timedelta(days=7))
        create(
            session,
            owner_id=f"id-{person}-other",
            server_name="shown",
            display_name="Shown",
            plan_id="quick",
            experiment_ids=[],
            lifetime=timedelta(days=1),
        )
    answers = [
        browser.get("instances/shown"),
        browser.get("instances/shown/delete"),
        browser.submit("instances/shown/delete"),
        browser.submit("instances/shown/stop"),
        browser.submit("instances/shown/start"),
        browser.submit(f"deleted/{theirs.id}/restore"),
    ]
    assert [answer.status_code for answer in answers] == [404] * 6
    assert "Shown" not in browser.get("").text
    assert running_hub.instance(f"{person}-other", "theirs").deleted_at is not None


# --- a new instance


def test_search_and_plans_work_without_scripts_and_keep_what_was_chosen(browser, person):
    page = browser.get("new", params={"experiment": f"{person}-1", "search": "nothing like it", "name": "Mine", "suggested": ""})
    assert "Tuesday night scans" in page.text
    assert "Perovskite films" not in page.text
    assert 'value="Mine"' in page.text
    assert "GPU is only for experiments on ID11." in page.text


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"plan": "gpu"}, "GPU is only for experiments on ID11."),
        ({"plan": "gone"}, "the one chosen before is no longer offered"),
        ({"experiment": "somebody-elses"}, "not a member of experiment somebody-elses"),
        ({"experiment": ""}, "Choose at least one experiment"),
        ({"name": " "}, "Give the instance a name."),
        ({"plan": "refused"}, "This plan is closed for today."),
    ],
    ids=["plan-not-for-them", "plan-gone", "foreign-experiment", "no-experiment", "no-name", "refused-by-the-hub"],
)
def test_a_refusal_is_told_in_the_form_and_nothing_typed_is_lost(running_hub, browser, person, fields, words):
    if fields.get("experiment") == "":
        answer = browser.submit("new", {"plan": "quick", "name": "Kept words", "suggested": "x"})
    else:
        answer = launch(browser, person, **({"name": "Kept words"} | fields))
    assert answer.status_code == 422
    assert words in answer.text
    if "name" not in fields:
        assert 'value="Kept words"' in answer.text
    assert running_hub.instance(person, "kept-words") is None


def test_a_full_quota_is_said_before_anything_is_filled_in(running_hub, browser, person):
    with running_hub.session() as session:
        session.get(User, f"id-{person}").instance_quota = 0
    page = browser.get("new")
    assert "No room for another instance." in page.text
    assert re.search(r'id="launch"\s+disabled', page.text)
    assert launch(browser, person).status_code == 422


def test_a_launch_leads_on_to_the_notebook(running_hub, browser, person):
    page = launch(browser, person, name="Ζεύς & films")
    assert str(page.url) == f"{running_hub.portal}instances/films?open=1"
    page = until(lambda: browser.get("instances/films?open=1"), 'http-equiv="refresh" content="0;')
    notebook = re.search(r'data-go-on="([^"]+)"', page.text)[1]
    assert notebook == f"http://{person}.localhost:{running_hub.port}/user/{person}/films/lab"
    assert browser.get(notebook).text.count("JupyterLab")
    card = browser.get("").text
    assert "Ζεύς &amp; films" in card
    assert "running" in card


def test_a_launch_is_told_stage_by_stage_as_it_happens(running_hub, browser, person):
    launch(browser, person, "held")
    told: list[str] = []
    with browser.stream("GET", "instances/my-films/progress", headers={"Accept": "text/event-stream"}) as stream:
        for line in stream.iter_lines():
            told.append(line)
            if "Booting" in line and not running_hub.release.exists():
                assert "launching" in browser.get("").text
                running_hub.release.touch()
    events = [line.removeprefix("event: ") for line in told if line.startswith("event: ")]
    assert {"stages", "status", "clock", "done"} == set(events)
    assert events[-1] == "done"
    end = "\n".join(told[told.index("event: done") :])
    assert "Open JupyterLab" in end
    assert "data-go-on" in end


def test_a_launch_that_fails_says_why_and_what_can_be_done(running_hub, browser, person):
    launch(browser, person, "fails")
    page = until(lambda: browser.get("instances/my-films"), "The server did not boot.")
    for words in ("Stage: booting.", "Reference", "Try again", "Choose another plan", "Delete", "Kernel panic", "Launch failed"):
        assert words in page.text
    assert "No valid host" not in page.text, "the cloud's own words are for staff"


def test_the_end_of_a_launch_is_told_at_the_time_at_which_it_comes(running_hub, browser, person):
    launch(browser, person, "dies")
    with browser.stream("GET", "instances/my-films/progress", headers={"Accept": "text/event-stream"}) as stream:
        lines = stream.iter_lines()
        next(line for line in lines if "Booting" in line)
        running_hub.release.touch()
        end = "\n".join(lines).partition("event: done")[2]
    assert "Launch failed" in end
    assert "just now" in end
    assert "in a moment" not in end


def test_a_launch_can_be_cancelled_and_started_again(running_hub, browser, person):
    launch(browser, person, "held")
    page = browser.submit("instances/my-films/stop")
    assert "stopped" in until(lambda: browser.get("instances/my-films"), "It has never been ready").text
    assert "Launch cancelled" in page.text
    running_hub.release.touch()
    browser.submit("instances/my-films/start")
    until(lambda: browser.get("instances/my-films"), "Open JupyterLab")


# --- stop, delete, restore


def test_stop_writes_the_intent_with_its_actor_before_the_hub_is_asked(running_hub, browser, person):
    launch_and_stop(browser, person)
    with running_hub.session() as session:
        intents = session.get(Instance, running_hub.instance(person, "my-films").id).intents
        assert [(one.kind, one.actor, one.outcome) for one in intents] == [("launch", person, "done"), ("stop", person, "done")]


def test_a_stop_that_the_cloud_has_not_carried_out_is_not_said_to_be_done_and_can_be_taken_back(running_hub, browser, person):
    launch_and_stop(browser, person)
    with running_hub.session() as session:
        session.get(Instance, running_hub.instance(person, "my-films").id).intents[-1].outcome = None
    page = browser.get("instances/my-films")
    assert "the cloud has not switched it off yet" in page.text and "It is stopped" not in page.text
    browser.submit("instances/my-films/start")
    until(lambda: browser.get("instances/my-films"), "Open JupyterLab")


def test_delete_says_what_is_lost_and_can_be_taken_back(running_hub, browser, person):
    launch(browser, person)
    until(lambda: browser.get("instances/my-films"), "Open JupyterLab")
    question = browser.get("instances/my-films/delete")
    assert heading(question) == "Delete “My films”?"
    assert "Everything on its own disk is lost" in question.text
    assert "<strong>7 days</strong>" in question.text
    page = browser.submit("instances/my-films/delete")
    assert "Deleted, can still be restored" in page.text
    assert browser.get("instances/my-films").status_code == 404
    instance = running_hub.instance(person, "my-films")
    assert instance.purge_at - instance.deleted_at == timedelta(days=7)
    page = browser.submit(f"deleted/{instance.id}/restore")
    assert "Deleted, can still be restored" not in page.text
    browser.submit("instances/my-films/start")
    until(lambda: browser.get("instances/my-films"), "Open JupyterLab")


def test_what_was_purged_is_not_restored(running_hub, browser, person):
    with running_hub.session() as session:
        gone = create(
            session,
            owner_id=f"id-{person}",
            server_name="gone",
            display_name="Gone",
            plan_id="quick",
            experiment_ids=[],
            lifetime=timedelta(days=1),
        )
        mark_deleted(session, gone, person, "", timedelta(0))
        gone.purged_at = datetime.now(UTC)
    answer = browser.submit(f"deleted/{gone.id}/restore")
    assert answer.status_code == 409
    assert "was deleted for good" in answer.text


def test_history_tells_who_did_what(running_hub, browser, person):
    with running_hub.session() as session:
        one = create(
            session,
            owner_id=f"id-{person}",
            server_name="told",
            display_name="Told",
            plan_id="quick",
            experiment_ids=[],
            lifetime=timedelta(days=1),
        )
        conclude(session, intend(session, one.id, "launch", person), "done")
        record_event(session, one.id, "ready", seconds=8.2)
        conclude(session, intend(session, one.id, "stop", "steward", "its time is over"), "done")
    text = browser.get("instances/told").text
    for words in ("Launch asked for", "<td>you</td>", "8.2 s", "<td>steward</td>", "its time is over"):
        assert words in text


# --- the hub's own pages, and when there is no hub


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("home", "on a page of their own"),
        ("nonsense", "There is no such page"),
        ("admin", "Your account may not use this page."),
        ("user/{person}/gone/lab", "There is no such instance"),
        ("spawn-pending/{person}/my-films", "Launching My films"),
    ],
)
def test_the_hubs_own_pages_lead_to_the_portal(running_hub, browser, person, path, words):
    launch(browser, person, "held")
    page = browser.get(running_hub.hub + path.format(person=person))
    assert words in page.text
    assert heading(page)
    assert f'href="{running_hub.portal}' in page.text
    running_hub.release.touch()


async def test_without_the_hub_pages_say_that_what_runs_goes_on(tmp_path, monkeypatch):
    upgrade(open_database(database_url(tmp_path)))
    for name, value in {
        "API_TOKEN": "service",
        "API_URL": "http://127.0.0.1:9/hub/api",
        "CLIENT_ID": "service-portal",
        "SERVICE_PREFIX": "/services/portal/",
        "SERVICE_NAME": "portal",
    }.items():
        monkeypatch.setenv(f"JUPYTERHUB_{name}", value)
    portal = httpx.ASGITransport(create_app(Hutch(state_dir=str(tmp_path), database_url=database_url(tmp_path))))
    sealed = Fernet((tmp_path / "portal.key").read_bytes()).encrypt(b"token").decode()
    async with httpx.AsyncClient(transport=portal, base_url="http://portal") as client:
        page = await client.get("/services/portal/", headers={"Cookie": f"hutch-portal={sealed}"})
    assert (page.status_code, page.headers["retry-after"]) == (503, "10")
    assert "go on running" in page.text
    assert 'http-equiv="refresh" content="10"' in page.text


def test_a_killed_hub_takes_the_portal_with_it_and_a_new_one_starts_it_anew(running_hub, browser, person):
    running_hub.process.send_signal(signal.SIGKILL)
    running_hub.process.wait()
    until(lambda: browser.get(""), "Service Unavailable")
    running_hub.restart()
    assert heading(browser.get("")) == "My instances", "nobody has to sign in again"


# --- notices


def notice(running_hub, person: str, subject: str = "Films was stopped", text: str = "You are <no longer> on the team.") -> None:
    with running_hub.session() as session:
        tell(session, f"id-{person}", subject, text)


def test_a_notice_is_on_every_page_until_it_is_dismissed(running_hub, browser, person):
    notice(running_hub, person)
    for path in ("", "new"):
        assert "Films was stopped" in (page := browser.get(path).text) and "You are &lt;no longer&gt; on the team." in page
    (target,) = re.findall(r'action="[^"]*/(notices/\d+/seen)"', browser.get("new?filter=all").text)
    answer = browser.submit(target, {"path": "new"})
    assert answer.url.path.endswith("/new") and "Films was stopped" not in answer.text
    assert "Films was stopped" not in browser.get("").text


def test_nobody_dismisses_what_was_told_to_somebody_else(running_hub, browser, person):
    notice(running_hub, person)
    (target,) = re.findall(r'action="[^"]*/(notices/\d+/seen)"', browser.get("").text)
    with running_hub.signed_in(running_hub.add_person(f"user{next(NUMBERS)}")) as other:
        assert "Films was stopped" not in other.get("").text
        other.submit(target)
    assert "Films was stopped" in browser.get("").text


@pytest.mark.parametrize("path", ["//evil.example/", "https://evil.example/", "../../evil", "/\\evil.example"])
def test_a_dismissal_leads_back_into_the_portal_only(running_hub, browser, person, path):
    notice(running_hub, person)
    (target,) = re.findall(r'action="[^"]*/(notices/\d+/seen)"', browser.get("").text)
    answer = browser.submit(target, {"path": path}, follow_redirects=False)
    assert answer.headers["Location"].startswith("/services/portal/")


# --- what the steward found of the cloud


def test_every_page_says_that_the_cloud_does_not_answer(browser, running_hub):
    words = "has not answered since"

    def note(reading: dict) -> None:
        with running_hub.session() as session:
            capacity.store(session, "north", reading)

    note({"down_since": "2026-03-10T12:00:00+00:00"})
    try:
        for path in ("", "new", "why"):
            assert f"The cloud (north) {words}" in browser.get(path).text
    finally:
        note({"limits": {}, "flavors": {}, "hosts": None})
    assert words not in browser.get("").text
