"""Whether a flavor fits in what is free: the rules; and what is kept of a reading."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from databases import upgrade
from hypothesis import given
from hypothesis import strategies as st

from hub import capacity
from hub.capacity import CAPACITY, QUOTA, Room, verdict, with_one_more
from hub.database.engine import open_database, sessions
from hub.database.tables import CloudRoom, now

pytestmark = pytest.mark.any_database

AT = datetime(2026, 3, 10, 12, tzinfo=UTC)
FLAVORS = {"small": {"cores": 2, "ram": 4096, "disk": 20}, "odd": {"cores": 2, "ram": 4096, "disk": 20, "special": 1}}
FREE = {"instances": (10, 1), "cores": (20, 2), "ram": (-1, 4096), "port": (50, 1)}


def room(hosts=None, **limits) -> Room:
    return Room(AT, FREE | limits, FLAVORS, hosts)


def host(cores: int, ram: int = 8192, **more: int) -> dict[str, int]:
    return {"cores": cores, "ram": ram, **more}


@pytest.mark.parametrize(
    ("room", "flavor", "trouble", "sure"),
    [
        pytest.param(None, "small", "", False, id="nothing-known"),
        pytest.param(room(), "small", "", False, id="hosts-unknown"),
        pytest.param(room((host(2),)), "small", "", True, id="fits"),
        pytest.param(room((host(1), host(2))), "small", "", True, id="fits-on-the-second-host"),
        pytest.param(room((host(1), host(1))), "small", CAPACITY, True, id="cores-are-scattered"),
        pytest.param(room((host(2, 4095),)), "small", CAPACITY, True, id="memory"),
        pytest.param(room((host(2, disk=19),)), "small", CAPACITY, True, id="disk-of-the-host"),
        pytest.param(room(()), "small", CAPACITY, True, id="no-host-has-anything"),
        pytest.param(room((host(1),)), "odd", "", False, id="asks-for-more-than-is-read"),
        pytest.param(room((host(1),)), "unheard-of", "", False, id="flavor-unknown"),
        pytest.param(room(instances=(1, 1)), "unheard-of", QUOTA, True, id="no-instance-of-any-flavor"),
        pytest.param(room(cores=(20, 19)), "small", QUOTA, True, id="cores"),
        pytest.param(room(cores=(20, 18)), "small", "", False, id="the-last-cores"),
        pytest.param(room(ram=(8191, 4096)), "small", QUOTA, True, id="ram"),
        pytest.param(room(port=(5, 5)), "small", QUOTA, True, id="ports"),
        pytest.param(room(instances=(0, 0)), "small", QUOTA, True, id="closed-for-now"),
    ],
)
def test_what_stands_in_the_way(room, flavor, trouble, sure):
    found = verdict(room, flavor)
    assert (found.trouble, found.sure, found.ever, bool(found.sentence)) == (trouble, sure, True, bool(trouble))


@pytest.mark.parametrize(
    ("room", "sentence"),
    [
        (room(cores=(20, 19)), "The facility's share of the cloud is used up: 19 of 20 cores are taken, and this plan needs 2."),
        (room(instances=(4, 4)), "The facility's share of the cloud is used up: 4 of 4 instances are taken."),
        (room((host(1),)), "No machine of the cloud has 2 cores and 4 GB of memory free just now."),
        (room(cores=(1, 0)), "The facility's share of the cloud is too small: 0 of 1 cores are taken, and this plan needs 2."),
    ],
)
def test_the_reason_is_a_sentence(room, sentence):
    assert verdict(room, "small").sentence == sentence


def test_what_is_larger_than_the_whole_share_will_never_fit():
    assert not verdict(room(cores=(1, 0)), "small").ever
    found = verdict(room(instances=(4, 4), cores=(1, 0)), "small")
    assert not found.ever and "cores" in found.sentence


@given(
    st.integers(-1, 20), st.integers(0, 20), st.lists(st.integers(0, 9), max_size=4) | st.none(), st.sampled_from(["small", "odd"])
)
def test_with_one_more_there_is_never_more_room(limit, used, cores, flavor):
    before = room(None if cores is None else tuple(map(host, cores)), cores=(limit, used))
    after = with_one_more(before, flavor)
    assert not verdict(before, flavor).trouble or verdict(after, flavor).trouble
    assert after.limits["cores"] == (limit, used + 2) and after.limits["instances"] == (10, 2)
    assert sum(one["cores"] for one in after.hosts or ()) >= sum(one["cores"] for one in before.hosts or ()) - 2


def test_a_reading_is_kept_for_all_and_grows_stale(tmp_path):
    engine = open_database(f"sqlite:///{tmp_path}/hutch.sqlite")
    upgrade(engine)
    reading = {"limits": {"cores": [20, 2]}, "flavors": FLAVORS, "hosts": [{"VCPU": 3, "MEMORY_MB": 512}]}
    with sessions(engine).begin() as session:
        for _ in range(2):
            capacity.store(session, "north", reading)
        read = capacity.rooms(session)
        assert read["north"].limits == {"cores": (20, 2)} and read["north"].hosts == ({"cores": 3, "ram": 512},)
        capacity.store(session, "south", {"down_since": AT.isoformat()})
        session.flush()
        assert capacity.down(session) == {"south": AT} and list(capacity.rooms(session)) == ["north"]
        session.get_one(CloudRoom, "south").at = now() - capacity.STALE
        session.flush()
        assert capacity.down(session) == {}
        session.get_one(CloudRoom, "north").at = now() - capacity.STALE
        session.flush()
        assert capacity.rooms(session) == {}
    engine.dispose()
