"""Finds and deletes what belongs to one instance in the cloud, and nothing else: only what carries its id and the deployment's.

A listing alone proves no absence: Nova leaves out servers whose cell does not answer, and still says 200. The instance's ports name
the server that holds them, and that is asked for by id.
"""

from __future__ import annotations

import asyncio
from typing import Any

from .cloud import Cloud
from .cloud_errors import CloudError, Trouble
from .servers import Server, belongs_to

GONE_WITHIN_SECONDS = 120


async def find(
    cloud: Cloud, deployment_id: str, instance_id: str, listed: list[Server] | None = None
) -> tuple[list[Server], list[dict[str, Any]]]:
    """The servers and ports of an instance. listed: what a fresh listing has of it, if there is one already.

    Raises CloudError when the cloud does not answer all that it was asked.
    """
    if listed is None:
        listed = [server for server in await cloud.servers(deployment_id) if belongs_to(server, deployment_id, instance_id)]
    ports = await cloud.ports(instance_id, deployment_id)
    known = {server["id"] for server in listed}
    held = [await cloud.server(port["device_id"]) for port in ports if port["device_id"] and port["device_id"] not in known]
    if bare := [server["id"] for server in held if server and "metadata" not in server]:
        # ref: https://docs.openstack.org/api-guide/compute/down_cells.html
        raise CloudError(Trouble.UNANSWERED, "A part of the cloud does not answer. Nothing was changed.", f"no details of {bare}")
    return [*listed, *(server for server in held if server and belongs_to(server, deployment_id, instance_id))], ports


async def remove(cloud: Cloud, deployment_id: str, instance_id: str) -> int:
    """Deletes the servers and ports of an instance; safe to repeat. Returns how many things were deleted.

    Raises CloudError when the cloud does not answer or refuses, TimeoutError when a server will not go: then repeat later.
    """
    servers, ports = await find(cloud, deployment_id, instance_id)
    for server in servers:
        await cloud.delete_server(server["id"])
    for server in servers:
        await _gone(cloud, server["id"])
    # a port that was handed to Nova is not deleted with the server
    for port in ports:
        await cloud.delete_port(port["id"])
    return len(servers) + len(ports)


async def _gone(cloud: Cloud, server_id: str) -> None:
    pause = 0.1
    async with asyncio.timeout(GONE_WITHIN_SECONDS):
        while (server := await cloud.server(server_id)) is not None:
            if server["status"] == "SOFT_DELETED":  # by a site that keeps them for a time; asked once more, Nova deletes for good
                await cloud.delete_server(server_id)
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5)
