"""A source that is a database: any that SQLAlchemy has a driver for, one query per table, all of them seeing the same moment.

`Database` is what the adapters over databases have in common; `Sql` is the plainest of them: its site writes the queries.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import PositiveInt
from sqlalchemy import Connection, NullPool, create_engine, make_url, text

from etl.frames import LINE, PLACE, Extract, File, Frames, Settings, SourceError, secret

ROWS_AT_ONCE = 50_000

# one moment for all queries, no writing, no query without an end; elsewhere at least what standard SQL has for it
_MYSQL = "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"
_BEGIN = {
    "postgresql": ("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY", "SET LOCAL statement_timeout = '{seconds}s'"),
    "mariadb": (_MYSQL, "SET SESSION max_statement_time = {seconds}", "START TRANSACTION WITH CONSISTENT SNAPSHOT"),
    "mysql": (_MYSQL, "SET SESSION max_execution_time = {seconds}000", "START TRANSACTION WITH CONSISTENT SNAPSHOT"),
    "sqlite": ("PRAGMA query_only = ON", "BEGIN"),
}
_BEGIN_ELSEWHERE = ("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",)


class Database(Settings):
    """url: as SQLAlchemy writes them, without the password; timeout_seconds: for each query."""

    url: str
    password_file: File | None = None
    timeout_seconds: PositiveInt = 600

    def ask(self, queries: Mapping[str, str], **values: Any) -> Frames:
        """The answer to each query, as text, under its name. values: what `:name` stands for. Raises SourceError."""
        password = secret(self.password_file) if self.password_file else None
        with _plainly(f"{self.name}: url", password):
            url = make_url(self.url)
            if url.password is not None or "password" in url.query:
                raise ValueError("holds a password; put it into a file, and name that as password_file")
            engine = create_engine(url.set(password=password), poolclass=NullPool)
        with _plainly(f"{self.name} at {url.host or url.database}", password), engine.connect() as connection:
            dialect = "mariadb" if getattr(engine.dialect, "is_mariadb", False) else engine.dialect.name
            for statement in _BEGIN.get(dialect, _BEGIN_ELSEWHERE):
                connection.exec_driver_sql(statement.format(seconds=self.timeout_seconds))
            return {name: self._answer(connection, name, query, values, password) for name, query in queries.items()}

    def _answer(self, connection: Connection, name: str, query: str, values: dict[str, Any], password: str | None) -> pl.DataFrame:
        with _plainly(f"{self.name}: query {name}", password):
            result = connection.execute(text(query), values, execution_options={"yield_per": ROWS_AT_ONCE})
            columns = result.keys()
            schema = [(column, pl.String) for column in columns]
            frame = pl.DataFrame(schema=schema)
            for rows in result.partitions():
                frame.extend(pl.DataFrame([[_text(value) for value in row] for row in rows], schema, orient="row"))
            return frame.with_columns(pl.lit(name).alias(PLACE), pl.int_range(1, pl.len() + 1).alias(LINE))


class Sql(Database):
    """queries: {table: SELECT ... AS field, ...}."""

    queries: dict[str, str]

    def read(self) -> Extract:
        # a colon is the site's own, and no value stands for what is behind it
        return Extract(self.ask({table: query.replace(":", r"\:") for table, query in self.queries.items()}))


def named_queries(file: Path, **parts: str) -> dict[str, str]:
    """Of a file in which `--- name` stands before each query, and before the first what all begin with. parts: what is {part}."""
    said = file.read_text()
    for name, part in parts.items():
        said = said.replace(f"{{{name}}}", part)
    common, *named = re.split(r"^--- (\w+)\n", said, flags=re.MULTILINE)
    return {name: common + query for name, query in zip(named[::2], named[1::2], strict=True)}


def _text(value: Any) -> str | None:
    if isinstance(value, dict | list):
        return json.dumps(value)
    if not isinstance(value, bytes):
        # of a time this is ISO 8601
        return None if value is None else str(value)
    # text out of a column of another character set: UTF-8 if it can be, whatever the column believes of it
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("cp1252", errors="replace")


@contextmanager
def _plainly(what: str, password: str | None) -> Iterator[None]:
    """Whatever a driver raises, and in whichever way, as one sentence that a password is not in."""
    try:
        yield
    except SourceError:
        raise
    except Exception as error:
        cause = getattr(error, "orig", None) or error
        reason = " ".join(str(cause.args[-1] if cause.args else cause).strip().partition("\n")[0].split())
        raise SourceError(f"{what}: {reason.replace(password, '***') if password else reason}") from None
