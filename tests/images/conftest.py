"""A real agent in a process of its own, the hub's client of it, and as much of a hub as a notebook asks for."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from spawner.agent_client import AgentClient, fingerprint_from_console
from spawner.agent_tls import HubIdentity

ROOT = Path(__file__).parents[2]
PREFIX = "/user/ann/first/"
WAIT_SECONDS = 60.0


async def until(condition, what: str, limit_seconds: float = WAIT_SECONDS):
    """Wait for a condition, which may be a coroutine function, and hand back what it found."""
    loop = asyncio.get_running_loop()
    limit = loop.time() + limit_seconds
    while loop.time() < limit:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        await asyncio.sleep(0.02)
    raise AssertionError(f"did not come true in {limit_seconds} s: {what}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class SmallHub:
    """Answers what a single-user server asks its hub: the version, who a token is, and activity."""

    port: int
    tokens: set[str] = field(default_factory=set)
    activity_tokens: list[str] = field(default_factory=list)

    async def version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": "6.1.1"}, headers={"X-JupyterHub-Version": "6.1.1"})

    async def user(self, request: web.Request) -> web.Response:
        if request.headers.get("Authorization", "").removeprefix("token ") not in self.tokens:
            return web.json_response({"status": 403}, status=403)
        return web.json_response({"name": "ann", "kind": "user", "groups": [], "scopes": ["access:servers!server=ann/first"]})

    async def activity(self, request: web.Request) -> web.Response:
        self.activity_tokens.append(request.headers["Authorization"].removeprefix("token "))
        return web.json_response({})

    def environment(self, token: str) -> dict[str, str]:
        """What JupyterHub hands to a server, as far as it matters here."""
        self.tokens.add(token)
        api = f"http://127.0.0.1:{self.port}/hub/api"
        return {
            "JUPYTERHUB_API_TOKEN": token,
            "JUPYTERHUB_API_URL": api,
            "JUPYTERHUB_ACTIVITY_URL": f"{api}/users/ann/activity",
            "JUPYTERHUB_CLIENT_ID": "jupyterhub-user-ann-first",
            "JUPYTERHUB_USER": "ann",
            "JUPYTERHUB_SERVER_NAME": "first",
            "JUPYTERHUB_BASE_URL": "/",
            "JUPYTERHUB_SERVICE_PREFIX": PREFIX,
            "JUPYTERHUB_OAUTH_CALLBACK_URL": f"{PREFIX}oauth_callback",
            "JUPYTERHUB_OAUTH_ACCESS_SCOPES": json.dumps(["access:servers!server=ann/first"]),
        }


@pytest.fixture
async def small_hub():
    hub = SmallHub(free_port())
    app = web.Application()
    app.add_routes(
        [
            web.get("/hub/api", hub.version),
            web.get("/hub/api/user", hub.user),
            web.post("/hub/api/users/ann/activity", hub.activity),
        ]
    )
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", hub.port).start()
    yield hub
    await runner.cleanup()


@pytest.fixture(scope="session")
def hub_identity(tmp_path_factory) -> HubIdentity:
    return HubIdentity(tmp_path_factory.mktemp("hub") / "agents")


class Guest:
    """One instance's disk, and the agent running on it."""

    def __init__(self, folder: Path, identity: HubIdentity) -> None:
        self.folder = folder
        self.etc, self.state, self.home, self.console = (folder / name for name in ("etc", "state", "home", "console.log"))
        self.etc.mkdir(parents=True)
        self.port, self.notebook_port = free_port(), free_port()
        self.authority = identity.hub_ca_pem()
        self.client = AgentClient(identity.client_context, port=self.port)
        self.process: asyncio.subprocess.Process | None = None
        self.output = folder / "agent.log"

    def configure(self) -> None:
        (self.etc / "agent.json").write_text(json.dumps({"hub_ca": self.authority, "port": self.port}))

    async def boot(self) -> None:
        self.configure()
        self.console.write_text("")
        await self.start_process()
        await self.client.wait_listening("127.0.0.1", self.port, asyncio.get_running_loop().time() + WAIT_SECONDS)

    async def start_process(self) -> None:
        arguments = ["--etc", self.etc, "--state", self.state, "--home", self.home, "--console", self.console]
        with self.output.open("ab") as output:
            self.process = await asyncio.create_subprocess_exec(
                *[sys.executable, "-m", "images.guest", *map(str, arguments), "--address", "127.0.0.1", "--account", "current"],
                cwd=ROOT,
                stdout=output,
                stderr=output,
            )

    async def switch_off(self) -> None:
        if self.process and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    @property
    def fingerprint(self) -> str:
        found = fingerprint_from_console(self.console.read_text())
        assert found, "no fingerprint on the console"
        return found

    async def push(self, session: dict[str, Any]) -> list[dict[str, Any]]:
        return [event async for event in self.client.push("127.0.0.1", self.fingerprint, session)]

    async def status(self) -> dict[str, Any]:
        return await self.client.status("127.0.0.1", self.fingerprint)

    def session(self, hub: SmallHub, *, token: str = "token-one", owner: str = "ann", launch: str = "1") -> dict[str, Any]:
        return {
            "launch": launch,
            "owner": owner,
            "env": hub.environment(token),
            "args": [],
            "port": self.notebook_port,
        }

    @property
    def notebook_url(self) -> str:
        return f"http://127.0.0.1:{self.notebook_port}{PREFIX}"


@asynccontextmanager
async def running(guest: Guest):
    try:
        await guest.boot()
        yield guest
    finally:
        await guest.switch_off()


@pytest.fixture
async def guest(tmp_path, hub_identity, request):
    """A booted instance; what it wrote is shown when the test fails."""
    async with running(Guest(tmp_path / "instance", hub_identity)) as guest:
        yield guest
        for log in (guest.output, guest.state / "notebook.log"):
            if log.exists():
                print(f"--- {log.name}\n{log.read_text(errors='replace')[-6000:]}")
