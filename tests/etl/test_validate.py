"""Which rows become records, and what is said of those that do not."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.frames import Row, SourceError
from etl.validate import MODELS, REFERENCES, Standing, key_columns, moment, validate
from hub.database.tables import Base

TODAY = datetime(2026, 3, 10, tzinfo=UTC)

USER = {"id": "1", "login": "ann", "family_name": "Lindqvist"}
EXPERIMENT = {"id": "E1", "proposal_id": "P1", "instrument_id": "I1"}
PLAN = {"id": "p", "name": "Plan", "image": "i", "flavor": "f", "cores": "2", "memory_mb": "4096"}


def check(table, *rows, standing=None, source="files"):
    """What becomes of the rows of one table, where all that they may refer to is there."""
    there = {name: {("1" if name == "user" else f"{name[0].upper()}1",): Standing({"login": "zed"}, "", False)} for name in MODELS}
    frames = {table: [row if isinstance(row, Row) else Row(row, f"{table}s.csv", line) for line, row in enumerate(rows, 2)]}
    return validate(frames, (there | {table: {}} | (standing or {})), source, TODAY)[table]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2026-03-01", datetime(2026, 3, 1, tzinfo=UTC)),
        ("2026-03-01 08:15", datetime(2026, 3, 1, 8, 15, tzinfo=UTC)),
        ("2026-03-01T08:15:00Z", datetime(2026, 3, 1, 8, 15, tzinfo=UTC)),
        ("2026-03-01T08:15+02:00", datetime(2026, 3, 1, 6, 15, tzinfo=UTC)),
        ("today", datetime(2026, 3, 10, tzinfo=UTC)),
        ("today 07:30", datetime(2026, 3, 10, 7, 30, tzinfo=UTC)),
        ("today-3d 08:00", datetime(2026, 3, 7, 8, tzinfo=UTC)),
        ("today+22d", datetime(2026, 4, 1, tzinfo=UTC)),
        (datetime(2026, 3, 1, 8, tzinfo=timezone(timedelta(hours=1))), datetime(2026, 3, 1, 7, tzinfo=UTC)),
        (None, None),
    ],
)
def test_a_moment_is_iso_or_counts_from_today(written, meant):
    assert moment(written, TODAY) == meant


@pytest.mark.parametrize(
    "written",
    [
        "yesterday",
        "today-3",
        "today -3d",
        "today+2d 25:00",
        "today+99999d 08:00:00",
        "01/03/2026",
        "2026-02-30",
        "1767225600",
        5,
        [],
    ],
)
def test_what_is_no_moment_is_refused(written):
    with pytest.raises(ValueError, match="is not a date"):
        moment(written, TODAY)


def test_a_moment_of_an_unknown_zone_is_refused():
    with pytest.raises(ValueError, match="has no time zone"):
        moment(datetime(2026, 3, 1, 8), TODAY)  # noqa: DTZ001


@given(st.text())
def test_any_text_is_a_moment_or_refused(written):
    with suppress(ValueError):
        assert moment(written, TODAY).tzinfo is UTC


@pytest.mark.parametrize(
    ("table", "row", "column", "reason"),
    [
        pytest.param("user", USER | {"login": "Ann"}, "login", "should match pattern", id="login-upper-case"),
        pytest.param("user", USER | {"login": "дмитрий"}, "login", "should match pattern", id="login-not-ascii"),
        pytest.param("user", USER | {"login": "a" * 33}, "login", "at most 32", id="login-too-long"),
        pytest.param("user", {"id": "1", "login": "ann"}, "family_name", "is missing", id="missing"),
        pytest.param("user", {"login": "ann", "family_name": "L"}, "id", "is missing", id="key-missing"),
        pytest.param("user", USER | {"id": " "}, "id", "at least 1", id="key-blank"),
        pytest.param("user", USER | {"id": "1" * 251}, "id", "at most 250", id="key-too-long"),
        pytest.param("user", USER | {"email": "nobody"}, "email", "should match pattern", id="email"),
        pytest.param("user", USER | {"orcid": "1234"}, "orcid", "should match pattern", id="orcid"),
        pytest.param("user", USER | {"given_name": "A\x00B"}, "given_name", "control character", id="control-character"),
        pytest.param("user", USER | {"given_name": "\ud800"}, "given_name", "not '\\ud800'", id="half-a-character"),
        pytest.param("user", USER | {"instance_quota": 5}, "instance_quota", "there is no such column", id="what-an-admin-sets"),
        pytest.param("user", USER | {"shoe_size": "44"}, "shoe_size", "there is no such column", id="unknown-column"),
        pytest.param("user", USER | {"affiliation_id": "zz"}, "affiliation_id", "there is no affiliation 'zz'", id="dangling"),
        pytest.param("proposal", {"id": "P", "title": "T", "url": "javascript:x()"}, "url", "should match pattern", id="url"),
        pytest.param("proposal", {"id": "P", "title": ["T"]}, "title", "not ['T']", id="list-for-text"),
        pytest.param("experiment", EXPERIMENT | {"proposal_id": "P9"}, "proposal_id", "there is no proposal 'P9'", id="dangling-2"),
        pytest.param("experiment", EXPERIMENT | {"starts_at": "soon"}, "starts_at", "'soon' is not a date", id="date"),
        pytest.param("experiment", EXPERIMENT | {"starts_at": 17}, "starts_at", "17 is not a date", id="date-number"),
        pytest.param(
            "experiment",
            EXPERIMENT | {"starts_at": "today+2d", "ends_at": "today"},
            "ends_at",
            "ends before it starts (2026-03-12 00:00)",
            id="dates-reversed",
        ),
        pytest.param(
            "experiment_member", {"experiment_id": "E1", "user_id": "1", "role": "boss"}, "role", "not 'boss'", id="member-role"
        ),
        pytest.param("user_role", {"user_id": "1", "role": "king"}, "role", "not 'king'", id="facility-role"),
        pytest.param("user_role", {"user_id": "9", "role": "guest"}, "user_id", "there is no user '9'", id="dangling-3"),
        pytest.param("plan", PLAN | {"cores": "two"}, "cores", "not 'two'", id="number"),
        pytest.param("plan", PLAN | {"cores": 0}, "cores", "greater than or equal to 1", id="number-too-small"),
        pytest.param("plan", PLAN | {"memory_mb": 2**40}, "memory_mb", "less than", id="number-too-large"),
        pytest.param("plan", PLAN | {"roles": ["staff", "king"]}, "roles", "not 'king'", id="role-in-list"),
        pytest.param(
            "plan", PLAN | {"instruments": ["I1", "I9"]}, "instruments", "there is no instrument 'I9'", id="dangling-list"
        ),
        pytest.param("plan", PLAN | {"instruments": {"I1": 1}}, "instruments", "valid list", id="object-for-list"),
    ],
)
def test_a_row_is_rejected_with_its_place_and_reason(table, row, column, reason):
    checked = check(table, row)
    assert not checked.accepted
    [rejection] = checked.rejections
    assert (rejection.place, rejection.line, rejection.column) == (f"{table}s.csv", 2, column)
    assert reason in rejection.reason


@pytest.mark.parametrize(
    ("table", "row", "column", "value"),
    [
        pytest.param("user", USER | {"given_name": "  Þórður "}, "given_name", "Þórður", id="blanks-around"),
        pytest.param("user", USER | {"id": 17}, "id", "17", id="number-for-id"),
        pytest.param("user", USER, "given_name", "", id="one-name-only"),
        pytest.param("experiment", EXPERIMENT, "ends_at", None, id="open-end"),
        pytest.param("experiment", EXPERIMENT | {"starts_at": "today", "ends_at": "today"}, "ends_at", TODAY, id="no-length"),
        pytest.param("experiment_member", {"experiment_id": "E1", "user_id": "1"}, "role", "member", id="role-by-default"),
        pytest.param("plan", PLAN, "cores", 2, id="number-as-text"),
        pytest.param("plan", PLAN | {"roles": ["staff"]}, "roles", ["staff"], id="list"),
    ],
)
def test_a_row_is_accepted(table, row, column, value):
    checked = check(table, row)
    assert checked.rejections == []
    [values] = checked.accepted.values()
    assert values[column] == value


def test_every_fault_of_a_row_is_told():
    assert [rejection.column for rejection in check("user", {"id": "1", "login": "A", "email": "x"}).rejections] == [
        "login",
        "family_name",
        "email",
    ]


def test_the_second_of_two_rows_with_one_key_is_rejected():
    checked = check("user", USER, USER | {"login": "other"})
    assert [values["login"] for values in checked.accepted.values()] == ["ann"]
    assert [(rejection.line, rejection.reason) for rejection in checked.rejections] == [(3, "the same as in line 2")]


def test_the_second_of_two_users_with_one_login_is_rejected():
    checked = check("user", USER, USER | {"id": "2"})
    assert list(checked.accepted) == [("1",)]
    assert "'ann' belongs to user '1'" in checked.rejections[0].reason


@pytest.mark.parametrize("ended", [False, True], ids=["here", "gone"])
def test_the_login_of_one_person_is_never_given_to_another(ended):
    checked = check("user", USER, standing={"user": {("9",): Standing({"login": "ann"}, "files", ended)}})
    assert "'ann' belongs to user '9'" in checked.rejections[0].reason


@pytest.mark.parametrize(
    ("source", "ended", "rejected"),
    [("files", False, False), ("other", False, True), ("", False, True), ("other", True, False)],
    ids=["own", "of-another", "by-hand", "ended-of-another"],
)
def test_a_record_that_holds_belongs_to_its_source(source, ended, rejected):
    checked = check("user", USER, standing={"user": {("1",): Standing({"login": "ann"}, source, ended)}})
    assert bool(checked.rejections) is rejected


def test_a_rejected_row_keeps_what_is_there_and_may_be_referred_to():
    held = {("1",): Standing({"login": "ann"}, "files", False)}
    frames = {
        "user": [Row(USER | {"login": "ANN"}, "users.csv", 2)],
        "user_role": [Row({"user_id": "1", "role": "staff"}, "user_roles.csv", 2)],
    }
    checked = validate(frames, {"user": held}, "files", TODAY)
    assert checked["user"].kept == {("1",)}
    assert checked["user_role"].rejections == []


@pytest.mark.parametrize(
    ("row", "certain"),
    [
        pytest.param(Row(USER | {"login": "ANN"}, "f", 2), True, id="key-readable"),
        pytest.param(Row({"login": "ann"}, "f", 2), False, id="key-missing"),
        pytest.param(Row(USER, "f", 2, fault="has 9 cells"), False, id="not-to-be-trusted"),
    ],
)
def test_only_readable_keys_tell_what_is_gone(row, certain):
    assert check("user", row).certain is certain


def test_an_unknown_table_stops_the_run():
    with pytest.raises(SourceError, match="does not have: shoes"):
        validate({"shoes": []}, {}, "files", TODAY)


def test_models_and_tables_have_the_same_columns():
    of_hutch = {"source", "run_id", "ended_at", "instance_quota"}
    for table, model in MODELS.items():
        assert set(model.model_fields) == set(Base.metadata.tables[table].columns.keys()) - of_hutch
        assert key_columns(table) == tuple(column.name for column in Base.metadata.tables[table].primary_key)


def test_references_are_those_of_the_tables():
    for table in MODELS:
        foreign = {key.parent.name: key.column.table.name for key in Base.metadata.tables[table].foreign_keys}
        foreign.pop("run_id")
        assert {column: target for column, target in REFERENCES.get(table, {}).items() if column != "instruments"} == foreign
