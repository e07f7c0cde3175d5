"""The adapter for an existing VISA, on a real PostgreSQL with those tables of VISA 3.8 that it reads, and what is near them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from database_sources import PASSWORD, cells, make_reader, run
from live_servers import PostgreSQL
from sqlalchemy import Engine, make_url

from etl.adapters.visa import Visa
from etl.frames import Frames, SourceError
from etl.load import run as load
from etl.source import open_source

TABLES = """
CREATE TABLE employer (id bigint PRIMARY KEY, name varchar(200), town varchar(100), country_code varchar(10));
CREATE TABLE users (id {user} PRIMARY KEY, first_name varchar(100), last_name varchar(100) NOT NULL, email varchar(100),
                    affiliation_id bigint REFERENCES employer, instance_quota int NOT NULL,
                    activated_at timestamp, last_seen_at timestamp);
CREATE TABLE role (id bigint PRIMARY KEY, name varchar(100) UNIQUE NOT NULL, description varchar(250),
                   group_created_at timestamp, group_deleted_at timestamp);
CREATE TABLE user_role (user_id {user} REFERENCES users, role_id bigint REFERENCES role, expires_at timestamp,
                        PRIMARY KEY (user_id, role_id));
CREATE TABLE instrument (id bigint PRIMARY KEY, name varchar(250) NOT NULL);
CREATE TABLE instrument_scientist (instrument_id bigint REFERENCES instrument, user_id {user} REFERENCES users);
CREATE TABLE proposal (id bigint PRIMARY KEY, identifier varchar(100) NOT NULL, title varchar(2000), summary varchar(5000),
                       public_at timestamp, url varchar(2000), doi varchar(2000));
CREATE TABLE experiment (id varchar(32) PRIMARY KEY, instrument_id bigint NOT NULL REFERENCES instrument,
                         proposal_id bigint NOT NULL REFERENCES proposal, title varchar(2000), url varchar(2000), doi varchar(2000),
                         start_date timestamp, end_date timestamp);
CREATE TABLE experiment_user (experiment_id varchar(32) REFERENCES experiment, user_id {user} REFERENCES users);
CREATE TABLE image (id bigint PRIMARY KEY, name varchar(250) NOT NULL, version varchar(100), description varchar(2500),
                    icon varchar(100), compute_id varchar(250) NOT NULL, visible boolean NOT NULL, deleted boolean NOT NULL,
                    boot_command text, cloud_provider_configuration_id bigint);
CREATE TABLE flavour (id bigint PRIMARY KEY, name varchar(250) NOT NULL, memory int NOT NULL, cpu real NOT NULL,
                      compute_id varchar(250) NOT NULL, deleted boolean NOT NULL, cloud_provider_configuration_id bigint);
CREATE TABLE flavour_limit (id bigint PRIMARY KEY, flavour_id bigint NOT NULL REFERENCES flavour, object_id bigint NOT NULL,
                            object_type varchar(255) NOT NULL);
CREATE TABLE flavour_role_lifetime (id bigint PRIMARY KEY, flavour_id bigint NOT NULL REFERENCES flavour,
                                    role_id bigint REFERENCES role, duration_minutes bigint NOT NULL, UNIQUE (flavour_id, role_id));
CREATE TABLE plan (id bigint PRIMARY KEY, image_id bigint REFERENCES image, flavour_id bigint REFERENCES flavour,
                   preset boolean NOT NULL, deleted_at timestamp);
CREATE TABLE cloud_provider_configuration_parameter (id bigint PRIMARY KEY, key varchar(256), value varchar(8192));
CREATE TABLE instance (id bigint PRIMARY KEY, username varchar(100));
CREATE TABLE instance_member (instance_id bigint REFERENCES instance, user_id {user} REFERENCES users, role varchar(50))
"""

ROWS = """
INSERT INTO employer VALUES (0, 'Unknown', NULL, NULL), (7, 'Universität Wien', 'Wien', 'AT'), (8, NULL, 'Oslo', 'NO');
INSERT INTO users (id, first_name, last_name, email, affiliation_id, instance_quota) VALUES
    ('0', NULL, 'Invalid', NULL, 0, 0), ('101', 'Ann', 'Lindqvist', 'ann.l@uni.example', 7, 2),
    ('102', NULL, 'Okafor', 'bob@ill.example', 0, -1), ('103', 'Cid', 'Weaver', 'cid@ill.example', 8, 5);
