"""One run: read a source, compare it with the database, and change all that differs in one transaction, or nothing.

What is written: records under their source and the run that last changed them. Columns that only an admin sets are never named.
"""

from __future__ import annotations

import fcntl
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
from sqlalchemy import Connection, Engine, delete, func, insert, select, text, update

from etl import people, store
from etl.diff import Change, compare, ids
from etl.frames import Adapter, Extract, Follower, SourceError
from etl.guard import removals, unreadable
from etl.schema import SHAPES, TIME
from etl.source import Source
from etl.validate import ENDED, REJECTION, Sieve
from hub.database.engine import DatabaseError, check_current, take_turn
from hub.database.tables import EtlRejection, EtlRun, RunKind, now

REJECTIONS_KEPT = 10_000
# any number will do that nothing else in the database locks: "etl" in ASCII
LOCK_CLASS = 0x65746C


class BusyError(SourceError):
    """Another run of the source is at work."""


@dataclass(slots=True)
class Report:
    """What a run did, or what a dry run would do. With objections it was refused and changed nothing.

    rejections: a frame of record, place, line, key, field, reason, skipped. repeated: the batch came before; nothing was done.
    """

    source: str
    adapter: str
    kind: str = RunKind.LOAD
    batch: str | None = None
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    changes: dict[str, Change] = field(default_factory=dict)
    rejections: pl.DataFrame = field(default_factory=lambda: pl.DataFrame(schema=REJECTION))
    objections: list[str] = field(default_factory=list)
    run_id: int | None = None
    repeated: bool = False


