"""Glance v2: the images that servers are booted from. Listing and showing only; the images themselves are empty."""

from collections.abc import Callable
from typing import Any

from aiohttp import web

from spawner.devcloud.errors import ApiError, bad_request, not_found
from spawner.devcloud.keystone import Identity
from spawner.devcloud.state import Server, State, new_id, now

VERSIONS = ("v2.9", "v2.7", "v2.6", "v2.5", "v2.4", "v2.3", "v2.2", "v2.1", "v2.0")
SINCE = "2026-01-01T00:00:00Z"
IMAGES = [
    # name, status, visibility, further properties
    ("hutch-notebook", "active", "public", {"os_distro": "debian", "min_disk": 10, "min_ram": 1024, "hutch_kind": "notebook"}),
    ("hutch-desktop", "active", "public", {"os_distro": "debian", "min_disk": 10, "min_ram": 2048, "hutch_kind": "desktop"}),
    ("hutch-huge", "active", "public", {"os_distro": "debian", "min_disk": 10, "min_ram": 1_048_576}),
    ("hutch-queued", "queued", "public", {}),
    ("hutch-deactivated", "deactivated", "public", {}),
    ("hutch-killed", "killed", "public", {}),
]
FILTERS = ("name", "status", "visibility", "owner", "id", "disk_format", "container_format", "os_distro", "hutch_kind")


class Glance:
    def __init__(self, state: State, base_url: Callable[[], str], owner: str) -> None:
        self._base_url = base_url
        self.images = {image["id"]: image for image in (self._image(state, owner, *each) for each in IMAGES)}

    @staticmethod
    def _image(state: State, owner: str, name: str, status: str, visibility: str, more: dict[str, Any]) -> dict[str, Any]:
        image_id = state.identifier(f"image {name}")
        empty = status == "queued"
        return {
            "id": image_id,
            "name": name,
            "status": status,
            "visibility": visibility,
            "owner": owner,
            "protected": False,
            "os_hidden": False,
            "tags": ["hutch", "devcloud"],
            "disk_format": "qcow2",
            "container_format": "bare",
            "min_disk": 0,
            "min_ram": 0,
            "size": None if empty else 13_000_000,
            "virtual_size": None if empty else 10 * 2**30,
            "checksum": None if empty else "0" * 32,
            "os_hash_algo": None if empty else "sha512",
            "os_hash_value": None if empty else "0" * 128,
            "created_at": SINCE,
            "updated_at": SINCE,
            "self": f"/v2/images/{image_id}",
            "file": f"/v2/images/{image_id}/file",
            "schema": "/v2/schemas/image",
            **more,
        }

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/image", self.versions),
            web.get("/image/", self.versions),
            web.get("/image/versions", self.versions),
            web.get("/image/v2", self.versions),
            web.get("/image/v2/", self.versions),
            web.get("/image/v2/images", self.index),
            web.get("/image/v2/images/{id}", self.show),
            web.delete("/image/v2/images/{id}", self.delete),
        ]

    async def versions(self, request: web.Request) -> web.Response:
        links = [{"rel": "self", "href": self._base_url() + "/image/v2/"}]
        versions = [
            {"id": version, "status": "CURRENT" if version == VERSIONS[0] else "SUPPORTED", "links": links} for version in VERSIONS
        ]
        return web.json_response({"versions": versions}, status=200 if request.path.endswith("versions") else 300)

    def _visible(self, identity: Identity) -> list[dict[str, Any]]:
        return [
            image
            for image in self.images.values()
            if image["visibility"] in ("public", "community") or image["owner"] == identity.project_id or identity.is_admin
        ]

    async def index(self, request: web.Request) -> web.Response:
        query = request.query
        images = self._visible(request["identity"])
        for field in FILTERS:
            if field in query:
                allowed = query[field].removeprefix("in:").split(",") if query[field].startswith("in:") else [query[field]]
                images = [image for image in images if str(image.get(field)) in allowed]
        wanted_tags = set(query.getall("tag", []))
        images = [image for image in images if wanted_tags <= set(image["tags"])]
        try:
            limit = min(int(query.get("limit", 25)), 1000)
        except ValueError as error:
            raise bad_request("limit param must be an integer") from error
        if marker := query.get("marker"):
            ids = [image["id"] for image in images]
            if marker not in ids:
                raise bad_request(f"Invalid marker {marker}")
            images = images[ids.index(marker) + 1 :]
        body: dict[str, Any] = {"images": images[:limit], "first": "/v2/images", "schema": "/v2/schemas/images"}
        if len(images) > limit > 0:
            body["next"] = f"/v2/images?limit={limit}&marker={images[limit - 1]['id']}"
        return web.json_response(body)

    def snapshot(self, server: Server, name: str, more: dict[str, Any]) -> str:
        """A server's disk as an image, kept until devcloud ends; nothing can be booted from it that was not in the image before."""
        image_id, base = new_id(), self.images[server.image_id]
        own = {"id": image_id, "name": name, "visibility": "private", "owner": server.project_id, "status": "active", "tags": []}
        origin = {"image_type": "snapshot", "instance_uuid": server.id, "base_image_ref": server.image_id}
        where = {"self": f"/v2/images/{image_id}", "file": f"/v2/images/{image_id}/file", "created_at": now(), "updated_at": now()}
        self.images[image_id] = base | more | origin | own | where
        return image_id

    async def delete(self, request: web.Request) -> web.Response:
        identity, image_id = request["identity"], request.match_info["id"]
        image = next((image for image in self._visible(identity) if image["id"] == image_id), None)
        if image is None:
            raise not_found(f"Failed to find image {image_id} to delete")
        if image["owner"] != identity.project_id and not identity.is_admin:
            raise ApiError(403, "You are not authorized to complete delete_image action.")
        del self.images[image_id]
        return web.Response(status=204)

    async def show(self, request: web.Request) -> web.Response:
        for image in self._visible(request["identity"]):
            if image["id"] == request.match_info["id"]:
                return web.json_response(image)
        raise not_found(f"No image found with ID {request.match_info['id']}")
