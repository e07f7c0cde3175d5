"""Who is who. The people of a source are the facility's own users, or they are found among these.

Found by what cannot be somebody else's: the account of a sign-on, a link that staff confirmed, the login, the ORCID iD, in this
order. The same e-mail address only suggests somebody, for staff to confirm with `hutch etl link`.
"""

from __future__ import annotations

import getpass
from dataclasses import dataclass, field, replace
from datetime import datetime

import polars as pl
from sqlalchemy import Connection, Engine, delete, insert, select

from etl import cells, store
from etl.frames import FAULT, Extract, Frames, Scope
from etl.schema import SHAPES, TIME
from etl.source import Source
from etl.validate import UNKNOWN
from hub.database.engine import take_turn
from hub.database.tables import Identity, IdentitySuggestion, User
from hub.errors import HutchError

ACCOUNT = ["issuer", "subject"]
IDENTITY = dict.fromkeys([*ACCOUNT, "user_id"], pl.String())
NOBODY = pl.DataFrame(schema={**IDENTITY, "linked_by": pl.String})
NO_SUGGESTION = pl.DataFrame(schema={**IDENTITY, "reason": pl.String})
# of a source's people, and of users
TRAITS = ["id", "login", "orcid", "email"]


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
    users = store.held(connection, SHAPES["user"], TRAITS)()
    people = match(_people(extract.frames.get("user")), users, known, issuer_of(source.name))
    sure = people.filter(pl.col("user_id").is_not_null())
    linked = sure.filter(pl.col("by_source").is_null()).select(
        issuer=pl.lit(issuer_of(source.name)), subject="id", user_id="user_id", linked_by="linked_by"
    )
    suggested = suggestions(people.join(sure, on="id", how="anti"), users, issuer_of(source.name))
    ids = known.filter(pl.col("issuer") == issuer_of(source.name)).select(id="subject", user_id="user_id")
    ids = pl.concat([sure.select("id", "user_id"), ids.join(sure, on="id", how="anti")])
    return Found(_translated(extract, ids, suggested, source.name), known, linked, suggested)


def _people(frame: pl.DataFrame | None) -> pl.DataFrame:
    """One row for each id, with null for what is not said."""
    columns = [*TRAITS, *ACCOUNT]
    if frame is None:
        return pl.DataFrame(schema=dict.fromkeys(columns, pl.String))
    good = cells.stripped(frame.filter(pl.col(FAULT).is_null()) if FAULT in frame.columns else frame)
    fields = SHAPES["user"].fields
    read = (cells.value(name, good.schema[name], fields[name], "UTC") for name in columns if name in good.columns)
    people = good.select(read).with_columns(pl.lit(None, pl.String).alias(name) for name in columns if name not in good.columns)
    return people.filter(pl.col("id").is_not_null()).unique("id", keep="first", maintain_order=True)


def match(people: pl.DataFrame, users: pl.DataFrame, known: pl.DataFrame, issuer: str) -> pl.DataFrame:
    """With the `user_id` of whom a person is for sure (else null), and by what they are `linked_by`.

    A login and an ORCID iD that lead to two different users lead nowhere.
    """
    only = users.filter(pl.col("orcid").is_unique() & pl.col("orcid").is_not_null())
    ours = known.filter(pl.col("issuer") == issuer)
    traced = (
        people.join(known.rename({"user_id": "by_account"}), on=ACCOUNT, how="left")
        .join(ours.select(id="subject", by_source="user_id"), on="id", how="left")
        .join(users.select("login", by_login="id"), on="login", how="left")
        .join(only.select("orcid", by_orcid="id"), on="orcid", how="left")
    )
    torn = (pl.col("by_login") != pl.col("by_orcid")).fill_null(False)
    traces = {"account": "by_account", "source": "by_source", "login": "by_login", "orcid": "by_orcid"}
    allowed = {how: pl.col(name) if how in ("account", "source") else pl.when(~torn).then(name) for how, name in traces.items()}
    return traced.with_columns(
        user_id=pl.coalesce(*allowed.values()),
        linked_by=pl.coalesce(*(pl.when(user.is_not_null()).then(pl.lit(how)) for how, user in allowed.items())),
    )


