"""What becomes of an instance: the state that people see, intents that overtake each other, marks and their removal."""

from __future__ import annotations

from datetime import timedelta

import pytest
from databases import ON_POSTGRESQL, database_url, upgrade
from sqlalchemy import event
from sqlalchemy.orm import Session

from hub import instances, notices
from hub.configuration import Hutch
from hub.database.engine import open_database, sessions
from hub.database.tables import Instance, Intent, IntentKind, Outcome, Plan, User, now
from hub.instances import State, in_force, state_of
from hub.steward import tasks

LAUNCH, STOP, DELETE, RESTORE = IntentKind.LAUNCH, IntentKind.STOP, IntentKind.DELETE, IntentKind.RESTORE
LIFETIME = timedelta(days=14)
DONE, FAILED, CANCELLED = Outcome.DONE, Outcome.FAILED, Outcome.CANCELLED


def intent(kind: IntentKind, outcome: Outcome | None = None) -> Intent:
    return Intent(instance_id="1", kind=kind, outcome=outcome, actor="ann")


@pytest.mark.parametrize(
    ("latest", "seen", "state"),
    [
        pytest.param(None, {}, State.STOPPED, id="never-launched"),
        pytest.param(intent(LAUNCH, DONE), {"ready": True}, State.RUNNING, id="running"),
        pytest.param(intent(LAUNCH), {"pending": "spawn"}, State.LAUNCHING, id="launching"),
        pytest.param(intent(LAUNCH, DONE), {"pending": "stop"}, State.STOPPING, id="stopping"),
        pytest.param(intent(LAUNCH, DONE), {"pending": "stop", "ready": True}, State.STOPPING, id="stopping-while-ready"),
        pytest.param(intent(LAUNCH, DONE), {}, State.UNREACHABLE, id="lost-sight-of"),
        pytest.param(intent(LAUNCH), {}, State.UNREACHABLE, id="cut-off-in-its-launch"),
        pytest.param(intent(LAUNCH, FAILED), {}, State.FAILED, id="failed"),
        pytest.param(intent(LAUNCH, CANCELLED), {}, State.STOPPED, id="cancelled"),
        pytest.param(intent(STOP, DONE), {}, State.STOPPED, id="stopped"),
        pytest.param(intent(STOP), {}, State.STOPPED, id="stop-not-carried-out-yet"),
        pytest.param(intent(STOP), {"ready": True}, State.STOPPING, id="a-launch-being-cancelled"),
        pytest.param(intent(RESTORE, DONE), {}, State.STOPPED, id="restored"),
        pytest.param(intent(DELETE), {"deleted": True}, State.DELETED, id="deleted"),
        pytest.param(intent(LAUNCH, DONE), {"deleted": True, "ready": True}, State.DELETED, id="deleted-while-running"),
        pytest.param(intent(LAUNCH, FAILED), {"pending": "spawn"}, State.LAUNCHING, id="tried-again"),
    ],
)
def test_the_state_that_people_see(latest, seen, state):
    assert state_of(latest, **seen) is state


@pytest.mark.parametrize(
    ("intents", "place"),
    [
        pytest.param([], None, id="none"),
        pytest.param([intent(LAUNCH, DONE)], 0, id="launched"),
        pytest.param([intent(LAUNCH, DONE), intent(STOP, DONE)], 1, id="stopped"),
        pytest.param([intent(LAUNCH, DONE), intent(STOP)], 1, id="being-stopped"),
        pytest.param([intent(LAUNCH, DONE), intent(STOP, FAILED)], 0, id="a-stop-that-failed-does-not-count"),
        pytest.param([intent(LAUNCH, DONE), intent(STOP, CANCELLED)], 0, id="a-stop-that-was-cancelled-does-not-count"),
        pytest.param([intent(LAUNCH, DONE), intent(LAUNCH, FAILED)], 1, id="a-launch-that-failed-counts"),
        pytest.param([intent(STOP, FAILED)], None, id="only-what-does-not-count"),
    ],
)
def test_the_intent_in_force(intents, place):
    assert in_force(intents) is (None if place is None else intents[place])


