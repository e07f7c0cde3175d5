"""Why somebody may or may not do a thing: the decision of the rules, where each record behind it comes from, and whom to ask.

Nothing is decided here. Who asks for themself is told nothing of what is not theirs; `wide` is for staff and operators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from typing import Any
from urllib.parse import unquote

from sqlalchemy import and_, false, func, or_, select
from sqlalchemy.orm import Session

from . import access, records
from .access import Action, Decision, Person, Terms, ref
from .database.tables import Base, EtlChange, EtlRejection, EtlRun, Instance, InstrumentScientist, User, UserGroup, UserRole
from .errors import HutchError
from .instances import STOPPED_NOW, State, in_force, state_of

# what can be asked of each kind of object
ACTIONS: dict[str, tuple[str, ...]] = {"experiment": ("see", "launch"), "plan": ("launch",), "instance": tuple(Action)}
REJECTIONS_SHOWN = 20
OFFICE, PRINCIPAL, OWNER = "the user office", "the experiment's principal investigator", "the instance's owner"
# by the rule that refused; for the others, whoever runs Hutch
WHOM = {
    "unknown-user": OFFICE,
    "unknown-experiment": OFFICE,
    "experiment-gone": OFFICE,
    "experiment-membership": PRINCIPAL,
    "experiment-needed": PRINCIPAL,
    "part": OWNER,
    "owner-away": OWNER,
    "consent-needed": OWNER,
    "consent-view": OWNER,
    "locked": OWNER,
    "sent-away": OWNER,
}


class QuestionError(HutchError):
    """The question names an action or an object that there is not."""


@dataclass(frozen=True, slots=True)
class Fact:
    """What a record says, and the run that brought it, changed it last, or ended it (None where nobody but an admin did)."""

    record: str
    words: str
    source: str
    run: EtlRun | None
    ended_at: datetime | None
    expires_at: datetime | None

    def holds(self, at: datetime) -> str:
        """'yes', or since when not, or until when."""
        if self.ended_at:
            return f"ended {self.ended_at:%-d %b %Y}"
        if self.expires_at:
            return f"{'until' if self.expires_at > at else 'expired'} {self.expires_at:%-d %b %Y}"
        return "yes"


@dataclass(frozen=True, slots=True)
class Explanation:
    """After a refusal also quarantine: what a run read of these records and did not take; and when each source was last loaded."""

    decision: Decision
    facts: tuple[Fact, ...]
    quarantine: tuple[EtlRejection, ...] = ()
    loads: tuple[EtlRun, ...] = ()

    @property
    def ask(self) -> str:
        return "" if self.decision else WHOM.get(self.decision.rule, "")


def explain(
    session: Session, terms: Terms, login: str, action: str, objects: Sequence[str], *, plan: str = "", wide: bool = False
) -> Explanation:
    """objects: one 'instance:ID' or 'plan:ID', or one or more 'experiment:ID'. Raises QuestionError."""
    kinds, keys = _parsed(action, objects)
    person = records.find_person(session, login, terms)
    if person is None:
        ids = session.scalars(select(User.id).where(or_(User.login == login, User.id == login))).all()
        decision = access.unknown_person(login, *{*ids, login})
    elif kinds == {"instance"}:
        decision = _of_instance(session, terms, person, Action(action), keys[0], wide)
    elif kinds == {"plan"}:
        decision = _of_experiments(session, terms, person, action, [], keys[0])
    else:
        decision = _of_experiments(session, terms, person, action, keys, plan)
    facts = facts_of(session, decision.records, wide or bool(decision))
    if decision:
        return Explanation(decision, facts)
    quarantined = select(EtlRejection).where(or_(false(), *_rows(decision.records, wide))).order_by(EtlRejection.id.desc())
    return Explanation(decision, facts, tuple(session.scalars(quarantined.limit(REJECTIONS_SHOWN))), tuple(last_loads(session)))


def _parsed(action: str, objects: Sequence[str]) -> tuple[set[str], list[str]]:
    pairs = [tuple(one.split(":", 1)) for one in objects if ":" in one.strip(":")]
    kinds, keys = {pair[0] for pair in pairs}, [pair[1] for pair in pairs]
    known = ", ".join(f"{kind}:ID ({', '.join(actions)})" for kind, actions in ACTIONS.items())
    if len(pairs) != len(objects) or not all(action in ACTIONS.get(kind, ()) for kind in kinds):
        raise QuestionError(f"{action!r} of {', '.join(objects) or 'nothing'} is no question; known are {known}.")
    if len(kinds) != 1 or (len(keys) > 1 and (action, *kinds) != ("launch", "experiment")):
        raise QuestionError("Ask about one object; only a launch may be for several experiments.")
    return kinds, keys


def _of_experiments(session: Session, terms: Terms, person: Person, action: str, keys: list[str], plan_id: str) -> Decision:
    visits = records.experiments_named(session, keys, person.id)
    offer = records.find_plan(session, plan_id) if plan_id else None
    if missing := sorted(set(keys) - {visit.id for visit in visits}):
        return access.unknown_experiments(missing)
    if action == "see":
        return access.may_see(person, visits[0], terms)
    usage = records.find_usage(session, person.id)
    if offer:
        return access.may_launch(person, offer, visits, usage, terms)
    if plan_id:
        return access.unknown_plan(plan_id)
    theirs, room = access.may_use_experiments(person, visits, terms), access.may_own_another(person, usage)
    return theirs if room else room


def _of_instance(session: Session, terms: Terms, person: Person, action: Action, name: str, wide: bool) -> Decision:
    """name: an instance's id, or its owner's login and its own name as in 'ada/films'."""
    login, _, server = name.rpartition("/")
    instance = session.get(Instance, name) or records.find_instance(session, login or person.login, server)
    nothing = Decision(False, "unknown-instance", f"There is no instance {name} that is yours or shared with you.")
    if instance is None:
        return nothing
    place = records.find_place(session, instance, person, terms)
    decision = access.may_act(person, action, place, terms)
    if decision.rule == "not-yours" and not wide:
        return nothing
    owner, plan = records.find_person(session, instance.owner.login, terms), records.find_plan(session, instance.plan_id)
    if decision and action is Action.START and owner and plan:
        visits = records.experiments_named(session, [visit.id for visit in place.visits], owner.id)
        return access.may_launch(owner, plan, visits, None, terms)
    if decision and action is Action.START:
        sentence = "Its plan is no longer offered, or its owner no longer known."
        return replace(access.unknown_plan(instance.plan_id), reason=sentence)
    if decision and action in access.ENTERING and state_of(in_force(instance.intents)) is State.STOPPED:
        return replace(decision, reason=STOPPED_NOW)
    return decision


# --- what a run changed


def before_and_now(session: Session, change: EtlChange) -> dict[str, tuple[Any, Any]]:
    """Each column of a record that a run changed or ended, as it was before the run and as it is."""
    row = session.get(_tables()[change.record], tuple(change.key.values()))
    values = {name: getattr(row, name, None) for name in change.before}
    return {name: (_as(before, values[name]), values[name]) for name, before in change.before.items()}


def _as(before: Any, now: Any) -> Any:
    """What JSON made text of, as it was."""
    moment = datetime.fromisoformat(before) if isinstance(now, datetime) and before else None
    return before if moment is None else moment.replace(tzinfo=moment.tzinfo or UTC)


# --- what is known


def about(session: Session, user_id: str) -> tuple[Fact, ...]:
    """What Hutch knows of a person besides their experiments; what has ended or expired too."""
    refs = [ref("user", user_id)]
    for table in (UserRole, UserGroup, InstrumentScientist):
        key = table.__table__.primary_key
        refs += [
            ref(table.__tablename__, *row) for row in session.execute(select(*key).where(table.user_id == user_id).order_by(*key))
        ]
    return facts_of(session, refs, wide=True)


def last_loads(session: Session) -> list[EtlRun]:
    """The last run of each source that was loaded."""
    newest = select(func.max(EtlRun.id)).where(EtlRun.outcome == "done").group_by(EtlRun.source)
    return list(session.scalars(select(EtlRun).where(EtlRun.id.in_(newest)).order_by(EtlRun.source)))


def facts_of(session: Session, refs: Iterable[str], wide: bool) -> tuple[Fact, ...]:
    """One for each record that there is. wide: whether they say what is in experiments, proposals and instances."""
    found = [(one, row) for one in refs if (row := session.get(*table_and_key(one))) is not None]
    return tuple(
        Fact(
            one,
            words=WORDS[row.__tablename__](row) if wide or row.__tablename__ not in PRIVATE else f"{row.__tablename__} {row.id}",
            source=getattr(row, "source", ""),
            run=session.get(EtlRun, row.run_id) if getattr(row, "run_id", None) else None,
            ended_at=getattr(row, "ended_at", None),
            expires_at=getattr(row, "expires_at", None),
        )
        for one, row in found
    )


def _rows(refs: Iterable[str], wide: bool) -> Iterable[Any]:
    """The rows in quarantine that would be these records; wide: what goes with them too, such as an experiment's members."""
    for one in refs:
        table, key = table_and_key(one)
        # as etl.validate writes it
        words = ",".join(key)
        yield and_(EtlRejection.record == table.__tablename__, EtlRejection.key == words)
        if wide:
            yield EtlRejection.key.startswith(f"{words},", autoescape=True)


