"""`hutch backup` and `hutch restore`: both databases and the keys, as one folder.

JupyterHub's database is read before Hutch's, so that an instance which the first knows is also in the second. The seal stays
out: a restored database must be told from the one that went on, as the cloud may since have got servers that it knows nothing of.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import NamedTemporaryFile

from sqlalchemy import URL, create_engine, make_url, text
from traitlets.config import Config

from .configuration import Hutch
from .database import seal
from .errors import HutchError

# the databases have files of their own here; the rest is of a process, of the demo, or tells this place from others
NOT_KEPT = shutil.ignore_patterns("*.sqlite*", "seal*", "*.pid", "*.log", "*.lock", "devcloud")

NOBODY_ELSE = """DO $$ BEGIN IF EXISTS (
    SELECT FROM pg_stat_activity WHERE datname = current_database() AND usename IS NOT NULL AND pid <> pg_backend_pid()
) THEN RAISE 'somebody uses %: stop the hub and `hutch etl serve` first', current_database(); END IF; END $$"""


class BackupError(HutchError):
    """Nothing was kept, or nothing restored."""


@contextmanager
def _readable_by_us_alone() -> Iterator[None]:
    """What is written meanwhile, other programs' files too. Of a process there is one umask: what comes after has its own again."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def _in_a_sentence(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise BackupError(f"{what}: {error}") from error


def databases(config: Config, hutch: Hutch) -> dict[str, URL]:
    return {"jupyterhub": make_url(config.JupyterHub.db_url), "hutch": make_url(hutch.database_url)}


@_readable_by_us_alone()
def backup(config: Config, hutch: Hutch, folder: Path, keep: int) -> Path:
    """Writes a new folder below `folder`, which is there whole or not at all, and then deletes all but the newest `keep`."""
    made = folder / f"{datetime.now(UTC):%Y-%m-%dT%H%M%S.%fZ}"
    partial = made.with_suffix(".partial")
    if made.resolve().is_relative_to(Path(hutch.state_dir).resolve()):
        raise BackupError(f"{folder} is in the state_dir, of which backups are made: name another folder")
    try:
        with _in_a_sentence("nothing was kept"):
            partial.mkdir(parents=True)
            for name, url in databases(config, hutch).items():
                _dump(url, partial / name)
            shutil.copytree(hutch.state_dir, partial / "state", ignore=NOT_KEPT)
            partial.rename(made)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for old in sorted(folder.glob("????-??-??T*Z"))[:-keep]:
        shutil.rmtree(old)
    return made


@_readable_by_us_alone()
def restore(config: Config, hutch: Hutch, made: Path) -> None:
    """Puts the databases and the keys in the place of those that are there. Cut off, it can be repeated."""
    urls = databases(config, hutch)
    if missing := [name for name in (*urls, "state") if not (made / name).exists()]:
        raise BackupError(f"{made} is not a whole backup: it has no {' and no '.join(missing)}")
    with _in_a_sentence(f"{made} cannot be restored, and nothing was changed"):
        for name, url in urls.items():
            _check(url, made / name)
    state = Path(hutch.state_dir)
    with _in_a_sentence("not all was restored; the steward acts on nothing. Mend this, and restore again"):
        state.mkdir(parents=True, exist_ok=True)
        # first of all, and no seal that any database has: the steward acts on nothing until an operator has said how it goes on
        (state / seal.FILE).write_text(f"restored from {made.name}\n")
        for name, url in urls.items():
            _load(url, made / name)
        shutil.copytree(made / "state", state, dirs_exist_ok=True)
    _forget_servers(urls["jupyterhub"])


def _check(url: URL, file: Path) -> None:
    """That the file is of this kind of database, and that nobody uses the one that it is to replace."""
    if url.get_backend_name() == "sqlite":
        with sqlite3.connect(f"file:{file}?immutable=1", uri=True) as kept:
            if kept.execute("PRAGMA quick_check").fetchone() != ("ok",):
                raise BackupError(f"{file} is damaged: restore another backup; nothing was changed")
        if _is_used(Path(url.database or "")):
            raise BackupError(f"somebody uses {url.database}: stop the hub and `hutch etl serve` first")
    else:
        _postgresql("pg_restore", None, "--file=/dev/null", str(file))
        _postgresql("psql", url, "--no-psqlrc", f"--command={NOBODY_ELSE}")


def _is_used(file: Path) -> bool:
    """SQLite ends its write-ahead log only when nobody else has the database open, also if they do nothing."""
    if not file.exists():
        return False
    try:
        with closing(sqlite3.connect(f"file:{file}?mode=rw", uri=True, timeout=1)) as replaced:
            replaced.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.Error as error:  # a damaged one is what restoring is for
        return error.sqlite_errorname.startswith("SQLITE_BUSY")
    return False


def _forget_servers(url: URL) -> None:
    """Instances may have been started anew since the backup, and know other tokens: the hub is to take back each that runs."""
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE spawners SET server_id = NULL"))
    engine.dispose()


def _dump(url: URL, file: Path) -> None:
    if url.get_backend_name() == "sqlite":
        _copy(url.database or "", file)
    else:
        _postgresql("pg_dump", url, "--format=custom", f"--file={file}")


def _load(url: URL, file: Path) -> None:
    if url.get_backend_name() == "sqlite":
        _replace(Path(url.database or ""), file)
        return
    with NamedTemporaryFile(suffix=".sql") as script:
        # in whole before any of it is run: of half a script, the transaction below would be committed
        _postgresql("pg_restore", None, "--no-owner", "--no-privileges", f"--file={script.name}", str(file))
        alone = ("--no-psqlrc", "--quiet", "--output=/dev/null", "--single-transaction", "--set=ON_ERROR_STOP=1")
        _postgresql("psql", url, *alone, "--command=DROP OWNED BY CURRENT_USER", f"--file={script.name}")


def _replace(target: Path, kept: Path) -> None:
    """Whole or not at all, whatever is in the place of the target."""
    new = target.with_name(f"{target.name}.restored")
    new.unlink(missing_ok=True)
    _copy(kept, new)
    for log in ("-wal", "-shm", "-journal"):
        target.with_name(target.name + log).unlink(missing_ok=True)
    new.replace(target)


def _copy(source: str | Path, target: str | Path) -> None:
    # SQLite's own, which works beside writers; mode=rw: what is not there is not made up
    with sqlite3.connect(f"file:{source}?mode=rw", uri=True) as there, sqlite3.connect(target) as here:
        there.backup(here)


def _postgresql(program: str, url: URL | None, *arguments: str) -> None:
    where = [f"--dbname={url.set(drivername='postgresql', password=None).render_as_string()}"] if url else []
    secret = {"PGPASSWORD": url.password} if url and url.password else {}
    try:
        subprocess.run([program, *where, *arguments], env={**os.environ, **secret}, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise BackupError(f"{program} is missing: install Debian's postgresql-client") from error
    except subprocess.CalledProcessError as error:
        raise BackupError(f"{program} failed: {' '.join(error.stderr.split())}") from error
