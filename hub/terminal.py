"""Tables on the command line."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

ROWS_SHOWN = 50


def show(console: Console, title: str, columns: Iterable[str], rows: Iterable[Iterable[Any]]) -> None:
    """A table, unless it has no rows. Cells are text: what a source wrote must not be taken for markup."""
    cells = [[Text("" if cell is None else str(cell)) for cell in row] for row in rows]
    rest = len(cells) - ROWS_SHOWN
    table = Table(title=title, title_justify="left", padding=0, caption=f"and {rest} more" if rest > 0 else None)
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in cells[:ROWS_SHOWN]:
        table.add_row(*row)
    if cells:
        console.print(table)
