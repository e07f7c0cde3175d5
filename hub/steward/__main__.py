"""The steward: a service beside the hub that carries out what was intended and cut off. Started by JupyterHub."""

from __future__ import annotations

import asyncio
import fcntl
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import structlog
from prometheus_client import Gauge, start_http_server
from traitlets.config import Config

from spawner.cloud import Cloud
from spawner.openstack import OpenStackSpawner
from spawner.places import clouds

from .. import configuration, mail, notices, personal_data, service
from ..database import seal
from ..database.tables import now
from ..facility import Facility
from ..firewall import Firewall
from ..group_sync import LOOK_SECONDS
from ..hub_session import hub_session
from .firewall import Keeping
from .following import Following
from .queueing import Queueing
from .reconciling import Reconciler
from .tasks import Launched, Pauses, after_runs, conclude_served, expire, finish_stops, long_stopped, purge, to_take_back

log = structlog.get_logger()
DAY_SECONDS = 86_400.0
TIMEOUT_SECONDS = 30
MAY_ACT = Gauge("hutch_steward_may_act", "0 where the database was restored or is a copy, and the steward acts on nothing")


@dataclass
class Steward:
    facility: Facility
    clouds: Mapping[str, Cloud]
    hub: aiohttp.ClientSession
    readoption: Pauses = field(default_factory=Pauses)
    mail_pauses: Pauses = field(default_factory=Pauses)
    sealed: bool = True

    def __post_init__(self) -> None:
        self.reconciler = Reconciler(self.facility, self.clouds, partial(_served, self.hub))

    async def reconcile(self) -> None:
        """Changes the seal first: what is restored from a backup made before this pass is told from what made it."""
        facility, folder = self.facility, Path(self.facility.hutch.state_dir)
        if await asyncio.to_thread(seal.renew, facility.engine, folder, facility.deployment_id):
            await self.reconciler.run()

    async def may_act(self) -> bool:
        """Whether the database is the one that this steward worked on last."""
        facility, folder = self.facility, Path(self.facility.hutch.state_dir)
        held, self.sealed = self.sealed, await facility.ask(partial(seal.holds, folder=folder, of=facility.deployment_id))
        MAY_ACT.set(self.sealed)
        if held and not self.sealed:
            log.error("the steward acts on nothing", why=seal.ADVICE)
        return self.sealed

    async def expire(self) -> None:
        grace = self.facility.hutch.delete_grace
        for expired in await self.facility.ask(lambda session: expire(session, grace)):
            log.info("its lifetime is over", instance=expired.instance_id)
            # if the hub does not come to it, finish_stops does
            await self._ask_hub("DELETE", expired, json={"remove": True})

    async def purge(self) -> None:
        await purge(self.facility, self.clouds)

    async def finish_stops(self) -> None:
        await finish_stops(self.facility, self.clouds)

    async def readopt(self) -> None:
        """Compares what is meant to run with what the hub serves, and asks the hub to start what is missing."""
        at, served = now(), await _served(self.hub)
        await self.facility.ask(partial(conclude_served, served=served, read_at=at))
        for launched in await self.facility.ask(to_take_back):
            if (launched.login, launched.server_name) in served:
                self.readoption.back(launched.instance_id)
            elif self.readoption.due(launched.instance_id, now()):
                log.info("asking the hub to take an instance back", instance=launched.instance_id)
                await self.post(launched)
        # a hub whose own database fails in the middle of a stop goes on showing what is off as ready, and never looks again
        for stopped in await self.facility.ask(long_stopped):
            if served.get((stopped.login, stopped.server_name)):
                log.info("asking the hub to let go of an instance that is off", instance=stopped.instance_id)
                await self._ask_hub("DELETE", stopped)

    async def post(self, launched: Launched) -> None:
        await self._ask_hub("POST", launched)

    async def _ask_hub(self, method: str, of: Launched, **body: Any) -> None:
        with service.putting_off("the hub does not answer"):
            async with self.hub.request(method, of.path, **body) as response:
                if response.status >= 400:
                    log.warning("the hub did not", instance=of.instance_id, status=response.status, answer=await response.text())

    async def mail(self) -> None:
        """Sends the notices that wait; what was certainly not taken is tried again, and nothing is sent twice."""
        for notice, address in await self.facility.ask(notices.waiting) if self.facility.hutch.smtp_url else ():
            if not self.mail_pauses.due(str(notice.id), now()) or not await self.facility.ask(
                partial(notices.claim, notice_id=notice.id)
            ):
                continue
            try:
                await mail.send(self.facility.hutch, address, notice.subject, notice.text)
            except mail.MailError as error:
                log.warning("a notice was not mailed", detail=f"notice {notice.id}", error=str(error))
                if isinstance(error, mail.NotSentError):
                    await self.facility.ask(partial(notices.unclaim, notice_id=notice.id))
                if isinstance(error, mail.NoServerError):
                    return  # it may take half a minute to find that out, for each
            else:
                service.well("a notice was not mailed")

    async def prune(self) -> None:
        """Deletes what has been kept for as long as docs/personal-data.md says."""
        if deleted := await self.facility.ask(lambda session: personal_data.prune(session, now())):
            log.info("deleted what was kept long enough", rows=deleted)

    async def repeat(self, task: Callable[[], Awaitable[None]], every_seconds: float, *, acts: bool = True) -> None:
        """Each task for itself, so that one that takes long holds up no other. acts: on the cloud, or on what the hub runs."""
        while True:
            try:
                with service.putting_off("put off", task=task.__name__):
                    if not acts or await self.may_act():
                        await task()
            except Exception:
                log.exception("put off", task=task.__name__)
            await asyncio.sleep(every_seconds)


