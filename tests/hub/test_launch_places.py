"""Plans that name places: where an instance is, is on record before anything is made there, and everybody looks for it there."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from facility_hub import FacilityHub, facility
from running_hub import until

from hub.database.tables import Instance, now
from spawner.devcloud.process import DevcloudProcess, running

PLACES = """
c.OpenStackSpawner.places = {{"south": {{}}, "north": {{"clouds_yaml": {north!r}}}}}
"""


@pytest.fixture(scope="module")
def north(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevcloudProcess]:
    with running(tmp_path_factory.mktemp("north"), payload="stub") as devcloud:
        yield devcloud


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, north: DevcloudProcess) -> Iterator[FacilityHub]:
    with facility(tmp_path_factory.mktemp("places"), PLACES.format(north=str(north.clouds_yaml))) as hub:
        hub.plan("both", places=["south", "north"])
        hub.plan("nowhere", places=["south", "east"])
        yield hub


def server_in(devcloud: DevcloudProcess, instance: Instance) -> list[dict[str, Any]]:
    with devcloud.connect() as cloud:
        servers = cloud.compute.get("/servers/detail", microversion="2.79").json()["servers"]
    return [server for server in servers if server["metadata"].get("hutch-instance") == instance.id]


def test_a_full_place_is_left_for_the_next_and_the_instance_lives_there(hub, north):
    visitor = hub.visitor()
    hub.devcloud.next_boot(error="No valid host was found. ")
    instance = hub.launched(visitor, display_name="films", user_options={"plan": "both", "experiments": [visitor.experiment]})
    assert instance.place == "north" and server_in(north, instance) and not hub.servers(visitor) and not hub.ports(visitor)
    # a resume finds it there, and makes nothing in the south
    hub.end(visitor)
    assert server_in(north, instance)[0]["status"] == "SHUTOFF"
    hub.start_again(visitor)
    hub.until_ready(visitor.login, "films")
    assert len(server_in(north, instance)) == 1 and not hub.servers(visitor)
    # so does its deletion
    hub.end(visitor, remove=True)
    until(lambda: hub.instance(visitor).deleted_at, "it is marked")
    hub.change(lambda session: setattr(session.get_one(Instance, instance.id), "purge_at", now() - timedelta(seconds=1)))
    until(lambda: hub.instance(visitor).purged_at, "it is purged")
    assert server_in(north, instance) == []


def test_a_hub_that_died_after_it_chose_the_next_place_looks_there(hub, north):
    visitor = hub.visitor()
    hub.devcloud.next_boot(error="No valid host was found. ")
    north.next_boot(seconds=4)
    hub.launch(visitor, display_name="films", user_options={"plan": "both", "experiments": [visitor.experiment]})
    until(lambda: hub.instances(visitor) and server_in(north, hub.instance(visitor)), "the north has the server")
    hub.kill()
    hub.start()
    hub.until_ready(visitor.login, "films")
    assert len(server_in(north, hub.instance(visitor))) == 1 and not hub.servers(visitor)


def test_a_plan_for_a_place_that_the_site_does_not_have_is_refused(hub):
    visitor = hub.visitor()
    answer = hub.launch(visitor, display_name="films", user_options={"plan": "nowhere", "experiments": [visitor.experiment]})
    assert "nowhere is for a place that this site does not have (east)." in answer.text
    assert hub.instances(visitor) == [] and hub.servers(visitor) == []


def test_what_runs_in_a_place_that_the_site_no_longer_has_goes_on_and_its_stop_is_remembered(hub, north):
    visitor, config = hub.visitor(), hub.config_file.read_text()
    hub.devcloud.next_boot(error="No valid host was found. ")
    instance = hub.launched(visitor, display_name="films", user_options={"plan": "both", "experiments": [visitor.experiment]})
    before = len(hub.log())
    try:
        hub.kill()
        hub.config_file.write_text(config.replace('"north": {', '"elsewhere": {'))
        hub.start()
        hub.until_ready(visitor.login, "films")
        hub.end(visitor)
        assert (hub.intent(visitor).kind, hub.intent(visitor).outcome) == ("stop", None)
        assert "Exception in callback" not in hub.log()[before:]
    finally:
        hub.kill()
        hub.config_file.write_text(config)
        hub.start()
    assert [server["status"] for server in server_in(north, instance)] == ["ACTIVE"]
