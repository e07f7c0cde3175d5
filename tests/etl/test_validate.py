"""Which rows become records, and what is said of those that do not."""

from datetime import UTC, date, datetime
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from etl.diff import compare, ids
from etl.frames import FAULT, LINE, PLACE, SourceError
from etl.schema import SHAPES, TIME
from etl.validate import ENDED, SOURCE, Ids, Sieve
from hub.database.base import UTCDateTime
from hub.database.tables import Base, MemberOf, User

TODAY = datetime(2026, 3, 10, tzinfo=UTC)

USER = {"id": "1", "login": "ann", "family_name": "Lindqvist"}
EXPERIMENT = {"id": "E1", "proposal_id": "P1", "instrument_id": "I1"}
PLAN = {"id": "p", "name": "Plan", "image": "i", "flavor": "f", "cores": "2", "memory_mb": "4096"}


def held_frame(table: str, *rows: dict[str, Any]) -> pl.DataFrame:
    """Records as they are read from a database; of the source `files`, unless a row says otherwise."""
    shape = SHAPES[table]
    schema = {**shape.stored, SOURCE: pl.String, ENDED: pl.Boolean}
    whole = [
        {**{name: field.default for name, field in shape.fields.items()}, SOURCE: "files", ENDED: False, **row} for row in rows
    ]
    return pl.DataFrame([{name: row[name] for name in schema} for row in whole], schema=schema)


def there(table: str) -> Ids:
    one = pl.DataFrame({"id": ["1" if table == "user" else f"{table[0].upper()}1"], ENDED: [False]})
    return ids(one, None, None)


def frame_of(table: str, rows: list[dict[str, Any]]) -> pl.DataFrame:
    names = dict.fromkeys(name for row in rows for name in row)
    frame = pl.DataFrame({name: [row.get(name) for row in rows] for name in names}, strict=False)
    return frame.with_columns(pl.lit(f"{table}s.csv").alias(PLACE), pl.int_range(2, pl.len() + 2).alias(LINE))


class Checked:
    """What became of the rows of one table, where all that they may refer to is there."""

    def __init__(self, table: str, *rows: dict[str, Any], held: pl.DataFrame | None = None, zone: str = "UTC") -> None:
        held = held_frame(table) if held is None else held
        sieve = Sieve(table, frame_of(table, list(rows)), zone, TODAY)
        sieve.meet(held, "files")
        sieve.check_values()
        if table == "user":
            sieve.check_logins()
            sieve.check_identities(pl.DataFrame({"issuer": ["i"], "subject": ["s"], "user_id": ["9"]}))
        sieve.check_references({name: there(name) for name in SHAPES})
        sieve.check_source()
        stored = list(sieve.shape.stored)
        same = held.join(sieve.same, on=sieve.shape.key, how="semi")
        self.accepted = pl.concat([same.select(stored), sieve.fresh.select(stored)]).to_dicts()
        self.rejections = sieve.rejections().to_dicts()
        self.reasons = [(one["line"], one["field"], one["reason"]) for one in self.rejections]
        self.ended = compare(sieve, None, whole=True).ended.rows()


