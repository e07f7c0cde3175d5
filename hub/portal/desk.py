"""What a route has before it: who asks, the facility's record of them, the database, and the hub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Concatenate, ParamSpec, TypeVar

import structlog
from fastapi import Depends, Form, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from sqlalchemy.orm import Session, sessionmaker
from starlette.concurrency import run_in_threadpool

from .. import capacity
from ..access import Action, Person, Task, Terms, may_act, may_run
from ..configuration import Hutch
from ..database.tables import Instance, Notice
from ..errors import HutchError
from ..notices import unseen
from ..records import find_person, find_place
from .hub_api import HubApi
from .identity import SignedIn, Visitor
from .rendering import Pages

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

log = structlog.get_logger("portal")


class UnknownPerson(HutchError):
    """Signed in, but the facility's records do not know them."""


@dataclass(frozen=True)
class Desk:
    request: Request
    hutch: Hutch
    pages: Pages
    visitor: Visitor
    person: Person
    terms: Terms
    notices: list[Notice]
    clouds_down: dict[str, datetime]

    @property
    def at(self) -> datetime:
        return self.terms.at

    @property
    def hub(self) -> HubApi:
        state = self.request.app.state
        return HubApi(state.hub, state.public_host, self.visitor.login, self.visitor.token)

    async def run(
        self, work: Callable[Concatenate[Session, Arguments], Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Do work in one transaction of the database, in a thread."""
        return await _in_session(self.request, work, *args, **kwargs)

    def page(self, template: str, *, status: int = 200, **context: Any) -> HTMLResponse:
        staff = bool(may_run(self.person, Task.FACILITY_DATA))
        context |= {"notices": self.notices, "clouds_down": self.clouds_down, "staff": staff}
        return self.pages.render(self.request, template, status=status, **context)

    def fragment(self, template: str, **context: Any) -> str:
        return self.pages.fragment(self.request, template, **context)

    def go(self, path: str = "") -> RedirectResponse:
        """To another page of the portal, after something was done."""
        return RedirectResponse(self.pages.base + path, status_code=303)

    def log(self, event: str, **fields: Any) -> None:
        log.info(event, login=self.visitor.login, **fields)


def seen_instance(session: Session, desk: Desk, instance_id: str, action: Action = Action.SEE) -> Instance:
    """An instance by its id. What is not the visitor's to see is not there."""
    instance = session.get(Instance, instance_id)
    if instance is None or instance.deleted_at is not None:
        raise HTTPException(404)
    return permitted(session, desk, instance, action)


def permitted(session: Session, desk: Desk, instance: Instance | None, action: Action) -> Instance:
    """The instance, if that may be done with it. What is not theirs is not there: a page must not reveal that it exists."""
    if instance is None or not may_act(desk.person, action, find_place(session, instance, desk.person, desk.terms), desk.terms):
        raise HTTPException(404)
    return instance


async def _desk(request: Request, visitor: SignedIn) -> Desk:
    request.state.login, state = visitor.login, request.app.state
    terms = state.hutch.terms(datetime.now(UTC))
    person, notices, clouds_down = await _in_session(request, _before_all_pages, visitor.login, terms)
    if person is None:
        raise UnknownPerson(f"The facility does not know {visitor.login}.")
    return Desk(request, state.hutch, state.pages, visitor, person, terms, notices, clouds_down)


def _before_all_pages(session: Session, login: str, terms: Terms) -> tuple[Person | None, list[Notice], dict[str, datetime]]:
    person = find_person(session, login, terms)
    return person, unseen(session, person.id) if person else [], capacity.down(session)


async def _in_session(
    request: Request, work: Callable[Concatenate[Session, Arguments], Result], *args: Arguments.args, **kwargs: Arguments.kwargs
) -> Result:
    maker: sessionmaker[Session] = request.app.state.sessions

    def in_transaction() -> Result:
        with maker.begin() as session:
            return work(session, *args, **kwargs)

    return await run_in_threadpool(in_transaction)


AtDesk = Annotated[Desk, Depends(_desk)]
# of a form
Field = Annotated[str, Form()]
