"""A real JupyterHub as a process of its own, and one server of a user on it."""

from __future__ import annotations

import json
import os
import random
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import requests

from .driver import Driver

T = TypeVar("T")

CONFIG = """
from pytest_spawner_contract import inside
c = get_config()  # noqa
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.JupyterHub.hub_port = {port}
c.JupyterHub.proxy_class = inside.NoProxy
c.JupyterHub.extra_handlers = inside.HANDLERS
c.JupyterHub.allow_named_servers = True
c.JupyterHub.cleanup_servers = False
c.JupyterHub.log_level = "DEBUG"
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 0.1, "slow_stop_timeout": 0.1}}
c.JupyterHub.services = [{{"name": "suite", "api_token": {token!r}}}]
c.JupyterHub.load_roles = [{{"name": "suite", "services": ["suite"], "scopes": ["admin:users", "admin:servers", "tokens"]}}]
c.JupyterHub.spawner_class = {spawner_class!r}
c.Spawner.http_timeout = 8
c.Spawner.poll_interval = 1
c.Spawner.apply_user_options = inside.apply_user_options
"""


def until(condition: Callable[[], T], what: str, within_seconds: float = 100) -> T:
    """Asks again and again until the answer is true, and returns it."""
    deadline = time.monotonic() + within_seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"waited {within_seconds} s in vain until {what}"
        time.sleep(0.05)
    return answer


def free_port() -> int:
    """Below those that the system gives to connections: one of these would take it before the hub does."""
    while True:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port := random.randrange(10000, 32768)))  # noqa: S311
            return port


class Hub:
    def __init__(self, folder: Path, driver: Driver) -> None:
        self.folder, self.port, self.token = folder, free_port(), secrets.token_hex()
        self.process: subprocess.Popen[bytes] | None = None
        config = CONFIG.format(port=self.port, token=self.token, spawner_class=driver.spawner_class)
        (folder / "jupyterhub_config.py").write_text(config + driver.config)

    def start(self) -> None:
        path = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])
        with (self.folder / "hub.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jupyterhub", "--config", "jupyterhub_config.py"],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": path},
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        until(self._answers, "the hub answers")

    def _answers(self) -> bool:
        assert self.is_up(), f"the hub ended by itself:\n{self.log()[-3000:]}"
        try:
            return self.api("GET", "").status_code == 200
        except requests.ConnectionError:
            return False

    def is_up(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def kill(self) -> None:
        """As a crash: nothing is tidied up."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        if self.process:
            self.process.send_signal(number)
            self.process.wait(60)

    def log(self) -> str:
        return (self.folder / "hub.log").read_text(errors="replace")

    def api(self, method: str, path: str, **body: Any) -> requests.Response:
        headers = {"Authorization": f"token {self.token}"}
        return requests.request(method, f"http://127.0.0.1:{self.port}/hub/api/{path}", headers=headers, timeout=60, **body)


class Server:
    """A server of a user whom nobody else uses, and the things that have come into being since."""

    def __init__(self, hub: Hub, driver: Driver, user: str, name: str = "films") -> None:
        self.hub, self.driver, self.user, self.name = hub, driver, user, name
        self._before = set(driver.things())
        self.path = f"users/{user}/servers/{name}"
        hub.api("PUT", self.path, json={}).raise_for_status()

    def start(self, options: dict[str, Any] | None = None) -> None:
        options = {"start_timeout": 60} | self.driver.options() | (options or {})
        answer = self.hub.api("POST", self.path, json={"user_options": options})
        assert answer.status_code in (201, 202) or self.pending() or options.get("cmd"), answer.text

    def started(self) -> str:
        """Starts it, and returns the thing behind it."""
        self.start()
        self.until_ready()
        return self.one_thing()

    def stop(self, **body: Any) -> None:
        answer = self.hub.api("DELETE", self.path, json=body)
        assert answer.status_code in (202, 204), answer.text

    def stopped(self) -> None:
        self.stop()
        self.until_idle()

    def model(self) -> dict[str, Any]:
        return self.hub.api("GET", f"users/{self.user}").json().get("servers", {}).get(self.name, {})

    def ready(self) -> bool:
        return bool(self.model().get("ready"))

    def pending(self) -> str | None:
        return self.model().get("pending")

    def until_ready(self) -> None:
        until(self.ready, f"{self.user}/{self.name} is ready")

    def until_settled(self) -> None:
        until(lambda: not self.pending(), f"{self.user}/{self.name} is no longer pending")

    def until_idle(self) -> None:
        until(lambda: not self.ready() and not self.pending(), f"{self.user}/{self.name} is idle")

    def ask(self, what: str) -> Any:
        """What this method of the spawner returns, asked in the hub; it must not raise."""
        url = f"http://127.0.0.1:{self.hub.port}/hub/contract/{self.user}/{self.name}/{what}"
        answer = requests.get(url, headers={"Authorization": f"token {self.hub.token}"}, timeout=60).json()
        assert "raised" not in answer, f"{what} raised {answer['raised']}"
        return answer["result"]

    def answers(self) -> bool:
        """As the hub itself asks a server."""
        try:
            return requests.get(self.ask("url") + "api", timeout=10).status_code < 500
        except requests.ConnectionError:
            return False

    def progress(self) -> list[dict[str, Any]]:
        """The events of a start until it ends, as a page gets them."""
        url, events = f"http://127.0.0.1:{self.hub.port}/hub/api/{self.path}/progress", []
        with requests.get(url, headers={"Authorization": f"token {self.hub.token}"}, stream=True, timeout=60) as answer:
            for line in answer.iter_lines():
                if line.startswith(b"data: "):
                    events.append(json.loads(line.removeprefix(b"data: ")))
        return events

    def things(self) -> list[str]:
        return [thing for thing in self.driver.things() if thing not in self._before]

    def running(self) -> list[str]:
        return [thing for thing, runs in self.driver.things().items() if runs and thing not in self._before]

    def one_thing(self) -> str:
        things = self.things()
        assert len(things) == 1, f"one thing is expected behind {self.user}/{self.name}, there are {things}"
        return things[0]

    def until_true_to_the_hub(self) -> None:
        """The hub serves it if and only if it runs."""
        until(lambda: not self.pending() and self.ready() == bool(self.running()), "what the hub says is so")
