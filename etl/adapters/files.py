"""The simplest source: a folder with one CSV or JSON file per table.

`users.csv`, `instruments.csv`, `proposals.csv`, `experiments.csv` and `experiment_members.csv` must be there (or the same as
`.json`); `affiliations`, `instrument_scientists`, `user_roles` and `plans` may be: without one, those records stay as they are.

CSV: UTF-8, comma-separated, the first line names the columns; lists are separated by `;`; an empty cell is no value.
JSON: UTF-8, one list of objects.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etl.frames import Frames, Row, SourceError
from etl.validate import MODELS

MANDATORY = frozenset({"user", "instrument", "proposal", "experiment", "experiment_member"})
LISTS = frozenset({"instruments", "roles"})


class Files:
    name = "files"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self) -> Frames:
        if not self.folder.is_dir():
            raise SourceError(
                f"{self.folder}: there is no such folder; name one that holds users.csv, experiments.csv and the rest"
            )
        files = {table: self._find(table) for table in MODELS}
        if missing := sorted(f"{table}s.csv" for table in MANDATORY if files[table] is None):
            raise SourceError(f"{self.folder}: {', '.join(missing)} missing (or the same as .json)")
        return {table: read_file(file, table) for table, file in files.items() if file}

    def _find(self, table: str) -> Path | None:
        found = [file for suffix in ("csv", "json") if (file := self.folder / f"{table}s.{suffix}").exists()]
        if len(found) > 1:
            raise SourceError(f"{self.folder}: both {found[0].name} and {found[1].name} are there; remove one")
        return found[0] if found else None


def read_file(file: Path, table: str) -> list[Row]:
    text = _text(file)
    return list(_csv_rows(file.name, text, table) if file.suffix == ".csv" else _json_rows(file.name, text))


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


def _csv_rows(name: str, text: str, table: str) -> Iterator[Row]:
    lines = _csv_lines(name, text)
    columns = [column.strip() for column in next(lines, (1, []))[1]]
    _check_header(name, columns, table)
    for number, cells in lines:
        fault = None if len(cells) == len(columns) else f"has {len(cells)} cells, the first line names {len(columns)} columns"
        values = {column: _cell(column, cell) for column, cell in zip(columns, cells, strict=False) if cell.strip()}
        yield Row(values, name, number, fault)


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


def _check_header(name: str, columns: list[str], table: str) -> None:
    """A column that is misspelt would look like a column without values, and take away what is there."""
    fields = MODELS[table].model_fields
    if not columns:
        raise SourceError(f"{name}: is empty; its first line must name the columns: {', '.join(fields)}")
    if unknown := [column for column in columns if column not in fields]:
        raise SourceError(f"{name}:1: there is no column {unknown[0]!r}; known are {', '.join(fields)}")
    if twice := {column for column in columns if columns.count(column) > 1}:
        raise SourceError(f"{name}:1: the column {min(twice)!r} is there twice")
    if missing := [column for column, field in fields.items() if field.is_required() and column not in columns]:
        raise SourceError(f"{name}:1: the column {missing[0]!r} is missing")


def _cell(column: str, cell: str) -> str | list[str]:
    return [part.strip() for part in cell.split(";") if part.strip()] if column in LISTS else cell


# --- JSON


def _json_rows(name: str, text: str) -> Iterator[Row]:
    """Objects one by one, for the line each begins at, which `json.loads` does not tell."""
    decoder = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant)
    position = _skip(text, 0)
    if text[position : position + 1] != "[":
        raise SourceError(f"{name}: must be a list of objects: [{{...}}, {{...}}]")
    position, separator, line, counted = _skip(text, position + 1), ",", 1, 0
    if text[position : position + 1] == "]":
        separator, position = "]", _skip(text, position + 1)
    while separator == ",":
        line, counted = line + text.count("\n", counted, position), position
        try:
            value, position = decoder.raw_decode(text, position)
        except json.JSONDecodeError as error:
            raise SourceError(f"{name}:{error.lineno}: is not JSON: {error.msg}") from error
        except (ValueError, RecursionError) as error:
            raise SourceError(f"{name}:{line}: is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise SourceError(f"{name}:{line}: must be an object, not {type(value).__name__}")
        yield Row({column: part for column, part in value.items() if part is not None}, name, line)
        position = _skip(text, position)
        separator, position = text[position : position + 1], _skip(text, position + 1)
    if separator != "]" or position < len(text):
        raise SourceError(f"{name}:{line}: is not JSON: there is no proper end of the list after this object")


def _skip(text: str, position: int) -> int:
    while text[position : position + 1].isspace():
        position += 1
    return position


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({column for column, _ in pairs}) < len(pairs):
        raise ValueError("a name is there twice in one object")
    return dict(pairs)


def _no_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is not a number")
