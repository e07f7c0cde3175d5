"""Which rows of a frame become records: their cells, their keys, then what they say against what the database holds.

Whoever cannot be taken is told of with place, line, key, field and reason, and takes nothing away: what the database holds under
the key of a rejected row stays, and while any key cannot be read, nothing of that table ends.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches

import polars as pl

from etl import plans
from etl.cells import faults, raw, readable, reads, relative
from etl.frames import FAULT, LINE, PLACE, SourceError
from etl.schema import SHAPES, STRENGTH, Moment, Parts, Shape

ROW, UNKNOWN = "_row", "_unknown"
REJECTION = {
    "record": pl.String,
    "place": pl.String,
    "line": pl.Int64,
    "key": pl.String,
    "field": pl.String,
    "reason": pl.String,
    # for a reason that is nobody's fault, such as a person without a login: it does not count against the source
    "skipped": pl.Boolean,
}
# set by admins too, who are then stronger than any source
BY_HAND = frozenset({"user_role", "user_group"})


@dataclass(frozen=True, slots=True)
class Checked:
    """One table's rows after validation. certain: whether what is not named can be taken for gone."""

    accepted: pl.DataFrame
    # the keys of rows that are named but not taken
    kept: pl.DataFrame
    rejections: pl.DataFrame
    certain: bool
    named: int


class Sieve:
    """The rows of one frame that are still good, and what was wrong with the others."""

    def __init__(self, name: str, frame: pl.DataFrame, zone: str, today: datetime) -> None:
        self.shape = SHAPES[name]
        self._faults: list[pl.DataFrame] = []
        self._kept: list[pl.DataFrame] = []
        fields, frame = self.shape.fields, _prepared(self.shape, frame, today)
        self.rows = self.read = frame.select(
            pl.exclude(*fields),
            *(pl.col(name).alias(raw(name)) for name in fields),
            *(reads(name, frame.schema[name], field, zone) for name, field in fields.items()),
        )
        for column, field, skipped in ((FAULT, "", False), (UNKNOWN, "user_id", True)):
            self.refuse(self.rows.filter(pl.col(column).is_not_null()), field, pl.col(column), skipped=skipped)
        self.drop()
        self._check_cells(frame.schema)
        self._check_twins()
        self._check_dates()

    def refuse(self, bad: pl.DataFrame, field: str, reason: pl.Expr, *, skipped: bool = False) -> None:
        if bad.height:
            self._faults.append(bad.select(ROW, field=pl.lit(field), reason=reason, skipped=pl.lit(skipped)))

    def drop(self) -> None:
        """Faults of one kind are all told; of the next kind, only those of rows that were good until then."""
        if self._faults:
            self.rows = self.rows.join(pl.concat(self._faults), on=ROW, how="anti", maintain_order="left")

    def _check_cells(self, schema: Mapping[str, pl.DataType]) -> None:
        checks = [(name, *check) for name, field in self.shape.fields.items() for check in faults(name, schema[name], field)]
        # all at once, because nearly always nothing is found
        found = self.rows.select(wrong.any().alias(str(number)) for number, (_, wrong, _) in enumerate(checks)).row(0)
        for (name, wrong, reason), some in zip(checks, found, strict=True):
            if some:
                self.refuse(self.rows.filter(wrong), name, reason)
        self.rows = self.rows.select(ROW, *self.shape.fields)
        self.drop()

    def _check_twins(self) -> None:
        """Two rows of one record: the same twice is once, several parts of a person are the strongest; all else is a mistake."""
        key = self.shape.key
        if self.rows.select(pl.struct(key).n_unique()).item() == self.rows.height:
            return
        self.rows = self.rows.unique(list(self.shape.fields), keep="first", maintain_order=True)
        if self.shape.name == "experiment_member":
            strength = pl.col("role").replace_strict(STRENGTH, list(range(len(STRENGTH))))
            self.rows = self.rows.sort(strength).unique(key, keep="first", maintain_order=True).sort(ROW)
        twins = self.rows.with_columns(_first=pl.col(ROW).first().over(key)).filter(pl.col(ROW) != pl.col("_first"))
        twins = twins.join(self.read.select(_first=ROW, _line=LINE), on="_first")
        self.refuse(twins, ", ".join(key), pl.format("the same as in line {}", "_line"))
        self.drop()

    def _check_dates(self) -> None:
        if "starts_at" in self.shape.fields:
            reason = pl.format("ends before it starts ({})", pl.col("starts_at").dt.strftime("%Y-%m-%d %H:%M"))
            self.refuse(self.rows.filter(pl.col("ends_at") < pl.col("starts_at")), "ends_at", reason)
            self.drop()

    # --- against what is held

    def check_logins(self, held: pl.DataFrame) -> None:
        """A login is a JupyterHub account and a home: it stays with its person, and never passes to another."""
        owners = held.select(pl.col("login"), pl.col("id").alias("_owner"))
        known = self.rows.join(held.select("id", pl.col("login").alias("_login")), on="id", how="left", maintain_order="left")
        changed = known.filter(pl.col("_login") != pl.col("login"))
        reason = "the login of user '{}' is '{}' and cannot become '{}': instances hang on it"
        self.refuse(changed, "login", pl.format(reason, "id", "_login", "login"))
        first = pl.col("id").first().over("login")
        claimed = self.rows.with_columns(_first=first).join(owners, on="login", how="left", maintain_order="left")
        claimed = claimed.with_columns(_owner=pl.coalesce("_owner", "_first")).filter(pl.col("login").is_not_null())
        reason = "'{}' belongs to user '{}'; a login is never given to another person"
        self.refuse(claimed.filter(pl.col("_owner") != pl.col("id")), "login", pl.format(reason, "login", "_owner"))
        self.drop()
        without = self.rows.filter(pl.col("login").is_null())
        self.refuse(without, "login", pl.lit("has no login, and cannot sign on without one"), skipped=True)
        self.drop()

    def check_references(self, present: Mapping[str, pl.Series], skipped: Mapping[str, pl.Series]) -> None:
        for field, target in self.shape.references.items():
            ids = pl.DataFrame({field: present[target]})
            missing = self.rows.filter(pl.col(field).is_not_null()).join(ids, on=field, how="anti", maintain_order="left")
            harmless = pl.col(field).is_in(skipped[target].implode()) if target in skipped else pl.lit(False)
            self.refuse(missing.filter(harmless), field, pl.format(f"the {target} '{{}}' was left out", field), skipped=True)
            self.refuse(missing.filter(~harmless), field, pl.format(f"there is no {target} '{{}}'", field))
        if self.shape.name == "plan":
            known = set(present["instrument"])
            for row, limits in self.rows.select(ROW, "limits").rows():
                for name in sorted(plans.instruments(limits) - known):
                    bad = self.rows.filter(pl.col(ROW) == row)
                    self.refuse(bad, "limits", pl.lit(f"there is no instrument {name!r}"))
        self.drop()

    def check_source(self, held: pl.DataFrame, source: str) -> None:
        """A record that holds belongs to its source; what an admin set stays as it is."""
        key = self.shape.key
        others = held.filter(pl.col("source") != source)
        if not others.height:
            return
        owned = self.rows.join(others.select(*key, "_ended", pl.col("source").alias("_whose")), on=key, maintain_order="left")
        if self.shape.name in BY_HAND:
            by_hand = owned.filter(pl.col("_whose") == "")
            self._kept.append(by_hand.select(key))
            self.rows = self.rows.join(by_hand, on=ROW, how="anti", maintain_order="left")
            owned = owned.filter(pl.col("_whose") != "")
        whose = (
            pl.when(pl.col("_whose") == "")
            .then(pl.lit("no source, it was entered by hand"))
            .otherwise(pl.format("the source '{}'", "_whose"))
        )
        self.refuse(owned.filter(~pl.col("_ended")), ", ".join(key), pl.format("this record comes from {}", whose))
        self.drop()

    # --- what came of it

    def result(self) -> Checked:
        key, accepted = self.shape.key, self.rows.select(*self.shape.stored)
        if not self._faults:
            return Checked(
                accepted,
                pl.concat([accepted.select(key).clear(), *self._kept]),
                pl.DataFrame(schema=REJECTION),
                True,
                self.read.height,
            )
        found = pl.concat(self._faults).join(self.read, on=ROW).sort(ROW, maintain_order=True)
        told = found.select(
            record=pl.lit(self.shape.name),
            place=PLACE,
            line=LINE,
            key=pl.concat_str(key, separator=" ", ignore_nulls=True),
            field="field",
            reason="reason",
            skipped="skipped",
        )
        unreadable = pl.any_horizontal(pl.col(FAULT).is_not_null(), *(pl.col(name).is_null() for name in key))
        lost = found.filter(unreadable & ~pl.col("skipped"))
        kept = found.filter(~unreadable).select(key)
        return Checked(accepted, pl.concat([kept, *self._kept]), told, not lost.height, self.read.height)


