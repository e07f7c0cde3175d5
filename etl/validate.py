"""Which rows of a frame become records: their cells and keys, then what they say against what the database holds.

Whoever cannot be taken is told of with place, line, key, field and reason, and takes nothing away: what the database holds under
the key of a rejected row stays, and while any key cannot be read, nothing of that table ends.

A row that says what the database holds was good when it came: only rows that differ are looked at closely.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property

import polars as pl

from etl import cells, plans
from etl.frames import FAULT, LINE, PLACE, SourceError
from etl.schema import SHAPES, STRENGTH, Moment, Parts, Shape
from hub.errors import near

ROW, UNKNOWN, SOURCE, ENDED = "_row", "_unknown", "_source", "_ended"
REJECTION = dict.fromkeys(("record", "place", "line", "key", "field", "reason"), pl.String) | {
    "line": pl.Int64,
    # for a reason that is nobody's fault, such as a person without a login: it does not count against the source
    "skipped": pl.Boolean,
}
# set by admins too, who are then stronger than any source
BY_HAND = frozenset({"user_role", "user_group"})


@dataclass(frozen=True)
class Ids:
    """Which ids of a table others may refer to once it is loaded. held: `id` and `_ended`."""

    held: pl.DataFrame
    gone: pl.DataFrame
    added: pl.DataFrame
    left_out: pl.Series

    @cached_property
    def there(self) -> pl.DataFrame:
        return pl.concat([self.held.select("id").join(self.gone, on="id", how="anti"), self.added])


class Sieve:
    """The rows of one frame that are still good, and what was wrong with the others.

    fresh: all, until they meet what is held; then those that differ from it, beside them in `same` those that do not.
    """

    def __init__(self, name: str, frame: pl.DataFrame, zone: str, today: datetime) -> None:
        self.shape = SHAPES[name]
        self._faults: list[pl.DataFrame] = []
        fields, frame = self.shape.fields, _prepared(self.shape, frame, today)
        self.read = frame.select(
            pl.exclude(*fields),
            *(pl.col(name).alias(f"_cell_{name}") for name in fields),
            *(cells.value(name, frame.schema[name], field, zone) for name, field in fields.items()),
        )
        self.fresh, self.same = self.read, self.read.clear()
        self._refuse_where("", pl.col(FAULT).is_not_null(), pl.col(FAULT))
        self._refuse_where("user_id", pl.col(UNKNOWN).is_not_null(), pl.col(UNKNOWN), skipped=True)
        self._drop()
        for field, one in fields.items():
            for check in cells.unread(field, f"_cell_{field}", frame.schema[field], one):
                self._refuse_where(field, *check)
        for field in self.shape.key:
            self._refuse_where(field, pl.col(field).is_null(), pl.lit("is missing"))
        defaults = (pl.col(name).fill_null(pl.lit(field.default)) for name, field in fields.items() if field.default is not None)
        self.fresh = self.fresh.select(ROW, *fields).with_columns(defaults)
        self._drop()
        self._check_twins()

    def _refuse(self, bad: pl.DataFrame, field: str, reason: pl.Expr, *, skipped: bool = False) -> None:
        if bad.height:
            self._faults.append(bad.select(ROW, field=pl.lit(field), reason=reason, skipped=pl.lit(skipped)))

    def _refuse_where(self, field: str, wrong: pl.Expr, reason: pl.Expr, *, skipped: bool = False) -> None:
        self._refuse(self.fresh.filter(wrong), field, reason, skipped=skipped)

    def _drop(self) -> None:
        """Faults of one kind are all told; of the next kind, only those of rows that were good until then."""
        if self._faults:
            self.fresh, self.same = (
                rows.join(self.faults, on=ROW, how="anti", maintain_order="left") for rows in (self.fresh, self.same)
            )

    def _check_twins(self) -> None:
        """Two rows of one record: the same twice is once, several parts of a person are the strongest; all else is a mistake."""
        key = self.shape.key
        # hashes of different keys may agree, which costs a second look; those of the same key always do
        if self.fresh.select(pl.struct(key).hash().n_unique()).item() == self.fresh.height:
            return
        self.fresh = self.fresh.unique(list(self.shape.fields), keep="first", maintain_order=True)
        if self.shape.name == "experiment_member":
            strength = pl.col("role").replace_strict(STRENGTH, list(range(len(STRENGTH))), default=None)
            self.fresh = self.fresh.sort(strength, nulls_last=True).unique(key, keep="first", maintain_order=True).sort(ROW)
        twins = self.fresh.with_columns(_first=pl.col(ROW).first().over(key)).filter(pl.col(ROW) != pl.col("_first"))
        twins = twins.join(self.read.select(_first=ROW, _line=LINE), on="_first")
        self._refuse(twins, ", ".join(key), pl.format("the same as in line {}", "_line"))
        self._drop()

    # --- against what is held

    def meet(self, held: pl.DataFrame, source: str) -> None:
        """Part the rows that say what is held from those that are fresh. held: the table's fields, `_source` and `_ended`.

        Told by hashes of 64 bits: of a million rows that change, one is overlooked in one of ten million runs.
        """
        self.held, self.source, key = held, source, self.shape.key
        whole = pl.struct(*self.shape.stored).hash()
        ours = (pl.col(SOURCE) == source) & ~pl.col(ENDED)
        marks, of_rows = held.select(whole).to_series(), self.fresh.select(whole).to_series()
        stays = held.select(ours).to_series() & marks.is_in(of_rows.implode())
        is_same = of_rows.is_in(marks.filter(stays).implode())
        values = [name for name in self.shape.stored if name not in key]
        rest = held.filter(~stays).rename({name: self.held_as(name) for name in values})
        needed = [name for name in self.fresh.columns if name not in values or name in {*self.shape.references, *self.shape.json}]
        self.same, self.fresh = self.fresh.select(needed).filter(is_same), self.fresh.filter(~is_same)
        # by way of those that are named, because looking a few up among many takes longer than many among a few
        self._unmet = rest.join(self.fresh.join(rest, on=key, how="semi"), on=key, how="anti")
        self.fresh = self.fresh.join(rest, on=key, how="left", maintain_order="left")
        if self.shape.name in BY_HAND:
            self.fresh = self.fresh.filter(pl.col(SOURCE).ne_missing(pl.lit("")))

    def held_as(self, name: str) -> str:
        """The column beside a fresh row's own that says what the database holds."""
        return name if name in self.shape.key else f"_held_{name}"

    @property
    def rows(self) -> pl.DataFrame:
        """Those that are same or fresh: what they refer to and what is no column of the table."""
        return pl.concat([self.same, self.fresh.select(self.same.columns)])

    def check_values(self) -> None:
        checks = [(name, *check) for name, field in self.shape.fields.items() for check in cells.wrong(name, field)]
        if "starts_at" in self.shape.fields:
            reason = pl.format("ends before it starts ({})", pl.col("starts_at").dt.strftime("%Y-%m-%d %H:%M"))
            checks.append(("ends_at", pl.col("ends_at") < pl.col("starts_at"), reason))
        # all at once, because nearly always nothing is found
        found = self.fresh.select(wrong.any().alias(str(number)) for number, (_, wrong, _) in enumerate(checks)).row(0)
        for (name, wrong, reason), some in zip(checks, found, strict=True):
            if some:
                self._refuse_where(name, wrong, reason)
        self._drop()

    def check_logins(self) -> None:
        """A login is a JupyterHub account and a home: it stays with its person, and never passes to another."""
        if not self.fresh.height:
            return
        reason = "the login of user '{}' is '{}' and cannot become '{}': instances hang on it"
        moved = pl.col("_held_login") != pl.col("login")
        self._refuse_where("login", moved, pl.format(reason, "id", "_held_login", "login"))
        owners = self.held.select("login", _owner="id")
        # few are claimed twice, and a look at each group of one would take long
        claimed = self.fresh.join(owners, on="login", how="left", maintain_order="left")
        claimed = claimed.filter(pl.col("login").is_duplicated() | pl.col("_owner").is_not_null())
        claimed = claimed.with_columns(_first=pl.col("id").first().over("login"))
        taken = claimed.filter(pl.col("login").is_not_null() & (pl.coalesce("_owner", "_first") != pl.col("id")))
        reason = "'{}' belongs to user '{}'; a login is never given to another person"
        self._refuse(taken, "login", pl.format(reason, "login", pl.coalesce("_owner", "_first")))
        self._drop()
        self._refuse_where("login", pl.col("login").is_null(), pl.lit("has no login, and cannot sign on without one"), skipped=True)
        self._drop()

    def check_identities(self, known: pl.DataFrame) -> None:
        """A sign-on belongs to one person. known: issuer, subject, user_id."""
        account = ["issuer", "subject"]
        told = self.rows.filter(pl.any_horizontal(pl.col(account).is_not_null()))
        self._refuse(told.filter(pl.any_horizontal(pl.col(account).is_null())), "subject", pl.lit("goes with an issuer"))
        signed = told.join(known, on=account, how="left")
        signed = signed.with_columns(_owner=pl.coalesce("user_id", pl.col("id").first().over(account)))
        self._refuse(signed.filter(pl.col("_owner") != pl.col("id")), "subject", pl.format("is the sign-on of user '{}'", "_owner"))
        self._drop()

    def check_references(self, known: Mapping[str, Ids]) -> None:
        """What did not change refers to what is held, unless that is gone."""
        for field, target in self.shape.references.items():
            missing = self.same.join(known[target].gone, left_on=field, right_on="id", how="semi")
            if self.fresh.height:
                fresh = self.fresh.select(missing.columns).filter(pl.col(field).is_not_null())
                missing = pl.concat([missing, fresh.join(known[target].there, left_on=field, right_on="id", how="anti")])
            harmless = pl.col(field).is_in(known[target].left_out.implode())
            self._refuse(missing.filter(harmless), field, pl.format(f"{target} '{{}}' was left out", field), skipped=True)
            self._refuse(missing.filter(~harmless), field, pl.format(f"there is no {target} '{{}}'", field))
        if self.shape.name == "plan":
            ids = set(known["instrument"].there["id"])
            for row, limits in self.rows.select(ROW, "limits").rows():
                for name in sorted(plans.instruments(limits) - ids):
                    bad = self.rows.filter(pl.col(ROW) == row)
                    self._refuse(bad, "limits", pl.lit(f"there is no instrument {name!r}"))
        self._drop()

    def check_source(self) -> None:
        """A record that holds belongs to its source."""
        whose = pl.format("the source '{}'", SOURCE)
        whose = pl.when(pl.col(SOURCE) == "").then(pl.lit("no source, it was entered by hand")).otherwise(whose)
        others = (pl.col(SOURCE) != self.source) & ~pl.col(ENDED)
        self._refuse_where(", ".join(self.shape.key), others, pl.format("this record comes from {}", whose))
        self._drop()

    # --- what came of it

    @property
    def faults(self) -> pl.DataFrame:
        """What was found: the row, field, reason, and whether it is only skipped for it."""
        none = pl.DataFrame(schema={ROW: pl.UInt32, "field": pl.String, "reason": pl.String, "skipped": pl.Boolean})
        return pl.concat([none, *self._faults])

    def rejections(self) -> pl.DataFrame:
        return (
            self.faults.join(self.read, on=ROW)
            .sort(ROW, maintain_order=True)
            .select(
                record=pl.lit(self.shape.name),
                place=PLACE,
                line=LINE,
                key=pl.concat_str(self.shape.key, separator=",", ignore_nulls=True),
                field="field",
                reason="reason",
                skipped="skipped",
            )
        )

    def unnamed(self) -> pl.DataFrame:
        """The records that no row names, not even one that is rejected."""
        return self._unmet.join(self.read.join(self.faults, on=ROW, how="semi"), on=self.shape.key, how="anti")

    @property
    def certain(self) -> bool:
        """Whether what is not named can be taken for gone: a row whose key cannot be read might be any record's."""
        missing = pl.any_horizontal(pl.col(FAULT).is_not_null(), *(pl.col(name).is_null() for name in self.shape.key))
        return not self.read.filter(missing & pl.col(UNKNOWN).is_null()).height


