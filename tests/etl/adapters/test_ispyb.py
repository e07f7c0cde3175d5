"""The adapter for ISPyB, on a real MariaDB whose tables are those of the package `ispyb`, in latin1."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from database_sources import PASSWORD, cells, make_reader, run
from ispyb.sqlalchemy import Base
from live_servers import MariaDB
from sqlalchemy import Engine, Table, create_engine, make_url

from etl.adapters.ispyb import Ispyb
from etl.adapters.sql import Sql
from etl.frames import Frames, SourceError
from etl.load import run as load
from etl.source import Source, open_source

# as bytes: what clients that speak UTF-8 leave in a table that takes it for latin1, and latin1
BYTES = {"'José in UTF-8'": "José".encode(), "'Århus in latin1'": "Århus".encode("latin1")}

ROWS = """
INSERT INTO Laboratory (laboratoryId, name, city, country) VALUES (10, 'Nordhavn', 'Århus in latin1', 'Denmark'),
    (11, NULL, 'Oslo', 'Norway');
INSERT INTO Person (personId, login, givenName, familyName, emailAddress, laboratoryId) VALUES
    (1, 'boaty', 'Boaty', 'McBoatface', 'boaty@diamond.example', 10),
    (2, 'Amity', 'José in UTF-8', 'Müller', NULL, 11),
    (3, 'lech', 'Łukasz', 'Wałęsa', NULL, NULL),
    (4, NULL, 'No', 'Login', NULL, NULL),
    (5, 'staff', 'Staff', 'Member', NULL, NULL);
INSERT INTO Proposal (proposalId, personId, title, proposalCode, proposalNumber, state) VALUES
    (141666, 1, 'I03 commissioning: does it work?', 'cm', '14451', 'Open'), (2, 2, NULL, 'mx', '0042', 'Closed');
INSERT INTO ProposalHasPerson (proposalId, personId, role) VALUES
    (141666, 1, 'Co-Investigator'), (141666, 3, 'Associate'), (141666, 3, 'Associate');
INSERT INTO BLSession (sessionId, proposalId, visit_number, beamLineName, startDate, endDate, externalId, lastUpdate) VALUES
    (55167, 141666, 1, 'i03', '2016-01-01 09:00', '2016-01-01 17:00', NULL, '0000-00-00 00:00:00'),
    (55168, 141666, 2, 'i03', '2016-07-01 09:00', '0000-00-00 00:00:00', NULL, NOW()),
    (55169, 141666, 3, 'i04', '2016-07-01 09:00', NULL, NULL, NOW()),
    (1, 141666, 0, 'i03', '2016-01-01 09:00', '2016-01-01 17:00', UNHEX(LPAD(HEX(23458), 32, '0')), NOW()),
    (2, 2, 0, 'i24', '2016-01-01 09:00', '2016-01-01 17:00', UNHEX('A0EEBC999C0B4EF8BB6D6BB9BD380A11'), NOW()),
    (3, 2, 7, 'i24', NULL, NULL, NULL, NOW()),
    (4, 2, 8, 'i24', '0000-00-00 00:00:00', NULL, NULL, NOW()),
    (5, 2, 9, NULL, '2016-01-01 09:00', NULL, NULL, NOW());
INSERT INTO Session_has_Person (sessionId, personId, role) VALUES
    (55167, 1, 'Co-Investigator'), (55167, 2, 'Principal Investigator'), (55167, 5, 'Local Contact 2'), (55167, 4, 'Data Access'),
    (55168, 1, NULL), (1, 3, 'Team Member'), (3, 3, 'Team Member');
INSERT INTO UserGroup (userGroupId, name) VALUES (1, 'ehc'), (2, 'computing');
INSERT INTO Permission (permissionId, type) VALUES (1, 'mx_admin'), (2, 'saxs_admin'), (3, 'global_stats');
INSERT INTO UserGroup_has_Permission (userGroupId, permissionId) VALUES (1, 1), (1, 2), (2, 3);
INSERT INTO UserGroup_has_Person (userGroupId, personId) VALUES (1, 5), (2, 5), (2, 1)
"""

TABLES = set(re.findall(r"INSERT INTO (\w+)", ROWS))


@pytest.fixture(scope="module")
def owner(mariadb: MariaDB) -> str:
    """A filled database, as the one who may do anything there."""
    url = mariadb.new_database("ispyb", charset="latin1")
    engine = create_engine(url)
    Base.metadata.create_all(engine, tables=list(_with_what_they_refer_to(TABLES)))
    engine.dispose()
    rows = ROWS
    for text, data in BYTES.items():
        rows = rows.replace(text, f"x'{data.hex()}'")
    run(url, *filter(str.strip, rows.split(";\n")))
    return url


def _with_what_they_refer_to(names: set[str]) -> Iterator[Table]:
    """All 200 tables of ISPyB take a while."""
    waiting, seen = set(names), set[str]()
    while waiting:
        table = Base.metadata.tables[waiting.pop()]
        seen.add(table.name)
        waiting |= {key.column.table.name for key in table.foreign_keys} - seen
        yield table


@pytest.fixture(scope="module")
def settings(owner: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Those of a source that reads it with the account that the documentation asks for."""
    file = tmp_path_factory.mktemp("ispyb") / "ispyb.password"
    file.write_text(PASSWORD)
    return {"url": make_reader("ispyb", owner), "password_file": file}


