"""Keeps the security groups in the cloud, and which of them guard each instance, as they are declared and as the records are now.

Only groups whose description bears this deployment's id are changed or deleted, and only ports of this deployment's instances.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import structlog
from sqlalchemy import select
from sqlalchemy.orm import Session, joinedload

from spawner.builders import mark, marked
from spawner.cloud import Cloud
from spawner.cloud_errors import CloudError

from .. import firewall_hook, records
from ..access import Terms
from ..database.tables import Instance, now
from ..facility import Facility
from ..firewall import BASE, Firewall, Subject, spelled
from ..service import putting_off

log = structlog.get_logger()
ASK_AGAIN_SECONDS = 300.0


def subjects(session: Session, instance_ids: Collection[str], terms: Terms) -> dict[str, Subject]:
    query = select(Instance).where(Instance.id.in_(instance_ids), Instance.purged_at.is_(None)).options(joinedload(Instance.owner))
    return {instance.id: records.find_subject(session, instance, terms) for instance in session.scalars(query)}


@dataclass
class Keeping:
    """fixed: the groups that the site has on every instance anyway."""

    facility: Facility
    clouds: Mapping[str, Cloud]
    firewall: Firewall
    fixed: Collection[str] = ()
    told: dict[str, tuple[dict[str, Any], float, set[str] | None]] = field(default_factory=dict)

    async def keep_firewall(self) -> None:
        for cloud in set(self.clouds.values()):
            with putting_off("the firewall is put off", cloud=cloud.label):
                await self._keep(cloud)

    async def _keep(self, cloud: Cloud) -> None:
        deployment_id, rules = self.facility.deployment_id, self.firewall.rules
        listed = (await cloud.groups("list the security groups"))["security_groups"]
        ours: dict[str, dict[str, Any]] = {}
        surplus = set()
        for group in sorted(listed, key=lambda group: str(group["id"])):
            if (name := marked(group["description"], deployment_id)) and (name not in rules or name in ours):
                surplus.add(group["id"])
            elif name:
                ours[name] = group
        for name in rules:
            with putting_off("a security group is put off", group=name, cloud=cloud.label):
                await self._keep_group(cloud, name, ours)
        if BASE not in ours:
            return
        ids = {group["name"]: group["id"] for group in listed if group["name"] in self.firewall.ways.keys() - rules.keys()}
        # what Neutron gives a port that names none, and would let instances in to each other
        default = {group["id"] for group in listed if group["name"] == "default" and "default" not in self.fixed}
        await self._guard(cloud, ids | {name: group["id"] for name, group in ours.items()}, default | surplus)
        for group_id in surplus:
            with suppress(CloudError):  # one that something else uses stays
                await cloud.groups("delete a security group", "DELETE", f"s/{group_id}")

    async def _keep_group(self, cloud: Cloud, name: str, ours: dict[str, dict[str, Any]]) -> None:
        deployment_id = self.facility.deployment_id
        body = {"security_group": {"name": self.firewall.cloud_name(name, deployment_id), "description": mark(deployment_id, name)}}
        if name not in ours:
            log.info("making a security group", group=name)
            ours[name] = (await cloud.groups("make a security group", "POST", "s", body))["security_group"]
        elif ours[name]["name"] != body["security_group"]["name"]:
            # launches look it up by its name
            await cloud.groups("rename a security group", "PUT", f"s/{ours[name]['id']}", body)
        await self._repair(cloud, ours[name], self.firewall.rules[name])

    async def _repair(self, cloud: Cloud, group: dict[str, Any], wanted: list[dict[str, Any]]) -> None:
        """What is missing comes first, so that nothing is cut off meanwhile."""
        present = {spelled(rule): rule["id"] for rule in group["security_group_rules"]}
        for rule in {spelled(rule): rule for rule in wanted if spelled(rule) not in present}.values():
            body = {"security_group_rule": rule | {"security_group_id": group["id"]}}
            await cloud.groups("make a rule of a security group", "POST", "-rules", body)
        for rule_id in [rule_id for rule, rule_id in present.items() if rule not in set(map(spelled, wanted))]:
            log.warning("a security group had a rule that is not declared", group=group["name"])
            await cloud.groups("delete a rule of a security group", "DELETE", f"-rules/{rule_id}")

    async def _guard(self, cloud: Cloud, ids: Mapping[str, str], taken: set[str]) -> None:
        """Writes only the ports whose groups differ. taken: the groups that no port is to have."""
        listed, deployment_id = await cloud.all_ports(), self.facility.deployment_id
        ports = [(instance_id, port) for port in listed if (instance_id := marked(port["description"], deployment_id))]
        terms, hook_fails = self.facility.hutch.terms(now()), False
        found = await self.facility.ask(partial(subjects, instance_ids={instance_id for instance_id, _ in ports}, terms=terms))
        # those first that the hook was not asked about for longest: one that it fails for starves nobody
        asked_at = {instance_id: at for instance_id, (_, at, _) in self.told.items()}
        for instance_id, port in sorted((one for one in ports if one[0] in found), key=lambda one: asked_at.get(one[0], 0.0)):
            subject = found[instance_id]
            told = await self._ask_hook(instance_id, subject, again=not hook_fails)
            hook_fails = hook_fails or told is None
            has = {*port["security_groups"]}
            names = self.firewall.guards(subject, terms, told, {name for name, group_id in ids.items() if group_id in has})
            groups = (has - {*ids.values()} - taken) | {ids[name] for name in names if name in ids}
            if groups != has:
                log.info("other security groups", instance=instance_id, groups=sorted(names))
                with putting_off("security groups put off", instance=instance_id):
                    await cloud.set_port_groups(port["id"], sorted(groups))

    async def _ask_hook(self, instance_id: str, subject: Subject, *, again: bool) -> set[str] | None:
        """What it said of the same facts a while ago still holds. again: whether it may be asked."""
        clock, facts = asyncio.get_running_loop().time, subject.facts(instance_id)
        asked, at, told = self.told.get(instance_id, ({}, 0.0, None))
        if told is None or facts != asked or clock() > at + ASK_AGAIN_SECONDS:
            if not again:
                return None
            told = await firewall_hook.ask(self.firewall, facts)
            self.told[instance_id] = (facts, clock(), told)
        return told
