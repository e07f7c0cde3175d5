"""Which security groups guard an instance, from what is declared in `c.Hutch.firewall`: rules over records, no I/O.

Nothing but what is declared is put on a port, and never nothing: the base group, which lets in the hub alone, is on every one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import ip_network
from typing import Any

from .access import Limit, Person, PlanOffer, Terms, Visit, grounds_of, may_see

BASE = "base"
ANYWHERE = ({"to": "0.0.0.0/0"}, {"to": "::/0"})
FIELDS = ("direction", "ethertype", "protocol", "port_range_min", "port_range_max", "remote_ip_prefix", "remote_group_id")


def neutron_rule(entry: Mapping[str, Any]) -> dict[str, Any]:
    """{"from" or "to": network, "ports": 22 or "5064-5065", "protocol": "tcp"} in Neutron's words."""
    if entry.keys() - {"from", "to", "ports", "protocol"} or ("from" in entry) == ("to" in entry):
        raise ValueError(f"a rule says 'from' or 'to', and may have 'ports' and 'protocol', unlike {dict(entry)}")
    direction, network = ("ingress", ip_network(entry["from"])) if "from" in entry else ("egress", ip_network(entry["to"]))
    first, _, last = str(entry.get("ports", "")).partition("-")
    ports = {"port_range_min": int(first), "port_range_max": int(last or first)} if first else {}
    protocol = entry.get("protocol") or ("tcp" if ports else None)
    where = str(network) if network.prefixlen else None
    return {"direction": direction, "ethertype": f"IPv{network.version}", "protocol": protocol, "remote_ip_prefix": where, **ports}


def spelled(rule: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a rule lets through, to compare it; Neutron has two spellings for everywhere."""
    return tuple(None if (value := rule.get(field)) in ("0.0.0.0/0", "::/0") else value for field in FIELDS)


@dataclass(frozen=True, slots=True)
class Subject:
    """What the choice rests on. person: the owner; None when the facility does not know them any more."""

    person: Person | None
    plan: PlanOffer
    visits: Sequence[Visit]

    def facts(self, instance_id: str) -> dict[str, Any]:
        """What a site's hook is told."""
        person, plan, visits = self.person, self.plan, self.visits
        who = {"owner": person.login, "roles": sorted(person.roles), "groups": sorted(person.groups)} if person else {}
        what = {"instance": instance_id, "plan": plan.id, "image": plan.image, "flavor": plan.flavor}
        where = {"experiments": [visit.id for visit in visits], "instruments": sorted({visit.instrument_id for visit in visits})}
        return who | what | where

    def fits(self, way: Mapping[str, Any], terms: Terms) -> bool:
        """Whether all holds that an entry of `for` names; of the experiments, those count that the owner may see now."""
        if self.person is None or ("flavors" in way and self.plan.flavor not in way["flavors"]):
            return False
        window = timedelta(days=way.get("within_days", 0))
        visits = [one for one in self.visits if may_see(self.person, one, terms)]
        near = [one for one in visits if "within_days" not in way or one.is_within(window, terms.at)]
        return grounds_of(_limit(way), self.person, near, terms.at) is not None


def _limit(way: Mapping[str, Any]) -> Limit:
    return Limit.read({name: value for name, value in way.items() if name not in ("flavors", "within_days")})


class Firewall:
    """The groups that are declared. rules: by name, of the groups that Hutch keeps; ways: by name, of all, None for everybody."""

    def __init__(self, declared: Mapping[str, Any], hub_ports: Sequence[int] = (8765, 8888)) -> None:
        """Raises ValueError, TypeError or KeyError for what cannot be read. Nothing declared: ports are none of its business."""
        self.rules: dict[str, list[dict[str, Any]]] = {}
        self.ways: dict[str, list[Mapping[str, Any]] | None] = {}
        self.hook, self.hook_seconds = declared.get("hook", ""), float(declared.get("hook_seconds", 3))
        if not declared:
            return
        groups = declared.get("groups", {})
        entries = [
            (declared, {"hub_addresses", "rules", "groups", "hook", "hook_seconds"}),
            *((group, {"rules", "for"}) for group in groups.values()),
        ]
        if (strange := {key for entry, known in entries for key in entry.keys() - known}) or BASE in groups:
            raise ValueError(f"not known, or taken: {', '.join(sorted(strange or {BASE}))}")
        if strange := {key for group in groups.values() for way in group.get("for", ()) for key in _limit(way).unknown}:
            raise ValueError(f"'for' does not know {', '.join(sorted(strange))}")
        hub = [{"from": address, "ports": port} for address in declared["hub_addresses"] for port in hub_ports]
        base = {"rules": [*hub, *declared.get("rules", ANYWHERE)]}
        for name, group in {**groups, BASE: base}.items():
            self.ways[name] = group.get("for")
            if "rules" in group:
                self.rules[name] = [neutron_rule(entry) for entry in group["rules"]]

    def guards(self, subject: Subject, terms: Terms, told: Collection[str] | None, present: Collection[str] = ()) -> set[str]:
        """The names of an instance's groups. told: what the hook named.

        A hook that failed (None) adds nothing: at a launch the base group stands alone, and later what is present stays, less what
        the declared ways give no more.
        """
        chosen = {name for name, ways in self.ways.items() if ways is None or any(subject.fits(way, terms) for way in ways)}
        if told is None:
            hooks = {name for name, ways in self.ways.items() if ways == []}
            return {BASE} | ({*present} & (chosen | hooks))
        return chosen | ({*told} & self.ways.keys())

    def cloud_name(self, name: str, deployment_id: str) -> str:
        """Ours bear the deployment, so that two Hutches in one project never share one; others are named as they are."""
        return f"hutch-{deployment_id[:8]}-{name}" if name in self.rules else name