def table_and_key(record: str) -> tuple[Any, tuple[str, ...]]:
    table, _, key = record.partition(":")
    return _tables()[table], tuple(map(unquote, key.split("/")))


@cache
def _tables() -> dict[str, Any]:
    return {mapper.class_.__tablename__: mapper.class_ for mapper in Base.registry.mappers}


def _dates(row: Any) -> str:
    return " to ".join(f"{at:%-d %b %Y}" if at else "…" for at in (row.starts_at, row.ends_at))


PRIVATE = frozenset({"experiment", "proposal", "instance"})
WORDS: dict[str, Callable[[Any], str]] = {
    "user": lambda row: f"{row.name}, login {row.login}",
    "user_role": lambda row: f"role {row.role}",
    "user_group": lambda row: f"group {row.group}",
    "instrument_scientist": lambda row: f"scientist of instrument {row.instrument_id}",
    "experiment": lambda row: f"experiment {row.id} of proposal {row.proposal_id} on {row.instrument.name}, {_dates(row)}",
    "experiment_member": lambda row: f"{row.role} of experiment {row.experiment_id}",
    "proposal": lambda row: f"proposal {row.id}, " + (f"open from {row.public_at:%-d %b %Y}" if row.public_at else "never open"),
    "plan": lambda row: f"plan {row.name}, {row.cores} cores",
    "instance": lambda row: f"instance {row.display_name} of {row.owner.login}",
    "support_access": lambda row: f"{row.right or 'nothing'} granted to support, until {row.until or '…'}",
    "instance_member": lambda row: f"{row.role} in the instance since {row.since:%-d %b %Y}",
}
