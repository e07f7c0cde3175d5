"""The facility's database as one process uses it: opened once, asked in threads, so that no event loop waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TypeVar

from sqlalchemy.orm import Session
from traitlets.config import Config

from .configuration import Hutch
from .database.engine import check_current, deployment_id, open_database, sessions

T = TypeVar("T")
_opened: dict[str, Facility] = {}
# with the configuration itself, so that its id stays its own
_known: dict[int, tuple[Config, Facility]] = {}


class Facility:
    """The settings of this deployment, and its database at the revision that this Hutch needs."""

    def __init__(self, hutch: Hutch) -> None:
        self.hutch = hutch
        self.engine = open_database(hutch.database_url)
        check_current(self.engine)
        self._sessions = sessions(self.engine)
        # few: SQLite has one writer, and PostgreSQL connections are dear
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="database")

    @staticmethod
    def of(config: Config) -> Facility:
        """One for each database, for all that JupyterHub builds from the same configuration."""
        if id(config) not in _known:  # each new spawner asks, with the same one
            hutch = Hutch(config=config)
            if hutch.database_url not in _opened:
                _opened[hutch.database_url] = Facility(hutch)
            _known[id(config)] = config, _opened[hutch.database_url]
        return _known[id(config)][1]

    @cached_property
    def deployment_id(self) -> str:
        return deployment_id(self.engine)

    async def ask(self, work: Callable[[Session], T]) -> T:
        """Runs `work` in one transaction in a thread; what it raises undoes all of it."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self.ask_here, work)

    def ask_here(self, work: Callable[[Session], T]) -> T:
        """The same, for code that is in a thread already."""
        with self._sessions.begin() as session:
            return work(session)
