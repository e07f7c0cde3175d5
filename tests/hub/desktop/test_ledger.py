"""What relays write down, and what they read of it when they start again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest
from databases import database_url, upgrade

from hub import instances
from hub.database.engine import open_database, sessions
from hub.database.tables import DesktopSession, EtlRun, Plan, User, UserRole
from hub.desktop import ledger, relay_of, tickets
from hub.desktop.ledger import BACK_WITHIN, RELAY_ENDED

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)
A_SECOND = timedelta(seconds=1)


@pytest.fixture
def session(tmp_path):
    engine = open_database(database_url(tmp_path))
    upgrade(engine)
    with sessions(engine)() as session:
        session.add(Plan(id="p", name="P", image="i", flavor="f", cores=1, memory_mb=1))
        session.add_all(User(id=one, login=one, given_name=one, family_name="X") for one in ("ann", "bob"))
        session.flush()
        yield session
    engine.dispose()


@pytest.fixture
def instance(session) -> str:
    return launched(session, "a")


def launched(session, name: str) -> str:
    facts = {"owner_id": "ann", "server_name": name, "display_name": name, "plan_id": "p"}
    return instances.create(session, **facts, experiment_ids=[], lifetime=None).id


def line(instance: str, who: str, control: bool = False, ended: timedelta | None = None, why: str = "") -> DesktopSession:
    at = None if ended is None else NOW + ended
    facts = {"instance_id": instance, "user_id": who, "part": "driver", "control": control}
    return DesktopSession(**facts, started_at=NOW - 60 * A_SECOND, ended_at=at, end_reason=why)


def test_a_row_is_written_once_and_brought_up_to_date(session, instance):
    one, other = line(instance, "ann", True), line(instance, "bob")
    one.id, other.id = ledger.write(session, [one, other])
    one.keys, one.bytes_out = 7, 2**40
    one.ended_at, one.end_reason, one.last_input_at = NOW, "sent-away", NOW
    assert ledger.write(session, [one]) == [one.id]
    session.expire_all()
    first, second = session.query(DesktopSession).order_by(DesktopSession.id)
    assert (first.user_id, first.keys, first.bytes_out, first.ended_at, first.end_reason) == ("ann", 7, 2**40, NOW, "sent-away")
    assert (second.user_id, second.keys, second.ended_at, second.end_reason) == ("bob", 0, None, "")


CASES = {
    "left open": ([("ann", False, None, ""), ("bob", True, None, "")], {"ann": False, "bob": True}),
    "ended by the relay just now": ([("ann", True, -A_SECOND, RELAY_ENDED)], {"ann": True}),
    "ended by the relay long ago": ([("ann", True, -BACK_WITHIN, RELAY_ENDED)], {}),
    "left just before": ([("ann", True, -A_SECOND, "closed-1000")], {}),
    "came back after another restart, and left": (
        [("bob", True, -9 * A_SECOND, RELAY_ENDED), ("bob", True, -A_SECOND, "closed-1000"), ("ann", True, None, "")],
        {"ann": True},
    ),
    "drove first, and saw in the end": ([("bob", True, -A_SECOND, "right-changed"), ("bob", False, None, "")], {"bob": False}),
}


@pytest.mark.parametrize("case", CASES)
def test_who_was_there_when_the_relay_ended(session, instance, case):
    rows, there = CASES[case]
    ledger.write(session, [line(instance, *row) for row in rows])
    assert ledger.close_open(session, 0, 1, NOW).get(instance, {}) == there
    assert {row.ended_at is None for row in session.query(DesktopSession)} == {False}
    assert ledger.close_open(session, 0, 1, NOW + BACK_WITHIN).get(instance, {}) == {}


def test_a_relay_leaves_the_rows_of_others_alone(session):
    relays = {relay_of(one, 2): one for one in (launched(session, f"x{number}") for number in range(30))}
    mine, others = relays[0], relays[1]
    ledger.write(session, [line(mine, "ann"), line(others, "ann")])
    assert list(ledger.close_open(session, 0, 2, NOW)) == [mine]
    assert [row.instance_id for row in session.query(DesktopSession).filter_by(ended_at=None)] == [others]


def test_relays_hear_of_events_runs_and_expiries_once(session, instance):
    def looked(at: datetime = NOW) -> ledger.Newest:
        session.flush()
        return ledger.newest(session, at)

    before = looked()
    assert looked() == before
    instances.record_event(session, instance, "member-removed")
    after = looked()
    assert after != before and (after.run, after.expired) == (before.run, before.expired)
    assert instance in ledger.concerned(session, before)
    session.add(EtlRun(source="office", adapter="files"))
    assert looked().run != after.run
    session.add(UserRole(user_id="bob", role="staff", expires_at=NOW + A_SECOND))
    assert looked(NOW).expired == after.expired
    assert looked(NOW + A_SECOND).expired == after.expired + 1


@pytest.mark.parametrize(
    ("what", "after", "whose"),
    [
        ("itself", tickets.VALID_FOR - A_SECOND, "bob"),
        ("itself", tickets.VALID_FOR, None),
        ("another", timedelta(0), None),
        ("elsewhere", timedelta(0), None),
    ],
)
def test_a_ticket_is_good_once(session, instance, what, after, whose):
    ticket = tickets.issue(session, instance, "bob", NOW)
    session.flush()
    shown, where = ("x" * 43 if what == "another" else ticket), ("elsewhere" if what == "elsewhere" else instance)
    assert tickets.redeem(session, shown, where, NOW + after) == whose
    if what != "another":
        assert tickets.redeem(session, ticket, instance, NOW) is None


def test_of_many_who_show_a_ticket_at_once_one_comes_in(session, instance):
    ticket = tickets.issue(session, instance, "bob", NOW)
    session.commit()
    opened = sessions(session.get_bind())

    def redeem(_number: int) -> str | None:
        with opened.begin() as own:
            return tickets.redeem(own, ticket, instance, NOW)

    with ThreadPoolExecutor(8) as threads:
        assert sorted(threads.map(redeem, range(16)), key=bool) == [None] * 15 + ["bob"]
