"""The page of an instance's desktop, for its owner, its members and support."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import HTMLResponse
from sqlalchemy.orm import Session

from ..access import Decision
from ..database.tables import Instance
from ..desktop.support import CAN_ASK
from .desk import AtDesk, seen_instance
from .pages import instance_path
from .rooms import may_come

routes = APIRouter()
# of text, below what the relay lets through in one message
CLIPBOARD_BYTES = 512 * 1024


@routes.get("/instances/{instance_id}/desktop")
async def desktop(desk: AtDesk, instance_id: str) -> HTMLResponse:
    def asked(session: Session) -> tuple[Instance, Decision]:
        instance = seen_instance(session, desk, instance_id)
        return instance, may_come(session, desk, instance)

    instance, decision = await desk.run(asked)
    mine = instance.owner_id == desk.person.id
    if not decision:
        can_ask, start = decision.rule in CAN_ASK, mine and decision.rule == "stopped" and instance_path(instance.server_name)
        return desk.page("no_desktop.html", status=403, instance=instance, decision=decision, can_ask=can_ask, start=start)
    return desk.page(
        "desktop.html",
        id=instance.id,
        title=instance.display_name,
        back=desk.pages.base + (instance_path(instance.server_name) if mine else ""),
        mine=mine,
        thumbnails=mine and instance.thumbnails,
        clipboard_limit=CLIPBOARD_BYTES,
    )
