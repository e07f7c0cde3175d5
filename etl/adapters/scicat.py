"""SciCat: its REST interface, version 3. What it reads, its account, and how groups are meant: docs/sources/scicat.md.

Without a login, or with one that has lapsed, it answers with what is public: often an empty list, and never an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from etl.adapters.http import Http, Rows, Web
from etl.frames import Extract, File, secret
from hub.database.tables import MemberOf


class SciCat(Web):
    username: str
    password_file: File

    def read(self) -> Extract:
        password, rows = secret(self.password_file), Rows(self.url)
        with Http(self, password) as http:
            said = {"username": self.username, "password": password}
            token = http.ask(dict, "POST", "/auth/login", json=said)["access_token"]
            http.secrets.append(token)
            http.client.headers["Authorization"] = f"Bearer {token}"
            # a period names its instrument by any of these
            instruments: dict[str, str] = {}
            for each in http.ask(list, "GET", "/instruments"):
                instruments |= dict.fromkeys((each["pid"], each["name"], each["uniqueName"]), each["uniqueName"])
                rows.add("instrument", id=each["uniqueName"], name=each["name"])
            for proposal in self._proposals(http):
                self._add_proposal(rows, proposal, instruments)
            # whether it knew us to the end
            http.ask(dict, "GET", "/users/my/self")["username"]
        return rows.extract()

    def _proposals(self, http: Http) -> Iterator[Any]:
        def fetch(done: int, _: Any) -> tuple[int, list[Any]]:
            total = http.ask(dict, "GET", "/proposals/count")["count"]
            # one more than are counted, because the list and the count have rights of their own
            most = min(self.page_size, total - done) + 1
            limits = {"skip": done, "limit": most, "order": "proposalId:asc"}
            return total, http.ask(list, "GET", "/proposals", params={"filters": json.dumps({"where": {}, "limits": limits})})

        return http.pages("proposals", "proposalId", fetch)

    def _add_proposal(self, rows: Rows, proposal: dict[str, Any], instruments: dict[str, str]) -> None:
        id = proposal["proposalId"]
        rows.add("proposal", id=id, title=proposal["title"], summary=proposal.get("abstract"))
        people = [("pi_", MemberOf.PRINCIPAL_INVESTIGATOR), ("", MemberOf.MEMBER)]
        for number, period in enumerate(proposal.get("MeasurementPeriodList") or []):
            experiment_id, instrument = f"{id}#{number}", instruments.get(period["instrument"], period["instrument"])
            dates = {"starts_at": period.get("start"), "ends_at": period.get("end")}
            rows.add("experiment", id=experiment_id, proposal_id=id, instrument_id=instrument, **dates)
            for prefix, role in people:
                if email := (proposal.get(f"{prefix}email") or "").lower():
                    given, family = proposal.get(f"{prefix}firstname"), proposal.get(f"{prefix}lastname")
                    rows.add("user", id=email, given_name=given, family_name=family or email, email=email)
                    rows.add("experiment_member", experiment_id=experiment_id, user_id=email, role=role)
