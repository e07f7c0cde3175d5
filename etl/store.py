"""Frames into the database and out of it: COPY on PostgreSQL, many rows a statement on SQLite, the same merge on both.

All within the caller's transaction. Moments cross as text in UTC, which both understand.
"""

# ruff: noqa: S608 -- names are those of our tables, and no value of a source is ever in a statement
from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import polars as pl
from psycopg.pq import ExecStatus
from sqlalchemy import Connection, text

from etl import plans
from etl.schema import TIME, Shape
from etl.validate import ENDED, SOURCE
from hub.database.engine import DatabaseError

MERGED = "etl_merged"
ROWS_AT_ONCE = 50_000
# from here on, checking references and filling indexes row by row takes longer than doing without and making them again
MANY_ROWS = 20_000


# asked for, and not yet a frame
Later = Callable[[], pl.DataFrame]


def _list(names: Iterable[str], form: str = '"{0}"', between: str = ", ") -> str:
    return between.join(form.format(name) for name in names)


def _is_postgresql(connection: Connection) -> bool:
    return connection.dialect.name == "postgresql"


# --- out


def held(connection: Connection, shape: Shape, columns: Iterable[str]) -> Later:
    """These fields of all records of a table, with their `_source` and whether they have `_ended`."""
    dtypes = {name: shape.stored[name] for name in columns}
    ended = "CASE WHEN ended_at IS NULL THEN 0 ELSE 1 END"
    query = f'SELECT {_list(dtypes)}, source, {ended} FROM "{shape.name}"'
    later = read(connection, query, {**dtypes, SOURCE: pl.String(), ENDED: pl.Int64()})

    def frame() -> pl.DataFrame:
        records = later()
        spelled = (plans.respelled(records[name]) for name in shape.json if name in dtypes)
        return records.with_columns(pl.col(ENDED).cast(pl.Boolean), *spelled)

    return frame


def read(connection: Connection, query: str, dtypes: Mapping[str, pl.DataType]) -> Later:
    """The answer is fetched now, and becomes a frame when it is called: another thread can do that while this one reads on."""
    texts = {name: pl.String() if dtype == TIME else dtype for name, dtype in dtypes.items()}
    moments = [name for name, dtype in dtypes.items() if dtype == TIME]
    if _is_postgresql(connection):
        data = _copied(connection, query)
        return lambda: _with_moments(
            pl.read_csv(data, has_header=False, schema=texts) if data else pl.DataFrame(schema=texts), moments
        )
    rows = [tuple(row) for row in connection.exec_driver_sql(query)]
    return lambda: _with_moments(pl.DataFrame(rows, texts, orient="row"), moments)


def _with_moments(frame: pl.DataFrame, names: Iterable[str]) -> pl.DataFrame:
    for name in names:
        text = frame[name].str.strip_suffix("+00").str.strip_suffix(".000000")
        # nearly all are whole seconds, and read four times as fast
        times = text.str.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="us", time_zone="UTC", strict=False)
        if times.null_count() > text.null_count():
            times = text.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", time_zone="UTC")
        frame = frame.with_columns(times)
    return frame


def _copied(connection: Connection, query: str) -> bytes:
    """By libpq's own calls: a million rows of psycopg's `copy` take twice the time."""
    driver: Any = connection.connection.dbapi_connection
    data, libpq = bytearray(), driver.pgconn
    libpq.exec_(f"COPY ({query}) TO STDOUT (FORMAT csv)".encode())
    while (part := libpq.get_copy_data(0))[0] > 0:
        data += part[1]
    result = libpq.get_result()
    while libpq.get_result():
        pass
    if result.status != ExecStatus.COMMAND_OK:
        raise DatabaseError(f"the database could not be read: {result.get_error_message()}")
    return bytes(data)


# --- in


def insert(connection: Connection, table: str, frame: pl.DataFrame, *, frozen: bool = False) -> None:
    """Add the rows; columns that the frame lacks get the table's default. frozen: as in_bulk says."""
    if not frame.height:
        return
    into = f'"{table}" ({_list(frame.columns)})'
    if not _is_postgresql(connection):
        connection.exec_driver_sql(f"INSERT INTO {into} VALUES ({_list(frame.columns, '?')})", _plain(frame).rows())
        return
    driver: Any = connection.connection.dbapi_connection
    statement = f"COPY {into} FROM STDIN (FORMAT csv{', FREEZE' if frozen else ''})"
    with ThreadPoolExecutor(1) as ahead, driver.cursor() as cursor, cursor.copy(statement) as copy:
        for part in ahead.map(_csv, frame.iter_slices(ROWS_AT_ONCE)):
            copy.write(part)


