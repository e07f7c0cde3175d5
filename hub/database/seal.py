"""Tells a database that was restored or copied from the one that went on, so that its steward does not act on what others own.

The seal is in the database and, as a copy, in a file beside it. Whoever acts changes both; a database that is older, or elsewhere,
has another one. A crash between the two must lock nobody out: while the seal is changed, the file has the old and the new.
"""

from __future__ import annotations

import os
from pathlib import Path
from uuid import uuid4

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from .engine import deployment_id, sessions, take_turn
from .tables import Deployment, now

FILE = "seal"
ADVICE = (
    "The database is not the one that this steward worked on last: it was restored, or is a copy. The steward acts on nothing "
    "until `hutch db seal --keep` says that this database goes on, or `hutch db seal --new` that another one does; then restart."
)


def holds(session: Session, folder: Path, of: str = "") -> bool:
    """of: the deployment id that the process started with, if it acts: minted anew, it wants a restart."""
    if session.scalar(select(Deployment.id)) is None:
        return True
    # twice, because the steward may be changing it
    return any(_agrees(_row(session), folder, of) for _ in range(2))


def renew(engine: Engine, folder: Path, of: str = "") -> bool:
    """Changes the seal, where it holds: before each pass, so that even a young backup is told from what it was made of."""
    with sessions(engine).begin() as session:
        take_turn(session)
        row = _row(session)
        if not _agrees(row, folder, of):
            return False
        fresh = str(uuid4())
        _write(folder, row.seal or "none", fresh)
        row.seal = fresh
    _write(folder, fresh)
    return True


def decide(engine: Engine, folder: Path, *, new: bool) -> str:
    """This database goes on: with its deployment id, or with a new one where another database has that. Returns the id."""
    deployment_id(engine)
    with sessions(engine).begin() as session:
        take_turn(session)
        row = _row(session)
        if new:
            row.id, row.minted_at = str(uuid4()), now()
        row.seal, decided = str(uuid4()), row.id
        fresh = row.seal
    # cut off before this, it is simply not decided yet
    _write(folder, fresh)
    return decided


def _row(session: Session) -> Deployment:
    return session.scalars(select(Deployment).execution_options(populate_existing=True)).one()


def _agrees(row: Deployment, folder: Path, of: str) -> bool:
    kept = _read(folder)
    same = (row.seal or "none") in kept if kept else row.seal is None
    return same and of in ("", row.id)


def _read(folder: Path) -> list[str]:
    try:
        return (folder / FILE).read_text().split("\n")
    except FileNotFoundError:
        return []


def _write(folder: Path, *seals: str) -> None:
    file = folder / f"{FILE}.new"
    with file.open("w") as opened:
        opened.write("\n".join(seals))
        opened.flush()
        os.fsync(opened.fileno())
    file.replace(folder / FILE)
