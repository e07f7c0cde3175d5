"""Keeps calls from a cloud that has stopped answering, so that nothing waits for it; now and then one is let through to look."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from prometheus_client import Gauge

CLOUD_DOWN = Gauge("hutch_cloud_down", "1 while calls fail at once because the cloud has stopped answering", ["cloud"])
# calls, each with its retries
UNANSWERED_IN_A_ROW = 5


class Breaker:
    def __init__(self, name: str) -> None:
        self.down_since: datetime | None = None
        self._unanswered = 0
        self._probing = False
        self._metric = CLOUD_DOWN.labels(name)
        self._metric.set(0)

    @contextmanager
    def may_ask(self, *, probe: bool) -> Iterator[bool]:
        """Whether a call may be made. While the cloud is down only probes may, one at a time."""
        if self.down_since is None:
            yield True
        elif not probe or self._probing:
            yield False
        else:
            self._probing = True
            try:
                yield True
            finally:
                self._probing = False

    def count(self, *, answered: bool) -> None:
        self._unanswered = 0 if answered else self._unanswered + 1
        if answered:
            self.down_since = None
        elif self._unanswered >= UNANSWERED_IN_A_ROW:
            self.down_since = self.down_since or datetime.now(UTC)
        self._metric.set(self.down_since is not None)
