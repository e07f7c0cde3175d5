"""UserOffice: who is in a team by its rules, and no null, error or number that is left unseen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from source_server import reply
from source_systems import Running, running_system
from sqlalchemy import Engine

from etl.frames import SourceError
from etl.load import run
from etl.source import Source


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Running]:
    with running_system("useroffice", tmp_path) as found:
        yield found


def members(office: Running, experiment: str) -> set[tuple[str, str]]:
    rows = office.adapter.read().frames["experiment_member"].rows(named=True)
    return {(row["user_id"], row["role"]) for row in rows if row["experiment_id"] == experiment}


def test_a_team_is_the_proposer_the_users_who_may_see_the_data_and_approved_visitors(office: Running) -> None:
    given = {("1", "principal-investigator"), ("1", "local-contact"), ("2", "member"), ("3", "member")}
    assert members(office, "000001") == given
    given = {("1", "principal-investigator"), ("6", "local-contact"), ("2", "member"), ("3", "member"), ("4", "member")}
    assert members(office, "000002") == given
    assert members(office, "000003") == {("3", "principal-investigator"), ("4", "member"), ("5", "member")}


def test_drafts_and_proposals_without_an_award_are_left_out(office: Running) -> None:
    frames = office.adapter.read().frames
    assert frames["experiment"]["id"].to_list() == ["000001", "000002", "000003"]
    assert frames["proposal"]["id"].to_list() == ["999999", "100001"]
    wide = office.told(proposal_statuses=frozenset({"FAP_REVIEW"}), experiment_statuses=frozenset({"ACTIVE"})).read().frames
    assert wide["experiment"]["id"].to_list() == ["000005"]


def test_an_instrument_is_looked_after_by_its_scientists_and_its_manager(office: Running) -> None:
    scientists = office.adapter.read().frames["instrument_scientist"].select("instrument_id", "user_id").rows()
    assert set(scientists) == {("1", "1"), ("1", "6"), ("2", "6")}


def test_people_are_linked_by_issuer_and_subject(office: Running) -> None:
    people = {row["id"]: row for row in office.adapter.read().frames["user"].rows(named=True)}
    assert (people["3"]["issuer"], people["3"]["subject"]) == ("https://login.example.org", "novakova")
    assert (people["5"]["issuer"], people["5"]["subject"]) == (None, None)
    unlinked = office.told(issuer=None).read().frames["user"]
    assert unlinked["subject"].null_count() == unlinked["issuer"].null_count() == unlinked.height


def test_the_days_of_the_window_are_asked_for_in_an_order_that_keeps_pages_apart(office: Running) -> None:
    office.adapter.read()
    asked = [str(each) for each in office.server.asked if "allExperiments" in str(each)]
    assert len(asked) == 3
    assert all("2000-01-01T00:00:00Z" in each and "2100-01-01T00:00:00Z" in each and "sortDirection: asc" in each for each in asked)


def without(table: str, *path: Any) -> Callable[[Running], None]:
    """The system answers null there."""

    def change(office: Running) -> None:
        place = office.system.records[table]
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = None

    return change


def moving(office: Running) -> None:
    """One more proposal comes between the pages, which are newest first."""
    proposals = office.system.records["proposals"]
    answer, served = office.server.answer, []

    def answer_then_add(asked: Any) -> Any:
        given = answer(asked)
        if "proposals(" in asked.body and not served:
            served.append(1)
            proposals.insert(0, {**proposals[0], "proposalId": "100003", "primaryKey": 4})
        return given

    office.server.answer = answer_then_add


def with_errors(office: Running) -> None:
    rows = {"answer": {"totalCount": 1, "rows": office.system.records["proposals"][:1]}}
    errors = [{"message": "INSUFFICIENT_PERMISSIONS", "path": ["answer"]}]
    office.server.fail("proposals(", reply({"errors": errors, "data": rows}))


def the_last_page_again(office: Running) -> None:
    rows = {"totalCount": 5, "rows": office.system.records["experiments"][1:3]}
    office.server.fail("asc, first: 2, offset: 2", reply({"data": {"answer": rows}}))


def another_number(office: Running) -> None:
    rows = {"totalCount": 6, "rows": office.system.records["experiments"][2:4]}
    office.server.fail("asc, first: 2, offset: 2", reply({"data": {"answer": rows}}))


def no_more(office: Running) -> None:
    office.server.fail("asc, first: 2, offset: 4", reply({"data": {"answer": {"totalCount": 5, "rows": []}}}))


def no_visit_at_all(office: Running) -> None:
    for experiment in office.system.records["experiments"]:
        experiment["visit"] = None


HALVES = {
    "a team is null": (without("proposals", 1, "users"), "users is null"),
    "a person in a team is null": (without("proposals", 2, "users", 0), "users.0 is null"),
    "who sees the data is null": (without("proposals", 2, "dataAccessUsers"), "dataAccessUsers is null"),
    "a proposer is null": (without("proposals", 2, "proposer"), "proposer is null"),
    "a status is null": (without("proposals", 0, "status"), "status is null"),
    "a proposal is null": (without("proposals", 1), "rows.1 is null"),
    "a visitor is null": (without("experiments", 1, "visit", "registrations", 0, "user"), "user is null"),
    "a local contact is null": (without("experiments", 0, "localContact"), "who its local contact is did not come"),
    "scientists are null": (without("instruments", 0, "scientists"), "scientists is null"),
    "a manager is null": (lambda office: office.system.records["people"].clear(), "basicUserDetails"),
    "a list is null": (lambda office: office.system.records.update(proposals=None), "no whole answer"),
    "errors beside data": (with_errors, "INSUFFICIENT_PERMISSIONS"),
    "the number changes": (moving, "3 were announced, now 4"),
    "a page tells another number": (another_number, "5 were announced, now 6"),
    "fewer come": (no_more, "5 were announced"),
    "a page comes twice": (the_last_page_again, "different ones"),
    "visits are not told": (no_visit_at_all, "no experiment has a visit"),
}


@pytest.mark.parametrize("half", HALVES)
def test_half_an_answer_is_none(office: Running, half: str) -> None:
    change, told = HALVES[half]
    change(office)
    with pytest.raises(SourceError, match=told):
        office.adapter.read()


def test_a_token_that_is_not_known_is_not_an_empty_facility(office: Running) -> None:
    office.adapter.token_file.write_text("another")
    with pytest.raises(SourceError, match=r"instruments: a whole answer was expected, but the answer\.data\.answer is null"):
        office.adapter.read()


def test_a_site_without_visits_says_so(office: Running) -> None:
    no_visit_at_all(office)
    assert office.told(visits=False).read().frames["experiment"].height == 3


def test_it_loads_as_a_facility_of_its_own(office: Running, engine: Engine, rows: Callable[[str], list[dict[str, Any]]]) -> None:
    report = run(engine, Source(name="uo", adapter="useroffice"), office.adapter)
    assert not report.objections
    assert {table: counts["added"] for table, counts in report.counts.items()} == {
        "affiliation": 3,
        "user": 5,
        "instrument": 2,
        "proposal": 2,
        "experiment": 3,
        "experiment_member": 10,
        "instrument_scientist": 3,
    }
    # Noa has no subject, and so no login
    assert report.rejections["skipped"].all() and set(report.rejections["key"]) == {"5", "000003,5"}
    starts = {row["id"]: row["starts_at"].isoformat() for row in rows("experiment")}
    assert starts["000001"] == "2030-01-07T10:00:00+00:00"


def test_who_is_removed_from_a_proposal_is_removed_here(
    office: Running, engine: Engine, rows: Callable[[str], list[dict[str, Any]]]
) -> None:
    source = Source(name="uo", adapter="useroffice")
    run(engine, source, office.adapter)
    office.system.records["proposals"][2]["users"].clear()
    report = run(engine, source, office.adapter)
    assert not report.objections
    ended = {(row["experiment_id"], row["user_id"]) for row in rows("experiment_member") if row["ended_at"]}
    assert ended == {("000001", "2"), ("000002", "2")}
