"""One run: read a source, compare it with the database, and change all that differs, or nothing.

What is written: records under their source and the run that last changed them. Columns that only an admin sets are never named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine, Table, bindparam, insert, select, update

from etl.diff import Change, compare
from etl.frames import Adapter, Frames, Rejection, SourceError
from etl.guard import objections
from etl.validate import MODELS, Checked, Key, Standing, key_columns, validate
from hub.database.engine import check_current, take_turn
from hub.database.tables import Base, EtlRun, now

MESSAGES_KEPT = 20


@dataclass(slots=True)
class Report:
    """What a run did, or what a dry run would do. With objections it was refused and changed nothing."""

    source: str
    adapter: str
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    rejections: list[Rejection] = field(default_factory=list)
    objections: list[str] = field(default_factory=list)
    run_id: int | None = None

    @property
    def message(self) -> str | None:
        lines = [*self.objections, *map(str, self.rejections)]
        rest = [f"and {len(lines) - MESSAGES_KEPT} more"] if len(lines) > MESSAGES_KEPT else []
        return "\n".join([*lines[:MESSAGES_KEPT], *rest]) or None


def run(
    engine: Engine,
    adapter: Adapter,
    source: str,
    *,
    dry_run: bool = False,
    allow_removals: bool = False,
    today: datetime | None = None,
) -> Report:
    """Load what the adapter reads, as the source of that name. Raises SourceError or DatabaseError with nothing changed."""
    check_current(engine)
    started_at = now()
    midnight = (today or started_at).astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    report = Report(source, adapter.name)
    try:
        frames = adapter.read()
        with engine.connect() as connection:
            if not dry_run:
                take_turn(connection)
            changes = _compare_all(connection, frames, source, midnight, report)
            if not allow_removals:
                report.objections = objections(changes)
            if not dry_run and not report.objections:
                _apply(connection, changes, report, started_at)
                connection.commit()
    except SourceError as error:
        if not dry_run:
            _note(engine, report, started_at, "failed", str(error))
        raise
    if report.objections and not dry_run:
        _note(engine, report, started_at, "refused", report.message)
    return report


def _compare_all(connection: Connection, frames: Frames, source: str, today: datetime, report: Report) -> dict[str, Change]:
    standing = {table: _standing(connection, table) for table in MODELS}
    checked = validate(frames, standing, source, today)
    changes = {table: compare(one, standing[table], source) for table, one in checked.items()}
    report.counts = {table: _count(changes[table], checked[table]) for table in checked}
    report.rejections = [rejection for one in checked.values() for rejection in one.rejections]
    return changes


def _count(change: Change, checked: Checked) -> dict[str, int]:
    return {
        "added": len(change.added),
        "changed": len(change.changed),
        "ended": len(change.ended),
        "unchanged": change.unchanged,
        "rejected": len({(rejection.place, rejection.line) for rejection in checked.rejections}),
    }


def _standing(connection: Connection, name: str) -> dict[Key, Standing]:
    table = Base.metadata.tables[name]
    fields, keys = list(MODELS[name].model_fields), key_columns(name)
    rows = connection.execute(select(*(table.c[column] for column in [*fields, "source", "ended_at"])))
    return {
        tuple(row[column] for column in keys): Standing(
            {column: row[column] for column in fields}, row["source"], row["ended_at"] is not None
        )
        for row in rows.mappings()
    }


def _apply(connection: Connection, changes: Mapping[str, Change], report: Report, started_at: datetime) -> None:
    report.run_id = connection.scalar(insert(EtlRun).returning(EtlRun.id), _run_row(report, started_at, "done", report.message))
    origin = {"source": report.source, "run_id": report.run_id}
    for name, change in changes.items():
        table = Base.metadata.tables[name]
        if change.added:
            connection.execute(insert(table), [values | origin for values in change.added.values()])
        _update(connection, table, change.changed, origin | {"ended_at": None})
        _update(connection, table, {key: {} for key in change.ended}, {"run_id": report.run_id, "ended_at": started_at})


def _update(connection: Connection, table: Table, rows: Mapping[Key, dict[str, Any]], alike: dict[str, Any]) -> None:
    """One statement for all rows of a kind; alike: what is set in each of them."""
    if not rows:
        return
    keys = key_columns(table.name)
    statement = update(table).where(*(table.c[column] == bindparam(f"key_{column}") for column in keys)).values(alike)
    connection.execute(
        statement,
        [values | {f"key_{column}": part for column, part in zip(keys, key, strict=True)} for key, values in rows.items()],
    )


def _run_row(report: Report, started_at: datetime, outcome: str, message: str | None) -> dict[str, Any]:
    return {
        "source": report.source,
        "adapter": report.adapter,
        "started_at": started_at,
        "finished_at": now(),
        "outcome": outcome,
        "counts": report.counts,
        "message": message,
    }


def _note(engine: Engine, report: Report, started_at: datetime, outcome: str, message: str | None) -> None:
    """Remember a run that changed nothing."""
    with engine.begin() as connection:
        connection.execute(insert(EtlRun), _run_row(report, started_at, outcome, message))
