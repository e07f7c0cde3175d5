"""Where the cloud, the records and the hub differ, and the most that is done about it. Pure: what was read goes in.

What was not read is unknown, and nothing follows from it. Acted upon is only what was seen and carries our ids, never an absence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from spawner.builders import DEPLOYMENT_KEY, deployment_tag, marked
from spawner.servers import Server, foremost, instance_of, is_ended, task_of

# what was decided a moment ago may not show in the cloud yet
SETTLED = timedelta(minutes=2)


class Rule(StrEnum):
    """The most that is ever done about a difference; how much of it, the site says (`c.Hutch.reconcile`)."""

    REPORT = "report"
    ADOPT = "adopt"
    QUARANTINE = "quarantine"
    DELETE = "delete"


class State(StrEnum):
    """Every difference there is: its name, its rule, and what it means."""

    rule: Rule
    sentence: str

    def __new__(cls, name: str, rule: Rule, sentence: str) -> State:
        state = str.__new__(cls, name)
        state._value_, state.rule, state.sentence = name, rule, sentence
        return state

    ORPHAN = "orphan", Rule.DELETE, "The server carries this deployment's ids, and no instance on record has its id."
    PURGED = "purged", Rule.DELETE, "The server's instance was deleted for good, and the server is still there."
    TWIN = "twin", Rule.REPORT, "The instance has another server, which is the one that its launches use."
    FAILED = "failed", Rule.REPORT, "The cloud reports an error with the server."
    RUNNING = "running-though-stopped", Rule.QUARANTINE, "The server runs, and the instance was stopped or deleted."
    NOT_SERVED = "not-served", Rule.ADOPT, "The server runs as it is meant to, and the hub does not serve it: it is asked to."
    DISAGREES = "marks-disagree", Rule.REPORT, "The server's tag, metadata and port do not all say the same of whose it is."
    LOST = "lost", Rule.REPORT, "The cloud is certain that it no longer has the server of the instance."
    STRANGER = "not-on-record", Rule.REPORT, "JupyterHub serves it, and no instance on record has its owner and name."
    PORT_LEFT = "port-left", Rule.DELETE, "The network port is held by no server, and its instance is not on record or was purged."
    VOLUME_LEFT = "volume-left", Rule.REPORT, "The volume carries this deployment's mark, and no instance on record."
    ADDRESS_LEFT = "floating-ip-left", Rule.REPORT, "The floating IP carries this deployment's mark, and no instance on record."


class Meant(StrEnum):
    """What an instance is to do by its current intent; unclear while that is carried out, or when it failed."""

    RUN = "run"
    OFF = "off"
    UNCLEAR = "unclear"


@dataclass(frozen=True, slots=True)
class Recorded:
    """An instance on record. since: when what it is meant to do was concluded, or when it was purged."""

    instance_id: str
    login: str
    server_name: str
    place: str
    meant: Meant
    since: datetime
    came_up: bool
    is_deleted: bool
    is_purged: bool


@dataclass(frozen=True, slots=True)
class View:
    """What was read for some places, in this order: hub, cloud, records. So whatever the cloud shows was on record before.

    gone: servers of which Nova itself, asked for each by id, said that there are none. None: could not be read.
    """

    deployment_id: str
    at: datetime
    servers: Sequence[Server] = ()
    ports: Sequence[dict[str, Any]] = ()
    volumes: Sequence[dict[str, Any]] | None = None
    addresses: Sequence[dict[str, Any]] | None = None
    records: Mapping[str, Recorded] = field(default_factory=dict)
    served: Mapping[tuple[str, str], bool] | None = None
    places: frozenset[str] = frozenset({""})
    gone: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Finding:
    """kind: server, port, volume, floating-ip, instance (on record) or hub (what it serves). is_off: nothing runs there."""

    kind: str
    resource_id: str
    state: State
    instance_id: str | None = None
    detail: str = ""
    is_off: bool = False


@dataclass(frozen=True, slots=True)
class Policy:
    """The site's: the most that is done of what the rules allow, and after how long."""

    most: Rule
    quarantine_after: timedelta
    delete_after: timedelta


def step(finding: Finding, since: datetime, quarantined_at: datetime | None, policy: Policy, at: datetime) -> Rule | None:
    """What is due now: QUARANTINE, DELETE or nothing. What runs (again) after its quarantine is stopped again, not deleted."""
    rules = (Rule.QUARANTINE, Rule.DELETE)
    if policy.most not in rules or finding.state.rule not in rules:
        return None
    if quarantined_at is None or not finding.is_off:
        return Rule.QUARANTINE if at - (quarantined_at or since) >= policy.quarantine_after else None
    if policy.most is finding.state.rule is Rule.DELETE and at - quarantined_at >= policy.delete_after:
        return Rule.DELETE
    return None


def compare(view: View) -> tuple[list[Finding], set[str]]:
    """What differs; and the ids of what could not be decided."""
    undecided = set(_undecided(view))
    found = [*_servers(view), *_instances(view), *_ports(view), *_marked(view), *_strangers(view)]
    return [finding for finding in found if finding.resource_id not in undecided], undecided


def goes_on(kind: str, resource_id: str, state: str, view: View, undecided: set[str]) -> bool:
    """An earlier finding that was not found again: whether that is only because it could not be read."""
    unread = {"volume": view.volumes is None, "floating-ip": view.addresses is None}.get(kind, False)
    return unread or resource_id in undecided or (view.served is None and state in (State.NOT_SERVED, State.STRANGER))


