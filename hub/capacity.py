"""What is free in the cloud, as the steward last read it, and whether a flavor fits in it. The rules are pure.

Quotas are always readable. Of the hosts Placement tells only some credentials; where it does not, a launch may still find no host.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from .database.tables import CloudRoom, now

if TYPE_CHECKING:
    from spawner.cloud import Cloud

# the same as spawner.cloud_errors.Trouble, which brings all of openstacksdk along
QUOTA, CAPACITY = "quota", "capacity"

# what was read before that says nothing any more
STALE = timedelta(minutes=1)
WORDS = {"instances": "instances", "cores": "cores", "ram": "MB of memory", "port": "network ports"}
# Placement's names
CLASSES = {"VCPU": "cores", "MEMORY_MB": "ram", "DISK_GB": "disk"}


@dataclass(frozen=True, slots=True)
class Room:
    """One place of the cloud at a moment.

    limits: {"cores": (limit, used)}; a negative limit is none. flavors: {name or id: {"cores": 2, "ram": 4096, "disk": 20}}, and
    "special" in those that ask for more than that. hosts: what is free on each; None where it may not be read.
    """

    at: datetime
    limits: Mapping[str, tuple[int, int]]
    flavors: Mapping[str, Mapping[str, int]]
    hosts: tuple[Mapping[str, int], ...] | None = None

    def need(self, flavor: str) -> dict[str, int]:
        return {"instances": 1, "port": 1, **self.flavors.get(flavor, {})}


@dataclass(frozen=True, slots=True)
class Verdict:
    """trouble: QUOTA or CAPACITY, empty where nothing is known to be in the way. sure: all is known. ever: it could fit at all."""

    trouble: str = ""
    sentence: str = ""
    sure: bool = False
    ever: bool = True


def verdict(room: Room | None, flavor: str) -> Verdict:
    if room is None:
        return Verdict()
    need = room.need(flavor)
    full = {name: at for name, at in room.limits.items() if 0 <= at[0] < at[1] + need.get(name, 0)}
    if full:
        never = [name for name, (limit, _) in full.items() if 0 < limit < need[name]]
        name = (never or list(full))[0]
        limit, used = full[name]
        wants = "" if name in ("instances", "port") else f", and this plan needs {need[name]}"
        words = f"The facility's share of the cloud is {'too small' if never else 'used up'}"
        return Verdict(QUOTA, f"{words}: {used} of {limit} {WORDS[name]} are taken{wants}.", sure=True, ever=not never)
    known = room.hosts is not None and flavor in room.flavors and "special" not in need
    if known and _host_for(room, need) is None:
        words = f"{need['cores']} cores and {need['ram'] / 1024:.3g} GB of memory"
        return Verdict(CAPACITY, f"No machine of the cloud has {words} free just now.", sure=True)
    return Verdict(sure=known)


def with_one_more(room: Room, flavor: str) -> Room:
    """What is left when one of this flavor was launched. A host that has no room for it keeps what it has."""
    need = room.need(flavor)
    limits = {name: (limit, used + need.get(name, 0)) for name, (limit, used) in room.limits.items()}
    hosts = list(room.hosts or ())
    if (host := _host_for(room, need)) is not None:
        hosts[host] = {name: free - need.get(name, 0) for name, free in hosts[host].items()}
    return replace(room, limits=limits, hosts=None if room.hosts is None else tuple(hosts))


def _host_for(room: Room, need: Mapping[str, int]) -> int | None:
    """The first host that has room. One without a disk of its own has it from elsewhere."""
    fitting = (place for place, free in enumerate(room.hosts or ()) if all(free[name] >= need.get(name, 0) for name in free))
    return next(fitting, None)


# --- reading


async def read(cloud: Cloud) -> dict[str, Any]:
    """As `store` keeps it: four calls at most, however much there is in the cloud. Raises CloudError."""
    limits, flavors, hosts = await asyncio.gather(cloud.limits(), cloud.flavors(), cloud.free_hosts())
    return {"limits": limits, "flavors": {key: _flavor(one) for one in flavors for key in (one["id"], one["name"])}, "hosts": hosts}


def _flavor(flavor: Mapping[str, Any]) -> dict[str, int]:
    special = any(key.startswith(("resources", "trait", "pci_passthrough")) for key in flavor.get("extra_specs", {}))
    return {"cores": flavor["vcpus"], "ram": flavor["ram"], "disk": flavor["disk"]} | ({"special": 1} if special else {})


def store(session: Session, place: str, reading: dict[str, Any]) -> None:
    session.merge(CloudRoom(place=place, at=now(), reading=reading))


def down(session: Session) -> dict[str, datetime]:
    """The places whose cloud has stopped answering the steward, as it found lately, and since when."""
    since = CloudRoom.reading["down_since"].as_string()
    query = select(CloudRoom.place, since).where(CloudRoom.at > now() - STALE, since.is_not(None))
    return {place: datetime.fromisoformat(text) for place, text in session.execute(query)}


def rooms(session: Session) -> dict[str, Room]:
    """Of each place that was read lately."""
    query = select(CloudRoom).where(CloudRoom.at > now() - STALE)
    return {row.place: _room(row.at, **row.reading) for row in session.scalars(query) if "down_since" not in row.reading}


def _room(at: datetime, limits: dict[str, list[int]], flavors: dict[str, Any], hosts: list[dict[str, int]] | None) -> Room:
    free = None if hosts is None else tuple({CLASSES[name]: count for name, count in host.items()} for host in hosts)
    return Room(at, {name: (limit, used) for name, (limit, used) in limits.items()}, flavors, free)
