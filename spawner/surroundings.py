"""What all spawners of a process share, for each cloud: the cloud, its reflector, the agents' client and the keys for it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from .agent_client import AgentClient
from .agent_tls import HubIdentity
from .cloud import Cloud
from .cloud_errors import CloudError, Trouble
from .reflector import Reflector
from .settings import OpenStackSettings

_known: dict[tuple[str, ...], Surroundings] = {}


def cloud_key(spawner: OpenStackSettings, place: str) -> tuple[str, str, str]:
    """Places with the same one are in the same cloud. Raises CloudError for a place that the site does not have."""
    if place and place not in spawner.places:
        raise unknown_place(place)
    return spawner.at(place, "cloud_name"), spawner.at(place, "clouds_yaml"), spawner.at(place, "region_name")


def unknown_place(place: str) -> CloudError:
    sentence = f"The place {place} is not (or no longer) among this site's places."
    return CloudError(Trouble.REFUSED, sentence, f"OpenStackSpawner.places has no {place!r}")


def make_cloud(key: tuple[str, str, str], **options: int) -> Cloud:
    name, clouds_yaml, region = key
    return Cloud(name, Path(clouds_yaml) if clouds_yaml else None, region, **options)


async def sign_in(spawner: OpenStackSettings) -> None:
    """At each of the site's clouds, ahead of the first launch, which takes half a second less; and what is wrong is said early."""
    networks: dict[Cloud, set[str]] = {}
    for place in ("", *spawner.places):
        networks.setdefault(Surroundings.of(spawner, place).cloud, set()).add(spawner.at(place, "network"))

    async def one(cloud: Cloud) -> None:
        try:
            await asyncio.gather(cloud.servers(spawner.deployment_id), *map(cloud.network_id, networks[cloud]))
        except CloudError as error:
            spawner.log.error("nothing can be launched in %s: %s %s", cloud.label, error, error.detail)

    await asyncio.gather(*map(one, networks))


@dataclass
class Surroundings:
    cloud: Cloud
    reflector: Reflector
    agents: AgentClient
    identity: HubIdentity

    @staticmethod
    def of(spawner: OpenStackSettings, place: str = "") -> Surroundings:
        """One set for each cloud and deployment, made at first use."""
        cloud_of_place, deployment_id = cloud_key(spawner, place), spawner.deployment_id
        key = (*cloud_of_place, deployment_id)
        if key not in _known:
            cloud = make_cloud(cloud_of_place)
            identity = HubIdentity(Path(spawner.state_dir) / "agent-tls")
            _known[key] = Surroundings(
                cloud=cloud,
                reflector=Reflector(
                    lambda: cloud.servers(deployment_id),
                    fast_seconds=spawner.fast_listing_seconds,
                    slow_seconds=spawner.slow_listing_seconds,
                    log=spawner.log,
                    cloud=cloud.label,
                ),
                agents=AgentClient(identity.client_context, spawner.agent_port),
                identity=identity,
            )
        return _known[key]
