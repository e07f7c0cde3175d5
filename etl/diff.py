"""What a load would change: sets compared by key, without a database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from etl.validate import Checked, Key, Standing


@dataclass(slots=True)
class Change:
    """What becomes of one table. added and changed hold the new values; live is how many records of this source now hold."""

    added: dict[Key, dict[str, Any]] = field(default_factory=dict)
    changed: dict[Key, dict[str, Any]] = field(default_factory=dict)
    ended: set[Key] = field(default_factory=set)
    unchanged: int = 0
    live: int = 0


def compare(checked: Checked, held: Mapping[Key, Standing], source: str) -> Change:
    """A record that ended and is named again changes: it holds once more. Only this source's own records may end."""
    change = Change()
    for key, values in checked.accepted.items():
        if key not in held:
            change.added[key] = values
        elif held[key].ended or held[key].source != source or held[key].values != values:
            change.changed[key] = values
        else:
            change.unchanged += 1
    ours = {key for key, standing in held.items() if standing.source == source and not standing.ended}
    change.live = len(ours)
    if checked.certain:
        change.ended = ours - checked.accepted.keys() - checked.kept
    return change
