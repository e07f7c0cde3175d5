"""Numbers and times as people say them. British English, short."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from math import ceil, inf
from statistics import median


def seconds_in_words(seconds: float) -> str:
    if seconds < 0.95:
        return f"{max(seconds, 0.1):.1f} s"
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h"


def stage_seconds(seconds: float) -> str:
    """A stage's own time, where tenths matter."""
    return f"{seconds:.1f} s" if seconds < 9.95 else seconds_in_words(seconds)


# each unit, and the count from which the next one is used
UNITS = (
    ("minute", timedelta(minutes=1), 60),
    ("hour", timedelta(hours=1), 36),
    ("day", timedelta(days=1), 60),
    ("month", timedelta(days=30.44), 24),
    ("year", timedelta(days=365.25), inf),
)


def relative(at: datetime, now: datetime) -> str:
    """'in 4 days', '3 hours ago': the largest unit that fits."""
    distance = abs(at - now)
    if distance < timedelta(seconds=45):
        return "in a moment" if at > now else "just now"
    words = next(counted(count, unit) for unit, length, most in UNITS if (count := max(1, round(distance / length))) < most)
    return f"in {words}" if at > now else f"{words} ago"


def exact(at: datetime) -> str:
    return f"{at.astimezone(UTC):%a %d %b %Y, %H:%M} UTC"


def size(cores: int, memory_mb: int) -> str:
    memory = f"{memory_mb / 1024:.3g} GB" if memory_mb >= 1024 else f"{memory_mb} MB"
    return f"{counted(cores, 'core')}, {memory}"


def counted(count: int, thing: str) -> str:
    return f"{count} {thing}{'' if count == 1 else 's'}"


def listed(names: Sequence[str], most: int = 2) -> str:
    """'Ana, Bo and 2 others'"""
    shown, others = list(names[:most]), len(names) - most
    if others > 0:
        shown.append(f"{others} other{'s' if others > 1 else ''}")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"


def expectation(seconds: Sequence[float]) -> str:
    """What the last launches of a plan let one expect."""
    if not seconds:
        return "not launched lately, so its time is not known"
    about = f"ready in about {seconds_in_words(median(seconds))}"
    last = "last launch" if len(seconds) == 1 else f"last {len(seconds)} launches"
    if len(seconds) < 5:
        return f"{about} ({last})"
    slow = sorted(seconds)[ceil(0.95 * len(seconds)) - 1]
    return f"{about} ({last}: half under {seconds_in_words(median(seconds))}, 19 in 20 under {seconds_in_words(slow)})"
