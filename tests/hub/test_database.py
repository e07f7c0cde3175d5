"""Opening the database, its revisions, and what several processes may do to it at once."""

import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import column, event, func, select, table, text, update

from hub.database import engine as database
from hub.database.engine import (
    DatabaseError,
    check_current,
    current_revision,
    deployment_id,
    needed_revision,
    open_database,
    sessions,
    take_turn,
    upgrade,
)
from hub.database.tables import Affiliation, Base, Deployment, User


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/new/folder/hutch.sqlite"


def test_an_empty_database_gets_what_the_tables_say(url):
    engine = open_database(url)
    upgrade(engine)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": database.VERSION_TABLE, "compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


NEXT = """
import sqlalchemy as sa
from alembic import op

revision, down_revision = "9999", {head!r}


def upgrade():
    {then}
"""


@pytest.fixture
def next_revision(tmp_path, monkeypatch) -> Callable[[str], None]:
    def add(then: str) -> None:
        shutil.copytree(database.MIGRATIONS, tmp_path / "migrations")
        (tmp_path / "migrations/versions/9999_next.py").write_text(NEXT.format(head=needed_revision(), then=then))
        monkeypatch.setattr(database, "MIGRATIONS", tmp_path / "migrations")

    return add


def somebody_at_nordhavn(engine) -> None:
    with sessions(engine).begin() as session:
        session.add(Affiliation(id="nth", name="Nordhavn"))
        session.add(User(id="1", login="ann", given_name="Ann", family_name="Lindqvist", affiliation_id="nth"))


def test_a_table_is_remade_under_those_that_refer_to_it(url, next_revision):
    engine, before = open_database(url), needed_revision()
    upgrade(engine)
    somebody_at_nordhavn(engine)
    next_revision(
        "with op.batch_alter_table('affiliation', recreate='always') as table: table.add_column(sa.Column('code', sa.Text))"
    )
    assert upgrade(engine) == (before, "9999")
    with engine.connect() as connection:
        people = connection.execute(text('SELECT login, code FROM "user" JOIN affiliation a ON a.id = affiliation_id')).all()
        assert people == [("ann", None)]
        assert connection.scalar(text("PRAGMA foreign_keys")) == 1


def test_an_upgrade_that_would_leave_nothing_to_refer_to_is_undone(url, next_revision):
    engine, before = open_database(url), needed_revision()
    upgrade(engine)
    somebody_at_nordhavn(engine)
    next_revision("op.execute('DELETE FROM affiliation')")
    with pytest.raises(DatabaseError, match="refer to nothing; nothing was changed"):
        upgrade(engine)
    assert current_revision(engine) == before
    with sessions(engine)() as session:
        assert session.scalars(select(User)).one().affiliation.name == "Nordhavn"


def test_upgrading_twice_changes_nothing(url):
    engine = open_database(url)
    assert upgrade(engine) == (None, needed_revision())
    assert upgrade(engine) == (needed_revision(), needed_revision())
    check_current(engine)


def test_an_empty_database_is_named_as_such(url):
    with pytest.raises(DatabaseError, match=r"revision none \(it is empty\), this Hutch needs \w+: run `hutch db upgrade`"):
        check_current(open_database(url))


def test_a_database_of_a_newer_hutch_is_left_alone(url):
    engine = open_database(url)
    upgrade(engine)
    with engine.begin() as connection:
        connection.execute(update(table(database.VERSION_TABLE, column("version_num"))).values(version_num="9999"))
    with pytest.raises(DatabaseError, match=r"at revision 9999, this Hutch needs"):
        check_current(engine)
    with pytest.raises(DatabaseError, match=r"revision 9999, which this Hutch .* does not know"):
        upgrade(engine)
    assert current_revision(engine) == "9999"


def test_tables_made_otherwise_are_left_alone(url):
    engine = open_database(url)
    Base.metadata.create_all(engine)
    with pytest.raises(DatabaseError, match="did not make"):
        upgrade(engine)


def test_an_upgrade_that_fails_leaves_nothing_behind(url):
    engine = open_database(url)

    @event.listens_for(engine, "before_cursor_execute")
    def _break(connection, cursor, statement, parameters, context, executemany):
        if "CREATE TABLE intent" in statement:
            raise RuntimeError("power cut")

    with pytest.raises(RuntimeError):
        upgrade(engine)
    assert current_revision(engine) is None
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM sqlite_master")) == 0
        assert connection.scalar(text("PRAGMA foreign_keys")) == 1


