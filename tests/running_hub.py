"""A real JupyterHub with its proxy, as processes, on ports and in a folder of its own."""

from __future__ import annotations

import itertools
import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import requests

T = TypeVar("T")
REPOSITORY = Path(__file__).parent.parent
# for whatever is waited for: a failure is told later, and what works on a busy machine passes
PATIENCE_SECONDS = 100

# an administrator for the tests, as a service with a token
PREAMBLE = """
c = get_config()  # noqa
c.JupyterHub.bind_url = "http://localhost:{port}"
c.JupyterHub.hub_port = {hub_port}
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{proxy_port}"
c.ConfigurableHTTPProxy.command = [{proxy!r}]
c.JupyterHub.services = [{{"name": "tests", "api_token": {token!r}}}]
c.JupyterHub.load_roles = [{{"name": "tests", "services": ["tests"], "scopes": [
    "admin:users", "admin:servers", "access:servers", "shares", "tokens", "admin:groups", "read:metrics", "proxy"]}}]
c.JupyterHub.log_level = "DEBUG"
"""


# below those that the system gives to connections: one of these would take a port before its server does
PORTS, PORTS_AT_ONCE = range(10240, 32768), 256


@cache
def _own_ports() -> tuple[socket.socket, Iterator[int]]:
    """A block of ports for this process alone: whoever listens at its first one has it."""
    for first in random.sample(PORTS[::PORTS_AT_ONCE], len(PORTS) // PORTS_AT_ONCE):
        holder = socket.socket()
        try:
            holder.bind(("127.0.0.1", first))
            holder.listen()
        except OSError:
            holder.close()
        else:
            return holder, itertools.cycle(range(first + 1, first + PORTS_AT_ONCE))
    raise AssertionError("no block of ports is free")


def free_port() -> int:
    """One that nothing else takes until it has come round again."""
    for port in _own_ports()[1]:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("0.0.0.0", port))  # noqa: S104
            return port
    raise AssertionError("unreachable")


def until(condition: Callable[[], T], what: str, within_seconds: float = PATIENCE_SECONDS) -> T:
    """Asks again and again until the answer is true, and returns it; a machine may be as busy as it likes."""
    deadline = time.monotonic() + max(within_seconds, PATIENCE_SECONDS)
    while time.monotonic() < deadline:
        if answer := condition():
            return answer
        time.sleep(0.05)
    raise AssertionError(f"waited {within_seconds} s in vain until {what}")


class RunningHub:
    """Starts at once; `config` is the text of a jupyterhub_config.py that follows the preamble."""

    def __init__(self, folder: Path, config: str) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.port, self.token = free_port(), secrets.token_hex()
        self.config_file, self.log_file = folder / "jupyterhub_config.py", folder / "hub.log"
        proxy = str(REPOSITORY / "node_modules/.bin/configurable-http-proxy")
        preamble = PREAMBLE.format(port=self.port, hub_port=free_port(), proxy_port=free_port(), proxy=proxy, token=self.token)
        self.config_file.write_text(preamble + config)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {**os.environ, "HUTCH_CONFIG": str(self.config_file), "PYTHONPATH": f"{REPOSITORY}:{REPOSITORY / 'tests'}"}
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyterhub", "--config", str(self.config_file)],
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        until(self._answers, f"the hub answers; see {self.log_file}", PATIENCE_SECONDS)

    def _answers(self) -> bool:
        assert self.process and self.process.poll() is None, f"the hub ended by itself:\n{self.log_end()}"
        try:
            return requests.get(f"http://localhost:{self.port}/hub/api/", timeout=5).status_code == 200
        except requests.ConnectionError:
            return False

    def is_up(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """As a crash would: nothing is tidied up. The proxy, which the hub would find again, goes too."""
        assert self.process
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._kill_proxy()

    def stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                self.kill()
        self._kill_proxy()

    def _kill_proxy(self) -> None:
        for pid_file in self.folder.rglob("*proxy.pid"):
            with suppress(ProcessLookupError, ValueError):
                os.kill(int(pid_file.read_text().splitlines()[0]), signal.SIGKILL)

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def log_end(self) -> str:
        """The last lines, without the proxy's and without what is only for debugging."""
        lines = [
            line
            for line in self.log().splitlines()
            if line[:1] in "[T " and not line.startswith("[D") and "ConfigProxy" not in line
        ]
        return "\n".join(lines[-40:])

    # --- its REST API

    def api(self, method: str, path: str, token: str = "", **body: Any) -> requests.Response:
        headers = {"Authorization": f"token {token or self.token}"}
        return requests.request(method, f"http://localhost:{self.port}/hub/api/{path}", headers=headers, timeout=60, **body)

    def add_user(self, name: str) -> None:
        self.api("POST", f"users/{name}").raise_for_status()

    def token_of(self, name: str) -> str:
        answer = self.api("POST", f"users/{name}/tokens", json={})
        answer.raise_for_status()
        return answer.json()["token"]

    def server(self, user: str, name: str) -> dict[str, Any]:
        """JupyterHub's model of a server; {} when it neither runs, starts nor stops."""
        return self.api("GET", f"users/{user}").json().get("servers", {}).get(name, {})

    def until_ready(self, user: str, name: str, within_seconds: float = PATIENCE_SECONDS) -> dict[str, Any]:
        return until(lambda: (model := self.server(user, name)).get("ready") and model, f"{user}/{name} is ready", within_seconds)

    def until_idle(self, user: str, name: str, within_seconds: float = PATIENCE_SECONDS) -> None:
        """Neither ready nor starting nor stopping."""

        def idle() -> bool:
            model = self.server(user, name)
            return not model.get("ready") and not model.get("pending")

        until(idle, f"{user}/{name} is idle", within_seconds)

    def progress(self, user: str, name: str, token: str = "") -> list[dict[str, Any]]:
        """The events of a launch until it ends."""
        events = []
        with self.api("GET", f"users/{user}/servers/{name}/progress", token, stream=True) as answer:
            for line in answer.iter_lines():
                if line.startswith(b"data: "):
                    events.append(json.loads(line.removeprefix(b"data: ")))
                    if events[-1].get("ready") or events[-1].get("failed"):
                        break
        return events
