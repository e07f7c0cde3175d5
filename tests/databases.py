"""The database that a test run works on: SQLite, or a real PostgreSQL when HUTCH_TEST_DATABASE is `postgresql`."""

from __future__ import annotations

import atexit
import os
from functools import cache
from pathlib import Path

import live_servers

ON_POSTGRESQL = os.environ.get("HUTCH_TEST_DATABASE") == "postgresql"


@cache
def database_url(folder: Path, name: str = "hutch") -> str:
    """The database of that name which belongs to a folder of a test; made when it is first asked for, and empty then."""
    return server().new_database() if ON_POSTGRESQL else f"sqlite:///{folder / name}.sqlite"


@cache
def server() -> live_servers.PostgreSQL:
    running = live_servers.postgresql()
    atexit.register(running.__exit__, None, None, None)
    return running.__enter__()
