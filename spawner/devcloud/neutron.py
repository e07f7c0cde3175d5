"""Neutron v2.0: one network whose addresses are loopback addresses, its ports, and security groups that filter nothing.

``Network`` holds the rules (Nova uses them too), ``Neutron`` answers the calls; security groups are in ``neutron_groups``.
"""

import secrets
from collections.abc import Callable, Iterable
from ipaddress import AddressValueError, IPv4Address
from typing import Any

from aiohttp import web

from spawner.devcloud.errors import ApiError, bad_request, conflict, not_found
from spawner.devcloud.keystone import NOTE, Identity
from spawner.devcloud.neutron_groups import Groups
from spawner.devcloud.neutron_lists import body, check_fields, listing
from spawner.devcloud.state import Port, State, new_id

SINCE = "2026-01-01T00:00:00Z"
EXTENSIONS = (
    "security-group",
    "port-security",
    "quotas",
    "quota_details",
    "binding",
    "router",
    "standard-attr-tag",
    "standard-attr-revisions",
)
PORT_FIELDS = {
    "name": str,
    "description": str,
    "device_id": str,
    "device_owner": str,
    "admin_state_up": bool,
    "port_security_enabled": bool,
    "security_groups": list,
    "allowed_address_pairs": list,
    "dns_name": str,
}
OTHER_PORT_FIELDS = {"network_id", "fixed_ips", "mac_address", "tenant_id", "project_id", "binding:vnic_type", "binding:host_id"}


