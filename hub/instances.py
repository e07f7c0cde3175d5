"""What becomes of an instance: intents, history, and the state that people see. No rights are decided here.

An intent is written before anything is asked of the cloud and concluded afterwards, so that whoever comes next (a hub that was
killed half-way, the steward, an operator) can read what was wanted, by whom, and how far it got.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from statistics import median
from typing import Any
from uuid import uuid4

from sqlalchemy import ColumnElement, bindparam, select, update
from sqlalchemy.orm import Session
from sqlalchemy.orm.attributes import set_committed_value

from . import queue
from .access import Part
from .database.engine import put, rows, write
from .database.tables import (
    Instance,
    InstanceEvent,
    InstanceExperiment,
    InstanceMember,
    Intent,
    IntentKind,
    Outcome,
    now,
)

# launches of all plans together that count for what one can expect: the history grows for ever, the form is asked for at each key
LATELY = 2000
# the actor of a stop that was only found
CLOUD = "cloud"


class State(StrEnum):
    WAITING = "waiting"
    LAUNCHING = "launching"
    RUNNING = "running"
    UNREACHABLE = "unreachable"
    STOPPING = "stopping"
    STOPPED = "stopped"
    FAILED = "failed"
    DELETED = "deleted"


STOPPED_NOW = "This instance is stopped. Its owner can start it again."


def state_of(
    intent: Intent | None, *, deleted: bool = False, ready: bool = False, pending: str | None = None, waits: bool = False
) -> State:
    """The state people see: what JupyterHub says now (ready, pending), then what was last intended. waits: it is in the queue.

    An instance that was launched and that JupyterHub no longer serves is unreachable, not gone: nobody asked it to stop.
    """
    if deleted:
        return State.DELETED
    if pending == "stop":
        return State.STOPPING
    if pending == "spawn":
        return State.LAUNCHING
    if ready:
        # for a moment, JupyterHub calls a launch ready that it is cancelling
        return State.STOPPING if intent and (intent.kind, intent.outcome) == (IntentKind.STOP, None) else State.RUNNING
    if waits:
        return State.WAITING
    if intent is None or intent.kind in (IntentKind.STOP, IntentKind.RESTORE) or intent.outcome == Outcome.CANCELLED:
        return State.STOPPED
    if intent.outcome == Outcome.FAILED:
        return State.FAILED
    return State.UNREACHABLE


def create(
    session: Session,
    *,
    owner_id: str,
    server_name: str,
    display_name: str,
    plan_id: str,
    experiment_ids: Sequence[str],
    lifetime: timedelta | None,
    plan_name: str = "",
    place: str = "",
) -> Instance:
    """lifetime: None for an instance without end. place: where its server will be created first."""
    instance = put(
        session,
        Instance(
            id=str(uuid4()),
            owner_id=owner_id,
            server_name=server_name,
            display_name=display_name,
            plan_id=plan_id,
            place=place,
            ends_at=now() + lifetime if lifetime else None,
            first_ready_at=None,
        ),
    )
    write(session, InstanceMember, {"instance_id": instance.id, "user_id": owner_id, "role": Part.OWNER})
    if experiment_ids:
        write(session, InstanceExperiment, *({"instance_id": instance.id, "experiment_id": name} for name in experiment_ids))
    record_event(session, instance.id, "created", actor=owner_id, message=f"plan {plan_name or plan_id}")
    return instance


_OPEN = select(Intent.id).where(Intent.instance_id == bindparam("instance_id"), Intent.outcome.is_(None))


def intend(session: Session, instance_id: str, kind: IntentKind, actor: str, reason: str = "") -> Intent:
    """Writes down what is wanted; an older intent that is still open is overtaken by it."""
    for (older,) in rows(session, _OPEN, {"instance_id": instance_id}).all():
        conclude(session, session.get_one(Intent, older), Outcome.CANCELLED, message=f"overtaken: {kind} by {actor}")
    intent = put(session, Intent(instance_id=instance_id, kind=kind, actor=actor, reason=reason, outcome=None))
    record_event(session, instance_id, f"{kind}-asked", intent_id=intent.id, actor=actor, message=reason)
    return intent


_CONCLUDE = (
    update(Intent)
    .where(Intent.id == bindparam("this"), Intent.outcome.is_(None))
    .values({name: bindparam(name) for name in ("outcome", "ended_at", "stage", "message", "detail")})
)


def conclude(session: Session, intent: Intent, outcome: Outcome, *, stage: str = "", message: str = "", detail: str = "") -> None:
    """Once: one that was concluded meanwhile stays so. intent: as it was when it was open; it is changed too."""
    facts = {"outcome": outcome, "ended_at": now(), "stage": stage or None, "message": message or None, "detail": detail or None}
    if not rows(session, _CONCLUDE, facts | {"this": intent.id}).rowcount:
        return
    for name, value in facts.items():
        set_committed_value(intent, name, value)
    record_event(session, intent.instance_id, f"{intent.kind}-{outcome}", intent_id=intent.id, message=message)
    queue.leave(session, intent)


def conclude_open(session: Session, instance_id: str, kind: IntentKind, outcome: Outcome, message: str = "") -> None:
    """Concludes the newest intent, if it is of this kind and still being carried out."""
    latest = latest_intent(session, instance_id)
    if latest and latest.outcome is None and latest.kind == kind:
        conclude(session, latest, outcome, message=message)


def record_event(session: Session, instance_id: str, kind: str, **facts: Any) -> None:
    """facts: other columns of InstanceEvent."""
    write(session, InstanceEvent, {"instance_id": instance_id, "kind": kind, **facts})


def latest_intent(session: Session, instance_id: str) -> Intent | None:
    return session.scalar(select(Intent).where(Intent.instance_id == instance_id).order_by(Intent.id.desc()).limit(1))


def counting() -> ColumnElement[bool]:
    """The same as `in_force`, for queries: intents that were carried out or still are, and every launch."""
    called_off = Intent.outcome.in_([Outcome.FAILED, Outcome.CANCELLED])
    return (Intent.kind == IntentKind.LAUNCH) | Intent.outcome.is_(None) | ~called_off


def current_intent(session: Session, instance_id: str) -> Intent | None:
    return session.scalar(select(Intent).where(Intent.instance_id == instance_id, counting()).order_by(Intent.id.desc()).limit(1))


def is_meant_to_run(session: Session, instance_id: str) -> bool:
    """Its current intent is a launch that neither failed nor was called off."""
    current = current_intent(session, instance_id)
    return current is not None and current.kind == IntentKind.LAUNCH and current.outcome in (None, Outcome.DONE)


def in_force(intents: Sequence[Intent]) -> Intent | None:
    """The newest intent that counts, of those given oldest first: a stop or a deletion that was not carried out does not."""
    for intent in reversed(intents):
        if intent.kind == IntentKind.LAUNCH or intent.outcome not in (Outcome.FAILED, Outcome.CANCELLED):
            return intent
    return None


def call_off_found_stop(session: Session, instance_id: str) -> None:
    """It was found off, which nobody had asked for, and it runs again."""
    current = current_intent(session, instance_id)
    if current and (current.kind, current.actor, current.outcome) == (IntentKind.STOP, CLOUD, Outcome.DONE):
        current.outcome = Outcome.CANCELLED
        record_event(session, instance_id, "stop-cancelled", intent_id=current.id, actor=CLOUD, message="the server runs again")


def mark_deleted(session: Session, instance: Instance, actor: str, reason: str, grace: timedelta) -> None:
    """Marks the instance; its server is deleted by the steward after the grace, in which the owner can restore it."""
    if instance.deleted_at is not None:
        return
    intend(session, instance.id, IntentKind.DELETE, actor, reason)
    instance.deleted_at = now()
    instance.purge_at = instance.deleted_at + grace


def unmark(session: Session, instance: Instance) -> None:
    """Takes the mark back. Raises ValueError when it is too late or the name is taken again."""
    # the steward may be deleting the server without having written it down yet
    gone_at = instance.purged_at or instance.purge_at
    if gone_at and gone_at <= now():
        raise ValueError(f"{instance.display_name} was deleted for good on {gone_at:%d %B %Y}.")
    named = select(Instance.id).filter_by(owner_id=instance.owner_id, server_name=instance.server_name, deleted_at=None)
    if session.scalar(named):
        raise ValueError(f"There is a newer instance with the name {instance.server_name}: delete or rename it first.")
    instance.deleted_at = instance.purge_at = None


def restore(session: Session, instance: Instance, actor: str, lifetime: timedelta | None) -> None:
    """After a change of mind, for another lifetime at least; what was running stays off. Raises ValueError as `unmark`."""
    unmark(session, instance)
    instance.ends_at = max(instance.ends_at, now() + lifetime) if instance.ends_at and lifetime else None
    conclude(session, intend(session, instance.id, IntentKind.RESTORE, actor), Outcome.DONE)


def due_for_purge(session: Session, at: datetime) -> list[Instance]:
    """Marked instances whose grace is over and whose server still has to be deleted."""
    query = select(Instance).where(Instance.purge_at <= at, Instance.purged_at.is_(None), Instance.deleted_at.is_not(None))
    return list(session.scalars(query))


_LATELY = (
    select(InstanceEvent.id, InstanceEvent.instance_id, InstanceEvent.seconds)
    .where(InstanceEvent.kind == "ready")
    .order_by(InstanceEvent.id.desc())
    .limit(bindparam("lately"))
    .subquery()
)
# built once, because that takes longer than the answer
_SECONDS = (
    select(Instance.plan_id, _LATELY.c.seconds)
    .join(_LATELY, _LATELY.c.instance_id == Instance.id)
    .where(_LATELY.c.seconds.is_not(None))
    .order_by(_LATELY.c.id.desc())
)


def launch_seconds(session: Session, plan_id: str = "", last: int = 50) -> dict[str, list[float]]:
    """How long the last launches of each plan (or of this one) took, newest first; a plan that was not launched lately has none."""
    found: dict[str, list[float]] = {}
    query = _SECONDS.where(Instance.plan_id == plan_id) if plan_id else _SECONDS
    for plan_id, seconds in session.execute(query, {"lately": LATELY}):
        of_plan = found.setdefault(plan_id, [])
        if len(of_plan) < last:
            of_plan.append(seconds)
    return found


def expected_seconds(session: Session, plan_id: str) -> float | None:
    """The median of the last launches of a plan; None when there was none lately."""
    seconds = launch_seconds(session, plan_id).get(plan_id)
    return median(seconds) if seconds else None
