"""Cells into values: for a field of each kind, the expression that reads its column, and what may be wrong with it.

A moment is ISO 8601 (`2026-03-01`, `2026-03-01 08:00`, `2026-03-01T08:00:00.5+01:00`), in the source's time zone unless it says
otherwise. Examples may count from the day of the load: `today`, `today-3d 08:00`, `today+2d`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, time, timedelta

import polars as pl

from etl.schema import NUMBERS_BELOW, TIME, Field, Kind, Moment, Number, Parts, Text

_RELATIVE = re.compile(r"today(?:([+-]\d{1,5})d)?(?: (\d\d:\d\d))?")
_CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
_ZONED = ("%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%d %H:%M%#z")
_NAIVE = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")
# how databases write "no date" and "no end"
_OPEN = r"^(0000-00-00|9999-)"
_OPEN_YEAR = 9999

# what is wrong, and what to say of it
Check = tuple[pl.Expr, pl.Expr]


def readable(dtype: pl.DataType, kind: Kind) -> bool:
    """Whether cells of this type can be read as this kind at all: lists are no text, and a fraction is no id."""
    if dtype in (pl.String, pl.Null):
        return True
    match kind:
        case Moment():
            return isinstance(dtype, pl.Datetime | pl.Date)
        case Number():
            return dtype.is_numeric()
        case Text():
            return dtype.is_integer() or isinstance(dtype, pl.Decimal | pl.Categorical | pl.Enum)
    return dtype.is_nested() or dtype == pl.Object


def stripped(frame: pl.DataFrame) -> pl.DataFrame:
    """Without blanks around texts; a blank text is none."""
    frame = frame.with_columns(pl.col(pl.String).str.strip_chars())
    blank = [column.name for column in frame if column.dtype == pl.String and (column.str.len_bytes() == 0).any()]
    return frame.with_columns(pl.col(blank).replace("", None))


def value(name: str, dtype: pl.DataType, field: Field, zone: str) -> pl.Expr:
    """Null where the cell is empty or cannot be read. Of a column that is `stripped`."""
    cell = pl.col(name)
    match field.kind:
        case Moment(ambiguous):
            return _moment(cell, dtype, zone, ambiguous).alias(name)
        case Number():
            return cell.cast(pl.Int64, strict=False).alias(name)
    return cell.cast(pl.String).alias(name)


def unread(name: str, cell: str, dtype: pl.DataType, field: Field) -> Iterator[Check]:
    """Cells that hold something which is no value. cell: the column as it came; name: what was read of it."""
    if dtype == pl.Null:
        return
    given = pl.col(cell)
    lost = given.is_not_null() & pl.col(name).is_null()
    match field.kind:
        case Moment():
            is_open = given.str.contains(_OPEN) if dtype == pl.String else given.dt.year() >= _OPEN_YEAR
            yield lost & ~is_open, _said("{} is not a date; write 2026-03-01 08:00", given)
        case Number():
            part = given != pl.col(name) if dtype.is_float() else pl.lit(False)
            yield lost | part, _said("should be a whole number, not {}", given)
        case Parts():
            yield pl.col(fault(name)).is_not_null(), pl.col(fault(name))


def wrong(name: str, field: Field) -> Iterator[Check]:
    """Values that are not as they must be."""
    this = pl.col(name)
    if field.required:
        yield this.is_null(), pl.lit("is missing")
    match field.kind:
        case Number(least):
            yield this < least, _said(f"should be {least} or more, not {{}}", this)
            yield this >= NUMBERS_BELOW, _said(f"should be less than {NUMBERS_BELOW}, not {{}}", this)
        case Text(choices=choices) if choices:
            yield ~this.is_in(choices), _said(f"should be one of {', '.join(choices)}, not {{}}", this)
        case Text(longest, shape, called):
            # counting bytes costs nothing, counting characters does
            long = (this.str.len_bytes() > longest) & (this.str.len_chars() > longest)
            yield long, _said(f"should have at most {longest} characters, not {{}}", this)
            yield this.str.contains(_CONTROL), pl.lit("holds a control character")
            if shape:
                yield ~this.str.contains(shape), _said(f"should be {called}, not {{}}", this)


def fault(name: str) -> str:
    return f"_fault_{name}"


def _said(words: str, cell: pl.Expr) -> pl.Expr:
    text = cell.cast(pl.String)
    short = pl.when(text.str.len_chars() > 60).then(text.str.slice(0, 57) + "...").otherwise(text)
    return pl.format(words, pl.format("'{}'", short))


# --- moments


def _moment(cell: pl.Expr, dtype: pl.DataType, zone: str, ambiguous: str) -> pl.Expr:
    if dtype == pl.Null:
        return cell.cast(TIME)
    if dtype == pl.String:
        text = cell.str.replace("T", " ", literal=True).str.replace("Z$", "+00:00")
        text = pl.when(~text.str.contains(_OPEN)).then(text)
        zoned = pl.coalesce(text.str.to_datetime(form, strict=False, time_unit="us", time_zone="UTC") for form in _ZONED)
        naive = pl.coalesce(text.str.to_datetime(form, strict=False, time_unit="us") for form in _NAIVE)
        return pl.coalesce(zoned, _from_zone(naive, zone, ambiguous))
    cell = pl.when(cell.dt.year() < _OPEN_YEAR).then(cell)
    if isinstance(dtype, pl.Datetime) and dtype.time_zone:
        return cell.dt.convert_time_zone("UTC").cast(TIME)
    return _from_zone(cell.cast(pl.Datetime("us")), zone, ambiguous)


def _from_zone(naive: pl.Expr, zone: str, ambiguous: str) -> pl.Expr:
    """A time that a spring night leaves out is taken as the clock stood before it: an hour later on the new one."""

    def placed(times: pl.Expr) -> pl.Expr:
        return times.dt.replace_time_zone(zone, ambiguous=ambiguous, non_existent="null").dt.convert_time_zone("UTC")  # type: ignore[arg-type]

    return placed(naive).fill_null(placed(naive + pl.duration(hours=1))) if zone != "UTC" else placed(naive)


def relative(column: pl.Series, today: datetime) -> pl.Series:
    """`today-3d 08:00` as the moment that it means; `today` is the midnight that it counts from."""
    if column.dtype != pl.String or not column.str.starts_with("today").any():
        return column
    return column.replace({text: _counted(text, today) for text in column.unique() if text and text.startswith("today")})


def _counted(text: str, today: datetime) -> str:
    with suppress(ValueError, OverflowError):
        if found := _RELATIVE.fullmatch(text):
            clock = time.fromisoformat(found[2] or "00:00")
            return (today + timedelta(days=int(found[1] or 0), hours=clock.hour, minutes=clock.minute)).isoformat()
    return text
