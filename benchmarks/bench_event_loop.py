"""Gaps of the hub's event loop while 50 launches run and each call to the cloud takes a second longer.

A task in the hub itself asks every 5 ms to be woken, and notes by how much later it was. People click one after another, some each
second, so that dozens of launches run at a time; then all 50 at the same moment, which JupyterHub itself takes in one go. A hub
whose spawner does nothing, and each hub while it is idle, stand beside it: what they show is JupyterHub's and the machine's. The
cloud is devcloud with its stub payload.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from common import (
    BenchHub,
    Figure,
    at_once,
    instance_config,
    launch_options,
    nothing_config,
    openstack_config,
    private_folder,
    report,
    running_hub,
    stub_notebook,
    until,
)

from spawner.devcloud.process import DevcloudProcess, running

LAUNCHES = 50
LATENCY_SECONDS = 1.0
CLICK_SECONDS = 0.15
IDLE_SECONDS = 8.0
LIMIT_MS = 75.0
EVERY_SECONDS = 0.005
NOTHING, OPENSTACK, INSTANCE = "a spawner that does nothing", "OpenStackSpawner", "InstanceSpawner"
USERS = [f"u{number}" for number in range(2 * LAUNCHES + 1)]
# the configuration is read inside the hub's running loop
SAMPLER = f"""
import asyncio, json, pathlib

async def sample_gaps(folder):
    loop, gaps = asyncio.get_running_loop(), []
    while True:
        before = loop.time()
        await asyncio.sleep({EVERY_SECONDS})
        gaps.append(loop.time() - before - {EVERY_SECONDS})
        if (folder / "begin").exists():
            (folder / "begin").unlink()
            gaps.clear()
        if (folder / "end").exists():
            (folder / "end").unlink()
            (folder / "gaps.part").write_text(json.dumps(gaps))
            (folder / "gaps.part").rename(folder / "gaps.json")

asyncio.get_running_loop().create_task(sample_gaps(pathlib.Path.cwd()))
"""


def main() -> None:
    figures = []
    print("stub payload: devcloud answers in place of agent and notebook")
    with ExitStack() as stack:
        folder = stack.enter_context(private_folder())
        clouds = [stack.enter_context(running(folder / f"devcloud-{number}", payload="stub")) for number in range(2)]
        configs = {
            NOTHING: nothing_config(stack.enter_context(stub_notebook())),
            OPENSTACK: openstack_config(clouds[0]),
            INSTANCE: instance_config(clouds[1], folder / INSTANCE, USERS),
        }
        for name, config in configs.items():
            with running_hub(folder / name, config + SAMPLER, USERS) as hub:
                found = watch(name, hub, clouds)
            if name != NOTHING:
                figures += [Figure(f"event-loop-gap-p99 {name} {how}", p99, "ms", LIMIT_MS, AGAINST) for how, p99 in found.items()]
    report(*figures)


AGAINST = f"wakings every 5 ms, {LAUNCHES} launches, {LATENCY_SECONDS:g} s per call (stub payload)"


def watch(name: str, hub: BenchHub, clouds: list[DevcloudProcess]) -> dict[str, float]:
    def launch(user: str) -> float:
        return hub.launch(user, launch_options(USERS, user) if name == INSTANCE else {})

    launch(USERS[-1])
    tell(f"{name}, idle", gaps_ms(hub, lambda: time.sleep(IDLE_SECONDS)))
    for cloud in clouds:
        cloud.quota(instances=-1, cores=-1, ram=-1, port=-1)
        cloud.latency(LATENCY_SECONDS)
    clicked = gaps_ms(hub, partial(one_after_another, launch, USERS[:LAUNCHES]))
    burst = gaps_ms(hub, partial(at_once, launch, USERS[LAUNCHES:-1], LAUNCHES))
    for cloud in clouds:
        cloud.latency(0)
    every = f"one every {CLICK_SECONDS:g} s"
    return {every: tell(f"{name}, {LAUNCHES} launches, {every}", clicked), "at once": tell(f"{name}, {LAUNCHES} at once", burst)}


def one_after_another(launch: Callable[[str], Any], users: list[str]) -> None:
    with ThreadPoolExecutor(len(users)) as pool:
        for user in users:
            pool.submit(launch, user)
            time.sleep(CLICK_SECONDS)


def gaps_ms(hub: BenchHub, during: Callable[[], Any]) -> list[float]:
    order(hub.folder / "begin")
    began = time.perf_counter()
    during()
    print(f"  (took {time.perf_counter() - began:.1f} s)")
    (hub.folder / "end").touch()
    path = hub.folder / "gaps.json"
    until(path.exists, "the gaps are written down")
    gaps = json.loads(path.read_text())
    path.unlink()
    return sorted(1000 * gap for gap in gaps)


def order(file: Path) -> None:
    file.touch()
    until(lambda: not file.exists(), "the hub has seen it")


def tell(what: str, gaps: list[float]) -> float:
    """p99 by waking; beside it by time, which counts a gap as often as somebody could have come in it."""
    p50, p99 = gaps[len(gaps) // 2], gaps[int(0.99 * len(gaps))]
    by_time, passed, total = 0.0, 0.0, sum(gaps) + len(gaps) * 1000 * EVERY_SECONDS
    for gap in gaps:
        passed += gap + 1000 * EVERY_SECONDS
        if passed <= 0.99 * total:
            by_time = gap
    words = f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {gaps[-1]:.1f} ms; p99 of the time {by_time:.1f} ms"
    print(f"{what}, {len(gaps)} gaps: {words}", flush=True)
    return round(p99, 1)


if __name__ == "__main__":
    main()