@pytest.mark.parametrize(
    ("table", "row", "field", "reason"),
    [
        pytest.param("user", USER | {"login": "Ann"}, "login", "should be a login (a to z", id="login-upper-case"),
        pytest.param("user", USER | {"login": "дмитрий"}, "login", "should be a login", id="login-not-ascii"),
        pytest.param("user", USER | {"login": "ann\n2"}, "login", "should be a login", id="login-of-two-lines"),
        pytest.param("user", USER | {"login": "a" * 33}, "login", "at most 32 characters", id="login-too-long"),
        pytest.param("user", USER | {"login": None}, "login", "has no login", id="login-missing"),
        pytest.param("user", {"id": "1", "login": "ann"}, "family_name", "is missing", id="missing"),
        pytest.param("user", {"login": "ann", "family_name": "L"}, "id", "is missing", id="key-missing"),
        pytest.param("user", USER | {"id": " "}, "id", "is missing", id="key-blank"),
        pytest.param("user", USER | {"id": "1" * 251}, "id", "at most 250", id="key-too-long"),
        pytest.param("user", USER | {"email": "nobody"}, "email", "an e-mail address, not 'nobody'", id="email"),
        pytest.param("user", USER | {"orcid": "1234"}, "orcid", "should be an ORCID iD", id="orcid"),
        pytest.param("user", USER | {"orcid": "٠٠٠٠-٠٠٠٠-٠٠٠٠-٠٠٠٠"}, "orcid", "should be an ORCID iD", id="orcid-other-digits"),
        pytest.param("user", USER | {"given_name": "A\x00B"}, "given_name", "control character", id="control-character"),
        pytest.param("user", USER | {"affiliation_id": "zz"}, "affiliation_id", "there is no affiliation 'zz'", id="dangling"),
        pytest.param("user", USER | {"instances_allotted": "-2"}, "instances_allotted", "-1 or more, not '-2'", id="allotted"),
        pytest.param("user", USER | {"subject": "s"}, "subject", "goes with an issuer", id="subject-alone"),
        pytest.param("user", USER | {"issuer": "i", "subject": "s"}, "subject", "the sign-on of user '9'", id="sign-on-of-another"),
        pytest.param("proposal", {"id": "P", "title": "T", "url": "javascript:x()"}, "url", "http(s) address", id="url"),
        pytest.param("experiment", EXPERIMENT | {"proposal_id": "P9"}, "proposal_id", "there is no proposal 'P9'", id="dangling-2"),
        pytest.param("experiment", EXPERIMENT | {"starts_at": "soon"}, "starts_at", "'soon' is not a date", id="date"),
        pytest.param("experiment", EXPERIMENT | {"starts_at": "01/03/2026"}, "starts_at", "is not a date", id="date-slashes"),
        pytest.param("experiment", EXPERIMENT | {"starts_at": "2026-02-30"}, "starts_at", "is not a date", id="no-such-day"),
        pytest.param("experiment", EXPERIMENT | {"starts_at": "1767225600"}, "starts_at", "is not a date", id="seconds"),
        pytest.param("experiment", EXPERIMENT | {"starts_at": "today+2d 25:00"}, "starts_at", "is not a date", id="no-such-hour"),
        pytest.param("experiment", EXPERIMENT | {"starts_at": "today-3"}, "starts_at", "is not a date", id="today-unfinished"),
        pytest.param(
            "experiment",
            EXPERIMENT | {"starts_at": "today+2d", "ends_at": "today"},
            "ends_at",
            "ends before it starts (2026-03-12 00:00)",
            id="dates-reversed",
        ),
        pytest.param(
            "experiment_member",
            {"experiment_id": "E1", "user_id": "1", "role": "boss"},
            "role",
            "one of principal-investigator, member, local-contact, not 'boss'",
            id="member-role",
        ),
        pytest.param("user_role", {"user_id": "1", "role": "king"}, "role", "not 'king'", id="facility-role"),
        pytest.param("user_role", {"user_id": "9", "role": "guest"}, "user_id", "there is no user '9'", id="dangling-3"),
        pytest.param("plan", PLAN | {"cores": "two"}, "cores", "a whole number, not 'two'", id="number"),
        pytest.param("plan", PLAN | {"position": "first"}, "position", "a whole number, not 'first'", id="number-with-default"),
        pytest.param("plan", PLAN | {"cores": 2.5}, "cores", "a whole number, not '2.5'", id="number-broken"),
        pytest.param("plan", PLAN | {"cores": 0}, "cores", "1 or more, not '0'", id="number-too-small"),
        pytest.param("plan", PLAN | {"memory_mb": 2**40}, "memory_mb", "less than", id="number-too-large"),
        pytest.param(
            "plan", PLAN | {"limits": '[{"roles": ["king"]}]'}, "limits", "0.roles.0: Input should be", id="role-in-limit"
        ),
        pytest.param("plan", PLAN | {"limits": "staff"}, "limits", "Invalid JSON", id="limits-not-json"),
        pytest.param("plan", PLAN | {"limits": '[{"rolls": []}]'}, "limits", "0.rolls: Extra", id="limit-unknown"),
        pytest.param(
            "plan",
            PLAN | {"limits": '[{"instruments": ["I1", "I9"]}]'},
            "limits",
            "there is no instrument 'I9'",
            id="dangling-limit",
        ),
        pytest.param("plan", PLAN | {"lifetimes": '{"": 0}'}, "lifetimes", "greater than 0", id="lifetime-of-nothing"),
    ],
)
def test_a_row_is_rejected_with_its_place_and_reason(table, row, field, reason):
    checked = Checked(table, row)
    assert not checked.accepted
    [rejection] = checked.rejections
    assert (rejection["record"], rejection["place"], rejection["line"], rejection["field"]) == (table, f"{table}s.csv", 2, field)
    assert reason in rejection["reason"]


