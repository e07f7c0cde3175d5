"""Loads what the rules need from the database; one place that knows which rows hold now."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, Select, Text, bindparam, cast, func, literal, select, true, union_all
from sqlalchemy.orm import Session, joinedload, selectinload

from .access import Consent, Limit, Person, Place, PlanOffer, Quota, Terms, Usage, Visit, quota
from .database.engine import rows
from .database.tables import (
    Experiment,
    ExperimentMember,
    FacilityRole,
    Instance,
    InstanceExperiment,
    InstanceMember,
    Instrument,
    InstrumentScientist,
    Plan,
    Proposal,
    SupportAccess,
    User,
    UserGroup,
    UserRole,
)
from .firewall import Subject

# --- what every page and every launch asks: few queries, of columns, built once because that takes longer than the answer


def _held(kind: str, name: Any, holds: ColumnElement[bool]) -> Select:
    return select(literal(kind).label("kind"), name.label("name")).where(name.class_.user_id == _THIS, holds)


_IS_THIS = User.login == bindparam("login"), User.ended_at.is_(None)
_THIS = select(User.id).where(*_IS_THIS).scalar_subquery()
_HOLDS = union_all(
    _held("role", UserRole.role, UserRole.held(bindparam("at"))),
    _held("group", UserGroup.group, UserGroup.held(bindparam("at"))),
    _held("instrument", InstrumentScientist.instrument_id, InstrumentScientist.ended_at.is_(None)),
).subquery()
_QUOTAS = User.instances_allotted, User.instance_quota, User.core_quota
_WHO = User.id, User.login, User.given_name, User.family_name, *_QUOTAS
PERSON = select(*_WHO, _HOLDS.c.kind, _HOLDS.c.name).outerjoin(_HOLDS, true()).where(*_IS_THIS)

_IS_MEMBER = (
    (ExperimentMember.experiment_id == Experiment.id)
    & (ExperimentMember.user_id == bindparam("user_id"))
    & ExperimentMember.ended_at.is_(None)
)
_WHAT = Experiment.id, Experiment.proposal_id, Experiment.instrument_id, func.coalesce(Experiment.title, Proposal.title)
_WHERE_AND_WHEN = Instrument.name, Experiment.starts_at, Experiment.ends_at
VISITS = (
    select(*_WHAT, *_WHERE_AND_WHEN, ExperimentMember.role, Proposal.public_at, Experiment.ended_at.is_not(None))
    .select_from(Experiment)
    .join(Proposal, Proposal.id == Experiment.proposal_id)
    .join(Instrument, Instrument.id == Experiment.instrument_id)
    .outerjoin(ExperimentMember, _IS_MEMBER)
    .order_by(Experiment.starts_at.desc(), Experiment.id)
)
_NAMED: Any = bindparam("ids", expanding=True)
VISITS_NAMED = VISITS.where(Experiment.id.in_(_NAMED))
_MINE = select(ExperimentMember.experiment_id).where(
    ExperimentMember.user_id == bindparam("user_id"), ExperimentMember.ended_at.is_(None)
)
# one set of ids: asked as "or", both databases would go through all experiments
VISITS_OF = VISITS.where(
    Experiment.id.in_(union_all(_MINE, select(Experiment.id).where(Experiment.id.in_(_NAMED)))), Experiment.ended_at.is_(None)
)

_FACTS = Plan.id, Plan.name, func.coalesce(Plan.description, ""), Plan.image, Plan.flavor, Plan.cores, Plan.memory_mb
# JSON as it is written: a plan is read once, for as long as it stays the same
_TEXTS = (cast(column, Text) for column in (Plan.limits, Plan.lifetimes, Plan.places))
_PLANS = select(*_FACTS, *_TEXTS).order_by(Plan.position, Plan.name)
PLANS = _PLANS.where(Plan.ended_at.is_(None))
PLAN = PLANS.where(Plan.id == bindparam("plan_id"))
INSTRUMENTS = select(Instrument.id, Instrument.name).order_by(Instrument.id)

_IS_OWN = Instance.owner_id == bindparam("user_id")
_NEWEST = select(Instance.plan_id).where(_IS_OWN).order_by(Instance.created_at.desc()).limit(1)
USAGE = (
    select(func.count(), func.coalesce(func.sum(Plan.cores), 0), _NEWEST.scalar_subquery())
    .select_from(Instance)
    .join(Plan, Plan.id == Instance.plan_id)
    .where(_IS_OWN, Instance.deleted_at.is_(None))
)
_IS_NAMED = User.login == bindparam("login"), Instance.server_name == bindparam("server_name"), Instance.deleted_at.is_(None)
INSTANCE_ID = select(Instance.id).join(Instance.owner).where(*_IS_NAMED)
# what the owner granted last, also when its time is over; not what was ended
CONSENT = (
    select(SupportAccess.right, SupportAccess.until, SupportAccess.id)
    .where(SupportAccess.instance_id == bindparam("instance_id"), SupportAccess.user_id == bindparam("user_id"))
    .where(SupportAccess.right.is_not(None), SupportAccess.ended_at.is_(None))
    .order_by(SupportAccess.id.desc())
    .limit(1)
)


# --- people, experiments


def find_person(session: Session, login: str, terms: Terms) -> Person | None:
    """The person who signs on as `login`, or None when the facility does not know them (any more)."""
    found = rows(session, PERSON, {"login": login, "at": terms.at}).all()
    if not found:
        return None
    user_id, login, given_name, family_name, allotted, instances, cores, *_ = found[0]
    kinds = "role", "group", "instrument"
    roles, groups, instruments = (frozenset(name for *_, of, name in found if of == kind) for kind in kinds)
    allowed = quota(terms, roles | groups, allotted=allotted, own=Quota(instances, cores))
    assert allowed.instances is not None and allowed.cores is not None
    name = f"{given_name} {family_name}".strip()
    return Person(user_id, login, name, roles, groups, instruments, allowed.instances, allowed.cores)


def experiments_of(session: Session, user_id: str, also: Collection[str] = ()) -> list[Visit]:
    """Every experiment that the person is a member of now, newest first, and those of these ids."""
    return _visits(session, VISITS_OF, user_id, ids=list(also))


def experiments_named(session: Session, ids: Iterable[str], user_id: str) -> list[Visit]:
    """The experiments of these ids, with the part that the person has in them, if any; those that are gone too."""
    return _visits(session, VISITS_NAMED, user_id, ids=list(ids))


def _visits(session: Session, query: Select, user_id: str, **values: Any) -> list[Visit]:
    return [
        Visit(*facts, {user_id: role} if role else {}, public_at, bool(gone))  # type: ignore[call-arg]
        for *facts, role, public_at, gone in rows(session, query, values | {"user_id": user_id})
    ]


def find_place(session: Session, instance: Instance, person: Person, terms: Terms) -> Place:
    """An instance as the rules see it when they are asked about this person."""
    part = select(InstanceMember.role).where(InstanceMember.user_id == person.id, InstanceMember.ended_at.is_(None))
    is_staff = select(UserRole.user_id).filter_by(user_id=instance.owner_id, role=FacilityRole.STAFF).where(UserRole.held(terms.at))
    role = session.scalar(part.where(InstanceMember.instance_id == instance.id))
    consent: Any = session.execute(CONSENT, {"instance_id": instance.id, "user_id": person.id}).first()
    chosen = select(InstanceExperiment.experiment_id).where(InstanceExperiment.instance_id == instance.id)
    return Place(
        id=instance.id,
        owner_id=instance.owner_id,
        owner_is_staff=person.id != instance.owner_id and session.scalar(is_staff) is not None,
        members={person.id: role} if role else {},
        visits=tuple(_visits(session, VISITS.where(Experiment.id.in_(chosen)), person.id)),
        when_owner_leaves=instance.when_owner_leaves,
        members_enter_freely=instance.members_enter_freely,
        consented={person.id: Consent(*consent)} if consent else {},
    )


def find_subject(session: Session, instance: Instance, terms: Terms) -> Subject:
    """What the choice of an instance's security groups rests on; its plan may have ended meanwhile."""
    person = find_person(session, instance.owner.login, terms)
    (plan,) = _offers(session, _PLANS.where(Plan.id == instance.plan_id))
    return Subject(person, plan, find_place(session, instance, person, terms).visits if person else ())


