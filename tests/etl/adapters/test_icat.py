"""ICAT and ICAT+: investigations as experiments, whole or since a moment, and sessions that end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from source_server import Reply, recorded, reply
from source_systems import SESSION, Running, running_system
from sqlalchemy import Engine

from etl.adapters.icat import SLACK
from etl.frames import Scope, SourceError
from etl.load import run
from etl.source import Source

CHANGES = datetime(2026, 11, 1, 8, tzinfo=UTC) + SLACK
LATER = CHANGES + timedelta(days=2)


@pytest.fixture(params=["icat", "icatplus"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Running]:
    with running_system(request.param, tmp_path) as found:
        yield found


@pytest.fixture
def icat(tmp_path: Path) -> Iterator[Running]:
    with running_system("icat", tmp_path) as found:
        yield found


@pytest.fixture
def icatplus(tmp_path: Path) -> Iterator[Running]:
    with running_system("icatplus", tmp_path) as found:
        yield found


def by_id(frames: Any, table: str) -> dict[str, Any]:
    return {row["id"]: row for row in frames[table].rows(named=True)}


def teams(frames: Any) -> set[tuple[str, str, str]]:
    return set(frames["experiment_member"].select("experiment_id", "user_id", "role").rows())


def test_a_visit_is_an_experiment_and_its_name_the_proposal(either: Running) -> None:
    frames = either.adapter.read().frames
    experiments = by_id(frames, "experiment")
    assert set(experiments) == {"08100122-EF/1.1-P", "10100601-ST/1.1-N", "10100601-ST/1.2-N", "12100409-ST/1.1-P"}
    second = experiments["10100601-ST/1.2-N"]
    assert (second["proposal_id"], second["instrument_id"], second["ends_at"]) == ("10100601-ST", "HIKE", None)
    # on two instruments: the first counts
    assert experiments["10100601-ST/1.1-N"]["instrument_id"] == "E2"


def test_a_proposal_is_open_when_its_last_visit_is(either: Running) -> None:
    opens = {id: row["public_at"] for id, row in by_id(either.adapter.read().frames, "proposal").items()}
    assert opens == {
        "08100122-EF": "2011-03-13T00:00:00.000+00:00",
        "10100601-ST": "2014-10-12T00:00:00.000+00:00",
        "12100409-ST": None,
    }


@pytest.mark.parametrize("first", ["10100601-ST/1.1-N", "10100601-ST/1.2-N"])
def test_a_visit_without_a_date_of_release_keeps_its_proposal_closed(either: Running, first: str) -> None:
    for each in either.system.records["Investigation" if either.adapter.name == "icat" else "investigation"]:
        if f"{each['name']}/{each['visitId']}" == first:
            del each["releaseDate"]
    assert by_id(either.adapter.read().frames, "proposal")["10100601-ST"]["public_at"] is None


def test_every_part_of_a_person_is_told(either: Running) -> None:
    told = teams(either.adapter.read().frames)
    assert {row for row in told if row[0] == "08100122-EF/1.1-P"} == {
        ("08100122-EF/1.1-P", "db/jbotu", "principal-investigator"),
        ("08100122-EF/1.1-P", "db/jbotu", "member"),
        ("08100122-EF/1.1-P", "db/ahau", "local-contact"),
    }
    assert ("10100601-ST/1.1-N", "db/nbour", "principal-investigator") in told


def test_people_have_login_orcid_and_affiliation(either: Running) -> None:
    people = by_id(either.adapter.read().frames, "user")
    assert set(people) == {"db/jbotu", "db/ahau", "db/nbour", "db/rbeck", "db/acord"}
    assert people["db/nbour"]["login"] == "nbour"
    assert people["db/nbour"]["orcid"] == "0000-0002-3266-1234"
    assert people["db/nbour"]["affiliation_id"] == "Université Nancago"
    # of whom only the full name is known
    assert people["db/jbotu"]["family_name"] == "Jean-Baptiste Botul"


def test_names_of_other_authenticators_are_no_logins(either: Running) -> None:
    people = by_id(either.told(logins_of=frozenset({"ldap"})).read().frames, "user")
    assert {row["login"] for row in people.values()} == {None}


def test_roles_are_the_site_s_own(icat: Running) -> None:
    told = teams(icat.told(roles={"experimenter": "principal-investigator"}).read().frames)
    assert ("10100601-ST/1.1-N", "db/rbeck", "principal-investigator") in told
    assert ("10100601-ST/1.1-N", "db/nbour", "member") in told


def test_instruments_have_their_scientists(either: Running) -> None:
    frames = either.adapter.read().frames
    assert frames["instrument_scientist"].select("instrument_id", "user_id").rows() == [("E2", "db/rbeck")]
    assert set(by_id(frames, "instrument")) == {"E2", "HIKE"}


def test_it_loads_as_a_facility_of_its_own(either: Running, engine: Engine, rows: Callable[[str], list[dict[str, Any]]]) -> None:
    report = run(engine, Source(name="icat", adapter=either.adapter.name), either.adapter)
    assert not report.objections and report.rejections.is_empty()
    assert len(rows("experiment_member")) == 8
    parts = {(row["experiment_id"], row["user_id"]): row["role"] for row in rows("experiment_member")}
    assert parts["08100122-EF/1.1-P", "db/jbotu"] == "principal-investigator"


@pytest.mark.parametrize(
    ("match", "given"),
    [("catalogue", Reply(b"", 500)), ("nvestigation", reply([{"id": 1}])), ("nvestigation", Reply(b"[", cut=0))],
    ids=["an error", "another shape", "cut"],
)
def test_the_session_is_ended_also_after_an_error(either: Running, match: str, given: Reply) -> None:
    either.server.fail("COUNT" if match == "catalogue" and either.adapter.name == "icat" else match, given)
    with pytest.raises(SourceError):
        either.adapter.read()
    assert either.system.ended == [SESSION if either.adapter.name == "icat" else recorded("icatplus/session")["sessionId"]]


def test_a_session_that_cannot_be_ended_does_not_undo_what_was_read(either: Running) -> None:
    either.server.fail("DELETE", Reply(b"", 500))
    assert either.adapter.read().frames["experiment"].height == 4


def test_a_session_that_ends_meanwhile_is_told_without_its_name(icat: Running) -> None:
    message = f"Unable to find user by sessionid: {SESSION}"
    icat.server.fail("SELECT e FROM Investigation", reply({"code": "SESSION", "message": message}, 403))
    with pytest.raises(SourceError, match=r"Unable to find user by sessionid: \*\*\*"):
        icat.adapter.read()


def test_credentials_are_in_no_address(either: Running) -> None:
    either.adapter.read()
    login = either.server.asked[0]
    assert login.method == "POST" and login.path.endswith("/session") and not login.query


def test_what_is_added_between_pages_moves_nothing(icat: Running) -> None:
    """Another visit with a small id would move all pages that count rows; ids go on from the last one."""
    answer, investigations = icat.server.answer, icat.system.records["Investigation"]

    def add_then_answer(asked: Any) -> Reply:
        if "e.id > 12 " in str(asked) and len(investigations) == 4:
            investigations.insert(0, {**investigations[0], "id": 1, "visitId": "9.9-P"})
        return answer(asked)

    icat.server.answer = add_then_answer
    assert icat.adapter.read().frames["experiment"].height == 4


def test_the_same_visit_twice_does_not_become_one_team(icat: Running) -> None:
    investigations = icat.system.records["Investigation"]
    investigations.append({**investigations[0], "id": 20})
    with pytest.raises(SourceError, match=r"08100122-EF/1\.1-P came twice"):
        icat.adapter.read()


def hide_people(icat: Running) -> None:
    """As for an account that may count the parts but not read all of them."""
    answer = icat.server.answer

    def leave_out(asked: Any) -> Reply:
        return Reply(answer(asked).body.replace(b'"role": "Experimenter"', b'"note": "x"'))

    icat.server.answer = leave_out


def hide_parts(icat: Running) -> None:
    answer = icat.server.answer

    def leave_out(asked: Any) -> Reply:
        if "SELECT COUNT(e) FROM InvestigationUser" in str(asked):
            return reply([8])
        return answer(asked)

    icat.system.records["Investigation"][1]["investigationUsers"].clear()
    icat.server.answer = leave_out


HALVES = {
    "parts without a role": (hide_people, "KeyError 'role'"),
    "parts are kept back": (hide_parts, "InvestigationUsers came"),
    "a person is kept back": (lambda icat: icat.system.records["Investigation"][2]["investigationUsers"][0].pop("user"), "'user'"),
    "a team is kept back": (lambda icat: icat.system.records["Investigation"][2].update(investigationUsers=None), "TypeError"),
    "fewer than counted": (lambda icat: icat.server.fail("SELECT COUNT(e) FROM Investigation e", reply([7])), "7 were announced"),
    "more than counted": (lambda icat: icat.server.fail("SELECT COUNT(e) FROM Instrument e", reply([0])), "0 were announced"),
}


@pytest.mark.parametrize("half", HALVES)
def test_half_an_answer_is_none(icat: Running, half: str) -> None:
    change, told = HALVES[half]
    change(icat)
    with pytest.raises(SourceError, match=told):
        icat.adapter.read()


def test_a_total_that_the_pages_do_not_reach_stops_icatplus(icatplus: Running) -> None:
    meta = {"page": {"total": 5, "totalPages": 3, "currentPage": 1}}
    rows = [{**row, "meta": meta} for row in recorded("icatplus/investigation")]
    icatplus.server.fail("'skip': '0'", reply(rows[:2]))
    icatplus.server.fail("'skip': '2'", reply(rows[2:]))
    icatplus.server.fail("'skip': '4'", reply([]))
    with pytest.raises(SourceError, match="5 were announced, now 4"):
        icatplus.adapter.read()


def test_a_team_that_is_null_stops_icatplus(icatplus: Running) -> None:
    icatplus.system.records["investigation"][1]["investigationUsers"] = None
    with pytest.raises(SourceError, match="investigationUsers"):
        icatplus.adapter.read()


# --- since a moment


def test_what_changed_since_is_whole_proposals_and_their_teams(icat: Running) -> None:
    extract = icat.adapter.read_since(CHANGES)
    ids = frozenset({"10100601-ST/1.1-N", "10100601-ST/1.2-N", "12100409-ST/1.1-P"})
    assert set(by_id(extract.frames, "experiment")) == ids
    assert extract.scopes["experiment_member"] == Scope("experiment_id", ids)
    assert all(scope is None for table, scope in extract.scopes.items() if table != "experiment_member")
    # not that of the visit alone that changed
    assert by_id(extract.frames, "proposal")["10100601-ST"]["public_at"] == "2014-10-12T00:00:00.000+00:00"


def test_nothing_changed_is_nothing_to_load(icat: Running) -> None:
    assert icat.adapter.read_since(LATER).frames == {}


def test_names_with_quotes_are_asked_for_as_they_are(icat: Running) -> None:
    icat.system.records["Investigation"][3]["name"] = "O'Neill's"
    assert "O'Neill's/1.1-P" in by_id(icat.adapter.read_since(CHANGES).frames, "experiment")


def test_an_account_that_lost_its_rights_ends_no_team(icat: Running) -> None:
    icat.server.fail("InvestigationUser e", reply([0]))
    with pytest.raises(SourceError, match="as for an account without rights"):
        icat.adapter.read_since(CHANGES)


def test_between_whole_runs_only_what_changed_is_read(
    icat: Running, engine: Engine, rows: Callable[[str], list[dict[str, Any]]]
) -> None:
    """Somebody new is in at once, and somebody replaced is out; who left another team goes with the next run of the whole."""
    source = Source(name="icat", adapter="icat", full_every_hours=24)
    assert run(engine, source, icat.adapter).kind == "load"
    investigations = icat.system.records["Investigation"]
    changed = investigations[3]["investigationUsers"]
    newcomer = {**investigations[0]["investigationUsers"][1], "role": "Experimenter", "modTime": "2099-01-01T00:00:00.000+00:00"}
    changed[:] = [newcomer]
    investigations[0]["investigationUsers"].clear()

    def team() -> set[tuple[str, str]]:
        return {(row["experiment_id"][:5], row["user_id"]) for row in rows("experiment_member") if not row["ended_at"]}

    before = team()
    report = run(engine, source, icat.adapter)
    assert (report.kind, report.objections) == ("delta", [])
    assert team() == before - {("12100", "db/acord")} | {("12100", "db/ahau")}
    assert not [row for name in ("user", "experiment", "instrument", "proposal") for row in rows(name) if row["ended_at"]]
    assert run(engine, source.model_copy(update={"full_every_hours": None}), icat.adapter, allow_removals=True).kind == "load"
    assert not [row for row in team() if row[0] == "08100"]
