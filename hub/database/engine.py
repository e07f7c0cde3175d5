"""Opens the database, and brings it to the revision that this Hutch needs.

SQLite behaves here much as PostgreSQL does by itself: a read holds no lock, a transaction locks with its first write, and
writers wait for each other. Whoever must read, decide and write without anybody in between calls `take_turn` first.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, Executable, Insert, create_engine, event, insert, inspect, select, text
from sqlalchemy.engine import URL, ExceptionContext, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.orm import Session, make_transient_to_detached, sessionmaker

from ..errors import HutchError
from .tables import Base, Deployment

T = TypeVar("T", bound=Base)
BUSY_TIMEOUT_SECONDS = 10
# a PostgreSQL that is gone without a word (its machine, the network) is noticed after half a minute, not after hours
# ref: https://www.postgresql.org/docs/15/libpq-connect.html#LIBPQ-PARAMKEYWORDS
TO_NOTICE_SILENCE = {
    "connect_timeout": BUSY_TIMEOUT_SECONDS,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
}
# of our own, because JupyterHub's tables (which have an alembic_version) may live in the same PostgreSQL database
VERSION_TABLE = "hutch_revision"
MIGRATIONS = Path(__file__).parent / "migrations"
# any number will do as long as nothing else in the database locks it: "hutch" in ASCII
ADVISORY_LOCK = 0x6875746368


class DatabaseError(HutchError):
    """The database cannot be opened, is at another revision, or stays locked."""


# --- opening


def open_database(url: str) -> Engine:
    """An engine for threads. Nothing is connected yet, but the folder of a SQLite file exists when this returns."""
    try:
        parsed = make_url(url)
        engine = create_engine(parsed, **_options(parsed))
    except (ArgumentError, NoSuchModuleError) as error:
        raise DatabaseError(f"database_url {_shown(url)!r} is not a database URL; write sqlite:////folder/file.sqlite") from error
    except ModuleNotFoundError as error:
        raise DatabaseError(f"database_url needs the Python package {error.name!r}, which is not installed") from error
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise DatabaseError(f"database_url {_shown(url)!r} is neither PostgreSQL nor SQLite, the two that Hutch works on")
    event.listen(engine, "handle_error", _explain)
    if parsed.get_backend_name() == "sqlite":
        event.listen(engine, "connect", _prepare_sqlite)
        _make_folder(parsed)
    return engine


def sessions(engine: Engine) -> sessionmaker[Session]:
    """Objects stay readable after the commit, so that they can be handed out of a session."""
    return sessionmaker(engine, expire_on_commit=False)


def rows(session: Session, query: Executable, values: Mapping[str, Any] | None = None) -> Any:
    """The answer to a query for columns; by way of the session, which looks for objects in each row, it costs twice as much."""
    session.flush()
    return session.connection().execute(query, values)


def write(session: Session, table: type[Base], *values: dict[str, Any]) -> None:
    """New rows that nobody wants back as objects, which cost several times as much. All have the same columns."""
    session.flush()
    session.connection().execute(_insert(table), values)


def put(session: Session, thing: T) -> T:
    """Writes a new object at once; the session's way, which looks for whatever else changed, takes several times as long."""
    facts = {name: value for name, value in vars(thing).items() if name != "_sa_instance_state"}
    session.flush()
    key: Any = session.connection().execute(_insert(type(thing)), facts).inserted_primary_key
    for name, value in key._mapping.items():
        setattr(thing, name, value)
    # what the database or the table fills in is read when it is asked for
    make_transient_to_detached(thing)
    session.add(thing)
    return thing


@cache
def _insert(table: type[Base]) -> Insert:
    return insert(table)


def take_turn(work: Connection | Session) -> None:
    """Be the only writer until this transaction ends; call it before the first statement.

    For reading, deciding and writing as one step: a quota, a name, a load. Others wait, and may read meanwhile.
    """
    connection = work.connection() if isinstance(work, Session) else work
    if connection.dialect.name == "sqlite":
        connection.execute(text("BEGIN IMMEDIATE"))
    elif connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": ADVISORY_LOCK})


def _options(url: URL) -> dict[str, Any]:
    if url.get_backend_name() == "postgresql":
        waits = f"-c lock_timeout={BUSY_TIMEOUT_SECONDS * 1000}"
        return {"pool_pre_ping": True, "connect_args": {"options": f"{waits} -c timezone=UTC", **TO_NOTICE_SILENCE}}
    if url.get_backend_name() != "sqlite":
        return {}
    # IMMEDIATE: the first write waits its turn; by default SQLite lets it begin as a reader and fails it without waiting
    return {"connect_args": {"timeout": BUSY_TIMEOUT_SECONDS, "isolation_level": "IMMEDIATE"}}


