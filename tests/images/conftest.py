"""A real agent in a process of its own, the hub's client of it, and as much of a hub as a notebook asks for."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from spawner.agent_client import AgentClient, fingerprint_from_console
from spawner.agent_tls import HubIdentity

ROOT = Path(__file__).parents[2]
PREFIX = "/user/ann/first/"
WAIT_SECONDS = 120.0  # a machine full of other tests
FIRST_TOKEN = "token-one"
SCOPE = "access:servers!server=ann/first"


async def wait_until(condition, what: str):
    """Wait for a condition, which may be a coroutine function, and hand back what it found."""
    limit = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < limit:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        await asyncio.sleep(0.02)
    raise AssertionError(f"did not come true in {WAIT_SECONDS:.0f} s: {what}")


@pytest.fixture
def until():
    return wait_until


def own_address() -> str:
    """A loopback address that nobody else's test has, so that a port found free there stays so until it is used."""
    return f"127.{secrets.randbelow(50) + 200}.{secrets.randbelow(256)}.{secrets.randbelow(254) + 1}"


def free_port(address: str) -> int:
    with socket.socket() as probe:
        probe.bind((address, 0))
        return probe.getsockname()[1]


class SmallHub(ThreadingHTTPServer):
    """Answers what a single-user server asks its hub: the version, who a token is, and activity."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), SmallHubHandler)
        self.tokens: set[str] = set()
        # who shows a token, if not the owner
        self.guests: dict[str, str] = {}
        self.activity_tokens: list[str] = []

    def environment(self, token: str) -> dict[str, str]:
        """What JupyterHub hands to a server, as far as it matters here."""
        self.tokens.add(token)
        api = f"http://127.0.0.1:{self.server_port}/hub/api"
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
            "JUPYTERHUB_OAUTH_ACCESS_SCOPES": json.dumps([SCOPE]),
        }


class SmallHubHandler(BaseHTTPRequestHandler):
    server: SmallHub

    def do_GET(self) -> None:
        if self.path.endswith("/user"):
            known, name = self._token() in self.server.tokens, self.server.guests.get(self._token(), "ann")
            self._answer(200 if known else 403, {"name": name, "kind": "user", "groups": [], "scopes": [SCOPE]})
        else:
            self._answer(200, {"version": "6.1.1"})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.activity_tokens.append(self._token())
        self._answer(200, {})

    def _token(self) -> str:
        return self.headers.get("Authorization", "").removeprefix("token ")

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        self.send_response(status)
        self.send_header("X-JupyterHub-Version", "6.1.1")
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="session")
def small_hub():
    with SmallHub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()


@pytest.fixture(scope="session")
def hub_identity(tmp_path_factory) -> HubIdentity:
    return HubIdentity(tmp_path_factory.mktemp("hub") / "agents")


class Guest:
    """One instance's disk, and the agent running on it."""

    def __init__(self, folder: Path, identity: HubIdentity, hub: SmallHub) -> None:
        self.etc, self.state, self.home = (folder / name for name in ("etc", "state", "home"))
        self.console, self.output = folder / "console.log", folder / "agent.log"
        self.etc.mkdir(parents=True)
        self.address = own_address()
        self.port, self.notebook_port = free_port(self.address), free_port(self.address)
        self.authority = identity.hub_ca_pem()
        self.client = AgentClient(identity.client_context, port=self.port)
        self.hub = hub
        self.process: subprocess.Popen[bytes] | None = None
        self.package, self.root = "images.guest", ROOT

    def boot(self) -> Guest:
        self.switch_on()
        self.configure()
        while not self.listens():
            assert self.process and self.process.poll() is None, self.output.read_text()
            time.sleep(0.01)
        return self

    def switch_on(self) -> None:
        self.console.write_text("")
        arguments = ["--etc", self.etc, "--state", self.state, "--home", self.home, "--console", self.console]
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self.package, *map(str, arguments), "--address", self.address, "--account", "current"],
                cwd=self.root,
                stdout=output,
                stderr=output,
            )

    def configure(self) -> None:
        (self.etc / "agent.json").write_text(json.dumps({"hub_ca": self.authority, "port": self.port}))

    def switch_off(self) -> None:
        """As a power cut does it."""
        if self.process:
            self.process.kill()
            self.process.wait()

    def listens(self) -> bool:
        with suppress(OSError), socket.create_connection((self.address, self.port)):
            return True
        return False

    @property
    def fingerprint(self) -> str:
        found = fingerprint_from_console(self.console.read_text())
        assert found, "no fingerprint on the console"
        return found

    def session(self, *, token: str = FIRST_TOKEN, owner: str = "ann", launch: str = "1", **env: str) -> dict[str, Any]:
        environment = {**self.hub.environment(token), **env}
        return {"launch": launch, "owner": owner, "env": environment, "args": [], "port": self.notebook_port}

    async def push(self, session: dict[str, Any]) -> list[dict[str, Any]]:
        return [event async for event in self.client.push(self.address, self.fingerprint, session)]

    async def status(self) -> dict[str, Any]:
        return await self.client.status(self.address, self.fingerprint)

    def processes(self, name: str) -> list[psutil.Process]:
        """Those of this instance that go by a name."""
        assert self.process
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                if process.name() == name and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    @property
    def notebook_process(self) -> psutil.Process | None:
        return next(iter(self.processes("jupyterhub-sing")), None)

    @asynccontextmanager
    async def browser(self, token: str = FIRST_TOKEN):
        """A client of the notebook that shows a token."""
        base = f"http://{self.address}:{self.notebook_port}{PREFIX}"
        async with aiohttp.ClientSession(base, headers={"Authorization": f"token {token}"}) as client:
            yield client


