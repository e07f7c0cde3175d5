"""What happens during a launch, told to everybody who watches: its stages, which anybody can follow from the first one on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from jupyterhub.spawner import SpawnException


class Stage(StrEnum):
    """The stages of a launch in their order; the last ones are told by the agent."""

    RIGHTS = "rights"
    CREATE = "create"
    BOOT = "boot"
    IDENTIFY = "identify"
    ACCOUNT = "account"
    ENVIRONMENT = "environment"
    NOTEBOOK = "notebook"
    READY = "ready"


WORDS = {
    Stage.RIGHTS: "Checking your rights",
    Stage.CREATE: "Creating the server",
    Stage.BOOT: "Booting",
    Stage.IDENTIFY: "Making sure it is the right server",
    Stage.ACCOUNT: "Setting up your account",
    Stage.ENVIRONMENT: "Preparing the environment",
    Stage.NOTEBOOK: "Starting JupyterLab",
    Stage.READY: "Ready",
}


class LaunchError(SpawnException):
    """A launch that failed for a reason that people can be told. detail is for operators only."""

    def __init__(self, sentence: str, *, reason: str, stage: str = "", detail: str = "", status_code: int = 503) -> None:
        log_message = f"{sentence} [{stage}] {detail[:2000]}" if detail else sentence
        super().__init__(sentence, reason=reason, log_message=log_message, status_code=status_code)
        self.stage, self.detail = stage, detail


@dataclass(frozen=True, slots=True)
class StageEvent:
    stage: Stage
    state: str  # started, done or failed
    message: str
    seconds: float | None = None
    elapsed_seconds: float = 0.0


@dataclass(slots=True)
class LaunchLog:
    """The stages of one launch; any number may follow it, each from the beginning.

    expected_seconds: how long it will probably take in all, None if nobody knows.
    """

    expected_seconds: float | None = None
    began: float = field(default_factory=time.monotonic)
    events: list[StageEvent] = field(default_factory=list)
    closed: bool = False
    _started: dict[Stage, float] = field(default_factory=dict)
    _followers: set[asyncio.Event] = field(default_factory=set)

    @property
    def current(self) -> Stage | None:
        return self.events[-1].stage if self.events else None

    def start(self, stage: Stage, message: str = "") -> None:
        self._started[stage] = time.monotonic()
        self._add(StageEvent(stage, "started", message or WORDS[stage], elapsed_seconds=self.elapsed()))

    def done(self, stage: Stage, message: str = "", seconds: float | None = None) -> None:
        if seconds is None:
            seconds = time.monotonic() - self._started.get(stage, time.monotonic())
        self._add(StageEvent(stage, "done", message or WORDS[stage], round(seconds, 3), self.elapsed()))

    def fail(self, message: str) -> None:
        self._add(StageEvent(self.current or Stage.CREATE, "failed", message, elapsed_seconds=self.elapsed()))
        self.close()

    def elapsed(self) -> float:
        return round(time.monotonic() - self.began, 3)

    def close(self) -> None:
        self.closed = True
        self._tell()

    def _add(self, event: StageEvent) -> None:
        self.events.append(event)
        self._tell()

    def _tell(self) -> None:
        for follower in self._followers:
            follower.set()

    def percent(self, event: StageEvent) -> int:
        """By the clock where the total is known, by stage otherwise; never 100 before JupyterHub says so."""
        if self.expected_seconds:
            return min(95, int(100 * event.elapsed_seconds / self.expected_seconds))
        return min(95, int(100 * (list(Stage).index(event.stage) + (event.state == "done")) / len(Stage)))

    async def follow(self) -> AsyncIterator[dict[str, Any]]:
        """JupyterHub's progress events, from the first one on, until the launch is over."""
        told, news = 0, asyncio.Event()
        self._followers.add(news)
        try:
            while True:
                news.clear()
                while told < len(self.events):
                    yield self._progress(self.events[told])
                    told += 1
                if self.closed:
                    return
                await news.wait()
        finally:
            self._followers.discard(news)

    def _progress(self, event: StageEvent) -> dict[str, Any]:
        return asdict(event) | {"progress": self.percent(event), "expected_seconds": self.expected_seconds}
