"""Nova 2.1: servers. Creating, showing, listing, changing and deleting them; metadata and tags.

Actions are in ``nova_actions``; flavors, limits and the rest in ``nova_extras``; microversions in ``nova_versions``.
"""

import secrets
from collections.abc import Callable
from typing import Any

from aiohttp import web

from spawner.devcloud import nova_schemas as schemas
from spawner.devcloud.errors import bad_request, conflict, forbidden, not_found
from spawner.devcloud.flavors import FLAVORS
from spawner.devcloud.glance import Glance
from spawner.devcloud.keystone import Identity
from spawner.devcloud.lifecycle import Lifecycle
from spawner.devcloud.neutron import Network
from spawner.devcloud.nova_views import Views
from spawner.devcloud.state import Server, new_id

PREFIX = "/compute/v2.1"
ZONE = "nova"


class Nova:
    def __init__(self, lifecycle: Lifecycle, network: Network, glance: Glance, base_url: Callable[[], str]) -> None:
        self.lifecycle = lifecycle
        self.state = lifecycle.state
        self.network = network
        self.glance = glance
        self.base_url = base_url
        self.views = Views(self.state, network)
        self._count = len(self.state.servers) + len(self.state.tombstones)

    def routes(self) -> list[web.RouteDef]:
        servers, server = PREFIX + "/servers", PREFIX + "/servers/{id}"
        return [
            web.get(servers, self.index),
            web.post(servers, self.create),
            web.get(servers + "/detail", self.list_detail),
            web.get(server, self.show),
            web.put(server, self.update),
            web.delete(server, self.delete),
            web.get(server + "/metadata", self.show_metadata),
            web.post(server + "/metadata", self.update_metadata),
            web.put(server + "/metadata", self.update_metadata),
            web.get(server + "/metadata/{key}", self.show_metadata_item),
            web.put(server + "/metadata/{key}", self.set_metadata_item),
            web.delete(server + "/metadata/{key}", self.delete_metadata_item),
            web.get(server + "/tags", self.show_tags),
            web.put(server + "/tags", self.replace_tags),
            web.delete(server + "/tags", self.replace_tags),
            web.get(server + "/tags/{tag}", self.has_tag),
            web.put(server + "/tags/{tag}", self.add_tag),
            web.delete(server + "/tags/{tag}", self.remove_tag),
        ]

    def server(self, request: web.Request) -> Server:
        identity: Identity = request["identity"]
        server = self.state.servers.get(request.match_info["id"])
        if server is None or not (identity.is_admin or server.project_id == identity.project_id):
            raise not_found(f"Instance {request.match_info['id']} could not be found.")
        return server

    # Lists and single servers

    async def index(self, request: web.Request) -> web.Response:
        return self.views.listing(request, self.base_url(), detail=False)

    async def list_detail(self, request: web.Request) -> web.Response:
        return self.views.listing(request, self.base_url(), detail=True)

    def _shown(self, request: web.Request, server: Server) -> dict[str, Any]:
        seen = self.views.detail(self.base_url(), server, request["microversion"], request["identity"].is_admin)
        if server.cell_is_down and request["microversion"] >= (2, 69):
            known = ("id", "tenant_id", "user_id", "created", "image", "flavor", "links", "OS-EXT-AZ:availability_zone")
            return {"server": {key: seen[key] for key in known} | {"status": "UNKNOWN", "OS-EXT-STS:power_state": 0}}
        if request["microversion"] >= (2, 71):
            seen["server_groups"] = []
        return {"server": seen}

    async def show(self, request: web.Request) -> web.Response:
        return web.json_response(self._shown(request, self.server(request)))

    async def update(self, request: web.Request) -> web.Response:
        server, wanted = self.server(request), (await schemas.read(request, "update"))["server"]
        names = {
            "name": "name",
            "description": "description",
            "accessIPv4": "access_ipv4",
            "accessIPv6": "access_ipv6",
            "OS-DCF:diskConfig": "disk_config",
            "hostname": "hostname",
        }
        for key, value in wanted.items():
            setattr(server, names[key], value)
        self.state.save(server)
        return web.json_response(self._shown(request, server))

    async def delete(self, request: web.Request) -> web.Response:
        server = self.server(request)
        self.lifecycle.delete(server)
        self.lifecycle.record_action(server, "delete", request["identity"], request["request_id"], "compute_terminate_instance")
        return web.Response(status=204)

    # Creating

    async def create(self, request: web.Request) -> web.Response:
        body = await schemas.read(request, "create")
        identity: Identity = request["identity"]
        wanted = body["server"]
        flavor, image_id = self.flavor(wanted["flavorRef"]), self._image(wanted)
        networks = self._networks(identity, wanted)
        groups = self._groups(identity, wanted)
        if wanted.get("availability_zone", ZONE) != ZONE:
            raise bad_request("The requested availability zone is not available")
        if wanted.get("key_name"):
            raise bad_request("Invalid key_name provided.")
        self._check_quota(identity, flavor, wanted)
        self._count += 1
        server = Server(
            id=new_id(),
            project_id=identity.project_id or "",
            user_id=identity.user.id,
            name=wanted["name"],
            flavor=flavor,
            image_id=image_id,
            metadata=dict(wanted.get("metadata", {})),
            tags=sorted(set(wanted.get("tags", []))),
            user_data=wanted.get("user_data"),
            config_drive=schemas.as_boolean(wanted.get("config_drive", False)),
            # Before 2.19 nobody could say a description, and Nova took the name.
            description=wanted.get("description") if request["microversion"] >= (2, 19) else wanted["name"],
            hostname=wanted.get("hostname") or wanted["name"].lower().replace(" ", "-")[:63],
            availability_zone=ZONE,
            disk_config=wanted.get("OS-DCF:diskConfig", "MANUAL"),
            access_ipv4=wanted.get("accessIPv4", ""),
            access_ipv6=wanted.get("accessIPv6", ""),
            trusted_image_certificates=wanted.get("trusted_image_certificates"),
            security_groups=groups,
            requested_networks=networks,
            number=self._count,
        )
        self.lifecycle.record_action(server, "create", identity, request["request_id"], "compute__do_build_and_run_instance")
        self.lifecycle.build(server)
        answer = {
            "id": server.id,
            "links": self.views.links(self.base_url(), "servers", server.id),
            "OS-DCF:diskConfig": server.disk_config,
            "security_groups": [{"name": name} for name in groups],
            "adminPass": wanted.get("adminPass") or secrets.token_urlsafe(9),
        }
        location = answer["links"][0]["href"]  # type: ignore[index]
        return web.json_response({"server": answer}, status=202, headers={"Location": location})

    def flavor(self, reference: str) -> dict[str, Any]:
        reference = str(reference).rpartition("/")[2]
        flavor = FLAVORS.get(reference)
        if flavor is None:
            raise bad_request(f"Flavor {reference} could not be found.")
        return flavor

    def _image(self, wanted: dict[str, Any]) -> str:
        if not wanted.get("imageRef"):
            raise bad_request("Invalid imageRef provided. devcloud boots from images only, not from volumes.")
        image = self.glance.images.get(wanted["imageRef"])
        if image is None:
            raise bad_request("Can not find requested image")
        if image["status"] != "active":
            raise bad_request(f"Image {image['id']} is not active.")
        flavor = self.flavor(wanted["flavorRef"])
        if flavor["ram"] < image["min_ram"]:
            raise bad_request("Flavor's memory is too small for requested image.")
        if flavor["disk"] < image["min_disk"]:
            gib = 2**30
            raise bad_request(
                "Flavor's disk is smaller than the minimum size specified in image metadata. "
                f"Flavor disk is {flavor['disk'] * gib} bytes, minimum size is {image['min_disk'] * gib} bytes."
            )
        return str(image["id"])

    def _networks(self, identity: Identity, wanted: dict[str, Any]) -> list[dict[str, Any]]:
        asked = wanted.get("networks", "auto")
        if asked == "none":
            return []
        if asked in ("auto", []):
            return [{"uuid": self.network.id}]
        for entry in asked:
            if entry.get("port"):
                port = self.state.ports.get(entry["port"])
                if port is None or not (identity.is_admin or port.project_id == identity.project_id):
                    raise bad_request(f"Port id {entry['port']} could not be found.")
                if port.device_id:
                    raise conflict(f"Port {port.id} is still in use.")
            elif entry.get("uuid") != self.network.id:
                raise bad_request(f"Network {entry.get('uuid')} could not be found.")
            elif entry.get("fixed_ip") in self.state.ports_by_address:
                raise bad_request(f"Fixed IP address {entry['fixed_ip']} is already in use on instance.")
        ports = [entry["port"] for entry in asked if entry.get("port")]
        if len(ports) != len(set(ports)):
            raise bad_request(f"Port {ports[0]} is duplicated in the request.")
        return [dict(entry) for entry in asked]

    def _groups(self, identity: Identity, wanted: dict[str, Any]) -> list[str]:
        names = [entry["name"] for entry in wanted.get("security_groups", [])] or ["default"]
        for name in names:
            if self.network.groups.find_by_name_or_id(identity.project_id or "", name) is None:
                raise bad_request(f"Unable to find security_group with name or id '{name}'")
        return names

    def used(self, project_id: str | None) -> dict[str, int]:
        flavors = [server.flavor for server in self.state.servers.values() if server.project_id == project_id]
        totals = {"instances": len(flavors), "cores": sum(f["vcpus"] for f in flavors), "ram": sum(f["ram"] for f in flavors)}
        return totals | {"server_groups": 0, "key_pairs": 0}

    def _check_quota(self, identity: Identity, flavor: dict[str, Any], wanted: dict[str, Any]) -> None:
        quota, used = self.state.quota, self.used(identity.project_id)
        asked = {"instances": 1, "cores": flavor["vcpus"], "ram": flavor["ram"]}
        over = [name for name in asked if 0 <= quota[name] < used[name] + asked[name]]
        if over:
            requested, taken, limits = (", ".join(str(values[name]) for name in over) for values in (asked, used, quota))
            names = ", ".join(over)
            raise forbidden(f"Quota exceeded for {names}: Requested {requested}, but already used {taken} of {limits} {names}")
        self._check_metadata_count(wanted.get("metadata", {}))
        needed = sum(1 for entry in self._networks(identity, wanted) if not entry.get("port"))
        ports = sum(1 for port in self.state.ports.values() if port.project_id == identity.project_id)
        if needed and 0 <= quota["port"] < ports + needed:
            raise forbidden("Maximum number of ports exceeded")

    def _check_metadata_count(self, metadata: dict[str, str]) -> None:
        limit = self.state.quota["metadata_items"]
        if 0 <= limit < len(metadata):
            raise forbidden(f"Maximum number of metadata items exceeds {limit}")

    # Metadata

    async def show_metadata(self, request: web.Request) -> web.Response:
        return web.json_response({"metadata": self.server(request).metadata})

    async def update_metadata(self, request: web.Request) -> web.Response:
        server, wanted = self.server(request), (await schemas.read(request, "metadata"))["metadata"]
        self._set_metadata(server, wanted if request.method == "PUT" else server.metadata | wanted)
        return web.json_response({"metadata": server.metadata})

    def _set_metadata(self, server: Server, metadata: dict[str, str]) -> None:
        if server.locked:
            raise conflict(f"Instance {server.id} is locked")
        self._check_metadata_count(metadata)
        server.metadata = metadata
        self.state.save(server)

    def _metadata_key(self, request: web.Request) -> tuple[Server, str]:
        server, key = self.server(request), request.match_info["key"]
        if key not in server.metadata:
            raise not_found("Metadata item was not found")
        return server, key

    async def show_metadata_item(self, request: web.Request) -> web.Response:
        server, key = self._metadata_key(request)
        return web.json_response({"meta": {key: server.metadata[key]}})

    async def set_metadata_item(self, request: web.Request) -> web.Response:
        server, wanted = self.server(request), (await schemas.read(request, "meta"))["meta"]
        if request.match_info["key"] not in wanted:
            raise bad_request("Request body and URI mismatch")
        self._set_metadata(server, server.metadata | wanted)
        return web.json_response({"meta": wanted})

    async def delete_metadata_item(self, request: web.Request) -> web.Response:
        server, key = self._metadata_key(request)
        self._set_metadata(server, {name: value for name, value in server.metadata.items() if name != key})
        return web.Response(status=204)

    # Tags

    def _tagged(self, request: web.Request) -> Server:
        if request["microversion"] < (2, 26):
            raise not_found("The resource could not be found.")
        server, identity = self.state.servers.get(request.match_info["id"]), request["identity"]
        if server is not None and not (identity.is_admin or server.project_id == identity.project_id):
            # Nova looks at the rights here before it hides what exists
            raise forbidden("Policy doesn't allow os_compute_api:os-server-tags to be performed.")
        return self.server(request)

    async def show_tags(self, request: web.Request) -> web.Response:
        return web.json_response({"tags": self._tagged(request).tags})

    async def replace_tags(self, request: web.Request) -> web.Response:
        server = self._tagged(request)
        server.tags = [] if request.method == "DELETE" else sorted(set((await schemas.read(request, "tags"))["tags"]))
        self.state.save(server)
        return web.Response(status=204) if request.method == "DELETE" else web.json_response({"tags": server.tags})

    def _missing_tag(self, server: Server, tag: str) -> Exception:
        return not_found(f"Server {server.id} has no tag '{tag}'")

    async def has_tag(self, request: web.Request) -> web.Response:
        server, tag = self._tagged(request), request.match_info["tag"]
        if tag not in server.tags:
            raise self._missing_tag(server, tag)
        return web.Response(status=204)

    async def add_tag(self, request: web.Request) -> web.Response:
        server, tag = self._tagged(request), request.match_info["tag"]
        schemas.check("tags", request["microversion"], {"tags": [tag]})
        if tag in server.tags:
            return web.Response(status=204)
        if len(server.tags) >= 50:
            raise bad_request("The number of tags exceeded the per-server limit 50")
        server.tags = sorted([*server.tags, tag])
        self.state.save(server)
        location = f"{self.base_url()}{PREFIX}/servers/{server.id}/tags/{tag}"
        return web.Response(status=201, headers={"Location": location})

    async def remove_tag(self, request: web.Request) -> web.Response:
        server, tag = self._tagged(request), request.match_info["tag"]
        if tag not in server.tags:
            raise self._missing_tag(server, tag)
        server.tags = [each for each in server.tags if each != tag]
        self.state.save(server)
        return web.Response(status=204)
