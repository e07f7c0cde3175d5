"""The database that a test run works on: SQLite, or a real PostgreSQL when HUTCH_TEST_DATABASE is `postgresql`."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

import live_servers
from sqlalchemy import Engine

from hub.database import engine as migrations

ON_POSTGRESQL = os.environ.get("HUTCH_TEST_DATABASE") == "postgresql"


@cache
def database_url(folder: Path, name: str = "hutch") -> str:
    """The database of that name which belongs to a folder of a test; made when it is first asked for, and empty then."""
    return server().new_database() if ON_POSTGRESQL else f"sqlite:///{folder / name}.sqlite"


def upgrade(engine: Engine) -> None:
    """What Hutch's own `upgrade` makes of an empty database to which nothing is connected yet; copied, as that is much quicker."""
    if engine.dialect.name == "sqlite":
        shutil.copy(_blank("sqlite"), str(engine.url.database))
    elif ON_POSTGRESQL and engine.url.port == server().port:
        server().drop_database(engine.url.render_as_string())
        server().new_database(str(engine.url.database), template=_blank("postgresql"))
    else:
        migrations.upgrade(engine)


@cache
def _blank(kind: str) -> str:
    """The file or the name of a database that is upgraded and empty."""
    folder = tempfile.TemporaryDirectory(prefix="hutch-blank-")
    atexit.register(folder.cleanup)
    url = f"sqlite:///{folder.name}/hutch.sqlite" if kind == "sqlite" else server().new_database("blank_for_copies")
    engine = migrations.open_database(url)
    migrations.upgrade(engine)
    engine.dispose()
    return str(engine.url.database)


@cache
def server() -> live_servers.PostgreSQL:
    running = live_servers.postgresql()
    atexit.register(running.__exit__, None, None, None)
    return running.__enter__()
