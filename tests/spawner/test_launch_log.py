"""What is told of a launch: to each who follows it, from the beginning to its end."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spawner.launch import LaunchError, LaunchLog, Stage, StageEvent


async def everything(launch: LaunchLog) -> list[tuple[str, str]]:
    return [(event["stage"], event["state"]) async for event in launch.follow()]


@pytest.fixture
def finished() -> LaunchLog:
    launch = LaunchLog()
    launch.start(Stage.CREATE)
    launch.done(Stage.CREATE)
    launch.close()
    return launch


TOLD = [("create", "started"), ("create", "done")]


async def test_who_comes_late_is_told_all(finished):
    assert await everything(finished) == TOLD


async def test_it_can_be_followed_again_and_by_many(finished):
    assert await asyncio.gather(*(everything(finished) for _ in range(3))) == [TOLD] * 3


async def test_followers_see_each_stage_as_it_happens():
    launch, seen = LaunchLog(), []

    async def follow() -> None:
        async for event in launch.follow():
            seen.append(event["stage"])

    following = asyncio.create_task(follow())
    for stage in (Stage.RIGHTS, Stage.CREATE, Stage.BOOT):
        launch.start(stage)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert seen[-1] == stage
    launch.close()
    await following


async def test_joining_in_the_middle_misses_nothing():
    launch = LaunchLog()
    launch.start(Stage.CREATE)
    following = asyncio.create_task(everything(launch))
    await asyncio.sleep(0)
    launch.done(Stage.CREATE)
    launch.close()
    assert await following == TOLD


async def test_a_page_that_goes_away_is_forgotten(finished):
    launch = LaunchLog()
    launch.start(Stage.CREATE)
    follower = launch.follow()
    await anext(follower)
    await follower.aclose()
    assert not launch._followers


async def test_a_failure_ends_it_at_the_stage_where_it_happened():
    launch = LaunchLog()
    launch.start(Stage.BOOT)
    launch.fail("The cloud could not build this server.")
    events = [event async for event in launch.follow()]
    assert (events[-1]["stage"], events[-1]["state"]) == ("boot", "failed")
    assert events[-1]["message"] == "The cloud could not build this server."


async def test_a_failure_before_any_stage_can_be_told():
    launch = LaunchLog()
    launch.fail("No.")
    assert await everything(launch) == [("create", "failed")]


def test_a_stage_says_how_long_it_took():
    launch = LaunchLog()
    launch.start(Stage.BOOT)
    launch.done(Stage.BOOT)
    launch.done(Stage.NOTEBOOK, seconds=1.23456)
    assert launch.events[1].seconds is not None and launch.events[1].seconds >= 0
    assert launch.events[2].seconds == 1.235


@given(
    st.none() | st.floats(0.001, 1000),
    st.floats(0, 10000),
    st.sampled_from(Stage),
    st.sampled_from(["started", "done", "failed"]),
)
def test_progress_is_a_percentage_and_never_complete_before_the_hub_says_so(expected, elapsed, stage, state):
    launch = LaunchLog(expected_seconds=expected)
    assert 0 <= launch.percent(StageEvent(stage, state, "", elapsed_seconds=elapsed)) <= 95


@given(st.none() | st.floats(0.001, 1000))
def test_progress_never_goes_back(expected):
    launch = LaunchLog(expected_seconds=expected)
    for stage in Stage:
        launch.start(stage)
        launch.done(stage)
    percents = [launch.percent(event) for event in launch.events]
    assert percents == sorted(percents)


# --- the spawner's own progress()


async def progress(spawner: Any) -> list[dict[str, Any]]:
    return [event async for event in spawner.progress()]


async def test_a_spawner_that_never_launched_tells_nothing(make_spawner):
    assert await progress(make_spawner()) == []


async def test_a_spawner_tells_each_page_the_same(make_spawner, finished):
    spawner = make_spawner()
    spawner.launch = finished
    first, second = await asyncio.gather(progress(spawner), progress(spawner))
    assert first == second and [event["stage"] for event in first] == ["create", "create"]
    assert all(event["message"] and 0 <= event["progress"] <= 95 for event in first)


async def test_nothing_that_the_cloud_said_is_shown_to_people(make_spawner):
    """`html_message` goes into the page as it is, so there is none; the cloud's words are for operators."""
    spawner = make_spawner()
    failure = LaunchError("There is no room.", reason="capacity", detail="<script>No valid host</script>")
    spawner.launch = LaunchLog()
    spawner.launch.fail(str(failure.message))
    (event,) = await progress(spawner)
    assert "html_message" not in event and "No valid host" not in str(event)