def unlisted(servers: Sequence[Server], ports: Sequence[dict[str, Any]]) -> list[str]:
    """Servers that hold our ports and are not in the listing: Nova leaves out those whose cell does not answer."""
    known = {server["id"] for server in servers}
    return sorted({port["device_id"] for port in ports if port["device_id"]} - known)


def _undecided(view: View) -> Iterator[str]:
    unknown = set(unlisted(view.servers, view.ports)) - view.gone
    for port in view.ports:
        if port["device_id"] in unknown:
            yield port["id"]
            yield port["device_id"]
            yield marked(port["description"], view.deployment_id) or ""
    for server in view.servers:
        if "metadata" not in server:
            yield server["id"]


def _servers(view: View) -> Iterator[Finding]:
    of_instance: dict[str | None, list[Server]] = {}
    of_ports: dict[str, set[str]] = {}
    for port in view.ports:
        if instance := marked(port["description"], view.deployment_id):
            of_ports.setdefault(port["device_id"], set()).add(instance)
    for server in view.servers:
        of_instance.setdefault(instance_of(server) if _is_ours(server, view) else None, []).append(server)
    for instance_id, servers in of_instance.items():
        used = foremost(servers)
        for server in servers:
            if state := _state_of(server, view, server is used, of_ports.get(server["id"], set())):
                detail = f"{server.get('name', '')} {server['status']}"
                yield Finding("server", server["id"], state, instance_id, detail, is_ended(server))


def _is_ours(server: Server, view: View) -> bool:
    marks = server.get("metadata", {})
    return marks.get(DEPLOYMENT_KEY) == view.deployment_id and deployment_tag(view.deployment_id) in server.get("tags", ())


def _state_of(server: Server, view: View, is_used: bool, of_ports: set[str]) -> State | None:
    if not _is_ours(server, view) or not instance_of(server) or of_ports - {instance_of(server)}:
        return State.DISAGREES
    recorded = view.records.get(instance_of(server) or "")
    if _is_nobodys(instance_of(server), view):
        return State.PURGED if recorded else State.ORPHAN
    if recorded is None or recorded.is_purged:
        return None
    if not is_used or recorded.place not in view.places:
        return State.TWIN
    if server["status"] == "ERROR":
        return State.FAILED
    if task_of(server) or not _is_settled(recorded, view):
        return None
    if recorded.meant is Meant.OFF and not is_ended(server):
        return State.RUNNING
    served = view.served is None or (recorded.login, recorded.server_name) in view.served
    return State.NOT_SERVED if recorded.meant is Meant.RUN and server["status"] == "ACTIVE" and not served else None


def _is_settled(recorded: Recorded, view: View) -> bool:
    return recorded.since + SETTLED <= view.at


def _instances(view: View) -> Iterator[Finding]:
    """Those that came up once, and whose server is to be there still, running or not."""
    there = {instance_of(server) for server in view.servers}
    # whoever changed the marks of its server, its port tells of it
    held = [port for port in view.ports if port["device_id"] and port["device_id"] not in view.gone]
    there |= {marked(port["description"], view.deployment_id) for port in held}
    for one in view.records.values():
        expected = one.came_up and not (one.is_deleted or one.is_purged)
        if expected and one.place in view.places and one.instance_id not in there and _is_settled(one, view):
            yield Finding("instance", one.instance_id, State.LOST, one.instance_id)


def _ports(view: View) -> Iterator[Finding]:
    for port in view.ports:
        instance_id = marked(port["description"], view.deployment_id)
        if instance_id and _is_nobodys(instance_id, view) and (not port["device_id"] or port["device_id"] in view.gone):
            yield Finding("port", port["id"], State.PORT_LEFT, instance_id, port["name"], is_off=True)


def _marked(view: View) -> Iterator[Finding]:
    """Hutch makes no volume and no floating IP: what carries its marks was made by others for an instance, and is for them."""
    for volume in view.volumes or ():
        instance_id = instance_of(volume)
        if volume["metadata"].get(DEPLOYMENT_KEY) == view.deployment_id and _is_nobodys(instance_id, view):
            yield Finding("volume", volume["id"], State.VOLUME_LEFT, instance_id, volume.get("name") or "")
    for address in view.addresses or ():
        instance_id = marked(address.get("description"), view.deployment_id)
        is_ours = instance_id is not None or deployment_tag(view.deployment_id) in address.get("tags", ())
        if is_ours and _is_nobodys(instance_id, view):
            yield Finding("floating-ip", address["id"], State.ADDRESS_LEFT, instance_id, address["floating_ip_address"])


def _is_nobodys(instance_id: str | None, view: View) -> bool:
    recorded = view.records.get(instance_id or "")
    # what was purged a moment ago may have been read of the cloud before
    return recorded is None or (recorded.is_purged and _is_settled(recorded, view))


def _strangers(view: View) -> Iterator[Finding]:
    """One finding for each login."""
    ended = {one.instance_id for one in view.records.values() if one.is_deleted and _is_settled(one, view)}
    live = {(one.login, one.server_name) for one in view.records.values() if one.instance_id not in ended}
    found: dict[str, list[str]] = {}
    for (login, name), ready in (view.served or {}).items() if "" in view.places else ():
        if ready and (login, name) not in live:
            found.setdefault(login, []).append(name)
    return (Finding("hub", login, State.STRANGER, detail=", ".join(sorted(names))) for login, names in found.items())
