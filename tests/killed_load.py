"""A load in a process of its own that kills itself at a chosen step: a statement, rows copied in or out, or the commit."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sqlalchemy import event

from etl import store
from etl.adapters.files import Files
from etl.load import run
from etl.source import Source
from hub.database.engine import open_database

# a process that has these modules ready, and has not used them: what is forked from it starts at once
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["etl.load", "etl.adapters.files", "hub.database.engine", "psycopg"])


def load(url: str, folder: Path, dies_at: int = 0, many_rows: int = 20_000) -> int | None:
    """Loads the folder; the number of steps that it took, or None when it died by SIGKILL at one."""
    ours, theirs = SERVER.Pipe(duplex=False)
    process = SERVER.Process(target=_load, args=(url, folder, dies_at, many_rows, theirs))
    process.start()
    theirs.close()
    process.join(60)
    if process.exitcode == 0:
        return ours.recv()
    assert process.exitcode == -signal.SIGKILL
    return None


def _load(url: str, folder: Path, dies_at: int, many_rows: int, steps: Connection) -> None:
    taken = 0

    def step(*_: Any, **__: Any) -> None:
        nonlocal taken
        taken += 1
        if taken == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*words: Any, **options: Any) -> Any:
            step()
            done = work(*words, **options)
            step()
            return done

        return call

    engine = open_database(url)
    for moment in ("before_cursor_execute", "after_cursor_execute", "commit"):
        event.listen(engine, moment, step)
    store.insert, store._copied, store.MANY_ROWS = counted(store.insert), counted(store._copied), many_rows  # type: ignore[assignment]
    run(engine, Source(name="files"), Files(folder=folder), today=datetime(2026, 3, 10, tzinfo=UTC))
    step()
    steps.send(taken)
