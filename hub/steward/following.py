"""What a change of the facility's records means for instances that exist.

Worked out from the records as they are now, not from what changed: a pass that was missed or cut off is made up for by the next.
Whoever is no longer on an experiment loses the running instance, or the part in it, and is told why; what is on the disk stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import quote

import aiohttp
import structlog
from sqlalchemy import and_, or_, select
from sqlalchemy.orm import Session, aliased, joinedload

from .. import access, instances, notices, records
from ..database.tables import Experiment, ExperimentMember, Instance, InstanceMember, IntentKind, User, now
from ..facility import Facility
from ..services import STEWARD
from .guard import Guard
from .tasks import Launched, meant_to_run

log = structlog.get_logger()

ALLOW_FILE = "allow-revocations"


@dataclass(frozen=True, slots=True)
class Loss:
    """Somebody who may no longer use an instance: its owner, or somebody whom it may be shared with. They are {why}."""

    instance_id: str
    title: str
    owner: str
    server_name: str
    login: str
    why: str

    @property
    def share(self) -> str:
        return f"users/{quote(self.login, safe='')}/shared/{quote(self.owner, safe='')}/{quote(self.server_name, safe='')}"


def owners_out(session: Session, terms: access.Terms) -> list[Loss]:
    """Of the instances that are meant to run: those whose owner may no longer have them run."""
    theirs = and_(ExperimentMember.user_id == Instance.owner_id, ExperimentMember.ended_at.is_(None))
    in_doubt = or_(
        User.ended_at.is_not(None),
        ~Instance.experiments.any(),
        Instance.experiments.any(or_(Experiment.ended_at.is_not(None), ~Experiment.members.any(theirs))),
    )
    query = select(Instance).join(Instance.owner).options(joinedload(Instance.owner)).where(in_doubt)
    running = [one.instance_id for one in meant_to_run(session)]
    return _losses(session, [(row, row.owner) for row in session.scalars(query.where(Instance.id.in_(running)))], terms)


def guests_out(session: Session, terms: access.Terms) -> list[Loss]:
    """Those who were on an experiment of an instance and no longer are, whether it was ever shared with them or not."""
    member, visit = aliased(ExperimentMember), aliased(Experiment)
    query = (
        select(Instance, User)
        .join(Instance.experiments.of_type(visit))
        .join(member, member.experiment_id == visit.id)
        .join(User, User.id == member.user_id)
        .where(Instance.deleted_at.is_(None), User.id != Instance.owner_id)
        .where(or_(member.ended_at.is_not(None), visit.ended_at.is_not(None), User.ended_at.is_not(None)))
        .options(joinedload(Instance.owner))
        .distinct()
    )
    return _losses(session, session.execute(query).tuples().all(), terms)


def _losses(session: Session, pairs: Sequence[tuple[Instance, User]], terms: access.Terms) -> list[Loss]:
    return [
        Loss(instance.id, instance.display_name, instance.owner.login, instance.server_name, user.login, why)
        for instance, user in pairs
        if (why := _why(session, instance, user, terms))
    ]


def _why(session: Session, instance: Instance, user: User, terms: access.Terms) -> str:
    """Empty where the rules still allow it."""
    person = records.find_person(session, user.login, terms)
    if person is None:
        return f"no longer known to the user office{_origin(user)}"
    visits = records.find_place(session, instance, person, terms).visits
    if not visits:
        allowed = access.may_use_experiments(person, (), terms)
        return "" if allowed else "no longer of those who may have an instance without an experiment"
    lost = next((visit for visit in visits if not access.may_see(person, visit, terms)), None)
    if lost is None:
        return ""
    experiment = session.get_one(Experiment, lost.id)
    record = experiment if experiment.ended_at else session.get(ExperimentMember, (lost.id, user.id))
    return f"no longer on the team of experiment {lost.id}{_origin(record)}"


def _origin(record: Any) -> str:
    """Which source and run said so, as far as that is known."""
    if record is None or record.ended_at is None:
        return ""
    run = f"source {record.source!r}, run {record.run_id}, " if record.run_id else ""
    return f" ({run}{record.ended_at:%-d %B %Y, %H:%M} UTC)"


def with_a_part(session: Session, instance_ids: set[str]) -> set[tuple[str, str]]:
    """(instance id, login) of those who have a part in these instances because of an experiment."""
    parts = select(InstanceMember.instance_id, User.login).join(InstanceMember.user)
    theirs = InstanceMember.ended_at.is_(None), InstanceMember.role.in_([access.Part.DRIVER, access.Part.VIEWER])
    return set(session.execute(parts.where(InstanceMember.instance_id.in_(instance_ids), *theirs)).tuples())


def stop(session: Session, loss: Loss, ask: str) -> None:
    """Written down before the hub is asked; where that does not get to the end of it, `finish_stops` goes on."""
    if not instances.is_meant_to_run(session, loss.instance_id):
        return
    instances.intend(session, loss.instance_id, IntentKind.STOP, STEWARD, f"{loss.login} is {loss.why}")
    text = f"You are {loss.why}. What is on its disk is kept, and when you are back you can start it again.{ask}"
    notices.tell(session, session.get_one(Instance, loss.instance_id).owner_id, f"{loss.title} was stopped", text)


def end_part(session: Session, loss: Loss, ask: str) -> None:
    """After JupyterHub has taken the share back."""
    instance, user = session.get_one(Instance, loss.instance_id), session.scalars(select(User).filter_by(login=loss.login)).one()
    if member := session.get(InstanceMember, (instance.id, user.id)):
        member.ended_at = now()
    instances.record_event(session, instance.id, "access-ended", actor=STEWARD, message=f"{loss.login} is {loss.why}")
    notices.tell(
        session, instance.owner_id, f"{loss.title} is no longer shared with {user.name}", f"{user.name} is {loss.why}.{ask}"
    )
    notices.tell(session, user.id, f"You can no longer open {loss.title} of {instance.owner.name}", f"You are {loss.why}.{ask}")


@dataclass
class Following:
    facility: Facility
    hub: aiohttp.ClientSession
    without_share: set[Loss] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.guard = Guard(self.facility, ALLOW_FILE)

    async def follow_runs(self) -> None:
        """Raises what the hub said to one of the questions, but only when the others have been asked too."""
        self.refusals: list[aiohttp.ClientResponseError] = []
        terms = self.facility.hutch.terms(now())
        owners = await self.facility.ask(partial(owners_out, terms=terms))
        guests = await self._sharing(await self.facility.ask(partial(guests_out, terms=terms)))
        if await self._allowed({loss.instance_id for loss in (*owners, *guests)}):
            for loss in owners:
                await self._stop(loss)
            for loss in guests:
                with self._going_on():
                    await self._revoke(loss)
        for refusal in self.refusals:
            raise refusal

    @contextmanager
    def _going_on(self) -> Iterator[None]:
        try:
            yield
        except aiohttp.ClientResponseError as refusal:
            self.refusals.append(refusal)

    async def _sharing(self, former: Sequence[Loss]) -> list[Loss]:
        """Those with whom it is shared, by our records or in JupyterHub, which is asked once about each."""
        parts = await self.facility.ask(partial(with_a_part, instance_ids={loss.instance_id for loss in former}))
        self.without_share &= set(former)
        shared = set[Loss]()
        for loss in set(former) - self.without_share:
            with self._going_on():
                async with self.hub.get(loss.share) as response:
                    if response.status != 404:
                        response.raise_for_status()
                    there = response.status != 404 or (loss.instance_id, loss.login) in parts
                (shared if there else self.without_share).add(loss)
        return [loss for loss in former if loss in shared]

    async def _allowed(self, instance_ids: set[str]) -> bool:
        """Whether that is little enough to be done without asking; where it is not, an operator may allow it once."""
        running = len(await self.facility.ask(meant_to_run))
        words = (
            f"By the records as they are now, people would lose {len(instance_ids)} instances ({running} are running). Nothing was "
            f"done. If the records are wrong, undo the run (`hutch etl undo`); if they are right, make the file {self.guard.path}."
        )
        return await self.guard.allows(len(instance_ids), running, words)

    async def _stop(self, loss: Loss) -> None:
        log.info("its owner may no longer have it run", instance=loss.instance_id, owner=loss.owner, why=loss.why)
        await self.facility.ask(partial(stop, loss=loss, ask=self._ask))
        async with self.hub.delete(Launched(loss.instance_id, loss.owner, loss.server_name).path) as response:
            if response.status not in (202, 204, 404):
                log.warning("the hub did not stop it", instance=loss.instance_id, status=response.status)

    async def _revoke(self, loss: Loss) -> None:
        """JupyterHub's handler for it closes what they have open (`hub.revoking`)."""
        log.info("its guest may no longer be there", instance=loss.instance_id, guest=loss.login, why=loss.why)
        async with self.hub.delete(loss.share) as response:
            if response.status != 404:
                response.raise_for_status()
        await self.facility.ask(partial(end_part, loss=loss, ask=self._ask))

    @property
    def _ask(self) -> str:
        return f" If that is wrong, please ask {self.facility.hutch.contact}." if self.facility.hutch.contact else ""
