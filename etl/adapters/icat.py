"""ICAT: its REST interface. What it reads, the rights of its account and its limits: docs/sources/icat.md.

To an account without a right it answers nothing, and leaves related records that it may not read out of others.
"""

# queries are JPQL that can only read, and what is put into them is quoted
# ruff: noqa: S608
from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import Any

from pydantic import Field

from etl.adapters.http import Http, Rows, Web
from etl.frames import Extract, File, Scope, SourceError, secret
from hub.database.tables import MemberOf

INVESTIGATION = "INCLUDE e.investigationUsers.user, e.investigationInstruments.instrument"
# a time in a query is in a zone that the server does not tell; what is read twice is the same twice
SLACK = timedelta(hours=15)
NAMES_AT_ONCE = 50
PI = MemberOf.PRINCIPAL_INVESTIGATOR


class Catalogue(Web):
    """What ICAT and ICAT+ are told, and how investigations become records: `name` is a proposal, `name/visitId` an experiment."""

    plugin: str
    username: str
    password_file: File
    # authenticators (db of db/ann) whose user names are logins of the facility; none = all
    logins_of: frozenset[str] = frozenset()
    # of an InvestigationUser, in lower case; who has another one is a member
    roles: dict[str, MemberOf] = Field({"principal investigator": PI, "pi": PI, "local contact": MemberOf.LOCAL_CONTACT})

    def add_investigations(self, rows: Rows, investigations: Iterable[dict[str, Any]]) -> int:
        """Returns how many parts their people have."""
        releases: dict[str, list[str]] = {}
        parts = 0
        for each in investigations:
            name, title, id = each["name"], each["title"], f"{each['name']}/{each['visitId']}"
            # open when its last visit is, and not before each of them has a date
            dates = releases[name] = [*releases.get(name, []), each.get("releaseDate") or ""]
            public_at = max(dates) if all(dates) else None
            rows.add("proposal", id=name, title=title, summary=each.get("summary"), public_at=public_at)
            instrument_id = self.add_instrument(rows, each["instrument"]) if each.get("instrument") else None
            about = {"doi": each.get("doi"), "starts_at": each.get("startDate"), "ends_at": each.get("endDate")}
            rows.add("experiment", id=id, proposal_id=name, instrument_id=instrument_id, title=title, **about)
            parts += len(each["investigationUsers"])
            for part in each["investigationUsers"]:
                role = self.roles.get(part["role"].lower().replace("_", " "), MemberOf.MEMBER)
                rows.add("experiment_member", experiment_id=id, user_id=self.add_user(rows, part["user"]), role=role)
        return parts

    def add_instrument(self, rows: Rows, instrument: dict[str, Any]) -> str:
        name = instrument["name"]
        rows.add("instrument", id=name, name=instrument.get("fullName") or name, description=instrument.get("description"))
        return name

    def add_user(self, rows: Rows, user: dict[str, Any]) -> str:
        mnemonic, _, login = user["name"].rpartition("/")
        if affiliation := (user.get("affiliation") or "")[:250]:
            rows.add("affiliation", id=affiliation, name=affiliation)
        rows.add(
            "user",
            id=user["name"],
            login=login if not self.logins_of or mnemonic in self.logins_of else None,
            given_name=user.get("givenName"),
            family_name=user.get("familyName") or user.get("fullName") or login,
            email=user.get("email"),
            orcid=(user.get("orcidId") or "").removeprefix("https://orcid.org/"),
            affiliation_id=affiliation,
        )
        return user["name"]


class Icat(Catalogue):
    def read(self) -> Extract:
        rows = Rows(self.url)
        with self._session() as session:
            for instrument in session.all("Instrument"):
                self.add_instrument(rows, instrument)
            for each in session.all("InstrumentScientist", "INCLUDE e.user, e.instrument"):
                user_id = self.add_user(rows, each["user"])
                rows.add("instrument_scientist", instrument_id=each["instrument"]["name"], user_id=user_id)
            parts = session.count("InvestigationUser")
            came = self.add_investigations(rows, map(_with_instrument, session.all("Investigation", INVESTIGATION)))
            if came < parts:
                raise session.fault("", f"{came} InvestigationUsers came with their investigations, {parts} are there")
        return rows.extract()

    def read_since(self, since: datetime) -> Extract:
        """All of each proposal of which an investigation or a part was changed or added; what was deleted, only `read` can see."""
        rows, after = Rows(self.url), f"{{ts {since - SLACK:%Y-%m-%d %H:%M:%S}}}"
        with self._session() as session:
            if not session.count("InvestigationUser"):
                raise session.fault("", "there is no InvestigationUser at all, as for an account without rights")
            changed = [f"WHERE e.modTime > {after}", f"JOIN e.investigationUsers u WHERE u.modTime > {after}"]
            names = {name for each in changed for name in session.select(f"SELECT DISTINCT e.name FROM Investigation e {each}")}
            quoted = ["'" + name.replace("'", "''") + "'" for name in sorted(names)]
            for first in range(0, len(quoted), NAMES_AT_ONCE):
                some = f"e.name IN ({', '.join(quoted[first : first + NAMES_AT_ONCE])})"
                self.add_investigations(rows, map(_with_instrument, session.all("Investigation", INVESTIGATION, some)))
        told = Scope("experiment_id", frozenset(str(row["id"]) for row in rows.tables.get("experiment", {}).values()))
        return rows.extract((), {**dict.fromkeys(rows.tables), "experiment_member": told})

    @contextmanager
    def _session(self) -> Iterator[_Session]:
        password = secret(self.password_file)
        credentials = [{"username": self.username}, {"password": password}]
        with _Session(self, password) as session:
            said = {"json": json.dumps({"plugin": self.plugin, "credentials": credentials})}
            session.id = session.ask(dict, "POST", "/session", data=said)["sessionId"]
            session.secrets.append(session.id)
            try:
                yield session
            finally:
                with suppress(SourceError):
                    session.send("DELETE", f"/session/{session.id}")


class _Session(Http):
    id = ""

    def select(self, query: str) -> list[Any]:
        return self.ask(list, "GET", "/entityManager", params={"sessionId": self.id, "query": query})

    def count(self, entity: str, where: str = "e.id > 0") -> int:
        return self.select(f"SELECT COUNT(e) FROM {entity} e WHERE {where}")[0]

    def all(self, entity: str, include: str = "", where: str = "e.id > 0") -> Iterator[Any]:
        """In the order of ids and each page from the last id on, so that what is added meanwhile moves nothing."""
        total = self.count(entity, where)

        def fetch(done: int, last: Any) -> tuple[int, list[Any]]:
            after, most = last["id"] if last else 0, max(1, min(self.web.page_size, total - done))
            page = self.select(f"SELECT e FROM {entity} e WHERE {where} AND e.id > {after} ORDER BY e.id {include} LIMIT 0,{most}")
            return total, [row[entity] for row in page]

        return self.pages(entity, "id", fetch)


def _with_instrument(investigation: dict[str, Any]) -> dict[str, Any]:
    """One with several instruments counts to that which was named first."""
    first: dict[str, Any] = min(investigation["investigationInstruments"], key=lambda each: each["id"], default={})
    return {**investigation, "instrument": first.get("instrument")}
