"""What a load would change: what came of a table's rows, in sets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import polars as pl

from etl.frames import Scope
from etl.validate import ENDED, ROW, SOURCE, Ids, Sieve

EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of one table. added and changed hold the new values, ended holds keys; live is how many records of this
    source hold until now; named is how many rows the source gave, and rejected, skipped how many of them were not taken.
    """

    added: pl.DataFrame
    changed: pl.DataFrame
    ended: pl.DataFrame
    unchanged: int = 0
    live: int = 0
    whole: bool = True
    named: int = 0
    rejected: int = 0
    skipped: int = 0
    # key, field, before, after of some of the changed
    examples: list[tuple[str, str, str, str]] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        sets = {name: getattr(self, name).height for name in ("added", "changed", "ended")}
        return sets | {name: getattr(self, name) for name in ("unchanged", "rejected", "skipped")}


def compare(sieve: Sieve, scope: Scope | None, *, whole: bool) -> Change:
    """A record that ended and is named again changes: it holds once more. Only this source's own records may end.

    scope: which records the rows tell about, where they are not of the whole table.
    """
    known, fresh = pl.col(SOURCE).is_not_null(), sieve.fresh
    ours = (pl.col(SOURCE) == sieve.source) & ~pl.col(ENDED)
    live = sieve.held.select(ours.sum()).item()
    told = pl.lit(sieve.certain and (whole or scope is not None))
    if scope:
        told &= pl.col(sieve.held_as(scope.column)).is_in(list(scope.values))
    ended = sieve.unnamed().filter(ours & told).select(sieve.shape.key)
    at_fault = sieve.faults.group_by(ROW).agg(pl.col("skipped").all())["skipped"]
    return Change(
        added=fresh.filter(~known).select(*sieve.shape.stored),
        changed=fresh.filter(known).select(*sieve.shape.stored),
        ended=ended,
        unchanged=sieve.same.height,
        live=live,
        whole=whole,
        named=sieve.read.height,
        rejected=at_fault.len() - int(at_fault.sum()),
        skipped=int(at_fault.sum()),
        examples=list(_examples(sieve, fresh.filter(known).head(EXAMPLES))),
    )


def _examples(sieve: Sieve, rows: pl.DataFrame) -> Iterator[tuple[str, str, str, str]]:
    for row in rows.iter_rows(named=True):
        key = ",".join(row[name] for name in sieve.shape.key)
        differing = [name for name in sieve.shape.stored if row[name] != row[sieve.held_as(name)]]
        for name in differing:
            yield key, name, shown(row[sieve.held_as(name)]), shown(row[name])
        if row[ENDED]:
            yield key, "", "ended", "holds again"


def shown(value: object) -> str:
    """As people read it; moments in UTC, whether they come from a frame, either database or JSON."""
    return "" if value is None else str(value).replace("T", " ").removesuffix("+00:00").removesuffix(".000000")


def ids(held: pl.DataFrame, change: Change | None, rejections: pl.DataFrame | None) -> Ids:
    """What of a table with an `id` may be referred to when the change is made. held: `id` and `_ended`."""
    gone = held.filter(ENDED).select("id")
    if change is None or rejections is None:
        return Ids(held, gone, gone.clear(), pl.Series(dtype=pl.String))
    gone = pl.concat([gone.join(change.changed, on="id", how="anti"), change.ended])
    return Ids(held, gone, change.added.select("id"), rejections.filter("skipped")["key"])
