"""Several places to launch in: the first that has room is taken, and nothing is left behind, lost, or made twice on the way."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from spawner_alone import SpawnerAlone, spawner_alone
from traitlets import TraitError
from traitlets.config import Config

from spawner.cloud_errors import CloudError
from spawner.devcloud.process import DevcloudProcess, running
from spawner.launch import LaunchError
from spawner.openstack import OpenStackSpawner
from spawner.places import clouds


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spawner.reflector.FRESH_SECONDS", 3.0)


# others were faster: Nova counts once more when it has taken a server
AT_BUILD = {
    "capacity": "No valid host was found. ",
    "quota": "Quota exceeded for instances: Requested 1, but already used 9 of 9 instances",
}
AT_CREATE = {
    "capacity-at-create": ("/servers$", 400, "No valid host was found."),
    "closed-zone": ("/servers$", 400, "The requested availability zone is not available"),
    "unified-limits": ("/servers$", 403, "Project 1 is over a limit for [Resource servers is over limit of 9 due to ...]"),
    "addresses": ("/ports$", 409, "No more IP addresses available on network 1."),
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DevcloudProcess, DevcloudProcess]]:
    with (
        running(tmp_path_factory.mktemp("south"), payload="stub") as south,
        running(tmp_path_factory.mktemp("north"), payload="stub") as north,
    ):
        yield south, north


@pytest.fixture
def south(both: Any) -> DevcloudProcess:
    both[0].reset()
    return both[0]


@pytest.fixture
def north(both: Any) -> DevcloudProcess:
    both[1].reset()
    return both[1]


@pytest.fixture
def make(south: DevcloudProcess, north: DevcloudProcess, tmp_path: Path) -> Any:
    """A spawner that may launch in the south, then in the north."""

    def make(**traits: Any) -> SpawnerAlone:
        places = {"south": {}, "north": {"clouds_yaml": str(north.clouds_yaml)}}
        settings = {"places": places, "allowed_places": ["south", "north"], "state_dir": str(tmp_path)} | traits
        return spawner_alone(south.clouds_yaml, **settings)

    return make


def holds(devcloud: DevcloudProcess) -> tuple[int, int]:
    """How many servers and ports it has."""
    with devcloud.connect() as cloud:
        return len(cloud.compute.get("/servers/detail").json()["servers"]), len(cloud.network.get("/ports").json()["ports"])


async def test_the_first_place_is_taken_when_it_has_room(make, south, north):
    spawner = make()
    await spawner.start()
    assert (spawner.place, holds(south), holds(north)) == ("south", (1, 1), (0, 0))


def fill(devcloud: DevcloudProcess, how: str) -> None:
    if how in AT_BUILD:
        devcloud.next_boot(error=AT_BUILD[how])
    elif how in AT_CREATE:
        path, status, message = AT_CREATE[how]
        devcloud.fault(method="POST", path=path, action="status", status=status, message=message)
    else:
        devcloud.quota(**{how: 0})


@pytest.mark.parametrize("how", [*AT_BUILD, *AT_CREATE, "instances", "port"])
async def test_a_place_without_room_is_left_clean_for_the_next(make, south, north, how):
    fill(south, how)
    spawner = make()
    await spawner.start()
    assert (spawner.place, holds(south), holds(north)) == ("north", (0, 0), (1, 1))
    assert "There is no room in one place, trying the next" in [event.message for event in spawner.launch.events]


async def test_when_no_place_has_room_the_launch_says_so_and_the_next_begins_at_the_first(make, south, north):
    for devcloud in (south, north):
        fill(devcloud, "capacity")
    spawner = make()
    with pytest.raises(LaunchError, match=r"There is no room in the cloud for this plan just now\."):
        await spawner.start()
    assert (holds(south), holds(north)) == ((0, 0), (0, 0))
    await spawner.start()
    assert (spawner.place, holds(south), holds(north)) == ("south", (1, 1), (0, 0))


async def test_a_plan_for_one_place_is_tried_nowhere_else(make, south, north):
    fill(south, "instances")
    with pytest.raises(LaunchError, match="used up"):
        await make(allowed_places=["south"]).start()
    assert holds(north) == (0, 0)


async def test_any_other_failure_moves_nothing(make, south, north):
    """Of a cloud that does not answer it is not known what it has made."""
    south.fault(method="POST", path="/servers$", action="drop-after", times=None)
    south.fault(method="GET", path="/servers", action="status", status=503, times=None)
    spawner = make()
    spawner.place, spawner.place_is_kept, spawner.is_new = "south", True, True
    with pytest.raises(LaunchError):
        await spawner.start()
    assert (spawner.place, holds(north)) == ("south", (0, 0))
    south.clear_faults()
    spawner.is_new = False
    await spawner.start()
    assert (spawner.place, holds(south), holds(north)) == ("south", (1, 1), (0, 0))


async def test_a_place_that_cannot_be_cleaned_up_is_not_left(make, south, north):
    fill(south, "instances")
    south.fault(method="DELETE", path="/ports", action="status", status=503, times=None)
    spawner = make()
    with pytest.raises(LaunchError):
        await spawner.start()
    assert (spawner.place, holds(south), holds(north)) == ("south", (0, 1), (0, 0))


async def test_where_nobody_kept_the_place_all_that_are_allowed_are_looked_through(make, south, north):
    """A hub that was killed during a launch has no state of it."""
    fill(south, "instances")
    await make().start()
    south.quota(instances=10)
    found = make()
    await found.start()
    assert (found.place, holds(south), holds(north)) == ("north", (0, 0), (1, 1))
    await found.stop()
    await make().delete_forever()
    assert (holds(south), holds(north)) == ((0, 0), (0, 0))


async def test_the_place_is_part_of_the_state(make):
    spawner, again = make(), make()
    spawner.place = "north"
    again.load_state(spawner.get_state())
    assert again.place == "north"


async def test_an_instance_in_a_place_that_the_site_has_no_more(make):
    spawner = make()
    spawner.server_id, spawner.place = "1", "east"
    assert await spawner.poll() is None and await spawner.get_url()
    await spawner.stop()
    assert not spawner.is_off
    with pytest.raises(LaunchError, match="The place east is not"):
        await spawner.start()


async def test_what_differs_in_a_place_is_asked_for_there(make, south):
    places = {
        "other": {"images": {"notebook": "hutch-notebook"}, "flavors": {"small": "m1.small"}, "network": "hutch"},
        "zone": {"availability_zone": "nowhere"},
        "region": {"region_name": "nowhere"},
        "groups": {"security_groups": ["nowhere"]},
    }
    own = {"image": "notebook", "flavor": "small", "network": "nowhere", "places": places}
    await make(**own, allowed_places=["other"]).start()
    assert holds(south) == (1, 1)
    plain = {"places": places}
    for place, words in {"zone": "not available", "region": "The cloud", "groups": "no security group named nowhere"}.items():
        with pytest.raises(LaunchError, match=words):
            await make(user=place, **plain, allowed_places=[place]).start()
    assert holds(south) == (1, 1)


@pytest.mark.parametrize(
    ("places", "words"),
    [
        pytest.param({"north": {"colour": "red"}}, "north.colour: Extra inputs are not permitted", id="unknown-setting"),
        pytest.param({"north": {"network": 5}}, "north.network: Input should be a valid string", id="not-a-text"),
        pytest.param({"north": {"security_groups": "one"}}, "north.security_groups: Input should be a valid list", id="not-a-list"),
        pytest.param({"north": "North"}, "north: Input should be", id="not-a-place"),
        pytest.param({"": {}}, "should have at least 1 character", id="without-a-name"),
    ],
)
def test_places_that_are_not_right_are_refused_with_what_is_wrong(places, words):
    with pytest.raises(TraitError, match=r"OpenStackSpawner\.places is not right") as caught:
        OpenStackSpawner(config=Config({"OpenStackSpawner": {"places": places}}))
    assert words in str(caught.value)


def test_places_in_one_cloud_share_it():
    places = {"zone": {"availability_zone": "b"}, "north": {"region_name": "North"}, "far": {"cloud_name": "far"}}
    made = clouds(Config({"OpenStackSpawner": {"places": places}}))
    assert made[""] is made["zone"] and len({id(cloud) for cloud in made.values()}) == 3
    assert (made["north"].region, made["far"].name) == ("North", "far")


async def test_a_region_that_the_cloud_does_not_have_is_an_error_and_not_an_empty_cloud(south):
    config = Config({"OpenStackSpawner": {"cloud_name": "devcloud", "clouds_yaml": str(south.clouds_yaml)}})
    config.OpenStackSpawner.places = {"nowhere": {"region_name": "nowhere"}}
    with pytest.raises(CloudError):
        await clouds(config)["nowhere"].servers("1")
