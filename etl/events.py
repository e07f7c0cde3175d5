"""UserOffice's events, from RabbitMQ: what is told of a proposal is its whole team, which replaces the one that is held.

New experiments come with the source's scheduled run. A message is acknowledged when its change is committed, so that one may come
twice, which changes nothing. One is taken at a time, by one consumer: the order of messages is the order of changes.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

import aio_pika
import structlog
from aio_pika.abc import AbstractChannel, AbstractQueue
from aio_pika.exceptions import AMQPError, ChannelInvalidStateError
from pydantic import AliasPath, AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import Engine, and_, func, select
from sqlalchemy.orm import Session
from yarl import URL

from etl.adapters.http import Rows
from etl.adapters.useroffice import UserOffice
from etl.frames import Adapter, Extract, Scope, SourceError, secret
from etl.people import issuer_of
from etl.push import Sent, extract_of, faults
from etl.source import Source
from hub.configuration import ConfigurationError
from hub.database.tables import Experiment, ExperimentMember, Identity, MemberOf
from hub.service import well

if TYPE_CHECKING:
    from etl.serve import Service

DELETED = "PROPOSAL_DELETED"
VISITS = ("VISIT_CREATED", "VISIT_DELETED")
TEAMS = ("PROPOSAL_CREATED", "PROPOSAL_UPDATED", "PROPOSAL_SUBMITTED", "PROPOSAL_ACCEPTED", "PROPOSAL_STATUS_ACTION_EXECUTED")
CONNECT_AGAIN_SECONDS = 5.0

log = structlog.get_logger("etl")


class _Told(BaseModel):
    model_config = ConfigDict(coerce_numbers_to_str=True)


class Person(_Told):
    """With the names that UserOffice's API has for the same."""

    id: str
    firstname: str = Field(alias="firstName")
    lastname: str = Field(alias="lastName")
    email: str | None
    oidc_sub: str | None = Field(alias="oidcSub")
    institutionId: str | None = Field(None, validation_alias=AliasPath("institution", "id"))
    institution: str | None = Field(None, validation_alias=AliasPath("institution", "name"))
    country: str | None = Field(None, validation_alias=AliasPath("country", "country"))


class Proposal(_Told):
    """The proposer and all lists must be there: a team that is half told removes nobody."""

    shortCode: str
    title: str
    abstract: str | None = None
    proposer: Person
    members: list[Person]
    dataAccessUsers: list[Person]
    visitors: list[Person]


class Visit(_Told):
    """A visit that was approved or cancelled. visitorId: an oidcSub, maybe of somebody who is no visitor any more."""

    startAt: AwareDatetime | None
    endAt: AwareDatetime | None
    visitorId: str | None
    proposal: Proposal


@dataclass(frozen=True, slots=True)
class Held:
    """An experiment as the database has it. members: by the source's own ids."""

    id: str
    starts_at: datetime | None
    ends_at: datetime | None
    members: dict[str, str]

    def overlaps(self, visit: Visit) -> bool:
        if not visit.startAt or not visit.endAt:
            return False
        return (not self.ends_at or visit.startAt < self.ends_at) and (not self.starts_at or visit.endAt > self.starts_at)


def held(engine: Engine, source: str, proposal_id: str) -> list[Held]:
    """The experiments of a proposal of this source that have not ended, with their members."""
    own_ids = and_(Identity.user_id == ExperimentMember.user_id, Identity.issuer == issuer_of(source))
    members = select(
        ExperimentMember.experiment_id, func.coalesce(Identity.subject, ExperimentMember.user_id), ExperimentMember.role
    ).outerjoin(Identity, own_ids)
    of_proposal = select(Experiment).where(
        Experiment.source == source, Experiment.proposal_id == proposal_id, Experiment.ended_at.is_(None)
    )
    with Session(engine) as session:
        found = {one.id: Held(one.id, one.starts_at, one.ends_at, {}) for one in session.scalars(of_proposal)}
        there = members.where(ExperimentMember.experiment_id.in_(found), ExperimentMember.ended_at.is_(None))
        for experiment, person, role in session.execute(there):
            found[experiment].members[person] = role
    return list(found.values())


