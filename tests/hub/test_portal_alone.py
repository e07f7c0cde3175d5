"""The portal inside the test's own process, with a hub that the test plays: what a hub that runs would hide."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta

import httpx
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography.fernet import Fernet
from databases import database_url, upgrade
from running_hub import PATIENCE_SECONDS
from sqlalchemy import Engine, event
from sqlalchemy.orm import Session

from hub.configuration import Hutch
from hub.database.engine import open_database, sessions
from hub.database.tables import Experiment, ExperimentMember, Instance, Instrument, Plan, Proposal, User
from hub.instances import conclude, create, intend, is_meant_to_run, mark_deleted, record_event
from hub.portal import launches
from hub.portal.app import create_app
from hub.portal.identity import Identity

BASE = "/services/portal/"
CALLBACK = f"{BASE}oauth_callback"
OURS = {"Sec-Fetch-Site": "same-origin"}


@pytest.fixture
async def played_hub(monkeypatch) -> AsyncIterator[TestServer]:
    """Knows Ann, of whom nothing runs, and cannot stop anything."""

    async def who(_request: web.Request) -> web.Response:
        return web.json_response({"name": "ann", "kind": "user", "groups": [], "scopes": ["access:services!service=portal"]})

    async def ann(_request: web.Request) -> web.Response:
        return web.json_response({"name": "ann", "servers": {}})

    async def cannot(_request: web.Request) -> web.Response:
        return web.json_response({"message": "The hub is not well."}, status=500)

    async def busy(_request: web.Request) -> web.Response:
        return web.json_response({"message": "ann:films is pending check"}, status=400)

    app = web.Application()
    app.router.add_get("/hub/api/user", who)
    app.router.add_get("/hub/api/users/ann", ann)
    app.router.add_post("/hub/api/users/ann/servers/films", busy)
    app.router.add_delete("/hub/api/users/ann/servers/films", cannot)
    async with TestServer(app) as server:
        for name, value in {
            "API_TOKEN": "service",
            "API_URL": str(server.make_url("/hub/api")),
            "CLIENT_ID": "service-portal",
            "OAUTH_CALLBACK_URL": CALLBACK,
            "HOST": "https://hub.example",
            "SERVICE_PREFIX": BASE,
            "SERVICE_NAME": "portal",
        }.items():
            monkeypatch.setenv(f"JUPYTERHUB_{name}", value)
        yield server


@dataclass
class Alone:
    """Ann's browser, and the database behind the portal."""

    browser: httpx.AsyncClient
    session: Session

    def instance(self, name: str, *, marked: bool = False) -> Instance:
        instance = create(
            self.session,
            owner_id="1",
            server_name=name,
            display_name=name,
            plan_id="notebook",
            experiment_ids=[],
            lifetime=timedelta(days=1),
        )
        if marked:
            mark_deleted(self.session, instance, "ann", "", timedelta(days=7))
        self.session.commit()
        return instance

    async def submit(self, path: str) -> httpx.Response:
        return await self.browser.post(path, headers=OURS)


@pytest.fixture
async def alone(tmp_path, played_hub) -> AsyncIterator[Alone]:
    engine = open_database(database_url(tmp_path))
    upgrade(engine)
    with sessions(engine)() as session:
        session.add(User(id="1", login="ann", given_name="Ann", family_name="L"))
        session.add(Plan(id="notebook", name="Notebook", image="i", flavor="f", cores=1, memory_mb=1))
        session.commit()
        portal = create_app(Hutch(state_dir=str(tmp_path), database_url=database_url(tmp_path)))
        cookie = {"hutch-portal": Fernet((tmp_path / "portal.key").read_bytes()).encrypt(b"token").decode()}
        app = portal._app
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=httpx.ASGITransport(portal), base_url=f"http://portal{BASE}", cookies=cookie) as browser,
        ):
            yield Alone(browser, session)


# --- cookies


@pytest.mark.parametrize(
    ("public_url", "name", "path", "secure"),
    [
        ("https://portal--service.hub.example/services/portal/", "__Host-hutch-portal", "/", True),
        ("https://hub.example/services/portal/", "hutch-portal", CALLBACK, True),
        ("http://portal--service.hub.example/services/portal/", "hutch-portal", CALLBACK, False),
    ],
    ids=["own-host", "host-shared-with-notebooks", "plain-http"],
)
async def test_cookies_cannot_be_set_by_a_neighbour(played_hub, tmp_path, monkeypatch, public_url, name, path, secure):
    monkeypatch.setenv("JUPYTERHUB_PUBLIC_URL", public_url)
    identity = Identity(tmp_path / "portal.key")
    kept, forgotten = identity.send_to_sign_in(BASE), identity.sign_out("https://hub.example/hub/")
    for answer, begin in (kept, f"{name}-state-"), (forgotten, f"{name}="):
        cookie = answer.headers["set-cookie"]
        assert cookie.startswith(begin)
        assert ("Secure" in cookie, "Domain" in cookie) == (secure, False)
    assert f"Path={path};" in kept.headers["set-cookie"]


