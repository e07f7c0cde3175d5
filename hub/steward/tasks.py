"""What the steward carries out: deletions whose grace is over, stops that were cut off, and servers that the hub lost sight of.

Everything rests on intents in the database: without one, nothing is touched. A call that failed proves nothing, and is repeated
at a later pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial

import structlog
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from spawner import builders
from spawner.cloud import Cloud, CloudError
from spawner.openstack import ENDED
from spawner.removal import remove_instance

from .. import instances
from ..database.tables import Instance, Intent, IntentKind, Outcome, User, now
from ..facility import Facility

log = structlog.get_logger()

# a stop that the hub has not carried out by then was cut off
STOP_OVERDUE = timedelta(minutes=2)
FIRST_PAUSE, LONGEST_PAUSE = timedelta(seconds=10), timedelta(minutes=10)


async def purge(facility: Facility, cloud: Cloud) -> None:
    """Deletes the servers of instances that were marked, when their grace is over."""
    due = await facility.ask(lambda session: [instance.id for instance in instances.due_for_purge(session, now())])
    for instance_id in due:
        try:
            count = await remove_instance(cloud, facility.deployment_id, instance_id)
        except (CloudError, TimeoutError) as error:
            log.warning("purge put off", instance=instance_id, error=str(error))
            continue
        await facility.ask(partial(_purged, instance_id=instance_id))
        log.info("purged", instance=instance_id, deleted=count)


def _purged(session: Session, instance_id: str) -> None:
    instance = session.get_one(Instance, instance_id)
    if instance.deleted_at is None:
        return
    instance.purged_at = now()
    intent = instances.latest_intent(session, instance_id)
    if intent and intent.kind == IntentKind.DELETE and intent.outcome is None:
        instances.conclude(session, intent, Outcome.DONE)


async def finish_stops(facility: Facility, cloud: Cloud) -> None:
    """Powers off what somebody asked to stop or delete, where the hub did not get to the end of it."""
    overdue = await facility.ask(lambda session: _overdue(session, now() - STOP_OVERDUE))
    if not overdue:
        return
    servers = {server["metadata"].get(builders.INSTANCE_KEY): server for server in await cloud.servers(facility.deployment_id)}
    for instance_id in overdue:
        server = servers.get(instance_id)
        if server is None or (server["status"] in ENDED and not server["OS-EXT-STS:task_state"]):
            await facility.ask(partial(_stopped, instance_id=instance_id))
        elif not server["OS-EXT-STS:task_state"]:
            log.info("finishing a stop", instance=instance_id, server=server["id"])
            try:
                await cloud.act(server["id"], "os-stop")
            except CloudError as error:
                # the next one must not wait for it
                log.warning("stop put off", instance=instance_id, error=str(error))


def _overdue(session: Session, before: datetime) -> list[str]:
    return list(
        session.scalars(
            select(Intent.instance_id).where(
                Intent.kind.in_([IntentKind.STOP, IntentKind.DELETE]), Intent.outcome.is_(None), Intent.asked_at < before
            )
        )
    )


def _stopped(session: Session, instance_id: str) -> None:
    intent = instances.latest_intent(session, instance_id)
    if intent and intent.kind == IntentKind.STOP and intent.outcome is None:
        instances.conclude(session, intent, Outcome.DONE, message="finished by the steward")


@dataclass
class Readoption:
    """Asks the hub to start again what nobody stopped and it no longer serves, with pauses that grow for each instance."""

    tried: dict[str, tuple[int, datetime]] = field(default_factory=dict)

    def due(self, instance_id: str, at: datetime) -> bool:
        tries, last = self.tried.get(instance_id, (0, datetime.min.replace(tzinfo=at.tzinfo)))
        due = at - last >= min(FIRST_PAUSE * 2 ** min(tries, 20), LONGEST_PAUSE)
        if due:
            self.tried[instance_id] = (tries + 1, at)
        return due

    def back(self, instance_id: str) -> None:
        self.tried.pop(instance_id, None)


@dataclass(frozen=True, slots=True)
class Launched:
    """An instance that is meant to run."""

    instance_id: str
    login: str
    server_name: str


def meant_to_run(session: Session) -> list[Launched]:
    """Instances whose newest intent is a launch that neither failed nor was cancelled."""
    newest = select(func.max(Intent.id)).group_by(Intent.instance_id)
    query = (
        select(Instance.id, User.login, Instance.server_name)
        .join(User, User.id == Instance.owner_id)
        .join(Intent, Intent.instance_id == Instance.id)
        .where(
            Intent.id.in_(newest),
            Instance.deleted_at.is_(None),
            Intent.kind == IntentKind.LAUNCH,
            Intent.outcome.is_(None) | (Intent.outcome == Outcome.DONE),
        )
    )
    return [Launched(*row) for row in session.execute(query)]
