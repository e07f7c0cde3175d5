"""The order of launches that wait, and whose turn it is: the rules, without a database."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.capacity import CAPACITY, QUOTA, Room
from hub.queue import FIRST_PAUSE, LONGEST_PAUSE, TURN, Waiting, estimated, in_order, may_pass, turns
from spawner.cloud_errors import Trouble

pytestmark = pytest.mark.any_database

AT = datetime(2026, 3, 10, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
FLAVORS = {"small": {"cores": 2, "ram": 4096, "disk": 20}, "large": {"cores": 8, "ram": 32768, "disk": 80}}


def waits(user: str, number: int = 1, hours: float = 1, **more) -> Waiting:
    """One who has waited for so many hours."""
    values = {"flavor": "small", "places": [], "reason": QUOTA, "since": AT - hours * HOUR, **more}
    return Waiting(intent_id=number, instance_id=f"i{number}", user_id=user, login=user, server_name=f"s{number}", **values)


def room(cores: int = 1000, hosts: tuple[int, ...] | None = None, used: int = 0) -> dict[str, Room]:
    free = None if hosts is None else tuple({"cores": count, "ram": 1_000_000, "disk": 1000} for count in hosts)
    return {"": Room(AT, {"instances": (-1, 5), "cores": (cores + used, used)}, FLAVORS, free)}


def names(line: list[Waiting]) -> list[str]:
    return [f"{one.user_id}{one.intent_id}" for one in line]


def test_the_reasons_are_those_of_the_cloud():
    assert (QUOTA, CAPACITY) == (Trouble.QUOTA, Trouble.CAPACITY)


# --- order


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        pytest.param([waits("b", 2, 1), waits("a", 1, 2)], ["a1", "b2"], id="by-age"),
        pytest.param([waits("a", 1, 5), waits("a", 2, 4), waits("b", 3, 3)], ["a1", "b3", "a2"], id="in-rounds"),
        pytest.param([waits("a", 1, 5, held=1), waits("b", 2, 3)], ["b2", "a1"], id="who-has-one-comes-later"),
        pytest.param([waits("a", 1, 30, held=1), waits("b", 2, 3)], ["a1", "b2"], id="but-not-for-ever"),
        pytest.param([waits("a", 2, 1), waits("b", 1, 1)], ["b1", "a2"], id="at-the-same-moment"),
    ],
)
def test_the_order(line, expected):
    assert names(in_order(line)) == expected


@st.composite
def lines(draw) -> list[Waiting]:
    count = draw(st.integers(1, 12))
    held = draw(st.dictionaries(st.sampled_from("abcd"), st.integers(0, 5)))
    line = []
    for number in range(count):
        user = draw(st.sampled_from("abcd"))
        line.append(waits(user, number, draw(st.floats(0, 100)), held=held.get(user, 0)))
    return line


@given(lines(), st.randoms())
def test_the_order_does_not_depend_on_how_rows_come(line, random):
    shuffled = random.sample(line, len(line))
    assert in_order(shuffled) == in_order(line)


@given(lines())
def test_nobody_overtakes_who_has_no_more_and_asked_before(line):
    order, rank = in_order(line), {}
    seen: Counter[str] = Counter()
    for one in sorted(line, key=lambda one: (one.since, one.intent_id)):
        rank[one.intent_id] = one.held + seen[one.user_id]
        seen[one.user_id] += 1
    for place, one in enumerate(order):
        for later in order[place + 1 :]:
            asked_before = (later.since, later.intent_id) < (one.since, one.intent_id)
            assert not asked_before or rank[later.intent_id] > rank[one.intent_id]


@given(lines(), st.lists(st.sampled_from("vwxyz"), max_size=30), st.integers(0, 11))
def test_nobody_starves(line, crowd, place):
    """However many come later, whoever has waited for a turn more than it has instances and waits is before all of them."""
    one = line[place % len(line)]
    rank = one.held + len(line)
    late = [waits(user, 100 + number, hours=-(rank * TURN / HOUR)) for number, user in enumerate(crowd)]
    order = in_order([*line, *late])
    assert all(order.index(one) < order.index(other) for other in late)


# --- turns


def small(number: int, **more) -> Waiting:
    return waits(f"u{number}", number, 10 - number, **more)


@pytest.mark.parametrize(
    ("line", "rooms", "expected"),
    [
        pytest.param([small(1), small(2)], room(4), [1, 2], id="both-fit"),
        pytest.param([small(1), small(2)], room(3), [1], id="one-fits"),
        pytest.param([small(1)], room(1), [], id="none-fits"),
        pytest.param([small(1, flavor="large"), small(2)], room(7), [], id="room-is-kept-for-the-first"),
        pytest.param([small(1, flavor="large"), small(2)], room(9), [1], id="the-first-takes-it"),
        pytest.param([small(1, flavor="large"), small(2)], room(10), [1, 2], id="room-for-both"),
        pytest.param([small(1), small(2)], {}, [1], id="unknown-one-at-a-time"),
        pytest.param([small(1), small(2, flavor="large")], {}, [1, 2], id="unknown-one-of-each-flavor"),
        pytest.param([small(1, reason=CAPACITY), small(2, reason=CAPACITY)], room(), [1], id="hosts-unknown-one-at-a-time"),
        pytest.param([small(1, reason=CAPACITY), small(2, reason=CAPACITY)], room(hosts=(4,)), [1, 2], id="hosts-known"),
        pytest.param([small(1, flavor="large", reason=CAPACITY), small(2)], room(hosts=(4, 4)), [2], id="no-host-is-large-enough"),
        pytest.param([small(1), small(2)], room(hosts=(2, 1)), [1], id="one-host-has-room"),
        pytest.param([small(1, tried_at=AT)], room(), [], id="tried-a-moment-ago"),
        pytest.param([small(1, tried_at=AT), small(2)], room(2), [], id="its-room-is-kept-meanwhile"),
        pytest.param([small(1, tried_at=AT - LONGEST_PAUSE * 2, tries=99)], room(), [1], id="tried-often"),
        pytest.param([small(1, places=["north", "south"])], {"north": room(0)[""], "south": room(2)[""]}, [1], id="second-place"),
        pytest.param([small(1, places=["north"])], room(2) | {"north": room(0)[""]}, [], id="not-in-its-places"),
    ],
)
def test_whose_turn_it_is(line, rooms, expected):
    assert [one.intent_id for one in turns(line, rooms, (), AT)] == expected


def test_what_is_under_way_is_not_posted_again_and_keeps_its_room():
    line = [small(1), small(2)]
    assert turns(line, room(2), {("u1", "s1")}, AT) == []
    assert turns(line, room(4), {("u1", "s1")}, AT) == [line[1]]
    # where nothing is known, the next one waits for how it ends
    assert turns(line, {}, {("u1", "s1")}, AT) == []


@given(lines(), st.integers(0, 30))
def test_never_more_are_posted_than_fit_and_always_the_first(line, cores):
    line = in_order(line)
    chosen = turns(line, room(cores), (), AT + 200 * HOUR)
    assert chosen == line[: cores // 2]


@given(st.integers(0, 50), st.integers(1, 10**6))
def test_pauses_grow_and_are_not_all_the_same(tries, number):
    one = replace(waits("a", number), tries=tries, tried_at=AT)
    usual = min(FIRST_PAUSE * 2 ** min(tries, 20), LONGEST_PAUSE)
    assert 0.75 * usual <= one.due - AT <= 1.25 * usual and one.due == one.due
    assert len({replace(one, intent_id=other).due for other in range(10)}) > 1


@pytest.mark.parametrize(
    ("newcomer", "line", "rooms", "passes"),
    [
        pytest.param("small", [], room(0), True, id="nobody-waits"),
        pytest.param("small", [small(1)], room(1), False, id="nothing-free"),
        pytest.param("small", [small(1)], room(3), False, id="what-is-free-is-for-who-waits"),
        pytest.param("small", [small(1)], room(4), True, id="enough-for-both"),
        pytest.param("small", [small(1, flavor="large")], room(9), False, id="kept-for-a-large-one"),
        pytest.param("small", [small(1, flavor="large", reason=CAPACITY)], room(), True, id="another-kind-of-host"),
        pytest.param("large", [small(1, flavor="large", reason=CAPACITY)], room(), False, id="the-same-kind-of-host"),
        pytest.param("small", [small(1)], {}, False, id="unknown-the-same"),
        pytest.param("large", [small(1)], {}, True, id="unknown-another"),
    ],
)
def test_a_newcomer_waits_only_if_it_would_take_somebodys_room(newcomer, line, rooms, passes):
    assert may_pass(waits("new", 99, 0, flavor=newcomer), line, rooms) is passes


# --- estimates


@pytest.mark.parametrize(
    ("waited", "recent", "ends", "words"),
    [
        (HOUR, [], [], "how long it takes is not known"),
        (HOUR, [9000.0, 9000.0], [], "how long it takes is not known"),
        (HOUR, [9000.0, 7200.0, 5000.0], [], "about 60 minutes by what others waited lately"),
        (3 * HOUR, [9000.0, 7200.0, 5000.0], [], "how long it takes is not known"),
        (3 * HOUR, [], [AT + 50 * HOUR], "at the latest in about 2 days, when deleted instances give back theirs"),
        (3 * HOUR, [], [AT - HOUR], "how long it takes is not known"),
    ],
)
def test_an_estimate_is_given_only_where_there_is_a_ground_for_it(waited, recent, ends, words):
    assert estimated(waited, recent, ends, AT) == words
