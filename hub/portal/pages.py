"""My instances, a new instance, and what is done with one: start, stop, delete, restore."""

from __future__ import annotations

from contextlib import suppress
from urllib.parse import quote

from fastapi import APIRouter, HTTPException
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from sqlalchemy.orm import Session

from ..access import Action, PlanOffer, lifetime, may_add_cores, may_launch, may_own_another, may_see
from ..database.engine import take_turn
from ..database.tables import Instance, IntentKind, Outcome
from ..errors import HutchError
from ..instances import conclude_open, intend, launch_seconds, mark_deleted, restore, unmark
from ..notices import mark_seen
from ..queue import outlooks, standings
from ..records import (
    experiments_named,
    experiments_of,
    find_instance,
    find_plan,
    find_usage,
    instances_owned,
    plans_offered,
    server_names,
)
from . import new_instance, views
from .desk import AtDesk, Desk, Field, permitted
from .hub_api import HubRefusal
from .sharing import pictures, shared_cards

routes = APIRouter()


def own_instance(session: Session, desk: Desk, name: str, action: Action) -> Instance:
    """The visitor's instance of that name."""
    return permitted(session, desk, find_instance(session, desk.visitor.login, name), action)


def instance_path(name: str) -> str:
    return f"instances/{quote(name, safe='')}"


@routes.get("/")
async def my_instances(desk: AtDesk) -> HTMLResponse:
    servers = await desk.hub.servers()

    others = await shared_cards(desk)

    def shown(session: Session) -> tuple[list[views.Card], list[Instance], dict[str, str]]:
        rows = instances_owned(session, desk.person.id)
        cards = views.cards(rows, servers, desk.person, desk.at, standings(session))
        watched = [one.id for one in cards] + [one.card.id for one in others if one.may_watch]
        return cards, views.restorable(rows, desk.at), pictures(session, watched)

    cards, deleted, taken = await desk.run(shown)
    return desk.page(
        "instances.html",
        cards=cards,
        deleted=deleted,
        shared=others,
        pictures=taken,
        summary=views.summary(cards),
        changing=any(card.changing for card in cards),
        person=desk.person,
    )


# --- a new instance


@routes.get("/new")
async def new(desk: AtDesk) -> HTMLResponse:
    return await _form(desk, new_instance.read(desk.request.query_params))


@routes.post("/new")
async def launch(desk: AtDesk) -> Response:
    wish = new_instance.read(await desk.request.form())
    servers = await desk.hub.servers()
    plan, refusal, name = await desk.run(_check, desk, wish, servers)
    if refusal or plan is None:
        return await _form(desk, wish, refusal)
    options = {"plan": plan.id, "experiments": list(wish.experiments)}
    try:
        await desk.hub.start(name, wish.name, options)
    except HubRefusal as error:
        # a launch that began and failed at once has a page, which says more
        if error.status < 500 or not await desk.run(find_instance, desk.visitor.login, name):
            desk.log("launch-refused", server=name, status=error.status, reason=str(error))
            return await _form(desk, wish, str(error))
    desk.log("launch-asked", server=name, plan=plan.id, experiments=list(wish.experiments))
    return desk.go(f"{instance_path(name)}?open=1")


def _check(session: Session, desk: Desk, wish: new_instance.Wish, servers) -> tuple[PlanOffer | None, str, str]:
    """The plan; the refusal, empty when there is none; the name that the server gets."""
    plan = find_plan(session, wish.plan)
    if words := new_instance.problem(wish, plan):
        return plan, words, ""
    assert plan is not None
    person, found = desk.person, {visit.id: visit for visit in experiments_named(session, wish.experiments, desk.person.id)}
    if unknown := [name for name in wish.experiments if name not in found]:
        return plan, f"You are not a member of experiment {', '.join(unknown)} in the user office's records.", ""
    chosen = [found[name] for name in wish.experiments]
    decision = may_launch(person, plan, chosen, find_usage(session, person.id), desk.terms)
    if not chosen and not wish.none and decision:
        return plan, "Choose at least one experiment, or tick “none of them”.", ""
    taken = server_names(session, person.id) | set(servers)
    return plan, decision.reason, new_instance.free_server_name(wish.name, taken)


