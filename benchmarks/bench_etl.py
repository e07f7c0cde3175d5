"""A million records of a facility into PostgreSQL: the first load, the same again, and a day's changes, beside raw COPY.

The records come from Parquet files through the adapter `files`, with all checks. Raw COPY reads the same files and sends their
rows to tables without keys, references or indexes, and does nothing else. Both in one process and on one server, taking turns.
Beside them stands what loaders do that look up and write row by row, on a sample.
"""

# ruff: noqa: S608 -- the names are our own
from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, median
from typing import Any

import polars as pl
import psycopg
from common import Figure, report, spread
from live_servers import PostgreSQL, postgresql
from sqlalchemy import Engine

from etl.adapters.files import Files
from etl.load import Report, run
from etl.schema import SHAPES
from etl.source import Source
from hub.database.engine import open_database, upgrade

USERS, PROPOSALS, EXPERIMENTS, MEMBERS = 200_000, 100_000, 200_000, 500_000
INSTRUMENTS, TEAM = 50, 5
ROUNDS = 5
SAMPLE = 2_000
LIMITS = {"first load of 1,000,000 rows": 3.0, "the same load again": 1.0, "a load with 0.1 % changes": 1.2}
SOURCE = Source(name="bench")
TABLES = ("user", "instrument", "proposal", "experiment", "experiment_member")
ABSTRACT = "We follow single particles through fifty cycles, to see whether cracks begin at the surface; number "


# --- the facility


