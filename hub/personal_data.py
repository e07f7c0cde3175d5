"""What Hutch keeps of people: the inventory, and what follows from it (export, forgetting, retention).

`INVENTORY` names every table, so a new one cannot be forgotten: a test compares it with the tables, and with docs/personal-data.md.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import JSON, ColumnElement, String, Table, cast, delete, false, or_, select, update
from sqlalchemy.orm import Session

from .database.tables import Base, Instance, User
from .errors import HutchError

FORGOTTEN = "forgotten"
TABLES = Base.metadata.tables


class PersonError(HutchError):
    """Nobody has this login, or they cannot be forgotten yet."""


@dataclass(frozen=True, slots=True)
class Kept:
    """One table: what it is kept for, and for how many days, counted from the column `since` (None = as long as the deployment).

    logins: columns that hold a login or a user's id without referring to them. words: columns in which people may be named.
    """

    why: str
    logins: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    days: int | None = None
    since: str = ""


INVENTORY: dict[str, Kept] = {
    "user": Kept("to know who signs on, and to show team members to each other", ("login",)),
    "affiliation": Kept("to tell people of the same name apart"),
    "identity": Kept("to recognise a person at the sign-on whose login or address has changed", ("linked_by",)),
    "identity_suggestion": Kept("for staff to confirm who somebody is"),
    "user_role": Kept("to decide what a person may do"),
    "user_group": Kept("to decide what a person may do"),
    "instrument": Kept("not personal"),
    "instrument_scientist": Kept("to decide who supports whom"),
    "proposal": Kept("not personal"),
    "experiment": Kept("not personal"),
    "experiment_member": Kept("to decide who may launch for an experiment"),
    "plan": Kept("not personal"),
    "instance": Kept("to run it, and to count use", words=("display_name",)),
    "instance_member": Kept("to decide who may enter an instance"),
    "instance_experiment": Kept("to decide who may enter an instance"),
    "intent": Kept("to carry out what was asked, and to explain it later", ("actor",), ("reason", "message", "detail")),
    "launch_wait": Kept("to launch in turn"),
    "instance_event": Kept("to explain what happened to an instance", ("actor",), ("message",)),
    "support_access": Kept("to decide who of support may enter an instance, and to explain it later", words=("reason",)),
    "invitation": Kept("to let in those who were invited"),
    "desktop_ticket": Kept("to let somebody in to a desktop once", days=1, since="expires_at"),
    "desktop_session": Kept("to count use, and to tell the owner who was there"),
    "thumbnail": Kept("to show owners their desktops, where they want it", days=30, since="taken_at"),
    "notice": Kept("to tell a person something once", words=("subject", "text"), days=90, since="at"),
    "etl_run": Kept("to explain where a record comes from", words=("message",)),
    "etl_change": Kept("to undo a run, and to explain a change", days=90),
    "etl_rejection": Kept("for staff to mend a source", days=90),
    "cloud_room": Kept("not personal"),
    "cloud_finding": Kept("to show where the cloud differs from the records", ("resource_id",), days=90, since="ended_at"),
    "deployment": Kept("not personal"),
}
# not of one person, but their rows may hold anybody's values
OF_RUNS = ("etl_change", "etl_rejection")


def references() -> Iterator[tuple[Table, str]]:
    """Every column that names a user."""
    for table in Base.metadata.sorted_tables:
        for key in table.foreign_keys:
            if key.column.table.name == "user":
                yield table, key.parent.name


def find(session: Session, login: str) -> User:
    """Raises PersonError when nobody has the login, or ever had."""
    user = session.scalars(select(User).where(User.login == login)).one_or_none()
    if user is None:
        raise PersonError(f"there is nobody with the login {login!r}; see `hutch etl status` for what was loaded")
    return user


def export(session: Session, login: str) -> dict[str, list[dict[str, Any]]]:
    """All that is kept of a person: {table: rows}. Raises PersonError."""
    user = find(session, login)
    conditions: dict[str, ColumnElement[bool]] = {"user": TABLES["user"].c.id == user.id}
    for table, column in references():
        conditions[table.name] = conditions.get(table.name, false()) | (table.c[column] == user.id)
    conditions |= {name: _in_history(TABLES[name], user) for name in ("intent", "instance_event")}
    conditions |= {name: _of_theirs(TABLES[name], user) for name in ("instance_experiment", "thumbnail")}
    conditions |= {name: _mentions(TABLES[name], user) for name in OF_RUNS}
    return {
        name: rows
        for name, condition in conditions.items()
        if (rows := [dict(row) for row in session.execute(select(TABLES[name]).where(condition)).mappings()])
    }


def _of_theirs(table: Table, user: User) -> ColumnElement[bool]:
    """Rows about the person's own instances."""
    return table.c.instance_id.in_(select(Instance.id).where(Instance.owner_id == user.id))


