"""Stops a load that would take too much away: more likely a broken export than a facility that closed."""

from __future__ import annotations

from collections.abc import Mapping

from etl.diff import Change

MAX_REMOVED_SHARE = 0.3
# small tables may lose any number up to this
HANDFUL = 5


def objections(changes: Mapping[str, Change], max_share: float = MAX_REMOVED_SHARE) -> list[str]:
    """One sentence per table that would lose too much."""
    return [
        f"{table}: {len(change.ended)} of {change.live} records would end (more than {max_share:.0%})"
        if len(change.ended) < change.live
        else f"{table}: all {change.live} records would end"
        for table, change in changes.items()
        if _too_many(change, max_share)
    ]


def _too_many(change: Change, max_share: float) -> bool:
    comes_empty = 0 < change.live == len(change.ended) and not change.added and not change.changed
    return comes_empty or (len(change.ended) > HANDFUL and len(change.ended) > max_share * change.live)
