"""Launches that wait for room in the cloud: their order, whose turn it is, and the table that keeps them.

A wait belongs to an open intent to launch, and ends with it: `instances.conclude` calls `leave`. The order is fair to users and
lets nobody starve: who has, or waits for, more than others waits longer, but by a fixed time for each, so that everybody's moment
stays where it is while newcomers come after it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from statistics import median

from sqlalchemy import bindparam, delete, func, select, update
from sqlalchemy.orm import Session, aliased

from . import notices
from .access import PlanOffer
from .capacity import CAPACITY, QUOTA, Room, Verdict, verdict, with_one_more
from .capacity import rooms as rooms_of
from .database.engine import rows
from .database.tables import Instance, InstanceEvent, Intent, LaunchWait, Outcome, Plan, User, now

# what each instance that somebody has, or waits for already, sets them back in the queue
TURN = timedelta(days=1)
FIRST_PAUSE, LONGEST_PAUSE = timedelta(seconds=10), timedelta(minutes=10)
# waits that count for what one can expect
LATELY, FEWEST = timedelta(days=7), 3
WAITED = "waited"
SENTENCES = {
    QUOTA: "The facility's share of the cloud is used up.",
    CAPACITY: "There is no room in the cloud for this plan just now.",
}


def pause(tries: int) -> timedelta:
    return min(FIRST_PAUSE * 2 ** min(tries, 20), LONGEST_PAUSE)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A launch in the queue. held: instances that its user has already. places: as its plan says; none is the site's first."""

    intent_id: int
    instance_id: str
    user_id: str
    login: str
    server_name: str
    flavor: str
    places: Sequence[str]
    reason: str
    since: datetime
    tries: int = 0
    tried_at: datetime | None = None
    held: int = 0

    @property
    def due(self) -> datetime:
        """When it may be posted (again): with pauses that grow, and not all at once."""
        if self.tried_at is None:
            return self.since
        return self.tried_at + pause(self.tries) * Random(f"{self.intent_id}/{self.tries}").uniform(0.75, 1.25)  # noqa: S311 - no secret

    def verdicts(self, rooms: Mapping[str, Room]) -> dict[str, Verdict]:
        return {place: verdict(rooms.get(place), self.flavor) for place in self.places or ("",)}

    def competes(self, other: Waiting) -> bool:
        """A share of the cloud is everybody's, a host is for a flavor."""
        return self.reason == other.reason and (self.reason == QUOTA or self.flavor == other.flavor)


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a launch is in the queue, as its owner reads it."""

    position: int
    of: int
    estimate: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.sentence} It waits for room: position {self.position} of {self.of}, {self.estimate}. It starts by itself."


# --- the order, pure


def in_order(waiting: Iterable[Waiting]) -> list[Waiting]:
    before: Counter[str] = Counter()
    turns: dict[int, datetime] = {}
    for one in (by_age := sorted(waiting, key=lambda one: (one.since, one.intent_id))):
        turns[one.intent_id] = one.since + TURN * (one.held + before[one.user_id])
        before[one.user_id] += 1
    return sorted(by_age, key=lambda one: turns[one.intent_id])


def turns(
    line: Iterable[Waiting], rooms: Mapping[str, Room], under_way: Collection[tuple[str, str]], at: datetime
) -> list[Waiting]:
    """Those to be posted now. Room is kept for all who come before, whether they fit yet or not; under_way: posted already.

    Where nobody knows what is free, one at a time of each flavor is tried.
    """
    chosen, tried, left = [], set(), dict(rooms)
    for one in line:
        found = one.verdicts(left)
        spot = next((place for place, there in found.items() if not there.trouble), None)
        started = (one.login, one.server_name) in under_way
        if spot is not None and one.flavor not in tried and not started and one.due <= at:
            chosen.append(one)
        if spot is None or not (found[spot].sure or (one.reason == QUOTA and spot in left)):
            tried.add(one.flavor)
        for place in left.keys() & (found if spot is None else {spot}):
            left[place] = with_one_more(left[place], one.flavor)
    return chosen


def may_pass(newcomer: Waiting, line: Sequence[Waiting], rooms: Mapping[str, Room]) -> bool:
    """Whether it takes the room of nobody who waits, as far as anybody knows."""
    return not line or newcomer in turns([*line, newcomer], rooms, (), newcomer.since)


def estimated(waited: timedelta, recent_seconds: Sequence[float], ends: Sequence[datetime], at: datetime) -> str:
    """recent_seconds: how long others waited lately; ends: when enough that others deleted is given back, if that is known."""
    usual = timedelta(seconds=median(recent_seconds)) if len(recent_seconds) >= FEWEST else None
    if usual and usual > waited:
        return f"about {in_words(usual - waited)} by what others waited lately"
    if ends and ends[0] > at:
        return f"at the latest in about {in_words(ends[0] - at)}, when deleted instances give back theirs"
    return "how long it takes is not known"


def in_words(length: timedelta) -> str:
    for unit, seconds in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if (count := round(length.total_seconds() / seconds)) > 1:
            return f"{count} {unit}s"
    return "a minute"


# --- the table


_OTHER = aliased(Instance)
_HELD = select(func.count()).where(_OTHER.owner_id == User.id, _OTHER.deleted_at.is_(None), _OTHER.first_ready_at.is_not(None))
_OF_INSTANCE = Instance.id, User.id, User.login, Instance.server_name, Plan.flavor, Plan.places
_OF_WAIT = LaunchWait.reason, LaunchWait.since, LaunchWait.tries, LaunchWait.tried_at
# built once, because each launch asks it
WAITING = (
    select(LaunchWait.intent_id, *_OF_INSTANCE, *_OF_WAIT, _HELD.scalar_subquery())
    .join(LaunchWait.intent)
    .join(Intent.instance)
    .join(Instance.owner)
    .join(Instance.plan)
    .where(Intent.outcome.is_(None), Instance.deleted_at.is_(None))
)


_SINCE = select(LaunchWait.since).where(LaunchWait.intent_id == bindparam("intent_id"))


def waiting(session: Session) -> list[Waiting]:
    """All who wait, in their order."""
    return in_order(Waiting(*row) for row in rows(session, WAITING))


def join_behind(session: Session, intent: Intent) -> bool:
    """Joins the queue with a new launch, if it would take the room of those who wait."""
    if not (line := waiting(session)):
        return False
    plan, owner = session.get_one(Plan, intent.instance.plan_id), intent.instance.owner_id
    reason = next((one.reason for one in line if one.flavor == plan.flavor), QUOTA)
    newcomer = Waiting(intent.id, intent.instance_id, owner, "", "", plan.flavor, plan.places, reason, now())
    if not (passes := may_pass(newcomer, line, rooms_of(session))):
        join(session, intent, reason)
    return not passes


def join(session: Session, intent: Intent, reason: str, tried_at: datetime | None = None) -> None:
    """Or stay, where it was."""
    wait = session.get(LaunchWait, intent.id)
    if wait is None:
        wait = LaunchWait(intent_id=intent.id)
        session.add(wait)
        session.add(InstanceEvent(instance_id=intent.instance_id, intent_id=intent.id, kind="queued", message=SENTENCES[reason]))
    wait.reason, wait.tried_at = reason, tried_at
    session.flush()


def claim(session: Session, one: Waiting) -> bool:
    """Before it is posted: of two who would post it only one does, and one that is cut off does not post it again at once."""
    query = update(LaunchWait).where(LaunchWait.intent_id == one.intent_id, LaunchWait.tries == one.tries)
    return session.scalar(query.values(tries=one.tries + 1, tried_at=now()).returning(LaunchWait.intent_id)) is not None


def open_wait(session: Session, instance_id: str) -> Intent | None:
    """The intent with which this instance waits, if it does."""
    query = select(Intent).join(LaunchWait, LaunchWait.intent_id == Intent.id)
    return session.scalar(query.where(Intent.instance_id == instance_id, Intent.outcome.is_(None)))


def leave(session: Session, intent: Intent) -> None:
    """An intent is concluded: if it waited, that is over, and its owner is told what came of it. Its lifetime begins only now."""
    since = rows(session, _SINCE, {"intent_id": intent.id}).scalar()
    if since is None:
        return
    session.execute(delete(LaunchWait).where(LaunchWait.intent_id == intent.id))
    instance, length = session.get_one(Instance, intent.instance_id), now() - since
    if intent.outcome == Outcome.DONE:
        facts = {"intent_id": intent.id, "seconds": length.total_seconds()}
        session.add(InstanceEvent(instance_id=instance.id, kind=WAITED, **facts))
        instance.ends_at = instance.ends_at and instance.ends_at + length
        text = f"It waited {in_words(length)} for room in the cloud, and can be opened now."
        notices.tell(session, instance.owner_id, f"{instance.display_name} is running", text)
    elif intent.outcome == Outcome.FAILED:
        text = f"It waited {in_words(length)} for room in the cloud, and then its launch failed. {intent.message or ''}".strip()
        notices.tell(session, instance.owner_id, f"{instance.display_name} could not be launched", text)


def standings(session: Session) -> dict[int, Standing]:
    """Of all who wait, by their intents, each among those who wait for the same."""
    if not (line := waiting(session)):
        return {}
    at, recent, ends = now(), _recent(session), _ends(session)
    found = {}
    for one in line:
        same = [other for other in line if one.competes(other)]
        position, going = same.index(one) + 1, [end for flavor, end in ends if one.reason == QUOTA or flavor == one.flavor]
        words = estimated(at - one.since, recent.get(one.flavor, ()), going[position - 1 : position], at)
        found[one.intent_id] = Standing(position, len(same), words, SENTENCES[one.reason])
    return found


def outlooks(session: Session, plans: Iterable[PlanOffer]) -> dict[str, Verdict]:
    """What stands in the way of a launch, by plan: no room in any of its places, or others who wait for it."""
    line, rooms, found = waiting(session), rooms_of(session), {}
    for plan in plans:
        newcomer = Waiting(0, "", "", "", "", plan.flavor, plan.places, QUOTA, now())
        best = min(newcomer.verdicts(rooms).values(), key=lambda one: bool(one.trouble))
        others = Verdict(QUOTA, f"Others wait already for what becomes free ({len(line)} in the queue).")
        found[plan.id] = best if best.trouble or may_pass(newcomer, line, rooms) else others
    return found


def _recent(session: Session) -> dict[str, list[float]]:
    """How long those who waited lately did, by flavor."""
    query = select(Plan.flavor, InstanceEvent.seconds).join(Instance, Instance.plan_id == Plan.id).join(Instance.events)
    found: dict[str, list[float]] = {}
    for flavor, seconds in session.execute(query.where(InstanceEvent.kind == WAITED, InstanceEvent.at > now() - LATELY)):
        found.setdefault(flavor, []).append(seconds or 0)
    return found


def _ends(session: Session) -> list[tuple[str, datetime]]:
    """When what deleted instances still hold in the cloud is given back, soonest first; how long others last nobody knows."""
    query = select(Plan.flavor, Instance.purge_at).join(Instance, Instance.plan_id == Plan.id)
    query = query.where(Instance.purge_at.is_not(None), Instance.purged_at.is_(None)).order_by(Instance.purge_at)
    return [(flavor, at) for flavor, at in session.execute(query) if at]