def run(
    engine: Engine,
    source: Source,
    adapter: Adapter,
    *,
    dry_run: bool = False,
    allow_removals: bool = False,
    today: datetime | None = None,
    kind: str = RunKind.LOAD,
    batch: str | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> Report:
    """Load what the adapter reads. tell: hears what is being done. Raises SourceError or DatabaseError with nothing changed."""
    check_current(engine)
    started_at = now()
    midnight = (today or started_at).astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    report = Report(source.name, adapter.name, kind, batch)
    with alone(engine, source.name):
        if batch is not None and _known(engine, report):
            return report
        try:
            tell(f"reading {source.name}")
            extract = _read(engine, source, adapter, report)
            with engine.connect() as connection:
                if not dry_run:
                    take_turn(connection)
                found = _compare_all(connection, source, extract, midnight, report, tell)
                report.objections = [*unreadable(report.changes, source.max_rejected_share)]
                if not allow_removals:
                    report.objections += removals(report.changes, source.max_ended_share)
                if not dry_run and not report.objections:
                    _apply(connection, found, report, started_at, tell)
                    connection.commit()
        except Exception as error:
            # a database that cannot be used takes no note either
            if not dry_run and not isinstance(error, DatabaseError):
                _note(engine, report, started_at, "failed", str(error) if isinstance(error, SourceError) else repr(error))
            raise
        if report.objections and not dry_run:
            _note(engine, report, started_at, "refused", "\n".join(report.objections))
    return report


@contextmanager
def alone(engine: Engine, source: str) -> Iterator[None]:
    """One run of a source at a time, among all processes; the lock falls with the process that holds it."""
    busy = BusyError(f"another run of {source!r} is at work; try again when it is done")
    if engine.dialect.name == "postgresql":
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            lock = {"class": LOCK_CLASS, "source": zlib.crc32(source.encode()) - 2**31}
            if not connection.scalar(text("SELECT pg_try_advisory_lock(:class, :source)"), lock):
                raise busy
            try:
                yield
            finally:
                connection.execute(text("SELECT pg_advisory_unlock(:class, :source)"), lock)
    else:
        with Path(f"{engine.url.database}.{source}.lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise busy from None
            yield


def _read(engine: Engine, source: Source, adapter: Adapter, report: Report) -> Extract:
    """The whole source; or what changed since its last run, after one of the whole that is recent and was not undone."""
    if source.full_every_hours and report.kind == RunKind.LOAD and isinstance(adapter, Follower):
        done = select(EtlRun.kind, func.max(EtlRun.started_at)).where(EtlRun.source == source.name, EtlRun.outcome == "done")
        with engine.connect() as connection:
            last = dict(connection.execute(done.group_by(EtlRun.kind)).tuples().all())
        whole, undone = last.get(RunKind.LOAD), last.get(RunKind.UNDO)
        if whole and whole > now() - timedelta(hours=source.full_every_hours) and not (undone and undone > whole):
            report.kind = RunKind.DELTA
            return adapter.read_since(max(whole, last.get(RunKind.DELTA, whole)))
    return adapter.read()


def _known(engine: Engine, report: Report) -> bool:
    done = select(EtlRun.id, EtlRun.counts).where(
        EtlRun.source == report.source, EtlRun.batch == report.batch, EtlRun.outcome == "done"
    )
    with engine.connect() as connection:
        before = connection.execute(done).first()
    if before:
        report.run_id, report.counts, report.repeated = before.id, before.counts, True
    return report.repeated


def _compare_all(
    connection: Connection, source: Source, extract: Extract, today: datetime, report: Report, tell: Callable[[str], None]
) -> people.Found:
    if unknown := extract.frames.keys() - SHAPES.keys():
        raise SourceError(f"the source names a table that Hutch does not have: {', '.join(sorted(unknown))}")
    if nothing := [name for name, frame in extract.frames.items() if not isinstance(frame, pl.DataFrame)]:
        raise SourceError(f"the source gave nothing in place of the list of {nothing[0]}")
    found = people.find(connection, source, extract)
    extract, known = found.extract, {}
    frames = extract.frames
    others = {target for name in frames for target in SHAPES[name].targets}
    # the database is read, and frames are made of what was read, while what came before is compared
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as maker:
        asked = {
            name: reader.submit(store.held, connection, shape, shape.stored if name in frames else ["id"])
            for name, shape in SHAPES.items()
            if name in frames or name in others
        }
        held = {name: maker.submit(lambda one: one.result()(), one) for name, one in asked.items()}
        for name in held:
            if name not in frames:
                known[name] = ids(held[name].result(), None, None)
                continue
            tell(f"comparing {name}")
            sieve = Sieve(name, frames[name], source.time_zone, today)
            sieve.meet(held[name].result(), source.name)
            sieve.check_values()
            if name == "user":
                sieve.check_logins()
                sieve.check_identities(found.known)
            sieve.check_references(known)
            sieve.check_source()
            if name == "user":
                found = people.signed(found, sieve.rows)
            rejections = sieve.rejections()
            change = compare(sieve, extract.scopes.get(name), whole=name not in extract.scopes)
            report.changes[name], report.counts[name] = change, change.counts
            report.rejections = pl.concat([report.rejections, rejections])
            if "id" in sieve.shape.key:
                known[name] = ids(sieve.held.select("id", ENDED), change, rejections)
    return found


def _apply(connection: Connection, found: people.Found, report: Report, started_at: datetime, tell: Callable[[str], None]) -> None:
    run_id = report.run_id = _run(connection, report, started_at, "done", None)
    origin = {"source": pl.lit(report.source), "run_id": pl.lit(run_id, pl.Int64)}
    many = [name for name, change in report.changes.items() if change.added.height > store.MANY_ROWS]
    with store.in_bulk(connection, many) as empty:
        for name, change in report.changes.items():
            tell(f"writing {name}")
            # in the order of their keys, whose indexes are then made in half the time
            added = change.added.sort(SHAPES[name].key).with_columns(**origin)
            store.insert(connection, name, added, frozen=name in empty)
    for name, change in report.changes.items():
        shape = SHAPES[name]
        store.merge(connection, shape, change.changed.with_columns(**origin, ended_at=pl.lit(None, TIME)), run_id)
        gone = {"run_id": origin["run_id"], "ended_at": pl.lit(started_at, TIME)}
        store.merge(connection, shape, change.ended.with_columns(**gone), run_id)
    people.keep(connection, found, started_at)
    connection.execute(update(EtlRun).where(EtlRun.id == run_id).values(finished_at=now()))


def _run(connection: Connection, report: Report, started_at: datetime, outcome: str, message: str | None) -> int:
    """Note the run, and its rejected rows in place of those of the source's runs before."""
    told = {name: getattr(report, name) for name in ("source", "adapter", "kind", "batch", "counts")}
    times = {"started_at": started_at, "finished_at": now()}
    row = insert(EtlRun).values(told | times | {"outcome": outcome, "message": message})
    run_id = connection.execute(row.returning(EtlRun.id)).scalar_one()
    if report.kind == RunKind.LOAD and outcome == "done":
        before = select(EtlRun.id).where(EtlRun.source == report.source)
        connection.execute(delete(EtlRejection).where(EtlRejection.run_id.in_(before)))
    rejected = report.rejections.sort("skipped").head(REJECTIONS_KEPT).drop("skipped")
    # PostgreSQL takes any character but one
    plain = pl.col("place", "key", "reason").fill_null("").str.replace_all("\0", "\u2400", literal=True)
    rejected = rejected.with_columns(plain).with_columns(pl.col("place", "key").str.slice(0, 250))
    store.insert(connection, "etl_rejection", rejected.with_columns(run_id=pl.lit(run_id, pl.Int64)))
    return run_id


def _note(engine: Engine, report: Report, started_at: datetime, outcome: str, message: str | None) -> None:
    """Remember a run that changed nothing."""
    report.run_id = None
    with engine.begin() as connection:
        _run(connection, report, started_at, outcome, message)
