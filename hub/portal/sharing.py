"""Sharing an instance: its page, invitations, what others share with the visitor, and the small pictures of desktops."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from sqlalchemy import select
from sqlalchemy.orm import Session

from ..access import Action, Decision, may_act
from ..database.engine import take_turn
from ..database.tables import Instance, InstanceMember, IntentKind, MemberRole, Outcome, Thumbnail, now
from ..instances import State, in_force, state_of
from ..records import find_place
from ..sharing import Sharing, SharingRefused, accept, end_part, shared_with
from . import views
from .desk import AtDesk, Desk
from .hub_api import HubRefusal, SignInNeeded

Result = TypeVar("Result")
PICTURE_BYTES = 40 * 1024
# how long an invitation may hold, as people choose it
HOURS = {1: "an hour", 24: "a day", 7 * 24: "a week", 30 * 24: "30 days"}
NO_DOMAINS = "JupyterLab is not shared at this site: notebooks share one address with everybody's, so one could reach into another."

routes = APIRouter()


def seen(session: Session, desk: Desk, instance_id: str, action: Action = Action.SEE) -> Instance:
    """An instance by its id. What is not the visitor's to see is not there."""
    row = session.get(Instance, instance_id)
    if row is None or row.deleted_at or not _may(session, desk, action, row):
        raise HTTPException(404)
    return row


def _may(session: Session, desk: Desk, action: Action, row: Instance) -> Decision:
    return may_act(desk.person, action, find_place(session, row, desk.person, desk.terms), desk.terms)


async def _shared(desk: Desk, instance_id: str, work: Callable[[Sharing], Result]) -> Result:
    """Reads, decides and writes as one step."""

    def done(session: Session) -> Result:
        take_turn(session)
        return work(Sharing(session, seen(session, desk, instance_id), desk.person, desk.terms))

    return await desk.run(done)


# --- the page


@dataclass(frozen=True, slots=True)
class MemberLine:
    """notebook: JupyterLab is shared with them."""

    login: str
    name: str
    role: str
    notebook: bool


@routes.get("/instances/{instance_id}/sharing")
async def sharing_page(desk: AtDesk, instance_id: str, who: str = "") -> HTMLResponse:
    return await _page(desk, instance_id, who)


async def _page(desk: Desk, instance_id: str, who: str = "", *, status: int = 200, **said: Any) -> HTMLResponse:
    """said: what came of what was just asked for."""
    name = await _shared(desk, instance_id, lambda sharing: sharing.instance.server_name)
    notebooks = await desk.hub.shares(desk.visitor.login, desk.visitor.token, name)

    def shown(sharing: Sharing) -> dict[str, Any]:
        row, members = sharing.instance, sharing.members()
        candidates, more = sharing.candidates(who)
        return {
            "title": row.display_name,
            "home": f"instances/{row.server_name}",
            "here": f"instances/{row.id}/sharing",
            "lines": [MemberLine(one.user.login, one.user.name, one.role, one.user.login in notebooks) for one in members],
            "candidates": candidates,
            "more": more,
            "experiments": [views.experiment_line(visit, desk.at) for visit in row.experiments],
            "policy": row.when_owner_leaves,
            "enter_freely": row.members_enter_freely,
            "thumbnails": row.thumbnails,
            "invitations": sharing.invitations() if desk.hutch.invitations else None,
        }

    no_notebooks = "" if has_own_domains() else NO_DOMAINS
    context: dict[str, Any] = {"refusal": "", "team": None, "link": "", "no_notebooks": no_notebooks, "hours": HOURS}
    return desk.page("sharing.html", status=status, **context | await _shared(desk, instance_id, shown) | {"who": who} | said)


def has_own_domains() -> bool:
    """Whether each user's notebooks have a domain of their own, as this service has then too."""
    portal, hub = (urlsplit(os.environ.get(f"JUPYTERHUB_PUBLIC_{name}URL", "")).netloc for name in ("", "HUB_"))
    return bool(portal) and portal != hub


