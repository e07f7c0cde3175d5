"""What a source may say: the fields of each table, of what kind they are, and which must be there.

Keys and references are those of the tables themselves (`hub.database.tables`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any

import polars as pl
from sqlalchemy import JSON, Table

from hub.database.tables import Base, FacilityRole, MemberOf

TIME = pl.Datetime("us", "UTC")
NUMBERS_BELOW = 2**31


@dataclass(frozen=True, slots=True)
class Text:
    """shape: what it must match, in the words of Rust's regex crate; called: what that is, for people."""

    longest: int = 250
    shape: str = ""
    called: str = ""
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Number:
    least: int


@dataclass(frozen=True, slots=True)
class Moment:
    """Of a local time that comes twice in a night, a beginning is the first and an end the second."""

    ambiguous: str = "earliest"


@dataclass(frozen=True, slots=True)
class Parts:
    """Lists and objects as JSON, checked by the pydantic model of that name in `etl.plans`."""

    model: str


Kind = Text | Number | Moment | Parts


@dataclass(frozen=True, slots=True)
class Field:
    """stored: whether it is a column of the table; if not, it is for finding the person."""

    kind: Kind
    required: bool = False
    default: Any = None
    stored: bool = True

    @property
    def dtype(self) -> pl.DataType:
        return TIME if isinstance(self.kind, Moment) else pl.Int64() if isinstance(self.kind, Number) else pl.String()


@dataclass(frozen=True)
class Shape:
    """One table as sources see it."""

    name: str
    fields: dict[str, Field]

    @cached_property
    def table(self) -> Table:
        return Base.metadata.tables[self.name]

    @cached_property
    def key(self) -> list[str]:
        return [column.name for column in self.table.primary_key]

    @cached_property
    def references(self) -> dict[str, str]:
        """{field: the table whose id it is}."""
        keys = {key.parent.name: key.column.table.name for key in self.table.foreign_keys}
        return {column: target for column, target in keys.items() if column in self.fields}

    @property
    def targets(self) -> set[str]:
        """The tables that it refers to, in whatever way."""
        return {*self.references.values(), *(["instrument"] if "limits" in self.fields else [])}

    @cached_property
    def stored(self) -> dict[str, pl.DataType]:
        return {name: field.dtype for name, field in self.fields.items() if field.stored}

    @cached_property
    def json(self) -> set[str]:
        return {name for name in self.stored if isinstance(self.table.c[name].type, JSON)}


def _one_of(choices: type[StrEnum]) -> Text:
    return Text(choices=tuple(choices))


NAME, PROSE, TIMES, ENDS = Text(), Text(20_000), Moment(), Moment("latest")
LOGIN = Text(32, "^[a-z][a-z0-9._-]*$", "a login (a to z, digits, '.', '_' and '-', a letter first)")
EMAIL = Text(250, r"^[^@\s]+@[^@\s]+$", "an e-mail address")
ORCID = Text(19, "^[0-9]{4}-[0-9]{4}-[0-9]{4}-[0-9]{3}[0-9X]$", "an ORCID iD such as 0000-0002-1825-0097")
# pages make a link of it
LINK = Text(20_000, r"^https?://\S+$", "a http(s) address")

ID = Field(NAME, required=True)
OPTIONAL, OPTIONAL_PROSE, OPTIONAL_LINK = Field(NAME), Field(PROSE), Field(LINK)

# in the order in which they refer to each other
SHAPES: dict[str, Shape] = {
    name: Shape(name, fields)
    for name, fields in {
        "affiliation": {"id": ID, "name": ID, "town": OPTIONAL, "country": OPTIONAL},
        "user": {
            "id": ID,
            # who has none cannot sign on, and is left out
            "login": Field(LOGIN),
            "given_name": Field(NAME, default=""),
            "family_name": ID,
            "email": Field(EMAIL),
            "orcid": Field(ORCID),
            "affiliation_id": OPTIONAL,
            "instances_allotted": Field(Number(-1)),
            "issuer": Field(NAME, stored=False),
            "subject": Field(NAME, stored=False),
        },
        "instrument": {"id": ID, "name": ID, "description": OPTIONAL_PROSE},
        "proposal": {
            "id": ID,
            "title": Field(PROSE, required=True),
            "summary": OPTIONAL_PROSE,
            "url": OPTIONAL_LINK,
            "doi": OPTIONAL,
            "public_at": Field(TIMES),
        },
        "experiment": {
            "id": ID,
            "proposal_id": ID,
            "instrument_id": ID,
            "title": OPTIONAL_PROSE,
            "url": OPTIONAL_LINK,
            "doi": OPTIONAL,
            "starts_at": Field(TIMES),
            "ends_at": Field(ENDS),
        },
        "experiment_member": {"experiment_id": ID, "user_id": ID, "role": Field(_one_of(MemberOf), default=MemberOf.MEMBER.value)},
        "instrument_scientist": {"instrument_id": ID, "user_id": ID},
        "user_role": {"user_id": ID, "role": Field(_one_of(FacilityRole), required=True), "expires_at": Field(ENDS)},
        "user_group": {"user_id": ID, "group": ID, "expires_at": Field(ENDS)},
        "plan": {
            "id": ID,
            "name": ID,
            "description": OPTIONAL_PROSE,
            "image": ID,
            "flavor": ID,
            "cores": Field(Number(1), required=True),
            "memory_mb": Field(Number(1), required=True),
            "position": Field(Number(0), default=100),
            "limits": Field(Parts("Limits"), default="[]"),
            "lifetimes": Field(Parts("Lifetimes"), default="{}"),
            "places": Field(Parts("Places"), default="[]"),
        },
    }.items()
}

# without which a facility is none
MANDATORY = ("user", "instrument", "proposal", "experiment", "experiment_member")
# the stronger first: who comes with several parts in one experiment has the first of these
STRENGTH = [MemberOf.PRINCIPAL_INVESTIGATOR.value, MemberOf.LOCAL_CONTACT.value, MemberOf.MEMBER.value]
