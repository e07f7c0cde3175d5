"""The command line: `hutch ROOM COMMAND`. Each room brings its own commands; here they are only put together.

Exit status: 0 done, 1 refused or failed with one line saying why (nothing changed), 2 wrong usage.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

import etl.command
import hub.database.command
from hub.configuration import CONFIG_VARIABLE, config_path
from hub.errors import HutchError

app = typer.Typer(
    help="Analysis environments, launched from the experiment they belong to.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
app.add_typer(hub.database.command.app, name="db")
app.add_typer(etl.command.app, name="etl")


@app.callback()
def deployment(
    config: Annotated[Path | None, typer.Option(envvar=CONFIG_VARIABLE, help="The deployment's jupyterhub_config.py.")] = None,
) -> None:
    # in the environment, so that what a command starts reads the same deployment
    os.environ[CONFIG_VARIABLE] = str(config_path(config))


def main() -> None:
    try:
        app()
    except HutchError as error:
        sys.exit(f"hutch: {error}")


if __name__ == "__main__":
    main()