@routes.post("/instances/{instance_id}/sharing")
async def change(desk: AtDesk, instance_id: str) -> Response:
    """One of VERBS, with what it needs in the form."""
    form = {name: str(value).strip() for name, value in (await desk.request.form()).items()}
    verb = VERBS.get(form.get("do", ""))
    if verb is None:
        raise HTTPException(400)
    try:
        said = await verb(desk, instance_id, form)
    except (SharingRefused, HubRefusal) as refusal:
        return await _page(desk, instance_id, form.get("who", ""), status=422, refusal=str(refusal))
    desk.log("sharing-changed", instance=instance_id, do=form["do"])
    return await _page(desk, instance_id, **said) if said else desk.go(f"instances/{instance_id}/sharing")


Said = dict[str, Any] | None


async def _add(desk: Desk, instance_id: str, form: dict[str, str]) -> Said:
    await _shared(desk, instance_id, lambda one: one.add(form.get("login", ""), form.get("role", ""), form.get("reason", "")))
    return None


async def _change(desk: Desk, instance_id: str, form: dict[str, str]) -> Said:
    login, role = form.get("login", ""), form.get("role", "")
    if role != MemberRole.DRIVER:
        await _unshare(desk, instance_id, login)
    await _shared(desk, instance_id, lambda one: one.change(login, role, form.get("reason", "")))
    return None


async def _remove(desk: Desk, instance_id: str, form: dict[str, str]) -> Said:
    login = form.get("login", "")
    await _unshare(desk, instance_id, login)
    await _shared(desk, instance_id, lambda one: one.remove(login, form.get("reason", "")))
    return None


async def _unshare(desk: Desk, instance_id: str, login: str) -> None:
    """Before it is written down: should the hub not answer, they are still shown as let in, and it can be asked for again."""
    name = await _shared(desk, instance_id, lambda one: one.server_of(login))
    await desk.hub.unshare(desk.visitor.login, desk.visitor.token, name, login)


async def _team(desk: Desk, instance_id: str, form: dict[str, str]) -> Said:
    experiment, role = form.get("experiment", ""), form.get("role", MemberRole.VIEWER)
    return {"team": await _shared(desk, instance_id, lambda one: one.add_team(experiment, role)), "of_team": experiment}


async def _settings(desk: Desk, instance_id: str, form: dict[str, str]) -> Said:
    freely, thumbnails = "members_enter_freely" in form, "thumbnails" in form
    if not freely:
        # who is let in to the notebook comes and goes as they like
        name, members = await _shared(desk, instance_id, lambda one: (one.instance.server_name, one.members()))
        notebooks = await desk.hub.shares(desk.visitor.login, desk.visitor.token, name)
        for member in members:
            if member.user.login in notebooks:
                await _end_notebook(desk, instance_id, {"login": member.user.login})
    await _shared(desk, instance_id, lambda one: one.set_policy(form.get("when_owner_leaves", ""), freely, thumbnails))
    return None


async def _share_notebook(desk: Desk, instance_id: str, form: dict[str, str]) -> Said:
    if not has_own_domains():
        raise SharingRefused(NO_DOMAINS)
    login = form.get("login", "")
    name = await _shared(desk, instance_id, lambda one: one.server_of(login))
    await desk.hub.share(desk.visitor.login, desk.visitor.token, name, login)
    await _shared(desk, instance_id, lambda one: one.note_notebook(login, True))
    return None


async def _end_notebook(desk: Desk, instance_id: str, form: dict[str, str]) -> Said:
    login = form.get("login", "")
    await _unshare(desk, instance_id, login)
    await _shared(desk, instance_id, lambda one: one.note_notebook(login, False))
    return None


async def _invite(desk: Desk, instance_id: str, form: dict[str, str]) -> Said:
    """Shown once, in the answer itself: an address with the code in it would be in logs."""
    hours = int(form["hours"]) if form.get("hours", "").isdecimal() else 0
    role, one_time, lifetime = form.get("role", ""), form.get("for") != "everybody", timedelta(hours=hours)
    code = await _shared(desk, instance_id, lambda one: one.invite(desk.hutch, role, one_time, lifetime))
    return {"link": f"{_public_base(desk)}join#{code}"}


def _public_base(desk: Desk) -> str:
    """A path alone would be no link that one can send."""
    return os.environ.get("JUPYTERHUB_PUBLIC_URL") or str(desk.request.base_url).rstrip("/") + desk.pages.base


async def _revoke(desk: Desk, instance_id: str, form: dict[str, str]) -> Said:
    number = int(form["number"]) if form.get("number", "").isdecimal() else 0
    await _shared(desk, instance_id, lambda one: one.revoke_invitation(number))
    return None


