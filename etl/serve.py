"""`hutch etl serve`: runs sources when they are due, takes what is pushed, follows events, and tells how fresh all is.

A scheduled run is a process of its own: the memory of a large load goes back to the machine with it, and if it is killed or
crashes, this one goes on and reports it. Its transaction and its lock fall with it.
"""

from __future__ import annotations

import asyncio
import signal
import ssl
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import structlog
import uvicorn
from fastapi import FastAPI
from sqlalchemy import Engine, func, select
from sqlalchemy.exc import OperationalError
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_fixed

from etl.events import Follower
from etl.frames import Adapter, SourceError
from etl.load import BusyError, Report, run
from etl.metrics import Metrics
from etl.push_api import PeerProtocol, routes, say
from etl.source import Source, find, open_source
from hub import mail, service
from hub.configuration import ConfigurationError, Hutch, config_path
from hub.database.engine import DatabaseError, check_current, open_database
from hub.database.tables import EtlRun, RunKind, now
from hub.service import putting_off, well

LOOK_SECONDS = 5.0
FAREWELL_SECONDS = 10.0
# a run that ended badly may have written a lot
WORDS_MAILED = 4000

log = structlog.get_logger("etl")
T = TypeVar("T")


class Service:
    """One per deployment. Sources are read anew each time they are needed: only new [events] want a restart."""

    def __init__(self, hutch: Hutch, engine: Engine) -> None:
        self.hutch, self.engine, self.folder = hutch, engine, Path(hutch.sources_dir)
        self.metrics = Metrics(engine)
        self._began: dict[str, datetime] = {}
        self._told: dict[str, str] = {}

    async def patiently(self, seconds: float, call: Callable[..., T], *args: Any, **options: Any) -> T:
        """The call in a thread. Waits that long for the database, or for another run of the source."""
        attempts = AsyncRetrying(
            retry=retry_if_exception_type((BusyError, DatabaseError, OperationalError)),
            stop=stop_after_delay(seconds),
            wait=wait_fixed(1),
            reraise=True,
        )
        return await attempts(asyncio.to_thread, call, *args, **options)

    async def load(self, seconds: float, source: Source, adapter: Adapter, **options: Any) -> Report:
        return await self.patiently(seconds, run, self.engine, source, adapter, kind=RunKind.PUSH, **options)

    async def tell(self, what: str, trouble: str) -> None:
        """Mail those who run Hutch: once for the same trouble, and when it is over."""
        if trouble == self._told.get(what, ""):
            return
        if trouble:
            log.warning("not loaded", what=what, reason=trouble)
        else:
            well("not loaded", what=what)
        subject = f"{what} was not loaded" if trouble else f"{what} is loaded again"
        with putting_off("mail was not sent"):
            if self.hutch.admin_mail:
                await mail.send(self.hutch, self.hutch.admin_mail, f"Hutch: {subject}", trouble or "What was wrong is over.")
            self._told[what] = trouble

    # --- what is due

    async def run_what_is_due(self) -> None:
        at_work: dict[str, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as runs:
            while True:
                with putting_off("cannot see what is due"):
                    for name in await asyncio.to_thread(lambda: list(self.due(now()))):
                        if name not in at_work or at_work[name].done():
                            self._began[name] = now()
                            at_work[name] = runs.create_task(self._run_apart(name))
                await asyncio.sleep(LOOK_SECONDS)

    def due(self, at: datetime) -> Iterator[str]:
        """The sources whose last scheduled run began long enough ago, however it ended."""
        scheduled = EtlRun.kind.in_((RunKind.LOAD, RunKind.DELTA))
        last = select(EtlRun.source, func.max(EtlRun.started_at)).where(scheduled).group_by(EtlRun.source)
        with self.engine.connect() as connection:
            began = dict(connection.execute(last).tuples().all())
        for name, (source, _) in self.sources().items():
            before = [moment for moment in (began.get(name), self._began.get(name)) if moment]
            if source.every_minutes and (not before or at - max(before) >= timedelta(minutes=source.every_minutes)):
                yield name

    def sources(self) -> dict[str, tuple[Source, Adapter]]:
        """Those whose files are right; what is wrong with the others is in the log."""
        found = {}
        for name in find(self.folder):
            try:
                found[name] = open_source(self.folder, name)
                well("not a source", source=name)
            except SourceError as error:
                log.error("not a source", source=name, reason=str(error))
        return found

    async def _run_apart(self, name: str) -> None:
        command = (sys.executable, "-m", "hutch", "etl", "run", name)
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE)
        try:
            _, words = await process.communicate()
        finally:
            if process.returncode is None:
                process.terminate()
                await process.wait()
        said = words.decode(errors="replace").strip()[-WORDS_MAILED:]
        await self.tell(name, (said or f"the run ended with status {process.returncode}") if process.returncode else "")

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        app.state.service = self
        followers = [Follower(self, *opened).follow() for opened in self.sources().values() if opened[0].events]
        tasks = [asyncio.create_task(work) for work in (self.run_what_is_due(), *followers)]
        for task in tasks:
            task.add_done_callback(_end_with)
        yield
        for task in tasks:
            task.cancel()
        # a broker that is gone does not answer a farewell
        await asyncio.wait(tasks, timeout=FAREWELL_SECONDS)


def _end_with(task: asyncio.Task[None]) -> None:
    """Rather no service, which is seen and started again, than one without a part."""
    if not task.cancelled():
        log.critical("ended by a fault", exc_info=task.exception())
        signal.raise_signal(signal.SIGTERM)


def tls(hutch: Hutch) -> dict[str, Any]:
    """What uvicorn needs of certificates. Raises ConfigurationError where what is pushed could be read on its way."""
    where, folder = urlsplit(hutch.etl_url), config_path().parent
    if where.scheme != "https":
        if where.hostname not in ("127.0.0.1", "localhost", "::1"):
            raise ConfigurationError(f"etl_url {hutch.etl_url!r} is for others: make it https, with an etl_certificate")
        return {}
    if not hutch.etl_certificate:
        raise ConfigurationError(f"etl_url {hutch.etl_url!r} needs an etl_certificate")
    clients = {"ssl_ca_certs": folder / hutch.etl_client_ca, "ssl_cert_reqs": ssl.CERT_OPTIONAL} if hutch.etl_client_ca else {}
    return {"ssl_certfile": folder / hutch.etl_certificate, **clients}


def serve(hutch: Hutch) -> None:
    """Until SIGTERM or Ctrl-C. Raises ConfigurationError or DatabaseError."""
    certificates, where, engine = tls(hutch), urlsplit(hutch.etl_url), open_database(hutch.database_url)
    check_current(engine)
    service.begin()
    app = FastAPI(lifespan=Service(hutch, engine).lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    for kind in (SourceError, DatabaseError):
        app.add_exception_handler(kind, say)
    app.include_router(routes)
    settings = uvicorn.Config(
        app,
        host=where.hostname or "127.0.0.1",
        port=where.port or 9581,
        http=PeerProtocol,
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=10,
        **certificates,
    )
    try:
        settings.load()
    except OSError as error:
        raise ConfigurationError(f"etl_certificate or etl_client_ca cannot be used: {error}") from error
    uvicorn.Server(settings).run()
