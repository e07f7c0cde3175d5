"""`hutch db`: the database's revision."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(help="Look after Hutch's database.", no_args_is_help=True)


@app.command()
def upgrade() -> None:
    """Make the database, or bring it to the revision that this Hutch needs."""
    from hub.configuration import load

    from . import engine

    before, after = engine.upgrade(engine.open_database(load().database_url))
    Console().print(
        f"the database was already at revision {after}" if before == after else f"the database is now at revision {after}"
    )


@app.command()
def current() -> None:
    """Say at which revision the database is; fails if this Hutch needs another one."""
    from hub.configuration import load
    from hub.facility import Facility

    from .engine import current_revision

    Console().print(f"{current_revision(Facility(load()).engine)} (the one this Hutch needs)")


@app.command()
def seal(
    keep: Annotated[bool, typer.Option("--keep", help="It goes on, with the servers that it had.")] = False,
    new: Annotated[bool, typer.Option("--new", help="Another one has them: this one gets a new deployment id.")] = False,
) -> None:
    """Say which database goes on after one was restored or copied, so that its steward acts again. Then restart the hub."""
    from hub.configuration import load
    from hub.facility import Facility

    from .seal import decide

    if keep == new:
        raise typer.BadParameter("say either --keep or --new")
    facility = Facility(load())
    decided = decide(facility.engine, Path(facility.hutch.state_dir), new=new)
    Console().print(f"this database goes on as deployment {decided}; restart the hub")
