"""What the benchmarks share: a hub, a cloud and a facility of their own, a kernel as JupyterLab opens it, and one way to report.

Every comparison is made in one run, its sides taking turns, because the machine is shared: ratios and CPU time tell something
there, seconds by themselves little. A figure beyond its limit is said plainly and fails nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import requests
import websocket
from sqlalchemy.orm import Session

ROOT = Path(__file__).parents[1]
HERE_BIN = Path(sys.executable).parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from running_hub import RunningHub  # noqa: E402

from hub.database.engine import open_database, sessions, upgrade  # noqa: E402
from hub.database.tables import Experiment, ExperimentMember, Instrument, Plan, Proposal, User  # noqa: E402
from spawner.devcloud.process import DevcloudProcess  # noqa: E402

SERVER = "films"
ALLOWED_SECONDS = 180
TEAM = 10

# a start is answered when the server is ready: whoever waits for it need not ask the hub meanwhile, which costs the hub CPU
HUB = """
from hub import WalConnection

c.JupyterHub.log_level = "INFO"
c.JupyterHub.db_kwargs = {"connect_args": {"check_same_thread": False, "factory": WalConnection}}
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.JupyterHub.allow_named_servers = True
c.JupyterHub.cleanup_servers = False
c.JupyterHub.concurrent_spawn_limit = 0
c.JupyterHub.tornado_settings = {"slow_spawn_timeout": 170, "slow_stop_timeout": 60}
"""

OPENSTACK = """
c.JupyterHub.spawner_class = "spawner.openstack.OpenStackSpawner"
c.OpenStackSpawner.cloud_name = "devcloud"
c.OpenStackSpawner.clouds_yaml = {clouds_yaml!r}
c.OpenStackSpawner.image = "hutch-notebook"
c.OpenStackSpawner.flavor = "m1.small"
"""

INSTANCE = """
c.JupyterHub.spawner_class = "hub.launching.InstanceSpawner"
c.Hutch.state_dir = {state_dir!r}
c.Hutch.quotas = {{"": {{"instances": -1}}}}
"""

NOTHING = """
import asyncio

from jupyterhub.spawner import Spawner

class NothingSpawner(Spawner):
    async def start(self):
        await asyncio.sleep({seconds})
        return {url!r}

    async def stop(self, now=False):
        pass

    async def poll(self):
        return None

c.JupyterHub.spawner_class = NothingSpawner
"""


# --- what runs


@contextmanager
def private_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="bench-", dir="/tmp"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def running_hub(folder: Path, config: str, users: Sequence[str] = ()) -> Iterator[BenchHub]:
    hub = BenchHub(folder, HUB + config)
    try:
        hub.start()
        hub.add_users(users)
        yield hub
    finally:
        hub.stop()


def nothing_config(stub_url: str, seconds: float = 0) -> str:
    """seconds: what a start waits for."""
    return NOTHING.format(url=stub_url, seconds=seconds)


def openstack_config(devcloud: DevcloudProcess) -> str:
    return OPENSTACK.format(clouds_yaml=str(devcloud.clouds_yaml))


def instance_config(devcloud: DevcloudProcess, folder: Path, users: Sequence[str]) -> str:
    """OpenStackSpawner under the facility's rules, with the records that these need."""
    furnish(folder, users)
    return openstack_config(devcloud) + INSTANCE.format(state_dir=str(folder))


def furnish(folder: Path, users: Sequence[str]) -> None:
    """A facility with one plan, and an experiment for every ten people."""
    upgrade(open_database(f"sqlite:///{folder / 'hutch.sqlite'}"))
    with furnished_session(folder) as session:
        session.add_all([Instrument(id="ID16", name="ID16"), Proposal(id="P-1", title="Films")])
        plan = Plan(id="notebook", name="Notebook", image="hutch-notebook", flavor="m1.small", cores=2, memory_mb=4096)
        teams = [users[start : start + TEAM] for start in range(0, len(users), TEAM)]
        visits = [Experiment(id=f"EX-{team[0]}", proposal_id="P-1", instrument_id="ID16") for team in teams]
        people = [User(id=f"id-{name}", login=name, given_name=name, family_name="Bench") for name in users]
        session.add_all([plan, *visits, *people])
        session.flush()
        session.add_all(ExperimentMember(experiment_id=f"EX-{team[0]}", user_id=f"id-{name}") for team in teams for name in team)


@contextmanager
def furnished_session(folder: Path) -> Iterator[Session]:
    engine = open_database(f"sqlite:///{folder / 'hutch.sqlite'}")
    with sessions(engine).begin() as session:
        yield session
    engine.dispose()


def launch_options(users: Sequence[str], user: str) -> dict[str, Any]:
    """The plan and the experiment that `furnish` has made for somebody."""
    return {"plan": "notebook", "experiments": [f"EX-{users[users.index(user) // TEAM * TEAM]}"]}


