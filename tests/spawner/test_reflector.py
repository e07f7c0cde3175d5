"""One listing for all: how often it is asked for, what is known when it fails, and that it comes back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import pytest
from running_hub import PATIENCE_SECONDS

from spawner.cloud_errors import CloudError, Trouble
from spawner.reflector import Reflector

UNANSWERED = CloudError(Trouble.UNANSWERED, "The cloud did not answer.", "503")


class Script:
    """Answers each listing with what the test says: servers by their ids, or an error."""

    def __init__(self) -> None:
        self.answer: list[str] | Exception = ["one"]
        self.calls = 0
        self.at_once = self.most_at_once = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self) -> list[dict]:
        self.calls += 1
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)
        answer = self.answer
        try:
            await self.gate.wait()
        finally:
            self.at_once -= 1
        if isinstance(answer, Exception):
            raise answer
        return [{"id": name, "metadata": {"hutch-instance": f"instance-{name}"}} for name in answer]

    async def until_called(self, times: int) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self.calls < times:  # noqa: ASYNC110 - one turn of the loop at a time
                await asyncio.sleep(0)


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
async def make(script: Script) -> AsyncIterator[Callable[..., Reflector]]:
    made = []

    def make(fast: float = 0.01, slow: float = 1000.0) -> Reflector:
        made.append(Reflector(script, fast_seconds=fast, slow_seconds=slow, log=logging.getLogger("reflector")))
        return made[-1]

    yield make
    for reflector in made:
        reflector.close()


async def test_nothing_is_asked_before_somebody_wants_to_know(make, script):
    reflector = make()
    assert (script.calls, reflector.listed_at, reflector.servers) == (0, None, {})


async def test_servers_are_found_by_id_and_by_instance(make, script):
    reflector = make()
    script.answer = ["one", "two"]
    assert await reflector.some(5)
    assert set(reflector.servers) == {"one", "two"}
    assert [server["id"] for server in reflector.of_instance("instance-two")] == ["two"]
    assert reflector.of_instance("two") == []


async def test_many_who_want_it_fresh_share_a_listing(make, script):
    reflector = make()
    assert await reflector.some(5)
    assert all(await asyncio.gather(*(reflector.fresh(5) for _ in range(100))))
    assert script.calls <= 3


async def test_fresh_is_a_listing_that_began_after_the_question(make, script):
    """One that is under way may have missed what happened just now."""
    reflector = make()
    script.gate.clear()
    first = asyncio.create_task(reflector.some(5))
    await script.until_called(1)
    script.answer = ["one", "new"]
    asked = asyncio.create_task(reflector.fresh(5))
    await asyncio.sleep(0)
    script.gate.set()
    assert await first and await asked
    assert "new" in reflector.servers and script.calls == 2


async def test_never_two_listings_at_once(make, script):
    reflector = make()
    await asyncio.gather(*(reflector.fresh(5) for _ in range(20)), *(reflector.some(5) for _ in range(20)))
    assert script.most_at_once == 1


async def test_the_rate_does_not_grow_with_those_who_watch(make, script):
    """A hundred launches watch as many listings as one does."""
    reflector = make()

    async def watch() -> None:
        async with reflector.watching():
            for _ in range(5):
                await reflector.changed()

    await asyncio.gather(*(watch() for _ in range(100)))
    assert 5 <= script.calls <= 8


async def test_without_anybody_watching_listings_are_slow(make, script):
    reflector = make()
    async with reflector.watching():
        await reflector.changed()
    await reflector.fresh(5)
    calls = script.calls
    assert not await reflector._wait_for(lambda: script.calls > calls + 1, 0.2)


@pytest.mark.parametrize("error", [UNANSWERED, KeyError("servers")], ids=["unanswered", "not-a-listing"])
async def test_a_failure_keeps_what_was_known_and_says_that_it_is_old(make, script, error):
    reflector = make()
    assert await reflector.some(5)
    known_at = reflector.listed_at
    script.answer = error
    assert not await reflector.fresh(0.1)
    assert set(reflector.servers) == {"one"}
    assert (reflector.listed_at, reflector.failures > 0) == (known_at, True)
    assert reflector.last_error


async def test_before_the_first_answer_nothing_is_known(make, script):
    reflector = make()
    script.answer = UNANSWERED
    assert not await reflector.some(0.1)
    assert (reflector.listed_at, reflector.servers) == (None, {})


async def test_it_recovers_by_itself(make, script):
    reflector = make()
    script.answer = UNANSWERED
    assert not await reflector.some(0.1)
    waiting = asyncio.create_task(reflector.some(10))
    script.answer = ["one", "two"]
    assert await waiting
    assert (reflector.failures, reflector.last_error, set(reflector.servers)) == (0, "", {"one", "two"})


async def test_it_does_not_hammer_a_cloud_that_fails(make, script):
    reflector = make(fast=0.05)
    script.answer = UNANSWERED
    async with reflector.watching():
        await asyncio.gather(*(reflector.fresh(0.5) for _ in range(50)))
    assert script.calls <= 8


async def test_a_listing_task_that_died_is_started_again(make, script):
    reflector = make()
    assert await reflector.some(5)
    reflector.close()
    await asyncio.sleep(0)
    assert await reflector.fresh(5)


async def test_a_server_that_vanished_from_a_good_listing_is_not_kept(make, script):
    reflector = make()
    script.answer = ["one", "two"]
    assert await reflector.fresh(5)
    script.answer = ["two"]
    assert await reflector.fresh(5)
    assert set(reflector.servers) == {"two"}
