"""Who may do what, and why: pure functions over records, no I/O.

Every rule answers with a `Decision`, whose reason is the sentence that people read. The rules follow VISA's (launch: *Who may
create what*; plans: instrument and role limits are OR-ed), with role expiry honoured everywhere: an expired role is no role.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

UNLIMITED = -1
# roles that may launch an instance which belongs to no experiment
WITHOUT_EXPERIMENT = frozenset({"admin", "staff", "guest"})


@dataclass(frozen=True, slots=True)
class Person:
    """A user of the facility as the rules see them: roles holds only what has not expired."""

    id: str
    login: str
    name: str
    roles: frozenset[str] = frozenset()
    scientist_of: frozenset[str] = frozenset()
    quota: int = 2

    @property
    def is_admin(self) -> bool:
        return "admin" in self.roles


@dataclass(frozen=True, slots=True)
class Visit:
    """An experiment as the rules see it; roles is {user id: role in the experiment}, of the person whom they are asked about."""

    id: str
    proposal_id: str
    instrument_id: str
    title: str
    instrument: str = ""
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    roles: dict[str, str] = field(default_factory=dict)

    def when(self, now: datetime) -> str:
        """'running', 'past' or 'coming'; a missing date is an open end."""
        if self.ends_at and self.ends_at <= now:
            return "past"
        if self.starts_at and self.starts_at > now:
            return "coming"
        return "running"


@dataclass(frozen=True, slots=True)
class Limit:
    """One way to be allowed a plan: it holds when all that it names holds; what is empty is not asked for."""

    instruments: frozenset[str] = frozenset()
    roles: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class PlanOffer:
    """A plan as the rules see it."""

    id: str
    name: str
    description: str = ""
    image: str = ""
    flavor: str = ""
    cores: int = 0
    memory_mb: int = 0
    limits: tuple[Limit, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """rule: the name of the rule that decided. records: what it rests on, as 'table:id'."""

    allowed: bool
    rule: str
    reason: str = ""
    records: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.allowed


def may_use_experiments(person: Person, visits: Sequence[Visit]) -> Decision:
    """An instance belongs to experiments of its owner; to none only for admins, staff and guests."""
    if not visits and not person.roles & WITHOUT_EXPERIMENT:
        return Decision(False, "experiment-needed", "Choose at least one experiment: only staff and guests may launch without one.")
    foreign = [visit.id for visit in visits if person.id not in visit.roles]
    if foreign:
        return Decision(
            False,
            "experiment-membership",
            f"You are not a member of experiment {', '.join(foreign)} in the user office's records.",
            tuple(f"experiment:{name}" for name in foreign),
        )
    return Decision(True, "experiment-membership", records=tuple(f"experiment:{visit.id}" for visit in visits))


def may_pick(person: Person, plan: PlanOffer, visits: Sequence[Visit]) -> Decision:
    """A limited plan is for those for whom one of its limits holds."""
    records = (f"plan:{plan.id}",)
    if not plan.limits:
        return Decision(True, "plan-for-all", records=records)
    if person.is_admin:
        return Decision(True, "plan-admin", records=records)
    if any(_holds(limit, person, visits) for limit in plan.limits):
        return Decision(True, "plan-limit", records=records)
    return Decision(False, "plan-limited", f"{plan.name} is only {', or '.join(map(_in_words, plan.limits))}.", records)


def _holds(limit: Limit, person: Person, visits: Sequence[Visit]) -> bool:
    places = person.scientist_of | {visit.instrument_id for visit in visits}
    return (not limit.instruments or bool(limit.instruments & places)) and (not limit.roles or bool(limit.roles & person.roles))


def _in_words(limit: Limit) -> str:
    words = [f"for experiments on {_listed(limit.instruments)}"] if limit.instruments else []
    return " and ".join([*words, *([f"for {_listed(limit.roles)}"] if limit.roles else [])])


def may_own_another(person: Person, owned: int) -> Decision:
    """The quota counts instances, stopped ones too, as they keep their disk."""
    if person.quota == UNLIMITED or owned < person.quota:
        return Decision(True, "quota")
    return Decision(
        False,
        "quota",
        f"You have {owned} of at most {person.quota} instances. Delete one to launch another.",
        (f"user:{person.id}",),
    )


def may_launch(person: Person, plan: PlanOffer, visits: Sequence[Visit], *, owned: int | None) -> Decision:
    """A launch. owned: how many instances the person has without this one; None at a resume, which takes no new room."""
    quota = may_own_another(person, owned) if owned is not None else _not_locked_out(person)
    for decision in (may_use_experiments(person, visits), may_pick(person, plan, visits), quota):
        if not decision:
            return decision
    return Decision(
        True, "launch", records=(f"user:{person.id}", f"plan:{plan.id}", *(f"experiment:{visit.id}" for visit in visits))
    )


class Action(StrEnum):
    """What can be done with an instance that exists."""

    SEE = "see"
    OPEN = "open"
    START = "start"
    STOP = "stop"
    DELETE = "delete"


# what an admin may do with somebody else's instance; to open it is the owner's to grant
ADMIN_ACTIONS = frozenset({Action.SEE, Action.START, Action.STOP, Action.DELETE})


def may_act(person: Person, action: Action, owner_id: str) -> Decision:
    """The owner may do everything, an admin what running the service needs, nobody else anything."""
    if person.id == owner_id:
        return Decision(True, "owner")
    if person.is_admin and action in ADMIN_ACTIONS:
        return Decision(True, "admin")
    return Decision(False, "not-yours", "This instance belongs to somebody else.", (f"user:{owner_id}",))


def _not_locked_out(person: Person) -> Decision:
    if person.quota == 0:
        return Decision(False, "quota", "Your instance quota is 0: no instance may be started.", (f"user:{person.id}",))
    return Decision(True, "quota")


def _listed(names: frozenset[str]) -> str:
    return ", ".join(sorted(names))
