"""`hutch reconcile`: what differs between cloud and records, and one pass that does what is due."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from ..errors import HutchError

if TYPE_CHECKING:
    from .reconciling import Planned, Reconciler


def reconcile(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be done, and why.")] = False,
    allow: Annotated[bool, typer.Option("--allow", help="Also where that is more than is done without asking.")] = False,
) -> None:
    """Compare the cloud with the records once. What the hub serves is compared by the steward, who may ask the hub."""
    from hub.configuration import load, read
    from hub.database import seal
    from hub.facility import Facility
    from spawner.places import clouds

    from .reconciling import Reconciler

    facility = Facility(load())
    folder, of = Path(facility.hutch.state_dir), facility.deployment_id
    if not facility.ask_here(lambda session: seal.holds(session, folder, of)):
        raise HutchError(seal.ADVICE)
    reconciler = Reconciler(facility, clouds(read()))
    found = asyncio.run(reconciler.run(dry_run=dry_run, allow=allow))
    if found or not reconciler.unread:
        _show(found, reconciler)
    if reconciler.unread:
        raise HutchError("; ".join(f"{error} {error.detail}" for error in reconciler.unread))


def _show(found: list[Planned], reconciler: Reconciler) -> None:
    console = Console()
    if not found:
        console.print("the cloud is as the records say")
        return
    table = Table("what", "id", "instance", "difference", "since", "due now", "why")
    for one in found:
        it = one.finding
        since = f"{one.quarantined_at or one.since:%Y-%m-%d %H:%M}" + (" (quarantined)" if one.quarantined_at else "")
        table.add_row(it.kind, it.resource_id, it.instance_id or "", it.state, since, one.due or "", it.state.sentence)
    console.print(table)
    hutch = reconciler.facility.hutch
    console.print(
        reconciler.withheld
        or f"c.Hutch.reconcile is {hutch.reconcile!r}: at most that is done, and never more than the difference's own rule."
    )
