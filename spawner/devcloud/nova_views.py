"""What Nova shows of a server, in the shape of each microversion, and which servers a list shows.

Servers are rendered to bytes once and pasted together, so that listing thousands costs little.
"""

import hashlib
import json
import re
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from spawner.devcloud.errors import bad_request, forbidden
from spawner.devcloud.flavors import describe_embedded
from spawner.devcloud.keystone import Identity
from spawner.devcloud.neutron import Network
from spawner.devcloud.state import Server, State

Version = tuple[int, int]
MAX_PAGE = 1000
STATUS = {
    "active": "ACTIVE",
    "building": "BUILD",
    "stopped": "SHUTOFF",
    "paused": "PAUSED",
    "suspended": "SUSPENDED",
    "rescued": "RESCUE",
    "resized": "VERIFY_RESIZE",
    "error": "ERROR",
    "shelved": "SHELVED",
    "shelved_offloaded": "SHELVED_OFFLOADED",
    "soft-delete": "SOFT_DELETED",
    "deleted": "DELETED",
}
REBOOTING = {
    "rebooting": "REBOOT",
    "reboot_pending": "REBOOT",
    "reboot_started": "REBOOT",
    "rebooting_hard": "HARD_REBOOT",
    "reboot_started_hard": "HARD_REBOOT",
}
SORT_KEYS = {
    "created_at": "created",
    "updated_at": "updated",
    "display_name": "name",
    "name": "name",
    "uuid": "id",
    "vm_state": "vm_state",
    "launched_at": "launched_at",
}


def status_of(server: Server) -> str:
    if server.vm_state == "active" and server.task_state in REBOOTING:
        return REBOOTING[server.task_state]
    if (server.task_state or "").startswith("resize_"):
        return "RESIZE"
    return STATUS[server.vm_state]