@pytest.fixture
def session(tmp_path) -> Session:
    engine = open_database(database_url(tmp_path))
    upgrade(engine)
    with sessions(engine)() as session:
        session.add(User(id="1", login="ann", given_name="Ann", family_name="L"))
        session.add(Plan(id="notebook", name="Notebook", image="i", flavor="f", cores=1, memory_mb=1))
        session.flush()
        yield session


@pytest.fixture
def instance(session: Session) -> Instance:
    return create(session)


def create(session: Session, name: str = "films", *, lifetime: timedelta | None = LIFETIME, plan: str = "notebook") -> Instance:
    fields = {"plan_id": plan, "plan_name": plan.title(), "experiment_ids": [], "lifetime": lifetime}
    return instances.create(session, owner_id="1", server_name=name, display_name="Films", **fields)


def test_the_history_begins_with_the_plan_by_its_name(instance):
    assert [(event.kind, event.actor, event.message) for event in instance.events] == [("created", "1", "plan Notebook")]


@pytest.mark.parametrize(("days", "ends"), [(14, True), (0.5, True), (0, False)])
def test_an_instance_ends_when_its_lifetime_is_over_and_never_without_one(session, days, ends):
    instance = create(session, lifetime=Hutch(lifetime_days=days).lifetime)
    if ends:
        assert abs(instance.ends_at - now() - timedelta(days=days)) < timedelta(minutes=5)
    else:
        assert instance.ends_at is None


def test_what_is_wanted_later_overtakes_what_is_not_done_yet(session, instance):
    first = instances.intend(session, instance.id, LAUNCH, "ann")
    second = instances.intend(session, instance.id, STOP, "grace", "maintenance")
    assert (first.outcome, first.message) == (CANCELLED, "overtaken: stop by grace")
    assert instances.latest_intent(session, instance.id) is second and second.outcome is None


def test_what_was_done_is_not_touched_by_what_is_wanted_later(session, instance):
    first = instances.intend(session, instance.id, LAUNCH, "ann")
    instances.conclude(session, first, DONE)
    instances.intend(session, instance.id, STOP, "ann")
    assert first.outcome == DONE


def test_whoever_still_holds_an_intent_as_open_does_not_conclude_it_twice(session, instance):
    held = instances.intend(session, instance.id, LAUNCH, "ann")
    session.expunge(held)
    instances.intend(session, instance.id, STOP, "grace")
    instances.conclude(session, held, DONE)
    session.expire_all()
    assert instance.intents[0].outcome == CANCELLED
    assert "launch-done" not in [event.kind for event in instance.events]


def test_what_the_table_fills_in_can_be_read_of_a_new_instance(session):
    instance = create(session)
    assert instance.when_owner_leaves == "disconnect" and instance.created_at <= now() and instance.members


def test_a_deletion_is_marked_once(session, instance):
    instances.mark_deleted(session, instance, "ann", "done with it", timedelta(days=7))
    marked = (instance.deleted_at, instance.purge_at)
    instances.mark_deleted(session, instance, "grace", "again", timedelta(days=1))
    assert (instance.deleted_at, instance.purge_at) == marked
    assert instances.latest_intent(session, instance.id).actor == "ann"


def test_what_is_due_is_what_was_marked_long_enough_ago(session, instance):
    instances.mark_deleted(session, instance, "ann", "", timedelta(days=7))
    session.flush()
    assert instances.due_for_purge(session, now()) == []
    assert instances.due_for_purge(session, now() + timedelta(days=8)) == [instance]
    instance.purged_at = now()
    session.flush()
    assert instances.due_for_purge(session, now() + timedelta(days=8)) == []


def test_a_restored_instance_is_as_before(session, instance):
    instances.mark_deleted(session, instance, "ann", "", timedelta(days=7))
    instances.restore(session, instance, "ann", LIFETIME)
    session.flush()
    assert (instance.deleted_at, instance.purge_at) == (None, None)
    assert state_of(instances.latest_intent(session, instance.id)) is State.STOPPED
    assert instances.due_for_purge(session, now() + timedelta(days=8)) == []


