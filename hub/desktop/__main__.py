"""Starts one relay, `python -m hub.desktop NUMBER`, as JupyterHub's managed service."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

from spawner.agent_client import PORT, AgentClient
from spawner.agent_tls import HubIdentity

from .. import configuration
from ..facility import Facility
from ..service import begin
from ..services import PORTAL_VARIABLE
from .hub_client import HubClient
from .relay import serve
from .service import Guest, Relay


async def main(number: int) -> None:
    ended = asyncio.Event()
    for ending in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(ending, ended.set)
    config = configuration.read()
    facility = Facility.of(config)
    spawner = config.OpenStackSpawner
    identity = HubIdentity(Path(spawner.state_dir) / "agent-tls")
    agents = AgentClient(identity.client_context, spawner.get("agent_port", PORT))
    hub = HubClient()
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
    uvloop.run(main(int(sys.argv[1])))
