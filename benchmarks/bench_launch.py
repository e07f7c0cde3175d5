"""From the click until JupyterLab answers: a start through the hub's API, then a kernel through the proxy, and one cell in it.

JupyterHub's own SimpleLocalProcessSpawner on the same packages is what the launches of InstanceSpawner are compared with: cold (a
new instance on devcloud, with the real agent in it) and warm (the instance was booted ahead for nobody, and its agent gets the
identity after the click). All take turns. Beside them stand the limits: Jupyter without a hub, and the agent's nursery alone.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import requests
from common import (
    HERE_BIN,
    BenchHub,
    Figure,
    furnished_session,
    instance_config,
    kernel_answers,
    launch_options,
    private_folder,
    report,
    running_hub,
    spread,
    until,
)
from made_servers import make_server
from running_hub import free_port

from hub.database.engine import deployment_id, open_database
from hub.instances import create
from spawner import builders
from spawner.agent_client import AgentClient, fingerprint_from_console
from spawner.agent_tls import HubIdentity
from spawner.cloud import Cloud
from spawner.devcloud.process import DevcloudProcess, running

ROUNDS = 7
USER = "ann"
COLD_LIMIT, WARM_LIMIT = 1.2, 0.3
# what JupyterHub's spawner needs to be told so that it can run here at all
LOCAL = """
c.JupyterHub.spawner_class = "simple"
c.SimpleLocalProcessSpawner.home_dir_template = {home!r} + "/{{username}}"
c.Spawner.cmd = [{program!r}]
c.Spawner.args = ["--allow-root"] if {root} else []
c.Spawner.default_url = "/lab"
"""
QUIET_SECONDS = 0.4
SETTLED_LIMIT_SECONDS = 60


class Bench:
    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.folder = folder
        self.devcloud: DevcloudProcess = stack.enter_context(running(folder / "devcloud"))
        self.devcloud.quota(instances=-1, cores=-1, ram=-1, port=-1)
        self.state = folder / "hutch"
        self.hutch: BenchHub = stack.enter_context(
            running_hub(self.state, instance_config(self.devcloud, self.state, [USER]), [USER])
        )
        program = str(HERE_BIN / "jupyterhub-singleuser")
        local = LOCAL.format(home=str(folder / "homes"), program=program, root=os.getuid() == 0)
        self.local: BenchHub = stack.enter_context(running_hub(folder / "local", local, [USER]))
        self.deployment = deployment_id(open_database(f"sqlite:///{self.state / 'hutch.sqlite'}"))
        self.identity = HubIdentity(self.state / ".hutch" / "agent-tls")
        self.cloud = Cloud("devcloud", self.devcloud.clouds_yaml)

    # --- what is compared

    def with_local(self, name: str) -> tuple[float, float]:
        return self._click(self.local, name, {})

    def with_cold(self, name: str) -> tuple[float, float]:
        return self._click(self.hutch, name, launch_options([USER], USER))

    def with_warm(self, name: str) -> tuple[float, float]:
        asyncio.run(self.boot_ahead(name))
        self.until_nursery_is_ready()
        return self._click(self.hutch, name, launch_options([USER], USER))

    def _click(self, hub: BenchHub, name: str, options: dict) -> tuple[float, float]:
        """Seconds until ready, and until the first cell has run."""
        try:
            ready = hub.launch(USER, options, name)
            return ready, ready + kernel_answers(hub.notebook_url(USER, name), hub.tokens[USER])
        finally:
            hub.end(USER, name)
            self.devcloud.reset()
            self.devcloud.quota(instances=-1, cores=-1, ram=-1, port=-1)

    # --- the limits

    def jupyter_alone(self, name: str) -> tuple[float, float]:
        port, home = free_port(), self.folder / "alone" / name
        home.mkdir(parents=True)
        command = [
            sys.executable,
            "-m",
            "jupyterlab",
            "--no-browser",
            "--allow-root",
            f"--port={port}",
            "--IdentityProvider.token=bench",
        ]
        began = time.perf_counter()
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(command, cwd=home, env={**os.environ, "HOME": str(home)}, stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}/"
            until(lambda: answers(f"{url}api"), "Jupyter answers")
            ready = time.perf_counter() - began
            return ready, ready + kernel_answers(url, "bench")
        finally:
            process.terminate()
            process.wait()

    def nursery_alone(self, name: str) -> tuple[float, float]:
        """The agent forks a notebook; no launch by the hub, no proxy. The hub answers who the token's bearer is."""
        address, fingerprint = asyncio.run(self.boot_ahead(name, waits=True))
        self.until_nursery_is_ready()
        began = time.perf_counter()
        asyncio.run(self._push(address, fingerprint, name))
        ready = time.perf_counter() - began
        try:
            return ready, ready + kernel_answers(f"http://{address}:8888/user/{USER}/{name}/", self.hutch.tokens[USER])
        finally:
            self.devcloud.reset()

    async def _push(self, address: str, fingerprint: str, name: str) -> None:
        prefix, token = f"/user/{USER}/{name}/", self.hutch.tokens[USER]
        environment = {
            "JUPYTERHUB_API_TOKEN": token,
            "JUPYTERHUB_API_URL": f"http://localhost:{self.hutch.port}/hub/api",
            "JUPYTERHUB_BASE_URL": "/",
            "JUPYTERHUB_CLIENT_ID": f"jupyterhub-user-{USER}-{name}",
            "JUPYTERHUB_HOST": "",
            "JUPYTERHUB_OAUTH_ACCESS_SCOPES": f'["access:servers!server={USER}/{name}"]',
            "JUPYTERHUB_OAUTH_CALLBACK_URL": f"{prefix}oauth_callback",
            "JUPYTERHUB_SERVER_NAME": name,
            "JUPYTERHUB_SERVICE_PREFIX": prefix,
            "JUPYTERHUB_USER": USER,
        }
        session = builders.agent_session(name, USER, environment, [], 8888)
        async for _ in AgentClient(self.identity.client_context).push(address, fingerprint, session):
            pass

    # --- instances ahead of need

    async def boot_ahead(self, name: str, waits: bool = False) -> tuple[str, str]:
        """A server with the mark of an instance that nobody has launched yet, as a hub that died half-way leaves it."""
        with furnished_session(self.state) as session:
            instance_id = create(
                session,
                owner_id=f"id-{USER}",
                server_name=name,
                display_name=name,
                plan_id="notebook",
                experiment_ids=[f"EX-{USER}"],
                lifetime=timedelta(days=1),
            ).id
        user_data = builders.user_data(self.identity.hub_ca_pem(), 8765)
        server_id, port = await make_server(self.cloud, self.deployment, instance_id, user_data)
        address = port["fixed_ips"][0]["ip_address"]
        fingerprint = ""
        while not fingerprint:
            await asyncio.sleep(0.05)
            fingerprint = fingerprint_from_console(await self.cloud.console(server_id)) or ""
        return address, fingerprint

    def until_nursery_is_ready(self) -> None:
        """Nothing in the instance uses the processor any more."""

        def quiet() -> bool:
            before = nursery_ticks(self.devcloud.pid)
            time.sleep(QUIET_SECONDS)
            return len(before) == 2 and nursery_ticks(self.devcloud.pid) == before

        until(quiet, "the nursery has imported everything", SETTLED_LIMIT_SECONDS)


