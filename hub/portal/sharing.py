"""Sharing an instance: its page, invitations, what others share with the visitor, and the small pictures of desktops."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from ..access import Action, Part, may_act
from ..database.engine import take_turn
from ..database.tables import Instance, InstanceMember, IntentKind, Outcome, Thumbnail, now
from ..instances import in_force
from ..records import find_place
from ..sharing import Sharing, SharingRefused, accept, end_part, shared_with
from . import views
from .desk import AtDesk, Desk, Field, seen_instance
from .hub_api import HubRefusal, Server, SignInNeeded

Result = TypeVar("Result")
Form = dict[str, str]
PICTURE_BYTES = 40 * 1024
CANDIDATES = 10
# how long an invitation may hold, as people choose it
HOURS = {1: "an hour", 24: "a day", 7 * 24: "a week", 30 * 24: "30 days"}
NO_DOMAINS = "JupyterLab is not shared at this site: notebooks share one address with everybody's, so one could reach into another."

routes = APIRouter()


async def _shared(desk: Desk, instance_id: str, work: Callable[[Sharing], Result], *, writes: bool = True) -> Result:
    """What only reads does not wait for those who write, such as a long run of the ETL."""

    def done(session: Session) -> Result:
        if writes:
            take_turn(session)
        return work(Sharing(session, seen_instance(session, desk, instance_id), desk.person, desk.terms))

    return await desk.run(done)


# --- the page


@routes.get("/instances/{instance_id}/sharing")
async def sharing_page(desk: AtDesk, instance_id: str, who: str = "") -> HTMLResponse:
    return await _page(desk, instance_id, who)


async def _page(desk: Desk, instance_id: str, who: str = "", *, status: int = 200, **said: Any) -> HTMLResponse:
    """said: what came of what was just asked for."""

    def shown(sharing: Sharing) -> dict[str, Any]:
        found = sharing.candidates(who.strip())
        return {
            "row": sharing.instance,
            "members": sharing.members(),
            "candidates": found[:CANDIDATES],
            "more": len(found) - CANDIDATES,
            "experiments": list(map(views.visit_of, sharing.instance.experiments)),
            "invitations": sharing.invitations() if desk.hutch.invitations else None,
        }

    context = await _shared(desk, instance_id, shown, writes=False)
    notebooks = await desk.hub.shares(context["row"].server_name)
    context |= {"notebooks": notebooks, "no_notebooks": "" if has_own_domains() else NO_DOMAINS, "hours": HOURS, "who": who}
    return desk.page("sharing.html", status=status, **context | {"refusal": "", "team": None, "link": ""} | said)


def has_own_domains() -> bool:
    """Whether each user's notebooks have a domain of their own, as this service has then too."""
    portal, hub = (urlsplit(os.environ.get(f"JUPYTERHUB_PUBLIC_{name}URL", "")).netloc for name in ("", "HUB_"))
    return bool(portal) and portal != hub


@routes.post("/instances/{instance_id}/sharing")
async def change(desk: AtDesk, instance_id: str) -> Response:
    form = {name: str(value).strip() for name, value in (await desk.request.form()).items()}
    try:
        said = await _done(desk, instance_id, form)
    except (SharingRefused, HubRefusal) as refusal:
        return await _page(desk, instance_id, form.get("who", ""), status=422, refusal=str(refusal))
    desk.log("sharing-changed", instance=instance_id, do=form["do"])
    return await _page(desk, instance_id, **said) if said else desk.go(f"instances/{instance_id}/sharing")


