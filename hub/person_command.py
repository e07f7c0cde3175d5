"""`hutch person`: what is kept of somebody, and forgetting them."""

from __future__ import annotations

import json
from typing import Annotated

import typer

app = typer.Typer(help="Show or forget what is kept of a person.", no_args_is_help=True)
Login = Annotated[str, typer.Argument(help="The name at the sign-on.")]


@app.command()
def export(login: Login) -> None:
    """Print all that is kept of a person, as JSON."""
    from .configuration import load
    from .database.engine import open_database, sessions
    from .personal_data import export as rows_of

    with sessions(open_database(load().database_url)).begin() as session:
        typer.echo(json.dumps(rows_of(session, login), default=str, ensure_ascii=False, indent=2))


@app.command()
def forget(login: Login, yes: Annotated[bool, typer.Option("--yes", help="Do not ask; there is no way back.")] = False) -> None:
    """Replace a person who has left by a pseudonym; what is counted stays."""
    from . import personal_data
    from .configuration import load
    from .database.engine import open_database, sessions, take_turn
    from .database.tables import now

    with sessions(open_database(load().database_url)).begin() as session:
        take_turn(session)
        user = personal_data.find(session, login)
        if not yes:
            typer.confirm(f"Forget {user.name} ({login})? There is no way back.", abort=True)
        pseudonym = personal_data.forget(session, login, now())
    typer.echo(f"{login} is now {pseudonym}. JupyterHub keeps its own account of them: delete {login} in its admin panel.")