def _prepared(shape: Shape, frame: pl.DataFrame, today: datetime) -> pl.DataFrame:
    """With all columns that the table has, and where each row comes from."""
    known = {*shape.fields, PLACE, LINE, FAULT, UNKNOWN}
    if unknown := [column for column in frame.columns if column not in known]:
        near = get_close_matches(unknown[0], shape.fields, 1)
        hint = f"; is it {near[0]!r}?" if near else f"; known are {', '.join(shape.fields)}"
        raise SourceError(f"{shape.name}: there is no column {unknown[0]!r}{hint}")
    columns: dict[str, pl.Series] = {}
    for name, field in shape.fields.items():
        column = frame[name] if name in frame.columns else pl.Series(name, [None] * 0, pl.Null).extend_constant(None, frame.height)
        if not readable(column.dtype, field.kind):
            raise SourceError(f"{shape.name}: the column {name!r} holds {column.dtype}, which cannot be read")
        if isinstance(field.kind, Parts):
            column, wrong = plans.read(column, field.kind.model)
            columns[wrong.name] = wrong
        columns[name] = relative(column, today) if isinstance(field.kind, Moment) else column
    given = frame.select(pl.col(column) for column in (PLACE, LINE, FAULT, UNKNOWN) if column in frame.columns)
    absent = {
        PLACE: pl.lit(shape.name),
        LINE: pl.int_range(1, pl.len() + 1),
        FAULT: pl.lit(None, pl.String),
        UNKNOWN: pl.lit(None, pl.String),
    }
    return (
        pl.DataFrame(columns)
        .hstack(given)
        .with_columns(expression.alias(name) for name, expression in absent.items() if name not in given.columns)
        .with_row_index(ROW)
    )