class Network:
    """The network "hutch" and its ports."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.groups = Groups(state)
        self.id = state.identifier("network")
        self.subnet_id = state.identifier("subnet")
        self.name = "hutch"
        self.gateway = str(state.subnet[1])
        self._next = int(state.store.setting("next address", "2"))

    def describe(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "description": NOTE,
            "tenant_id": "",
            "project_id": "",
            "status": "ACTIVE",
            "admin_state_up": True,
            "shared": True,
            "router:external": False,
            "port_security_enabled": True,
            "is_default": False,
            "mtu": 1500,
            "subnets": [self.subnet_id],
            "availability_zones": ["nova"],
            "availability_zone_hints": [],
            "ipv4_address_scope": None,
            "ipv6_address_scope": None,
            "tags": ["devcloud"],
            "created_at": SINCE,
            "updated_at": SINCE,
            "revision_number": 1,
        }

    def describe_subnet(self) -> dict[str, Any]:
        subnet = self.state.subnet
        return {
            "id": self.subnet_id,
            "name": "hutch-v4",
            "description": NOTE,
            "network_id": self.id,
            "tenant_id": "",
            "project_id": "",
            "ip_version": 4,
            "cidr": str(subnet),
            "gateway_ip": self.gateway,
            "enable_dhcp": True,
            "allocation_pools": [{"start": str(subnet[2]), "end": str(subnet[-2])}],
            "dns_nameservers": [],
            "host_routes": [],
            "subnetpool_id": None,
            "ipv6_address_mode": None,
            "ipv6_ra_mode": None,
            "tags": [],
            "created_at": SINCE,
            "updated_at": SINCE,
            "revision_number": 1,
        }

    # Addresses

    def _usable(self, offset: int) -> bool:
        return offset % 256 not in (0, 255) and offset > 1

    def _free_address(self) -> str:
        """The next free address. Going round keeps an address from being used again at once."""
        size = self.state.subnet.num_addresses
        for step in range(size):
            offset = (self._next + step) % size
            address = str(self.state.subnet[offset])
            if self._usable(offset) and address not in self.state.ports_by_address:
                self._next = offset + 1
                self.state.store.set("next address", str(self._next))
                return address
        raise conflict(f"No more IP addresses available on network {self.id}.", "IpAddressGenerationFailure")

    def _wanted_address(self, text: str) -> str:
        address = parse_address(text)
        subnet = self.state.subnet
        if address not in subnet or address in (subnet[0], subnet[-1]):
            message = f"IP address {text} is not a valid IP for any of the subnets on the specified network."
            raise bad_request(message, "InvalidIpForNetwork")
        if str(address) in self.state.ports_by_address or str(address) == self.gateway:
            raise conflict(f"IP address {text} already allocated in subnet {self.subnet_id}", "IpAddressAlreadyAllocated")
        return str(address)

    # Ports

    def create_port(self, project_id: str, wanted: dict[str, Any]) -> Port:
        if wanted.get("network_id") != self.id:
            raise not_found(f"Network {wanted.get('network_id')} could not be found.", "NetworkNotFound")
        self.check_quota("port", project_id, self.state.ports.values())
        default = self.groups.default(project_id)
        groups = wanted.get("security_groups")
        fixed_ips = wanted.get("fixed_ips") or [{}]
        if fixed_ips[0].get("subnet_id") not in (None, self.subnet_id):
            raise not_found(f"Subnet {fixed_ips[0]['subnet_id']} could not be found.", "SubnetNotFound")
        values = {key: wanted[key] for key in PORT_FIELDS if wanted.get(key) is not None}
        values["security_groups"] = [default.id] if groups is None else [self.groups.find(project_id, each).id for each in groups]
        requested = fixed_ips[0].get("ip_address")
        port = Port(
            id=new_id(),
            project_id=project_id,
            network_id=self.id,
            subnet_id=self.subnet_id,
            address=self._wanted_address(requested) if requested else self._free_address(),
            mac=wanted.get("mac_address") or "fa:16:3e:" + secrets.token_hex(3)[:2] + ":" + ":".join(_pairs(secrets.token_hex(2))),
            vnic_type=wanted.get("binding:vnic_type", "normal"),
            **values,
        )
        self.state.add(port)
        return port

    def check_quota(self, kind: str, project_id: str, records: Iterable[Any]) -> None:
        limit = self.state.quota[kind]
        if 0 <= limit <= sum(1 for record in records if record.project_id == project_id):
            raise conflict(f"Quota exceeded for resources: ['{kind}'].", "OverQuota")

    def find_port(self, identity: Identity, port_id: str) -> Port:
        port = self.state.ports.get(port_id)
        if port is None or not (identity.is_admin or port.project_id == identity.project_id):
            raise not_found(f"Port {port_id} could not be found.", "PortNotFound")
        return port

    def move(self, port: Port, address: str) -> None:
        """To another address; what runs in its server hears of it at the next boot."""
        address = self._wanted_address(address)
        del self.state.ports_by_address[port.address]
        self.state.ports_by_address[address], port.address = port.id, address

    def bind(self, port: Port, server_id: str) -> None:
        port.device_id, port.device_owner, port.bound = server_id, "compute:nova", True
        self.state.save(port)

    def unbind(self, port: Port) -> None:
        self.state.rendered.pop(port.device_id, None)
        port.device_id, port.device_owner, port.bound = "", "", False
        self.state.save(port)

    def describe_port(self, port: Port, admin: bool = False) -> dict[str, Any]:
        server = self.state.servers.get(port.device_id)
        seen = {
            "id": port.id,
            "name": port.name,
            "description": port.description,
            "network_id": port.network_id,
            "tenant_id": port.project_id,
            "project_id": port.project_id,
            "mac_address": port.mac,
            "fixed_ips": [{"subnet_id": port.subnet_id, "ip_address": port.address}],
            "status": "ACTIVE" if port.bound and server is not None and server.vm_state == "active" else "DOWN",
            "admin_state_up": port.admin_state_up,
            "device_id": port.device_id,
            "device_owner": port.device_owner,
            "security_groups": port.security_groups,
            "allowed_address_pairs": port.allowed_address_pairs,
            "extra_dhcp_opts": [],
            "port_security_enabled": port.port_security_enabled,
            "binding:vnic_type": port.vnic_type,
            "dns_name": port.dns_name,
            "dns_assignment": [],
            "qos_policy_id": None,
            "propagate_uplink_status": False,
            "tags": port.tags,
            "created_at": port.created,
            "updated_at": port.updated,
            "revision_number": port.revision,
        }
        if admin:
            seen |= {
                "binding:host_id": "devcloud" if port.bound else "",
                "binding:vif_type": "bridge" if port.bound else "unbound",
                "binding:vif_details": {},
                "binding:profile": {},
            }
        return seen


def parse_address(text: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except AddressValueError as error:
        raise bad_request(f"Invalid input for fixed_ips. Reason: '{text}' is not a valid IP address.", "HTTPBadRequest") from error


def _pairs(digits: str) -> list[str]:
    return [digits[i : i + 2] for i in range(0, len(digits), 2)]


class Neutron:
    def __init__(self, network: Network, base_url: Callable[[], str]) -> None:
        self._network = network
        self._state = network.state
        self._base_url = base_url

    def routes(self) -> list[web.RouteDef]:
        v2 = "/network/v2.0"
        tags = v2 + "/{collection:ports|security-groups}/{id}/tags"
        return [
            web.get("/network", self.versions),
            web.get("/network/", self.versions),
            web.get(v2, self.resources),
            web.get(v2 + "/", self.resources),
            web.get(v2 + "/extensions", self.extensions),
            web.get(v2 + "/extensions/{alias}", self.extension),
            web.get(v2 + "/networks", self.list_networks),
            web.get(v2 + "/networks/{id}", self.show_network),
            web.get(v2 + "/subnets", self.list_subnets),
            web.get(v2 + "/subnets/{id}", self.show_subnet),
            web.get(v2 + "/ports", self.list_ports),
            web.post(v2 + "/ports", self.create_port),
            web.get(v2 + "/ports/{id}", self.show_port),
            web.put(v2 + "/ports/{id}", self.update_port),
            web.delete(v2 + "/ports/{id}", self.delete_port),
            web.get(v2 + "/quotas/{id}", self.show_quota),
            web.put(v2 + "/quotas/{id}", self.update_quota),
            web.get(v2 + "/quotas/{id}/details.json", self.quota_details),
            web.get(v2 + "/quotas/{id}/details", self.quota_details),
            web.get(tags, self.list_tags),
            web.put(tags, self.replace_tags),
            web.delete(tags, self.replace_tags),
            web.put(tags + "/{tag}", self.add_tag),
            web.delete(tags + "/{tag}", self.remove_tag),
            *self._network.groups.routes(self._network.check_quota),
        ]

    # Discovery

    async def versions(self, request: web.Request) -> web.Response:
        links = [{"rel": "self", "href": self._base_url() + "/network/v2.0/"}]
        return web.json_response({"versions": [{"id": "v2.0", "status": "CURRENT", "links": links}]})

    async def resources(self, request: web.Request) -> web.Response:
        base = self._base_url() + "/network/v2.0/"
        names = ("networks", "subnets", "ports", "security-groups", "security-group-rules", "quotas", "extensions")
        resources = [
            {"name": name.rstrip("s"), "collection": name, "links": [{"rel": "self", "href": base + name}]} for name in names
        ]
        return web.json_response({"resources": resources})

    @staticmethod
    def _extension(alias: str) -> dict[str, Any]:
        return {"alias": alias, "name": alias, "description": "", "updated": SINCE, "links": []}

    async def extensions(self, request: web.Request) -> web.Response:
        return web.json_response({"extensions": [self._extension(alias) for alias in EXTENSIONS]})

    async def extension(self, request: web.Request) -> web.Response:
        alias = request.match_info["alias"]
        if alias not in EXTENSIONS:
            raise not_found(f"Extension with alias {alias} does not exist", "ExtensionNotFound")
        return web.json_response({"extension": self._extension(alias)})

    # Networks and subnets

    async def list_networks(self, request: web.Request) -> web.Response:
        return listing(request, "networks", [self._network.describe()])

    async def show_network(self, request: web.Request) -> web.Response:
        if request.match_info["id"] != self._network.id:
            raise not_found(f"Network {request.match_info['id']} could not be found.", "NetworkNotFound")
        return web.json_response({"network": self._network.describe()})

    async def list_subnets(self, request: web.Request) -> web.Response:
        return listing(request, "subnets", [self._network.describe_subnet()])

    async def show_subnet(self, request: web.Request) -> web.Response:
        if request.match_info["id"] != self._network.subnet_id:
            raise not_found(f"Subnet {request.match_info['id']} could not be found.", "SubnetNotFound")
        return web.json_response({"subnet": self._network.describe_subnet()})

    # Ports

    async def list_ports(self, request: web.Request) -> web.Response:
        identity: Identity = request["identity"]
        ports: Iterable[Port] = self._state.ports.values()
        # The two filters that callers use all the time are looked at before anything is rendered.
        for field in ("name", "device_id"):
            if wanted := request.query.getall(field, []):
                ports = [port for port in ports if getattr(port, field) in wanted]
        mine = (port for port in ports if identity.is_admin or port.project_id == identity.project_id)
        return listing(request, "ports", [self._network.describe_port(port, identity.is_admin) for port in mine])

    async def create_port(self, request: web.Request) -> web.Response:
        identity: Identity = request["identity"]
        wanted = await body(request, "port")
        check_fields(wanted, PORT_FIELDS.keys() | OTHER_PORT_FIELDS)
        for field, kind in PORT_FIELDS.items():
            if wanted.get(field) is not None and not isinstance(wanted[field], kind):
                raise bad_request(
                    f"Invalid input for {field}. Reason: '{wanted[field]}' is not a valid {kind.__name__}.", "HTTPBadRequest"
                )
        chosen = [parse_address(fixed["ip_address"]) for fixed in wanted.get("fixed_ips") or [] if "ip_address" in fixed]
        if chosen and not identity.is_admin:
            # the network is shared, and only its owner may choose addresses on it
            raise ApiError(403, "rule:create_port and rule:create_port:fixed_ips is disallowed by policy", "PolicyNotAuthorized")
        project_id = (wanted.get("project_id") or wanted.get("tenant_id")) if identity.is_admin else None
        port = self._network.create_port(project_id or identity.project_id or "", wanted)
        return web.json_response({"port": self._network.describe_port(port, identity.is_admin)}, status=201)

    def _port(self, request: web.Request) -> Port:
        return self._network.find_port(request["identity"], request.match_info["id"])

    async def show_port(self, request: web.Request) -> web.Response:
        port = self._network.describe_port(self._port(request), request["identity"].is_admin)
        fields = request.query.getall("fields", [])
        return web.json_response({"port": {key: port[key] for key in fields if key in port} if fields else port})

    async def update_port(self, request: web.Request) -> web.Response:
        port, wanted = self._port(request), await body(request, "port")
        check_fields(wanted, PORT_FIELDS.keys() | {"binding:host_id", "binding:vnic_type", "fixed_ips"})
        if "fixed_ips" in wanted:
            if not request["identity"].is_admin:
                raise ApiError(
                    403, "(rule:update_port and (rule:update_port:fixed_ips)) is disallowed by policy", "PolicyNotAuthorized"
                )
            self._network.move(port, wanted["fixed_ips"][0]["ip_address"])
        if "security_groups" in wanted:
            wanted["security_groups"] = [
                self._network.groups.find(port.project_id, each).id for each in wanted["security_groups"] or []
            ]
        for field in PORT_FIELDS.keys() & wanted.keys():
            setattr(port, field, wanted[field])
        self._state.save(port)
        return web.json_response({"port": self._network.describe_port(port, request["identity"].is_admin)})

    async def delete_port(self, request: web.Request) -> web.Response:
        port = self._port(request)
        if (server := self._state.servers.get(port.device_id)) is not None and port.id in server.port_ids:
            # Neutron lets its owner delete a port in use; the server then has no such interface any more.
            server.port_ids.remove(port.id)
            self._state.save(server)
        self._state.erase(port)
        return web.Response(status=204)

    # Tags

    def _tagged(self, request: web.Request) -> Any:
        if request.match_info["collection"] == "ports":
            return self._port(request)
        return self._network.groups.find(request["identity"].project_id, request.match_info["id"])

    async def list_tags(self, request: web.Request) -> web.Response:
        return web.json_response({"tags": self._tagged(request).tags})

    async def replace_tags(self, request: web.Request) -> web.Response:
        record = self._tagged(request)
        record.tags = [] if request.method == "DELETE" else sorted(set(await body(request, "tags", list)))
        self._state.save(record)
        return web.Response(status=204) if request.method == "DELETE" else web.json_response({"tags": record.tags})

    async def add_tag(self, request: web.Request) -> web.Response:
        record = self._tagged(request)
        record.tags = sorted({*record.tags, request.match_info["tag"]})
        self._state.save(record)
        return web.Response(status=201)

    async def remove_tag(self, request: web.Request) -> web.Response:
        record, tag = self._tagged(request), request.match_info["tag"]
        if tag not in record.tags:
            raise not_found(f"Tag {tag} could not be found.", "TagNotFound")
        record.tags = [each for each in record.tags if each != tag]
        self._state.save(record)
        return web.Response(status=204)

    # Quotas

    def _used(self, project_id: str) -> dict[str, int]:
        return {
            "network": 0,
            "subnet": 0,
            "port": sum(1 for port in self._state.ports.values() if port.project_id == project_id),
            "security_group": sum(1 for group in self._state.security_groups.values() if group.project_id == project_id),
            "security_group_rule": sum(len(g.rules) for g in self._state.security_groups.values() if g.project_id == project_id),
        }

    def _own_project(self, request: web.Request) -> str:
        identity, project_id = request["identity"], request.match_info["id"]
        if not identity.is_admin and project_id != identity.project_id:
            raise ApiError(403, "Non-admin is not authorized to access quotas for another tenant.", "NotAuthorized")
        return str(project_id)

    async def show_quota(self, request: web.Request) -> web.Response:
        return web.json_response({"quota": {kind: self._state.quota[kind] for kind in self._used(self._own_project(request))}})

    async def update_quota(self, request: web.Request) -> web.Response:
        """By admins; one quota for all projects."""
        if not request["identity"].is_admin:
            raise ApiError(403, "Non-admin is not authorized to access quotas for another tenant.", "NotAuthorized")
        self._state.set_quota({kind: int(limit) for kind, limit in (await body(request, "quota")).items()})
        return await self.show_quota(request)

    async def quota_details(self, request: web.Request) -> web.Response:
        used = self._used(self._own_project(request))
        details = {kind: {"used": count, "limit": self._state.quota[kind], "reserved": 0} for kind, count in used.items()}
        return web.json_response({"quota": details})