@pytest.mark.parametrize(
    ("table", "row", "field", "value"),
    [
        pytest.param("user", USER | {"given_name": "  Þórður "}, "given_name", "Þórður", id="blanks-around"),
        pytest.param("user", USER | {"id": 17}, "id", "17", id="number-for-id"),
        pytest.param("user", USER | {"email": ""}, "email", None, id="blank-is-nothing"),
        pytest.param("user", USER, "given_name", "", id="one-name-only"),
        pytest.param("user", USER | {"instances_allotted": "-1"}, "instances_allotted", -1, id="without-limit"),
        pytest.param("experiment", EXPERIMENT, "ends_at", None, id="open-end"),
        pytest.param("experiment", EXPERIMENT | {"starts_at": "today", "ends_at": "today"}, "ends_at", TODAY, id="no-length"),
        pytest.param("experiment_member", {"experiment_id": "E1", "user_id": "1"}, "role", "member", id="role-by-default"),
        pytest.param("plan", PLAN, "cores", 2, id="number-as-text"),
        pytest.param("plan", PLAN | {"cores": 4.0}, "cores", 4, id="number-as-fraction"),
        pytest.param("plan", PLAN, "position", 100, id="position-by-default"),
        pytest.param("plan", PLAN, "limits", "[]", id="no-limits"),
        pytest.param("plan", PLAN | {"limits": [{"roles": ["staff"]}]}, "limits", '[{"roles": ["staff"]}]', id="limits-as-lists"),
        pytest.param(
            "plan",
            PLAN | {"limits": '[{"until": "2026-03-01T01:00:00+01:00", "groups": [" g "]}]'},
            "limits",
            '[{"groups": ["g"], "until": "2026-03-01T01:00:00+01:00"}]',
            id="limits-in-one-spelling",
        ),
        pytest.param("plan", PLAN | {"lifetimes": '{"staff": 30, "": 7}'}, "lifetimes", '{"": 7.0, "staff": 30.0}', id="lifetimes"),
    ],
)
def test_a_row_is_accepted(table, row, field, value):
    checked = Checked(table, row)
    assert checked.rejections == []
    [values] = checked.accepted
    assert values[field] == value


def test_every_fault_of_a_row_is_told():
    assert [field for _, field, _ in Checked("user", {"id": "1", "login": "A", "email": "x"}).reasons] == [
        "login",
        "family_name",
        "email",
    ]


@pytest.mark.parametrize("column", ["instance_quota", "shoe_size"], ids=["what-an-admin-sets", "unknown"])
def test_a_column_that_no_source_may_fill_stops_the_run(column):
    with pytest.raises(SourceError, match=f"user: there is no column '{column}'"):
        Checked("user", USER | {column: "1"})


def test_a_column_that_is_nearly_right_is_guessed():
    with pytest.raises(SourceError, match="there is no column 'famly_name'; did you mean family_name"):
        Checked("user", {"id": "1", "login": "ann", "famly_name": "L"})


@pytest.mark.parametrize(
    ("table", "row"),
    [
        pytest.param("proposal", {"id": "P", "title": ["T"]}, id="list-for-text"),
        pytest.param("user", USER | {"id": 17.5}, id="fraction-for-id"),
        pytest.param("experiment", EXPERIMENT | {"starts_at": 17}, id="number-for-date"),
        pytest.param("user", USER | {"family_name": b"L"}, id="bytes"),
    ],
)
def test_a_column_of_a_type_that_cannot_be_meant_stops_the_run(table, row):
    with pytest.raises(SourceError, match="cannot be read"):
        Checked(table, row)


