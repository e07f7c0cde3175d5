"""Who is who. The people of a source are the facility's own users, or they are found among these.

Found by what cannot be somebody else's: the account of a sign-on, a link that staff confirmed, the login, the ORCID iD, in this
order. The same e-mail address only suggests somebody, for staff to confirm with `hutch etl link`.
"""

from __future__ import annotations

import getpass
from dataclasses import dataclass, field, replace
from datetime import datetime

import polars as pl
from sqlalchemy import Connection, Engine, select

from etl import cells, store
from etl.frames import FAULT, Extract, Frames, Scope
from etl.schema import SHAPES, TIME
from etl.source import Source
from etl.validate import UNKNOWN
from hub.database.engine import take_turn
from hub.database.tables import IdentitySuggestion, User
from hub.errors import HutchError
from hub.identities import link

ACCOUNT = ["issuer", "subject"]
IDENTITY = dict.fromkeys([*ACCOUNT, "user_id"], pl.String())
NOBODY = pl.DataFrame(schema={**IDENTITY, "linked_by": pl.String})
NO_SUGGESTION = pl.DataFrame(schema={**IDENTITY, "reason": pl.String})
# of a source's people, and of users
TRAITS = ["id", "login", "orcid", "email"]
TRACE = ["id", "user_id", "how"]


def issuer_of(source: str) -> str:
    """Under which the ids that a source gives to people are kept as identities."""
    return f"source:{source}"


@dataclass(frozen=True, slots=True)
class Found:
    """extract: its users are the facility's. known: identities as they are; linked, suggested: those to add."""

    extract: Extract
    known: pl.DataFrame
    linked: pl.DataFrame = field(default_factory=lambda: NOBODY)
    suggested: pl.DataFrame = field(default_factory=lambda: NO_SUGGESTION)


def find(connection: Connection, source: Source, extract: Extract) -> Found:
    known = store.read(connection, "SELECT issuer, subject, user_id FROM identity", IDENTITY)()
    if source.users == "own":
        return Found(extract, known)
    issuer = pl.lit(issuer_of(source.name))
    ours = known.filter(pl.col("issuer") == issuer)
    users = store.held(connection, SHAPES["user"], TRAITS)()
    sure, likely = match(_people(extract.frames.get("user")), users, known, ours)
    linked = sure.select(issuer=issuer, subject="id", user_id="user_id", linked_by="how").join(ours, on=ACCOUNT, how="anti")
    suggested = likely.select(issuer=issuer, subject="id", user_id="user_id", reason=pl.format("has the same {}", "how"))
    return Found(_translated(extract, sure, likely, source.name), known, linked, suggested)


def _people(frame: pl.DataFrame | None) -> pl.DataFrame:
    """One row for each id, with null for what is not said."""
    schema = dict.fromkeys([*TRAITS, *ACCOUNT], pl.String)
    if frame is None:
        return pl.DataFrame(schema=schema)
    good = cells.stripped(frame.filter(pl.col(FAULT).is_null()) if FAULT in frame.columns else frame)
    people = good.select(
        pl.col(name).cast(pl.String) if name in good.columns else pl.lit(None, pl.String).alias(name) for name in schema
    )
    return people.filter(pl.col("id").is_not_null()).unique("id", keep="first", maintain_order=True)