def show(guest: Guest) -> None:
    for log in (guest.output, guest.state / "notebook.log"):
        if log.exists():
            print(f"--- {log.name}\n{log.read_text(errors='replace')[-6000:]}")


@pytest.fixture
def guest(tmp_path, hub_identity, small_hub):
    """A booted instance of one test's own; what it wrote is shown when the test fails."""
    guest = Guest(tmp_path / "instance", hub_identity, small_hub)
    yield guest.boot()
    guest.switch_off()
    show(guest)


@pytest.fixture(scope="module")
def shared_guest(tmp_path_factory, hub_identity, small_hub):
    """A booted instance for tests that leave no trace on each other, with a notebook running."""
    guest = Guest(tmp_path_factory.mktemp("shared") / "instance", hub_identity, small_hub)
    guest.boot()
    asyncio.run(guest.push(guest.session()))
    yield guest
    guest.switch_off()
    show(guest)


class Kernel:
    """A kernel as JupyterLab uses it: REST for its life, a websocket for its work."""

    def __init__(self, client: aiohttp.ClientSession, identifier: str) -> None:
        self.client = client
        self.identifier = identifier

    @classmethod
    async def start(cls, client: aiohttp.ClientSession, name: str = "python3", **body: Any) -> Kernel:
        async with client.post("api/kernels", json={"name": name, **body}) as response:
            assert response.status == 201, await response.text()
            return cls(client, (await response.json())["id"])

    async def act(self, action: str) -> None:
        async with self.client.post(f"api/kernels/{self.identifier}/{action}") as response:
            assert response.status < 300, await response.text()

    async def state(self) -> str | None:
        async with self.client.get(f"api/kernels/{self.identifier}") as response:
            return (await response.json())["execution_state"] if response.status == 200 else None

    async def shut_down(self) -> None:
        async with self.client.delete(f"api/kernels/{self.identifier}") as response:
            assert response.status == 204

    def channels(self):
        """The websocket over which JupyterLab and the kernel talk; a second one of the same session would end the first."""
        return self.client.ws_connect(f"api/kernels/{self.identifier}/channels?session_id={os.urandom(4).hex()}")

    async def debug(self, command: str, **arguments: Any) -> dict[str, Any]:
        """What the kernel's debugger answers."""
        header = {"msg_id": os.urandom(8).hex(), "username": "", "session": "s", "msg_type": "debug_request", "version": "5.3"}
        content = {"type": "request", "seq": 1, "command": command, "arguments": arguments}
        async with self.channels() as channels:
            await channels.send_json(
                {"channel": "control", "header": header, "parent_header": {}, "metadata": {}, "content": content}
            )
            while True:
                message = await channels.receive_json(timeout=WAIT_SECONDS)
                if message["msg_type"] == "debug_reply" and message["parent_header"]["msg_id"] == header["msg_id"]:
                    return message["content"]

    async def run(self, code: str, *, when_begun=None) -> str:
        """What the code printed, or the name of its exception."""
        number = os.urandom(8).hex()
        header = {"msg_id": number, "username": "", "session": "s", "msg_type": "execute_request", "version": "5.3"}
        content = {"code": code, "silent": False, "store_history": True, "user_expressions": {}, "allow_stdin": False}
        printed, replied, idle = "", False, False
        async with self.channels() as channels:
            await channels.send_json(
                {"channel": "shell", "header": header, "parent_header": {}, "metadata": {}, "content": content}
            )
            while not (replied and idle):
                message = await channels.receive_json(timeout=WAIT_SECONDS)
                if message["parent_header"].get("msg_id") != number:
                    continue
                content = message["content"]
                match message["msg_type"]:
                    case "stream":
                        printed += content["text"]
                        if when_begun:
                            await when_begun()
                    case "error":
                        printed += content["ename"]
                    case "execute_reply":
                        replied = True
                    case "status":
                        idle = content["execution_state"] == "idle"
        return printed.strip()


@pytest.fixture
def start_kernel():
    return Kernel.start
