"""A hub that was killed starts again: with 200 instances that run on, and in turn with none.

All must be adopted with one listing, none lost and none stopped. The cloud is devcloud with its stub payload.
"""

from __future__ import annotations

import statistics
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass

from common import (
    BenchHub,
    Figure,
    at_once,
    instance_config,
    launch_options,
    private_folder,
    report,
    running_hub,
    spread,
    until,
)

from spawner.devcloud.process import DevcloudProcess, running

INSTANCES = 200
ROUNDS = 3
LISTING = "GET /compute/v2.1/servers/detail"
# credentials and the version of the API, once for each process
ONCE = {"GET /identity/v3", "POST /identity/v3/auth/tokens", "GET /compute/v2.1"}
RUNNING = "JupyterHub is now running"
USERS = [f"u{number}" for number in range(INSTANCES)]


@dataclass(frozen=True, slots=True)
class Restart:
    """listings and others: calls to the cloud until every server was ready."""

    running_seconds: float
    ready_seconds: float
    cpu_seconds: float
    listings: int
    others: dict[str, int]


def main() -> None:
    print("stub payload: devcloud answers in place of agent and notebook")
    full, empty, harmed = [], [], 0
    with ExitStack() as stack:
        folder = stack.enter_context(private_folder())
        clouds = [stack.enter_context(running(folder / f"devcloud-{number}", payload="stub")) for number in range(2)]
        clouds[0].quota(instances=-1, cores=-1, ram=-1, port=-1)
        configs = [instance_config(cloud, folder / f"hub-{number}", USERS) for number, cloud in enumerate(clouds)]
        hubs = [stack.enter_context(running_hub(folder / f"hub-{number}", config, USERS)) for number, config in enumerate(configs)]
        at_once(lambda user: hubs[0].launch(user, launch_options(USERS, user)), USERS, 10)
        known = states(clouds[0])
        print(f"{len(known)} servers run")
        for number in range(ROUNDS):
            full.append(restart(hubs[0], clouds[0], INSTANCES))
            empty.append(restart(hubs[1], clouds[1], 0))
            now = states(clouds[0])
            harmed = max(harmed, sum(now.get(server) != "ACTIVE" for server in known) + len(now.keys() - known.keys()))
            print(f"round {number + 1}: {INSTANCES} instances {full[-1]}\n         none {empty[-1]}", flush=True)
    tell(full, empty, harmed)


def tell(full: list[Restart], empty: list[Restart], harmed: int) -> None:
    for words, restarts in ((f"{INSTANCES} instances", full), ("none", empty)):
        print(
            f"{words}: running after {spread([one.running_seconds for one in restarts], 1)} s; "
            f"all ready after {spread([one.ready_seconds for one in restarts], 1)} s; "
            f"CPU until then {spread([one.cpu_seconds for one in restarts], 1)} s"
        )
    longer = statistics.median(ours.ready_seconds / nothing.ready_seconds for ours, nothing in zip(full, empty, strict=True))
    others = max(sum(one.others.values()) for one in full)
    words = f"of {INSTANCES} servers, hub killed {ROUNDS} times (stub payload)"
    until_ready = f"until all {INSTANCES} were ready (stub payload)"
    report(
        Figure("restart-lost", harmed, "servers lost, stopped or doubled", 0, words),
        Figure(
            "restart-listings", max(one.listings for one in full), "listings", 1, f"until all {INSTANCES} were ready (stub payload)"
        ),
        Figure("restart-other-calls", others, "calls", 0, f"beyond listing and credentials, {until_ready}"),
        Figure("restart-seconds", round(longer, 2), "ratio", None, "an empty hub's restart, same run (stub payload)"),
    )


def restart(hub: BenchHub, cloud: DevcloudProcess, expected: int) -> Restart:
    hub.kill()
    cloud.clear_calls()
    told = hub.log().count(RUNNING)
    began = time.perf_counter()
    hub.start()
    until(lambda: hub.log().count(RUNNING) > told, "JupyterHub runs", pause_seconds=0.02)
    is_running = time.perf_counter() - began
    until(lambda: ready(hub) == expected, "all are ready again", 120, pause_seconds=0.1)
    seen = Counter(cloud.calls()["counts"])
    others = {call: number for call, number in seen.items() if call != LISTING and call not in ONCE}
    return Restart(round(is_running, 2), round(time.perf_counter() - began, 2), hub.cpu_seconds(), seen[LISTING], others)


def ready(hub: BenchHub) -> int:
    answer = hub.api("GET", f"users?state=ready&limit={INSTANCES}")
    answer.raise_for_status()
    return len(answer.json())


def states(cloud: DevcloudProcess) -> dict[str, str]:
    with cloud.connect() as connection:
        servers = connection.compute.get("/servers/detail").json()["servers"]
    return {server["id"]: server["status"] for server in servers}


if __name__ == "__main__":
    main()
