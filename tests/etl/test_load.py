"""What a run changes, what it never touches, and what stops it."""

import signal
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import update

from etl.diff import Change
from etl.frames import SourceError
from etl.guard import objections
from hub.database import engine as database
from hub.database.engine import DatabaseError, open_database
from hub.database.tables import User


def counts(report, table):
    """added, changed, ended, unchanged, rejected"""
    return tuple(report.counts[table].values())


def test_a_first_load_brings_every_record_under_its_source_and_run(office, rows):
    report = office.load()
    assert {table: counts(report, table)[0] for table in report.counts} == {
        "affiliation": 1,
        "user": 2,
        "instrument": 2,
        "proposal": 1,
        "experiment": 1,
        "experiment_member": 2,
    }
    [ann, bob] = rows("user")
    assert (ann["login"], ann["affiliation_id"], ann["source"], ann["run_id"], ann["ended_at"]) == ("ann", "nth", "files", 1, None)
    assert bob["affiliation_id"] is None
    [experiment] = rows("experiment")
    assert experiment["starts_at"] == datetime(2026, 3, 9, 8, tzinfo=UTC)
    assert experiment["ends_at"] == datetime(2026, 3, 12, tzinfo=UTC)
    assert [member["role"] for member in rows("experiment_member")] == ["principal-investigator", "member"]


def test_the_same_again_changes_nothing(office, everything):
    office.load()
    before = everything()
    report = office.load()
    assert all(counts(report, table)[:3] == (0, 0, 0) for table in report.counts)
    assert everything() == before


def test_examples_move_with_the_day(office, rows):
    office.load()
    report = office.load(today=datetime(2026, 3, 11, tzinfo=UTC))
    assert counts(report, "experiment") == (0, 1, 0, 0, 0)
    assert rows("experiment")[0]["starts_at"] == datetime(2026, 3, 10, 8, tzinfo=UTC)


def test_only_what_differs_is_changed_and_knows_its_run(office, rows):
    office.load()
    office.put("users", "id,login,given_name,family_name", "1,ann,Ann,Lindqvist-Berg", "2,bob,Bob,Okafor", "3,cem,Cem,Demir")
    report = office.load()
    assert counts(report, "user") == (1, 1, 0, 1, 0)
    assert [(row["family_name"], row["affiliation_id"], row["run_id"]) for row in rows("user")] == [
        ("Lindqvist-Berg", None, 2),
        ("Okafor", None, 1),
        ("Demir", None, 2),
    ]


def test_what_the_source_no_longer_names_ends_and_may_return(office, rows):
    office.load()
    office.put("experiment_members", "experiment_id,user_id,role", "P1-1,1,principal-investigator")
    assert counts(office.load(), "experiment_member") == (0, 0, 1, 1, 0)
    [_, bob] = rows("experiment_member")
    assert bob["run_id"] == 2
    assert bob["ended_at"] is not None
    assert counts(office.load(), "experiment_member") == (0, 0, 0, 1, 0)
    office.put("experiment_members", "experiment_id,user_id,role", "P1-1,1,principal-investigator", "P1-1,2,local-contact")
    assert counts(office.load(), "experiment_member") == (0, 1, 0, 1, 0)
    [_, bob] = rows("experiment_member")
    assert (bob["ended_at"], bob["role"], bob["run_id"]) == (None, "local-contact", 4)


def test_what_an_admin_sets_is_never_touched(office, engine, rows):
    office.load()
    with engine.begin() as connection:
        connection.execute(update(User).where(User.login == "ann").values(instance_quota=7))
    assert counts(office.load(), "user")[:2] == (0, 0)
    office.put("users", "id,login,family_name", "1,ann,Changed", "2,bob,Okafor")
    office.load()
    assert (rows("user")[0]["family_name"], rows("user")[0]["instance_quota"]) == ("Changed", 7)


