"""Reads Nova's description of a server: pure functions over the JSON of `GET /servers/detail`.

ref: https://docs.openstack.org/api-guide/compute/server_concepts.html
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from . import builders

Server = dict[str, Any]

# how a server that is there but not up is brought up again
WAKE = {
    "SHUTOFF": "os-start",
    "SHELVED": "unshelve",
    "SHELVED_OFFLOADED": "unshelve",
    "PAUSED": "unpause",
    "SUSPENDED": "resume",
}
# how it is found then
WORDS = {
    "SHUTOFF": "switched off",
    "SHELVED": "shelved",
    "SHELVED_OFFLOADED": "shelved",
    "PAUSED": "paused",
    "SUSPENDED": "suspended",
}
# why one cannot be brought up again by whom it belongs to, as people are told
RESIZED = "VERIFY_RESIZE"
HELD = {
    "ERROR": "The cloud reports an error with this instance. Its disk is kept.",
    "DELETED": "The cloud no longer has the server of this instance, nor its disk.",
    "SOFT_DELETED": "This instance was deleted in the cloud, where it can still be restored. Its disk is kept.",
    "RESCUE": "The cloud's operators are repairing this instance. Its disk is kept.",
    RESIZED: "The cloud's operators are changing the size of this instance, and have to confirm that first. Its disk is kept.",
}
# of those, the ones that are made anew where their disk holds nothing
REPLACEABLE = frozenset({"ERROR", "DELETED", "SOFT_DELETED"})
LOCKED = "This instance is locked in the cloud, and stays as it is until that is undone there. Its disk is kept."
GOING_DOWN = frozenset({"powering-off", "suspending", "pausing", "deleting", "soft-deleting", "rescuing"})
SHUT_DOWN = 4  # ref: https://docs.openstack.org/nova/latest/reference/vm-states.html (power states)


def task_of(server: Server) -> str | None:
    # missing from the bare description of a server whose cell does not answer
    return server.get("OS-EXT-STS:task_state")


def is_ended(server: Server) -> bool:
    """Certain: nothing of its user's runs there, whatever the guest does, and nothing is under way that would change it."""
    return (server["status"] in WAKE or why_held(server) != "") and not task_of(server)


def why_held(server: Server) -> str:
    """Why nobody but the cloud's operators can bring it up; a server that was resized while it was up, is up again."""
    is_up = server["status"] == RESIZED and server.get("OS-EXT-STS:power_state") != SHUT_DOWN
    return "" if is_up else HELD.get(server["status"], "")


def is_moving(server: Server) -> bool:
    """Something is under way at whose end it will be off, or that has to end before it can be started."""
    task = task_of(server) or ""
    is_off = server["status"] in WAKE or why_held(server) != ""
    return task in GOING_DOWN or task.startswith("shelving") or (is_off and task != "")


def instance_of(server: Server) -> str | None:
    return server.get("metadata", {}).get(builders.INSTANCE_KEY)


def belongs_to(server: Server, deployment_id: str, instance_id: str) -> bool:
    return server.get("metadata", {}).get(builders.DEPLOYMENT_KEY) == deployment_id and instance_of(server) == instance_id


def address_of(server: Server) -> str:
    """A fixed address of a server, '' before it has one."""
    return _ipv4_first(addresses_of(server))


def addresses_of(server: Server) -> list[str]:
    """All its fixed ones."""
    addresses = [one for network in server.get("addresses", {}).values() for one in network]
    return [one["addr"] for one in addresses if one.get("OS-EXT-IPS:type", "fixed") == "fixed"]


def address_of_port(port: Mapping[str, Any]) -> str:
    return _ipv4_first(fixed["ip_address"] for fixed in port["fixed_ips"])


def _ipv4_first(addresses: Iterable[str]) -> str:
    """Where a network has both, the agents listen for IPv4; Neutron names them in any order."""
    return min(addresses, key=lambda address: ":" in address, default="")


def fault_of(server: Server) -> str:
    fault = server.get("fault") or {}
    return f"{fault.get('code', '')} {fault.get('message', '')}".strip() or server["status"]


def foremost(servers: Iterable[Server]) -> Server:
    """Which of an instance's servers it uses: a create that came through late finds its port taken, and leaves one in ERROR."""
    return min(servers, key=lambda server: (server["status"] == "ERROR", server.get("created", "")))
