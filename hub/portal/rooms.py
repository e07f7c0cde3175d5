"""The way in to a desktop: its page, and a ticket for who may come; for support, to ask the owner, and the owner's answer.

Whether the owner is there, only the relay knows: a ticket is for who may come when they are.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Literal
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from sqlalchemy.orm import Session

from ..access import Action, Decision
from ..database.tables import Instance, SupportAccess
from ..desktop import relay_of, support, tickets
from ..desktop.relay import SUBPROTOCOL
from ..instances import STOPPED_NOW, State, in_force, state_of
from ..records import find_place
from ..services import RELAYS_VARIABLE
from .desk import AtDesk, Desk, Field, seen_instance
from .pages import instance_path

routes = APIRouter()
# of text, below what the relay lets through in one message
CLIPBOARD_BYTES = 512 * 1024


@routes.get("/instances/{instance_id}/desktop")
async def desktop(desk: AtDesk, instance_id: str) -> HTMLResponse:
    def asked(session: Session) -> tuple[Instance, Decision]:
        instance = seen_instance(session, desk, instance_id)
        return instance, may_come(session, desk, instance)

    instance, decision = await desk.run(asked)
    mine, path = instance.owner_id == desk.person.id, instance_path(instance.server_name)
    if not decision:
        can_ask, start = decision.rule in support.CAN_ASK, mine and decision.rule == "stopped" and path
        return desk.page("no_desktop.html", status=403, instance=instance, decision=decision, can_ask=can_ask, start=start)
    return desk.page(
        "desktop.html",
        id=instance.id,
        title=instance.display_name,
        back=desk.pages.base + (path if mine else ""),
        mine=mine,
        thumbnails=mine and instance.thumbnails,
        clipboard_limit=CLIPBOARD_BYTES,
    )


@routes.post("/instances/{instance_id}/desktop/ticket")
async def ticket(desk: AtDesk, instance_id: str) -> JSONResponse:
    decision, issued = await desk.run(_issue, desk, instance_id)
    if not decision:
        desk.log("desktop-refused", instance=instance_id, rule=decision.rule)
        told = {"rule": decision.rule, "text": decision.reason, "ask_support": decision.rule in support.CAN_ASK}
        return JSONResponse(told, status_code=403)
    return JSONResponse({"url": _room_url(desk.request, instance_id), "ticket": issued, "protocol": SUBPROTOCOL})


def _issue(session: Session, desk: Desk, instance_id: str) -> tuple[Decision, str]:
    instance = seen_instance(session, desk, instance_id)
    decision = may_come(session, desk, instance)
    return decision, tickets.issue(session, instance.id, desk.person.id, desk.at) if decision else ""


def may_come(session: Session, desk: Desk, instance: Instance) -> Decision:
    if not _relays():
        return Decision(False, "no-desktops", "There are no desktops here: they are switched off.")
    decision = support.may_come(desk.person, find_place(session, instance, desk.person, desk.terms), Action.WATCH, desk.terms)
    if decision and state_of(in_force(instance.intents)) is State.STOPPED:
        return Decision(False, "stopped", STOPPED_NOW)
    return decision


def _relays() -> list[str]:
    return os.environ.get(RELAYS_VARIABLE, "").split()


def _room_url(request: Request, instance_id: str) -> str:
    relays = _relays()
    parts = urlsplit(f"{relays[relay_of(instance_id, len(relays))]}rooms/{instance_id}")
    secure = (parts.scheme or request.url.scheme) == "https"
    return parts._replace(scheme="wss" if secure else "ws", netloc=parts.netloc or request.headers["Host"]).geturl()


def relay_origins() -> str:
    """What pages may connect to besides their own host, as a Content-Security-Policy names it."""
    hosts = [urlsplit(address) for address in _relays()]
    return " ".join(f"{'wss' if one.scheme == 'https' else 'ws'}://{one.netloc}" for one in hosts if one.netloc)


# --- support


@routes.post("/instances/{instance_id}/support")
async def ask(desk: AtDesk, instance_id: str, reason: Field = "") -> Response:
    def asked(session: Session) -> Instance:
        instance = seen_instance(session, desk, instance_id)
        support.ask(session, instance, desk.person, reason, desk.terms)
        return instance

    instance = await desk.run(asked)
    desk.log("support-asked", instance=instance_id)
    return desk.page("support_asked.html", instance=instance)


@routes.post("/support/{request_id}/{answer}")
async def answer(
    desk: AtDesk, request_id: int, answer: Literal["grant", "refuse", "end"], right: Field = "", minutes: Field = ""
) -> Response:
    """right, minutes: of what is granted."""
    count = int(minutes) if minutes.isdecimal() and len(minutes) < 6 else 0
    grant = partial(support.grant, right=right, minutes=count)
    works: dict[str, Callable[..., SupportAccess]] = {"grant": grant, "refuse": support.refuse, "end": support.end}

    def answered(session: Session) -> tuple[str, str]:
        row = works[answer](session, request_id=request_id, owner=desk.person, terms=desk.terms)
        return row.instance_id, row.instance.server_name

    instance_id, name = await desk.run(answered)
    desk.log("support-answered", instance=instance_id, request=request_id)
    return desk.go(instance_path(name))
