"""`hutch etl`: load facility records from their sources, and see what came of it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from hub.terminal import ROWS_SHOWN, show

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from etl.frames import Adapter
    from etl.load import Report
    from etl.source import Source

COUNTED = ("added", "changed", "ended", "unchanged", "rejected", "skipped")
REJECTED = ("place", "line", "key", "field", "reason")

app = typer.Typer(help="Load facility records from their sources.", no_args_is_help=True)
Name = Annotated[str, typer.Argument(help="The source: its file in sources_dir, without .toml.")]
AllowRemovals = Annotated[bool, typer.Option("--allow-removals", help="Let any number of records end.")]


# --- loading


@app.command()
def run(name: Name, allow_removals: AllowRemovals = False) -> None:
    """Load a source. Either all that differs is changed, or nothing."""
    _load(*_opened(name), dry_run=False, allow_removals=allow_removals)


@app.command()
def plan(name: Name, allow_removals: AllowRemovals = False) -> None:
    """Read a source and show what a run would change; nothing is."""
    _load(*_opened(name), dry_run=True, allow_removals=allow_removals)


@app.command()
def load(
    path: Annotated[Path, typer.Argument(help="A folder with one CSV, JSON or Parquet file per table.")],
    source: Annotated[str, typer.Option(help="The name under which the records are kept; a run only ends its own.")] = "files",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and change nothing.")] = False,
    allow_removals: AllowRemovals = False,
) -> None:
    """Load a folder of files that has no source file. Either all that differs is changed, or nothing."""
    from etl.adapters.files import Files
    from etl.source import named

    _load(named(source), Files(folder=path), dry_run=dry_run, allow_removals=allow_removals)


def _load(source: Source, adapter: Adapter, *, dry_run: bool, allow_removals: bool) -> None:
    from etl.load import run

    console = Console()
    with console.status("") as status:
        report = run(_engine(), source, adapter, dry_run=dry_run, allow_removals=allow_removals, tell=status.update)
    title = "Refused" if report.objections else "Would change" if dry_run else f"Loaded (run {report.run_id})"
    counts = ((table, *(counts[name] for name in COUNTED)) for table, counts in report.counts.items())
    show(console, title, ("table", *COUNTED), counts)
    if dry_run or report.objections:
        show(console, "Some of it", ("table", "key", "field", "before", "after"), _examples(report))
    show(console, "Rejected rows", REJECTED, report.rejections.sort("skipped").select(REJECTED).iter_rows())
    if report.objections:
        hint = "; --allow-removals lets records end" if any("would end" in words for words in report.objections) else ""
        Console(stderr=True).print(Text(f"Nothing was changed: {'; '.join(report.objections)}{hint}", style="red"))
        raise typer.Exit(1)


def _examples(report: Report) -> Iterable[tuple[str, ...]]:
    from etl.diff import EXAMPLES

    for table, change in report.changes.items():
        for before, after, rows in (("", "added", change.added), ("holds", "ended", change.ended)):
            keys = rows.select(change.ended.columns).head(EXAMPLES).rows()
            yield from ((table, ",".join(key), "", before, after) for key in keys)
        yield from ((table, *example) for example in change.examples)


# --- looking back


@app.command()
def history(
    source: Annotated[str, typer.Argument(help="Of this source only.")] = "",
    run: Annotated[int, typer.Option(help="Show what this run changed, and what it rejected.")] = 0,
) -> None:
    """List the newest runs, or show one."""
    from sqlalchemy import select

    from etl.history import differences
    from hub.database.tables import EtlRejection, EtlRun

    console = Console()
    with _engine().connect() as connection:
        if run:
            changes = differences(connection, run, ROWS_SHOWN)
            show(console, f"Run {run}", ("table", "key", "field", "before", "now"), changes)
            rejected = select(*(getattr(EtlRejection, name) for name in REJECTED)).where(EtlRejection.run_id == run)
            show(console, "Rejected rows", REJECTED, connection.execute(rejected.limit(ROWS_SHOWN)).all())
            return
        runs = select(EtlRun).order_by(EtlRun.id.desc()).limit(ROWS_SHOWN)
        rows = connection.execute(runs.where(EtlRun.source == source) if source else runs).all()
    columns = ("run", "source", "kind", "began (UTC)", "s", "outcome", *COUNTED[:3], *COUNTED[4:], "message")
    show(console, "Runs", columns, map(_run_cells, rows))


def _run_cells(run: Any) -> tuple[Any, ...]:
    seconds = f"{(run.finished_at - run.started_at).total_seconds():.1f}" if run.finished_at else ""
    sums = [sum(counts.get(name, 0) for counts in run.counts.values()) for name in COUNTED if name != "unchanged"]
    kind = f"undo of {run.undoes}" if run.undoes else run.kind
    return (run.id, run.source, kind, f"{run.started_at:%Y-%m-%d %H:%M}", seconds, run.outcome or "", *sums, run.message or "")


@app.command()
def undo(run: Annotated[int, typer.Argument(help="The number of the run; see `hutch etl history`.")]) -> None:
    """Make all records what they were before a run, unless something has since been built on it."""
    from etl.history import undo

    counts = undo(_engine(), run)
    rows = ((table, *counts.values()) for table, counts in counts.items())
    show(Console(), f"Undone: run {run}", ("table", "restored", "removed"), rows)


@app.command()
def status() -> None:
    """Show each source: its last run, the last that was done, and when the next is due."""
    from etl.history import states

    columns = ("source", "adapter", "every (min)", "last run (UTC)", "outcome", "last done (UTC)", "in quarantine", "what is wrong")
    show(Console(), "Sources", columns, states(_engine(), _folder()))


@app.command()
def link(
    source: Annotated[str, typer.Argument(help="The source that knows the person under an id of its own.")],
    person: Annotated[str, typer.Argument(help="That id; without it, those whom something suggests are listed.")] = "",
    user: Annotated[str, typer.Argument(help="The user's id at the facility.")] = "",
) -> None:
    """Confirm that a person of a source is a user of the facility. Their memberships come with the next run."""
    from etl.people import confirm, suggested

    if person and user:
        typer.echo(confirm(_engine(), source, person, user))
    else:
        show(Console(), "Suggested", ("person", "user", "login", "name", "because it"), suggested(_engine(), source))


# --- what all need


def _folder() -> Path:
    from hub import configuration

    return Path(configuration.load().sources_dir)


def _opened(name: str) -> tuple[Source, Adapter]:
    from etl.source import open_source

    return open_source(_folder(), name)


def _engine() -> Engine:
    from hub import configuration
    from hub.database.engine import open_database

    return open_database(configuration.load().database_url)


# --- pushing


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

    _opened(source)
    typer.echo(new_token(_folder() / f"{source}.tokens"))
