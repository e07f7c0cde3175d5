"""`hutch etl`: load facility records from their sources, and see what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    import polars as pl
    from sqlalchemy import Engine

    from etl.frames import Adapter
    from etl.load import Report
    from etl.source import Source

ROWS_SHOWN = 50

app = typer.Typer(help="Load facility records from their sources.", no_args_is_help=True)
AllowRemovals = Annotated[bool, typer.Option("--allow-removals", help="Let any number of records end.")]


@app.callback()
def _room() -> None:
    """Load facility records from their sources."""


@app.command()
def load(
    path: Annotated[Path, typer.Argument(help="A folder with one CSV, JSON or Parquet file per table.")],
    source: Annotated[str, typer.Option(help="The name under which the records are kept; a run only ends its own.")] = "files",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    allow_removals: AllowRemovals = False,
) -> None:
    """Load a folder of files. Either all that differs is changed, or nothing."""
    from etl.adapters.files import Files
    from etl.source import Source

    _load(Source(name=source), Files(folder=path), dry_run=dry_run, allow_removals=allow_removals)


def _load(source: Source, adapter: Adapter, *, dry_run: bool, allow_removals: bool) -> None:
    from etl.load import run

    console = Console()
    with console.status("") as status:
        report = run(_engine(), source, adapter, dry_run=dry_run, allow_removals=allow_removals, tell=status.update)
    console.print(counts_table(report, dry_run))
    if report.rejections.height:
        console.print(rejections_table(report.rejections))
    if report.objections:
        Console(stderr=True).print(
            Text("Nothing was changed. " + "; ".join(report.objections) + ". Use --allow-removals if this is meant.", style="red")
        )
        raise typer.Exit(1)


def _engine() -> Engine:
    from hub import configuration
    from hub.database.engine import open_database

    return open_database(configuration.load().database_url)


def counts_table(report: Report, dry_run: bool) -> Table:
    title = "Refused" if report.objections else "Would change" if dry_run else f"Loaded (run {report.run_id})"
    table = Table(title=title, title_justify="left")
    table.add_column("table")
    for name in ("added", "changed", "ended", "unchanged", "rejected", "skipped"):
        table.add_column(name, justify="right", style="red" if name == "rejected" else None)
    for name, counts in report.counts.items():
        table.add_row(name, *(str(count) for count in counts.values()))
    return table


def rejections_table(rejections: pl.DataFrame) -> Table:
    rest = rejections.height - ROWS_SHOWN
    table = Table(title="Rejected rows", title_justify="left", caption=f"and {rest} more" if rest > 0 else None)
    columns = ("place", "line", "key", "field", "reason")
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rejections.select(columns).head(ROWS_SHOWN).rows():
        # as text: what a source wrote must not be taken for markup
        table.add_row(*(Text(str(cell)) for cell in row))
    return table


@app.command()
def serve() -> None:
    """Run sources when they are due, take what is pushed, follow events, until Ctrl-C. See docs/sources/push.md."""
    from etl.serve import serve
    from hub import configuration

    serve(configuration.load())


@app.command()
def token(source: Annotated[str, typer.Argument(help="The source that may be pushed to with it.")]) -> None:
    """Make a token for pushing to a source, and print it: it is kept nowhere. To take it back, delete its line in SOURCE.tokens."""
    from etl.push import new_token
    from etl.source import open_source
    from hub import configuration

    folder = Path(configuration.load().sources_dir)
    open_source(folder, source)
    typer.echo(new_token(folder / f"{source}.tokens"))
