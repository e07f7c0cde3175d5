"""What is started again whenever it ends: the notebook, the desktop, what runs on the desktop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Generic, TypeVar

from .nurse import Process

log = logging.getLogger("hutch.agent")

STOPPING_LIMIT_SECONDS = 5.0
HEALTHY_AFTER_SECONDS = 60.0
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 60.0
LOG_BYTES = 1024 * 1024

P = TypeVar("P", bound=Process)


class Upkeep(ABC, Generic[P]):
    """One process of the owner's and the state it is in: none, starting, running or dead."""

    what: str

    def __init__(self, log_path: Path) -> None:
        self._log_path = log_path
        self.state = "none"
        self.restarts = 0
        self._process: P | None = None
        self._keeper: asyncio.Task[None] | None = None

    @abstractmethod
    async def _start(self) -> P:
        """A new process, once it is of use; one that does not become so ends before this raises."""

    def _watch_over(self, process: P) -> None:
        """It runs: from now on there is always one, until it is stopped."""
        self._process, self.state = process, "running"
        self._keeper = asyncio.create_task(self._start_again_whenever_it_ends(process))

    def _runs(self) -> bool:
        """It may have ended, and the state not yet say so."""
        return self.state == "running" and self._process is not None and not self._process.ended.done()

    async def _start_again_whenever_it_ends(self, process: P) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            born = time.monotonic()
            await asyncio.wait({process.ended})
            self.state = "dead"
            healthy = time.monotonic() - born > HEALTHY_AFTER_SECONDS
            pause = FIRST_PAUSE_SECONDS if healthy else min(2 * pause, LONGEST_PAUSE_SECONDS)
            self.restarts += 1
            log.warning("%s ended; restart %d in %.0f s", self.what, self.restarts, pause)
            await asyncio.sleep(pause)
            self.state = "starting"
            try:
                process = self._process = await self._start()
            except Exception as error:
                log.warning("%s could not be started again: %r", self.what, error)
            else:
                self.state = "running"

    def trim_log(self) -> None:
        """Keep one older log, and neither larger than its limit; who writes to it goes on with the same file."""
        with contextlib.suppress(FileNotFoundError):
            if self._log_path.stat().st_size > LOG_BYTES:
                shutil.copyfile(self._log_path, self._log_path.with_suffix(".log.1"))
                os.truncate(self._log_path, 0)

    async def stop(self) -> None:
        if self._keeper:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
            self._keeper = None
        if self._process:
            await self._process.end(STOPPING_LIMIT_SECONDS)
            self._process = None
        self.state = "none"