async def _served(hub: aiohttp.ClientSession) -> dict[tuple[str, str], bool]:
    """(login, server name) of every server that the hub serves, starts or stops, and whether it is ready."""
    served: dict[tuple[str, str], bool] = {}
    offset: int | None = 0
    while offset is not None:
        headers = {"Accept": "application/jupyterhub-pagination+json"}
        async with hub.get("users", params={"state": "active", "offset": offset, "limit": 200}, headers=headers) as response:
            response.raise_for_status()
            page = await response.json()
        served |= {(user["name"], name): bool(one["ready"]) for user in page["items"] for name, one in user["servers"].items()}
        following = page["_pagination"]["next"]
        offset = following["offset"] if following else None
    return served


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Of two stewards with one state_dir the second waits until the first ends, however that does. With two, the seal tells."""
    with (folder / "steward.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.warning("another steward is at work; this one waits until that ends", lock=file.name)
            fcntl.flock(file, fcntl.LOCK_EX)
            log.info("the other steward has ended; this one goes on")
        yield


async def serve(config: Config) -> None:
    facility = Facility.of(config)
    async with hub_session(TIMEOUT_SECONDS) as hub:
        steward = Steward(facility, clouds(config), hub)
        every = facility.hutch.steward_interval_seconds
        spawner = OpenStackSpawner(config=config)
        firewall = Firewall(facility.hutch.firewall, (spawner.agent_port, spawner.port))
        keeping = Keeping(facility, steward.clouds, firewall, spawner.security_groups)
        tasks = (steward.expire, steward.purge, steward.finish_stops, steward.readopt)
        _show_metrics(facility.hutch.steward_port)
        await asyncio.gather(
            *(steward.repeat(task, every) for task in tasks),
            steward.repeat(steward.mail, every, acts=False),
            steward.repeat(steward.prune, DAY_SECONDS, acts=False),
            steward.repeat(steward.reconcile, facility.hutch.reconcile_interval_seconds),
            *([steward.repeat(after_runs(facility, keeping.keep_firewall), min(every, LOOK_SECONDS))] if firewall.ways else []),
            steward.repeat(Queueing(facility, steward.clouds, partial(_served, hub), steward.post).call_turns, every),
            steward.repeat(after_runs(facility, Following(facility, hub).follow_runs), min(every, LOOK_SECONDS)),
        )


def _show_metrics(port: int) -> None:
    try:
        if port:
            start_http_server(port, "127.0.0.1")
    except OSError as error:
        log.error("no metrics", port=port, why=str(error))


if __name__ == "__main__":
    service.begin()
    config = configuration.read()
    with suppress(KeyboardInterrupt), alone(Path(configuration.Hutch(config=config).state_dir)):
        asyncio.run(serve(config))