@pytest.fixture(scope="module")
def frames(settings: dict[str, Any]) -> Frames:
    return Ispyb(**settings).read().frames


def test_the_account_of_the_documentation_may_do_nothing_else(settings: dict[str, Any]) -> None:
    url = make_url(settings["url"]).set(password=PASSWORD).render_as_string(hide_password=False)
    for statement in (
        "SELECT phoneNumber FROM Person",
        "SELECT * FROM BLSample",
        "UPDATE Person SET login = 'me'",
        "DELETE FROM BLSession",
    ):
        with pytest.raises(Exception, match="denied"):
            run(url, statement)


def test_visits_are_experiments_and_placeholders_are_none(frames: Frames) -> None:
    assert cells(frames["experiment"], "id", "proposal_id", "instrument_id", "starts_at", "ends_at") == [
        ("cm14451-1", "cm14451", "i03", "2016-01-01 09:00:00", "2016-01-01 17:00:00"),
        ("cm14451-2", "cm14451", "i03", "2016-07-01 09:00:00", "0000-00-00 00:00:00"),
        ("cm14451-3", "cm14451", "i04", "2016-07-01 09:00:00", None),
    ]
    assert cells(frames["instrument"], "id", "name") == [("i03", "i03"), ("i04", "i04")]
    assert cells(frames["proposal"], "id", "title") == [("cm14451", "I03 commissioning: does it work?"), ("mx0042", "mx0042")]


def test_parts_in_a_visit(frames: Frames) -> None:
    assert cells(frames["experiment_member"], "experiment_id", "user_id", "role") == [
        ("cm14451-1", "1", "member"),
        ("cm14451-1", "2", "principal-investigator"),
        ("cm14451-1", "4", "member"),
        ("cm14451-1", "5", "local-contact"),
        ("cm14451-2", "1", "member"),
    ]


def test_names_are_as_they_were_meant_or_not_given(frames: Frames) -> None:
    assert cells(frames["user"], "id", "login", "given_name", "family_name") == [
        ("1", "boaty", "Boaty", "McBoatface"),
        # UTF-8 in a table of latin1, and latin1
        ("2", "amity", "José", "Müller"),
        # the letters were lost when they were written
        ("3", "lech", None, "lech"),
        ("4", None, "No", "Login"),
        ("5", "staff", "Staff", "Member"),
    ]


def test_a_laboratory_without_a_name_is_nobodys(frames: Frames) -> None:
    assert cells(frames["affiliation"], "id", "name", "town", "country") == [("10", "Nordhavn", "Århus", "Denmark")]
    assert cells(frames["user"], "id", "affiliation_id")[:2] == [("1", "10"), ("2", None)]


def test_people_of_a_proposal_are_in_all_its_visits_where_that_is_wanted(settings: dict[str, Any]) -> None:
    frame = Ispyb(**settings, proposal_persons=True).read().frames["experiment_member"]
    third = [row for row in cells(frame, "experiment_id", "user_id", "role") if row[0] == "cm14451-3"]
    # the proposal's own person, and twice somebody who is twice on it
    assert sorted(set(third)) == [
        ("cm14451-3", "1", "member"),
        ("cm14451-3", "1", "principal-investigator"),
        ("cm14451-3", "3", "member"),
    ]


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        ({}, []),
        ({"mx_admin": "instrument-control"}, [("5", "instrument-control")]),
        (
            {"computing": "it-support", "global_stats": "staff"},
            [("1", "it-support"), ("1", "staff"), ("5", "it-support"), ("5", "staff")],
        ),
        ({"nobody's": "admin"}, []),
    ],
    ids=["none", "a permission", "a group and a permission", "unknown"],
)
def test_groups_and_permissions_become_the_roles_that_the_site_says(
    settings: dict[str, Any], roles: dict[str, str], expected: list[tuple[str, str]]
) -> None:
    assert cells(Ispyb(**settings, roles=roles).read().frames["user_role"], "user_id", "role") == expected


def test_visits_by_the_id_of_the_user_portal(settings: dict[str, Any]) -> None:
    """A number as portals write it, and a UUID."""
    frames = Ispyb(**settings, visits="externalId").read().frames
    assert cells(frames["experiment"], "id", "instrument_id") == [
        ("cm14451-23458", "i03"),
        ("mx0042-a0eebc999c0b4ef8bb6d6bb9bd380a11", "i24"),
    ]
    assert cells(frames["experiment_member"], "experiment_id", "user_id") == [("cm14451-23458", "3")]