# --- moments


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2026-03-01", datetime(2026, 3, 1, tzinfo=UTC)),
        ("2026-03-01 08:15", datetime(2026, 3, 1, 8, 15, tzinfo=UTC)),
        ("2026-03-01T08:15:00Z", datetime(2026, 3, 1, 8, 15, tzinfo=UTC)),
        ("2026-03-01T08:15:00.250+00:00", datetime(2026, 3, 1, 8, 15, 0, 250_000, tzinfo=UTC)),
        ("2026-03-01T08:15+02:00", datetime(2026, 3, 1, 6, 15, tzinfo=UTC)),
        ("2026-03-01 08:15:00+0200", datetime(2026, 3, 1, 6, 15, tzinfo=UTC)),
        ("today", datetime(2026, 3, 10, tzinfo=UTC)),
        ("today 07:30", datetime(2026, 3, 10, 7, 30, tzinfo=UTC)),
        ("today-3d 08:00", datetime(2026, 3, 7, 8, tzinfo=UTC)),
        ("today+22d", datetime(2026, 4, 1, tzinfo=UTC)),
        (date(2026, 3, 1), datetime(2026, 3, 1, tzinfo=UTC)),
        (datetime(2026, 3, 1, 8), datetime(2026, 3, 1, 8, tzinfo=UTC)),  # noqa: DTZ001
        (datetime(2026, 3, 1, 8, tzinfo=UTC), datetime(2026, 3, 1, 8, tzinfo=UTC)),
    ],
    ids=str,
)
def test_a_moment_is_iso_or_counts_from_today(written, meant):
    assert Checked("experiment", EXPERIMENT | {"starts_at": written}).accepted[0]["starts_at"] == meant


@pytest.mark.parametrize(
    "written",
    [None, "", "0000-00-00", "0000-00-00 00:00:00", "9999-12-31", "9999-12-31T23:59:59Z", datetime(9999, 12, 31, tzinfo=UTC)],
    ids=str,
)
def test_an_open_end_has_no_moment(written):
    checked = Checked("experiment", EXPERIMENT | {"ends_at": written})
    assert checked.rejections == []
    assert checked.accepted[0]["ends_at"] is None


@pytest.mark.parametrize("as_text", [True, False], ids=["text", "typed"])
@pytest.mark.parametrize(
    ("zone", "local", "starts", "ends"),
    [
        pytest.param("Europe/Paris", "2026-01-10 08:00:00", "07:00", "07:00", id="winter"),
        pytest.param("Europe/Paris", "2026-07-10 08:00:00", "06:00", "06:00", id="summer"),
        pytest.param("Europe/Paris", "2026-03-29 02:30:00", "01:30", "01:30", id="left-out-by-a-spring-night"),
        pytest.param("Europe/Paris", "2026-10-25 02:30:00", "00:30", "01:30", id="twice-in-an-autumn-night"),
        pytest.param("Asia/Kolkata", "2026-01-10 08:00:00", "02:30", "02:30", id="half-an-hour"),
    ],
)
def test_a_local_time_is_placed_in_the_zone_of_its_source(zone, local, starts, ends, as_text):
    moment = local if as_text else datetime.fromisoformat(local)
    [row] = Checked("experiment", EXPERIMENT | {"starts_at": moment, "ends_at": moment}, zone=zone).accepted
    assert [f"{row[name]:%H:%M}" for name in ("starts_at", "ends_at")] == [starts, ends]


def test_a_zone_that_is_written_is_stronger_than_that_of_the_source():
    [row] = Checked("experiment", EXPERIMENT | {"starts_at": "2026-01-10T08:00:00+05:00"}, zone="Europe/Paris").accepted
    assert row["starts_at"] == datetime(2026, 1, 10, 3, tzinfo=UTC)


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_is_a_moment_or_refused(written):
    checked = Checked("experiment", EXPERIMENT | {"starts_at": written})
    assert len(checked.accepted) + len(checked.rejections) == 1


# --- rows among each other, and against what is held


def test_the_second_of_two_rows_with_one_key_is_rejected():
    checked = Checked("user", USER, USER | {"login": "other"})
    assert [values["login"] for values in checked.accepted] == ["ann"]
    assert checked.reasons == [(3, "id", "the same as in line 2")]


def test_the_same_row_twice_is_once():
    checked = Checked("user", USER, USER)
    assert (len(checked.accepted), checked.rejections) == (1, [])