def facility() -> dict[str, pl.DataFrame]:
    def numbers(count: int) -> pl.LazyFrame:
        return pl.LazyFrame({"n": pl.int_range(count, eager=True)})

    n = pl.col("n")
    start = pl.datetime(2020, 1, 1, time_zone="UTC") + pl.duration(hours=8 * n % 60_000)
    tables = {
        "user": numbers(USERS).select(
            id=pl.format("{}", n + 100_000),
            login=pl.format("user{}", n),
            given_name=pl.format("Ann{}", n % 977),
            family_name=pl.format("Lindqvist{}", n % 7919),
            email=pl.format("user{}@nth.example", n),
        ),
        "instrument": numbers(INSTRUMENTS).select(id=pl.format("ID{}", n), name=pl.format("Beamline ID{}", n)),
        "proposal": numbers(PROPOSALS).select(
            id=pl.format("MA-{}", n + 1000),
            title=pl.format("Cracks in cathodes of kind {}", n),
            summary=pl.format(ABSTRACT + "{}", n),
            url=pl.format("https://proposals.facility.example/MA-{}", n + 1000),
        ),
        "experiment": numbers(EXPERIMENTS).select(
            id=pl.format("MA-{}-{}", n // 2 + 1000, n % 2 + 1),
            proposal_id=pl.format("MA-{}", n // 2 + 1000),
            instrument_id=pl.format("ID{}", n % INSTRUMENTS),
            title=pl.format("Visit {}", n),
            starts_at=start,
            ends_at=start + pl.duration(days=3),
        ),
        "experiment_member": numbers(MEMBERS).select(
            experiment_id=pl.format("MA-{}-{}", n // TEAM + 1000, n % 2 + 1),
            user_id=pl.format("{}", n * 7 % USERS + 100_000),
            role=pl.when(n % TEAM == 0).then(pl.lit("principal-investigator")).otherwise(pl.lit("member")),
        ),
    }
    return {name: frame.collect() for name, frame in tables.items()}


def a_day_later(tables: dict[str, pl.DataFrame]) -> dict[str, pl.DataFrame]:
    """One row of a thousand differs: names and titles change, members go and come."""
    n, every = pl.int_range(pl.len()), pl.int_range(pl.len()) % 1000 == 999
    members = tables["experiment_member"]
    joined = members.filter(n % 2000 == 999).with_columns(user_id=pl.lit("100001"))
    return tables | {
        "user": tables["user"].with_columns(family_name=pl.when(every).then(pl.lit("Berg")).otherwise("family_name")),
        "proposal": tables["proposal"].with_columns(title=pl.when(every).then(pl.lit("Renamed")).otherwise("title")),
        "experiment": tables["experiment"].with_columns(title=pl.when(every).then(pl.lit("Moved")).otherwise("title")),
        "experiment_member": pl.concat([members.filter(n % 2000 != 1999), joined]),
    }


def written(folder: Path, tables: dict[str, pl.DataFrame]) -> Files:
    folder.mkdir()
    for name, frame in tables.items():
        frame.write_parquet(folder / f"{name}s.parquet")
    return Files(folder=folder)


# --- the ways


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    done = work()
    return time.perf_counter() - began, done


def raw_copy(connection: psycopg.Connection, source: Files) -> tuple[float, float]:
    """Seconds for all of it, and for COPY alone: the files are read and written as CSV, with source and run; that is sent."""
    with connection.cursor() as cursor:
        for name in TABLES:
            cursor.execute(f"DROP TABLE IF EXISTS bare_{name}")
            cursor.execute(f'CREATE TABLE bare_{name} AS TABLE "{name}"')
        connection.commit()
        began, copying = time.perf_counter(), 0.0
        for name in TABLES:
            rows = pl.read_parquet(source.folder / f"{name}s.parquet").with_columns(source=pl.lit(SOURCE.name), run_id=pl.lit(1))
            csv = rows.write_csv(include_header=False).encode()
            sending = time.perf_counter()
            with cursor.copy(f"COPY bare_{name} ({', '.join(rows.columns)}) FROM STDIN (FORMAT csv)") as into:
                into.write(csv)
            copying += time.perf_counter() - sending
        sending = time.perf_counter()
        connection.commit()
        return time.perf_counter() - began, copying + time.perf_counter() - sending


@contextmanager
def database(server: PostgreSQL) -> Iterator[tuple[Engine, psycopg.Connection]]:
    """An empty one of Hutch, and another connection to it."""
    url = server.new_database()
    engine = open_database(url)
    upgrade(engine)
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        yield engine, connection
    engine.dispose()
    server.drop_database(url)


def row_by_row(connection: psycopg.Connection, tables: dict[str, pl.DataFrame]) -> float:
    """Look the row up, insert or update it, for each: the seconds that all rows would take, from a sample of each table."""
    total = 0.0
    for name, frame in tables.items():
        where = " AND ".join(f"{column} = %({column})s" for column in SHAPES[name].key)
        look = f'SELECT * FROM "{name}" WHERE {where}'
        values = ", ".join(f"%({column})s" for column in frame.columns)
        add = f"INSERT INTO \"{name}\" ({', '.join(frame.columns)}, source) VALUES ({values}, 'bench')"
        rows = needed(tables, name).to_dicts()
        began = time.perf_counter()
        for row in rows:
            if connection.execute(look, row).fetchone() is None:
                connection.execute(add, row)
        connection.commit()
        total += (time.perf_counter() - began) * frame.height / len(rows)
    return total


def needed(tables: dict[str, pl.DataFrame], name: str) -> pl.DataFrame:
    """The first rows of a table, of members those whose people are among the first too."""
    frame = tables[name]
    if name != "experiment_member":
        return frame.head(SAMPLE)
    for column, other in (("user_id", "user"), ("experiment_id", "experiment")):
        frame = frame.join(tables[other].head(SAMPLE).select(pl.col("id").alias(column)), on=column, how="semi")
    return frame


def main() -> None:
    tables = facility()
    rows = sum(frame.height for frame in tables.values())
    print(f"{rows} rows in {len(tables)} tables; PostgreSQL writes to disk as in production")
    raw: list[tuple[float, float]] = []
    taken: dict[str, list[float]] = {name: [] for name in LIMITS}
    ratios: dict[str, list[float]] = {name: [] for name in LIMITS}
    with postgresql(durable=True) as server, tempfile.TemporaryDirectory(prefix="bench-etl-") as folder:
        today, tomorrow = written(Path(folder, "a"), tables), written(Path(folder, "b"), a_day_later(tables))
        # the bare tables have a database of their own, kept for all rounds: making and dropping one keeps the disk busy
        with database(server) as (_, bare):
            for _ in range(ROUNDS):
                with database(server) as (engine, _):
                    raw.append(raw_copy(bare, today))
                    for name, adapter in zip(LIMITS, (today, today, tomorrow), strict=True):
                        seconds, done = timed(lambda adapter=adapter, engine=engine: run(engine, SOURCE, adapter))
                        said(done)
                        raw.append(raw_copy(bare, today))
                        taken[name].append(seconds)
                        # against COPY just before and just after: what else runs on the machine slows both
                        ratios[name].append(seconds / mean(whole for whole, _ in raw[-2:]))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 / 1024
        with database(server) as (_, connection):
            slow = row_by_row(connection, tables)
    whole, sending = zip(*raw, strict=True)
    for name, values in {"raw COPY": whole, "of it, COPY alone": sending, **taken}.items():
        print(f"{name}: {spread(values)} s")
    print(f"row by row: {slow:.0f} s for all rows, extrapolated from {SAMPLE} rows of each large table, into the same tables")
    against = f"raw COPY of the same {rows} rows from the same files into bare tables, {median(whole):.2f} s"
    report(
        *(Figure(name, round(median(ratios[name]), 2), "x", limit, against) for name, limit in LIMITS.items()),
        Figure("memory of the loading process", round(memory, 2), "GiB", 1.5, "peak resident size, with the rows that it compares"),
        Figure("row-by-row upsert", round(slow / median(whole), 1), "x", None, against),
    )


def said(done: Report) -> None:
    assert not done.objections, done.objections
    assert not done.rejections.height, done.rejections
    totals = {kind: sum(counts[kind] for counts in done.counts.values()) for kind in ("added", "changed", "ended", "unchanged")}
    print(f"  run {done.run_id}: {totals}", file=sys.stderr)


if __name__ == "__main__":
    main()
