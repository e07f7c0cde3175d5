"""What a run changes, what it never touches, and what stops it; on SQLite and PostgreSQL alike."""

import sqlite3
from datetime import UTC, datetime, timedelta

import polars as pl
import psycopg
import pytest
from sqlalchemy import Engine, insert, update

from etl import store
from etl.diff import Change
from etl.frames import FAULT, Extract, Scope, SourceError
from etl.guard import removals, unreadable
from etl.load import BusyError, alone, run
from etl.source import Source
from hub.database import engine as database
from hub.database.engine import DatabaseError, open_database
from hub.database.tables import RunKind, User, UserRole


def counts(report, table):
    """added, changed, ended, unchanged, rejected"""
    return tuple(report.counts[table].values())[:5]


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
    report = office.load(name="second")
    assert report.rejections.is_empty()
    assert counts(report, "user") == (1, 0, 0, 0, 0)
    assert [(row["source"], row["ended_at"]) for row in rows("user")] == [("files", None), ("files", None), ("second", None)]


def test_a_row_that_is_rejected_takes_nothing_away(office, rows):
    office.load()
    office.put("users", "id,login,family_name", "1,ANN,Lindqvist", "2,bob,Okafor")
    report = office.load()
    assert counts(report, "user") == (0, 1, 0, 0, 1)
    assert counts(report, "experiment_member")[-1] == 0
    assert (rows("user")[0]["login"], rows("user")[0]["ended_at"]) == ("ann", None)
    [rejection] = rows("etl_rejection")
    assert (rejection["place"], rejection["line"], rejection["key"], rejection["field"]) == ("users.csv", 2, "1", "login")
    assert rejection["run_id"] == rows("etl_run")[-1]["id"]


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
def test_the_guard_of_removals(live, ended, added, refused):
    change = Change(numbered(added), numbered(0), numbered(ended), live=live)
    assert bool([*removals({"user": change}, 0.3)]) is refused


@pytest.mark.parametrize(
    ("named", "rejected", "refused"),
    [(100, 10, False), (100, 11, True), (10, 5, False), (10, 6, True), (0, 0, False)],
    ids=["at-the-share", "above-the-share", "a-handful", "more-than-a-handful", "nothing-there"],
)
def test_the_guard_of_rows_at_fault(named, rejected, refused):
    change = Change(numbered(0), numbered(0), numbered(0), named=named, rejected=rejected, skipped=50)
    assert bool([*unreadable({"user": change}, 0.1)]) is refused


def numbered(count):
    return pl.DataFrame({"id": [str(number) for number in range(count)]}, schema={"id": pl.String})


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
    assert report.changes["user"].examples == [
        ("1", "given_name", "Ann", ""),
        ("1", "family_name", "Lindqvist", "Changed"),
        ("1", "affiliation_id", "nth", ""),
    ]
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


def test_a_source_of_which_too_much_is_at_fault_is_not_believed(office, everything, rows):
    many(office, 40)
    office.load()
    before = everything()
    office.put_rows("users", "id,login,family_name", [[str(n), f"u{n}" if n > 8 else f"U{n}", "New"] for n in range(1, 41)])
    report = office.load(allow_removals=True)
    assert report.objections == ["user: 8 of 40 rows cannot be taken (more than 10%)"]
    assert everything() == before
    assert len(rows("etl_rejection")) == 8
    assert office.load(max_rejected_share=0.2).objections == []


def test_people_without_a_login_are_left_out_with_their_memberships(office, rows):
    people = [[str(n), f"u{n}" if n > 30 else "", "Name"] for n in range(1, 41)]
    office.put_rows("users", "id,login,family_name", people)
    office.put_rows("experiment_members", "experiment_id,user_id", [["P1-1", str(n)] for n in range(1, 41)])
    report = office.load()
    assert report.objections == []
    assert (report.counts["user"]["skipped"], report.counts["experiment_member"]["skipped"]) == (30, 30)
    assert (len(rows("user")), len(rows("experiment_member"))) == (10, 10)
    assert {row["reason"] for row in rows("etl_rejection")} >= {
        "has no login, and cannot sign on without one",
        "user '7' was left out",
    }


def test_the_quarantine_is_that_of_the_last_run(office, rows):
    office.put("users", "id,login,family_name", "1,ANN,Lindqvist", "2,bob,Okafor")
    office.load()
    assert [row["record"] for row in rows("etl_rejection")] == ["user", "experiment_member"]
    office.put("users", "id,login,family_name", "1,ann,Lindqvist", "2,bob,Okafor")
    office.load()
    assert rows("etl_rejection") == []


# --- what a source may suddenly answer


class Answer:
    """A source that hands over these frames."""

    name = "answer"

    def __init__(self, frames, scopes=None):
        self.frames, self.scopes = frames, scopes or {}

    def read(self):
        return Extract(self.frames, self.scopes)