def _make_folder(url: URL) -> None:
    folder = Path(url.database or "").absolute().parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseError(f"cannot make the folder {folder} for the database: {error.strerror}") from error


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.execute("PRAGMA foreign_keys = ON")
    # WAL is kept in the file; asking for it again would need a lock
    if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        connection.execute("PRAGMA journal_mode = WAL")


_LOCKED = f"stayed locked by another writer for {BUSY_TIMEOUT_SECONDS} seconds; try again later"
_TROUBLE = {
    "canceling statement due to lock timeout": _LOCKED,
    "database is locked": _LOCKED,
    "unable to open database file": "cannot be opened; check that the folder exists and that this account may write there",
    "attempt to write a readonly database": "cannot be written by this account; check the owner of the file and its folder",
    "file is not a database": "is not a SQLite database; check database_url",
    "database disk image is malformed": "is damaged; restore it from a backup",
    "database or disk is full": "cannot grow, because the disk is full",
}


def _explain(context: ExceptionContext) -> None:
    """Say in a plain sentence what is wrong with the database itself; errors in statements stay what they are."""
    name = context.engine.url.render_as_string(hide_password=True) if context.engine else "the database"
    words = str(context.original_exception)
    for symptom, meaning in _TROUBLE.items():
        if words.startswith(symptom):
            raise DatabaseError(f"{name} {meaning}") from context.original_exception
    if (context.connection is None or context.is_disconnect) and isinstance(context.sqlalchemy_exception, DBAPIError):
        raise DatabaseError(f"cannot reach {name}: {' '.join(words.split())}") from context.original_exception


def _shown(url: str) -> str:
    """Never the password, even of a URL that does not parse."""
    return url.split("@")[-1]


# --- revisions


def current_revision(engine: Engine) -> str | None:
    with engine.connect() as connection:
        return _revision(connection)


def needed_revision() -> str:
    head = ScriptDirectory.from_config(_alembic()).get_current_head()
    assert head is not None
    return head


def check_current(engine: Engine) -> None:
    """Raise unless the database is at the revision that this Hutch was written for."""
    found, needed = current_revision(engine), needed_revision()
    if found != needed:
        raise DatabaseError(
            f"the database is at revision {found or 'none (it is empty)'}, this Hutch needs {needed}: run `hutch db upgrade`"
        )


def upgrade(engine: Engine) -> tuple[str | None, str]:
    """Bring the database to the newest revision, in one transaction; says from and to which. Others that try meanwhile wait."""
    with engine.connect() as connection:
        # ref: https://www.sqlite.org/lang_altertable.html#otheralter : a table that is remade must not take its children along
        _check_foreign_keys(connection, "OFF")
        try:
            return _migrate(connection)
        finally:
            connection.rollback()
            _check_foreign_keys(connection, "ON")


def _migrate(connection: Connection) -> tuple[str | None, str]:
    needed = needed_revision()
    take_turn(connection)
    before = _revision(connection)
    if before == needed:
        return before, needed
    if before is None:
        _make_tables(connection)
    else:
        try:
            command.upgrade(_alembic(connection), "head")
        except CommandError as error:
            raise DatabaseError(
                f"the database is at revision {before}, which this Hutch ({needed}) does not know; is it newer?"
            ) from error
        if connection.dialect.name == "sqlite" and connection.execute(text("PRAGMA foreign_key_check")).first():
            raise DatabaseError("the upgrade would leave records that refer to nothing; nothing was changed")
    connection.commit()
    return before, needed


def _make_tables(connection: Connection) -> None:
    # ref: https://alembic.sqlalchemy.org/en/latest/cookbook.html#building-an-up-to-date-database-from-scratch
    if set(inspect(connection).get_table_names()) & set(Base.metadata.tables):
        raise DatabaseError("the database has tables of these names that `hutch db upgrade` did not make; use an empty database")
    Base.metadata.create_all(connection)
    command.stamp(_alembic(connection), "head")


def _check_foreign_keys(connection: Connection, on: str) -> None:
    driver = connection.connection.dbapi_connection
    if isinstance(driver, sqlite3.Connection):
        # on the driver's own connection, because SQLite ignores this one inside a transaction
        driver.execute(f"PRAGMA foreign_keys = {on}")


def _revision(connection: Connection) -> str | None:
    return MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE}).get_current_revision()


def _alembic(connection: Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    config.attributes["version_table"] = VERSION_TABLE
    return config


# --- the deployment


def deployment_id(engine: Engine) -> str:
    """The id under which this database's servers are known in the cloud; minted by whoever asks first."""
    known = select(Deployment.id)
    with engine.connect() as connection:
        if found := connection.scalar(known):
            return found
    with engine.begin() as connection:
        take_turn(connection)
        if found := connection.scalar(known):
            return found
        return connection.execute(insert(Deployment).returning(Deployment.id)).scalar_one()
