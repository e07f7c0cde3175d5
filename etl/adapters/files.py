"""The simplest source: a folder with one CSV, JSON or Parquet file per table.

`users`, `instruments`, `proposals`, `experiments` and `experiment_members` must be there; `affiliations`, `instrument_scientists`,
`user_roles`, `user_groups` and `plans` may be: without one, those records stay as they are.

CSV: UTF-8, comma-separated, the first line names the columns; an empty cell is no value.
JSON: UTF-8, one list of objects; the line of one is its number in the list.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from math import isfinite
from pathlib import Path
from typing import Any

import polars as pl

from etl.frames import FAULT, LINE, PLACE, Extract, File, Settings, SourceError
from etl.schema import MANDATORY, SHAPES, Field, Parts

SUFFIXES = ("csv", "json", "parquet")


class Files(Settings):
    folder: File

    def read(self) -> Extract:
        if not self.folder.is_dir():
            raise SourceError(
                f"{self.folder}: there is no such folder; name one that holds users.csv, experiments.csv and the rest"
            )
        files = {table: self._find(table) for table in SHAPES}
        if missing := sorted(f"{table}s.csv" for table in MANDATORY if files[table] is None):
            raise SourceError(f"{self.folder}: {', '.join(missing)} missing (or the same as .json or .parquet)")
        return Extract({table: read_file(file, table) for table, file in files.items() if file})

    def _find(self, table: str) -> Path | None:
        found = [file for suffix in SUFFIXES if (file := self.folder / f"{table}s.{suffix}").exists()]
        if len(found) > 1:
            raise SourceError(f"{self.folder}: both {found[0].name} and {found[1].name} are there; remove one")
        return found[0] if found else None


def read_file(file: Path, table: str) -> pl.DataFrame:
    fields = SHAPES[table].fields
    if file.suffix == ".parquet":
        return _parquet(file, fields)
    text = _text(file)
    return csv_frame(file.name, text, fields) if file.suffix == ".csv" else json_frame(file.name, text, fields)


def _parquet(file: Path, fields: dict[str, Field]) -> pl.DataFrame:
    try:
        frame = pl.read_parquet(file)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise SourceError(f"{file.name}: is not Parquet: {error}") from error
    _check_header(file.name, frame.columns, fields)
    return frame.with_columns(pl.lit(file.name).alias(PLACE))


def _text(file: Path) -> str:
    try:
        data = file.read_bytes()
        return data.decode("utf-8-sig")
    except OSError as error:
        raise SourceError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SourceError(f"{file.name}:{line}: is not UTF-8 (byte 0x{data[error.start]:02x}); save it as UTF-8") from error


# --- CSV


def csv_frame(name: str, text: str, fields: dict[str, Field]) -> pl.DataFrame:
    lines = _csv_lines(name, text)
    columns = [column.strip() for column in next(lines, (1, []))[1]]
    _check_header(name, columns, fields)
    numbers, rows, faults = [], [], []
    for number, cells in lines:
        fits = len(cells) == len(columns)
        numbers.append(number)
        rows.append(cells if fits else [None] * len(columns))
        faults.append(None if fits else f"has {len(cells)} cells, the first line names {len(columns)} columns")
    return _frame(name, pl.DataFrame(rows, dict.fromkeys(columns, pl.String), orient="row"), numbers, faults)


def _csv_lines(name: str, text: str) -> Iterator[tuple[int, list[str]]]:
    """Each record with the line it begins at; a quoted cell may hold line ends."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    begins = 1
    try:
        for cells in reader:
            if cells:
                yield begins, cells
            begins = reader.line_num + 1
    except csv.Error as error:
        raise SourceError(f"{name}:{begins}: is not CSV: {error}") from error


def _check_header(name: str, columns: list[str], fields: dict[str, Field]) -> None:
    """A column that is misspelt would look like a column without values, and take away what is there."""
    if not columns:
        raise SourceError(f"{name}: is empty; its first line must name the columns: {', '.join(fields)}")
    if unknown := [column for column in columns if column not in fields]:
        raise SourceError(f"{name}:1: there is no column {unknown[0]!r}; known are {', '.join(fields)}")
    if twice := {column for column in columns if columns.count(column) > 1}:
        raise SourceError(f"{name}:1: the column {min(twice)!r} is there twice")
    if missing := [column for column, field in fields.items() if field.required and column not in columns]:
        raise SourceError(f"{name}:1: the column {missing[0]!r} is missing")


# --- JSON


def json_frame(name: str, text: str, fields: dict[str, Field]) -> pl.DataFrame:
    try:
        rows = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise SourceError(f"{name}:{error.lineno}: is not JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{name}: is not JSON: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise SourceError(f"{name}: must be a list of objects: [{{...}}, {{...}}]")
    return objects_frame(name, rows, fields)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({column for column, _ in pairs}) < len(pairs):
        raise ValueError("a name is there twice in one object")
    return dict(pairs)


def objects_frame(name: str, objects: Iterable[dict[str, Any]], fields: dict[str, Field]) -> pl.DataFrame:
    """Of objects as JSON has them; a row's line is its number in the list."""
    rows, faults = [], []
    for values in objects:
        cells = {column: _cell(value, fields[column]) for column, value in values.items() if column in fields and value is not None}
        rows.append([cells.get(column, (None, None))[0] for column in fields])
        wrong = [f"there is no field {column!r}" for column in values if column not in fields]
        wrong += [f"{column}: {fault}" for column, (_, fault) in cells.items() if fault]
        faults.append("; ".join(wrong) or None)
    return _frame(name, pl.DataFrame(rows, dict.fromkeys(fields, pl.String), orient="row"), range(1, len(rows) + 1), faults)


def _cell(value: Any, field: Field) -> tuple[str | None, str | None]:
    """As text, or what is wrong with it."""
    if isinstance(field.kind, Parts):
        return json.dumps(value), None
    if isinstance(value, bool | list | dict):
        return None, f"should be text or a number, not {type(value).__name__}"
    if isinstance(value, float) and not isfinite(value):
        return None, f"{value} is not a number"
    try:
        str(value).encode()
    except UnicodeEncodeError:
        return None, f"holds half a character: {value!r}"
    return str(value), None


def _frame(name: str, frame: pl.DataFrame, numbers: Iterable[int], faults: Iterable[str | None]) -> pl.DataFrame:
    return frame.with_columns(pl.lit(name).alias(PLACE), pl.Series(LINE, numbers, pl.Int64), pl.Series(FAULT, faults, pl.String))