def test_visits_by_the_key_of_the_older_user_portal(settings: dict[str, Any], owner: str) -> None:
    with pytest.raises(SourceError, match="expSessionPk"):
        Ispyb(**settings, visits="expSessionPk").read()
    run(owner, "ALTER TABLE BLSession ADD expSessionPk INT", "UPDATE BLSession SET expSessionPk = 84291 WHERE sessionId = 1")
    assert cells(Ispyb(**settings, visits="expSessionPk").read().frames["experiment"], "id") == [("cm14451-84291",)]


def test_a_load_from_the_file_of_the_source_to_the_records(
    settings: dict[str, Any], engine: Engine, rows: Callable[[str], list[dict[str, Any]]], tmp_path: Path
) -> None:
    (tmp_path / "ispyb.password").write_text(PASSWORD)
    (tmp_path / "ispyb.toml").write_text(
        f"""
        adapter = "ispyb"
        time_zone = "Europe/London"
        [settings]
        url = "{settings["url"]}"
        password_file = "ispyb.password"
        [settings.roles]
        mx_admin = "instrument-control"
        """
    )
    report = load(engine, *open_source(tmp_path, "ispyb"))
    assert report.objections == []
    # the one who cannot sign on
    assert report.rejections.select("record", "field", "skipped").rows() == [
        ("user", "login", True),
        ("experiment_member", "user_id", True),
    ]
    visits = {row["id"]: (str(row["starts_at"]), str(row["ends_at"])) for row in rows("experiment")}
    # winter and summer
    assert visits == {
        "cm14451-1": ("2016-01-01 09:00:00+00:00", "2016-01-01 17:00:00+00:00"),
        "cm14451-2": ("2016-07-01 08:00:00+00:00", "None"),
        "cm14451-3": ("2016-07-01 08:00:00+00:00", "None"),
    }
    assert [(row["login"], row["family_name"]) for row in rows("user")] == [
        ("boaty", "McBoatface"),
        ("amity", "Müller"),
        ("lech", "lech"),
        ("staff", "Member"),
    ]
    assert [(row["user_id"], row["role"]) for row in rows("user_role")] == [("5", "instrument-control")]
    again = load(engine, *open_source(tmp_path, "ispyb"))
    assert {counts[what] for counts in again.counts.values() for what in ("added", "changed", "ended", "rejected")} == {0}


def test_who_leaves_a_team_is_no_member_after_the_next_run(
    settings: dict[str, Any], owner: str, engine: Engine, rows: Callable[[str], list[dict[str, Any]]]
) -> None:
    source = Source(name="ispyb", adapter="ispyb")
    load(engine, source, Ispyb(**settings))
    run(owner, "DELETE FROM Session_has_Person WHERE sessionId = 55168 AND personId = 1")
    try:
        load(engine, source, Ispyb(**settings))
    finally:
        run(owner, "INSERT INTO Session_has_Person (sessionId, personId) VALUES (55168, 1)")
    assert [(row["experiment_id"], row["user_id"]) for row in rows("experiment_member") if row["ended_at"]] == [("cm14451-2", "1")]


def test_people_of_another_source_are_found_by_their_login(
    settings: dict[str, Any], engine: Engine, rows: Callable[[str], list[dict[str, Any]]], tmp_path: Path
) -> None:
    office = f"sqlite:///{tmp_path}/office.sqlite"
    people = "SELECT 'U7' AS id, 'boaty' AS login, 'McBoatface' AS family_name UNION SELECT 'U8', 'zoe', 'Zimmer'"
    load(engine, Source(name="office", adapter="sql"), Sql(url=office, queries={"user": people}))
    report = load(engine, Source(name="ispyb", adapter="ispyb", users="link"), Ispyb(**settings))
    assert report.objections == []
    assert [row["login"] for row in rows("user")] == ["boaty", "zoe"]
    assert [(row["experiment_id"], row["user_id"]) for row in rows("experiment_member")] == [
        ("cm14451-1", "U7"),
        ("cm14451-2", "U7"),
    ]
    # the other three, with the reason
    left_out = report.rejections.filter(record="experiment_member")
    assert (left_out.height, left_out["skipped"].all(), left_out["reason"].null_count()) == (3, True, 0)


def test_a_run_that_finds_the_server_down_changes_nothing(
    settings: dict[str, Any], engine: Engine, everything: Callable[[], dict[str, Any]], tmp_path: Path
) -> None:
    down = make_url(settings["url"]).set(port=1).render_as_string()
    (tmp_path / "ispyb.toml").write_text(f'adapter = "ispyb"\n[settings]\nurl = "{down}"\n')
    before = everything()
    with pytest.raises(SourceError, match=r"ispyb at 127\.0\.0\.1: .*refused"):
        load(engine, *open_source(tmp_path, "ispyb"))
    assert everything() == before
