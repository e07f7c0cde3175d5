"""UserOffice: its GraphQL API with an API token. What it reads, the token's rights and its limits: docs/sources/useroffice.md.

To a token without a right it answers null, not an error. So each null counts by which somebody might be missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Any

from etl.adapters.http import Http, Rows, Web
from etl.frames import Extract, File, secret
from hub.database.tables import MemberOf

PERSON = "{ id firstname lastname email oidc_sub institutionId institution country }"
INSTRUMENTS = f"instruments {{ totalCount rows: instruments {{ id name description managerUserId scientists {PERSON} }} }}"
MANAGER = f"basicUserDetails(userId: %d) {PERSON}"
PROPOSALS = f"""proposals(%s) {{ totalCount rows: proposals {{
    proposalId title abstract status {{ shortCode }} proposer {PERSON} users {PERSON} dataAccessUsers {PERSON} }} }}"""
# without an order, pages overlap
EXPERIMENTS = f"""allExperiments(filter: {{overlaps: {{from: "%sT00:00:00Z", to: "%sT00:00:00Z"}}}},
    sortField: "experimentId", sortDirection: asc, %%s) {{ totalCount rows: experiments {{
    experimentId startsAt endsAt status instrument {{ id }} proposal {{ proposalId }}
    localContactId localContact {PERSON} visit {{ registrations {{ status user {PERSON} }} }} }} }}"""
MAY_BE_NULL = {"email", "oidc_sub", "institutionId", "institution", "country", "description", "abstract"}
MAY_BE_NULL |= {"localContactId", "localContact", "visit"}


class UserOffice(Web):
    token_file: File
    # who issues the `oidc_sub` of its people; without it they are not linked with who signs on
    issuer: str | None = None
    # whether that `oidc_sub` is the facility's login too; it knows of no other
    subject_is_login: bool = False
    # short codes of the proposal statuses in which a team may work with its data
    proposal_statuses: frozenset[str] = frozenset({"ALLOCATED", "SCHEDULING"})
    experiment_statuses: frozenset[str] = frozenset({"ACTIVE", "COMPLETED"})
    # experiments that overlap with these days; all others end
    first_day: date = date(2000, 1, 1)
    last_day: date = date(2100, 1, 1)
    # whether visits are registered in it
    visits: bool = True

    def read(self) -> Extract:
        token, rows = secret(self.token_file), Rows(self.url)
        with Http(self, token, Authorization=f"Bearer {token}") as http:
            for instrument in self._all(http, INSTRUMENTS, "id"):
                rows.add("instrument", id=instrument["id"], name=instrument["name"], description=instrument["description"])
                for person in [self._ask(http, MANAGER % instrument["managerUserId"]), *instrument["scientists"]]:
                    rows.add("instrument_scientist", instrument_id=instrument["id"], user_id=self.add_person(rows, person))
            proposals = {each["proposalId"]: each for each in self._all(http, PROPOSALS, "proposalId")}
            experiments = list(self._all(http, EXPERIMENTS % (self.first_day, self.last_day), "experimentId"))
            if self.visits and not any(experiment["visit"] for experiment in experiments):
                raise http.fault("", "no experiment has a visit: the token lacks the right to visits, or set visits = false")
            for experiment in experiments:
                if experiment["localContactId"] and not experiment["localContact"]:
                    raise http.fault("", f"experiment {experiment['experimentId']}: who its local contact is did not come")
                proposal = proposals[experiment["proposal"]["proposalId"]]
                if proposal["status"]["shortCode"] in self.proposal_statuses and experiment["status"] in self.experiment_statuses:
                    self._add_experiment(rows, experiment, proposal)
        return rows.extract()

    def _all(self, http: Http, query: str, key: str) -> Iterator[Any]:
        def fetch(done: int, _: Any) -> tuple[int, list[Any]]:
            page = f"first: {self.page_size}, offset: {done}"
            answer = self._ask(http, query % page if "%s" in query else query)
            return answer["totalCount"], answer["rows"]

        return http.pages(query.split()[0], key, fetch)

    def _ask(self, http: Http, query: str) -> Any:
        answer = http.ask(dict, "POST", "", json={"query": f"{{ answer: {query} }}"})
        if wrong := [str(answer["errors"])] if "errors" in answer else [f"{null} is null" for null in _nulls(answer)]:
            raise http.fault("", f"{query.split()[0]}: a whole answer was expected, but {wrong[0][:200]}")
        return answer["data"]["answer"]

    def _add_experiment(self, rows: Rows, experiment: dict[str, Any], proposal: dict[str, Any]) -> None:
        id, proposal_id = experiment["experimentId"], proposal["proposalId"]
        rows.add("proposal", id=proposal_id, title=proposal["title"], summary=proposal["abstract"])
        dates = {"starts_at": experiment["startsAt"], "ends_at": experiment["endsAt"]}
        rows.add("experiment", id=id, proposal_id=proposal_id, instrument_id=experiment["instrument"]["id"], **dates)
        visitors = experiment["visit"]["registrations"] if experiment["visit"] else []
        approved = [visitor["user"] for visitor in visitors if visitor["status"] == "APPROVED"]
        parts = {
            MemberOf.PRINCIPAL_INVESTIGATOR: [proposal["proposer"]],
            MemberOf.LOCAL_CONTACT: [experiment["localContact"]] if experiment["localContact"] else [],
            MemberOf.MEMBER: [*proposal["users"], *proposal["dataAccessUsers"], *approved],
        }
        for role, people in parts.items():
            for person in people:
                rows.add("experiment_member", experiment_id=id, user_id=self.add_person(rows, person), role=role)

    def add_person(self, rows: Rows, person: dict[str, Any]) -> str:
        affiliation_id = person["institution"] and person["institutionId"]
        if affiliation_id:
            rows.add("affiliation", id=affiliation_id, name=person["institution"], country=person["country"])
        rows.add(
            "user",
            id=person["id"],
            login=person["oidc_sub"] if self.subject_is_login else None,
            given_name=person["firstname"],
            family_name=person["lastname"],
            email=person["email"],
            affiliation_id=affiliation_id,
            issuer=self.issuer if person["oidc_sub"] else None,
            subject=person["oidc_sub"] if self.issuer else None,
        )
        return str(person["id"])


def _nulls(value: Any, where: str = "the answer") -> Iterator[str]:
    if value is None:
        yield where
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if inner is not None or key not in MAY_BE_NULL:
            yield from _nulls(inner, f"{where}.{key}")