async def _form(desk: Desk, wish: new_instance.Wish, refusal: str = "") -> HTMLResponse:
    def offered(session: Session) -> new_instance.Offer:
        visits, plans = experiments_of(session, desk.person.id, wish.experiments), plans_offered(session)
        visits = [visit for visit in visits if may_see(desk.person, visit, desk.terms)]
        return new_instance.offer(
            new_instance.prefilled(wish, desk.person, visits, desk.terms),
            desk.person,
            visits,
            plans,
            usage=find_usage(session, desk.person.id),
            seconds=launch_seconds(session),
            terms=desk.terms,
            rooms=outlooks(session, plans),
        )

    return desk.page("new.html", status=422 if refusal else 200, offer=await desk.run(offered), refusal=refusal)


@routes.post("/notices/{notice_id}/seen")
async def dismiss(desk: AtDesk, notice_id: int, path: Field = "") -> RedirectResponse:
    """Back to the page that showed it."""
    await desk.run(mark_seen, notice_id, desk.person.id, desk.at)
    return desk.go(quote(path.lstrip("/")))


# --- start, stop, delete, restore


@routes.post("/instances/{name}/start")
async def start(desk: AtDesk, name: str) -> RedirectResponse:
    instance = await desk.run(own_instance, desk, name, Action.START)
    try:
        await desk.hub.start(name, instance.display_name)
    except HubRefusal as error:
        if error.status < 500:
            raise
    desk.log("start-asked", server=name, instance=instance.id)
    return desk.go(f"{instance_path(name)}?open=1")


@routes.post("/instances/{name}/stop")
async def stop(desk: AtDesk, name: str) -> RedirectResponse:
    """Also cancels a launch."""

    def wanted(session: Session) -> str:
        return intend(session, own_instance(session, desk, name, Action.STOP).id, IntentKind.STOP, desk.visitor.login).instance_id

    instance_id = await desk.run(wanted)
    try:
        await desk.hub.stop(name)
    except HutchError as error:
        # nothing came of it, so nobody may act on it later
        await desk.run(conclude_open, instance_id, IntentKind.STOP, Outcome.FAILED, str(error))
        raise
    desk.log("stop-asked", server=name, instance=instance_id)
    return desk.go(instance_path(name))


@routes.get("/instances/{name}/delete")
async def ask_delete(desk: AtDesk, name: str) -> HTMLResponse:
    servers = await desk.hub.servers()

    def shown(session: Session) -> views.Card:
        return views.card(own_instance(session, desk, name, Action.DELETE), servers.get(name), desk.person, desk.at)

    return desk.page("delete.html", card=await desk.run(shown), grace=desk.hutch.delete_grace)


@routes.post("/instances/{name}/delete")
async def delete(desk: AtDesk, name: str) -> RedirectResponse:
    def marked(session: Session) -> Instance:
        instance = own_instance(session, desk, name, Action.DELETE)
        mark_deleted(session, instance, desk.visitor.login, "", desk.hutch.delete_grace)
        return instance

    instance = await desk.run(marked)
    try:
        await desk.hub.stop(name, remove=True)
    except HutchError as error:
        await desk.run(_take_back, instance.id, str(error))
        raise
    desk.log("delete-asked", server=name, instance=instance.id)
    return desk.go()


@routes.post("/deleted/{instance_id}/restore")
async def restore_deleted(desk: AtDesk, instance_id: str) -> Response:
    try:
        await desk.run(_restore, desk, instance_id)
    except ValueError as error:
        return desk.page("error.html", status=409, kind="hub-refused", phrase="Conflict", message=str(error))
    desk.log("restored", instance=instance_id)
    return desk.go()


def _restore(session: Session, desk: Desk, instance_id: str) -> None:
    """Raises ValueError, with words for people, when it is too late or there is no room."""
    take_turn(session)  # a launch at the same time must not take the same room
    instance = session.get(Instance, instance_id)
    if instance is None or instance.deleted_at is None:
        raise HTTPException(404)
    permitted(session, desk, instance, Action.DELETE)
    plan = find_plan(session, instance.plan_id)
    if instance.owner_id == desk.person.id:
        usage = find_usage(session, desk.person.id)
        room = may_own_another(desk.person, usage)
        if room and plan:
            room = may_add_cores(desk.person, usage, plan)
        if not room:
            raise ValueError(room.reason)
    # another one, as its plan gives it now
    restore(session, instance, desk.visitor.login, lifetime(desk.person, plan, desk.terms) if plan else desk.terms.lifetime)


def _take_back(session: Session, instance_id: str, why: str) -> None:
    """A deletion of which nothing came: what was running is meant to run on."""
    with suppress(ValueError):  # without a grace it is too late at once, and the steward goes on with it
        unmark(session, session.get_one(Instance, instance_id))
        conclude_open(session, instance_id, IntentKind.DELETE, Outcome.FAILED, why)
