"""Why? What somebody may do and why not, with where the records come from; for oneself, and for staff about anybody."""

from __future__ import annotations

from fastapi import APIRouter, HTTPException
from fastapi.responses import HTMLResponse
from sqlalchemy.orm import Session

from ..access import Person, Task, Usage, may_run
from ..explaining import ACTIONS, Fact, QuestionError, about, explain
from ..records import find_person, find_usage, plans_offered
from .desk import AtDesk, Desk

QUESTIONS = [f"{kind} {action}" for kind, actions in ACTIONS.items() for action in actions]

routes = APIRouter()


@routes.get("/why")
async def why(desk: AtDesk, question: str = "", plan: str = "", user: str = "") -> HTMLResponse:
    """question: 'experiment launch' and so on, of the object or objects in `key`."""
    keys = [key.strip() for given in desk.request.query_params.getlist("key") for key in given.split(",") if key.strip()]
    user = user.strip() or desk.visitor.login
    is_staff = bool(may_run(desk.person, Task.EXPLAIN))
    if user != desk.visitor.login and not is_staff:
        raise HTTPException(403)
    answer, problem = None, ""
    if question and keys:
        kind, _, action = question.partition(" ")
        objects = [f"{kind}:{key}" for key in keys]
        try:
            answer = await desk.run(explain, desk.terms, user, action, objects, plan=plan, wide=is_staff)
        except QuestionError as error:
            problem = str(error)
    person, usage, facts, plans = await desk.run(_known, desk, user)
    asked = {"question": question, "keys": keys, "plan": plan, "user": user}
    shown = {"answer": answer, "problem": problem, "asked": asked, "about": person, "usage": usage, "facts": facts, "plans": plans}
    return desk.page("why.html", status=400 if problem else 200, questions=QUESTIONS, asks_for_others=is_staff, **shown)


def _known(session: Session, desk: Desk, user: str) -> tuple[Person | None, Usage, tuple[Fact, ...], list[tuple[str, str]]]:
    person = find_person(session, user, desk.terms)
    plans = [(plan.id, plan.name) for plan in plans_offered(session)]
    if person is None:
        return None, Usage(), (), plans
    return person, find_usage(session, person.id), about(session, person.id), plans
