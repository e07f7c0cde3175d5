"""What a load would change: frames compared by key, without a database."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from etl.frames import Scope
from etl.schema import Shape
from etl.validate import Checked


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of one table. added and changed hold the new values, ended holds keys; live is how many records of this
    source hold until now; named is how many rows the source gave, rejected how many of them are at fault.
    """

    added: pl.DataFrame
    changed: pl.DataFrame
    ended: pl.DataFrame
    unchanged: int
    live: int
    whole: bool = True
    named: int = 0
    rejected: int = 0
    skipped: int = 0

    @property
    def counts(self) -> dict[str, int]:
        sets = {"added": self.added.height, "changed": self.changed.height, "ended": self.ended.height}
        return {**sets, "unchanged": self.unchanged, "rejected": self.rejected, "skipped": self.skipped}


def compare(shape: Shape, checked: Checked, held: pl.DataFrame, source: str, scope: Scope | None, *, whole: bool) -> Change:
    """A record that ended and is named again changes: it holds once more. Only this source's own records may end.

    held: the table's fields, `source` and `_ended`. scope: which records the rows tell about, where not of the whole table.
    """
    key = shape.key
    values = [name for name in shape.stored if name not in key]
    there = held.rename({name: f"_held_{name}" for name in values})
    both = checked.accepted.join(there, on=key, how="left", maintain_order="left")
    known = pl.col("source").is_not_null()
    differs = pl.any_horizontal(
        pl.col("source") != source, "_ended", *(pl.col(name).ne_missing(pl.col(f"_held_{name}")) for name in values)
    )
    added = both.filter(~known).select(*shape.stored)
    changed = both.filter(known & differs).select(*shape.stored)
    ours = held.filter((pl.col("source") == source) & ~pl.col("_ended"))
    ended = ours.select(key).clear()
    if checked.certain and (whole or scope):
        told = ours.filter(pl.col(scope.column).is_in(list(scope.values))) if scope else ours
        ended = told.select(key).join(checked.accepted, on=key, how="anti").join(checked.kept, on=key, how="anti")
    at_fault = checked.rejections.group_by("place", "line").agg(pl.col("skipped").all())["skipped"]
    return Change(
        added,
        changed,
        ended,
        checked.accepted.height - added.height - changed.height,
        ours.height,
        whole,
        checked.named,
        (~at_fault).sum(),
        at_fault.sum(),
    )


def present(change: Change, held: pl.DataFrame) -> pl.Series:
    """The ids that other rows may refer to once this is loaded; of tables with an `id`."""
    stays = held.filter(~pl.col("_ended")).select("id").join(change.ended, on="id", how="anti")
    return pl.concat([stays, change.added.select("id"), change.changed.select("id")]).to_series().unique()