class BenchHub(RunningHub):
    """A hub whose users have tokens, and whose CPU time can be read."""

    tokens: dict[str, str]

    def add_users(self, names: Sequence[str]) -> None:
        for name in names:
            self.add_user(name)
        self.tokens = {name: self.token_of(name) for name in names}

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    def cpu_seconds(self) -> float:
        return cpu_seconds(self.pid)

    def launch(self, user: str, options: dict[str, Any], name: str = SERVER) -> float:
        """Starts a server as its user; the seconds until JupyterHub calls it ready."""
        began = time.perf_counter()
        answer = self._as_user("POST", user, name, json=options)
        if answer.status_code != 201:
            raise RuntimeError(f"start of {user}/{name}: {answer.status_code} {answer.text}\n{self.log()[-3000:]}")
        return time.perf_counter() - began

    def end(self, user: str, name: str = SERVER) -> None:
        answer = self._as_user("DELETE", user, name)
        if answer.status_code != 204:
            raise RuntimeError(f"stop of {user}/{name}: {answer.status_code} {answer.text}")

    def _as_user(self, method: str, user: str, name: str, **body: Any) -> requests.Response:
        headers = {"Authorization": f"token {self.tokens[user]}"}
        url = f"http://localhost:{self.port}/hub/api/users/{user}/servers/{name}"
        return requests.request(method, url, headers=headers, timeout=ALLOWED_SECONDS, **body)

    def notebook_url(self, user: str, name: str = SERVER) -> str:
        """Through the proxy, as a browser goes; without a domain per user, which would change nothing that is measured."""
        return f"http://localhost:{self.port}/user/{user}/{name}/"


class _Stub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        body = b'{"version": "stub"}'
        self.send_response(200)
        for name, value in (
            ("X-JupyterHub-Version", "6.1.1"),
            ("Content-Type", "application/json"),
            ("Content-Length", str(len(body))),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        pass


@contextmanager
def stub_notebook() -> Iterator[str]:
    """What a spawner that does nothing points to."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Stub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


# --- what is measured


def cpu_seconds(pid: int) -> float:
    """User and system time of a process with all its threads, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def kernel_answers(url: str, token: str) -> float:
    """Opens a kernel as JupyterLab does, runs one cell, and returns the seconds that took."""
    began = time.perf_counter()
    headers = {"Authorization": f"token {token}"}
    answer = requests.post(f"{url}api/kernels", headers=headers, json={"name": "python3"}, timeout=ALLOWED_SECONDS)
    answer.raise_for_status()
    channels = f"{url.replace('http', 'ws', 1)}api/kernels/{answer.json()['id']}/channels?session_id={uuid.uuid4().hex}"
    connection = websocket.create_connection(channels, header=headers, timeout=ALLOWED_SECONDS)
    try:
        _run_cell(connection)
    finally:
        connection.close()
    return time.perf_counter() - began


def _run_cell(connection: websocket.WebSocket) -> None:
    header = {
        "msg_id": uuid.uuid4().hex,
        "msg_type": "execute_request",
        "session": uuid.uuid4().hex,
        "username": "",
        "version": "5.3",
    }
    message = {"channel": "shell", "header": header, "parent_header": {}, "metadata": {}, "content": {"code": "1+1"}, "buffers": []}
    connection.send(json.dumps(message))
    # the result comes by another channel than the reply, and in any order
    result, replied = "", False
    while not (result and replied):
        answer = json.loads(connection.recv())
        if answer["parent_header"].get("msg_id") == header["msg_id"]:
            replied = replied or answer["msg_type"] == "execute_reply"
            if answer["msg_type"] == "execute_result":
                result = answer["content"]["data"]["text/plain"]
    assert result == "2", f"the kernel says that 1+1 is {result!r}"


def at_once(work: Callable[[str], Any], over: Sequence[str], width: int) -> list[Any]:
    with ThreadPoolExecutor(width) as pool:
        return list(pool.map(work, over))


def until(condition: Callable[[], Any], what: str, within_seconds: float = 60, pause_seconds: float = 0.01) -> Any:
    deadline = time.monotonic() + within_seconds
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {within_seconds} s in vain until {what}")
        time.sleep(pause_seconds)
    return answer


# --- what is said


@dataclass(frozen=True, slots=True)
class Figure:
    """limit None: nothing is demanded of it. against: what it is compared with, in a few words."""

    name: str
    value: float
    unit: str
    limit: float | None
    against: str


def spread(values: Sequence[float], digits: int = 3) -> str:
    middle = f"{statistics.median(values):.{digits}f}"
    return f"median {middle}, {min(values):.{digits}f} to {max(values):.{digits}f}, n={len(values)}"


def report(*figures: Figure) -> None:
    """For people first; then one line of JSON per figure, and nothing after."""
    for figure in figures:
        if figure.limit is not None:
            verdict = "MISSED" if figure.value > figure.limit else "met"
            print(f"{verdict}: {figure.name} {figure.value:g} {figure.unit}, allowed {figure.limit:g}")
    with suppress(OSError):
        load = os.getloadavg()[0]
        print(f"(load of the machine at the end: {load:.1f} on {os.cpu_count()} processors)")
    for figure in figures:
        print(json.dumps(asdict(figure)), flush=True)
