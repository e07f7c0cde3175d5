"""The adapter over any database, on a real PostgreSQL and a real MariaDB."""

from __future__ import annotations

import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from database_sources import PASSWORD, cells, make_reader, run
from live_servers import MariaDB, PostgreSQL
from running_hub import PATIENCE_SECONDS
from sqlalchemy import Engine, create_engine, event, make_url

from etl.adapters.sql import ROWS_AT_ONCE, Sql
from etl.frames import SourceError

OFFICE = """
CREATE TABLE people (number INT PRIMARY KEY, account VARCHAR(30), first_name VARCHAR(60), last_name VARCHAR(60),
                     email VARCHAR(60), orcid VARCHAR(19));
CREATE TABLE beamlines (code VARCHAR(10) PRIMARY KEY, name VARCHAR(60));
CREATE TABLE teams (visit VARCHAR(10), person INT, pi BOOLEAN, since TIMESTAMP NULL, until DATE);
INSERT INTO people VALUES (1, 'ann', 'Ann', 'Lindqvist', 'ann@uni.example', '0000-0002-1825-0097'),
                          (2, 'bob', 'Bób', 'Wałęsa', NULL, NULL), (3, NULL, 'No', 'Account', NULL, NULL);
INSERT INTO beamlines VALUES ('b1', 'Balder: a beamline'), ('d2', 'DanMAX');
INSERT INTO teams VALUES ('P1-1', 1, TRUE, '2026-03-01 08:00:00', '2026-03-04'), ('P1-1', 2, FALSE, NULL, NULL);
"""
QUERIES = {
    "user": "SELECT number AS id, account AS login, first_name AS given_name, last_name AS family_name FROM people ORDER BY number",
    # neither the sign of percent nor a colon stands for anything
    "instrument": "SELECT code AS id, name FROM beamlines WHERE name LIKE '%: a%' OR name = ':id'",
    "experiment_member": "SELECT visit AS experiment_id, person AS user_id, CASE WHEN pi THEN 'principal-investigator' ELSE 'member' END AS role FROM teams",  # noqa: E501
}
SLOW = {
    "postgresql": "SELECT 1 AS id, 'x' AS name FROM pg_sleep(60)",
    "mysql": "SELECT 1 AS id, 'x' AS name FROM (SELECT SLEEP(60)) slow",
}


