"""What a row must be to become a record: one pydantic model per table, then keys, logins and references across them.

A moment is ISO 8601 (`2026-03-01`, `2026-03-01 08:00`, `2026-03-01T08:00+01:00`), in UTC unless it says otherwise. Examples may
count from the day of the load: `today`, `today-3d 08:00`, `today+2d`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from textwrap import shorten
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
)

from etl.frames import Frames, Rejection, Row, SourceError
from hub.database.tables import FacilityRole, MemberOf

_RELATIVE = re.compile(r"today(?:([+-]\d{1,5})d)?(?: (\d\d:\d\d))?")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def moment(value: Any, today: datetime) -> datetime | None:
    """A moment in UTC; `today` is the midnight that relative ones count from."""
    if value is None:
        return None
    if isinstance(value, datetime):
        # a database that tells local time without saying so: only its adapter knows where it stands
        if value.tzinfo is None:
            raise ValueError(f"{value} has no time zone")
        return value.astimezone(UTC)
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a date")
    try:
        if found := _RELATIVE.fullmatch(value):
            clock = time.fromisoformat(found[2] or "00:00")
            return today + timedelta(days=int(found[1] or 0), hours=clock.hour, minutes=clock.minute)
        parsed = datetime.fromisoformat(value)
        return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"{value!r} is not a date; write 2026-03-01 08:00 or today-3d 08:00") from None


def _moment(value: Any, info: ValidationInfo) -> datetime | None:
    assert info.context is not None
    return moment(value, info.context["today"])


def _printable(value: str) -> str:
    if _CONTROL.search(value):
        raise ValueError("holds a control character")
    return value


Name = Annotated[str, StringConstraints(min_length=1, max_length=250), AfterValidator(_printable)]
Prose = Annotated[str, StringConstraints(min_length=1, max_length=20_000), AfterValidator(_printable)]
Login = Annotated[Name, StringConstraints(pattern=r"^[a-z][a-z0-9._-]*$", max_length=32)]
Moment = Annotated[datetime | None, BeforeValidator(_moment)]
Amount = Annotated[int, Field(ge=1, lt=2**31)]


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", str_strip_whitespace=True, coerce_numbers_to_str=True, use_enum_values=True)


class Affiliation(Record):
    id: Name
    name: Name
    town: Name | None = None
    country: Name | None = None


class User(Record):
    id: Name
    login: Login
    given_name: Annotated[str, StringConstraints(max_length=250), AfterValidator(_printable)] = ""
    family_name: Name
    email: Annotated[Name, StringConstraints(pattern=r"^[^@\s]+@[^@\s]+$")] | None = None
    orcid: Annotated[str, StringConstraints(pattern=r"^\d{4}-\d{4}-\d{4}-\d{3}[\dX]$")] | None = None
    affiliation_id: Name | None = None


class Instrument(Record):
    id: Name
    name: Name
    description: Prose | None = None


class Proposal(Record):
    id: Name
    title: Prose
    summary: Prose | None = None
    # pages make a link of it
    url: Annotated[Prose, StringConstraints(pattern=r"^https?://\S+$")] | None = None


class Experiment(Record):
    id: Name
    proposal_id: Name
    instrument_id: Name
    title: Prose | None = None
    starts_at: Moment = None
    ends_at: Moment = None


class ExperimentMember(Record):
    experiment_id: Name
    user_id: Name
    role: MemberOf = Field(default=MemberOf.MEMBER, validate_default=True)


class InstrumentScientist(Record):
    instrument_id: Name
    user_id: Name


class UserRole(Record):
    user_id: Name
    role: FacilityRole
    expires_at: Moment = None


class Plan(Record):
    id: Name
    name: Name
    description: Prose | None = None
    image: Name
    flavor: Name
    cores: Amount
    memory_mb: Amount
    position: Annotated[int, Field(ge=0, lt=2**31)] = 100
    instruments: list[Name] = []
    roles: list[FacilityRole] = []


# in the order in which they refer to each other
MODELS: dict[str, type[Record]] = {
    "affiliation": Affiliation,
    "user": User,
    "instrument": Instrument,
    "proposal": Proposal,
    "experiment": Experiment,
    "experiment_member": ExperimentMember,
    "instrument_scientist": InstrumentScientist,
    "user_role": UserRole,
    "plan": Plan,
}
KEYS: dict[str, tuple[str, ...]] = {
    "experiment_member": ("experiment_id", "user_id"),
    "instrument_scientist": ("instrument_id", "user_id"),
    "user_role": ("user_id", "role"),
}
REFERENCES: dict[str, dict[str, str]] = {
    "user": {"affiliation_id": "affiliation"},
    "experiment": {"proposal_id": "proposal", "instrument_id": "instrument"},
    "experiment_member": {"experiment_id": "experiment", "user_id": "user"},
    "instrument_scientist": {"instrument_id": "instrument", "user_id": "user"},
    "user_role": {"user_id": "user"},
    "plan": {"instruments": "instrument"},
}

Key = tuple[str, ...]


def key_columns(table: str) -> tuple[str, ...]:
    return KEYS.get(table, ("id",))


@dataclass(frozen=True, slots=True)
class Standing:
    """A record that the database already holds."""

    values: dict[str, Any]
    source: str
    ended: bool


@dataclass(slots=True)
class Checked:
    """One table's rows after validation."""

    accepted: dict[Key, dict[str, Any]] = field(default_factory=dict)
    # named by the source but not usable: what the database holds under these keys stays
    kept: set[Key] = field(default_factory=set)
    # a row whose key cannot be read might be any record's: then none may be taken for removed
    certain: bool = True
    rejections: list[Rejection] = field(default_factory=list)
    rows: dict[Key, Row] = field(default_factory=dict)

    def reject(self, row: Row, column: str, reason: str, key: Key | None = None) -> None:
        self.rejections.append(Rejection(row.place, row.line, column, reason))
        if key is None:
            self.certain = False
        elif key not in self.accepted:
            self.kept.add(key)