def plans_offered(session: Session) -> Sequence[PlanOffer]:
    return _offers(session, PLANS)


def find_plan(session: Session, plan_id: str) -> PlanOffer | None:
    return next(iter(_offers(session, PLAN, plan_id=plan_id)), None)


def _offers(session: Session, query: Select, **values: Any) -> Sequence[PlanOffer]:
    found = tuple(map(tuple, rows(session, query, values)))
    limited = any("instruments" in limits for *_, limits, _, _ in found)
    return _read(found, tuple(map(tuple, rows(session, INSTRUMENTS))) if limited else ())


@lru_cache(100)
def _read(plans: tuple[tuple, ...], instruments: tuple[tuple[str, str], ...]) -> Sequence[PlanOffer]:
    names = dict(instruments)
    return tuple(
        PlanOffer(*facts, tuple(map(Limit.read, json.loads(limits))), json.loads(days), names, tuple(json.loads(places)))  # type: ignore[call-arg]
        for *facts, limits, days, places in plans
    )


def find_usage(session: Session, user_id: str) -> Usage:
    """What the person's instances take, but for those marked for deletion; and the plan of their newest one."""
    count, cores, last_plan = rows(session, USAGE, {"user_id": user_id}).one()
    return Usage(count, int(cores), last_plan or "")


