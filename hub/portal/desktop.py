"""The page of an instance's desktop, for its owner, its members and support; and the keyboard layouts that it offers."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class Layout:
    """code: as X's setxkbmap takes it. keys: what the keys in which layouts differ (browser/keyboard.js) write without Shift;
    as a browser gives them, dead keys by a sign like theirs. languages: of browsers whose users mostly have it."""

    code: str
    name: str
    keys: str
    languages: str


LAYOUTS = (
    Layout("us", "English (US)", "`-=[];'\\qy1/", "en en-US"),
    Layout("gb", "English (UK)", "`-=[];'#qy1/", "en-GB en-IE"),
    Layout("us(intl)", "English (US, dead keys)", "`-=[];'\\qy1/", "nl"),
    Layout("be", "Belgian", "²)-^$mùµay&=", "fr-BE nl-BE"),
    Layout("cz", "Czech", ";='ú)ů§¨qz+-", "cs"),
    Layout("dk", "Danish", "½+'å¨æø'qy1-", "da"),
    Layout("fi", "Finnish", "§+'å¨öä'qy1-", "fi"),
    Layout("fr", "French", "²)=^$mù*ay&!", "fr"),
    Layout("de", "German", "^ß'ü+öä#qz1-", "de de-AT"),
    Layout("hu", "Hungarian", "0üóőúéáűqz1-", "hu"),
    Layout("it", "Italian", "\\'ìè+òàùqy1-", "it"),
    Layout("no", "Norwegian", "|+\\å¨øæ'qy1-", "no nb nn"),
    Layout("pl", "Polish", "`-=[];'\\qy1/", "pl"),
    Layout("pt", "Portuguese", "\\'«+'çº~qy1-", "pt"),
    Layout("es", "Spanish", "º'¡`+ñ'çqy1-", "es ca gl"),
    Layout("se", "Swedish", "§+'å¨öä'qy1-", "sv"),
    Layout("ch", "Swiss (German)", "§'^ü¨öä$qz1-", "de-CH"),
    Layout("ch(fr)", "Swiss (French)", "§'^è¨éà$qz1-", "fr-CH it-CH"),
)


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
        layouts=LAYOUTS,
        clipboard_limit=CLIPBOARD_BYTES,
    )
