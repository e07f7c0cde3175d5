"""What runs have changed, and the way back from the newest ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
from sqlalchemy import Connection, Engine, Table, delete, func, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from etl import store
from etl.diff import shown
from etl.load import alone
from etl.schema import SHAPES
from etl.source import find, open_source
from hub.database.engine import check_current, take_turn
from hub.database.tables import Base, EtlChange, EtlRejection, EtlRun, Identity, IdentitySuggestion, RunKind, now
from hub.errors import HutchError
from hub.explaining import before_and_now


class UndoError(HutchError):
    """The run cannot be undone; nothing was changed."""


def undo(engine: Engine, run_id: int) -> dict[str, dict[str, int]]:
    """Make all records what they were before a run, and say of each table how many were restored and removed.

    Raises UndoError when something else has since been built on what the run did.
    """
    check_current(engine)
    with engine.connect() as connection:
        run = connection.execute(select(EtlRun.__table__).where(EtlRun.id == run_id)).mappings().first()
    if run is None or run["outcome"] != "done" or run["kind"] == RunKind.UNDO:
        raise UndoError(f"run {run_id} changed nothing, or there is no such run; see `hutch etl history`")
    try:
        with alone(engine, run["source"]), engine.connect() as connection:
            take_turn(connection)
            counts = _restore(connection, dict(run))
            connection.commit()
    except IntegrityError as error:
        raise UndoError(f"run {run_id} cannot be undone: something refers to what it added ({error.orig})") from error
    return counts


def _restore(connection: Connection, run: dict[str, Any]) -> dict[str, dict[str, int]]:
    began, counts, run_id = now(), {}, run["id"]
    touched = [(Base.metadata.tables[name], told) for name, told in run["counts"].items() if any(list(told.values())[:3])]
    for table, told in touched:
        _check_untouched(connection, run_id, table, told)
    connection.execute(delete(Identity).where(Identity.linked_at == run["started_at"]))
    connection.execute(delete(IdentitySuggestion).where(IdentitySuggestion.since == run["started_at"]))
    for table, _ in reversed(touched):
        before = _before(connection, run_id, table.name)
        store.merge(connection, SHAPES[table.name], before)
        removed = connection.execute(delete(table).where(table.c.run_id == run_id)).rowcount
        counts[table.name] = {"changed": before.height, "ended": removed}
    if not counts:
        raise UndoError(f"run {run_id} changed nothing")
    row = {"source": run["source"], "adapter": run["adapter"], "kind": RunKind.UNDO, "undoes": run_id, "outcome": "done"}
    connection.execute(insert(EtlRun), {**row, "started_at": began, "finished_at": now(), "counts": counts})
    return counts


def _check_untouched(connection: Connection, run_id: int, table: Table, told: dict[str, int]) -> None:
    """Whatever the run touched bears its number until something else touches it."""
    there = connection.execute(select(func.count()).select_from(table).where(table.c.run_id == run_id)).scalar_one()
    expected = told["added"] + told["changed"] + told["ended"]
    if there != expected:
        raise UndoError(f"{table.name}: {expected - there} of the {expected} records of run {run_id} have changed since")
    ours = select(func.count()).where(EtlChange.run_id == run_id, EtlChange.record == table.name)
    if connection.scalar(ours) != told["changed"] + told["ended"]:
        raise UndoError(f"{table.name}: what was before run {run_id} is no longer kept")


def _before(connection: Connection, run_id: int, table: str) -> pl.DataFrame:
    rows = connection.scalars(select(EtlChange.before).where(EtlChange.run_id == run_id, EtlChange.record == table))
    texts = [{name: _plain(value) for name, value in row.items()} for row in rows]
    columns = [*SHAPES[table].stored, "source", "run_id", "ended_at"]
    return pl.DataFrame(texts, schema=dict.fromkeys(columns, pl.String))


def _plain(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)


def differences(connection: Connection, run_id: int, most: int) -> list[tuple[str, str, str, str, str]]:
    """Table, key, field, before and now, for the first of the records that a run changed or ended."""
    changes = select(EtlChange).where(EtlChange.run_id == run_id).order_by(EtlChange.id).limit(most)
    with Session(connection) as session:
        return [
            (change.record, ",".join(change.key.values()), field, shown(before), shown(now))
            for change in session.scalars(changes)
            for field, (before, now) in before_and_now(session, change).items()
            if field not in ("source", "run_id") and shown(before) != shown(now)
        ]


def states(engine: Engine, folder: Path) -> Iterator[tuple[Any, ...]]:
    """Of each source: adapter, minutes between runs, when and how it last ran, when it was last done, quarantine, what is wrong."""
    newest = select(func.max(EtlRun.id)).where(EtlRun.kind != RunKind.UNDO).group_by(EtlRun.source)
    done = select(EtlRun.source, func.max(EtlRun.started_at)).where(EtlRun.outcome == "done").group_by(EtlRun.source)
    rejected = select(EtlRun.source, func.count()).join(EtlRejection, EtlRejection.run_id == EtlRun.id).group_by(EtlRun.source)
    with engine.connect() as connection:
        runs = {run.source: run for run in connection.execute(select(EtlRun).where(EtlRun.id.in_(newest)))}
        last, waiting = dict(connection.execute(done).tuples().all()), dict(connection.execute(rejected).tuples().all())
    files = find(folder)
    for name in sorted({*runs, *files}):
        run, adapter, every, wrong = runs.get(name), "", "", ""
        try:
            if name in files:
                source, _ = open_source(folder, name)
                adapter, every = source.adapter, f"{source.every_minutes:g}" if source.every_minutes else ""
        except HutchError as error:
            wrong = str(error)
        when = [f"{moment:%Y-%m-%d %H:%M:%S}" if moment else "never" for moment in (run and run.started_at, last.get(name))]
        ended = (run.adapter, run.outcome, run.message) if run else ("", "", "")
        yield name, adapter or ended[0], every, when[0], ended[1], when[1], waiting.get(name, 0), wrong or ended[2]
