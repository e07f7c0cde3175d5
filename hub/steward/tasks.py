"""What the steward carries out: lifetimes and graces that are over, stops that were cut off, servers that the hub lost sight of.

Everything rests on what is in the database: without an intent, nothing is touched. A call that failed proves nothing, and is
repeated at a later pass.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial, wraps
from urllib.parse import quote

import structlog
from sqlalchemy import ColumnElement, func, select
from sqlalchemy.orm import Session, joinedload

from spawner import belongings
from spawner.cloud import Cloud
from spawner.places import cloud_in
from spawner.servers import Server, instance_of, is_ended, task_of

from .. import instances, notices, queue
from ..database.tables import Instance, Intent, IntentKind, Outcome, User, now
from ..facility import Facility
from ..group_sync import runs_done
from ..service import putting_off
from ..services import STEWARD

log = structlog.get_logger()

# a stop that the hub has not carried out by then was cut off
STOP_OVERDUE = timedelta(minutes=2)
AGAIN_SECONDS = 30.0
PURGED_AT_A_TIME = 10


@dataclass(frozen=True, slots=True)
class Launched:
    """An instance as the hub knows it."""

    instance_id: str
    login: str
    server_name: str

    @property
    def path(self) -> str:
        """Of JupyterHub's API."""
        return f"users/{quote(self.login, safe='')}/servers/{quote(self.server_name, safe='')}"


def after_runs(facility: Facility, task: Callable[[], Awaitable[None]]) -> Callable[[], Awaitable[None]]:
    """The task after each run, and at an interval for what admins change and what expires; at the next look where it failed."""
    runs, due = -1, 0.0

    @wraps(task)
    async def paced() -> None:
        nonlocal runs, due
        clock, found = asyncio.get_running_loop().time, await facility.ask(runs_done)
        if found != runs or clock() >= due:
            await task()
            runs, due = found, clock() + AGAIN_SECONDS

    return paced


def expire(session: Session, grace: timedelta) -> list[Launched]:
    """Marks the instances whose lifetime is over, and returns them. In the grace, their owners can restore them."""
    query = select(Instance).where(Instance.ends_at <= now(), Instance.deleted_at.is_(None)).options(joinedload(Instance.owner))
    expired = []
    for instance in session.scalars(query):
        instances.mark_deleted(session, instance, STEWARD, "its lifetime is over", grace)
        left = f"You can restore it, from “My instances”, until {instance.purge_at:%-d %B %Y}." if grace else "It is deleted."
        notices.tell(session, instance.owner_id, f"{instance.display_name} was switched off", f"Its lifetime is over. {left}")
        expired.append(Launched(instance.id, instance.owner.login, instance.server_name))
    return expired


async def purge(facility: Facility, clouds: Mapping[str, Cloud]) -> None:
    """Deletes the servers of instances that were marked, when their grace is over. One that will not go holds up few others."""
    room = asyncio.Semaphore(PURGED_AT_A_TIME)

    async def one(instance_id: str, place: str) -> None:
        async with room:
            with putting_off("purge put off", instance=instance_id):
                count = await belongings.remove(cloud_in(clouds, place), facility.deployment_id, instance_id)
                await facility.ask(partial(_purged, instance_id=instance_id))
                log.info("purged", instance=instance_id, deleted=count)

    due = await facility.ask(lambda session: [(one.id, one.place) for one in instances.due_for_purge(session, now())])
    await asyncio.gather(*(one(*each) for each in due))


def _purged(session: Session, instance_id: str) -> None:
    instance = session.get_one(Instance, instance_id)
    if instance.deleted_at is None:
        return
    instance.purged_at = now()
    instances.conclude_open(session, instance_id, IntentKind.DELETE, Outcome.DONE)


