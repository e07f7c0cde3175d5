"""What an adapter hands over: frames of rows as the source wrote them, each with the place it came from.

A frame is named after its table (`user`, `experiment`). A table that an adapter does not hand over is left as it is; a table
that comes empty means that the source knows no such record.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from hub.errors import HutchError


class SourceError(HutchError):
    """The source cannot be used as a whole; nothing is loaded."""


@dataclass(frozen=True, slots=True)
class Row:
    values: dict[str, Any]
    place: str
    line: int
    # what the adapter found wrong with it; such a row is rejected, and its values are not trusted
    fault: str | None = None


Frames = dict[str, list[Row]]


@dataclass(frozen=True, slots=True)
class Rejection:
    place: str
    line: int
    column: str
    reason: str

    def __str__(self) -> str:
        where = f"{self.place}:{self.line}" + (f", {self.column}" if self.column else "")
        return f"{where}: {self.reason}"


class Adapter(Protocol):
    """Reads one source as a whole, or raises SourceError: half a source must not look like the whole of it."""

    name: str

    def read(self) -> Frames: ...