@pytest.mark.parametrize(
    ("lifetime", "ended", "ends"),
    [
        pytest.param(LIFETIME, timedelta(days=-1), LIFETIME, id="over"),
        pytest.param(LIFETIME, timedelta(days=1), LIFETIME, id="nearly-over"),
        pytest.param(LIFETIME, timedelta(days=30), timedelta(days=30), id="longer-than-a-new-one"),
        pytest.param(None, timedelta(days=-1), None, id="no-end-any-more"),
        pytest.param(LIFETIME, None, None, id="never-had-an-end"),
    ],
)
def test_a_restored_instance_has_a_lifetime_before_it(session, instance, lifetime, ended, ends):
    began = now()
    instance.ends_at = ended and began + ended
    instances.mark_deleted(session, instance, "ann", "", timedelta(days=7))
    instances.restore(session, instance, "ann", lifetime)
    if ends:
        assert began + ends <= instance.ends_at <= now() + ends
    else:
        assert instance.ends_at is None


@pytest.mark.parametrize(("days", "left"), [(7, "You can restore it"), (0, "It is deleted.")])
def test_the_owner_is_told_that_a_lifetime_is_over(session, instance, days, left):
    instance.ends_at = now()
    session.flush()
    tasks.expire(session, timedelta(days=days))
    session.flush()
    (notice,) = notices.unseen(session, "1")
    assert left in notice.text


@pytest.mark.parametrize("purged", [True, False], ids=["gone", "about-to-go"])
def test_what_is_gone_cannot_be_restored(session, instance, purged):
    instances.mark_deleted(session, instance, "ann", "", timedelta(days=7) if purged else timedelta(0))
    instance.purged_at = now() if purged else None
    with pytest.raises(ValueError, match="Films was deleted for good on"):
        instances.restore(session, instance, "ann", LIFETIME)


def test_what_was_restored_while_its_server_went_does_not_count_as_purged(session, instance):
    instances.mark_deleted(session, instance, "ann", "", timedelta(days=7))
    instances.restore(session, instance, "ann", LIFETIME)
    tasks._purged(session, instance.id)
    assert instance.purged_at is None


def test_a_name_that_is_taken_again_cannot_be_restored(session, instance):
    instances.mark_deleted(session, instance, "ann", "", timedelta(days=7))
    session.flush()
    create(session)
    with pytest.raises(ValueError, match="There is a newer instance with the name films"):
        instances.restore(session, instance, "ann", LIFETIME)


def test_a_launch_takes_as_long_as_the_last_ones_did(session, instance):
    assert instances.expected_seconds(session, "notebook") is None
    for seconds in (10.0, 30.0, 20.0):
        instances.record_event(session, instance.id, "ready", seconds=seconds)
    instances.record_event(session, instance.id, "boot", seconds=1000.0)
    instances.record_event(session, instance.id, "ready")
    session.flush()
    assert instances.expected_seconds(session, "notebook") == 20.0
    assert instances.expected_seconds(session, "another") is None


def test_the_last_launches_of_all_plans_are_told_newest_first(session, instance, monkeypatch):
    monkeypatch.setattr(instances, "LATELY", 4)
    session.add(Plan(id="desktop", name="Desktop", image="i", flavor="f", cores=1, memory_mb=1))
    session.flush()
    other = create(session, "scans", plan="desktop")
    for one, seconds in (instance, 1.0), (instance, 2.0), (other, 3.0), (instance, 4.0), (instance, 5.0):
        instances.record_event(session, one.id, "ready", seconds=seconds)
        session.flush()
    assert instances.launch_seconds(session) == {"notebook": [5.0, 4.0, 2.0], "desktop": [3.0]}
    assert instances.launch_seconds(session, "notebook", last=2) == {"notebook": [5.0, 4.0]}


def test_the_last_launches_are_found_without_reading_the_whole_history(session):
    asked = []

    @event.listens_for(session.bind, "before_cursor_execute")
    def _note(connection, cursor, statement, parameters, context, executemany):
        asked.append((statement, parameters))

    instances.launch_seconds(session, "notebook")
    ((statement, parameters),) = asked
    connection = session.connection()
    if ON_POSTGRESQL:
        # it reads small tables whole, unless it is told not to
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
    explain = "EXPLAIN" if ON_POSTGRESQL else "EXPLAIN QUERY PLAN"
    steps = [row[-1].strip() for row in connection.exec_driver_sql(f"{explain} {statement}", parameters)]
    assert any("ix_instance_event_kind_id" in step for step in steps)
    assert not any(step.startswith(("SCAN instance", "Seq Scan on instance")) for step in steps), steps
