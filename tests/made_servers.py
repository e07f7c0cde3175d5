"""An instance's port and server, made directly in a cloud, as a launch would."""

from __future__ import annotations

from typing import Any

from spawner import builders
from spawner.cloud import Cloud


async def make_server(
    cloud: Cloud, deployment_id: str, instance_id: str, user_data: str = "#cloud-config\n", zone: str = ""
) -> tuple[str, dict[str, Any]]:
    """The server's id, and its port."""
    port = await cloud.create_port(builders.port_request(await cloud.network_id("hutch"), instance_id, deployment_id))
    body = builders.server_request(
        instance_id=instance_id,
        deployment_id=deployment_id,
        image_id=await cloud.image_id("hutch-notebook"),
        flavor_id=await cloud.flavor_id("m1.small"),
        port_id=port["id"],
        user_data=user_data,
        availability_zone=zone,
    )
    return await cloud.create_server(body), port
