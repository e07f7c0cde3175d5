"""A cloud that has stopped answering holds up nothing: calls fail at once, a listing looks again, and then all goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from faults.proxy import Fault, FaultProxy
from prometheus_client import REGISTRY
from spawner_alone import spawner_alone

from spawner.breaker import UNANSWERED_IN_A_ROW, Breaker
from spawner.cloud import Cloud
from spawner.cloud_errors import CloudError, Trouble
from spawner.devcloud.process import DevcloudProcess
from spawner.launch import LaunchError


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spawner.cloud.API_TIMEOUT_SECONDS", 2.0)
    monkeypatch.setattr("spawner.cloud.RETRY_SECONDS", 0.5)
    monkeypatch.setattr("spawner.creation.LOOK_SECONDS", 3.0)


@pytest.fixture
async def proxy() -> AsyncIterator[FaultProxy]:
    async with FaultProxy() as proxy:
        yield proxy


@pytest.fixture
def cloud(devcloud: DevcloudProcess, proxy: FaultProxy, tmp_path: Path) -> Cloud:
    return Cloud("devcloud", proxy.clouds_yaml(devcloud.clouds_yaml, tmp_path))


async def fail(cloud: Cloud, times: int) -> None:
    for _ in range(times):
        with pytest.raises(CloudError):
            await cloud.ports("1", "1")


@pytest.mark.parametrize("action", ["503", "reset-before", "wrong-json"])
async def test_a_cloud_that_does_not_answer_is_asked_no_more(cloud, proxy, action):
    await cloud.servers("1")
    assert not cloud.is_down and cloud.down_since is None
    proxy.faults = [Fault(action)]
    await fail(cloud, UNANSWERED_IN_A_ROW)
    assert cloud.is_down and cloud.down_since
    assert REGISTRY.get_sample_value("hutch_cloud_down", {"cloud": "devcloud"}) == 1
    asked = len(proxy.met)
    with pytest.raises(CloudError, match=r"The cloud does not answer\.") as caught:
        await cloud.ports("1", "1")
    assert caught.value.trouble is Trouble.UNANSWERED and "is down since" in caught.value.detail
    assert len(proxy.met) == asked
    # a listing looks, without trying again and again
    with pytest.raises(CloudError):
        await cloud.servers("1")
    assert len(proxy.met) == asked + 1


@pytest.mark.parametrize("action", ["409", "401", "429"])
async def test_a_cloud_that_refuses_is_not_down(cloud, proxy, action):
    await cloud.servers("1")
    proxy.faults = [Fault(action)]
    await fail(cloud, UNANSWERED_IN_A_ROW + 1)
    assert not cloud.is_down


async def test_what_is_answered_in_between_counts(cloud, proxy):
    await cloud.servers("1")
    for _ in range(2):
        proxy.faults = [Fault("503")]
        await fail(cloud, UNANSWERED_IN_A_ROW - 1)
        proxy.faults = []
        await cloud.network_id("hutch")
    assert not cloud.is_down


async def test_a_listing_that_is_answered_opens_the_way_again(cloud, proxy):
    await cloud.servers("1")
    proxy.faults = [Fault("503")]
    await fail(cloud, UNANSWERED_IN_A_ROW)
    proxy.faults = []
    await cloud.servers("1")
    assert not cloud.is_down and await cloud.ports("1", "1") == []
    assert REGISTRY.get_sample_value("hutch_cloud_down", {"cloud": "devcloud"}) == 0


def test_only_one_looks_at_a_time():
    breaker = Breaker("some")
    for _ in range(UNANSWERED_IN_A_ROW):
        breaker.count(answered=False)
    with breaker.may_ask(probe=True) as first, breaker.may_ask(probe=True) as second, breaker.may_ask(probe=False) as other:
        assert (first, second, other) == (True, False, False)
    with breaker.may_ask(probe=True) as later:
        assert later


@pytest.mark.parametrize("action", ["time-out", "drip"])
async def test_many_callers_of_a_dead_cloud_leave_the_event_loop_and_the_threads_free(cloud, proxy, action):
    """Far more callers than threads; the drip would hold each thread for much longer than a call may take."""
    await cloud.servers("1")
    proxy.faults = [Fault(action)]
    answers = await asyncio.gather(*(cloud.ports(str(number), "1") for number in range(100)), return_exceptions=True)
    assert all(isinstance(answer, CloudError) for answer in answers) and cloud.is_down
    # those that were under way when it opened, and no others
    assert len(proxy.met) <= 2 * 16
    proxy.faults = []
    assert await cloud.servers("1") == [] and await cloud.ports("1", "1") == []


async def test_the_pause_that_a_cloud_asks_for_is_kept_if_it_is_short_enough(cloud, proxy, monkeypatch):
    await cloud.servers("1")
    proxy.faults = [Fault("429", times=1)]
    monkeypatch.setattr("spawner.cloud.RETRY_SECONDS", 10.0)
    assert await cloud.ports("1", "1") == []
    proxy.faults = [Fault("429", times=1)]
    monkeypatch.setattr("spawner.cloud.RETRY_SECONDS", 0.5)
    with pytest.raises(CloudError, match="has too many requests just now"):
        await cloud.ports("1", "1")


async def test_instances_run_on_while_their_cloud_is_down_and_launches_say_so(devcloud, proxy, tmp_path):
    clouds_yaml = proxy.clouds_yaml(devcloud.clouds_yaml, tmp_path)
    running = spawner_alone(clouds_yaml, state_dir=str(tmp_path))
    await running.start()
    proxy.faults = [Fault("reset-before")]
    await fail(running.around.cloud, UNANSWERED_IN_A_ROW)
    assert await running.poll() is None
    other = spawner_alone(clouds_yaml, user="bob", state_dir=str(tmp_path), deployment_id=running.deployment_id)
    assert other.around is running.around
    for is_new in (True, False):
        other.is_new = is_new
        with pytest.raises(LaunchError, match=r"The cloud does not answer\. Nothing was changed\."):
            await other.start()
    assert len([path for method, path in proxy.taken if method == "POST" and path.endswith("/ports")]) == 1
    # nobody has to wait for the next listing once it is back
    proxy.faults, other.is_new = [], True
    await other.start()
    assert not running.around.cloud.is_down and await running.poll() is None
    running.around.reflector.close()


# --- tokens


@pytest.mark.parametrize("end", ["expired", "revoked"])
async def test_many_calls_at_once_survive_a_token_that_ends(devcloud, proxy, tmp_path, monkeypatch, end):
    """With an application credential, as a site has it."""
    monkeypatch.setattr("spawner.cloud.API_TIMEOUT_SECONDS", 30.0)
    monkeypatch.setattr("spawner.cloud.RETRY_SECONDS", 15.0)
    cloud = Cloud("devcloud-app", proxy.clouds_yaml(devcloud.clouds_yaml, tmp_path))
    for _ in range(3):
        await asyncio.gather(*(cloud.servers("1") for _ in range(4)))
        proxy.taken.clear()
        if end == "expired":
            devcloud.control("POST", "/expire-tokens")
        else:
            await asyncio.to_thread(revoke, cloud)
        answers = await asyncio.gather(
            *(cloud.servers("1") for _ in range(20)),
            *(cloud.ports("1", "1") for _ in range(20)),
            *(cloud.server("00000000-0000-4000-8000-000000000000") for _ in range(20)),
        )
        assert answers == [[]] * 40 + [None] * 20
        assert ("POST", "/identity/v3/auth/tokens") in proxy.taken


def revoke(cloud: Cloud) -> None:
    session = cloud._connection.session
    session.delete(f"{session.auth.auth_url}/auth/tokens", headers={"X-Subject-Token": session.get_token()}).raise_for_status()