def test_a_table_that_the_source_does_not_hand_over_stays(office, rows):
    office.put("user_roles", "user_id,role,expires_at", "1,guest,today+30d")
    office.load()
    (office.folder / "user_roles.csv").unlink()
    assert "user_role" not in office.load().counts
    assert rows("user_role")[0]["ended_at"] is None


def test_a_run_ends_only_records_of_its_own_source(office, rows):
    office.load()
    office.put("users", "id,login,family_name", "7,gil,Gil")
    office.put("experiments", "id,proposal_id,instrument_id", "Q-1,P1,ID16")
    office.put("experiment_members", "experiment_id,user_id", "Q-1,7")
    for name in ("instruments", "proposals"):
        (office.folder / f"{name}.csv").write_text((office.folder / f"{name}.csv").read_text().splitlines()[0] + "\n")
    (office.folder / "affiliations.csv").unlink()
    report = office.load(source="second")
    assert report.rejections == []
    assert counts(report, "user") == (1, 0, 0, 0, 0)
    assert [(row["source"], row["ended_at"]) for row in rows("user")] == [("files", None), ("files", None), ("second", None)]


def test_a_row_that_is_rejected_takes_nothing_away(office, rows):
    office.load()
    office.put("users", "id,login,family_name", "1,ANN,Lindqvist", "2,bob,Okafor")
    report = office.load()
    assert counts(report, "user") == (0, 1, 0, 0, 1)
    assert counts(report, "experiment_member")[-1] == 0
    assert (rows("user")[0]["login"], rows("user")[0]["ended_at"]) == ("ann", None)
    assert "users.csv:2, login" in rows("etl_run")[-1]["message"]


def test_nothing_ends_while_a_row_cannot_be_told_apart(office, rows):
    office.load()
    office.put("users", "id,login,family_name", "1,ann,Lindqvist", ",bob,Okafor")
    assert counts(office.load(), "user") == (0, 1, 0, 0, 1)
    assert [row["ended_at"] for row in rows("user")] == [None, None]


def test_logins_do_not_change_hands(office, rows):
    office.load()
    office.put("users", "id,login,family_name", "1,bob,Lindqvist", "2,ann,Okafor", "3,ann,Third")
    assert counts(office.load(), "user") == (0, 0, 0, 0, 3)
    assert [row["login"] for row in rows("user")] == ["ann", "bob"]


def test_a_login_stays_with_its_person_however_often_it_is_tried(office, rows):
    """A JupyterHub account and its servers hang on it; whoever had the login next would open them."""
    office.load()
    office.put("users", "id,login,family_name", "1,newann,Lindqvist", "2,bob,Okafor", "3,ann,Third")
    for _ in range(2):
        assert counts(office.load(), "user")[4] == 2
    assert [row["login"] for row in rows("user")] == ["ann", "bob"]


def many(office, number):
    office.put_rows("users", "id,login,family_name", [[str(n), f"u{n}", "Name"] for n in range(1, number + 1)])


@pytest.mark.parametrize(
    ("live", "ended", "added", "refused"),
    [
        pytest.param(100, 30, 0, False, id="at-the-share"),
        pytest.param(100, 31, 0, True, id="above-the-share"),
        pytest.param(10, 5, 0, False, id="a-handful"),
        pytest.param(10, 6, 0, True, id="more-than-a-handful"),
        pytest.param(3, 3, 0, True, id="all-of-a-few"),
        pytest.param(3, 3, 3, False, id="a-few-replaced"),
        pytest.param(40, 40, 40, True, id="all-replaced"),
        pytest.param(0, 0, 0, False, id="nothing-there"),
    ],
)
def test_the_guard(live, ended, added, refused):
    rows = {(str(number),): {} for number in range(added)}
    change = Change(added=rows, ended={(f"old{number}",) for number in range(ended)}, live=live)
    assert bool(objections({"user": change})) is refused


