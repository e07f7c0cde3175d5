"""Pages for staff.

Facility data: how fresh each source is, what its runs did, what they left out, who is nobody, and who may be who. And the cloud:
where it differs from the records, and what becomes of that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, HTTPException
from fastapi.responses import HTMLResponse, RedirectResponse
from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session, joinedload

from ..access import Task, may_run
from ..database import seal
from ..database.engine import take_turn
from ..database.tables import (
    CloudFinding,
    EtlChange,
    EtlRejection,
    EtlRun,
    Experiment,
    ExperimentMember,
    Identity,
    IdentitySuggestion,
    InstrumentScientist,
    User,
    UserGroup,
    UserRole,
)
from ..explaining import before_and_now, last_loads
from ..identities import link
from ..steward.differences import State
from .desk import AtDesk, Field

ROWS, PAGE_ROWS, FINDINGS = 20, 50, 200
# columns that say where a record comes from, not what it says
ORIGIN = {"source", "run_id", "ended_at"}


async def _for_staff(desk: AtDesk) -> None:
    if not may_run(desk.person, Task.FACILITY_DATA):
        raise HTTPException(403)


routes = APIRouter(dependencies=[Depends(_for_staff)])


@routes.get("/facility")
async def overview(desk: AtDesk) -> HTMLResponse:
    def shown(session: Session) -> dict[str, Any]:
        people = select(User).where(User.ended_at.is_(None))
        for table in (ExperimentMember, UserRole, UserGroup, InstrumentScientist):
            people = people.where(~select(table).where(table.user_id == User.id, table.ended_at.is_(None)).exists())
        team = select(ExperimentMember).where(ExperimentMember.experiment_id == Experiment.id, ExperimentMember.ended_at.is_(None))
        visits = select(Experiment).where(Experiment.ended_at.is_(None), ~team.exists()).options(joinedload(Experiment.instrument))
        newest = select(func.max(EtlRun.id)).group_by(EtlRun.source)
        suggestions = select(IdentitySuggestion, User).join(User).order_by(IdentitySuggestion.since).limit(PAGE_ROWS)
        return {
            "loads": {run.source: run for run in last_loads(session)},
            "newest": session.scalars(select(EtlRun).where(EtlRun.id.in_(newest)).order_by(EtlRun.source)).all(),
            "runs": session.scalars(select(EtlRun).order_by(EtlRun.id.desc()).limit(ROWS)).all(),
            "experiments": _orphans(session, visits),
            "people": _orphans(session, people),
            "logins": _orphans(session, select(EtlRejection).where(EtlRejection.record == "user", EtlRejection.field == "login")),
            "suggestions": session.execute(suggestions).all(),
        }

    may_confirm = bool(may_run(desk.person, Task.CONFIRM_IDENTITY))
    return desk.page("facility.html", may_confirm=may_confirm, total=_total, **await desk.run(shown))


def _count(session: Session, query: Select) -> int:
    return session.scalar(select(func.count()).select_from(query.subquery())) or 0


def _orphans(session: Session, query: Select) -> dict[str, Any]:
    return {"count": _count(session, query), "rows": session.scalars(query.limit(ROWS)).all()}


def _total(run: EtlRun, kind: str) -> int:
    return sum(counts.get(kind, 0) for counts in run.counts.values())


@routes.get("/facility/runs/{run_id}")
async def run(desk: AtDesk, run_id: int, page: int = 1) -> HTMLResponse:
    """What a run did and what it left out. page: from 1, of both."""

    def shown(session: Session) -> dict[str, Any]:
        found = session.get(EtlRun, run_id)
        if found is None or page < 1:
            raise HTTPException(404)
        changes = select(EtlChange).where(EtlChange.run_id == run_id)
        rejections = select(EtlRejection).where(EtlRejection.run_id == run_id)
        most, first = max(_count(session, changes), _count(session, rejections)), (page - 1) * PAGE_ROWS
        changed = session.scalars(changes.order_by(EtlChange.id).limit(PAGE_ROWS).offset(first))
        return {
            "run": found,
            "changes": [_line(session, row) for row in changed],
            "rejections": session.scalars(rejections.order_by(EtlRejection.id).limit(PAGE_ROWS).offset(first)).all(),
            "pages": max(1, -(-most // PAGE_ROWS)),
        }

    return desk.page("run.html", page=page, **await desk.run(shown))


def _line(session: Session, change: EtlChange) -> dict[str, Any]:
    """What became of a record, and of each field that differs: its name, before the run, now."""
    pairs = before_and_now(session, change)
    was_over, is_over = (one is not None for one in pairs["ended_at"])
    what = "ended" if is_over else "came back" if was_over else "changed"
    differing = {name: pair for name, pair in pairs.items() if name not in ORIGIN and pair[0] != pair[1]}
    fields = [(name, *("" if value is None else str(value) for value in pair)) for name, pair in differing.items()]
    return {"record": change.record, "key": " ".join(map(str, change.key.values())), "what": what, "fields": fields}


@routes.post("/facility/identities")
async def confirm(desk: AtDesk, issuer: Field, subject: Field, user_id: Field) -> RedirectResponse:
    if not may_run(desk.person, Task.CONFIRM_IDENTITY):
        raise HTTPException(403)

    def confirmed(session: Session) -> None:
        take_turn(session)  # of two who confirm at once, the other finds nothing left to confirm
        suggested, linked = session.get(IdentitySuggestion, (issuer, subject, user_id)), session.get(Identity, (issuer, subject))
        if suggested is None or linked is not None:
            raise HTTPException(404)
        link(session, issuer, subject, user_id, desk.visitor.login)

    await desk.run(confirmed)
    desk.log("identity-confirmed", issuer=issuer, subject=subject, user=user_id)
    return desk.go("facility#identities")


@routes.get("/cloud")
async def cloud(desk: AtDesk) -> HTMLResponse:
    def shown(session: Session) -> dict[str, Any]:
        open_ones = select(CloudFinding).where(CloudFinding.ended_at.is_(None))
        return {
            "findings": session.scalars(open_ones.order_by(CloudFinding.since.desc(), CloudFinding.id).limit(FINDINGS)).all(),
            "count": _count(session, open_ones),
            "holds": seal.holds(session, Path(desk.hutch.state_dir)),
        }

    return desk.page("cloud.html", states=State, advice=seal.ADVICE, most=desk.hutch.reconcile, **await desk.run(shown))
