"""Starts one relay, `python -m hub.desktop NUMBER`, as JupyterHub's managed service.

JupyterHub looks after its services every half a minute. That is long for people at a desktop, so a relay has a guardian of its
own: this process, which has everything loaded, and forks another relay as soon as one dies.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

import structlog
import uvloop

from spawner.agent_client import PORT, AgentClient
from spawner.agent_tls import HubIdentity

from .. import configuration
from ..facility import Facility
from ..hub_session import hub_session
from ..service import begin, end_with_parent
from ..services import PORTAL_VARIABLE
from .relay import serve
from .service import Guest, Relay

log = structlog.get_logger("desktop")
TIMEOUT_SECONDS = 15
# one that dies sooner than this will do so again
SOON_SECONDS = 5.0
PAUSE_SECONDS = 1.0


def guard(number: int) -> None:
    """Returns when it was told to end."""
    ending = False
    child = 0

    def end(_signal: int, _frame: FrameType | None) -> None:
        nonlocal ending
        ending = True
        if child:
            os.kill(child, signal.SIGTERM)

    for one in (signal.SIGTERM, signal.SIGINT):
        signal.signal(one, end)
    while not ending:
        began, guardian = time.monotonic(), os.getpid()
        child = os.fork()
        if child == 0:
            _be_relay(number, guardian)
        _, status = os.waitpid(child, 0)
        child = 0
        if not ending:
            log.error("a relay has ended and is started again", number=number, status=os.waitstatus_to_exitcode(status))
            time.sleep(PAUSE_SECONDS if time.monotonic() - began < SOON_SECONDS else 0)


def _be_relay(number: int, guardian: int) -> None:
    """Does not return, whatever happens: the guardian's code is not the child's."""
    code = 1
    try:
        for one in (signal.SIGTERM, signal.SIGINT):
            signal.signal(one, signal.SIG_DFL)
        end_with_parent(guardian)
        uvloop.run(carry(number))
        code = 0
    except Exception:
        log.exception("a relay has failed", number=number)
    finally:
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(code)


async def carry(number: int) -> None:
    ended = asyncio.Event()
    for ending in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(ending, ended.set)
    config = configuration.read()
    facility = Facility.of(config)
    spawner = config.OpenStackSpawner
    identity = HubIdentity(Path(spawner.state_dir) / "agent-tls")
    agents = AgentClient(identity.client_context, spawner.get("agent_port", PORT))
    hub = hub_session(TIMEOUT_SECONDS)
    portal = urlsplit(os.environ[PORTAL_VARIABLE])
    origin = f"{portal.scheme}://{portal.netloc}" if portal.netloc else ""
    relay = Relay(facility, number, hub, agents, prefix=os.environ["JUPYTERHUB_SERVICE_PREFIX"], origin=origin)
    await relay.begin()
    where = urlsplit(os.environ["JUPYTERHUB_SERVICE_URL"])
    server = await serve(where.hostname or "127.0.0.1", where.port or 0, lambda connection: Guest(relay, connection))
    work = asyncio.ensure_future(relay.run())
    await ended.wait()
    server.close()
    work.cancel()
    await relay.end()
    await hub.close()


if __name__ == "__main__":
    begin()
    guard(int(sys.argv[1]))
