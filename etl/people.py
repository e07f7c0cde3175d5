"""Who is who. A source's people are the facility's own users, or they are found among them.

Found by what cannot be somebody else's: the identity of a sign-on, an identity that staff confirmed, the login, the ORCID iD, in this
order. The same e-mail address only suggests somebody, for staff to confirm with `hutch etl link`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import polars as pl
from sqlalchemy import Connection

from etl import store
from etl.frames import Extract

IDENTITY = {"issuer": pl.String(), "subject": pl.String(), "user_id": pl.String()}
PEOPLE = ["id", "login", "orcid", "email"]


def issuer_of(source: str) -> str:
    """Under which a source's own ids of people are kept."""
    return f"source:{source}"


def identities(connection: Connection) -> pl.DataFrame:
    return store.read(connection, "SELECT issuer, subject, user_id FROM identity", IDENTITY)


@dataclass(frozen=True, slots=True)
class Found:
    """linked: identities to add, with linked_by; suggested: what staff may confirm, with the reason."""

    extract: Extract
    known: pl.DataFrame
    linked: pl.DataFrame
    suggested: pl.DataFrame


def find(connection: Connection, source: object, extract: Extract) -> Found:
    empty = pl.DataFrame(schema={**IDENTITY, "linked_by": pl.String})
    return Found(extract, identities(connection), empty, pl.DataFrame(schema={**IDENTITY, "reason": pl.String}))


def keep(connection: Connection, found: Found, at: datetime) -> None:
    pass