def validate(frames: Frames, standing: Mapping[str, Mapping[Key, Standing]], source: str, today: datetime) -> dict[str, Checked]:
    """Sort the rows of each frame into accepted and rejected. standing: what the database holds, by table and key."""
    if unknown := frames.keys() - MODELS.keys():
        raise SourceError(f"the source names a table that Hutch does not have: {', '.join(sorted(unknown))}")
    checked: dict[str, Checked] = {}
    present: dict[str, set[str]] = {}
    for table in MODELS:
        held = standing.get(table, {})
        if table in frames:
            one = checked[table] = Checked()
            for row in frames[table]:
                _check_row(table, row, one, today)
            _refuse(one, _taken_logins(one, held) if table == "user" else ())
            _refuse(one, _dangling(table, one, present))
            _refuse(one, _of_another_source(table, one, held, source))
        present[table] = _present_after(checked.get(table), held, source)
    return checked


def _check_row(table: str, row: Row, checked: Checked, today: datetime) -> None:
    if row.fault:
        return checked.reject(row, "", row.fault)
    try:
        values = MODELS[table].model_validate(row.values, context={"today": today}).model_dump()
    except ValidationError as error:
        for fault in error.errors(include_url=False):
            checked.reject(row, str(fault["loc"][0]), _reason(fault), _written_key(table, row))
        return None
    key = tuple(values[column] for column in key_columns(table))
    if key in checked.rows:
        return checked.reject(row, ", ".join(key_columns(table)), f"the same as in line {checked.rows[key].line}", key)
    checked.rows[key] = row
    if _reversed(values):
        return checked.reject(row, "ends_at", f"ends before it starts ({values['starts_at']:%Y-%m-%d %H:%M})", key)
    checked.accepted[key] = values
    return None


def _written_key(table: str, row: Row) -> Key | None:
    """The key of a row that is not valid, if that much of it can be read."""
    parts = [row.values.get(column) for column in key_columns(table)]
    if not all(isinstance(part, str | int) and str(part).strip() for part in parts):
        return None
    return tuple(str(part).strip() for part in parts)


def _reason(fault: Any) -> str:
    if fault["type"] == "extra_forbidden":
        return "there is no such column"
    if fault["type"] == "missing":
        return "is missing"
    reason = fault["msg"].removeprefix("Value error, ")
    return reason if fault["type"] == "value_error" else f"{reason}, not {shorten(repr(fault['input']), 60)}"


def _reversed(values: dict[str, Any]) -> bool:
    return bool(values.get("starts_at") and values.get("ends_at") and values["ends_at"] < values["starts_at"])


Refusal = tuple[Key, str, str]


def _refuse(checked: Checked, refusals: Iterable[Refusal]) -> None:
    """The same row may be refused for several reasons; all are told."""
    for key, column, reason in list(refusals):
        checked.accepted.pop(key, None)
        checked.reject(checked.rows[key], column, reason, key)


def _taken_logins(checked: Checked, held: Mapping[Key, Standing]) -> Iterator[Refusal]:
    """A login is a JupyterHub account and a home: it stays with its person, and never passes to another."""
    owners = {standing.values["login"]: key for key, standing in held.items()}
    for key, values in checked.accepted.items():
        if key in held and (login := held[key].values["login"]) != values["login"]:
            yield (
                key,
                "login",
                f"the login of user {key[0]!r} is {login!r} and cannot become {values['login']!r}: instances hang on it",
            )
        owner = owners.setdefault(values["login"], key)
        if owner != key:
            yield key, "login", f"{values['login']!r} belongs to user {owner[0]!r}; a login is never given to another person"


def _dangling(table: str, checked: Checked, present: Mapping[str, set[str]]) -> Iterator[Refusal]:
    for key, values in checked.accepted.items():
        for column, target in REFERENCES.get(table, {}).items():
            names = values[column] if isinstance(values[column], list) else [values[column]]
            for name in names:
                if name is not None and name not in present[target]:
                    yield key, column, f"there is no {target} {name!r}"


def _of_another_source(table: str, checked: Checked, held: Mapping[Key, Standing], source: str) -> Iterator[Refusal]:
    for key in checked.accepted:
        if key in held and held[key].source != source and not held[key].ended:
            whose = f"the source {held[key].source!r}" if held[key].source else "no source, it was entered by hand"
            yield key, ", ".join(key_columns(table)), f"this record comes from {whose}"


def _present_after(checked: Checked | None, held: Mapping[Key, Standing], source: str) -> set[str]:
    """The ids that other rows may refer to once this run is loaded."""
    stays = {
        key[0]
        for key, standing in held.items()
        if not standing.ended and (checked is None or not checked.certain or standing.source != source or key in checked.kept)
    }
    return stays | ({key[0] for key in checked.accepted} if checked else set())
