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
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import polars as pl
import psycopg
from common import Figure, report, spread
from live_servers import PostgreSQL, postgresql

from etl.adapters.files import Files
from etl.load import Report, run
from etl.schema import SHAPES
from etl.source import Source
from hub.database.engine import open_database, upgrade

USERS, PROPOSALS, EXPERIMENTS, MEMBERS = 200_000, 100_000, 200_000, 500_000
INSTRUMENTS, TEAM = 50, 5
ROUNDS = 3
SAMPLE = 2_000
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


def raw_copy(server: PostgreSQL, source: Files) -> tuple[float, float]:
    """Seconds for all of it, and for COPY alone: the files are read and written as CSV, with source and run; that is sent."""
    url = server.new_database()
    upgrade(open_database(url))
    with psycopg.connect(url.replace("+psycopg", "")) as connection, connection.cursor() as cursor:
        for name in TABLES:
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
        seconds, copying = time.perf_counter() - began, copying + time.perf_counter() - sending
    server.drop_database(url)
    return seconds, copying


def row_by_row(server: PostgreSQL, tables: dict[str, pl.DataFrame]) -> float:
    """Look the row up, insert or update it, for each: the seconds that all rows would take, from a sample of each table."""
    url = server.new_database()
    engine = open_database(url)
    upgrade(engine)
    total = 0.0
    with psycopg.connect(url.replace("+psycopg", "")) as connection, connection.cursor() as cursor:
        for name, frame in tables.items():
            key, columns = SHAPES[name].key, frame.columns
            where = " AND ".join(f"{column} = %({column})s" for column in key)
            look = f'SELECT * FROM "{name}" WHERE {where}'
            values = ", ".join(f"%({column})s" for column in columns)
            add = f"INSERT INTO \"{name}\" ({', '.join(columns)}, source) VALUES ({values}, 'bench')"
            rows = needed(tables, name).to_dicts()

            def write(rows=rows, look=look, add=add) -> None:
                for row in rows:
                    if cursor.execute(look, row).fetchone() is None:
                        cursor.execute(add, row)
                connection.commit()

            seconds, _ = timed(write)
            total += seconds * frame.height / len(rows)
    engine.dispose()
    server.drop_database(url)
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
    raw, first, again, changed = [], [], [], []
    with postgresql(durable=True) as server, tempfile.TemporaryDirectory(prefix="bench-etl-") as folder:
        today, tomorrow = written(Path(folder, "a"), tables), written(Path(folder, "b"), a_day_later(tables))
        for _ in range(ROUNDS):
            raw.append(raw_copy(server, today))
            url = server.new_database()
            engine = open_database(url)
            upgrade(engine)
            for times, adapter in ((first, today), (again, today), (changed, tomorrow)):
                seconds, done = timed(lambda adapter=adapter, engine=engine: run(engine, SOURCE, adapter))
                times.append(seconds)
                said(done)
            engine.dispose()
            server.drop_database(url)
            raw.append(raw_copy(server, today))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 / 1024
        slow = row_by_row(server, tables)
    whole, sending = ([pair[at] for pair in raw] for at in (0, 1))
    for name, values in (
        ("raw COPY", whole),
        ("of it, COPY alone", sending),
        ("first load", first),
        ("again", again),
        ("0.1 % changed", changed),
    ):
        print(f"{name}: {spread(values)} s")
    print(f"row by row: {slow:.0f} s for all rows, extrapolated from {SAMPLE} rows of each large table, into the same tables")
    base = median(whole)
    against = f"raw COPY of the same {rows} rows from the same files into bare tables, {base:.2f} s"
    report(
        Figure("first load of 1,000,000 rows", round(median(first) / base, 2), "x", 3, against),
        Figure("the same load again", round(median(again) / base, 2), "x", 1, against),
        Figure("a load with 0.1 % changes", round(median(changed) / base, 2), "x", 1.2, against),
        Figure("memory of the loading process", round(memory, 2), "GiB", 1.5, "peak resident size, with the rows that it compares"),
        Figure("row-by-row upsert", round(slow / base, 1), "x", None, against),
    )


def said(done: Report) -> None:
    assert not done.objections, done.objections
    assert not done.rejections.height, done.rejections
    totals = {kind: sum(counts[kind] for counts in done.counts.values()) for kind in ("added", "changed", "ended", "unchanged")}
    print(f"  run {done.run_id}: {totals}", file=sys.stderr)


if __name__ == "__main__":
    main()
