"""The smaller parts of Nova: flavors, limits, quotas, availability zones, and lists that are empty here."""

from typing import Any

from aiohttp import web

from spawner.devcloud.errors import forbidden, not_found
from spawner.devcloud.flavors import FLAVORS, describe
from spawner.devcloud.nova import PREFIX, ZONE, Nova

QUOTAS = ("instances", "cores", "ram", "metadata_items", "key_pairs", "server_groups", "server_group_members")


class NovaExtras:
    def __init__(self, nova: Nova) -> None:
        self._nova = nova

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get(PREFIX + "/flavors", self.list_flavors),
            web.get(PREFIX + "/flavors/detail", self.list_flavor_details),
            web.get(PREFIX + "/flavors/{id}", self.show_flavor),
            web.get(PREFIX + "/flavors/{id}/os-extra_specs", self.extra_specs),
            web.get(PREFIX + "/limits", self.limits),
            web.get(PREFIX + "/os-quota-sets/{id}", self.quota_set),
            web.put(PREFIX + "/os-quota-sets/{id}", self.update_quota_set),
            web.get(PREFIX + "/os-availability-zone", self.zones),
            web.get(PREFIX + "/os-keypairs", self.keypairs),
            web.get(PREFIX + "/servers/{id}/ips", self.addresses),
            web.get(PREFIX + "/servers/{id}/os-interface", self.interfaces),
            web.get(PREFIX + "/servers/{id}/os-security-groups", self.groups),
            web.get(PREFIX + "/servers/{id}/os-volume_attachments", self.volumes),
        ]

    # Flavors

    def _flavors(self, request: web.Request, detail: bool) -> web.Response:
        base, version, query = self._nova.base_url(), request["microversion"], request.query
        shown = [describe(base, flavor, version) for flavor in FLAVORS.values()]
        shown = [f for f in shown if f["ram"] >= int(query.get("minRam", 0)) and f["disk"] >= int(query.get("minDisk", 0))]
        if not detail:
            kept = ("id", "name", "links", "description") if version >= (2, 55) else ("id", "name", "links")
            shown = [{key: flavor[key] for key in kept} for flavor in shown]
        if marker := query.get("marker"):
            shown = [flavor for flavor in shown if flavor["id"] > marker]
        return web.json_response({"flavors": shown[: int(query["limit"])] if query.get("limit", "").isdigit() else shown})

    async def list_flavors(self, request: web.Request) -> web.Response:
        return self._flavors(request, detail=False)

    async def list_flavor_details(self, request: web.Request) -> web.Response:
        return self._flavors(request, detail=True)

    def _flavor(self, request: web.Request) -> dict[str, Any]:
        flavor = FLAVORS.get(request.match_info["id"])
        if flavor is None:
            raise not_found(f"Flavor {request.match_info['id']} could not be found.")
        return flavor

    async def show_flavor(self, request: web.Request) -> web.Response:
        return web.json_response({"flavor": describe(self._nova.base_url(), self._flavor(request), request["microversion"])})

    async def extra_specs(self, request: web.Request) -> web.Response:
        self._flavor(request)
        return web.json_response({"extra_specs": {}})

    # Limits and quotas

    async def limits(self, request: web.Request) -> web.Response:
        quota, used = self._nova.state.quota, self._nova.used(request["identity"].project_id)
        absolute = {
            "maxTotalInstances": quota["instances"],
            "maxTotalCores": quota["cores"],
            "maxTotalRAMSize": quota["ram"],
            "maxServerMeta": quota["metadata_items"],
            "maxTotalKeypairs": quota["key_pairs"],
            "maxServerGroups": quota["server_groups"],
            "maxServerGroupMembers": quota["server_group_members"],
            "totalInstancesUsed": used["instances"],
            "totalCoresUsed": used["cores"],
            "totalRAMUsed": used["ram"],
            "totalServerGroupsUsed": 0,
        }
        if request["microversion"] < (2, 36):
            absolute |= {"maxSecurityGroups": quota["security_group"], "maxSecurityGroupRules": quota["security_group_rule"]}
            absolute |= {"maxTotalFloatingIps": -1, "totalSecurityGroupsUsed": 0, "totalFloatingIpsUsed": 0}
        if request["microversion"] < (2, 39):
            absolute["maxImageMeta"] = quota["metadata_items"]
        if request["microversion"] < (2, 57):
            absolute |= {"maxPersonality": 5, "maxPersonalitySize": 10240}
        return web.json_response({"limits": {"rate": [], "absolute": absolute}})

    async def quota_set(self, request: web.Request) -> web.Response:
        identity, project_id = request["identity"], request.match_info["id"]
        if not identity.is_admin and project_id != identity.project_id:
            raise forbidden("Policy doesn't allow os_compute_api:os-quota-sets:show to be performed.")
        return web.json_response({"quota_set": {"id": project_id} | {name: self._nova.state.quota[name] for name in QUOTAS}})

    async def update_quota_set(self, request: web.Request) -> web.Response:
        """By admins; one quota for all projects."""
        if not request["identity"].is_admin:
            raise forbidden("Policy doesn't allow os_compute_api:os-quota-sets:update to be performed.")
        wanted = (await request.json())["quota_set"]
        self._nova.state.set_quota({name: int(wanted[name]) for name in QUOTAS if name in wanted})
        return web.json_response({"quota_set": {name: self._nova.state.quota[name] for name in QUOTAS}})

    # The rest

    async def zones(self, request: web.Request) -> web.Response:
        zone = {"zoneName": ZONE, "zoneState": {"available": True}, "hosts": None}
        return web.json_response({"availabilityZoneInfo": [zone]})

    async def keypairs(self, request: web.Request) -> web.Response:
        return web.json_response({"keypairs": []})

    async def addresses(self, request: web.Request) -> web.Response:
        networks = self._nova.views.addresses(self._nova.server(request))
        plain = {name: [{key: a[key] for key in ("version", "addr")} for a in some] for name, some in networks.items()}
        return web.json_response({"addresses": plain})

    async def interfaces(self, request: web.Request) -> web.Response:
        attachments = [
            {
                "port_id": port.id,
                "net_id": port.network_id,
                "mac_addr": port.mac,
                "port_state": "ACTIVE",
                "fixed_ips": [{"subnet_id": port.subnet_id, "ip_address": port.address}],
            }
            for port in self._nova.state.ports_of(self._nova.server(request))
        ]
        return web.json_response({"interfaceAttachments": attachments})

    async def groups(self, request: web.Request) -> web.Response:
        groups = self._nova.views.security_groups(self._nova.server(request))
        return web.json_response({"security_groups": [group | {"rules": []} for group in groups]})

    async def volumes(self, request: web.Request) -> web.Response:
        self._nova.server(request)
        return web.json_response({"volumeAttachments": []})