VERBS: dict[str, Callable[[Desk, str, dict[str, str]], Awaitable[Said]]] = {
    "add": _add,
    "change": _change,
    "remove": _remove,
    "team": _team,
    "settings": _settings,
    "share-notebook": _share_notebook,
    "end-notebook": _end_notebook,
    "invite": _invite,
    "revoke": _revoke,
}


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
async def join(desk: AtDesk) -> Response:
    code = str((await desk.request.form()).get("code", ""))

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

    id: str
    title: str
    server: tuple[str, str]
    state: State
    owner: str
    role: str
    experiments: tuple[views.ExperimentLine, ...]
    may_watch: bool
    note: str = ""
    notebook_url: str = ""

    @property
    def look(self) -> views.Look:
        return views.LOOKS[self.state]


def shared_cards(session: Session, desk: Desk) -> list[SharedCard]:
    return [_shared_card(session, desk, row, role) for row, role in shared_with(session, desk.person)]


def _shared_card(session: Session, desk: Desk, row: Instance, role: str) -> SharedCard:
    intent = in_force(row.intents)
    # the hub says nothing of others' servers: what was written down last is all that is known
    runs = intent is not None and intent.kind == IntentKind.LAUNCH and intent.outcome == Outcome.DONE
    starts = intent is not None and intent.kind == IntentKind.LAUNCH and intent.outcome is None
    watch = _may(session, desk, Action.WATCH, row)
    return SharedCard(
        id=row.id,
        title=row.display_name,
        server=(row.owner.login, row.server_name),
        state=state_of(intent, ready=runs, pending="spawn" if starts else None),
        owner=row.owner.name,
        role=role,
        experiments=tuple(views.experiment_line(visit, desk.at) for visit in row.experiments),
        may_watch=bool(watch),
        note=f"You come in while {row.owner.name} is there." if watch.rule == "owner-away" else watch.reason,
    )


async def with_notebooks(desk: Desk, cards: Sequence[SharedCard]) -> list[SharedCard]:
    """Those whose notebook is shared too get its address; the hub is asked only where there are any."""
    if not cards:
        return []
    try:
        servers = await desk.hub.shared_with(desk.visitor.login, desk.visitor.token)
    except HubRefusal:
        servers = {}  # signed in before this was asked for
    urls = {name: f"{server.url}lab" for name, server in servers.items() if server.ready}
    return [replace(card, notebook_url=urls.get(card.server, "")) for card in cards]


@routes.post("/instances/{instance_id}/leave")
async def leave(desk: AtDesk, instance_id: str) -> RedirectResponse:
    def member(session: Session) -> tuple[InstanceMember, Instance]:
        row, mine = seen(session, desk, instance_id), session.get(InstanceMember, (instance_id, desk.person.id))
        if mine is None or mine.ended_at or row.owner_id == desk.person.id:
            raise HTTPException(404)
        return mine, row

    def ended(session: Session) -> None:
        take_turn(session)
        mine, row = member(session)
        end_part(session, row, mine, desk.person)

    owner, name = await desk.run(lambda session: (member(session)[1].owner.login, member(session)[1].server_name))
    await desk.hub.leave(desk.visitor.login, desk.visitor.token, owner, name)
    await desk.run(ended)
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

    def wanted(session: Session) -> bool:
        return seen(session, desk, instance_id, Action.CONTROL).thumbnails

    if not await desk.run(wanted):
        raise HTTPException(404)
    picture = b""
    async for piece in desk.request.stream():
        picture += piece
        if len(picture) > PICTURE_BYTES:
            raise HTTPException(413)
    if not picture_type(picture):
        raise HTTPException(415)
    await desk.run(lambda session: session.merge(Thumbnail(instance_id=instance_id, taken_at=now(), picture=picture)) and None)
    return Response(status_code=204)


@routes.get("/instances/{instance_id}/thumbnail")
async def show_picture(desk: AtDesk, instance_id: str) -> Response:
    def found(session: Session) -> bytes:
        row = session.get(Thumbnail, instance_id) if seen(session, desk, instance_id, Action.WATCH).thumbnails else None
        if row is None:
            raise HTTPException(404)
        return row.picture

    picture = await desk.run(found)
    return Response(picture, media_type=picture_type(picture))
