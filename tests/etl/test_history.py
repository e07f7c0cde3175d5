"""The way back: what an undo restores, and when it refuses."""

import pytest
from sqlalchemy import insert, select, update

from etl.frames import SourceError
from etl.history import UndoError, differences, undo
from etl.load import alone
from hub.database.tables import EtlRun, Identity, Plan, UserRole


def untimed(found):
    """Without the numbers of changes, which nothing hangs on."""
    return {name: rows for name, rows in found.items() if name != "etl_change"}


def change_much(office):
    office.put("users", "id,login,family_name,issuer,subject", "1,ann,Lindqvist-Berg,https://sso,a", "3,cem,Demir,,")
    office.put("experiments", "id,proposal_id,instrument_id,starts_at", "P1-1,P1,D22,today", "P1-2,P1,ID16,")
    office.put("experiment_members", "experiment_id,user_id,role", "P1-1,1,member", "P1-2,3,")
    office.put("plans", "id,name,image,flavor,cores,memory_mb,limits", 'a,O,i,f,4,1,"[{""roles"": [""guest""]}]"', "b,B,i,f,1,1,")
    office.put("user_roles", "user_id,role,expires_at", "1,guest,today+5d", "3,staff,")


def begin_with(office):
    office.put("plans", "id,name,image,flavor,cores,memory_mb,limits", 'a,A,i,f,2,1,"[{""roles"": [""staff""]}]"')
    office.put("user_roles", "user_id,role,expires_at", "1,guest,today+30d", "2,guest,")
    office.load()


def test_an_undo_makes_everything_what_it_was(office, engine, everything, rows):
    begin_with(office)
    before = untimed(everything())
    change_much(office)
    report = office.load()
    assert report.objections == []
    assert untimed(everything()) != before
    undo(engine, report.run_id)
    assert untimed(everything()) == before
    last = rows("etl_run")[-1]
    assert (last["kind"], last["undoes"], last["source"], last["outcome"]) == ("undo", report.run_id, "files", "done")
    # and the source may bring it again
    assert office.load().counts == report.counts


def test_the_first_load_may_be_undone(office, engine, everything):
    before = untimed(everything())
    undo(engine, office.load().run_id)
    assert untimed(everything()) == before


def test_runs_are_undone_one_by_one_newest_first(office, engine, everything):
    nothing = untimed(everything())
    begin_with(office)
    first = untimed(everything())
    change_much(office)
    office.load()
    with pytest.raises(UndoError, match="records of run 1 have changed since"):
        undo(engine, 1)
    undo(engine, 2)
    assert untimed(everything()) == first
    undo(engine, 1)
    assert untimed(everything()) == nothing


def test_runs_without_changes_do_not_stand_in_the_way(office, engine, everything):
    before = untimed(everything())
    office.load()
    office.load()
    undo(engine, 1)
    assert untimed(everything()) == before


@pytest.mark.parametrize(
    ("meddle", "reason"),
    [
        pytest.param(
            lambda connection: connection.execute(update(UserRole).values(source="", run_id=None)),
            "user_role: 2 of the 2 records of run 1 have changed since",
            id="an-admin-has-set-roles",
        ),
        pytest.param(
            lambda connection: connection.execute(
                insert(Identity), {"issuer": "https://sso", "subject": "x", "user_id": "2", "linked_by": "login"}
            ),
            "something refers to what it added",
            id="somebody-has-signed-on",
        ),
        pytest.param(
            lambda connection: connection.execute(update(EtlRun).values(outcome="refused")), "changed nothing", id="it-was-refused"
        ),
    ],
)
def test_what_was_built_upon_is_not_undone(office, engine, everything, meddle, reason):
    begin_with(office)
    with engine.begin() as connection:
        meddle(connection)
    before = everything()
    with pytest.raises(UndoError, match=reason):
        undo(engine, 1)
    assert everything() == before


@pytest.mark.parametrize("run_id", [2, 3, 99], ids=["an-undo", "without-changes", "none"])
def test_what_changed_nothing_is_not_undone(office, engine, run_id):
    begin_with(office)
    undo(engine, 1)
    begin_with(office)
    undo(engine, 3)
    begin_with(office)
    office.load()
    with pytest.raises(UndoError, match="changed nothing"):
        undo(engine, {2: 2, 3: 6, 99: 99}[run_id])


def test_a_run_is_not_undone_twice(office, engine, everything):
    begin_with(office)
    change_much(office)
    office.load()
    undo(engine, 2)
    before = everything()
    with pytest.raises(UndoError):
        undo(engine, 2)
    assert everything() == before


def test_nothing_is_undone_while_the_source_is_loaded(office, engine):
    office.load()
    with alone(engine, "files"), pytest.raises(SourceError, match="another run"):
        undo(engine, 1)


def test_the_differences_of_a_run_are_told(office, engine):
    begin_with(office)
    change_much(office)
    report = office.load()
    with engine.connect() as connection:
        told = differences(connection, report.run_id, 50)
        [now] = connection.execute(select(Plan.limits).where(Plan.id == "a")).scalars()
    assert ("user", "1", "family_name", "Lindqvist", "Lindqvist-Berg") in told
    assert ("user_role", "1,guest", "expires_at", "2026-04-09 00:00:00", "2026-03-15 00:00:00") in told
    assert ("plan", "a", "limits", "[{'roles': ['staff']}]", str(now)) in told
    ended = {(table, key) for table, key, field, _, _ in told if field == "ended_at"}
    assert ended == {("user", "2"), ("user_role", "2,guest"), ("experiment_member", "P1-1,2")}