def server_names(session: Session, user_id: str) -> set[str]:
    """The names that the person's instances hold; those of instances marked for deletion too, so that they can be restored."""
    return set(session.scalars(select(Instance.server_name).where(Instance.owner_id == user_id, Instance.purged_at.is_(None))))


def find_instance(session: Session, login: str, server_name: str) -> Instance | None:
    """The live instance behind a named server of JupyterHub."""
    if found := rows(session, INSTANCE_ID, {"login": login, "server_name": server_name}).scalar():
        return session.get(Instance, found, options=(joinedload(Instance.plan), selectinload(Instance.experiments)))
    return None


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


def groups_of(session: Session, logins: Iterable[str], at: datetime) -> dict[str, set[str]]:
    """Their proposals, facility roles and instruments as JupyterHub's groups; whom the facility does not know is not among them."""
    wanted = User.login.in_(list(logins)), User.ended_at.is_(None)
    query: Any = union_all(
        select(User.login, literal("")).where(*wanted),
        select(User.login, "proposal-" + Experiment.proposal_id)
        .join(ExperimentMember, ExperimentMember.user_id == User.id)
        .join(Experiment, Experiment.id == ExperimentMember.experiment_id)
        .where(*wanted, ExperimentMember.ended_at.is_(None), Experiment.ended_at.is_(None)),
        select(User.login, "role-" + UserRole.role)
        .join(UserRole, UserRole.user_id == User.id)
        .where(*wanted, UserRole.held(at), UserRole.role.in_(list(FacilityRole))),
        select(User.login, "instrument-" + InstrumentScientist.instrument_id)
        .join(InstrumentScientist, InstrumentScientist.user_id == User.id)
        .where(*wanted, InstrumentScientist.ended_at.is_(None)),
    )
    found: dict[str, set[str]] = {}
    for login, group in session.execute(query):
        found.setdefault(login, set()).update([group] if group else [])
    return found