async def test_a_cookie_that_a_neighbour_could_have_set_is_not_read(alone, tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTERHUB_PUBLIC_URL", "https://portal--service.hub.example/services/portal/")
    portal = httpx.ASGITransport(create_app(Hutch(state_dir=str(tmp_path), database_url=database_url(tmp_path))))
    sealed = alone.browser.cookies["hutch-portal"]
    async with httpx.AsyncClient(transport=portal, base_url=f"https://portal{BASE}") as browser:
        answers = [
            await browser.get("new", headers={"Cookie": f"{name}={sealed}"}) for name in ("hutch-portal", "__Host-hutch-portal")
        ]
    assert [answer.status_code for answer in answers] == [302, 200]


# --- a hub that goes away


@pytest.mark.parametrize(
    ("method", "path", "refresh"),
    [("GET", "new?search=films", "10"), ("POST", "instances/films/stop", f"10; url={BASE}")],
    ids=["read-again", "never-sent-again"],
)
async def test_what_could_not_be_asked_of_the_hub_is_tried_again_where_that_does_no_harm(alone, played_hub, method, path, refresh):
    await played_hub.close()
    answer = await alone.browser.request(method, path, headers=OURS)
    assert answer.status_code == 503
    assert f'<meta http-equiv="refresh" content="{refresh}">' in answer.text


async def test_a_hub_that_still_looks_for_what_runs_says_so_in_words_for_people(alone):
    alone.instance("films")
    answer = await alone.submit("instances/films/start")
    assert answer.status_code == 409 and "find out whether it runs" in answer.text and "pending" not in answer.text


async def test_a_hub_that_says_what_nobody_expects_ends_the_telling(monkeypatch):
    monkeypatch.setattr(launches, "TICK_SECONDS", 0.01)

    async def events() -> AsyncIterator[dict]:
        yield {"stage": "boot"}
        raise ValueError("this is no JSON")

    told = []
    with pytest.raises(ValueError, match="no JSON"):
        async with asyncio.timeout(PATIENCE_SECONDS):
            async for event in launches._with_ticks(events()):
                told.append(event)
    assert told == [{"stage": "boot"}]


# --- cost


async def test_the_form_takes_few_queries_however_many_experiments_and_plans_there_are(alone):
    instance = alone.instance("films")
    alone.session.add(Instrument(id="ID16", name="ID16"))
    alone.session.add_all(Proposal(id=f"P{number}", title=f"Films {number}") for number in range(300))
    alone.session.flush()
    alone.session.add_all(Experiment(id=f"E{number}", proposal_id=f"P{number}", instrument_id="ID16") for number in range(300))
    alone.session.flush()
    alone.session.add_all(ExperimentMember(experiment_id=f"E{number}", user_id="1") for number in range(300))
    alone.session.add_all(
        Plan(id=f"p{number}", name=f"Plan {number}", image="i", flavor="f", cores=1, memory_mb=1) for number in range(199)
    )
    record_event(alone.session, instance.id, "ready", seconds=8.2)
    alone.session.commit()
    asked = []

    def note(connection, cursor, statement, parameters, context, executemany):
        asked.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        page = await alone.browser.get("new")
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    assert page.text.count('name="experiment"') == 300
    assert page.text.count('name="plan"') == 200
    assert "Ready in about 8 s" in page.text
    assert len(asked) <= 12, asked


# --- the quota


async def test_what_was_deleted_comes_back_only_where_there_is_room(alone):
    deleted = alone.instance("films", marked=True)
    alone.instance("one")
    alone.instance("two")
    answer = await alone.submit(f"deleted/{deleted.id}/restore")
    assert answer.status_code == 409
    assert "You have 2 of at most 2 instances." in answer.text
    alone.session.refresh(deleted)
    assert deleted.deleted_at is not None


async def test_a_deletion_that_the_hub_fails_is_taken_back_as_if_it_was_never_asked_for(alone):
    kept = alone.instance("films")
    conclude(alone.session, intend(alone.session, kept.id, "launch", "ann"), "done")
    ends_at = kept.ends_at
    alone.instance("one")
    alone.instance("two")
    alone.instance("three")
    answer = await alone.submit("instances/films/delete")
    assert (answer.status_code, "The hub is not well." in answer.text) == (409, True)
    alone.session.refresh(kept)
    assert [(intent.kind, intent.outcome) for intent in kept.intents] == [("launch", "done"), ("delete", "failed")]
    assert (kept.deleted_at, kept.purge_at, kept.ends_at) == (None, None, ends_at)
    # so the steward takes it back, if the hub lost sight of it
    assert is_meant_to_run(alone.session, kept.id)
