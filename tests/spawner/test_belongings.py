"""What belongs to an instance is found though a listing leaves it out, and nothing else is."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest
from made_servers import make_server
from running_hub import PATIENCE_SECONDS
from spawner_alone import spawner_alone

from spawner import belongings
from spawner.cloud import Cloud
from spawner.cloud_errors import CloudError
from spawner.devcloud.process import DevcloudProcess
from spawner.launch import LaunchError

OURS = str(uuid4())


@pytest.fixture
def ours(devcloud: DevcloudProcess) -> Cloud:
    return Cloud("devcloud", devcloud.clouds_yaml)


async def launched(cloud: Cloud, instance_id: str, deployment_id: str = OURS) -> str:
    server_id, _ = await make_server(cloud, deployment_id, instance_id)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            server = await cloud.server(server_id)
            if server and server["status"] == "ACTIVE":
                return server_id
            await asyncio.sleep(0.02)


async def test_a_server_that_a_listing_leaves_out_is_found_by_its_port(ours):
    """Nova leaves out the servers of a cell that does not answer, and says 200."""
    instance = str(uuid4())
    server = await launched(ours, instance)
    servers, ports = await belongings.find(ours, OURS, instance, listed=[])
    assert [one["id"] for one in servers] == [server] and [port["device_id"] for port in ports] == [server]


async def test_a_new_instance_has_nothing(ours):
    assert await belongings.find(ours, OURS, str(uuid4())) == ([], [])


async def test_removal_takes_all_of_one_instance_and_nothing_of_another(ours):
    instance, other, theirs = (str(uuid4()) for _ in range(3))
    for one, deployment in ((instance, OURS), (other, OURS), (instance, theirs)):
        await launched(ours, one, deployment)
    assert await belongings.remove(ours, OURS, instance) == 2
    assert await belongings.remove(ours, OURS, instance) == 0
    assert len((await belongings.find(ours, OURS, other))[0]) == len((await belongings.find(ours, theirs, instance))[0]) == 1


async def test_a_cloud_that_keeps_what_was_deleted_is_asked_once_more(ours, devcloud):
    """Nova's reclaim_instance_interval."""
    devcloud.control("POST", "/keep-deleted", {"keep": True})
    instance = str(uuid4())
    server = await launched(ours, instance)
    assert await belongings.remove(ours, OURS, instance) == 2
    assert await ours.server(server) is None and await ours.ports(instance, OURS) == []


async def test_an_instance_whose_server_somebody_deleted_in_such_a_cloud_is_told_so(ours, devcloud, tmp_path):
    devcloud.control("POST", "/keep-deleted", {"keep": True})
    spawner = spawner_alone(devcloud.clouds_yaml, state_dir=str(tmp_path))
    await spawner.start()
    server = spawner.server_id
    await ours.delete_server(server)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await spawner.poll() is None:
            await spawner.around.reflector.changed()
    with pytest.raises(LaunchError, match=r"was deleted in the cloud, where it can still be restored\. Its disk is kept"):
        await spawner.start()
    assert (await ours.server(server))["status"] == "SOFT_DELETED"


async def test_of_a_server_whose_cell_is_down_nothing_is_known_and_nothing_is_deleted(ours, devcloud):
    instance = str(uuid4())
    server = await launched(ours, instance)
    devcloud.trouble(server, "cell-down", down=True)
    assert await ours.servers(OURS) == [] and (await ours.server(server))["status"] == "UNKNOWN"
    with pytest.raises(CloudError, match="A part of the cloud does not answer"):
        await belongings.remove(ours, OURS, instance)
    devcloud.trouble(server, "cell-down", down=False)
    assert await belongings.remove(ours, OURS, instance) == 2
