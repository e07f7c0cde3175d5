"""Loads what the rules need from the database; one place that knows which rows hold now."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime

from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy.orm import Session, joinedload, selectinload

from .access import Limit, Person, PlanOffer, Visit
from .database.tables import (
    Experiment,
    ExperimentMember,
    FacilityRole,
    Instance,
    InstanceMember,
    Instrument,
    InstrumentScientist,
    Plan,
    Proposal,
    User,
    UserRole,
)


def find_person(session: Session, login: str, now: datetime, default_quota: int) -> Person | None:
    """The person who signs on as `login`, or None when the facility does not know them (any more)."""
    user = session.scalar(select(User).where(User.login == login, User.ended_at.is_(None)))
    if user is None:
        return None
    roles = session.scalars(
        select(UserRole.role).where(
            UserRole.user_id == user.id, UserRole.ended_at.is_(None), or_(UserRole.expires_at.is_(None), UserRole.expires_at > now)
        )
    ).all()
    scientist_of = session.scalars(
        select(InstrumentScientist.instrument_id).where(
            InstrumentScientist.user_id == user.id, InstrumentScientist.ended_at.is_(None)
        )
    ).all()
    quota = default_quota if user.instance_quota is None else user.instance_quota
    return Person(user.id, user.login, user.name, frozenset(roles), frozenset(scientist_of), quota)


def experiments_of(session: Session, user_id: str) -> list[Visit]:
    """Every experiment that the person is a member of now, newest first."""
    return _visits(session, user_id, ExperimentMember.user_id.is_not(None))


def experiments_named(session: Session, ids: Iterable[str], user_id: str) -> list[Visit]:
    """The experiments of these ids, with the part that the person has in them, if any."""
    return _visits(session, user_id, Experiment.id.in_(list(ids)))


def _visits(session: Session, user_id: str, condition: ColumnElement[bool]) -> list[Visit]:
    # columns, not objects: this is asked at every launch
    is_member = (
        (ExperimentMember.experiment_id == Experiment.id)
        & (ExperimentMember.user_id == user_id)
        & ExperimentMember.ended_at.is_(None)
    )
    query = (
        select(
            Experiment.id,
            Experiment.proposal_id,
            Experiment.instrument_id,
            func.coalesce(Experiment.title, Proposal.title),
            Instrument.name,
            Experiment.starts_at,
            Experiment.ends_at,
            ExperimentMember.role,
        )
        .select_from(Experiment)
        .join(Proposal, Proposal.id == Experiment.proposal_id)
        .join(Instrument, Instrument.id == Experiment.instrument_id)
        .outerjoin(ExperimentMember, is_member)
        .where(condition, Experiment.ended_at.is_(None))
        .order_by(Experiment.starts_at.desc(), Experiment.id)
    )
    return [
        Visit(name, proposal, instrument, title, instrument_name, starts_at, ends_at, {user_id: role} if role else {})
        for name, proposal, instrument, title, instrument_name, starts_at, ends_at, role in session.execute(query)
    ]


def plans_offered(session: Session) -> list[PlanOffer]:
    rows = session.scalars(select(Plan).where(Plan.ended_at.is_(None)).order_by(Plan.position, Plan.name))
    return [_offer(row) for row in rows]


def find_plan(session: Session, plan_id: str) -> PlanOffer | None:
    row = session.get(Plan, plan_id)
    return _offer(row) if row is not None and row.ended_at is None else None


def _offer(row: Plan) -> PlanOffer:
    return PlanOffer(
        id=row.id,
        name=row.name,
        description=row.description or "",
        image=row.image,
        flavor=row.flavor,
        cores=row.cores,
        memory_mb=row.memory_mb,
        limits=tuple(Limit(frozenset(one.get("instruments", ())), frozenset(one.get("roles", ()))) for one in row.limits),
    )


def count_owned(session: Session, user_id: str) -> int:
    """Instances that the person has, those not marked for deletion."""
    return session.scalar(select(func.count()).where(Instance.owner_id == user_id, Instance.deleted_at.is_(None))) or 0


def server_names(session: Session, user_id: str) -> set[str]:
    """The names that the person's instances hold; those of instances marked for deletion too, so that they can be restored."""
    return set(session.scalars(select(Instance.server_name).where(Instance.owner_id == user_id, Instance.purged_at.is_(None))))


def last_plan(session: Session, user_id: str) -> str:
    """The plan of the person's newest instance; empty before their first."""
    query = select(Instance.plan_id).where(Instance.owner_id == user_id).order_by(Instance.created_at.desc()).limit(1)
    return session.scalar(query) or ""


def find_instance(session: Session, login: str, server_name: str) -> Instance | None:
    """The live instance behind a named server of JupyterHub."""
    return session.scalar(
        select(Instance)
        .join(Instance.owner)
        .where(User.login == login, Instance.server_name == server_name, Instance.deleted_at.is_(None))
        .options(joinedload(Instance.plan), selectinload(Instance.experiments))
    )


def instances_owned(session: Session, user_id: str) -> list[Instance]:
    """All instances of a person that still have a server, newest first; those marked for deletion too."""
    query = (
        select(Instance)
        .where(Instance.owner_id == user_id, Instance.purged_at.is_(None))
        .options(
            joinedload(Instance.plan),
            selectinload(Instance.experiments).options(joinedload(Experiment.proposal), joinedload(Experiment.instrument)),
            selectinload(Instance.members).joinedload(InstanceMember.user),
            selectinload(Instance.intents),
        )
        .order_by(Instance.created_at.desc())
    )
    return list(session.scalars(query))


def groups_of(session: Session, person: Person) -> list[str]:
    """The JupyterHub groups of a person: their proposals, their facility roles, the instruments they look after."""
    proposals = session.scalars(
        select(Experiment.proposal_id)
        .join(ExperimentMember, ExperimentMember.experiment_id == Experiment.id)
        .where(ExperimentMember.user_id == person.id, ExperimentMember.ended_at.is_(None), Experiment.ended_at.is_(None))
        .distinct()
    )
    known = {str(role) for role in FacilityRole}
    return sorted(
        [f"proposal-{name}" for name in proposals]
        + [f"role-{name}" for name in person.roles if name in known]
        + [f"instrument-{name}" for name in person.scientist_of]
    )
