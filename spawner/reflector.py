"""One listing of the cloud's servers for all spawners together (KubeSpawner's idea): its rate does not grow with launches.

It lists fast while something is changing and slowly when nothing is; it never gives up, and its health is visible. What it cannot
see is unknown, never gone.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from prometheus_client import Counter, Gauge

from .cloud_errors import CloudError
from .servers import Server, instance_of

LISTINGS = Counter("hutch_cloud_listings", "Listings of the cloud's servers", ["cloud", "outcome"])
LISTED_SERVERS = Gauge("hutch_cloud_servers", "Servers of this deployment at the last good listing", ["cloud"])
LISTED_AT = Gauge("hutch_cloud_listed_timestamp_seconds", "When the last good listing began", ["cloud"])
FRESH_SECONDS = 30.0


class Reflector:
    """What the cloud has, as of `listed_at` (monotonic seconds at which the last good listing began)."""

    def __init__(
        self,
        list_servers: Callable[[], Awaitable[list[Server]]],
        *,
        fast_seconds: float,
        slow_seconds: float,
        log: logging.Logger,
        cloud: str = "",
    ) -> None:
        self._list_servers = list_servers
        self._fast, self._slow = fast_seconds, slow_seconds
        self.log, self._cloud = log, cloud
        self.servers: dict[str, Server] = {}
        self.listed_at: float | None = None
        self.failures = 0
        self.last_error = ""
        self._watchers = 0
        self._wanted_after = 0.0
        self._wake = asyncio.Event()
        self._listed = asyncio.Condition()
        self._task: asyncio.Task[None] | None = None

    def of_instance(self, instance_id: str) -> list[Server]:
        return [server for server in self.servers.values() if instance_of(server) == instance_id]

    async def fresh(self, within_seconds: float | None = None) -> bool:
        """Waits for a good listing that began after this call; False when there was none in time (of FRESH_SECONDS)."""
        within_seconds = FRESH_SECONDS if within_seconds is None else within_seconds
        asked_at = time.monotonic()
        self._wanted_after = asked_at
        self._run()
        self._wake.set()
        return await self._wait_for(lambda: self.listed_at is not None and self.listed_at >= asked_at, within_seconds)

    async def some(self, within_seconds: float) -> bool:
        """Waits until there was any good listing; for a hub that has just started."""
        self._run()
        return await self._wait_for(lambda: self.listed_at is not None, within_seconds)

    async def changed(self) -> None:
        """Waits for the next good listing."""
        before = self.listed_at
        self._run()
        await self._wait_for(lambda: self.listed_at != before, None)

    @asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """While any such block runs, listings are fast."""
        self._watchers += 1
        self._run()
        self._wake.set()
        try:
            yield
        finally:
            self._watchers -= 1

    async def _wait_for(self, condition: Callable[[], bool], within_seconds: float | None) -> bool:
        try:
            async with asyncio.timeout(within_seconds), self._listed:
                await self._listed.wait_for(condition)
        except TimeoutError:
            return False
        return True

    def _run(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._list_for_ever(), name="reflector")

    async def _list_for_ever(self) -> None:
        while True:
            began = time.monotonic()
            await self._list_once()
            ended, jitter = time.monotonic(), random.uniform(0.7, 1.3)  # noqa: S311
            while (left := ended + self._pause_seconds(began, jitter) - time.monotonic()) > 0:
                self._wake.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._wake.wait()

    def _pause_seconds(self, began: float, jitter: float) -> float:
        """How long after the listing that began then the next one is due; those who come meanwhile can bring it forward."""
        wanted = self._wanted_after > began
        if self.failures:
            return self._fast if wanted else min(self._fast * 2 ** min(self.failures, 10), 30.0) * jitter
        if wanted:
            return 0.0
        # who only watches waits until it is due: a launch more is no listing more
        return self._fast if self._watchers else self._slow

    async def _list_once(self) -> None:
        began = time.monotonic()
        try:
            servers = await self._list_servers()
        except CloudError as error:
            self._failed(f"{error} {error.detail}")
        except Exception as error:
            # a listing in an unexpected shape must not end the loop that everything else relies on
            self.log.exception("the cloud's listing could not be read")
            self._failed(repr(error))
        else:
            if self.failures:
                self.log.warning("the cloud answers again, after %d listings that failed", self.failures)
            self.failures, self.last_error = 0, ""
            self.servers = {server["id"]: server for server in servers}
            self.listed_at = began
            LISTINGS.labels(self._cloud, "done").inc()
            LISTED_SERVERS.labels(self._cloud).set(len(servers))
            LISTED_AT.labels(self._cloud).set(time.time() - (time.monotonic() - began))
            async with self._listed:
                self._listed.notify_all()

    def _failed(self, error: str) -> None:
        self.failures += 1
        self.last_error = error
        LISTINGS.labels(self._cloud, "failed").inc()
        if self.failures == 1:
            self.log.error("the cloud's servers cannot be listed, their state is unknown until they can: %s", error)

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
