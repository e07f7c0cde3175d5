"""Deletes what belongs to one instance in the cloud, and nothing else: only what carries both its id and the deployment's."""

from __future__ import annotations

import asyncio

from . import builders
from .cloud import Cloud

GONE_WITHIN_SECONDS = 120


async def remove_instance(cloud: Cloud, deployment_id: str, instance_id: str) -> int:
    """Deletes the servers and ports of an instance; safe to repeat. Returns how many things were deleted.

    Raises CloudError when the cloud does not answer or refuses, TimeoutError when a server will not go: then repeat later.
    """
    servers = [
        server["id"]
        for server in await cloud.servers(deployment_id)
        if server["metadata"].get(builders.INSTANCE_KEY) == instance_id
    ]
    for server_id in servers:
        await cloud.delete_server(server_id)
    for server_id in servers:
        await _gone(cloud, server_id)
    # a port that was handed to Nova is not deleted with the server, and cannot be while the server holds it
    ports = await cloud.ports(instance_id, deployment_id)
    for port in ports:
        await cloud.delete_port(port["id"])
    return len(servers) + len(ports)


async def _gone(cloud: Cloud, server_id: str) -> None:
    pause = 0.1
    async with asyncio.timeout(GONE_WITHIN_SECONDS):
        while await cloud.server(server_id) is not None:
            await asyncio.sleep(pause)
            pause = min(pause * 2, 5)