def answered(office, frames, scopes=None, **options):
    return run(office.engine, Source(name="files"), Answer(frames, scopes), **options)


def members(*rows):
    return pl.DataFrame(rows, schema=["experiment_id", "user_id", "role"], orient="row")


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param({"experiment_member": members()}, id="empty"),
        pytest.param({"experiment_member": pl.DataFrame()}, id="without-columns"),
        pytest.param({"experiment_member": None}, id="null"),
        pytest.param({"experiment_member": members(*([f"P1-{n}", "1", "member"] for n in range(10)))}, id="half"),
        pytest.param({"experiment_member": members(*(["\x00", "<html>", "500"] for _ in range(20)))}, id="garbage"),
        pytest.param({"experiment_member": members(*([None, None, None] for _ in range(20)))}, id="nulls"),
        pytest.param({"experiment_member": members().with_columns(error=pl.lit("x"))}, id="other-columns"),
        pytest.param({"experiment_member": pl.DataFrame({FAULT: ["broken"] * 20})}, id="faults"),
        pytest.param({"user": pl.DataFrame(), "experiment_member": members()}, id="two-empty"),
        pytest.param({"page": members()}, id="another-table"),
    ],
)
def test_a_source_that_answers_nonsense_removes_nobody(office, everything, rows, answer):
    office.put_rows("experiments", "id,proposal_id,instrument_id", [[f"P1-{n}", "P1", "ID16"] for n in range(20)])
    office.put_rows("experiment_members", "experiment_id,user_id", [[f"P1-{n}", "1"] for n in range(20)])
    office.load()
    before = everything()
    try:
        outcome = "refused" if answered(office, answer).objections else "done"
    except SourceError:
        outcome = "failed"
    assert everything() == before
    assert rows("etl_run")[-1]["outcome"] == outcome
    assert outcome != "done"


def test_an_adapter_that_breaks_is_noted_and_changes_nothing(office, everything, rows):
    class Broken(Answer):
        def read(self):
            raise ZeroDivisionError("of its own")

    office.load()
    before = everything()
    with pytest.raises(ZeroDivisionError):
        run(office.engine, Source(name="files"), Broken({}))
    assert everything() == before
    assert (rows("etl_run")[-1]["outcome"], "of its own" in rows("etl_run")[-1]["message"]) == ("failed", True)


# --- parts of a table


def test_rows_of_some_experiments_end_only_members_of_these(office, rows):
    office.put("experiments", "id,proposal_id,instrument_id", "P1-1,P1,ID16", "P1-2,P1,ID16")
    office.put("experiment_members", "experiment_id,user_id", "P1-1,1", "P1-1,2", "P1-2,1")
    office.load()
    scope = {"experiment_member": Scope("experiment_id", frozenset({"P1-1"}))}
    answered(office, {"experiment_member": members(["P1-1", "2", "member"])}, scope)
    holding = [(row["experiment_id"], row["user_id"]) for row in rows("experiment_member") if row["ended_at"] is None]
    assert holding == [("P1-1", "2"), ("P1-2", "1")]


def test_an_empty_part_ends_what_was_in_it(office, rows):
    office.put("experiments", "id,proposal_id,instrument_id", "P1-1,P1,ID16", "P1-2,P1,ID16")
    office.put("experiment_members", "experiment_id,user_id", "P1-1,1", "P1-1,2", "P1-2,1")
    office.load()
    answered(office, {"experiment_member": members()}, {"experiment_member": Scope("experiment_id", frozenset({"P1-1"}))})
    assert [row["ended_at"] is None for row in rows("experiment_member")] == [False, False, True]


def test_rows_that_only_add_end_nothing(office, rows):
    office.load()
    report = answered(office, {"experiment_member": members(["P1-1", "2", "local-contact"])}, {"experiment_member": None})
    assert counts(report, "experiment_member") == (0, 1, 0, 0, 0)
    assert [row["role"] for row in rows("experiment_member")] == ["principal-investigator", "local-contact"]


def test_who_refers_to_what_ends_in_the_same_run_is_rejected(office, rows):
    office.load()
    office.put("instruments", "id,name", "D22,Small angles")
    office.load()
    assert rows("experiment")[0]["ended_at"] is None
    assert [(row["record"], row["reason"]) for row in rows("etl_rejection")] == [("experiment", "there is no instrument 'ID16'")]


# --- what others have written


