"""Cells into values: for a field of each kind, the expression that reads its column and what may be wrong with it.

A moment is ISO 8601 (`2026-03-01`, `2026-03-01 08:00`, `2026-03-01T08:00:00.5+01:00`), in the source's time zone unless it says
otherwise. Examples may count from the day of the load: `today`, `today-3d 08:00`, `today+2d`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, time, timedelta

import polars as pl

from etl.schema import NUMBERS_BELOW, TIME, Field, Kind, Moment, Number, Text

_RELATIVE = re.compile(r"today(?:([+-]\d{1,5})d)?(?: (\d\d:\d\d))?")
_CONTROL = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"
_ZONED = ("%Y-%m-%d %H:%M:%S%.f%#z", "%Y-%m-%d %H:%M%#z")
_NAIVE = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")
# how databases write "no date" and "no end"
_OPEN = r"^(0000-00-00|9999-)"
_OPEN_YEAR = 9999

Wrong = tuple[pl.Expr, pl.Expr]


def readable(dtype: pl.DataType, kind: Kind) -> bool:
    """Whether cells of this type can be read as this kind at all: lists are no text, and a fraction is no id."""
    if dtype == pl.String or dtype == pl.Null:
        return True
    if isinstance(kind, Moment):
        return isinstance(dtype, pl.Datetime | pl.Date)
    if isinstance(kind, Number):
        return dtype.is_numeric()
    if isinstance(kind, Text):
        return dtype.is_integer() or isinstance(dtype, pl.Decimal | pl.Categorical | pl.Enum)
    return dtype.is_nested() or dtype == pl.Object


def reads(name: str, dtype: pl.DataType, field: Field, zone: str) -> pl.Expr:
    """The field's value, null where the cell is empty or cannot be read."""
    cell = pl.col(name)
    if isinstance(field.kind, Moment):
        value = _moment(cell, dtype, zone, field.kind.ambiguous)
    elif isinstance(field.kind, Number):
        whole = cell.str.strip_chars() if dtype == pl.String else cell
        value = whole.cast(pl.Int64, strict=False)
    else:
        value = _text(cell, dtype)
    return (value if field.default is None else value.fill_null(pl.lit(field.default, field.dtype))).alias(name)


def faults(name: str, dtype: pl.DataType, field: Field) -> Iterator[Wrong]:
    """Pairs of what is wrong and what to say. The value is under the field's name, the cell as it came under `raw(name)`."""
    value, cell = pl.col(name), pl.col(raw(name))
    given = _text(cell, dtype).is_not_null() if dtype == pl.String else cell.is_not_null()
    if field.required:
        yield ~given, pl.lit("is missing")
    if dtype == pl.Null:
        return
    if isinstance(field.kind, Moment):
        closed = ~_text(cell, dtype).str.contains(_OPEN) if dtype == pl.String else cell.dt.year() < _OPEN_YEAR
        yield given & closed & value.is_null(), _said("{} is not a date; write 2026-03-01 08:00", cell)
    elif isinstance(field.kind, Number):
        # a default stands in for what could not be read
        number = cell.str.strip_chars().cast(pl.Int64, strict=False) if dtype == pl.String else cell.cast(pl.Int64, strict=False)
        unread = number.is_null() if dtype == pl.String or dtype.is_integer() else number.is_null() | (number != cell)
        yield given & unread, _said("should be a whole number, not {}", cell)
        yield value < field.kind.least, _said(f"should be {field.kind.least} or more, not {{}}", cell)
        yield value >= NUMBERS_BELOW, _said(f"should be less than {NUMBERS_BELOW}, not {{}}", cell)
    elif isinstance(field.kind, Text):
        yield from _text_faults(value, field.kind)
    else:
        yield pl.col(f"_fault_{name}").is_not_null(), pl.col(f"_fault_{name}")


def _text_faults(value: pl.Expr, kind: Text) -> Iterator[Wrong]:
    if kind.choices:
        yield ~value.is_in(kind.choices), _said(f"should be one of {', '.join(kind.choices)}, not {{}}", value)
        return
    # counting bytes costs nothing, counting characters does
    yield (
        (value.str.len_bytes() > kind.longest) & (value.str.len_chars() > kind.longest),
        _said(f"should have at most {kind.longest} characters, not {{}}", value),
    )
    if kind.shape:
        yield ~value.str.contains(kind.shape), _said(f"should be {kind.called}, not {{}}", value)
    else:
        yield value.str.contains(_CONTROL), pl.lit("holds a control character")


def raw(name: str) -> str:
    return f"_raw_{name}"


def _text(cell: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if dtype != pl.String:
        return cell.cast(pl.String)
    stripped = cell.str.strip_chars()
    return pl.when(stripped != "").then(stripped)


def _said(words: str, cell: pl.Expr) -> pl.Expr:
    text = cell.cast(pl.String)
    short = pl.when(text.str.len_chars() > 60).then(text.str.slice(0, 57) + "...").otherwise(text)
    return pl.format(words, pl.format("'{}'", short))


def _moment(cell: pl.Expr, dtype: pl.DataType, zone: str, ambiguous: str) -> pl.Expr:
    if isinstance(dtype, pl.Datetime) and dtype.time_zone:
        return pl.when(cell.dt.year() < _OPEN_YEAR).then(cell).dt.convert_time_zone("UTC").cast(TIME)
    if isinstance(dtype, pl.Datetime | pl.Date):
        naive = cell.cast(pl.Datetime("us"))
        return _from_zone(pl.when(naive.dt.year() < _OPEN_YEAR).then(naive), zone, ambiguous)
    if dtype == pl.Null:
        return cell.cast(TIME)
    text = _text(cell, dtype).str.replace("T", " ", literal=True).str.replace("Z$", "+00:00")
    text = pl.when(~text.str.contains(_OPEN)).then(text)
    zoned = pl.coalesce(text.str.to_datetime(form, strict=False, time_unit="us", time_zone="UTC") for form in _ZONED)
    naive = pl.coalesce(text.str.to_datetime(form, strict=False, time_unit="us") for form in _NAIVE)
    return pl.coalesce(zoned, _from_zone(naive, zone, ambiguous))


def _from_zone(naive: pl.Expr, zone: str, ambiguous: str) -> pl.Expr:
    """A time that a spring night leaves out is taken as the clock stood before it: an hour later on the new one."""
    if zone == "UTC":
        return naive.dt.replace_time_zone("UTC")

    def placed(times: pl.Expr) -> pl.Expr:
        return times.dt.replace_time_zone(zone, ambiguous=ambiguous, non_existent="null").dt.convert_time_zone("UTC")

    return placed(naive).fill_null(placed(naive + pl.duration(hours=1)))


def relative(column: pl.Series, today: datetime) -> pl.Series:
    """`today-3d 08:00` as the moment that it means; `today` is the midnight that it counts from."""
    if column.dtype != pl.String or not column.str.starts_with("today").any():
        return column
    return column.replace({text: _counted(text, today) for text in column.unique() if text and text.startswith("today")})


def _counted(text: str, today: datetime) -> str:
    try:
        if found := _RELATIVE.fullmatch(text):
            clock = time.fromisoformat(found[2] or "00:00")
            return (today + timedelta(days=int(found[1] or 0), hours=clock.hour, minutes=clock.minute)).isoformat()
    except (ValueError, OverflowError):
        pass
    return text
