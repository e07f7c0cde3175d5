"""A hub for the portal's tests: a real JupyterHub and proxy, whose launches are rehearsed inside the hub process.

It writes intents and events as a hub with real launches does, tells the same stages, and answers as a notebook would.
What happens is chosen by the plan: "quick" is ready at once, "held" waits at its boot until the file `release` exists,
"fails" fails there at once, "dies" when that file exists, "refused" is refused before anything is written, "crash" fails
without a word.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from jupyterhub.spawner import Spawner
from tornado import web

from hub import records
from hub.configuration import load
from hub.database.engine import open_database, sessions
from hub.database.tables import Intent, IntentKind, Outcome
from hub.instances import conclude, create, expected_seconds, intend, latest_intent, record_event

HUTCH = load()
SESSIONS = sessions(open_database(HUTCH.database_url))
RELEASE = Path(HUTCH.state_dir) / "release"


class RehearsalSpawner(Spawner):
    events: list
    notebook: asyncio.Server | None = None
    alive = False

    async def start(self):
        self.alive, self.events, self.began = True, [], time.monotonic()
        self.changed = asyncio.Event()
        self.intent_id, plan_id = self.begin()
        for stage in ("rights", "create", "boot", "identify", "account", "environment", "notebook"):
            self.tell(stage, "started")
            if stage == "boot":
                await self.boot(plan_id)
            self.tell(stage, "done", seconds=0.05)
        self.notebook = await asyncio.start_server(_answer, "127.0.0.1", 0)
        self.end(Outcome.DONE, seconds=time.monotonic() - self.began)
        return f"http://127.0.0.1:{self.notebook.sockets[0].getsockname()[1]}"

    def begin(self) -> tuple[int, str]:
        with SESSIONS.begin() as session:
            instance = records.find_instance(session, self.user.name, self.name)
            if instance is None:
                plan_id = self.user_options["plan"]
                if plan_id == "refused":
                    raise web.HTTPError(403, "This plan is closed for today.")
                person = records.find_person(session, self.user.name, HUTCH.terms(datetime.now(UTC)))
                instance = create(
                    session,
                    owner_id=person.id,
                    server_name=self.name,
                    display_name=self.orm_spawner.display_name,
                    plan_id=plan_id,
                    experiment_ids=self.user_options["experiments"],
                    lifetime=timedelta(days=14),
                )
            self.expected = expected_seconds(session, instance.plan_id)
            return intend(session, instance.id, IntentKind.LAUNCH, self.user.name).id, instance.plan_id

    async def boot(self, plan_id: str) -> None:
        if plan_id in ("held", "dies"):
            while not RELEASE.exists():  # noqa: ASYNC110 (the test is another process)
                await asyncio.sleep(0.05)
        if plan_id in ("fails", "dies"):
            self.tell("boot", "failed")
            detail = "500 No valid host was found.\n--- console ---\nKernel panic - not syncing"
            self.end(Outcome.FAILED, stage="boot", message="The server did not boot.", detail=detail)
            raise web.HTTPError(500, "The server did not boot.")
        if plan_id == "crash":
            raise RuntimeError("crash")

    def end(self, outcome: Outcome, seconds: float | None = None, **words) -> None:
        with SESSIONS.begin() as session:
            intent = session.get_one(Intent, self.intent_id)
            conclude(session, intent, outcome, **words)
            if outcome is Outcome.DONE:
                record_event(session, intent.instance_id, "ready", intent_id=intent.id, seconds=seconds)
                intent.instance.first_ready_at = intent.instance.first_ready_at or datetime.now(UTC)

    def tell(self, stage: str, state: str, seconds: float = 0.0) -> None:
        elapsed = time.monotonic() - self.began
        told = {"stage": stage, "state": state, "seconds": seconds, "elapsed_seconds": elapsed, "expected_seconds": self.expected}
        self.events.append({"progress": len(self.events) * 6, "message": f"{stage} {state}", **told})
        self.changed.set()

    async def progress(self):
        told = 0
        while True:
            while told < len(self.events):
                yield self.events[told]
                told += 1
            self.changed.clear()
            await self.changed.wait()

    async def stop(self, now=False):
        self.alive = False
        if self.notebook:
            self.notebook.close()
            self.notebook = None
        with SESSIONS.begin() as session:
            instance = records.find_instance(session, self.user.name, self.name)
            intent = latest_intent(session, instance.id) if instance else None
            if intent and intent.kind == IntentKind.STOP and intent.outcome is None:
                conclude(session, intent, Outcome.DONE)

    async def poll(self):
        return None if self.alive else 0


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Whatever is asked: a page that says JupyterLab."""
    while (await reader.readline()).strip():
        pass
    body = b"<!DOCTYPE html><title>JupyterLab</title><h1>JupyterLab</h1>"
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body))
    writer.write(body)
    await writer.drain()
    writer.close()
