"""The command line: `hutch ROOM COMMAND`. Each room brings its own commands; here they are only put together.

Exit status: 0 done, 1 refused or failed with one line saying why (nothing changed), 2 wrong usage.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from traitlets import TraitError

import etl.command
import hub.database.command
import hub.explain_command
import hub.person_command
import hub.steward.command
from hub.configuration import CONFIG_VARIABLE, config_path
from hub.errors import HutchError

EXAMPLE_WORDS = {"user": "users", "instrument": "instruments", "proposal": "proposals", "experiment": "experiments"}

app = typer.Typer(
    help="Analysis environments, launched from the experiment they belong to.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.add_typer(hub.database.command.app, name="db")
app.add_typer(etl.command.app, name="etl")
app.command()(hub.explain_command.explain)
app.add_typer(hub.person_command.app, name="person")
app.command()(hub.steward.command.reconcile)


@app.callback()
def deployment(
    config: Annotated[Path | None, typer.Option(envvar=CONFIG_VARIABLE, help="The deployment's jupyterhub_config.py.")] = None,
) -> None:
    # in the environment, so that what a command starts reads the same deployment
    os.environ[CONFIG_VARIABLE] = str(config_path(config))


@app.command()
def doctor() -> None:
    """Check what this deployment needs, one by one, and say what to do. Exit status 1 where something is wrong."""
    from rich.console import Console

    from hub.doctor import report

    leave(0 if report(Console()) else 1)


@app.command()
def demo(
    payload: Annotated[str, typer.Option(help="What servers of devcloud run: agent (JupyterLab) or stub (nothing).")] = "agent",
    devcloud_port: Annotated[int, typer.Option(help="Where devcloud listens.")] = 9500,
) -> None:
    """Run everything on this machine with the example facility, until Ctrl-C. For trying out, not for work."""
    from rich.console import Console

    import hub.demo
    from etl.adapters.files import Files
    from etl.load import run
    from etl.source import Source
    from hub.configuration import load
    from hub.database.engine import open_database, upgrade

    console = Console()
    hub.demo.check_start(devcloud_port)
    engine = open_database(load().database_url)
    upgrade(engine)
    example = Files(folder=Path(etl.command.__file__).parent / "example")
    report = run(engine, Source(name="example"), example, allow_removals=True)
    loaded = ", ".join(f"{sum(report.counts[table].values())} {words}" for table, words in EXAMPLE_WORDS.items())
    console.print(f"[green]✓[/] example facility: {loaded}")
    engine.dispose()
    hub.demo.run(console, payload=payload, devcloud_port=devcloud_port)


@app.command()
def backup(
    folder: Annotated[Path, typer.Argument(help="Where backups are kept; each is a folder of its own in it.")],
    keep: Annotated[int, typer.Option(min=1, help="How many to keep there: the newest.")] = 14,
) -> None:
    """Keep both databases and the keys, while all runs."""
    import hub.backup
    from hub.configuration import load, read

    typer.echo(hub.backup.backup(read(), load(), folder.absolute(), keep))


@app.command()
def restore(made: Annotated[Path, typer.Argument(help="The folder that `hutch backup` named.")]) -> None:
    """Put both databases and the keys back as they were. The hub and `hutch etl serve` must not run."""
    import hub.backup
    from hub.configuration import load, read

    hub.backup.restore(read(), load(), made.absolute())
    typer.echo(
        "restored; the steward acts on nothing until `hutch db seal` has said whether this database goes on: see docs/deploying.md"
    )


def leave(status: int) -> None:
    """Python waits at its end for every thread, and one may wait for a silent cloud for minutes more."""
    sys.stdout.flush()
    os._exit(status)


def main() -> None:
    try:
        app()
    except (HutchError, TraitError) as error:
        sys.stderr.write(f"hutch: {error}\n")
        leave(1)


if __name__ == "__main__":
    main()
