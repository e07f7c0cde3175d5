"""`hutch explain`: why somebody may or may not do a thing, with where the records behind it come from, and whom to ask."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from .terminal import show


def explain(
    user: Annotated[str, typer.Argument(help="Whose right it is: a login.")],
    action: Annotated[str, typer.Argument(help="see or launch; of an instance also open, start, stop, control and so on.")],
    objects: Annotated[list[str], typer.Argument(help="experiment:ID (several for a launch), plan:ID, instance:ID or OWNER/NAME.")],
    plan: Annotated[str, typer.Option(help="The plan of a launch, by its id.")] = "",
) -> None:
    """Say why a user may or may not do something."""
    from . import configuration, explaining
    from .database.engine import open_database, sessions
    from .database.tables import now

    hutch, at, console = configuration.load(), now(), Console()
    with sessions(open_database(hutch.database_url))() as session:
        told = explaining.explain(session, hutch.terms(at), user, action, objects, plan=plan, wide=True)
        decision = told.decision
        console.print(Text("allowed" if decision else "refused", style="green" if decision else "red"), f"by rule {decision.rule}")
        if decision.reason:
            console.print(f"What {user} is told:", Text(decision.reason), soft_wrap=True)
        facts = [(fact.words, fact.holds(at), fact.source or "Hutch itself", _run(fact.run)) for fact in told.facts]
        show(console, "It rests on", ("record", "holds", "source", "brought or changed by"), facts)
        rows = [(f"{one.place}, {one.line}", one.key, one.field, one.reason, one.run_id) for one in told.quarantine]
        show(console, "Not taken from the source", ("place", "key", "field", "reason", "run"), rows)
        show(console, "Last loaded", ("source", "run"), [(run.source, _run(run)) for run in told.loads])
        if not decision:
            console.print(Text(f"Ask {' or '.join(filter(None, (told.ask, hutch.contact))) or 'whoever runs Hutch'}."))


def _run(run: Any) -> str:
    return f"run {run.id}, {run.started_at:%Y-%m-%d %H:%M} UTC" if run else "no run"