def test_a_role_set_by_an_admin_is_stronger_than_the_source(office, engine, rows):
    office.put("user_roles", "user_id,role,expires_at", "1,staff,today+30d", "2,guest,", "2,staff,")
    office.load()
    with engine.begin() as connection:
        connection.execute(update(UserRole).where(UserRole.user_id == "1").values(source="", run_id=None, expires_at=None))
        connection.execute(
            insert(UserRole), {"user_id": "2", "role": "admin", "source": "", "ended_at": datetime(2026, 3, 1, tzinfo=UTC)}
        )
    office.put("user_roles", "user_id,role,expires_at", "1,staff,today+5d", "2,admin,", "2,staff,")
    report = office.load()
    assert report.rejections.is_empty()
    assert [(row["user_id"], row["role"], row["expires_at"], row["ended_at"] is None) for row in rows("user_role")] == [
        ("1", "staff", None, True),
        ("2", "admin", None, False),
        ("2", "guest", None, False),
        ("2", "staff", None, True),
    ]


def test_text_of_any_kind_arrives_as_it_is(office, rows):
    texts = ['"', "a,b", "\\N", "\\.", "line\n\\.\nline", "\r", "\ttab", "NULL", "Þórður 東京 🙂", "'; DROP TABLE x; --", "%s :x"]
    office.put_rows(
        "proposals", "id,title,summary", [["P1", "T", ""], *([f"X{n}", "-" + text, text] for n, text in enumerate(texts))]
    )
    for expected in (len(texts) + 1, 0):
        assert counts(office.load(), "proposal")[0] == expected
    found = {row["id"]: (row["title"], row["summary"]) for row in rows("proposal")}
    assert found == {"P1": ("T", None)} | {f"X{n}": (f"-{text}".strip(), text.strip() or None) for n, text in enumerate(texts)}
    assert counts(office.load(), "proposal")[1] == 0


def test_very_many_rows_leave_keys_references_and_indexes_as_they_were(office, engine, rows, monkeypatch):
    monkeypatch.setattr(store, "MANY_ROWS", 0)
    before = guards(engine)
    office.load()
    assert len(rows("experiment_member")) == 2
    office.put("users", "id,login,family_name", "1,ann,Berg", "2,bob,Okafor", "9,new,Lind")
    office.load(allow_removals=True)
    assert {row["id"] for row in rows("user")} > {"9", "1"}
    assert guards(engine) == before


def guards(engine: Engine) -> list[tuple[str, str]]:
    if engine.dialect.name == "sqlite":
        query = "SELECT name, coalesce(sql, '') FROM sqlite_master ORDER BY 1"
    else:
        query = (
            "SELECT conrelid::regclass || ' ' || conname, pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE connamespace = 'public'::regnamespace"
            " UNION SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1"
        )
    with engine.connect() as connection:
        return [tuple(row) for row in connection.exec_driver_sql(query)]


# --- one at a time, and once


def test_two_runs_of_a_source_do_not_work_at_once(office, everything):
    before = everything()
    with alone(office.engine, "files"):
        with pytest.raises(BusyError, match="another run of 'files' is at work"):
            office.load()
        assert everything() == before
        assert office.load(name="second").objections == []
    assert office.load(allow_removals=True).rejections.height > 0


def test_a_batch_that_comes_again_changes_nothing(office, everything, rows):
    first = office.load(kind=RunKind.PUSH, batch="b1")
    before, runs = everything(), len(rows("etl_run"))
    office.put("users", "id,login,family_name", "1,ann,Changed", "2,bob,Okafor")
    again = office.load(kind=RunKind.PUSH, batch="b1")
    assert (again.repeated, again.run_id, again.counts) == (True, first.run_id, first.counts)
    assert (everything(), len(rows("etl_run"))) == (before, runs)
    assert counts(office.load(kind=RunKind.PUSH, batch="b2"), "user")[1] == 2


def test_a_batch_that_was_refused_may_come_again(office):
    office.load()
    users = (office.folder / "users.csv").read_text()
    office.put("users", "id,login,family_name")
    assert office.load(kind=RunKind.PUSH, batch="b1").objections
    (office.folder / "users.csv").write_text(users)
    assert not office.load(kind=RunKind.PUSH, batch="b1").repeated


def test_a_database_that_is_not_upgraded_is_not_loaded(office, tmp_path):
    office.engine = open_database(f"sqlite:///{tmp_path}/empty.sqlite")
    with pytest.raises(DatabaseError, match="hutch db upgrade"):
        office.load()


def test_a_database_locked_by_another_writer_is_named(office, engine, monkeypatch):
    monkeypatch.setattr(database, "BUSY_TIMEOUT_SECONDS", 0.05)
    url = engine.url.render_as_string(hide_password=False)
    if engine.dialect.name == "sqlite":
        other = sqlite3.connect(engine.url.database, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
    else:
        monkeypatch.setattr(database, "BUSY_TIMEOUT_SECONDS", 0.05)
        other = psycopg.connect(url.replace("+psycopg", ""))
        other.execute("SELECT pg_advisory_xact_lock(%s)", [database.ADVISORY_LOCK])
    office.engine = open_database(url)
    with pytest.raises(DatabaseError, match="locked by another writer"):
        office.load()
    other.close()
