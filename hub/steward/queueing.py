"""Reads what is free in the cloud, and posts to the hub the launches whose turn has come."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial

import structlog
from sqlalchemy.orm import Session

from spawner.cloud import Cloud
from spawner.cloud_errors import CloudError

from .. import capacity, instances, queue, service
from ..database.tables import Intent, Outcome, now
from ..facility import Facility
from .tasks import Launched

log = structlog.get_logger()
NOT_KNOWN = "what is free in the cloud is not known"


@dataclass
class Queueing:
    """clouds: by place. served: (login, server name) of what the hub serves or starts. post: asks the hub to start one."""

    facility: Facility
    clouds: Mapping[str, Cloud]
    served: Callable[[], Awaitable[Collection[tuple[str, str]]]]
    post: Callable[[Launched], Awaitable[None]]

    async def call_turns(self) -> None:
        await self._look()
        for one in await self.facility.ask(queue.waiting) and await self._turns(await self.served()):
            # counted before it is posted: a steward that is cut off here does not post it again at once
            if await self.facility.ask(partial(queue.claim, one=one)):
                log.info("its turn has come", login=one.login, server=one.server_name, tries=one.tries + 1)
                await self.post(Launched(one.instance_id, one.login, one.server_name))

    async def _look(self) -> None:
        """One reading for all processes and pages. Several places may share a cloud, which is asked once."""
        for cloud in set(self.clouds.values()):
            try:
                reading = await capacity.read(cloud)
                service.well(NOT_KNOWN, cloud=cloud.label)
            except CloudError as error:
                log.warning(NOT_KNOWN, cloud=cloud.label, error=str(error), detail=error.detail)
                if cloud.down_since is None:
                    continue
                reading = {"down_since": cloud.down_since.isoformat()}
            for place in (place for place, its in self.clouds.items() if its is cloud):
                await self.facility.ask(partial(capacity.store, place=place, reading=reading))

    async def _turns(self, under_way: Collection[tuple[str, str]]) -> list[queue.Waiting]:
        def work(session: Session) -> list[queue.Waiting]:
            rooms = capacity.rooms(session)
            line = [one for one in queue.waiting(session) if not _is_hopeless(session, one, rooms)]
            return queue.turns(line, rooms, under_way, now())

        return await self.facility.ask(work)


def _is_hopeless(session: Session, one: queue.Waiting, rooms: Mapping[str, capacity.Room]) -> bool:
    """Larger than all that the project may ever have: its owner is told, and need not wait."""
    found = list(one.verdicts(rooms).values())
    if hopeless := not any(verdict.ever for verdict in found):
        instances.conclude(session, session.get_one(Intent, one.intent_id), Outcome.FAILED, message=found[0].sentence)
    return hopeless
