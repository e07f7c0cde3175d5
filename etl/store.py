"""Frames into the database and out of it: COPY on PostgreSQL, many rows a statement on SQLite, the same merge on both.

All within the caller's transaction. Moments cross as text in UTC, which both understand.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import polars as pl
from sqlalchemy import Connection, text

from etl import plans
from etl.schema import TIME, Shape

MERGED = "etl_merged"
ROWS_AT_ONCE = 50_000
# from here on, checking references and filling indexes row by row takes longer than doing without and making them again
MANY_ROWS = 20_000


def _list(names: Iterable[str], form: str = '"{}"', between: str = ", ") -> str:
    return between.join(form.format(name) for name in names)


def _is_postgresql(connection: Connection) -> bool:
    return connection.dialect.name == "postgresql"


# --- out


def held(connection: Connection, shape: Shape, columns: Iterable[str]) -> pl.DataFrame:
    """These fields of all records of a table, with their `source` and whether they have `_ended`."""
    dtypes = {name: shape.stored[name] for name in columns} | {"source": pl.String(), "_ended": pl.Int64()}
    ended = 'CASE WHEN "ended_at" IS NULL THEN 0 ELSE 1 END AS "_ended"'
    frame = read(connection, f'SELECT {_list(list(dtypes)[:-1])}, {ended} FROM "{shape.name}"', dtypes)
    respelled = (plans.respelled(frame[name]) for name in shape.json if name in dtypes)
    return frame.with_columns(pl.col("_ended").cast(pl.Boolean), *respelled)


def read(connection: Connection, query: str, dtypes: Mapping[str, pl.DataType]) -> pl.DataFrame:
    texts = {name: pl.String() if dtype == TIME else dtype for name, dtype in dtypes.items()}
    if _is_postgresql(connection):
        connection.execute(text("SET LOCAL TIME ZONE 'UTC'"))
        data = _copied(connection, query)
        frame = pl.read_csv(data, has_header=False, schema=texts) if data else pl.DataFrame(schema=texts)
    else:
        rows = connection.exec_driver_sql(query).fetchall()
        frame = pl.DataFrame([tuple(row) for row in rows], schema=texts, orient="row")
    moments = (name for name, dtype in dtypes.items() if dtype == TIME)
    return frame.with_columns(
        pl.col(name).str.strip_suffix("+00").str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", time_zone="UTC")
        for name in moments
    )


def _copied(connection: Connection, query: str) -> bytes:
    driver: Any = connection.connection.dbapi_connection
    data = bytearray()
    with driver.cursor() as cursor, cursor.copy(f"COPY ({query}) TO STDOUT (FORMAT csv)") as copy:
        for part in copy:
            data += part
    return bytes(data)


# --- in


def insert(connection: Connection, table: str, frame: pl.DataFrame) -> None:
    """Add the rows; columns that the frame lacks get the table's default."""
    plain = frame.with_columns(
        pl.col(name).dt.strftime("%Y-%m-%d %H:%M:%S%.6f") for name, dtype in frame.schema.items() if dtype == TIME
    )
    into = f'"{table}" ({_list(frame.columns)})'
    if not _is_postgresql(connection):
        if plain.height:
            marks = _list(frame.columns, "?")
            connection.exec_driver_sql(f"INSERT INTO {into} VALUES ({marks})", plain.rows())
        return
    connection.execute(text("SET LOCAL TIME ZONE 'UTC'"))
    driver: Any = connection.connection.dbapi_connection
    with driver.cursor() as cursor, cursor.copy(f"COPY {into} FROM STDIN (FORMAT csv)") as copy:
        for part in plain.iter_slices(ROWS_AT_ONCE):
            buffer = io.BytesIO()
            part.write_csv(buffer, include_header=False)
            copy.write(buffer.getvalue())


def add(connection: Connection, shape: Shape, frame: pl.DataFrame) -> None:
    if frame.height < MANY_ROWS or not _is_postgresql(connection):
        insert(connection, shape.name, frame)
        return
    with _unguarded(connection, shape.name):
        insert(connection, shape.name, frame)


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
def _unguarded(connection: Connection, table: str) -> Iterator[None]:
    """Without its references and plain indexes meanwhile; PostgreSQL checks them all when they are made again."""
    references = connection.execute(
        text("SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = to_regclass(:name) AND contype = 'f'"),
        {"name": f'"{table}"'},
    ).all()
    indexes = connection.execute(
        text(
            "SELECT i.indexrelid::regclass::text, pg_get_indexdef(i.indexrelid) FROM pg_index i"
            " WHERE i.indrelid = to_regclass(:name) AND NOT i.indisunique"
        ),
        {"name": f'"{table}"'},
    ).all()
    for name, _ in references:
        connection.exec_driver_sql(f'ALTER TABLE "{table}" DROP CONSTRAINT "{name}"')
    for name, _ in indexes:
        connection.exec_driver_sql(f"DROP INDEX {name}")
    yield
    for _, definition in indexes:
        connection.exec_driver_sql(definition)
    for name, definition in references:
        connection.exec_driver_sql(f'ALTER TABLE "{table}" ADD CONSTRAINT "{name}" {definition}')
