"""What Hutch only looks at: Cinder's volumes and Neutron's floating IPs. They are kept in memory and belong to nothing."""

from typing import Any

from aiohttp import web

from spawner.devcloud.errors import not_found
from spawner.devcloud.neutron_lists import body, listing
from spawner.devcloud.state import new_id, now

ROOT = {"/volume", "/volume/", "/volume/v3", "/volume/v3/"}
Things = dict[str, dict[str, Any]]


class Volumes:
    def __init__(self) -> None:
        self._volumes: Things = {}
        self._addresses: Things = {}

    def routes(self) -> list[web.RouteDef]:
        addresses, volumes = "/network/v2.0/floatingips", "/volume/v3/volumes"
        return [
            *(web.get(path, self.versions) for path in ROOT),
            web.get(volumes + "/detail", self.list_volumes),
            web.post(volumes, self.create_volume),
            web.delete(volumes + "/{id}", self.delete_volume),
            web.get(addresses, self.list_addresses),
            web.post(addresses, self.create_address),
            web.delete(addresses + "/{id}", self.delete_address),
        ]

    async def versions(self, request: web.Request) -> web.Response:
        links = [{"rel": "self", "href": f"{request.url.origin()}/volume/v3/"}]
        version = {"id": "v3.0", "status": "CURRENT", "version": "3.70", "min_version": "3.0", "links": links}
        return web.json_response({"versions": [version]})

    def _mine(self, request: web.Request, things: Things) -> list[dict[str, Any]]:
        return [thing for thing in things.values() if thing["project_id"] == request["identity"].project_id]

    async def _add(self, request: web.Request, kind: str, things: Things, **more: Any) -> web.Response:
        thing = (
            more | await body(request, kind) | {"id": new_id(), "project_id": request["identity"].project_id, "created_at": now()}
        )
        things[thing["id"]] = thing
        return web.json_response({kind: thing}, status=201)

    def _drop(self, request: web.Request, things: Things) -> web.Response:
        if things.pop(request.match_info["id"], None) is None:
            raise not_found(f"{request.match_info['id']} could not be found.")
        return web.Response(status=204)

    async def list_volumes(self, request: web.Request) -> web.Response:
        return web.json_response({"volumes": self._mine(request, self._volumes)})

    async def create_volume(self, request: web.Request) -> web.Response:
        return await self._add(request, "volume", self._volumes, name="", metadata={}, size=1, status="available")

    async def delete_volume(self, request: web.Request) -> web.Response:
        return self._drop(request, self._volumes)

    async def list_addresses(self, request: web.Request) -> web.Response:
        return listing(request, "floatingips", self._mine(request, self._addresses))

    async def create_address(self, request: web.Request) -> web.Response:
        address = f"203.0.113.{len(self._addresses) % 250 + 1}"
        more: dict[str, Any] = {"description": "", "tags": [], "floating_ip_address": address, "port_id": None, "status": "DOWN"}
        return await self._add(request, "floatingip", self._addresses, **more)

    async def delete_address(self, request: web.Request) -> web.Response:
        return self._drop(request, self._addresses)
