"""What user offices push instead of being asked: batches of tables, and the tokens with which they may. `etl.serve` speaks HTTP."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError, model_validator

from etl.adapters.files import objects_frame
from etl.frames import Extract, Scope, Settings, SourceError
from etl.schema import SHAPES, Moment, Number, Parts, Shape
from hub.keys import hashed

FAULTS_TOLD = 100
Row = dict[str, Any]


class Push(Settings):
    """The adapter of a source that is only pushed."""

    def read(self) -> Extract:
        raise SourceError("this source is pushed to `hutch etl serve`; there is nothing to read")


@dataclass(slots=True)
class Sent:
    """What was sent, as an adapter."""

    name: str
    read: Callable[[], Extract]


def extract_of(tables: Mapping[str, list[Row]], scopes: Mapping[str, Scope | None], place: str) -> Extract:
    """Rows as frames; what is wrong with one is told with its place and its number in the list, from 1."""
    frames = {table: objects_frame(f"{place}/{table}", rows, SHAPES[table].fields) for table, rows in tables.items()}
    return Extract(frames, scopes)


# --- batches


class Batch(BaseModel):
    """One push. batch: the sender's own name for it; one that comes again changes nothing.

    scopes: what a table's rows are complete for, {"column": ..., "values": [...]}. null: they only add and change. A table that
    is not in scopes is whole: what it does not name has ended.
    """

    model_config = ConfigDict(extra="forbid")
    batch: Annotated[str, StringConstraints(pattern=r"^[\w.:-]{1,100}$")]
    tables: dict[str, list[Row]]
    scopes: dict[str, Scope | None] = {}

    @model_validator(mode="after")
    def _fits(self) -> Batch:
        if unknown := self.tables.keys() - SHAPES.keys():
            raise ValueError(f"there is no table {min(unknown)!r}; known are {', '.join(SHAPES)}")
        for table, scope in self.scopes.items():
            if table not in self.tables or (scope and scope.column not in SHAPES[table].stored):
                raise ValueError(f"the scope of {table!r} is of a table that is not here, or by a column that it does not have")
        return self

    def extract(self) -> Extract:
        return extract_of(self.tables, self.scopes, f"batch {self.batch}")


def schema() -> dict[str, Any]:
    """The JSON Schema of a batch, with the fields of each table. A row that does not fit is told of; the others are taken."""
    document = Batch.model_json_schema()
    tables = {name: {"type": "array", "items": _row_schema(shape)} for name, shape in SHAPES.items()}
    document["properties"]["scopes"]["propertyNames"] = {"enum": list(SHAPES)}
    document["properties"]["tables"] = {"type": "object", "properties": tables, "additionalProperties": False}
    return document


def _row_schema(shape: Shape) -> dict[str, Any]:
    kinds = {Number: ["integer", "string"], Moment: ["string"], Parts: ["array", "object"]}
    cells = {name: {"type": [*kinds.get(type(field.kind), ["string", "integer"]), "null"]} for name, field in shape.fields.items()}
    required = [name for name, field in shape.fields.items() if field.required]
    return {"type": "object", "properties": cells, "required": required, "additionalProperties": False}


def faults(error: ValidationError) -> list[dict[str, str]]:
    """What is wrong with a body, and where; without what stands there."""
    told = error.errors(include_url=False, include_context=False, include_input=False)[:FAULTS_TOLD]
    return [{"at": ".".join(map(str, fault["loc"])), "fault": fault["msg"]} for fault in told]


# --- tokens


def new_token(file: Path) -> str:
    """Add a token to those of a source; only its hash is kept."""
    token = f"hutch_{secrets.token_urlsafe(32)}"
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a") as hashes:
        hashes.write(hashed(token) + "\n")
    return token


def accepts(file: Path, token: str) -> bool:
    """Read anew each time: a line taken out is a token taken back."""
    return file.exists() and hashed(token) in file.read_text().split()
