"""What the rules are asked about: people, experiments, plans and instances as the records have them, and the site's terms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

UNLIMITED = -1
ADMIN = "admin"


def ref(table: str, *key: str) -> str:
    """The name of a record, 'table:key'; the parts of a longer key are divided by '/', and quoted as in addresses."""
    plain = "/".join(key)
    if "%" in plain or plain.count("/") >= len(key):
        plain = "/".join(part.replace("%", "%25").replace("/", "%2F") for part in key)
    return f"{table}:{plain}"


@dataclass(frozen=True, slots=True)
class Decision:
    """rule: the name of the rule that decided. records: what it rests on, and in a refusal what was missed, as `ref` names them."""

    allowed: bool
    rule: str
    reason: str = ""
    records: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return self.allowed


@dataclass(frozen=True, slots=True)
class Quota:
    """How many instances, and how many cores together; None leaves it to others, -1 is without limit."""

    instances: int | None = None
    cores: int | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """The moment at which the rules are asked, and what the site has set.

    quotas: by role or group, "" for everybody. lifetime: None for instances without end.
    """

    at: datetime
    quotas: Mapping[str, Quota] = field(default_factory=lambda: {"": Quota(2)})
    lifetime: timedelta | None = None
    support_window: timedelta = timedelta(days=7)
    open_data: bool = False


@dataclass(frozen=True, slots=True)
class Person:
    """A user of the facility as the rules see them, with nothing that has expired."""

    id: str
    login: str
    name: str
    roles: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    scientist_of: frozenset[str] = frozenset()
    quota: int = 2
    core_quota: int = UNLIMITED

    @property
    def is_admin(self) -> bool:
        return ADMIN in self.roles

    def holds(self, roles: Iterable[str]) -> tuple[str, ...]:
        """The records by which they have one of the roles."""
        return tuple(ref("user_role", self.id, role) for role in sorted(self.roles.intersection(roles)))


@dataclass(frozen=True, slots=True)
class Visit:
    """An experiment as the rules see it; roles is {user id: role in the experiment}, of the person whom they are asked about.

    gone: its source no longer names it. public_at: the end of the embargo, None for never.
    """

    id: str
    proposal_id: str
    instrument_id: str
    title: str
    instrument: str = ""
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    roles: Mapping[str, str] = field(default_factory=dict)
    public_at: datetime | None = None
    gone: bool = False

    def when(self, now: datetime) -> str:
        """'running', 'past' or 'coming'; a missing date is an open end."""
        if self.ends_at and self.ends_at <= now:
            return "past"
        if self.starts_at and self.starts_at > now:
            return "coming"
        return "running"

    def is_within(self, window: timedelta, now: datetime) -> bool:
        """Whether it runs at any time from `window` before now until `window` after."""
        return (self.starts_at is None or self.starts_at <= now + window) and (self.ends_at is None or self.ends_at >= now - window)


@dataclass(frozen=True, slots=True)
class Limit:
    """One way to be allowed a plan: it holds when all that it names holds; None is not named.

    unknown: what it names that Hutch does not know, so that it holds for nobody.
    """

    instruments: frozenset[str] | None = None
    roles: frozenset[str] | None = None
    groups: frozenset[str] | None = None
    since: datetime | None = None
    until: datetime | None = None
    unknown: frozenset[str] = frozenset()

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> Limit:
        """From an entry of `Plan.limits`."""
        named = {name: value for name, value in entry.items() if value is not None}
        sets = {name: _names(named.pop(name)) for name in ("instruments", "roles", "groups") if isinstance(named.get(name), list)}
        try:
            times = {"since": _moment(named.get("from")), "until": _moment(named.get("until"))}
        except (TypeError, ValueError):
            times = {}
        return cls(**sets, **times, unknown=frozenset(named) - ({"from", "until"} if times else frozenset()))  # type: ignore[arg-type]


def _names(values: Iterable[object]) -> frozenset[str]:
    return frozenset(map(str, values))


def _moment(text: str | None) -> datetime | None:
    moment = datetime.fromisoformat(text) if text is not None else None
    return moment if moment is None or moment.tzinfo else moment.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True, eq=False)
class PlanOffer:
    """A plan as the rules see it: one object for as long as its row stays the same, so that what is said of it can be kept.

    lifetimes: days by role or group, "" for everybody, 0 for without end. instruments: {id: name}, of those that its limits name
    at least. places: where it may be launched, the first that has room; none: in that of the spawner's own settings.
    """

    id: str
    name: str
    description: str = ""
    image: str = ""
    flavor: str = ""
    cores: int = 0
    memory_mb: int = 0
    limits: tuple[Limit, ...] = ()
    lifetimes: Mapping[str, float] = field(default_factory=dict)
    instruments: Mapping[str, str] = field(default_factory=dict)
    places: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """What a person's instances take, stopped ones too, as they keep their room in the cloud."""

    instances: int = 0
    cores: int = 0
    last_plan: str = ""


class WhenOwnerLeaves(StrEnum):
    """What becomes of the members who are at the desktop when its owner leaves it."""

    DISCONNECT = "disconnect"
    LOCK = "lock"
    STAY = "stay"


@dataclass(frozen=True, slots=True)
class Consent:
    """What the owner grants somebody of support. right: "view" or "control"; request: the row that asked for it."""

    right: str
    until: datetime
    request: int


@dataclass(frozen=True, slots=True)
class Place:
    """An instance as the rules see it: whose it is, who takes part, for which experiments, and what its owner lets happen.

    members: {user id: member role}. consented: {user id: what the owner grants}. Who is at the desktop is known only where its
    connections are: owner_here; inside, who was let in and has not left; sent_away, by the owner, for a while.
    """

    id: str
    owner_id: str
    owner_is_staff: bool = False
    members: Mapping[str, str] = field(default_factory=dict)
    visits: tuple[Visit, ...] = ()
    when_owner_leaves: str = WhenOwnerLeaves.DISCONNECT
    members_enter_freely: bool = False
    consented: Mapping[str, Consent] = field(default_factory=dict)
    owner_here: bool = False
    inside: frozenset[str] = frozenset()
    sent_away: frozenset[str] = frozenset()