async def _done(desk: Desk, instance_id: str, form: Form) -> dict[str, Any]:
    """Does what the form's `do` says; the answer is what the page then says, if anything."""
    login, role, reason = (form.get(name, "") for name in ("login", "role", "reason"))
    number = int(form["number"]) if form.get("number", "").isdecimal() else 0
    match form.get("do"):
        case "add":
            await _shared(desk, instance_id, lambda one: one.add(login, role, reason))
        case "change":
            if role != Part.DRIVER:
                await _end_notebook(desk, instance_id, login)
            await _shared(desk, instance_id, lambda one: one.change(login, role, reason))
        case "remove":
            await _end_notebook(desk, instance_id, login)
            await _shared(desk, instance_id, lambda one: one.remove(login, reason))
        case "team":
            team = await _shared(desk, instance_id, lambda one: one.add_team(form.get("experiment", ""), role))
            return {"team": team, "of_team": form["experiment"]}
        case "settings":
            freely, pictures = "members_enter_freely" in form, "thumbnails" in form
            for member in [] if freely else await _shared(desk, instance_id, Sharing.members, writes=False):
                # whom JupyterHub lets in, it lets in at any time
                await _end_notebook(desk, instance_id, member.user.login)
            await _shared(desk, instance_id, lambda one: one.set_policy(form.get("when_owner_leaves", ""), freely, pictures))
        case "share-notebook" if not has_own_domains():
            raise SharingRefused(NO_DOMAINS)
        case "share-notebook":
            await desk.hub.share(await _server(desk, instance_id, login), login)
            await _shared(desk, instance_id, lambda one: one.note_notebook(login, True))
        case "end-notebook":
            await _end_notebook(desk, instance_id, login)
        case "invite":
            one_time, lifetime = form.get("for") != "everybody", timedelta(hours=number)
            code = await _shared(desk, instance_id, lambda one: one.invite(desk.hutch, role, one_time, lifetime))
            # shown once, in the answer itself: an address with the code in it would be in logs
            base = os.environ.get("JUPYTERHUB_PUBLIC_URL") or str(desk.request.base_url).rstrip("/") + desk.pages.base
            return {"link": f"{base}join#{code}"}
        case "revoke":
            await _shared(desk, instance_id, lambda one: one.revoke_invitation(number))
        case _:
            raise HTTPException(400)
    return {}


async def _server(desk: Desk, instance_id: str, login: str) -> str:
    """The instance's server, for somebody who takes part."""
    _, name = await _shared(desk, instance_id, lambda one: (one.member(login), one.instance.server_name), writes=False)
    return name


async def _end_notebook(desk: Desk, instance_id: str, login: str) -> None:
    """Before it is written down: should the hub not answer, they are still shown as let in, and it can be asked for again."""
    name = await _server(desk, instance_id, login)
    if login in await desk.hub.shares(name):
        await desk.hub.unshare(name, login)
        await _shared(desk, instance_id, lambda one: one.note_notebook(login, False))


# --- invitations, followed


@routes.get("/join")
async def join_page(request: Request) -> HTMLResponse:
    """For those who are not signed in too: the way there and back would lose the code, so the page's script keeps it first."""
    try:
        request.state.login = (await request.app.state.identity.visitor(request)).login
    except SignInNeeded:
        request.state.login = None
    return request.app.state.pages.render(request, "join.html", refusal="")


@routes.get("/join/sign-in")
async def join_after_sign_in(desk: AtDesk) -> RedirectResponse:
    return desk.go("join")


@routes.post("/join")
async def join(desk: AtDesk, code: Field = "") -> Response:
    def accepted(session: Session) -> str:
        take_turn(session)
        return accept(session, desk.hutch, code, desk.person, desk.terms).id

    try:
        desk.log("invitation-accepted", instance=await desk.run(accepted))
    except SharingRefused as refusal:
        return desk.page("join.html", status=422, refusal=str(refusal))
    return desk.go("#shared")


# --- what others share


@dataclass(frozen=True, slots=True)
class SharedCard:
    """note: why one cannot come in just now, or when one can."""

    card: views.Card
    owner: str
    role: str
    may_watch: bool
    note: str


