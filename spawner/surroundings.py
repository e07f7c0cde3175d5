"""What all spawners of a process share: the cloud, its reflector, the agents' client and the keys for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .agent_client import AgentClient
from .agent_tls import HubIdentity
from .cloud import Cloud
from .reflector import Reflector

if TYPE_CHECKING:
    from .openstack import OpenStackSpawner

_known: dict[tuple[str, str, str], Surroundings] = {}


@dataclass
class Surroundings:
    cloud: Cloud
    reflector: Reflector
    agents: AgentClient
    identity: HubIdentity

    @staticmethod
    def of(spawner: OpenStackSpawner) -> Surroundings:
        """One set for each cloud and deployment, made at first use."""
        key = (spawner.cloud_name, spawner.clouds_yaml, spawner.deployment_id)
        if key not in _known:
            cloud = Cloud(spawner.cloud_name, Path(spawner.clouds_yaml) if spawner.clouds_yaml else None)
            deployment_id = spawner.deployment_id
            identity = HubIdentity(Path(spawner.state_dir) / "agent-tls")
            _known[key] = Surroundings(
                cloud=cloud,
                reflector=Reflector(
                    lambda: cloud.servers(deployment_id),
                    fast_seconds=spawner.fast_listing_seconds,
                    slow_seconds=spawner.slow_listing_seconds,
                    log=spawner.log,
                ),
                agents=AgentClient(identity.client_context, spawner.agent_port),
                identity=identity,
            )
        return _known[key]
