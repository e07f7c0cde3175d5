"""Makes an instance's port and server, or takes up those there are. What was not answered may have been done: it is looked up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from . import belongings, builders
from .cloud import Cloud
from .cloud_errors import CloudError, Trouble
from .servers import WAKE, Server, address_of_port, foremost, task_of
from .settings import OpenStackSettings
from .surroundings import Surroundings

T = TypeVar("T")
TRIES = 3
LOOK_SECONDS = 5.0


@dataclass(frozen=True)
class Named:
    """The ids of what a server is made of."""

    image: str
    flavor: str
    network: str
    groups: list[str]


@dataclass(frozen=True)
class Creation:
    """One server, to be made in one place as the spawner's settings say."""

    spawner: OpenStackSettings
    place: str
    around: Surroundings
    instance_id: str

    async def look_up(self, guards: list[str]) -> Named:
        """guards: the security groups, by name or id."""
        cloud, spawner = self.around.cloud, self.spawner
        image, flavor = (
            spawner.places.get(self.place, {}).get(kind, {}).get(name, name)
            for kind, name in (("images", spawner.image), ("flavors", spawner.flavor))
        )
        image_id, flavor_id, network_id, *groups = await asyncio.gather(
            cloud.image_id(image),
            cloud.flavor_id(flavor),
            cloud.network_id(spawner.at(self.place, "network")),
            *(cloud.security_group_id(name) for name in guards),
        )
        return Named(image_id, flavor_id, network_id, groups)

    async def make(self, named: Named, port: dict[str, Any] | None) -> tuple[str, str]:
        """The server's id and address. port: a free one that an earlier try has left."""
        cloud = self.around.cloud
        port = port or await self._make_port(named)
        body = builders.server_request(
            instance_id=self.instance_id,
            deployment_id=self.spawner.deployment_id,
            image_id=named.image,
            flavor_id=named.flavor,
            port_id=port["id"],
            user_data=builders.user_data(self.around.identity.hub_ca_pem(), self.spawner.agent_port),
            availability_zone=self.spawner.at(self.place, "availability_zone"),
        )
        try:
            server_id = await self._once(lambda: cloud.create_server(body), self._find_server)
        except CloudError as error:
            if error.trouble is not Trouble.UNANSWERED:
                with suppress(CloudError):  # it keeps its mark, so the next try finds it
                    await cloud.delete_port(port["id"])
            raise
        return server_id, address_of_port(port)

    async def _make_port(self, named: Named) -> dict[str, Any]:
        request = builders.port_request(named.network, self.instance_id, self.spawner.deployment_id, named.groups)
        return await self._once(lambda: self.around.cloud.create_port(request), self._find_port)

    async def _find_port(self) -> dict[str, Any] | None:
        return free_port(await self.around.cloud.ports(self.instance_id, self.spawner.deployment_id))

    async def _find_server(self) -> str | None:
        servers, _ = await find(self.around, self.spawner.deployment_id, self.instance_id)
        return foremost(servers)["id"] if servers else None

    async def _once(self, create: Callable[[], Awaitable[T]], find: Callable[[], Awaitable[T | None]]) -> T:
        for attempt in range(1, TRIES + 1):
            try:
                return await create()
            except CloudError as error:
                # a port in use is what Nova says when an unanswered create has taken it
                if error.trouble not in (Trouble.UNANSWERED, Trouble.CONFLICT):
                    raise
                words = f"try {attempt} of {TRIES} to create: {error} {error.detail}"
                self.spawner.log.warning("instance %s: %s", self.instance_id, words)
                if (found := await find()) is not None:
                    return found
                if attempt == TRIES:
                    raise
                await asyncio.sleep(0.5 * attempt)
        raise AssertionError("unreachable")


async def find(around: Surroundings, deployment_id: str, instance_id: str) -> tuple[list[Server], list[dict[str, Any]]]:
    """The instance's servers and ports as of now. Raises CloudError when the cloud does not say."""
    # one that is down is waited for no longer than a look takes
    if not await around.reflector.fresh(LOOK_SECONDS if around.cloud.is_down else None):
        raise CloudError(Trouble.UNANSWERED, "The cloud does not answer. Nothing was changed.", around.reflector.last_error)
    return await belongings.find(around.cloud, deployment_id, instance_id, around.reflector.of_instance(instance_id))


def free_port(ports: list[dict[str, Any]]) -> dict[str, Any] | None:
    return next((port for port in ports if not port["device_id"] and port["fixed_ips"]), None)


async def guard(cloud: Cloud, ports: list[dict[str, Any]], names: list[str]) -> None:
    """Ports of an earlier launch get these security groups; a group that was replaced meanwhile is looked up once more."""
    for is_last in (False, True):
        groups = await asyncio.gather(*(cloud.security_group_id(name) for name in names))
        try:
            for port in ports if groups else ():
                if set(groups) != set(port["security_groups"]):
                    await cloud.set_port_groups(port["id"], groups)
            return
        except CloudError as error:
            if is_last or error.trouble is not Trouble.NOT_FOUND:
                raise


async def wake(cloud: Cloud, server_id: str, action: str, locked: str) -> None:
    """What was not answered, or came through twice, may have been done: it is repeated once if it was not.

    locked: what people are told about a server that is.
    """
    for is_last in (False, True):
        try:
            await cloud.act(server_id, action)
            return
        except CloudError as error:
            if error.trouble not in (Trouble.UNANSWERED, Trouble.CONFLICT):
                raise
            server = await cloud.server(server_id)
            if server and (server["status"] not in WAKE or task_of(server)):
                return
            if server and server.get("locked"):
                detail = f"{error.detail} ({server.get('locked_reason')})"
                raise CloudError(Trouble.CONFLICT, locked, detail) from error
            if is_last or not server:
                raise
