"""SciCat: a period of measurement is an experiment, people are known by e-mail alone, and nothing public passes for everything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from source_server import Reply, reply
from source_systems import Running, running_system

from etl.frames import SourceError


@pytest.fixture
def scicat(tmp_path: Path) -> Iterator[Running]:
    with running_system("scicat", tmp_path) as found:
        yield found


def test_each_period_is_an_experiment_on_its_instrument(scicat: Running) -> None:
    frames = scicat.adapter.read().frames
    told = frames["experiment"].select("id", "proposal_id", "instrument_id", "starts_at").rows()
    # by its unique name, its name or its pid
    assert told == [
        ("20170266#0", "20170266", "ESS1-1", "2026-07-24T13:56:30.000Z"),
        ("20180001#0", "20180001", "ESS1-1", "2026-08-24T13:56:30.000Z"),
        ("20180001#1", "20180001", "ESS1-1", "2026-09-24T13:56:30.000Z"),
    ]
    assert frames["proposal"]["id"].to_list() == ["20170266", "20180001", "20190001"]


def test_only_investigator_and_proposer_are_known_and_only_by_address(scicat: Running) -> None:
    frames = scicat.adapter.read().frames
    told = frames["experiment_member"].filter(experiment_id="20180001#1").select("user_id", "role").rows()
    assert told == [("pi@uni.edu", "principal-investigator"), ("other@uni.edu", "member")]
    people = {row["id"]: row for row in frames["user"].rows(named=True)}
    assert people["pi@uni.edu"]["email"] == "pi@uni.edu"
    assert set(people) == {"pi@uni.edu", "proposer@uni.edu", "other@uni.edu"}
    assert "login" not in frames["user"].columns


def test_a_login_that_lapses_is_not_a_facility_of_what_is_public(scicat: Running) -> None:
    for proposal in scicat.system.records["proposals"]:
        proposal["isPublished"] = True
    scicat.system.lapsed = True
    with pytest.raises(SourceError, match=r"/users/my/self: answered 403"):
        scicat.adapter.read()


def test_the_password_is_sent_once_and_the_token_in_no_address(scicat: Running) -> None:
    scicat.adapter.read()
    token = scicat.system.records["login"]["access_token"]
    assert not [asked for asked in scicat.server.asked[1:] if token in asked.path or token in str(asked.query)]


def test_a_login_without_a_token_is_told(scicat: Running) -> None:
    scicat.server.fail("/auth/login", reply({"message": "ok"}))
    with pytest.raises(SourceError, match="an answer is not what was expected: KeyError 'access_token'"):
        scicat.adapter.read()


@pytest.mark.parametrize(
    "given", [reply({"count": 4}), reply({"count": 2}), reply({"count": None}), Reply(b"[]")], ids=["more", "fewer", "null", "list"]
)
def test_a_number_that_is_not_that_of_the_proposals_stops_the_reading(scicat: Running, given: Reply) -> None:
    scicat.server.fail("/proposals/count", given)
    with pytest.raises(SourceError):
        scicat.adapter.read()


def test_a_proposal_that_comes_twice_stops_the_reading(scicat: Running) -> None:
    proposals = scicat.system.records["proposals"]
    proposals.append(proposals[0])
    with pytest.raises(SourceError, match="different ones"):
        scicat.adapter.read()