async def shared_cards(desk: Desk) -> list[SharedCard]:
    """The hub is asked only where there are any, and says only which notebooks are shared too."""
    if not await desk.run(shared_with, desk.person.id):
        return []
    try:
        servers = await desk.hub.shared_with()
    except HubRefusal:
        servers = {}  # signed in before this was asked for

    def shown(session: Session) -> list[SharedCard]:
        return [_shared_card(session, desk, row, role, servers) for row, role in shared_with(session, desk.person.id)]

    return await desk.run(shown)


def _shared_card(session: Session, desk: Desk, row: Instance, role: str, servers: dict[tuple[str, str], Server]) -> SharedCard:
    place, intent = find_place(session, row, desk.person, desk.terms), in_force(row.intents)
    watch = may_act(desk.person, Action.WATCH, place, desk.terms)
    # of others' servers what was written down last is all that is known
    launch = intent.outcome if intent and intent.kind == IntentKind.LAUNCH else Outcome.CANCELLED
    known = Server(row.server_name, ready=launch == Outcome.DONE, pending=None if launch else "spawn")
    card = views.card(row, servers.get((row.owner.login, row.server_name), known), desk.person, desk.at)
    note = f"You come in while {row.owner.name} is there." if watch.rule == "owner-away" else watch.reason
    return SharedCard(card, row.owner.name, role, bool(watch), note)


@routes.post("/instances/{instance_id}/leave")
async def leave(desk: AtDesk, instance_id: str) -> RedirectResponse:
    def ended(session: Session, *, really: bool) -> tuple[str, str]:
        row, mine = seen_instance(session, desk, instance_id), session.get(InstanceMember, (instance_id, desk.person.id))
        if mine is None or mine.ended_at or mine.role == Part.OWNER:
            raise HTTPException(404)
        if really:
            end_part(session, row, mine, desk.person)
        return row.owner.login, row.server_name

    await desk.hub.leave(*await desk.run(ended, really=False))
    await desk.run(ended, really=True)
    desk.log("left", instance=instance_id)
    return desk.go()


# --- small pictures of desktops


def pictures(session: Session, instance_ids: Collection[str]) -> dict[str, str]:
    """Of which of these there is one, and a word that changes with it."""
    taken = select(Thumbnail.instance_id, Thumbnail.taken_at).join(Instance, Instance.id == Thumbnail.instance_id)
    taken = taken.where(Instance.thumbnails, Thumbnail.instance_id.in_(list(instance_ids)))
    return {name: f"{at:%Y%m%d%H%M%S}" for name, at in session.execute(taken)}


def picture_type(picture: bytes) -> str:
    """By its first bytes; empty for what is none."""
    if picture.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    return "image/webp" if picture[:4] == b"RIFF" and picture[8:12] == b"WEBP" else ""


@routes.post("/instances/{instance_id}/thumbnail")
async def keep_picture(desk: AtDesk, instance_id: str) -> Response:
    """The page of the desktop sends what it shows, where the owner wants that."""
    if not await desk.run(lambda session: seen_instance(session, desk, instance_id, Action.CONTROL).thumbnails):
        raise HTTPException(404)
    picture = b""
    async for piece in desk.request.stream():
        picture += piece
        if len(picture) > PICTURE_BYTES:
            raise HTTPException(413)
    if not picture_type(picture):
        raise HTTPException(415)
    await desk.run(lambda session: session.merge(Thumbnail(instance_id=instance_id, taken_at=now(), picture=picture)))
    return Response(status_code=204)


@routes.get("/instances/{instance_id}/thumbnail")
async def show_picture(desk: AtDesk, instance_id: str) -> Response:
    def found(session: Session) -> bytes:
        row = session.get(Thumbnail, instance_id) if seen_instance(session, desk, instance_id, Action.WATCH).thumbnails else None
        if row is None:
            raise HTTPException(404)
        return row.picture

    picture = await desk.run(found)
    return Response(picture, media_type=picture_type(picture))