def replaced(office: UserOffice, told: Proposal, visit: Visit | None, comes: bool, experiments: list[Held]) -> Extract:
    """The team of each experiment: whoever the message names, its local contacts, and its visitors as long as they are approved.

    A proposal's message does not say whose visit belongs to which experiment; a visit's dates do.
    """
    rows = Rows("event")
    rows.add("proposal", id=told.shortCode, title=told.title, summary=told.abstract)
    for person in (told.proposer, *told.members, *told.dataAccessUsers, *told.visitors):
        office.add_person(rows, person.model_dump())
    approved = {person.id for person in told.visitors}
    visitor = {person.id for person in told.visitors if visit and person.oidc_sub == visit.visitorId}
    for experiment in experiments:
        visitors = approved & experiment.members.keys()
        if visit and experiment.overlaps(visit):
            visitors = visitors | visitor if comes else visitors - visitor
        members = {person.id for person in (*told.members, *told.dataAccessUsers)}
        team = dict.fromkeys(members | visitors, MemberOf.MEMBER)
        team |= {person: MemberOf.LOCAL_CONTACT for person, role in experiment.members.items() if role == MemberOf.LOCAL_CONTACT}
        for one, role in (team | {told.proposer.id: MemberOf.PRINCIPAL_INVESTIGATOR}).items():
            rows.add("experiment_member", experiment_id=experiment.id, user_id=one, role=role)
    teams = Scope("experiment_id", frozenset(experiment.id for experiment in experiments))
    return rows.extract((), {**dict.fromkeys(("affiliation", "user", "proposal")), "experiment_member": teams})


def removed(proposal_id: str, experiments: list[Held]) -> Extract:
    ids = frozenset(experiment.id for experiment in experiments)
    of_proposal = {"proposal": Scope("id", frozenset({proposal_id})), "experiment": Scope("proposal_id", frozenset({proposal_id}))}
    scopes = {**of_proposal, "experiment_member": Scope("experiment_id", ids)}
    return extract_of({table: [] for table in scopes}, scopes, "event")


class Follower:
    """Follows the events of one source for as long as the service runs."""

    def __init__(self, service: Service, source: Source, adapter: Adapter) -> None:
        if not source.events or not isinstance(adapter, UserOffice):
            raise ConfigurationError(f"the source {source.name!r} has [events], which only the adapter useroffice can read")
        self._service, self._source, self._office, self._events = service, source, adapter, source.events

    async def follow(self) -> None:
        while True:
            try:
                await self._consume()
            except (AMQPError, ChannelInvalidStateError, OSError, SourceError) as error:
                log.warning("events wait", source=self._source.name, reason=repr(error))
            await asyncio.sleep(CONNECT_AGAIN_SECONDS)

    async def _consume(self) -> None:
        """Until the connection ends, and with it the iteration."""
        password = secret(self._events.password_file) if self._events.password_file else None
        url = URL(self._events.url)
        async with await aio_pika.connect(url.with_password(password) if password else url) as connection:
            channel = await connection.channel()
            await channel.set_qos(prefetch_count=1)
            queue = await self._queue(channel)
            log.info("following events", source=self._source.name, queue=queue.name)
            well("events wait", source=self._source.name)
            async with queue.iterator() as messages:
                async for message in messages:
                    kind = message.type or ""
                    outcome = await self.take(kind, message.body)
                    self._service.metrics.events.labels(self._source.name, kind, outcome).inc()
                    await (message.ack() if outcome in ("done", "not ours") else message.reject())

    async def _queue(self, channel: AbstractChannel) -> AbstractQueue:
        """Ours, which outlives this process; what cannot be taken goes to the one beside it."""
        dead = await channel.declare_queue(f"{self._events.queue}.dead", durable=True)
        beside: dict[str, Any] = {
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": dead.name,
            "x-single-active-consumer": True,
        }
        queue = await channel.declare_queue(self._events.queue, durable=True, arguments=beside)
        await queue.bind(self._events.exchange)
        return queue

    async def take(self, kind: str, body: bytes) -> str:
        """done; not ours: an event or a proposal that is not known here; refused: not now and not later. Waits for the database."""
        if kind not in (*TEAMS, *VISITS, DELETED):
            return "not ours"
        try:
            visit = Visit.model_validate_json(body) if kind in VISITS else None
            told = visit.proposal if visit else Proposal.model_validate_json(body)
            experiments = partial(held, self._service.engine, self._source.name, told.shortCode)
            if not await self._service.patiently(inf, experiments):
                return "not ours"

            def change() -> Extract:
                if kind == DELETED:
                    return removed(told.shortCode, experiments())
                return replaced(self._office, told, visit, kind == VISITS[0], experiments())

            report = await self._service.load(inf, self._source, Sent("event", change), allow_removals=True)
            reason = "; ".join(report.objections)
        except ValidationError as error:
            reason = "; ".join(f"{fault['at']}: {fault['fault']}" for fault in faults(error))
        except Exception as error:
            # whatever it is, it must not hold up what comes behind it
            log.exception("an event cannot be taken", source=self._source.name, type=kind)
            reason = repr(error)
        await self._service.tell(
            f"an event of {self._source.name}", reason and f"{kind}: {reason}. It is in the queue {self._events.queue}.dead."
        )
        return "refused" if reason else "done"
