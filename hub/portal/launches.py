"""An instance's own page: its launch as it happens, what became of it, and its history."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from html import escape
from time import monotonic

from fastapi import APIRouter, HTTPException
from fastapi.responses import Response, StreamingResponse
from sqlalchemy.orm import Session

from ..access import Action
from ..database.tables import now
from ..desktop.support import open_requests
from ..instances import State, expected_seconds
from ..queue import standings
from . import views
from .desk import AtDesk, Desk
from .hub_api import HubUnreachable
from .pages import own_instance

TICK_SECONDS = 1

routes = APIRouter()


@routes.get("/instances/{name}")
async def instance(desk: AtDesk, name: str, open: str = "") -> Response:
    """With ?open=1, as a launch leads here, it goes on to the notebook as soon as there is one.

    The page does that itself: a browser that comes here from a form refuses to be sent on to another host.
    """
    shown = await _shown(desk, name)
    return desk.page("instance.html", **shown, go_on=bool(open and shown["card"].notebook_url), just_ended=False)


@routes.get("/instances/{name}/progress")
async def progress(desk: AtDesk, name: str) -> Response:
    """The launch as server-sent events, each a piece of HTML: stages, status, clock, slow, and at the end done."""
    if desk.request.headers.get("Accept") != "text/event-stream":
        return desk.go(f"instances/{name}")
    shown = await _shown(desk, name)
    return StreamingResponse(_told(desk, name, shown["launch"]), media_type="text/event-stream")


async def _shown(desk: Desk, name: str, launch: views.Launch | None = None) -> dict:
    """What the page shows. A launch that the hub has only just accepted may have no row yet."""
    servers = await desk.hub.servers()
    server = servers.get(name)
    at = now()  # a stream of events goes on long after its request began

    def found(session: Session) -> dict:
        try:
            row = own_instance(session, desk, name, Action.SEE)
        except HTTPException:
            if server is None and launch is None:
                raise
            card = views.unrecorded(name, server, launch)
            return {"card": card, "launch": launch or views.Launch(), "history": [], "support": []}
        return {
            "card": views.card(row, server, desk.person, at, launch, standings(session)),
            "launch": launch or views.launch_under_way(row.intents, at, expected_seconds(session, row.plan_id)),
            "history": views.history(row.events, desk.person),
            "support": open_requests(session, row.id, desk.terms) if row.owner_id == desk.person.id else [],
        }

    return await desk.run(found)


async def _told(desk: Desk, name: str, launch: views.Launch) -> AsyncIterator[str]:
    began = monotonic() - launch.elapsed_seconds
    heard = slow = False
    async for event in _with_ticks(desk.hub.progress(name)):
        if event is not None:
            heard = True
            launch.take(event)
            began = min(began, monotonic() - launch.elapsed_seconds)
            yield _sse("stages", desk.fragment("parts/stages.html", launch=launch))
            yield _sse("status", escape(launch.now))
        elapsed = monotonic() - began
        yield _sse("clock", launch.clock(elapsed))
        if launch.is_slow(elapsed) and not slow:
            slow = True
            yield _sse("slow", desk.fragment("parts/slow.html", launch=launch))
    if not heard:
        # the hub knows of no launch: do not come back at once
        await asyncio.sleep(TICK_SECONDS)
    with suppress(HubUnreachable):
        shown = await _shown(desk, name, launch)
        go_on = shown["card"].state is State.RUNNING
        yield _sse("done", desk.fragment("parts/live.html", **shown, go_on=go_on, just_ended=True))


async def _with_ticks(events: AsyncIterator[dict]) -> AsyncIterator[dict | None]:
    """The events, and None each time that a second passed without one. A hub that goes away ends it."""
    following = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            told, _ = await asyncio.wait({following}, timeout=TICK_SECONDS)
            if not told:
                yield None
            elif event := following.result():
                yield event
                following = asyncio.ensure_future(anext(events, None))
            else:
                return
    except HubUnreachable:
        return
    finally:
        following.cancel()


def _sse(event: str, html: str) -> str:
    lines = "".join(f"data: {line}\n" for line in html.splitlines())
    return f"event: {event}\n{lines}\n"
