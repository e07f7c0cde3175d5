"""Placement, as far as it tells what is free: one host, whose size tests can choose. As in OpenStack, only admins may ask."""

from collections.abc import Callable
from typing import Any

from aiohttp import web

from spawner.devcloud.errors import ApiError, bad_request
from spawner.devcloud.lifecycle import Lifecycle

PREFIX = "/placement"
VERSIONS = {"id": "v1.0", "min_version": "1.0", "max_version": "1.39", "status": "CURRENT", "links": [{"rel": "self", "href": ""}]}


class Placement:
    def __init__(self, lifecycle: Lifecycle, base_url: Callable[[], str]) -> None:
        self._lifecycle = lifecycle
        self._base_url = base_url

    def routes(self) -> list[web.RouteDef]:
        return [
            *(web.get(path, self.versions) for path in (PREFIX, PREFIX + "/")),
            web.get(PREFIX + "/allocation_candidates", self.candidates),
        ]

    async def versions(self, request: web.Request) -> web.Response:
        return web.json_response({"versions": [VERSIONS]})

    async def candidates(self, request: web.Request) -> web.Response:
        if not request["identity"].is_admin:
            raise ApiError(403, "placement:allocation_candidates:list : Policy does not allow it to be performed.")
        if "resources" not in request.query:
            raise bad_request("The request must include resources.")
        wanted = {kind: int(count) for kind, _, count in (part.partition(":") for part in request.query["resources"].split(","))}
        host = self._lifecycle.state.identifier("host")
        used, size = self._lifecycle.used_of_host(), self._lifecycle.state.host
        fits = all(used[kind] + count <= size[kind] for kind, count in wanted.items())
        summary: dict[str, Any] = {"resources": {kind: {"capacity": size[kind], "used": used[kind]} for kind in size}}
        summary |= {"traits": [], "parent_provider_uuid": None, "root_provider_uuid": host}
        answer = {
            "allocation_requests": [{"allocations": {host: {"resources": wanted}}}] if fits else [],
            "provider_summaries": {host: summary} if fits else {},
        }
        version = request.headers.get("OpenStack-API-Version", "placement 1.0")
        return web.json_response(answer, headers={"OpenStack-API-Version": version})