def match(people: pl.DataFrame, users: pl.DataFrame, known: pl.DataFrame, ours: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Who is which user for sure, and who may be: id, user_id and how. ours: what is known of people of this source, by their ids.

    A login and an ORCID iD that lead to two different users lead nowhere.
    """
    users = users.rename({"id": "user_id"})

    def traced(how: str, on: str | list[str], among: pl.DataFrame) -> pl.DataFrame:
        return people.join(among, on=on).select("id", "user_id", how=pl.lit(how))

    certain = pl.concat(
        [traced("account", ACCOUNT, known), ours.select("user_id", id="subject", how=pl.lit("source")).select(TRACE)]
    )
    guessed = pl.concat([traced("login", "login", users), traced("orcid", "orcid", users)])
    agreed = guessed.filter(pl.col("user_id").n_unique().over("id") == 1)
    sure = pl.concat([certain, agreed]).unique("id", keep="first", maintain_order=True)
    lower = pl.col("email").str.to_lowercase()
    people, users = people.with_columns(lower), users.with_columns(lower)
    likely = pl.concat([guessed, traced("e-mail address", "email", users)]).join(sure, on="id", how="anti")
    return sure, likely.unique(["id", "user_id"], keep="first", maintain_order=True)


def _translated(extract: Extract, sure: pl.DataFrame, likely: pl.DataFrame, source: str) -> Extract:
    """The facility's ids in place of the source's; rows of people who are not known say so."""
    hints = likely.group_by("id").agg(pl.col("user_id").sort().str.join(", ").alias("_likely"))
    hint = pl.format("; perhaps user {}: confirm with `hutch etl link {} {} USER`", "_likely", pl.lit(source), "id")
    reason = pl.format("person '{}' of this source is not known as a user{}", "id", hint.fill_null(""))
    ids = sure.select("id", _user="user_id").join(hints, on="id", how="full", coalesce=True)
    frames: Frames = {name: frame for name, frame in extract.frames.items() if name != "user"}
    scopes = dict(extract.scopes)
    for name, frame in frames.items():
        if "user_id" in SHAPES[name].fields and "user_id" in frame.columns:
            named = cells.stripped(frame).with_columns(pl.col("user_id").cast(pl.String).alias("id"))
            named = named.join(ids, on="id", how="left", maintain_order="left")
            unknown = pl.when(pl.col("_user").is_null() & pl.col("id").is_not_null()).then(reason)
            named = named.with_columns(unknown.alias(UNKNOWN), pl.col("_user").alias("user_id"))
            frames[name] = named.drop("id", "_user", "_likely")
        scope = scopes.get(name)
        if scope and scope.column == "user_id":
            scopes[name] = Scope("user_id", frozenset(sure.filter(pl.col("id").is_in(list(scope.values)))["user_id"]))
    return Extract(frames, scopes)


def signed(found: Found, users: pl.DataFrame) -> Found:
    """With the accounts at a sign-on that a source tells of its own users."""
    told = users.filter(pl.col("subject").is_not_null()).select(*ACCOUNT, user_id="id", linked_by=pl.lit("source"))
    return replace(found, linked=told.join(found.known, on=ACCOUNT, how="anti"))


def keep(connection: Connection, found: Found, at: datetime) -> None:
    """Note who was found, and who may be."""
    store.insert(connection, "identity", found.linked.with_columns(linked_at=pl.lit(at, TIME)))
    before = store.read(connection, "SELECT issuer, subject, user_id FROM identity_suggestion", IDENTITY)()
    fresh = found.suggested.join(before, on=[*IDENTITY], how="anti")
    store.insert(connection, "identity_suggestion", fresh.with_columns(since=pl.lit(at, TIME)))
    # confirmed meanwhile, or found by something better
    connection.exec_driver_sql(
        "DELETE FROM identity_suggestion WHERE EXISTS (SELECT 1 FROM identity AS i"
        " WHERE i.issuer = identity_suggestion.issuer AND i.subject = identity_suggestion.subject)"
    )


# --- what staff confirm


class LinkError(HutchError):
    """There is no such person or user; nothing was linked."""


def suggested(engine: Engine, source: str) -> list[tuple[str, ...]]:
    """Person, user, login, name and reason."""
    row = IdentitySuggestion
    query = select(row.subject, row.user_id, User.login, User.given_name + " " + User.family_name, row.reason).join(User)
    with engine.connect() as connection:
        return [tuple(one) for one in connection.execute(query.where(row.issuer == issuer_of(source)).order_by(row.subject))]


def confirm(engine: Engine, source: str, person: str, user: str) -> str:
    """Link a person of a source to a user, whatever they were linked to before. Raises LinkError."""
    with engine.begin() as connection:
        take_turn(connection)
        found = connection.execute(select(User.login, User.given_name, User.family_name).where(User.id == user)).first()
        if found is None:
            raise LinkError(f"there is no user with the id {user!r}")
        link(connection, issuer_of(source), person, user, f"staff:{getpass.getuser()}")
    name = f"{found.given_name} {found.family_name}".strip()
    return f"person {person} of {source} is now user {user}: {name} ({found.login})"
