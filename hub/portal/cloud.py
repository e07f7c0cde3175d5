"""The cloud, for staff: where it differs from the records, and what becomes of that."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import APIRouter, HTTPException
from fastapi.responses import HTMLResponse
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from ..access import Task, may_run
from ..database import seal
from ..database.tables import CloudFinding
from ..steward.differences import State
from .desk import AtDesk

ROWS = 200

routes = APIRouter(prefix="/cloud")


@routes.get("")
async def overview(desk: AtDesk) -> HTMLResponse:
    if not may_run(desk.person, Task.FACILITY_DATA):
        raise HTTPException(403)

    def shown(session: Session) -> dict[str, Any]:
        open_ones = select(CloudFinding).where(CloudFinding.ended_at.is_(None))
        return {
            "findings": session.scalars(open_ones.order_by(CloudFinding.since.desc(), CloudFinding.id).limit(ROWS)).all(),
            "count": session.scalar(select(func.count()).select_from(open_ones.subquery())),
            "holds": seal.holds(session, Path(desk.hutch.state_dir)),
        }

    return desk.page("cloud.html", states=State, advice=seal.ADVICE, most=desk.hutch.reconcile, **await desk.run(shown))
