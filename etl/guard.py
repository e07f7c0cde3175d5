"""Stops a load that would take too much away, or that cannot be read: more likely a broken export than a facility that closed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from etl.diff import Change

# small tables may lose any number up to this
HANDFUL = 5


def removals(changes: Mapping[str, Change], max_share: float) -> Iterator[str]:
    """One sentence per table that would lose too much."""
    for table, change in changes.items():
        ended, live = change.ended.height, change.live
        comes_empty = change.whole and 0 < live == ended and not change.added.height and not change.changed.height
        if comes_empty:
            yield f"{table}: all {live} records would end"
        elif ended > HANDFUL and ended > max_share * live:
            yield f"{table}: {ended} of {live} records would end (more than {max_share:.0%})"


def unreadable(changes: Mapping[str, Change], max_share: float) -> Iterator[str]:
    """One sentence per table of which too many rows are at fault."""
    for table, change in changes.items():
        if change.rejected > HANDFUL and change.rejected > max_share * change.named:
            yield f"{table}: {change.rejected} of {change.named} rows cannot be taken (more than {max_share:.0%})"