@pytest.fixture(scope="module", params=["postgresql", "mariadb"])
def office(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Settings of a source: a database of a user office, and an account that may read it."""
    server: PostgreSQL | MariaDB = request.getfixturevalue(request.param)
    url = server.new_database()
    run(url, *filter(str.strip, OFFICE.split(";")))
    name = "office_reader"
    if isinstance(server, PostgreSQL):
        reader = make_reader("sql", url, name)
        _ask_for_passwords(url, name)
    else:
        run(url, f"CREATE USER {name} IDENTIFIED BY '{PASSWORD}'")
        run(url, *(f"GRANT SELECT ON {table} TO {name}" for table in ("people", "beamlines", "teams")))
        reader = make_url(url).set(username=name).render_as_string()
    file = tmp_path_factory.mktemp("office") / "office.password"
    file.write_text(f"{PASSWORD}\n")
    yield {"url": reader, "password_file": file, "timeout_seconds": 20, "queries": QUERIES}
    if isinstance(server, PostgreSQL):
        server.drop_database(url)


def _ask_for_passwords(url: str, account: str) -> None:
    """The server of the tests trusts whoever asks; not this account."""
    engine = create_engine(url)
    with engine.connect() as connection:
        (file,) = connection.exec_driver_sql("SHOW hba_file").one()
        lines = f"host all {account} 127.0.0.1/32 scram-sha-256", "local all all trust", "host all all 127.0.0.1/32 trust"
        rows = ", ".join(f"('{line}')" for line in lines)
        connection.exec_driver_sql(f"COPY (VALUES {rows}) TO '{file}'")
        connection.exec_driver_sql("SELECT pg_reload_conf()")
    engine.dispose()
    without = make_url(url).set(username=account)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        try:
            run(without.render_as_string(), "SELECT 1")
        except Exception as error:
            assert "password" in str(error)
            return
    raise AssertionError("the server goes on trusting")


def test_each_query_becomes_a_frame_of_text(office: dict[str, Any]) -> None:
    extract = Sql(**office).read()
    assert extract.scopes == {}
    assert extract.frames["user"].to_dicts() == [
        {"id": "1", "login": "ann", "given_name": "Ann", "family_name": "Lindqvist", "_place": "user", "_line": 1},
        {"id": "2", "login": "bob", "given_name": "Bób", "family_name": "Wałęsa", "_place": "user", "_line": 2},
        {"id": "3", "login": None, "given_name": "No", "family_name": "Account", "_place": "user", "_line": 3},
    ]
    assert cells(extract.frames["instrument"], "id", "name") == [("b1", "Balder: a beamline")]
    assert cells(extract.frames["experiment_member"], "user_id", "role") == [("1", "principal-investigator"), ("2", "member")]


def test_times_are_iso_8601_and_local_as_the_source_has_them(office: dict[str, Any]) -> None:
    queries = {"user_role": "SELECT person AS user_id, since, until FROM teams ORDER BY person"}
    frame = Sql(**office | {"queries": queries}).read().frames["user_role"]
    assert frame.select("since", "until").rows() == [("2026-03-01 08:00:00", "2026-03-04"), (None, None)]


def test_a_table_without_rows_is_a_frame_without_rows(office: dict[str, Any]) -> None:
    queries = {"instrument": "SELECT code AS id FROM beamlines WHERE code = 'none'"}
    frame = Sql(**office | {"queries": queries}).read().frames["instrument"]
    assert (frame.height, frame.columns) == (0, ["id", "_place", "_line"])


def test_rows_that_come_in_several_portions_are_all_there(office: dict[str, Any]) -> None:
    digits = " UNION ALL ".join(f"SELECT {digit} AS d" for digit in range(10))
    crossed = ", ".join(f"({digits}) t{place}" for place in range(5))
    number = " + ".join(f"t{place}.d * {10**place}" for place in range(5))
    queries = {"instrument": f"SELECT {number} AS id FROM {crossed}"}  # noqa: S608
    frame = Sql(**office | {"queries": queries}).read().frames["instrument"]
    assert frame.height == frame["id"].n_unique() == 100_000 > ROWS_AT_ONCE
    assert frame["_line"].to_list() == list(range(1, 100_001))


def test_all_queries_see_the_same_moment(office: dict[str, Any]) -> None:
    """Somebody writes between the first query and the second."""
    owner = make_url(office["url"]).set(username="hutch").render_as_string()
    query = "SELECT number AS id FROM people"

    def write(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if "/* second */" in statement:
            run(owner, "INSERT INTO people (number) VALUES (99)")

    event.listen(Engine, "before_cursor_execute", write)
    try:
        frames = Sql(**office | {"queries": {"user": query, "instrument": f"{query} /* second */"}}).read().frames
        afterwards = Sql(**office | {"queries": {"user": query}}).read().frames
    finally:
        event.remove(Engine, "before_cursor_execute", write)
        run(owner, "DELETE FROM people WHERE number = 99")
    assert frames["user"]["id"].to_list() == frames["instrument"]["id"].to_list() == ["1", "2", "3"]
    assert "99" in afterwards["user"]["id"]


def test_a_query_cannot_write_even_with_the_rights_to(office: dict[str, Any]) -> None:
    owner = make_url(office["url"]).set(username="hutch").render_as_string()
    body = "BEGIN DELETE FROM people; RETURN 1; END"
    run(
        owner,
        f"CREATE FUNCTION clean() RETURNS INT LANGUAGE plpgsql AS $${body}$$"
        if owner.startswith("postgresql")
        else f"CREATE FUNCTION clean() RETURNS INT {body}",
    )
    with pytest.raises(SourceError, match=r"(?i)read.only transaction"):
        Sql(url=owner, queries={"user": "SELECT clean() AS id"}).read()
    assert Sql(**office).read().frames["user"].height == 3


def _wrong(office: dict[str, Any], how: str, folder: Path) -> dict[str, Any]:
    url = make_url(office["url"])
    instrument = {
        "column": "SELECT code AS id, nome AS name FROM beamlines",
        "table": "SELECT code AS id FROM beam_lines",
        "rights": "SELECT a FROM secrets",
        # its first row is good
        "half-way": "SELECT (SELECT b.code FROM beamlines b WHERE b.code < l.below) AS id"
        " FROM (SELECT 'c' AS below UNION ALL SELECT 'z') l",
        "twice": "SELECT code AS id, name AS id FROM beamlines",
        "syntax": "SELEKT 1",
        "slow": SLOW[url.get_backend_name()],
    }
    if how in instrument:
        change: dict[str, Any] = {"queries": QUERIES | {"instrument": instrument[how]}}
    elif how == "password":
        (folder / "wrong").write_text(f"not {PASSWORD}")
        change = {"password_file": folder / "wrong"}
    elif how == "password file":
        change = {"password_file": folder / "missing"}
    else:
        urls = {
            "down": url.set(port=1),
            "database": url.set(database="nowhere"),
            "driver": url.set(drivername="db2+ibm"),
            "in the url": url.set(password=PASSWORD),
            "behind the url": url.update_query_dict({"password": PASSWORD}),
        }
        change = {"url": urls[how].render_as_string(hide_password=False)}
    return office | change | ({"timeout_seconds": 1} if how == "slow" else {})


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("column", "sql: query instrument: .*nome"),
        ("table", "sql: query instrument: .*beam_lines"),
        ("rights", "sql: query instrument: .*(denied|exist)"),
        ("half-way", "sql: query instrument: .*(?i:more than (one|1) row)"),
        ("twice", "sql: query instrument: .*'id' has more than one"),
        ("syntax", "sql: query instrument: .*SELEKT"),
        ("slow", "sql: query instrument: .*(statement timeout|max_statement_time)"),
        ("password", "sql at 127.0.0.1: .*(password authentication failed|Access denied)"),
        ("password file", "missing: cannot be read"),
        ("down", "sql at 127.0.0.1: .*refused"),
        ("database", "sql at 127.0.0.1: .*(nowhere|denied)"),
        ("driver", "sql: url: .*db2"),
        ("in the url", "sql: url: holds a password; put it into a file"),
        ("behind the url", "sql: url: holds a password; put it into a file"),
    ],
)
def test_whatever_is_wrong_is_told_in_one_line_without_the_password(
    office: dict[str, Any], how: str, told: str, tmp_path: Path
) -> None:
    run(make_url(office["url"]).set(username="hutch").render_as_string(), "CREATE TABLE IF NOT EXISTS secrets (a INT)")
    with pytest.raises(SourceError, match=told) as raised:
        Sql(**_wrong(office, how, tmp_path)).read()
    assert "\n" not in str(raised.value)
    assert PASSWORD not in "".join(traceback.format_exception(raised.value))


def test_a_file_of_sqlite_is_a_database_too(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/office.sqlite"
    run(url, "CREATE TABLE t (a INT)", "INSERT INTO t VALUES (7)")
    assert cells(Sql(url=url, queries={"instrument": "SELECT a AS id FROM t"}).read().frames["instrument"], "id") == [("7",)]
    with pytest.raises(SourceError, match="readonly"):
        Sql(url=url, queries={"instrument": "DELETE FROM t"}).read()