def _plain(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.col(TIME).dt.strftime("%Y-%m-%d %H:%M:%S%.6f"))


def _csv(frame: pl.DataFrame) -> bytes:
    return _plain(frame).write_csv(include_header=False).encode()


def merge(connection: Connection, shape: Shape, frame: pl.DataFrame, run_id: int | None = None) -> None:
    """Give the records with these keys the frame's other values. With a run, what they were is noted as its changes."""
    if not frame.height:
        return
    commit = " ON COMMIT DROP" if _is_postgresql(connection) else ""
    columns = _list(frame.columns)
    connection.exec_driver_sql(f'CREATE TEMPORARY TABLE "{MERGED}"{commit} AS SELECT {columns} FROM "{shape.name}" WHERE 1 = 0')
    insert(connection, MERGED, frame)
    same = _list(shape.key, 'held."{0}" = new."{0}"', " AND ")
    if run_id is not None:
        _note(connection, shape, same, run_id)
    values = _list((name for name in frame.columns if name not in shape.key), '"{0}" = new."{0}"')
    connection.exec_driver_sql(f'UPDATE "{shape.name}" AS held SET {values} FROM "{MERGED}" AS new WHERE {same}')
    connection.exec_driver_sql(f'DROP TABLE "{MERGED}"')


def _note(connection: Connection, shape: Shape, same: str, run_id: int) -> None:
    def as_object(names: Iterable[str]) -> str:
        return f"{make}({', '.join(_list([name], pair(name)) for name in names)})"

    def pair(name: str) -> str:
        # SQLite keeps JSON as text
        return "'{0}', json(held.\"{0}\")" if name in shape.json and make == "json_object" else "'{0}', held.\"{0}\""

    make = "json_build_object" if _is_postgresql(connection) else "json_object"
    before = [*shape.stored, "source", "run_id", "ended_at"]
    connection.exec_driver_sql(
        f"INSERT INTO etl_change (run_id, record, key, before) SELECT {run_id}, '{shape.name}', {as_object(shape.key)}, "
        f'{as_object(before)} FROM "{shape.name}" AS held JOIN "{MERGED}" AS new ON {same}'
    )


@contextmanager
def in_bulk(connection: Connection, tables: Collection[str]) -> Iterator[set[str]]:
    """Within it, PostgreSQL's tables are without keys, references and indexes: all are made, and so checked, when it ends.

    For many rows that takes a third of the time. Who reads these tables meanwhile waits. It gives those that were empty: their
    rows can be written as frozen, so that nobody has to look up again whether they were committed.
    """
    names = [f'"{name}"' for name in tables]
    if not (names and _is_postgresql(connection)):
        yield set()
        return
    there = "= ANY (SELECT to_regclass(name) FROM unnest(CAST(:tables AS text[])) AS name)"
    constraints = connection.execute(
        text(
            "SELECT conrelid::regclass::text, quote_ident(conname), pg_get_constraintdef(oid) FROM pg_constraint"
            f" WHERE contype IN ('p', 'u', 'f') AND (conrelid {there} OR contype = 'f' AND confrelid {there})"
            " ORDER BY contype = 'f'"
        ),
        {"tables": names},
    ).all()
    for table, name, _ in reversed(constraints):
        connection.exec_driver_sql(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
    indexes = connection.execute(
        text(f"SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid {there}"),
        {"tables": names},
    ).all()
    for name, _ in indexes:
        connection.exec_driver_sql(f"DROP INDEX {name}")
    empty = {name for name in tables if not connection.exec_driver_sql(f'SELECT EXISTS (SELECT FROM "{name}")').scalar()}
    for name in empty:
        # rows can be frozen only in a file that begins with this transaction
        connection.exec_driver_sql(f'TRUNCATE "{name}"')
    yield empty
    connection.exec_driver_sql("SET LOCAL maintenance_work_mem = '256MB'")
    for _, definition in indexes:
        connection.exec_driver_sql(definition)
    for table, name, definition in constraints:
        # frozen rows are compared in the order of their indexes, without a look at the tables: a fifth of what hashing them takes
        hashing = "off" if table.strip('"') in empty else "on"
        connection.exec_driver_sql(f"SET LOCAL enable_hashjoin = {hashing}")
        connection.exec_driver_sql(f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition}")
    connection.exec_driver_sql("SET LOCAL enable_hashjoin TO DEFAULT")