@pytest.mark.parametrize(
    ("parts", "strongest"),
    [
        (["member", "principal-investigator"], MemberOf.PRINCIPAL_INVESTIGATOR),
        (["local-contact", "principal-investigator", "member"], MemberOf.PRINCIPAL_INVESTIGATOR),
        (["member", "local-contact"], MemberOf.LOCAL_CONTACT),
        ([None, "member"], MemberOf.MEMBER),
    ],
)
def test_of_several_parts_in_an_experiment_the_strongest_holds(parts, strongest):
    checked = Checked("experiment_member", *({"experiment_id": "E1", "user_id": "1", "role": part} for part in parts))
    assert checked.rejections == []
    assert [row["role"] for row in checked.accepted] == [strongest]


def test_the_second_of_two_users_with_one_login_is_rejected():
    checked = Checked("user", USER, USER | {"id": "2"})
    assert [row["id"] for row in checked.accepted] == ["1"]
    assert "'ann' belongs to user '1'" in checked.reasons[0][2]


def test_the_second_of_two_users_with_one_sign_on_is_rejected():
    account = {"issuer": "https://sso", "subject": "x"}
    checked = Checked("user", USER | account, USER | {"id": "2", "login": "bob"} | account)
    assert [row["id"] for row in checked.accepted] == ["1"]
    assert checked.reasons == [(3, "subject", "is the sign-on of user '1'")]


@pytest.mark.parametrize("ended", [False, True], ids=["here", "gone"])
def test_the_login_of_one_person_is_never_given_to_another(ended):
    checked = Checked("user", USER, held=held_frame("user", {"id": "9", "login": "ann", "family_name": "Z", ENDED: ended}))
    assert "'ann' belongs to user '9'" in checked.reasons[0][2]


@pytest.mark.parametrize(
    ("source", "ended", "rejected"),
    [("files", False, False), ("other", False, True), ("", False, True), ("other", True, False)],
    ids=["own", "of-another", "by-hand", "ended-of-another"],
)
def test_a_record_that_holds_belongs_to_its_source(source, ended, rejected):
    checked = Checked("user", USER, held=held_frame("user", USER | {SOURCE: source, ENDED: ended}))
    assert bool(checked.rejections) is rejected


@pytest.mark.parametrize("ended", [False, True], ids=["granted", "withdrawn"])
def test_a_role_that_an_admin_set_stays_as_it_is_without_a_word(ended):
    role = {"user_id": "1", "role": "staff"}
    checked = Checked("user_role", role, held=held_frame("user_role", role | {SOURCE: "", ENDED: ended}))
    assert (checked.accepted, checked.rejections) == ([], [])


@pytest.mark.parametrize(
    ("row", "ended"),
    [
        pytest.param(USER | {"id": "2", "login": "bob"}, [("1",)], id="not-named"),
        pytest.param(USER | {"login": "ANN"}, [], id="key-readable"),
        pytest.param({"login": "ann", "family_name": "L"}, [], id="key-missing"),
        pytest.param(USER | {"id": "7", FAULT: "has 9 cells"}, [], id="not-to-be-trusted"),
        pytest.param(USER | {"login": None}, [], id="skipped"),
    ],
)
def test_only_readable_keys_tell_what_is_gone(row, ended):
    assert Checked("user", row, held=held_frame("user", USER)).ended == ended


@pytest.mark.parametrize(
    ("row", "skipped"),
    [(USER | {"login": ""}, True), (USER | {"login": "ANN"}, False)],
    ids=["without-a-login", "at-fault"],
)
def test_a_person_without_a_login_is_left_out_and_is_nobodys_fault(row, skipped):
    assert [one["skipped"] for one in Checked("user", row).rejections] == [skipped]


# --- the schema


def test_fields_are_columns_of_the_tables():
    of_hutch = {"source", "run_id", "ended_at", "instance_quota", "core_quota", "forgotten_at"}
    for table, shape in SHAPES.items():
        assert set(shape.stored) == set(Base.metadata.tables[table].columns.keys()) - of_hutch


def test_what_the_tables_must_have_is_demanded_or_has_a_default():
    for shape in SHAPES.values():
        for name in shape.stored:
            if not shape.table.c[name].nullable and (shape.name, name) != (User.__tablename__, "login"):
                assert shape.fields[name].required or shape.fields[name].default is not None, f"{shape.name}.{name}"


def test_moments_are_moments_in_the_tables():
    for shape in SHAPES.values():
        for name, dtype in shape.stored.items():
            assert (dtype == TIME) is isinstance(shape.table.c[name].type, UTCDateTime), f"{shape.name}.{name}"
