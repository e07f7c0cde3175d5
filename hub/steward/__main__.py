"""The steward: a service beside the hub that carries out what was intended and cut off. Started by JupyterHub."""

from __future__ import annotations

import asyncio
import os
from contextlib import suppress
from pathlib import Path

import aiohttp
import structlog
from traitlets.config import Config

from spawner.cloud import Cloud, CloudError
from spawner.openstack import OpenStackSpawner

from .. import configuration, service
from ..database.tables import now
from ..facility import Facility
from .tasks import Launched, Readoption, finish_stops, meant_to_run, purge

log = structlog.get_logger()


def cloud_of(config: Config) -> Cloud:
    """The cloud that the spawners use."""
    spawner = OpenStackSpawner(config=config)
    return Cloud(spawner.cloud_name, Path(spawner.clouds_yaml) if spawner.clouds_yaml else None, threads=4)


async def readopt(facility: Facility, hub: aiohttp.ClientSession, readoption: Readoption) -> None:
    """Compares what is meant to run with what the hub serves, and asks the hub to start what is missing."""
    served = await _served(hub)
    for launched in await facility.ask(meant_to_run):
        if (launched.login, launched.server_name) in served:
            readoption.back(launched.instance_id)
        elif readoption.due(launched.instance_id, now()):
            await _start(hub, launched)


async def _served(hub: aiohttp.ClientSession) -> set[tuple[str, str]]:
    """(login, server name) of every server that the hub serves, starts or stops."""
    served: set[tuple[str, str]] = set()
    offset: int | None = 0
    while offset is not None:
        headers = {"Accept": "application/jupyterhub-pagination+json"}
        async with hub.get("users", params={"state": "active", "offset": offset, "limit": 200}, headers=headers) as response:
            response.raise_for_status()
            page = await response.json()
        served |= {(user["name"], name) for user in page["items"] for name in user["servers"]}
        following = page["_pagination"]["next"]
        offset = following["offset"] if following else None
    return served


async def _start(hub: aiohttp.ClientSession, launched: Launched) -> None:
    log.info("asking the hub to take an instance back", instance=launched.instance_id)
    async with hub.post(f"users/{launched.login}/servers/{launched.server_name}") as response:
        if response.status >= 400:
            log.warning("the hub did not", instance=launched.instance_id, status=response.status, answer=await response.text())


async def serve() -> None:
    config = configuration.read()
    facility = Facility.of(config)
    cloud, readoption = cloud_of(config), Readoption()
    headers = {"Authorization": f"token {os.environ['JUPYTERHUB_API_TOKEN']}"}
    base = os.environ["JUPYTERHUB_API_URL"].rstrip("/") + "/"
    async with aiohttp.ClientSession(base, headers=headers, timeout=aiohttp.ClientTimeout(total=30)) as hub:
        while True:
            for name, task in {
                "purge": purge(facility, cloud),
                "finish stops": finish_stops(facility, cloud),
                "readopt": readopt(facility, hub, readoption),
            }.items():
                try:
                    await task
                except (CloudError, aiohttp.ClientError, TimeoutError) as error:
                    log.warning("put off", task=name, error=str(error))
                except Exception:
                    log.exception("failed", task=name)
            await asyncio.sleep(facility.hutch.steward_interval_seconds)


if __name__ == "__main__":
    service.begin()
    with suppress(KeyboardInterrupt):
        asyncio.run(serve())
