"""The agent's HTTPS service: launch, status, end, and who must leave, for nobody but the hub."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from . import identity, nursery
from .desktop import Desktop
from .nurse import Nurse
from .session import Order, OtherOwnerError, Session
from .tunnel import PROTOCOLS, Door, Tunnels

log = logging.getLogger("hutch.agent")

BODY_BYTES = 1024 * 1024
HANDSHAKE_SECONDS = 10.0
LOG_CHECK_SECONDS = 30.0


@dataclass(frozen=True)
class Settings:
    etc: Path
    state: Path
    home: Path
    address: str
    console: str
    create_account: bool


SESSION = web.AppKey("session", Session)
DESKTOP = web.AppKey("desktop", Desktop)
TUNNELS = web.AppKey("tunnels", Tunnels)
HOME = web.AppKey("home", Path)
BEGUN = web.AppKey("begun", float)


async def post_session(request: web.Request) -> web.StreamResponse:
    try:
        order = Order.parse(await request.json())
    except ValueError as error:
        return _refusal(400, "malformed", str(error))
    try:
        launch = request.app[SESSION].accept(order)
    except OtherOwnerError:
        return _refusal(409, "other-owner", "This instance belongs to another account.")
    response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
    await response.prepare(request)
    async for event in launch.events():
        await response.write(json.dumps(event).encode() + b"\n")
    return response


async def get_status(request: web.Request) -> web.Response:
    # not needed before the first question, and the agent shall listen soon
    from . import vitals

    session, desktop = request.app[SESSION], request.app[DESKTOP]
    said, idle_seconds = await asyncio.gather(session.report(), desktop.idle_seconds())
    return web.json_response(
        {
            "version": 1,
            "owner": session.owner,
            "notebook": session.state,
            "restarts": session.restarts,
            "kernels": said.get("kernels", {"total": 0, "busy": 0}),
            "last_input_at": said.get("last_input_at"),
            "desktop": {
                "state": desktop.state,
                "restarts": desktop.restarts + desktop.programs.restarts,
                "viewers": len(request.app[TUNNELS]),
                "idle_seconds": idle_seconds,
            },
            "uptime_seconds": round(time.monotonic() - request.app[BEGUN], 1),
            **vitals.read(request.app[HOME]),
        }
    )


async def delete_session(request: web.Request) -> web.Response:
    await asyncio.gather(request.app[DESKTOP].stop(), request.app[SESSION].end())
    return web.Response(status=204)


async def delete_user(request: web.Request) -> web.Response:
    """This user of the hub lost their access: what they have open in the notebook and on the desktop ends now."""
    request.app[TUNNELS].close(request.match_info["name"])
    if not await request.app[SESSION].send_away(request.match_info["name"]):
        return _refusal(503, "busy", "The notebook is too busy to close a connection.")
    return web.Response(status=204)


@web.middleware
async def only_the_hub(request: web.Request, handler: Any) -> web.StreamResponse:
    if request.transport is None or not identity.is_hub(request.transport.get_extra_info("peercert")):
        return _refusal(403, "not-the-hub", f"Only a certificate for the name {identity.HUB_NAME} is served.")
    return await handler(request)


def _refusal(status: int, error: str, message: str) -> web.Response:
    return web.json_response({"error": error, "message": message}, status=status)


def make_app(session: Session, desktop: Desktop, tunnels: Tunnels, home: Path) -> web.Application:
    app = web.Application(middlewares=[only_the_hub], client_max_size=BODY_BYTES)
    app[SESSION], app[DESKTOP], app[TUNNELS], app[HOME], app[BEGUN] = session, desktop, tunnels, home, time.monotonic()
    app.add_routes(
        [
            web.post("/v1/session", post_session),
            web.delete("/v1/session", delete_session),
            web.delete("/v1/users/{name}", delete_user),
            web.get("/v1/status", get_status),
        ]
    )
    return app


async def run(settings: Settings, nurse: Nurse) -> None:
    """Listen, and live until told to end."""
    session = Session(nurse, settings.state, settings.home, settings.address, settings.create_account)
    desktop = Desktop(nurse, session, settings.state)
    tunnels = Tunnels(desktop)
    configuration = await _configuration(settings.etc / "agent.json")
    key, certificate = identity.load_or_create(settings.state)
    announce(settings.console, identity.fingerprint(certificate))
    runner = web.AppRunner(make_app(session, desktop, tunnels, settings.home), access_log=None, handle_signals=False)
    await runner.setup()
    http = runner.server
    assert http is not None
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(
        lambda: Door(http, tunnels),
        settings.address,
        configuration["port"],
        ssl=identity.server_context(key, certificate, configuration["hub_ca"], PROTOCOLS),
        ssl_handshake_timeout=HANDSHAKE_SECONDS,
    )
    if not nurse.started:
        nurse.start()
    told_to_end = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, told_to_end.set)
    chores = [asyncio.create_task(nurse.watch()), asyncio.create_task(_trim_logs(session, desktop))]
    await told_to_end.wait()
    for chore in chores:
        chore.cancel()
    listener.close()
    await asyncio.gather(desktop.stop(), session.end())
    nurse.stop()
    await runner.cleanup()


def main(settings: Settings, nurse: Nurse) -> None:
    nursery.adopt_orphans()
    # the system buries our children, adopted ones too; their ends are seen through their pidfd
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    asyncio.run(run(settings, nurse))


def announce(console: str, fingerprint: str) -> None:
    """Say who we are on the serial console, which only the cloud itself can read; on a line of its own."""
    line = f"\nHUTCH-AGENT fingerprint sha256:{fingerprint}\n".encode()
    if console == "-":
        os.write(1, line)
        return
    descriptor = os.open(console, os.O_WRONLY | os.O_APPEND | os.O_NOCTTY | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line)
    finally:
        os.close(descriptor)


async def _configuration(path: Path) -> dict[str, Any]:
    """What cloud-init writes, which may come up after us."""
    while True:
        try:
            return json.loads(path.read_text())  # noqa: ASYNC240 (a few bytes, before anybody is served)
        except FileNotFoundError:
            await asyncio.sleep(0.05)
        except ValueError:
            log.warning("%s is not complete yet", path)
            await asyncio.sleep(0.5)


async def _trim_logs(session: Session, desktop: Desktop) -> None:
    while True:
        await asyncio.sleep(LOG_CHECK_SECONDS)
        session.trim_log()
        desktop.trim_log()