def _prepared(shape: Shape, frame: pl.DataFrame, today: datetime) -> pl.DataFrame:
    """With all columns that the table has, and where each row comes from."""
    origin = {PLACE: pl.lit(shape.name), LINE: pl.int_range(1, pl.len() + 1), FAULT: pl.lit(None), UNKNOWN: pl.lit(None)}
    if unknown := [column for column in frame.columns if column not in {**shape.fields, **origin}]:
        raise SourceError(f"{shape.name}: there is no column {unknown[0]!r}{near(unknown[0], shape.fields)}")
    frame = frame.with_columns(
        [pl.lit(None).alias(name) for name in shape.fields if name not in frame.columns]
        + [default.alias(name) for name, default in origin.items() if name not in frame.columns]
    )
    frame = cells.stripped(frame)
    for name, field in shape.fields.items():
        if not cells.readable(frame.schema[name], field.kind):
            raise SourceError(f"{shape.name}: the column {name!r} holds {frame.schema[name]}, which cannot be read")
        if isinstance(field.kind, Parts):
            frame = frame.with_columns(*plans.read(frame[name], field.kind.model))
        elif isinstance(field.kind, Moment):
            frame = frame.with_columns(cells.relative(frame[name], today))
    frame = frame.with_columns(pl.col(FAULT, UNKNOWN).cast(pl.String), pl.col(LINE).cast(pl.Int64).fill_null(0))
    return frame.with_row_index(ROW).with_columns(pl.col(PLACE).fill_null(shape.name))