def nursery_ticks(devcloud: int) -> dict[int, tuple[str, str]]:
    """The processor time of each process of a nursery below this devcloud."""
    parents, names, ticks = {}, {}, {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            before, _, after = path.read_text().rpartition(")")
        except OSError:
            continue
        pid, fields = int(path.parent.name), after.split()
        parents[pid], names[pid], ticks[pid] = int(fields[1]), before.partition("(")[2], (fields[11], fields[12])

    def below(pid: int) -> bool:
        return pid == devcloud or (pid in parents and below(parents[pid]))

    return {pid: ticks[pid] for pid in names if names[pid] == "hutch-nursery" and below(pid)}


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.ConnectionError:
        return False


def main() -> None:
    with ExitStack() as stack:
        folder = stack.enter_context(private_folder())
        bench = Bench(stack, folder)
        ways: dict[str, Callable[[str], tuple[float, float]]] = {
            "local": bench.with_local,
            "cold": bench.with_cold,
            "warm": bench.with_warm,
            "jupyter alone": bench.jupyter_alone,
            "nursery alone": bench.nursery_alone,
        }
        seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        # the first round fills the disk's cache and is not counted
        for number in range(ROUNDS + 1):
            for way, measure in ways.items():
                ready, cell = measure(f"{way.replace(' ', '-')}-{number}")
                print(f"round {number}, {way}: ready after {ready:.2f} s, first cell after {cell:.2f} s", flush=True)
                if number:
                    seconds[way].append((ready, cell))
        tell(seconds)


def tell(seconds: dict[str, list[tuple[float, float]]]) -> None:
    print(f"seconds from the click, {ROUNDS} rounds (one hub without a domain per user; tokens instead of cookies):")
    for way, values in seconds.items():
        print(f"  {way}: ready {spread([ready for ready, _ in values], 2)}; first cell {spread([cell for _, cell in values], 2)}")
    figures = []
    for way, limit in (("cold", COLD_LIMIT), ("warm", WARM_LIMIT)):
        ratios = [ours[1] / local[1] for ours, local in zip(seconds[way], seconds["local"], strict=True)]
        print(f"  {way} / local: {spread(ratios, 2)}")
        against = "SimpleLocalProcessSpawner with the same packages, same run"
        figures.append(Figure(f"launch-{way}", round(statistics.median(ratios), 3), "ratio", limit, against))
    report(*figures)


if __name__ == "__main__":
    main()
