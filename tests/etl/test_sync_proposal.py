"""The body that user portals send to ISPyB, as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import httpx
import pytest
from etl_service import EtlService
from sqlalchemy import insert

from hub.database.tables import Instrument

BODY: dict[str, Any] = {
    "proposal": {
        "title": "Proposal title",
        "proposalCode": "I",
        "proposalNumber": "20140076",
        "proposalType": "MX",
        "externalId": 20140076,
        "persons": [
            {
                "givenName": "Amity",
                "familyName": "Weaver",
                "externalId": 157,
                "login": "aewaver",
                "emailAddress": "amity@facility.example",
                "phoneNumber": "1",
                "laboratory": {"name": "DESY", "city": "HAMBURG", "country": "DE", "address": "Notkestr.", "laboratoryExtPk": 1},
            },
            {"givenName": "Ngozi", "familyName": "Okafor", "externalId": 158, "login": "nokafor"},
        ],
        "labcontacts": [{"cardName": "card", "person": {"givenName": "Lab"}}],
    },
    "sessions": [
        {
            "externalId": 23458,
            "startDate": "2022-05-20T14:09:20.340Z",
            "endDate": "2022-05-21T14:09:20.340Z",
            "beamLineName": "P11",
            "scheduled": 1,
            "beamLineOperator": "Kaye Wiley",
            "visit_number": 0,
            "persons": [
                {
                    "login": "sgross",
                    "externalId": 160,
                    "givenName": "Saim",
                    "familyName": "Gross",
                    "session_options": {"role": "Local Contact", "remote": 0},
                }
            ],
        },
        {"expSessionPk": 23459, "startDate": "2022-06-20T14:00:00Z", "endDate": None, "beamLineName": "P11"},
    ],
    "proteins": [{"acronym": "lys"}],
}
FIRST, SECOND = "I20140076-23458", "I20140076-23459"
Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def portal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtlService]:
    service = EtlService(tmp_path_factory.mktemp("portal"))
    service.source("portal")
    with service.running():
        yield service


@pytest.fixture(scope="module")
def send(portal: EtlService) -> Callable[..., httpx.Response]:
    """Sends the body with one change."""
    token = portal.hutch("etl", "token", "portal")

    def send(change: Change = lambda body: None, path: str = "/v1/ispyb/portal/sync_proposal") -> httpx.Response:
        body = deepcopy(BODY)
        change(body)
        with portal.client(token=token) as client:
            return client.post(path, json=body)

    return send


def test_a_proposal_with_its_sessions_and_teams_is_taken_as_it_is(send, portal):
    answer = send(path="/v1/ispyb/portal/ispyb/api/v1/webservices/userportalsync/sync_proposal")
    assert (answer.status_code, answer.json()["rejections"]) == (200, [])
    assert portal.team(FIRST) == {"157": "principal-investigator", "158": "member", "160": "local-contact"}
    assert portal.team(SECOND) == {"157": "principal-investigator", "158": "member"}
    first, second = portal.rows("experiment")
    assert (first["instrument_id"], first["starts_at"].isoformat()) == ("P11", "2022-05-20T14:09:20.340000+00:00")
    assert second["ends_at"] is None
    users = {row["id"]: (row["login"], row["affiliation_id"]) for row in portal.rows("user")}
    assert users == {"157": ("aewaver", "1"), "158": ("nokafor", None), "160": ("sgross", None)}


def test_again_it_changes_nothing(send):
    send()
    counts = send().json()["counts"]
    assert {table: changes["added"] + changes["changed"] + changes["ended"] for table, changes in counts.items()} == dict.fromkeys(
        counts, 0
    )


def test_whoever_is_no_longer_named_is_no_member(send, portal):
    send()
    assert send(lambda body: body["proposal"]["persons"].pop()).status_code == 200
    assert portal.team(FIRST) == {"157": "principal-investigator", "160": "local-contact"}


def test_a_session_that_is_no_longer_named_ends_with_its_team(send, portal):
    send()
    assert send(lambda body: body["sessions"].pop()).json()["counts"]["experiment"]["ended"] == 1
    assert portal.team(SECOND) == {}
    assert portal.team(FIRST)


def test_another_proposal_takes_nothing_from_this_one(send, portal):
    send()
    other = {"proposalNumber": "999", "persons": [{"login": "sgross", "externalId": 160}]}
    answer = send(lambda body: (body["proposal"].update(other), body.update(sessions=[])))
    assert answer.status_code == 200
    assert portal.team(FIRST) == {"157": "principal-investigator", "158": "member", "160": "local-contact"}


def test_what_is_left_out_of_a_person_stays(send, portal):
    send()
    known_by_login = {"login": "aewaver"}
    assert send(lambda body: body["proposal"]["persons"].__setitem__(0, known_by_login)).json()["rejections"] == []
    amity = next(row for row in portal.rows("user") if row["id"] == "157")
    assert (amity["family_name"], amity["email"], amity["affiliation_id"]) == ("Weaver", "amity@facility.example", "1")
    assert portal.team(FIRST)["157"] == "principal-investigator"


def test_an_instrument_of_another_source_is_used_as_it_is(send, portal):
    with portal.engine.begin() as connection:
        connection.execute(insert(Instrument).values(id="P12", name="of the beamline database", source="other"))
    answer = send(lambda body: body["sessions"][0].update(beamLineName="P12"))
    assert (answer.status_code, answer.json()["rejections"]) == (200, [])
    assert [row["name"] for row in portal.rows("instrument") if row["id"] == "P12"] == ["of the beamline database"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(lambda body: body["proposal"].update(persons=[]), "proposal.persons", id="nobody"),
        pytest.param(lambda body: body["proposal"].update(persons=None), "proposal.persons", id="null-persons"),
        pytest.param(
            lambda body: body["proposal"]["persons"][0].update(login=None, externalId=None), "login or externalId", id="person"
        ),
        pytest.param(lambda body: body["sessions"][0].update(externalId=None), "externalId or expSessionPk", id="session"),
        pytest.param(lambda body: body.update(sessions=None), "sessions", id="null-sessions"),
        pytest.param(lambda body: body.pop("sessions"), "sessions", id="no-sessions"),
        pytest.param(lambda body: body["proposal"].pop("proposalNumber"), "proposalNumber", id="no-number"),
    ],
)
def test_half_a_body_changes_nothing(send, portal, change, said):
    send()
    runs = len(portal.runs("portal"))
    answer = send(change)
    assert answer.status_code == 422
    assert said in answer.text
    assert len(portal.runs("portal")) == runs
