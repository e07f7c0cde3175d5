"""`hutch etl`: load facility records from a source."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from etl.frames import Rejection
    from etl.load import Report

REJECTIONS_SHOWN = 50

app = typer.Typer(help="Load facility records from a source.", no_args_is_help=True)


@app.callback()
def _room() -> None:
    """Load facility records from a source."""


@app.command()
def load(
    path: Annotated[Path, typer.Argument(help="A folder with one CSV or JSON file per table.")],
    source: Annotated[str, typer.Option(help="The name under which the records are kept; a run only ends its own.")] = "files",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    allow_removals: Annotated[bool, typer.Option("--allow-removals", help="Let any number of records end.")] = False,
) -> None:
    """Load a folder of files. Either all that differs is changed, or nothing."""
    from etl.adapters.files import Files
    from etl.load import run
    from hub import configuration
    from hub.database.engine import open_database

    engine = open_database(configuration.load().database_url)
    report = run(engine, Files(path), source, dry_run=dry_run, allow_removals=allow_removals)
    console = Console()
    console.print(counts_table(report, dry_run))
    if report.rejections:
        console.print(rejections_table(report.rejections))
    if report.objections:
        Console(stderr=True).print(
            Text("Nothing was changed. " + "; ".join(report.objections) + ". Use --allow-removals if this is meant.", style="red")
        )
        raise typer.Exit(1)


def counts_table(report: Report, dry_run: bool) -> Table:
    title = "Refused" if report.objections else "Would change" if dry_run else f"Loaded (run {report.run_id})"
    table = Table(title=title, title_justify="left")
    table.add_column("table")
    for name in ("added", "changed", "ended", "unchanged", "rejected"):
        table.add_column(name, justify="right", style="red" if name == "rejected" else None)
    for name, counts in report.counts.items():
        table.add_row(name, *(str(count) for count in counts.values()))
    return table


def rejections_table(rejections: list[Rejection]) -> Table:
    rest = len(rejections) - REJECTIONS_SHOWN
    table = Table(title="Rejected rows", title_justify="left", caption=f"and {rest} more" if rest > 0 else None)
    for name in ("file", "line", "column", "reason"):
        table.add_column(name, overflow="fold")
    for one in rejections[:REJECTIONS_SHOWN]:
        # as text: what a source wrote must not be taken for markup
        table.add_row(Text(one.place), str(one.line), Text(one.column), Text(one.reason))
    return table