def test_a_run_that_would_take_too_much_away_changes_nothing(office, everything, rows):
    many(office, 40)
    office.load()
    before = everything()
    many(office, 20)
    office.put("instruments", "id,name", "ID16,Renamed", "D22,Small angles")
    report = office.load()
    assert report.objections == ["user: 20 of 40 records would end (more than 30%)"]
    assert everything() == before
    assert [(row["outcome"], row["message"]) for row in rows("etl_run")][-1] == ("refused", report.objections[0])
    assert office.load(allow_removals=True).objections == []
    assert sum(row["ended_at"] is None for row in rows("user")) == 20
    assert rows("instrument")[1]["name"] == "Renamed"


def test_a_table_that_comes_empty_is_not_believed(office, everything):
    office.load()
    before = everything()
    office.put("experiment_members", "experiment_id,user_id,role")
    assert office.load().objections == ["experiment_member: all 2 records would end"]
    assert everything() == before


def test_a_dry_run_tells_and_changes_nothing(office, everything, rows):
    office.load()
    before = everything()
    office.put("users", "id,login,family_name", "1,ann,Changed", "3,cem,Demir", "4,DAN,Doe")
    report = office.load(dry_run=True)
    assert counts(report, "user") == (1, 1, 1, 0, 1)
    assert everything() == before
    assert len(rows("etl_run")) == 1
    assert counts(office.load(), "user") == counts(report, "user")


def test_each_run_is_noted(office, rows):
    office.load()
    (office.folder / "users.csv").unlink()
    with pytest.raises(SourceError):
        office.load()
    good, bad = rows("etl_run")
    assert (good["source"], good["adapter"], good["outcome"], good["counts"]["user"]["added"]) == ("files", "files", "done", 2)
    assert good["started_at"] <= good["finished_at"] <= good["started_at"] + timedelta(minutes=1)
    assert bad["outcome"] == "failed"
    assert "users.csv missing" in bad["message"]


def test_a_database_that_is_not_upgraded_is_not_loaded(office, tmp_path):
    office.engine = open_database(f"sqlite:///{tmp_path}/empty.sqlite")
    with pytest.raises(DatabaseError, match="hutch db upgrade"):
        office.load()


def test_a_database_locked_by_another_writer_is_named(office, engine, monkeypatch):
    monkeypatch.setattr(database, "BUSY_TIMEOUT_SECONDS", 0.05)
    office.engine = open_database(engine.url.render_as_string())
    other = sqlite3.connect(engine.url.database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseError, match="locked by another writer"):
        office.load()


KILLED_AT = """
import sys
from pathlib import Path
from sqlalchemy import event
from etl.adapters.files import Files
from etl.load import run
from hub.database.engine import open_database

engine = open_database(sys.argv[1])

@event.listens_for(engine, "after_cursor_execute")
def wait_to_be_killed(connection, cursor, statement, parameters, context, executemany):
    if statement.startswith(sys.argv[3]):
        print("there", flush=True)
        sys.stdin.readline()

run(engine, Files(Path(sys.argv[2])), "files")
"""


@pytest.mark.parametrize(
    "statement", ["BEGIN IMMEDIATE", "INSERT INTO etl_run", "UPDATE user", "INSERT INTO user", "UPDATE experiment_member"]
)
def test_a_load_that_is_killed_leaves_everything_as_it_was(office, everything, rows, statement):
    office.load()
    before = everything()
    office.put("users", "id,login,family_name", "1,ann,Changed", "2,bob,Okafor", "3,cem,Demir")
    office.put("experiment_members", "experiment_id,user_id,role", "P1-1,1,member", "P1-1,3,principal-investigator")
    url = office.engine.url.render_as_string()
    with subprocess.Popen(
        [sys.executable, "-c", KILLED_AT, url, str(office.folder), statement], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as loading:
        assert loading.stdout.readline() == b"there\n"
        loading.kill()
    assert loading.returncode == -signal.SIGKILL
    assert everything() == before
    assert len(rows("etl_run")) == 1
    assert counts(office.load(), "user") == (1, 2, 0, 0, 0)
    assert rows("user")[2]["login"] == "cem"