def test_processes_that_upgrade_at_once_agree_on_one_database_and_one_deployment(url):
    Path(url.removeprefix("sqlite:///")).parent.mkdir(parents=True)
    program = (
        "import sys; from hub.database.engine import *; sys.stdin.readline();"
        "engine = open_database(sys.argv[1]); upgrade(engine); check_current(engine); print(deployment_id(engine))"
    )
    others = [
        subprocess.Popen(
            [sys.executable, "-c", program, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(5)
    ]
    for other in others:
        other.stdin.write("go\n")
        other.stdin.flush()
    said = [other.communicate() for other in others]
    assert [other.returncode for other in others] == [0] * 5, said
    assert len({out for out, _ in said}) == 1
    with sessions(open_database(url))() as session:
        assert session.scalar(select(func.count()).select_from(Deployment)) == 1


def test_threads_that_mint_at_once_get_one_deployment(url):
    engine = open_database(url)
    upgrade(engine)
    start, found = threading.Barrier(8), []

    def ask():
        start.wait()
        found.append(deployment_id(engine))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1


def test_sqlite_is_set_up_for_several_processes(url):
    with open_database(url).connect() as connection:
        assert connection.scalar(text("PRAGMA journal_mode")) == "wal"
        assert connection.scalar(text("PRAGMA foreign_keys")) == 1
        assert connection.scalar(text("PRAGMA busy_timeout")) == database.BUSY_TIMEOUT_SECONDS * 1000


def test_who_takes_a_turn_reads_and_writes_as_one_step(url):
    """Without turns, threads that each add one to what they have read would lose some."""
    engine = open_database(url)
    upgrade(engine)
    with sessions(engine).begin() as session:
        session.add(Affiliation(id="count", name="0"))

    def add():
        for _ in range(10):
            with sessions(engine).begin() as session:
                take_turn(session)
                row = session.get_one(Affiliation, "count")
                row.name = str(int(row.name) + 1)

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with sessions(engine)() as session:
        assert session.get_one(Affiliation, "count").name == "40"


def test_one_may_read_while_another_writes(url):
    engine = open_database(url)
    upgrade(engine)
    with engine.connect() as writer, sessions(engine)() as reader:
        take_turn(writer)
        assert reader.scalar(select(func.count()).select_from(Affiliation)) == 0


def test_a_database_locked_by_another_writer_is_named(url, monkeypatch):
    monkeypatch.setattr(database, "BUSY_TIMEOUT_SECONDS", 0.05)
    engine = open_database(url)
    upgrade(engine)
    other = sqlite3.connect(engine.url.database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(DatabaseError, match="locked by another writer"), sessions(engine).begin() as session:
        session.add(Affiliation(id="a", name="A"))
    with pytest.raises(DatabaseError, match="locked by another writer"):
        upgrade(engine)
    other.execute("ROLLBACK")
    with sessions(engine).begin() as session:
        session.add(Affiliation(id="a", name="A"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(b"this is no database" * 200, "is not a SQLite database", id="another-kind-of-file"),
        pytest.param(None, "cannot be opened", id="a-folder"),
    ],
)
def test_what_is_no_database_is_named(tmp_path, content, message):
    file = tmp_path / "hutch.sqlite"
    file.mkdir() if content is None else file.write_bytes(content)
    with pytest.raises(DatabaseError, match=message):
        check_current(open_database(f"sqlite:///{file}"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        pytest.param("hutch.sqlite", "is not a database URL", id="a-path"),
        pytest.param("", "is not a database URL", id="nothing"),
        pytest.param("unheard://of", "is not a database URL", id="unknown-kind"),
        pytest.param("sqlite:////dev/null/hutch.sqlite", "cannot make the folder /dev/null", id="no-place-for-a-folder"),
        pytest.param("postgresql+asyncpg://u:secret@h/db", "needs the Python package 'asyncpg'", id="no-driver"),
        pytest.param("mysql+pymysql://u:secret@h/db", "is neither PostgreSQL nor SQLite", id="another-database"),
    ],
)
def test_an_url_that_cannot_be_opened_is_named_without_its_password(wrong, message):
    with pytest.raises(DatabaseError, match=message) as caught:
        open_database(wrong)
    assert "secret" not in str(caught.value)


def test_a_postgresql_that_is_gone_without_a_word_is_noticed_soon(postgresql):
    with open_database(postgresql.new_database()).connect() as connection:
        given = connection.connection.dbapi_connection.info.get_parameters()
    silent_for = int(given["keepalives_idle"]) + int(given["keepalives_interval"]) * int(given["keepalives_count"])
    assert silent_for <= 30 and int(given["tcp_user_timeout"]) <= 30_000


def test_a_connection_that_ends_in_the_middle_is_said_in_a_sentence(postgresql):
    engine = open_database(postgresql.new_database())
    with pytest.raises(DatabaseError, match=r"^cannot reach postgresql.*terminating connection"), engine.connect() as connection:
        connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT 1")) == 1
