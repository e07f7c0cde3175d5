"""The rules of a launch: which experiments, which plan, how many, for how long."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache

from .facts import ADMIN, UNLIMITED, Decision, Limit, Person, PlanOffer, Quota, Terms, Usage, Visit, ref

# roles that may launch an instance which belongs to no experiment
WITHOUT_EXPERIMENT = frozenset({ADMIN, "staff", "guest"})


# --- what the records do not have


def unknown_person(login: str, *ids: str) -> Decision:
    """ids: under which they may be, or have been, in the records."""
    return Decision(False, "unknown-user", f"{login} is not known to the user office.", tuple(ref("user", one) for one in ids))


def unknown_experiments(ids: Sequence[str]) -> Decision:
    # the same words whether it exists or not would hide typing errors; experiment numbers are no secret
    sentence = f"There is no experiment {', '.join(ids)} in the user office's records."
    return Decision(False, "unknown-experiment", sentence, tuple(ref("experiment", one) for one in ids))


def unknown_plan(plan_id: str) -> Decision:
    return Decision(False, "unknown-plan", f"There is no plan {plan_id!r} (any more).", (ref("plan", plan_id),))


# --- experiments


def may_see(person: Person, visit: Visit, terms: Terms) -> Decision:
    """Whether an experiment is theirs: as a member, or as open data, when its embargo is over and the site includes it."""
    membership = ref("experiment_member", visit.id, person.id)
    if visit.gone:
        reason = f"Experiment {visit.id} is no longer in the user office's records."
        return Decision(False, "experiment-gone", reason, (ref("experiment", visit.id), membership))
    if person.id in visit.roles:
        return Decision(True, "experiment-membership", records=(membership,))
    if terms.open_data and visit.public_at and visit.public_at <= terms.at:
        return Decision(True, "open-data", records=(ref("proposal", visit.proposal_id),))
    reason = f"You are not a member of experiment {visit.id} in the user office's records."
    return Decision(False, "experiment-membership", reason, (ref("experiment", visit.id), membership))


def may_use_experiments(person: Person, visits: Sequence[Visit], terms: Terms) -> Decision:
    """All must be theirs; to launch for none is for admins, staff and guests."""
    if not visits:
        if grounds := person.holds(WITHOUT_EXPERIMENT):
            return Decision(True, "experiment-not-needed", records=grounds)
        sentence = "Choose at least one experiment: only staff and guests may launch without one."
        wanted = (ref("user_role", person.id, role) for role in sorted(WITHOUT_EXPERIMENT))
        return Decision(False, "experiment-needed", sentence, tuple(wanted))
    decisions = [may_see(person, visit, terms) for visit in visits]
    return next((one for one in decisions if not one), _all_of("experiments", decisions))


# --- plans


def may_pick(person: Person, plan: PlanOffer, visits: Sequence[Visit], terms: Terms) -> Decision:
    """A limited plan is for those for whom one of its limits holds, and for admins."""
    records = (ref("plan", plan.id),)
    if not plan.limits:
        return Decision(True, "plan-for-all", records=records)
    if person.is_admin:
        return Decision(True, "plan-admin", records=records + person.holds({ADMIN}))
    for limit in plan.limits:
        if (grounds := grounds_of(limit, person, visits, terms.at)) is not None:
            return Decision(True, "plan-limit", records=records + grounds)
    return Decision(False, "plan-limited", _only_for(plan), records + _missed(plan, person.id))


@lru_cache(1000)
def _only_for(plan: PlanOffer) -> str:
    return f"{plan.name} is only {', or '.join(_in_words(limit, plan.instruments) for limit in plan.limits)}."


@lru_cache(5000)
def _missed(plan: PlanOffer, person_id: str) -> tuple[str, ...]:
    """The records of which one would be needed; kept, because a form is asked about at each key."""
    named = ((table, getattr(limit, named) or ()) for limit in plan.limits for named, _, table in HELD)
    return tuple(sorted({_record(table, person_id, name) for table, names in named for name in names}))


# what a limit names, what of a person it asks for, and the table that says so
HELD = (
    ("instruments", "scientist_of", "instrument_scientist"),
    ("roles", "roles", "user_role"),
    ("groups", "groups", "user_group"),
)


def _record(table: str, person_id: str, name: str) -> str:
    return ref(table, name, person_id) if table == "instrument_scientist" else ref(table, person_id, name)


def grounds_of(limit: Limit, person: Person, visits: Sequence[Visit], at: datetime) -> tuple[str, ...] | None:
    """The records by which all that the limit names holds; None when something does not."""
    if limit.unknown or (limit.since and at < limit.since) or (limit.until and limit.until <= at):
        return None
    found: list[str] = []
    for named, held, table in HELD:
        if (wanted := getattr(limit, named)) is None:
            continue
        grounds = [_record(table, person.id, name) for name in sorted(both)] if (both := wanted & getattr(person, held)) else []
        if named == "instruments":
            grounds += [ref("experiment", visit.id) for visit in visits if visit.instrument_id in wanted]
        if not grounds:
            return None
        found += grounds
    return tuple(found)


def _in_words(limit: Limit, instruments: Mapping[str, str]) -> str:
    if limit.unknown:
        return f"under a condition that Hutch does not know ({_listed(limit.unknown)})"
    words = []
    if limit.instruments is not None:
        words.append(f"for experiments on {_listed(instruments.get(name, name) for name in limit.instruments)}")
    if limit.roles is not None:
        words.append(f"for {_listed(limit.roles)}")
    if limit.groups is not None:
        words.append(f"for the group {_listed(limit.groups)}")
    told = " and ".join(words) or "offered"
    if limit.since:
        told += f" from {_day(limit.since)}"
    return f"{told} until {_day(limit.until)}" if limit.until else told


@lru_cache(1000)
def _day(at: datetime) -> str:
    return f"{at.astimezone(UTC):%-d %B %Y, %H:%M} UTC"


# --- quota


def quota(terms: Terms, titles: Collection[str], *, allotted: int | None = None, own: Quota = Quota()) -> Quota:  # noqa: B008
    """For somebody with these roles and groups (titles): an admin's word (own), else the source's, else the most generous."""
    held = [one for name, one in terms.quotas.items() if not name or name in titles]
    instances = [own.instances, allotted, _most(one.instances for one in held)]
    cores = [own.cores, _most(one.cores for one in held)]
    return Quota(*(next((value for value in values if value is not None), UNLIMITED) for values in (instances, cores)))


def _most(values: Iterable[int | None]) -> int | None:
    named = [value for value in values if value is not None]
    return UNLIMITED if UNLIMITED in named else max(named, default=None)


def may_own_another(person: Person, usage: Usage) -> Decision:
    records = (ref("user", person.id),)
    if person.quota == UNLIMITED or usage.instances < person.quota:
        return Decision(True, "quota", records=records)
    sentence = f"You have {usage.instances} of at most {person.quota} instances. Delete one to launch another."
    return Decision(False, "quota", sentence, records)


def may_add_cores(person: Person, usage: Usage, plan: PlanOffer) -> Decision:
    records = (ref("user", person.id), ref("plan", plan.id))
    if person.core_quota == UNLIMITED or usage.cores + plan.cores <= person.core_quota:
        return Decision(True, "quota-cores", records=records)
    sentence = (
        f"Your instances have {usage.cores} of at most {person.core_quota} cores, and {plan.name} needs {plan.cores}. "
        "Delete one, or choose a smaller plan."
    )
    return Decision(False, "quota-cores", sentence, records)


def _may_resume(person: Person) -> Decision:
    """A resume takes no new room, but a quota of 0 locks out."""
    records = (ref("user", person.id),)
    if 0 not in (person.quota, person.core_quota):
        return Decision(True, "quota", records=records)
    which = "instance" if person.quota == 0 else "core"
    return Decision(False, "quota", f"Your {which} quota is 0: no instance may be started.", records)


# --- all together


def may_launch(person: Person, plan: PlanOffer, visits: Sequence[Visit], usage: Usage | None, terms: Terms) -> Decision:
    """usage: what the person has without this instance; None at a resume."""
    room = [may_own_another(person, usage), may_add_cores(person, usage, plan)] if usage else [_may_resume(person)]
    decisions = [may_use_experiments(person, visits, terms), may_pick(person, plan, visits, terms), *room]
    return next((one for one in decisions if not one), _all_of("launch", decisions))


def lifetime(person: Person, plan: PlanOffer, terms: Terms) -> timedelta | None:
    """The longest that the plan gives one of their roles or groups, or else the site's; None: without end."""
    everybody = terms.lifetime.total_seconds() / 86400 if terms.lifetime else 0
    given = {"": everybody, **plan.lifetimes}
    days = [value for name, value in given.items() if not name or name in person.roles | person.groups]
    return None if 0 in days else timedelta(days=max(days))


def _all_of(rule: str, decisions: Iterable[Decision]) -> Decision:
    return Decision(True, rule, records=tuple(dict.fromkeys(record for one in decisions for record in one.records)))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
