"""Neutron's security groups: kept, checked and shown, but they filter nothing."""

from collections.abc import Callable, Iterable
from typing import Any

from aiohttp import web

from spawner.devcloud.errors import bad_request, conflict, not_found
from spawner.devcloud.neutron_lists import body, listing
from spawner.devcloud.state import SecurityGroup, State, new_id, now

CheckQuota = Callable[[str, str, Iterable[Any]], None]
RULE_FIELDS = ("direction", "ethertype", "protocol", "port_range_min", "port_range_max", "remote_ip_prefix", "remote_group_id")


class Groups:
    def __init__(self, state: State) -> None:
        self._state = state

    # Rules

    def default(self, project_id: str) -> SecurityGroup:
        """The project's group "default", which comes to be at first need."""
        for group in self._mine(project_id):
            if group.name == "default":
                return group
        group = self._new(project_id, "default", "Default security group")
        for ethertype in ("IPv4", "IPv6"):
            group.rules.append(self._rule(group, {"direction": "ingress", "ethertype": ethertype, "remote_group_id": group.id}))
        self._state.save(group)
        return group

    def _mine(self, project_id: str) -> list[SecurityGroup]:
        return [group for group in self._state.security_groups.values() if group.project_id == project_id]

    def find(self, project_id: str, group_id: str) -> SecurityGroup:
        group = self._state.security_groups.get(group_id)
        if group is None or group.project_id != project_id:
            raise not_found(f"Security group {group_id} does not exist", "SecurityGroupNotFound")
        return group

    def find_by_name_or_id(self, project_id: str, wanted: str) -> SecurityGroup | None:
        self.default(project_id)
        return next((group for group in self._mine(project_id) if wanted in (group.id, group.name)), None)

    def _new(self, project_id: str, name: str, description: str) -> SecurityGroup:
        group = SecurityGroup(id=new_id(), project_id=project_id, name=name, description=description)
        for ethertype in ("IPv4", "IPv6"):
            group.rules.append(self._rule(group, {"direction": "egress", "ethertype": ethertype}))
        self._state.add(group)
        return group

    @staticmethod
    def _rule(group: SecurityGroup, wanted: dict[str, Any]) -> dict[str, Any]:
        rule = {field: wanted.get(field) for field in RULE_FIELDS}
        rule["ethertype"] = rule["ethertype"] or "IPv4"
        return rule | {
            "id": new_id(),
            "security_group_id": group.id,
            "tenant_id": group.project_id,
            "project_id": group.project_id,
            "remote_address_group_id": None,
            "normalized_cidr": wanted.get("remote_ip_prefix"),
            "description": wanted.get("description") or "",
            "tags": [],
            "created_at": now(),
            "updated_at": now(),
            "revision_number": 0,
        }

    @staticmethod
    def describe(group: SecurityGroup) -> dict[str, Any]:
        return {
            "id": group.id,
            "name": group.name,
            "description": group.description,
            "tenant_id": group.project_id,
            "project_id": group.project_id,
            "stateful": True,
            "shared": False,
            "security_group_rules": group.rules,
            "tags": group.tags,
            "created_at": group.created,
            "updated_at": group.updated,
            "revision_number": group.revision,
        }

    # Handlers

    def routes(self, check_quota: CheckQuota) -> list[web.RouteDef]:
        self._check_quota = check_quota
        groups, rules = "/network/v2.0/security-groups", "/network/v2.0/security-group-rules"
        return [
            web.get(groups, self.index),
            web.post(groups, self.create),
            web.get(groups + "/{id}", self.show),
            web.put(groups + "/{id}", self.update),
            web.delete(groups + "/{id}", self.delete),
            web.get(rules, self.list_rules),
            web.post(rules, self.create_rule),
            web.get(rules + "/{id}", self.show_rule),
            web.delete(rules + "/{id}", self.delete_rule),
        ]

    async def index(self, request: web.Request) -> web.Response:
        self.default(request["identity"].project_id)
        return listing(request, "security_groups", [self.describe(group) for group in self._mine(request["identity"].project_id)])

    async def create(self, request: web.Request) -> web.Response:
        project_id, wanted = request["identity"].project_id, await body(request, "security_group")
        self.default(project_id)
        if wanted.get("name") == "default":
            raise conflict("Default security group already exists.", "SecurityGroupDefaultAlreadyExists")
        self._check_quota("security_group", project_id, self._state.security_groups.values())
        group = self._new(project_id, wanted.get("name") or "", wanted.get("description") or "")
        return web.json_response({"security_group": self.describe(group)}, status=201)

    def _group(self, request: web.Request) -> SecurityGroup:
        return self.find(request["identity"].project_id, request.match_info["id"])

    async def show(self, request: web.Request) -> web.Response:
        return web.json_response({"security_group": self.describe(self._group(request))})

    async def update(self, request: web.Request) -> web.Response:
        group, wanted = self._group(request), await body(request, "security_group")
        if group.name == "default" and wanted.get("name", "default") != "default":
            raise conflict("Updating default security group not allowed.", "SecurityGroupCannotUpdateDefault")
        group.name, group.description = wanted.get("name", group.name), wanted.get("description", group.description)
        self._state.save(group)
        return web.json_response({"security_group": self.describe(group)})

    async def delete(self, request: web.Request) -> web.Response:
        group = self._group(request)
        if any(group.id in port.security_groups for port in self._state.ports.values()):
            raise conflict(f"Security Group {group.id} in use.", "SecurityGroupInUse")
        if group.name == "default":
            raise conflict("Insufficient rights for removing default security group.", "SecurityGroupCannotRemoveDefault")
        self._state.erase(group)
        return web.Response(status=204)

    # Handlers of rules

    async def list_rules(self, request: web.Request) -> web.Response:
        rules = [rule for group in self._mine(request["identity"].project_id) for rule in group.rules]
        return listing(request, "security_group_rules", rules)

    async def create_rule(self, request: web.Request) -> web.Response:
        wanted = await body(request, "security_group_rule")
        if wanted.get("direction") not in ("ingress", "egress"):
            message = f"Invalid input for direction. Reason: '{wanted.get('direction')}' is not in ['ingress', 'egress']."
            raise bad_request(message, "HTTPBadRequest")
        group = self.find(request["identity"].project_id, str(wanted.get("security_group_id")))
        rule = self._rule(group, wanted)
        for other in group.rules:
            if all(other[field] == rule[field] for field in RULE_FIELDS):
                raise conflict(f"Security group rule already exists. Rule id is {other['id']}.", "SecurityGroupRuleExists")
        group.rules.append(rule)
        self._state.save(group)
        return web.json_response({"security_group_rule": rule}, status=201)

    def _find_rule(self, request: web.Request) -> tuple[SecurityGroup, dict[str, Any]]:
        for group in self._mine(request["identity"].project_id):
            for rule in group.rules:
                if rule["id"] == request.match_info["id"]:
                    return group, rule
        raise not_found(f"Security group rule {request.match_info['id']} does not exist", "SecurityGroupRuleNotFound")

    async def show_rule(self, request: web.Request) -> web.Response:
        return web.json_response({"security_group_rule": self._find_rule(request)[1]})

    async def delete_rule(self, request: web.Request) -> web.Response:
        group, rule = self._find_rule(request)
        group.rules.remove(rule)
        self._state.save(group)
        return web.Response(status=204)