class Views:
    def __init__(self, state: State, network: Network) -> None:
        self._state = state
        self._network = network

    def links(self, base: str, kind: str, record_id: str) -> list[dict[str, str]]:
        return [
            {"rel": "self", "href": f"{base}/compute/v2.1/{kind}/{record_id}"},
            {"rel": "bookmark", "href": f"{base}/compute/{kind}/{record_id}"},
        ]

    def addresses(self, server: Server) -> dict[str, list[dict[str, Any]]]:
        shown = [
            {"version": 4, "addr": port.address, "OS-EXT-IPS:type": "fixed", "OS-EXT-IPS-MAC:mac_addr": port.mac}
            for port in self._state.ports_of(server)
        ]
        return {self._network.name: shown} if shown else {}

    def basic(self, base: str, server: Server) -> dict[str, Any]:
        return {"id": server.id, "name": server.name, "links": self.links(base, "servers", server.id)}

    def detail(self, base: str, server: Server, version: Version, admin: bool) -> dict[str, Any]:
        status = status_of(server)
        host = "devcloud" if server.placed else None
        seen: dict[str, Any] = {
            "id": server.id,
            "name": server.name,
            "status": status,
            "tenant_id": server.project_id,
            "user_id": server.user_id,
            "metadata": server.metadata,
            "hostId": hashlib.sha224((server.project_id + "devcloud").encode()).hexdigest() if host else "",
            "image": {"id": server.image_id, "links": [{"rel": "bookmark", "href": f"{base}/compute/images/{server.image_id}"}]},
            "flavor": describe_embedded(base, server.flavor, version),
            "created": server.created,
            "updated": server.updated,
            "addresses": self.addresses(server),
            "accessIPv4": server.access_ipv4,
            "accessIPv6": server.access_ipv6,
            "links": self.links(base, "servers", server.id),
            "OS-DCF:diskConfig": server.disk_config,
            "OS-EXT-AZ:availability_zone": server.availability_zone if host else "",
            "config_drive": "True" if server.config_drive else "",
            "key_name": server.key_name,
            "OS-SRV-USG:launched_at": server.launched_at,
            "OS-SRV-USG:terminated_at": server.terminated_at,
            "OS-EXT-STS:task_state": server.task_state,
            "OS-EXT-STS:vm_state": server.vm_state,
            "OS-EXT-STS:power_state": server.power_state,
            "os-extended-volumes:volumes_attached": [],
        }
        if groups := self.security_groups(server):
            seen["security_groups"] = groups
        if server.fault is not None and status in ("ERROR", "DELETED"):
            # Details of what went wrong inside the cloud are for admins.
            seen["fault"] = server.fault if admin else {key: server.fault[key] for key in ("code", "created", "message")}
        if status in ("ACTIVE", "BUILD"):
            # of migrations; a build does not count here
            seen["progress"] = 0
        if admin:
            seen |= self._for_admins(server, host, version)
        if version >= (2, 9):
            seen["locked"] = server.locked
        if version >= (2, 19):
            seen["description"] = server.description
        if version >= (2, 26):
            seen["tags"] = server.tags
        if version >= (2, 63):
            seen["trusted_image_certificates"] = server.trusted_image_certificates
        if version >= (2, 73):
            seen["locked_reason"] = server.locked_reason
        if version >= (2, 90):
            seen["OS-EXT-SRV-ATTR:hostname"] = server.hostname
        return seen

    @staticmethod
    def _for_admins(server: Server, host: str | None, version: Version) -> dict[str, Any]:
        prefix = "OS-EXT-SRV-ATTR:"
        seen: dict[str, Any] = {
            prefix + "host": host,
            prefix + "hypervisor_hostname": host,
            prefix + "instance_name": f"instance-{server.number:08x}",
        }
        if version >= (2, 3):
            more = ("reservation_id", "kernel_id", "ramdisk_id", "root_device_name")
            seen |= {prefix + "launch_index": 0, prefix + "hostname": server.hostname, prefix + "user_data": server.user_data}
            seen |= {prefix + name: "" for name in more}
        if version >= (2, 16):
            seen["host_status"] = "UP" if host else ""
        return seen

    def security_groups(self, server: Server) -> list[dict[str, str]]:
        ports = self._state.ports_of(server)
        ids = {group_id for port in ports for group_id in port.security_groups}
        return [{"name": self._state.security_groups[each].name} for each in sorted(ids) if each in self._state.security_groups]

    def _bytes(self, base: str, server: Server, version: Version, admin: bool, detail: bool) -> bytes:
        kept = self._state.rendered.setdefault(server.id, {})
        key = (base, version, admin, detail)
        if key not in kept:
            view = self.detail(base, server, version, admin) if detail else self.basic(base, server)
            kept[key] = json.dumps(view).encode()
        return kept[key]

    # Lists

    def listing(self, request: web.Request, base: str, detail: bool) -> web.Response:
        identity: Identity = request["identity"]
        version: Version = request["microversion"]
        servers = self._select(request, identity, version)
        servers, more = self._page(request, servers)
        body = b", ".join(self._bytes(base, server, version, identity.is_admin, detail) for server in servers)
        tail = b"]"
        if more:
            # ref: Nova keeps the query as it was and sets only the marker.
            href = f"{base}{request.path}?{request.url.update_query(marker=servers[-1].id).raw_query_string}"
            tail += b', "servers_links": ' + json.dumps([{"rel": "next", "href": href}]).encode()
        return web.Response(body=b'{"servers": [' + body + tail + b"}", content_type="application/json")

    def _select(self, request: web.Request, identity: Identity, version: Version) -> list[Server]:
        query = request.query
        changes_since = query.get("changes-since")
        deleted = identity.is_admin and query.get("deleted", "").lower() in ("1", "true", "yes", "on")
        # Newest first, which is the order in which they were not added.
        # those of a cell that is down are left out where a filter is asked for, which is always so here
        listed = (one for one in reversed(self._state.servers.values()) if not (one.vm_state == "soft-delete" or one.cell_is_down))
        servers = [] if deleted else list(listed)
        if deleted or changes_since:
            servers += reversed(self._state.tombstones.values())
        everybody = query.get("all_tenants", "false").lower() in ("", "1", "true", "yes", "on")
        if everybody and not identity.is_admin:
            raise forbidden("Policy doesn't allow os_compute_api:servers:index:get_all_tenants to be performed.")
        if not everybody:
            servers = [server for server in servers if server.project_id == identity.project_id]
        if changes_since:
            since = instant(changes_since)
            servers = [server for server in servers if server.updated >= since]
        if version >= (2, 66) and "changes-before" in query:
            before = instant(query["changes-before"])
            servers = [server for server in servers if server.updated <= before]
        if version >= (2, 26):
            servers = by_tags(servers, query)
        return self._by_fields(servers, query, version)

    def _by_fields(self, servers: list[Server], query: Any, version: Version) -> list[Server]:
        if statuses := {text.upper() for text in query.getall("status", [])}:
            known = set(STATUS.values()) | set(REBOOTING.values())
            if not statuses & known and version >= (2, 38):
                raise bad_request("Invalid status value")
            servers = [server for server in servers if status_of(server) in statuses]
        if pattern := query.get("name"):
            try:
                matches = re.compile(pattern).search
            except re.error as error:
                raise bad_request(f"Invalid filter: name={pattern} is not a regular expression: {error}") from error
            servers = [server for server in servers if matches(server.name)]
        if image := query.get("image"):
            servers = [server for server in servers if server.image_id == image.rpartition("/")[2]]
        if flavor := query.get("flavor"):
            servers = [server for server in servers if server.flavor["id"] == flavor.rpartition("/")[2]]
        if address := query.get("ip"):
            servers = [s for s in servers if any(re.search(address, port.address) for port in self._state.ports_of(s))]
        if wanted := query.get("uuid"):
            servers = [server for server in servers if server.id == wanted]
        return servers

    @staticmethod
    def _page(request: web.Request, servers: list[Server]) -> tuple[list[Server], bool]:
        query = request.query
        if keys := query.getall("sort_key", []):
            directions = query.getall("sort_dir", []) + ["desc"] * len(keys)
            for key, direction in reversed(list(zip(keys, directions, strict=False))):
                if key not in SORT_KEYS:
                    raise bad_request(
                        f"Invalid input for query parameters sort_key. Value: {key}. '{key}' is not one of {sorted(SORT_KEYS)}"
                    )
                field = SORT_KEYS[key]
                servers = sorted(servers, key=lambda server: getattr(server, field) or "", reverse=direction == "desc")
        if marker := query.get("marker"):
            place = next((place for place, server in enumerate(servers) if server.id == marker), None)
            if place is None:
                raise bad_request(f"marker [{marker}] not found")
            servers = servers[place + 1 :]
        text = query.get("limit", str(MAX_PAGE))
        if not text.isdigit():
            raise bad_request(f"Invalid input for query parameters limit. Value: {text}. '{text}' does not match '^[0-9]*$'")
        limit = min(int(text) or MAX_PAGE, MAX_PAGE)
        # Nova gives a next link with every full page, without looking whether anything follows.
        return servers[:limit], len(servers) >= limit


def by_tags(servers: list[Server], query: Any) -> list[Server]:
    filters = (
        ("tags", lambda wanted, has: wanted <= has),
        ("tags-any", lambda wanted, has: bool(wanted & has)),
        ("not-tags", lambda wanted, has: not wanted <= has),
        ("not-tags-any", lambda wanted, has: not wanted & has),
    )
    for name, holds in filters:
        if name in query:
            wanted = set(query[name].split(","))
            servers = [server for server in servers if holds(wanted, set(server.tags))]
    return servers


def instant(text: str) -> str:
    """A time of a query as our records write it, which compares."""
    try:
        moment = datetime.fromisoformat(text.replace(" ", "+"))
    except ValueError as error:
        raise bad_request(
            f"Invalid input for query parameters changes-since. Value: {text}. '{text}' is not a 'date-time'"
        ) from error
    moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