INSERT INTO role (id, name, group_created_at, group_deleted_at) VALUES
    (1, 'ADMIN', NULL, NULL), (2, 'STAFF', NULL, NULL), (3, 'INSTRUMENT_CONTROL', NULL, NULL), (4, 'GUEST', NULL, NULL),
    (5, 'School 2026', '2026-01-01', NULL), (6, 'School 2020', '2020-01-01', '2020-12-31'), (7, 'GPU_USERS', NULL, NULL);
INSERT INTO user_role VALUES
    ('102', 1, NULL), ('102', 2, NULL), ('103', 3, '2020-02-01 12:00'), ('101', 4, '2030-07-01 12:00'),
    ('101', 5, '2030-01-01 12:00'), ('101', 6, NULL), ('103', 7, NULL), ('0', 4, NULL);
INSERT INTO instrument VALUES (4, 'D22'), (5, 'IN5');
INSERT INTO instrument_scientist VALUES (4, '103'), (4, '0');
INSERT INTO proposal VALUES
    (9001, '9-10-1', 'Cracks in cathodes', 'In short', '2029-07-01', 'https://user.example/9-10-1', '10.5291/ILL-DATA.9-10-1'),
    (9002, 'TEST-1', NULL, NULL, NULL, NULL, NULL);
INSERT INTO experiment VALUES
    ('e1', 4, 9001, 'Day one', 'https://user.example/e1', '10.5291/e1', '2026-07-01 08:00', '2026-07-03 08:00'),
    ('e2', 5, 9001, NULL, NULL, NULL, '2026-01-01 08:00', NULL), ('e3', 5, 9002, NULL, NULL, NULL, NULL, NULL);
INSERT INTO experiment_user VALUES ('e1', '101'), ('e1', '102'), ('e1', '0'), ('e2', '101'), ('e3', '103');
INSERT INTO image (id, name, version, description, compute_id, visible, deleted, cloud_provider_configuration_id) VALUES
    (1, 'Analysis', '2.1', 'For all', 'img-1', true, false, NULL), (2, 'Hidden', NULL, NULL, 'img-2', false, false, NULL),
    (3, 'Old', NULL, NULL, 'img-3', true, true, NULL), (4, 'Elsewhere', NULL, NULL, 'img-4', true, false, 3),
    (5, 'Default', NULL, NULL, 'img-5', true, false, -1);
INSERT INTO flavour VALUES
    (1, 'Small', 4096, 1.5, 'flv-1', false, NULL), (2, 'Large', 65536, 16, 'flv-2', false, NULL),
    (3, 'Old', 1024, 1, 'flv-3', true, NULL), (4, 'Elsewhere', 1024, 1, 'flv-4', false, 3),
    (5, 'Lost', 1024, 1, 'flv-5', false, NULL);
INSERT INTO flavour_limit VALUES
    (1, 2, 4, 'INSTRUMENT'), (2, 2, 2, 'ROLE'), (3, 2, 5, 'ROLE'), (4, 2, 7, 'ROLE'), (5, 2, 6, 'ROLE'),
    (6, 5, 77, 'INSTRUMENT'), (7, 5, 99, 'ROLE');
INSERT INTO flavour_role_lifetime VALUES
    (1, 2, NULL, 20160), (2, 2, NULL, 1440), (3, 2, 2, 86400), (4, 2, 3, 720), (5, 2, 5, 525600), (6, 1, 5, 525600);
INSERT INTO plan VALUES
    (1, 1, 1, true, NULL), (2, 1, 2, false, NULL), (3, 1, 2, false, '2025-01-01'), (4, 2, 1, false, NULL), (5, 3, 1, false, NULL),
    (6, 1, 3, false, NULL), (7, 4, 4, false, NULL), (8, 4, 1, false, NULL), (9, 1, 5, false, NULL), (10, 5, 1, false, NULL);