def _in_history(table: Table, user: User) -> ColumnElement[bool]:
    """Rows about the person's instances, by whomever; what they did to others'; and why they lost a part in others'."""
    # as hub.steward.following writes it
    named = [table.c[column].startswith(f"{user.login} is ", autoescape=True) for column in INVENTORY[table.name].words]
    return or_(_of_theirs(table, user), table.c.actor.in_([user.id, user.login]), *named)


def _mentions(table: Table, user: User) -> ColumnElement[bool]:
    """Rows of a run about a person: their id or login is a whole value in the key or in what was before."""
    if table.name == "etl_rejection":
        columns, mark = ["," + table.c.key + ","], ","
    else:
        columns, mark = [cast(column, String) for column in table.c if isinstance(column.type, JSON)], '"'
    values = [f"{mark}{value}{mark}" for value in (user.id, user.login)]
    return or_(*(column.contains(value, autoescape=True) for column in columns for value in values))


def forget(session: Session, login: str, at: datetime) -> str:
    """Replaces a person by a pseudonym, which is returned. What is counted (instances, memberships, launches) stays.

    Raises PersonError while a source still names the person (the next run would bring them back), or while they own an instance.
    """
    user = find(session, login)
    if user.ended_at is None:
        raise PersonError(f"{login} is still named by the source {user.source!r}; end the record there first")
    if session.scalars(select(Instance.id).where(Instance.owner_id == user.id, Instance.purged_at.is_(None)).limit(1)).first():
        raise PersonError(f"{login} still owns instances; delete them first, and wait until their grace is over")
    gone = {TABLES[name]: _mentions(TABLES[name], user) for name in OF_RUNS}
    own = [TABLES[name] for name in ("identity", "identity_suggestion", "notice", "desktop_ticket")]
    gone |= {table: table.c.user_id == user.id for table in own}
    for table, theirs in {**gone, TABLES["thumbnail"]: _of_theirs(TABLES["thumbnail"], user)}.items():
        session.execute(delete(table).where(theirs))
    pseudonym = f"{FORGOTTEN}-{secrets.token_hex(6)}"
    _overwrite_words(session, user)
    _rename(session, user, pseudonym, at)
    return pseudonym


def _overwrite_words(session: Session, user: User) -> None:
    """What was written about the person and their instances, by them or by others, and what they wrote about others'."""
    for name, kept in INVENTORY.items():
        table = TABLES[name]
        if not kept.words or name in ("notice", "etl_run"):
            continue
        of_person = table.c.owner_id == user.id if name == "instance" else _written(table, user)
        blank = {column: FORGOTTEN if not table.c[column].nullable else None for column in kept.words}
        session.execute(update(table).where(of_person).values(blank))


def _written(table: Table, user: User) -> ColumnElement[bool]:
    if "actor" in table.c:
        return _in_history(table, user)
    return or_(table.c.user_id == user.id, _of_theirs(table, user))


def _rename(session: Session, user: User, pseudonym: str, at: datetime) -> None:
    """A new row under the pseudonym takes the place of the old one, in every table that names it."""
    kept = {"source": user.source, "run_id": user.run_id, "ended_at": user.ended_at}
    session.add(User(id=pseudonym, login=pseudonym, given_name="", family_name=FORGOTTEN, forgotten_at=at, **kept))
    session.flush()
    for table, column in references():
        session.execute(update(table).where(table.c[column] == user.id).values({column: pseudonym}))
    for name, kept_table in INVENTORY.items():
        table = TABLES[name]
        for column in kept_table.logins if name != "user" else ():
            session.execute(update(table).where(table.c[column].in_([user.id, user.login])).values({column: pseudonym}))
    session.execute(delete(User).where(User.id == user.id))


def prune(session: Session, at: datetime) -> int:
    """Deletes what is older than its table keeps it, and returns how many rows."""
    deleted, run = 0, TABLES["etl_run"]
    for name, kept in INVENTORY.items():
        if kept.days is None:
            continue
        table, before = TABLES[name], at - timedelta(days=kept.days)
        old = (
            table.c.run_id.in_(select(run.c.id).where(run.c.started_at < before))
            if name in OF_RUNS
            else table.c[kept.since] < before
        )
        deleted += session.execute(delete(table).where(old)).rowcount  # type: ignore[attr-defined]
    return deleted