def suggestions(people: pl.DataFrame, users: pl.DataFrame, issuer: str) -> pl.DataFrame:
    """Users whom staff may confirm for people who are not known."""
    by_mail = people.with_columns(mail=pl.col("email").str.to_lowercase()).join(
        users.select(found="id", mail=pl.col("email").str.to_lowercase()), on="mail"
    )
    found = [by_mail.select("id", "found", reason=pl.lit("has the same e-mail address"))]
    for name, words in (("by_login", "login"), ("by_orcid", "ORCID iD")):
        reason = pl.lit(f"has the same {words}, and of another user the {'ORCID iD' if words == 'login' else 'login'}")
        found.append(people.filter(pl.col(name).is_not_null()).select("id", found=name, reason=reason))
    several = pl.concat(found).unique(["id", "found"], keep="last", maintain_order=True)
    return several.select(issuer=pl.lit(issuer), subject="id", user_id="found", reason="reason")


def _translated(extract: Extract, ids: pl.DataFrame, suggested: pl.DataFrame, source: str) -> Extract:
    """The facility's ids in place of the source's; rows of people who are not known say so."""
    likely = suggested.group_by("subject").agg(pl.col("user_id").sort().str.join(", ").alias("_likely"))
    frames: Frames = {}
    scopes: dict[str, Scope | None] = dict(extract.scopes)
    for name, frame in extract.frames.items():
        if name == "user":
            continue
        frames[name] = frame
        if "user_id" not in SHAPES[name].fields or "user_id" not in frame.columns:
            continue
        named = cells.stripped(frame).with_columns(pl.col("user_id").cast(pl.String).alias("_person"))
        named = named.join(ids.select(_person="id", _user="user_id"), on="_person", how="left", maintain_order="left")
        named = named.join(likely, left_on="_person", right_on="subject", how="left", maintain_order="left")
        hint = pl.format("; perhaps user {}: confirm with `hutch etl link {} {} USER`", "_likely", pl.lit(source), "_person")
        reason = pl.format("person '{}' of this source is not known as a user{}", "_person", hint.fill_null(""))
        unknown = pl.when(pl.col("_user").is_null() & pl.col("_person").is_not_null()).then(reason)
        frames[name] = named.with_columns(unknown.alias(UNKNOWN), pl.col("_user").alias("user_id")).drop(
            "_person", "_user", "_likely"
        )
        scope = scopes.get(name)
        if scope and scope.column == "user_id":
            scopes[name] = Scope("user_id", frozenset(ids.filter(pl.col("id").is_in(list(scope.values)))["user_id"]))
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
    query = select(row.subject, row.user_id, User.login, User.given_name + " " + User.family_name, row.reason)
    with engine.connect() as connection:
        return [
            tuple(one) for one in connection.execute(query.join(User).where(row.issuer == issuer_of(source)).order_by(row.subject))
        ]


def confirm(engine: Engine, source: str, person: str, user: str) -> str:
    """Link a person of a source to a user, whatever they were linked to before. Raises LinkError."""
    account = {"issuer": issuer_of(source), "subject": person}
    with engine.begin() as connection:
        take_turn(connection)
        found = connection.execute(select(User.login, User.given_name, User.family_name).where(User.id == user)).first()
        if found is None:
            raise LinkError(f"there is no user with the id {user!r}")
        for model in (Identity, IdentitySuggestion):
            connection.execute(delete(model).filter_by(**account))
        connection.execute(insert(Identity), {**account, "user_id": user, "linked_by": f"staff:{getpass.getuser()}"})
    name = f"{found.given_name} {found.family_name}".strip()
    return f"person {person} of {source} is now user {user}: {name} ({found.login})"