INSERT INTO instance VALUES (1, 'old'), (2, 'lindqvist'), (3, 'okafor');
INSERT INTO instance_member VALUES (1, '101', 'OWNER'), (2, '101', 'OWNER'), (3, '102', 'OWNER'), (3, '101', 'USER')
"""

LOGIN_OF_LAST_INSTANCE = (
    "(SELECT i.username FROM instance i JOIN instance_member m ON m.instance_id = i.id"
    " WHERE m.user_id = u.id AND m.role = 'OWNER' ORDER BY i.id DESC LIMIT 1)"
)


@pytest.fixture(scope="module", params=["varchar(250)", "int"], ids=["ids are text", "ids are numbers"])
def owner(request: pytest.FixtureRequest, postgresql: PostgreSQL) -> Iterator[str]:
    """A filled database, as the one who may do anything there."""
    url = postgresql.new_database()
    run(url, *TABLES.replace("{user}", request.param).split(";"), *ROWS.split(";\n"))
    yield url
    run(url, f"DROP OWNED BY {_account(url)}", f"DROP ROLE {_account(url)}")
    postgresql.drop_database(url)


def _account(url: str) -> str:
    return f"reader_{make_url(url).database}"


@pytest.fixture(scope="module")
def reader(owner: str) -> str:
    """The account that the documentation asks for."""
    return make_reader("visa", owner, _account(owner))


@pytest.fixture(scope="module")
def frames(reader: str) -> Frames:
    return Visa(url=reader, login="split_part(u.email, '@', 1)").read().frames


def test_the_account_of_the_documentation_may_do_nothing_else(reader: str) -> None:
    for statement in (
        "SELECT boot_command FROM image",
        "SELECT value FROM cloud_provider_configuration_parameter",
        "SELECT * FROM instance",
        "DELETE FROM users",
    ):
        with pytest.raises(Exception, match="permission denied"):
            run(reader, statement)


def test_people_with_their_quota_and_without_the_invalid_account(frames: Frames) -> None:
    columns = "id", "login", "given_name", "family_name", "affiliation_id", "instances_allotted"
    assert cells(frames["user"], *columns) == [
        ("101", "ann.l", "Ann", "Lindqvist", "7", "2"),
        ("102", "bob", None, "Okafor", None, "-1"),
        ("103", "cid", "Cid", "Weaver", None, "5"),
    ]
    assert cells(frames["affiliation"], "id", "name", "town", "country") == [("7", "Universität Wien", "Wien", "AT")]


@pytest.mark.parametrize(
    ("login", "expected"),
    [
        ("u.id", ["101", "102", "103"]),
        ("lower(u.last_name::text)", ["lindqvist", "okafor", "weaver"]),
        (LOGIN_OF_LAST_INSTANCE, ["lindqvist", "okafor", None]),
    ],
    ids=["the id", "an expression", "the last instance"],
)
def test_what_people_are_called_at_the_sign_on(owner: str, login: str, expected: list[str | None]) -> None:
    frame = Visa(url=owner, login=login).read().frames["user"]
    assert [row[1] for row in cells(frame, "id", "login")] == expected


def test_experiments_with_both_dates_and_their_teams(frames: Frames) -> None:
    assert cells(frames["experiment"], "id", "proposal_id", "instrument_id", "title", "url", "doi", "starts_at", "ends_at") == [
        ("e1", "9-10-1", "4", "Day one", "https://user.example/e1", "10.5291/e1", "2026-07-01 08:00:00", "2026-07-03 08:00:00")
    ]
    assert cells(frames["experiment_member"], "experiment_id", "user_id") == [("e1", "101"), ("e1", "102")]
    assert cells(frames["instrument"], "id", "name") == [("4", "D22"), ("5", "IN5")]
    assert cells(frames["instrument_scientist"], "instrument_id", "user_id") == [("4", "103")]


def test_proposals_with_the_end_of_their_embargo(frames: Frames) -> None:
    assert cells(frames["proposal"], "id", "title", "summary", "url", "doi", "public_at") == [
        (
            "9-10-1",
            "Cracks in cathodes",
            "In short",
            "https://user.example/9-10-1",
            "10.5291/ILL-DATA.9-10-1",
            "2029-07-01 00:00:00",
        ),
        ("TEST-1", "TEST-1", None, None, None, None),
    ]


def test_roles_and_groups_with_their_ends(frames: Frames) -> None:
    assert cells(frames["user_role"], "user_id", "role", "expires_at") == [
        ("101", "guest", "2030-07-01 12:00:00"),
        ("102", "admin", None),
        ("102", "staff", None),
        # over: it is handed on with its end
        ("103", "instrument-control", "2020-02-01 12:00:00"),
    ]
    assert cells(frames["user_group"], "user_id", "group", "expires_at") == [
        ("101", "School 2026", "2030-01-01 12:00:00"),
        ("103", "GPU_USERS", None),
    ]


def test_plans_that_can_be_picked(frames: Frames) -> None:
    columns = "id", "name", "description", "image", "flavor", "cores", "memory_mb", "position"
    assert cells(frames["plan"], *columns) == [
        ("1", "Analysis 2.1, Small", "For all", "img-1", "flv-1", "2", "4096", "0"),
        ("10", "Default, Small", None, "img-5", "flv-1", "2", "4096", "100"),
        ("2", "Analysis 2.1, Large", "For all", "img-1", "flv-2", "16", "65536", "100"),
        ("9", "Analysis 2.1, Lost", "For all", "img-1", "flv-5", "1", "1024", "100"),
    ]


def test_plans_of_another_cloud(reader: str) -> None:
    """An image of one cloud with a flavour of another is of none."""
    assert cells(Visa(url=reader, cloud=3).read().frames["plan"], "id", "image", "flavor") == [("7", "img-4", "flv-4")]


def test_each_limit_is_an_entry_and_none_is_lost(frames: Frames) -> None:
    limits = {plan: json.loads(said or "[]") for plan, said in cells(frames["plan"], "id", "limits")}
    assert limits["1"] == limits["10"] == []
    assert limits["2"] == [
        {"instruments": ["4"]},
        {"roles": ["staff"]},
        {"groups": ["School 2026"]},
        {"groups": ["GPU_USERS"]},
        # deleted: nobody is in it
        {"groups": ["School 2020"]},
    ]
    # what these limits named is gone; the plan must not become everybody's
    assert limits["9"] == [{"groups": ["instrument 77"]}, {"groups": ["role 99"]}]


def test_lifetimes_in_days_by_role_the_longest_where_two_are_given(frames: Frames) -> None:
    lifetimes = {plan: json.loads(said or "{}") for plan, said in cells(frames["plan"], "id", "lifetimes")}
    assert lifetimes["2"] == {"": 14, "staff": 60, "instrument-control": 0.5}
    assert lifetimes["1"] == {}


def test_a_load_from_the_file_of_the_source_to_the_records(
    reader: str, engine: Engine, rows: Callable[[str], list[dict[str, Any]]], tmp_path: Path
) -> None:
    (tmp_path / "visa.password").write_text(PASSWORD)
    (tmp_path / "visa.toml").write_text(
        f"""
        adapter = "visa"
        time_zone = "Europe/Paris"
        [settings]
        url = "{reader}"
        password_file = "visa.password"
        login = "split_part(u.email, '@', 1)"
        """
    )
    report = load(engine, *open_source(tmp_path, "visa"))
    assert (report.objections, report.rejections.rows()) == ([], [])
    assert [(row["login"], row["instances_allotted"], row["instance_quota"]) for row in rows("user")] == [
        ("ann.l", 2, None),
        ("bob", -1, None),
        ("cid", 5, None),
    ]
    assert [str(row["starts_at"]) for row in rows("experiment")] == ["2026-07-01 06:00:00+00:00"]
    assert [str(row["public_at"]) for row in rows("proposal")] == ["2029-06-30 22:00:00+00:00", "None"]
    plans = {row["id"]: row for row in rows("plan")}
    assert plans["2"]["lifetimes"] == {"": 14, "staff": 60, "instrument-control": 0.5}
    assert {"roles": ["staff"]} in plans["2"]["limits"]
    assert len(plans["9"]["limits"]) == 2
    assert len(rows("user_group")) == 2
    again = load(engine, *open_source(tmp_path, "visa"))
    assert {counts[what] for counts in again.counts.values() for what in ("added", "changed", "ended", "rejected")} == {0}


def test_a_table_that_this_version_of_visa_does_not_have_fails_the_whole(
    owner: str, engine: Engine, everything: Callable[[], dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "visa.toml").write_text(f'adapter = "visa"\n[settings]\nurl = "{owner}"\n')
    run(owner, "ALTER TABLE flavour_role_lifetime RENAME TO gone")
    before = everything()
    try:
        with pytest.raises(SourceError, match='visa: query plan: relation "flavour_role_lifetime" does not exist'):
            load(engine, *open_source(tmp_path, "visa"))
    finally:
        run(owner, "ALTER TABLE gone RENAME TO flavour_role_lifetime")
    assert everything() == before
