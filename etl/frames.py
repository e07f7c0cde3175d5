"""What an adapter hands over: one frame per table, as the source has it, and what each frame is complete for.

A frame is a Polars DataFrame whose columns are fields of its table (`etl.schema`), as text or in the field's own type. Beside
them it may have:

- `_place` (text): the file, query or address that the row comes from;
- `_line` (integer): which row of it, from 1; without it, rows are counted;
- `_fault` (text): what the adapter found wrong with the row; it is rejected, and its values are not trusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Protocol, runtime_checkable

import polars as pl
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo

from hub.errors import HutchError

PLACE, LINE, FAULT = "_place", "_line", "_fault"
Frames = dict[str, pl.DataFrame]


class SourceError(HutchError):
    """The source cannot be used as a whole; nothing is loaded."""


@dataclass(frozen=True, slots=True)
class Scope:
    """Which of its records a frame tells about: those whose `column` is one of `values`. Others are left as they are."""

    column: str
    values: frozenset[str]


@dataclass(frozen=True, slots=True)
class Extract:
    """What was read. A table without a frame is left as it is.

    scopes: {table: Scope} for frames that do not tell of the whole table; None as a Scope means that the frame only adds and
    changes, and nothing ends for not being in it. A table that is not in scopes is whole: what it does not name has ended.
    """

    frames: Frames
    scopes: Mapping[str, Scope | None] = field(default_factory=dict)


class Adapter(Protocol):
    """Reads one source as a whole, or raises SourceError: half a source must not look like the whole of it."""

    @property
    def name(self) -> str: ...

    def read(self) -> Extract: ...


@runtime_checkable
class Follower(Adapter, Protocol):
    """Reads also what was changed or added since a moment; what was taken away, only a whole reading can tell."""

    def read_since(self, since: datetime) -> Extract: ...


def _beside(path: Path, info: ValidationInfo) -> Path:
    return Path((info.context or {}).get("folder", ""), path.expanduser())


# in settings; a relative one counts from the folder of the source's file
File = Annotated[Path, AfterValidator(_beside)]


class Settings(BaseModel):
    """What an adapter is told in its source's file; an adapter is a subclass with a `read`, and called after its class."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def name(self) -> str:
        return type(self).__name__.lower()


def secret(file: Path) -> str:
    """A password or token from a file of its own."""
    try:
        return file.read_text().strip()
    except OSError as error:
        raise SourceError(f"{file}: cannot be read: {error.strerror}") from error