async def finish_stops(facility: Facility, clouds: Mapping[str, Cloud]) -> None:
    """Powers off what somebody asked to stop or delete, where the hub did not get to the end of it."""
    overdue = await facility.ask(_overdue)
    for place in sorted({place for _, place in overdue}):
        with putting_off("stops put off", place=place):
            cloud = cloud_in(clouds, place)
            # one listing for all: what is marked for deletion is among them for as long as its grace
            listed = await cloud.servers(facility.deployment_id)
            for instance_id in [one for one, where in overdue if where == place]:
                with putting_off("stop put off", instance=instance_id):
                    await _finish_stop(facility, cloud, instance_id, [one for one in listed if instance_of(one) == instance_id])


async def _finish_stop(facility: Facility, cloud: Cloud, instance_id: str, listed: list[Server]) -> None:
    servers = listed
    if not servers:
        # the cloud may have left it out
        servers, _ = await belongings.find(cloud, facility.deployment_id, instance_id, listed)
    if all(is_ended(server) for server in servers):
        done = (instance_id, IntentKind.STOP, Outcome.DONE, "finished by the steward")
        await facility.ask(lambda session: instances.conclude_open(session, *done))
        return
    # somebody may have started it again while the cloud was asked
    if instance_id not in dict(await facility.ask(_overdue)):
        return
    for server in servers:
        if not is_ended(server) and not task_of(server):
            log.info("finishing a stop", instance=instance_id, server=server["id"])
            await cloud.act(server["id"], "os-stop")


def _overdue(session: Session) -> list[tuple[str, str]]:
    """Instances, with their places."""
    open_stop = Intent.kind.in_([IntentKind.STOP, IntentKind.DELETE]) & Intent.outcome.is_(None)
    query = select(Instance.id, Instance.place).join(Intent).where(open_stop, Intent.asked_at < now() - STOP_OVERDUE)
    return list(session.execute(query).tuples())


@dataclass
class Pauses:
    """When to try again what is tried until it succeeds: with pauses that grow, for each thing by itself."""

    tried: dict[str, tuple[int, datetime]] = field(default_factory=dict)

    def due(self, key: str, at: datetime) -> bool:
        tries, last = self.tried.get(key, (0, datetime.min.replace(tzinfo=at.tzinfo)))
        due = at - last >= queue.pause(tries)
        if due:
            self.tried[key] = (tries + 1, at)
        return due

    def back(self, key: str) -> None:
        self.tried.pop(key, None)


def to_take_back(session: Session) -> list[Launched]:
    """Those that the hub should serve by now. What waits in the queue is not among them: it has a turn."""
    waiting = {(one.login, one.server_name) for one in queue.waiting(session)}
    return [one for one in meant_to_run(session) if (one.login, one.server_name) not in waiting]


def meant_to_run(session: Session) -> list[Launched]:
    """Instances whose current intent is a launch that neither failed nor was cancelled."""
    carried_out = Intent.outcome.is_(None) | (Intent.outcome == Outcome.DONE)
    return _whose_current_intent(session, Intent.kind == IntentKind.LAUNCH, carried_out)


def conclude_served(session: Session, served: Mapping[tuple[str, str], bool], read_at: datetime) -> None:
    """Launches that are done, and that a hub which ended in the middle of them could not write down."""
    for one in _whose_current_intent(
        session, Intent.kind == IntentKind.LAUNCH, Intent.outcome.is_(None), Intent.asked_at < read_at
    ):
        if served.get((one.login, one.server_name)):
            instances.conclude_open(session, one.instance_id, IntentKind.LAUNCH, Outcome.DONE, "found running by the steward")


def long_stopped(session: Session) -> list[Launched]:
    return _whose_current_intent(session, Intent.kind == IntentKind.STOP, Intent.ended_at < now() - STOP_OVERDUE)


def _whose_current_intent(session: Session, *conditions: ColumnElement[bool]) -> list[Launched]:
    current = select(func.max(Intent.id)).where(instances.counting()).group_by(Intent.instance_id)
    query = (
        select(Instance.id, User.login, Instance.server_name)
        .join(User, User.id == Instance.owner_id)
        .join(Intent, Intent.instance_id == Instance.id)
        .where(Intent.id.in_(current), Instance.deleted_at.is_(None), *conditions)
    )
    return [Launched(*row) for row in session.execute(query)]
