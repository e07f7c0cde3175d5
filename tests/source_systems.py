"""UserOffice, ICAT, ICAT+ and SciCat as far as the adapters ask them: recorded records, the systems' own paging and rights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from source_server import Asked, Reply, SourceServer, recorded, reply, source_server
from tenacity import wait_none

from etl.adapters.http import Http
from etl.adapters.icat import Icat
from etl.adapters.icatplus import IcatPlus
from etl.adapters.scicat import SciCat
from etl.adapters.useroffice import UserOffice

SECRET = "a-secret-that-nobody-may-see"
SESSION = "0d9a3706-80d4-4d29-9ff3-4d65d4308a24"


class System:
    """records: what it holds, which a test may change. ended: the sessions that were ended."""

    names: tuple[str, ...] = ()
    folder = ""

    def __init__(self) -> None:
        self.records: dict[str, Any] = {name: recorded(f"{self.folder}/{name}") for name in self.names}
        self.ended: list[str] = []

    def __call__(self, asked: Asked) -> Reply:
        raise NotImplementedError


class UserOfficeSystem(System):
    folder, names = "useroffice", ("instruments", "people", "proposals", "experiments")

    def __call__(self, asked: Asked) -> Reply:
        if asked.headers.get("Authorization") != f"Bearer {SECRET}":
            return reply({"data": {"answer": None}})
        query = json.loads(asked.body)["query"]
        found = re.match(r"\{ answer: (\w+)(?:\((.*?)\))? \{", query, re.DOTALL)
        assert found, query
        name, arguments = found[1], found[2] or ""
        if name == "basicUserDetails":
            people = {person["id"]: person for person in self.records["people"]}
            return reply({"data": {"answer": people.get(int(arguments.split(":")[1]))}})
        rows = self.records[{"allExperiments": "experiments"}.get(name, name)]
        first, offset = (re.search(rf"{word}: (\d+)", arguments) for word in ("first", "offset"))
        page = rows[int(offset[1]) : int(offset[1]) + int(first[1])] if first and offset else rows
        # as its SQL counts: from the rows of the page
        return reply({"data": {"answer": {"totalCount": len(rows) if page else 0, "rows": page}}})


class IcatSystem(System):
    folder, names = "icat", ("Investigation", "Instrument", "InstrumentScientist")
    prefix = "/icat"

    def __call__(self, asked: Asked) -> Reply:
        if asked.method == "POST" and asked.path == f"{self.prefix}/session":
            return reply({"sessionId": SESSION})
        if asked.method == "DELETE":
            self.ended.append(asked.path.rpartition("/")[2])
            return Reply(status=204)
        if asked.query.get("sessionId") != SESSION:
            message = f"Unable to find user by sessionid: {asked.query.get('sessionId')}"
            return reply({"code": "SESSION", "message": message}, 403)
        return reply(self.select(asked.query["query"]))

    def select(self, query: str) -> list[Any]:
        found = re.fullmatch(r"SELECT (COUNT\(e\)|DISTINCT e\.name|e) FROM (\w+) e (JOIN .*? )?WHERE (.*?)( ORDER BY .*)?", query)
        assert found, query
        what, entity, _, where, rest = found.groups()
        if entity == "InvestigationUser":
            return [sum(len(each["investigationUsers"] or []) for each in self.records["Investigation"])]
        rows = [row for row in self.records[entity] if self.holds(row, where)]
        if what.startswith("COUNT"):
            return [len(rows)]
        if what.startswith("DISTINCT"):
            return sorted({row["name"] for row in rows})
        most = int(rest.rpartition(",")[2])
        return [{entity: row} for row in sorted(rows, key=lambda row: row["id"])[:most]]

    @staticmethod
    def holds(row: dict[str, Any], where: str) -> bool:
        for condition in where.split(" AND "):
            if found := re.fullmatch(r"e\.id > (\d+)", condition):
                good = row["id"] > int(found[1])
            elif found := re.fullmatch(r"e\.name IN \((.*)\)", condition):
                good = row["name"] in [name.replace("''", "'") for name in re.findall(r"'((?:[^']|'')*)'", found[1])]
            elif found := re.fullmatch(r"([eu])\.modTime > \{ts (.*?) (.*?)\}", condition):
                times = [row["modTime"]] if found[1] == "e" else [part["modTime"] for part in row["investigationUsers"]]
                good = any(time > f"{found[2]}T{found[3]}" for time in times)
            else:
                raise AssertionError(condition)
            if not good:
                return False
        return True


class IcatPlusSystem(System):
    folder, names = "icatplus", ("session", "instruments", "investigation", "instrumentscientist", "user")

    def __call__(self, asked: Asked) -> Reply:
        session = self.records["session"]["sessionId"]
        if asked.path == "/session":
            assert json.loads(asked.body)["password"] == SECRET
            return reply(self.records["session"])
        if asked.method == "DELETE":
            self.ended.append(asked.path.rpartition("/")[2])
            return Reply(status=204)
        if asked.path == "/catalogue/instruments":
            return reply(self.records["instruments"])
        _, catalogue, sid, name = asked.path.split("/")
        if catalogue != "catalogue" or sid != session:
            return reply({"message": f"session {sid} is not known"}, 403)
        rows = self.records[name]
        if name == "investigation":
            skip, limit = int(asked.query["skip"]), int(asked.query["limit"])
            meta = {"page": {"total": len(rows), "totalPages": -(-len(rows) // limit), "currentPage": skip // limit + 1}}
            rows = [{**row, "meta": meta} for row in rows[skip : skip + limit]]
        return reply(rows)


class SciCatSystem(System):
    folder, names = "scicat", ("login", "self", "proposals", "instruments")
    prefix = "/api/v3"
    # whether the token is still taken
    lapsed = False

    def __call__(self, asked: Asked) -> Reply:
        path = asked.path.removeprefix(self.prefix)
        if path == "/auth/login":
            return reply(self.records["login"], 201)
        known = asked.headers.get("Authorization") == f"Bearer {self.records['login']['access_token']}" and not self.lapsed
        if path == "/users/my/self":
            return reply(self.records["self"]) if known else reply({"message": "Forbidden resource", "statusCode": 403}, 403)
        # what is public, and no error
        proposals = [row for row in self.records["proposals"] if known or row["isPublished"]]
        if path == "/proposals/count":
            return reply({"count": len(proposals)})
        if path == "/proposals":
            limits = json.loads(asked.query["filters"])["limits"]
            ordered = sorted(proposals, key=lambda row: row["proposalId"])
            return reply(ordered[limits["skip"] : limits["skip"] + limits["limit"]])
        return reply(self.records["instruments"])


@dataclass
class Running:
    """A system that answers, and the adapter that reads it."""

    system: Any
    server: SourceServer
    adapter: Any

    def told(self, **settings: Any) -> Any:
        """The same adapter with other settings."""
        model: BaseModel = self.adapter
        return model.model_copy(update=settings)


SYSTEMS: dict[str, tuple[type[System], Any, str, dict[str, Any]]] = {
    "useroffice": (UserOfficeSystem, UserOffice, "/graphql", {"subject_is_login": True, "issuer": "https://login.example.org"}),
    "icat": (IcatSystem, Icat, "/icat", {"plugin": "db", "username": "hutch"}),
    "icatplus": (IcatPlusSystem, IcatPlus, "", {"plugin": "db", "username": "hutch"}),
    "scicat": (SciCatSystem, SciCat, "/api/v3", {"username": "hutch"}),
}


@contextmanager
def running_system(name: str, folder: Path, **settings: Any) -> Iterator[Running]:
    """There is no pause between attempts."""
    made, adapter, path, usual = SYSTEMS[name]
    file = folder / "secret"
    file.write_text(f"{SECRET}\n")
    key = "token_file" if name == "useroffice" else "password_file"
    system = made()
    with source_server(system) as server, pytest.MonkeyPatch.context() as patched:
        patched.setattr(Http._send.retry, "wait", wait_none())  # type: ignore[attr-defined]
        told = {"url": server.url + path, key: file, "page_size": 2, "timeout_seconds": 5, **usual, **settings}
        yield Running(system, server, adapter.model_validate(told))
