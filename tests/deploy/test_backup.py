"""Backup and restore on a real PostgreSQL: all is destroyed but the cloud, and a hub started on what was kept takes it back."""

from __future__ import annotations

import os
import secrets
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg
import pytest
from facility_hub import FacilityHub, Visitor, facility
from running_hub import until
from sqlalchemy import make_url, select
from traitlets.config import Config

from hub.backup import BackupError, backup, restore
from hub.configuration import Hutch
from hub.database.seal import ADVICE
from hub.database.tables import Outcome, User

pytestmark = pytest.mark.timeout(600)


class Site:
    """A hub with databases that an ordinary role owns, as docs/deploying.md makes them."""

    def __init__(self, server) -> None:
        self._server = server
        self._role = f"site{secrets.token_hex(4)}"
        self._admin(f"CREATE ROLE {self._role} LOGIN")
        self._urls = {name: self._new_database() for name in ("hutch", "jupyterhub")}

    def url(self, _folder: Path, name: str = "hutch") -> str:
        return self._urls[name]

    def _admin(self, *statements: str) -> None:
        dsn = f"host=127.0.0.1 port={self._server.port} user=hutch dbname=postgres"
        with psycopg.connect(dsn, autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    def _new_database(self) -> str:
        url = self._server.new_database()
        self._admin(f'ALTER DATABASE "{url.rsplit("/", 1)[1]}" OWNER TO {self._role}')
        return url.replace("hutch@", f"{self._role}@")

    def empty_databases(self) -> None:
        for url in self._urls.values():
            name = url.rsplit("/", 1)[1]
            self._admin(f'DROP DATABASE "{name}" WITH (FORCE)', f'CREATE DATABASE "{name}" OWNER {self._role}')


@pytest.fixture(scope="module")
def site(postgresql) -> Site:
    return Site(postgresql)


@pytest.fixture(scope="module")
def hub(site, tmp_path_factory) -> Iterator[FacilityHub]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("facility_hub.database_url", site.url)
        with facility(tmp_path_factory.mktemp("backup")) as hub:
            yield hub


@pytest.fixture
def small(tmp_path) -> tuple[Config, Hutch]:
    """A deployment on SQLite."""
    (tmp_path / ".hutch").mkdir()
    urls = {name: f"sqlite:///{tmp_path / name}.sqlite" for name in ("hutch", "jupyterhub")}
    for url in urls.values():
        with sqlite3.connect(make_url(url).database or "") as made:
            made.execute("CREATE TABLE spawners (server_id INT)")
    settings = {"state_dir": str(tmp_path / ".hutch"), "database_url": urls["hutch"]}
    return Config(JupyterHub={"db_url": urls["jupyterhub"]}), Hutch(config=Config(Hutch=settings))


def test_what_keeps_a_backup_from_being_made_is_said_in_a_sentence(small, tmp_path):
    with pytest.raises(BackupError, match="is in the state_dir"):
        backup(*small, tmp_path / ".hutch" / "backups", 1)
    (tmp_path / "jupyterhub.sqlite").unlink()
    with pytest.raises(BackupError, match="nothing was kept: unable to open database file"):
        backup(*small, tmp_path / "backups", 1)
    assert not list((tmp_path / "backups").iterdir())


def test_files_written_after_a_backup_are_as_readable_as_before_it(small, tmp_path):
    before = os.umask(0o027)
    restore(*small, backup(*small, tmp_path / "backups", 1))
    with pytest.raises(BackupError):
        restore(*small, tmp_path / "nothing")
    assert os.umask(before) == 0o027


@pytest.mark.parametrize("keep", [0, 5000], ids=["not-a-database", "half-of-one"])
def test_a_backup_that_is_damaged_replaces_nothing(small, tmp_path, keep):
    with sqlite3.connect(tmp_path / "hutch.sqlite") as database:
        database.executemany("INSERT INTO spawners VALUES (?)", [(number,) for number in range(5000)])
    made = backup(*small, tmp_path / "backups", 1)
    (made / "hutch").write_bytes((made / "hutch").read_bytes()[:keep] + b"rubbish" * 99)
    (tmp_path / "jupyterhub.sqlite").unlink()
    with pytest.raises(BackupError, match="nothing was changed"):
        restore(*small, made)
    assert not (tmp_path / "jupyterhub.sqlite").exists() and not (tmp_path / ".hutch" / "seal").exists()


@pytest.mark.parametrize("name", ["hutch", "jupyterhub"])
def test_a_database_that_a_hub_still_uses_is_not_replaced(small, tmp_path, name):
    made = backup(*small, tmp_path / "backups", 1)
    with closing(sqlite3.connect(tmp_path / f"{name}.sqlite")) as used:
        used.execute("PRAGMA journal_mode = WAL")
        used.execute("SELECT * FROM spawners").fetchall()
        with pytest.raises(BackupError, match=rf"somebody uses .*/{name}\.sqlite: stop the hub"):
            restore(*small, made)
    assert not (tmp_path / ".hutch" / "seal").exists()
    (tmp_path / f"{name}.sqlite").write_bytes(b"rubbish" * 999)
    restore(*small, made)


def server_of(hub: FacilityHub, visitor: Visitor) -> tuple[str, str]:
    (server,) = hub.servers(visitor)
    return server["id"], server["status"]


def test_the_newest_backups_are_kept_for_this_account_only(hub, tmp_path):
    backups = tmp_path / "backups"
    made = [Path(hub.hutch("backup", backups, "--keep", "2").stdout.strip()) for _ in range(3)]
    assert sorted(backups.iterdir()) == made[1:]
    assert {path.stat().st_mode & 0o077 for path in made[-1].rglob("*")} == {0}
    assert not list(made[-1].rglob("seal*"))


def test_what_was_lost_is_restored_and_the_cloud_is_taken_back(site, hub, tmp_path):
    runs, restarted, stopped, later = (hub.visitor() for _ in range(4))
    for visitor in (runs, restarted, stopped):
        hub.launched(visitor)
    hub.end(stopped)
    authority = (hub.state / "agent-tls/authority.pem").read_bytes()
    known = [visitor.login for visitor in (runs, restarted, stopped, later)]

    said = hub.hutch("backup", tmp_path / "backups")
    assert said.returncode == 0, said.stderr
    made = Path(said.stdout.strip())

    # since the backup: one was started again, and knows other tokens; one is new, and nothing that is restored knows of it
    hub.end(restarted)
    hub.start_again(restarted)
    hub.until_ready(restarted.login, "films")
    hub.launched(later)
    before = {visitor.login: server_of(hub, visitor) for visitor in (runs, restarted, stopped)}
    new_server = server_of(hub, later)[0]

    refused = hub.hutch("restore", made)
    assert refused.returncode == 1 and "stop the hub" in refused.stderr

    hub.kill()
    hub.engine.dispose()
    site.empty_databases()
    shutil.rmtree(hub.state)
    said = hub.hutch("restore", made)
    assert said.returncode == 0, said.stderr
    refused = hub.hutch("reconcile", "--dry-run")
    assert refused.returncode == 1 and "hutch db seal --keep" in refused.stderr, "it acts on nothing before that is said"
    hub.start()

    # it might be a copy of a database that goes on elsewhere: until that is decided, nothing is touched
    until(lambda: ADVICE in hub.log(), "the steward says that it acts on nothing")
    assert [intent.kind for visitor in (runs, restarted) for intent in hub.instance(visitor).intents] == ["launch"] * 2
    assert hub.hutch("db", "seal", "--keep").returncode == 0

    assert set(hub.change(lambda session: session.scalars(select(User.login).where(User.login.in_(known))).all())) == set(known)
    assert (hub.state / "agent-tls/authority.pem").read_bytes() == authority
    for visitor in (runs, restarted):
        hub.until_intent(visitor, kind="launch", actor="steward", outcome=Outcome.DONE)
        hub.until_ready(visitor.login, "films")
    assert {visitor.login: server_of(hub, visitor) for visitor in (runs, restarted, stopped)} == before
    assert new_server in [server["id"] for server in hub.servers()]
    assert len(hub.servers()) == 4


def test_half_a_backup_is_refused_and_changes_nothing(hub, tmp_path):
    made = Path(hub.hutch("backup", tmp_path / "backups").stdout.strip())
    hub.stop()
    hub.engine.dispose()
    (made / "hutch").write_bytes((made / "hutch").read_bytes()[:5000])
    said = hub.hutch("restore", made)
    assert said.returncode == 1 and "pg_restore failed" in said.stderr
    assert hub.change(lambda session: session.scalars(select(User.login).where(User.login == "ann")).one())
    assert (hub.state / "seal").read_text().count("restored from") == 0
    (made / "hutch").unlink()
    said = hub.hutch("restore", made)
    assert said.returncode == 1 and "not a whole backup: it has no hutch" in said.stderr
