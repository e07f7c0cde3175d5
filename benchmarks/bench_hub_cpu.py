"""CPU time of the hub per launch: OpenStackSpawner, and the same under the facility's rules, against a spawner that does nothing.

Three hubs run side by side and take turns. What JupyterHub itself costs is in all three; the difference is ours. The cloud is
devcloud with its stub payload: no notebook runs.
"""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
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
    spread,
    stub_notebook,
)

from spawner.devcloud.process import running

ROUNDS = 5
LAUNCHES = 10
LIMIT_MS = 20.0
NOTHING, OPENSTACK, INSTANCE = "a spawner that does nothing", "OpenStackSpawner", "InstanceSpawner"
USERS = [f"u{number}" for number in range(2 * ROUNDS * LAUNCHES + 1)]


def main() -> None:
    with ExitStack() as stack:
        folder = stack.enter_context(private_folder())
        hubs = start_hubs(stack, folder)
        for name, hub in hubs.items():
            # connections, catalogue and caches are made once, not at each launch
            hub.launch(USERS[-1], options(name, USERS[-1]))
        print("stub payload: devcloud answers in place of agent and notebook")
        figures = []
        half = ROUNDS * LAUNCHES
        for users, width, words in ((USERS[:half], 1, "one after another"), (USERS[half:-1], LAUNCHES, f"{LAUNCHES} at a time")):
            spent = measure(hubs, users, width)
            print(f"{words}, ms of the hub's CPU per launch, {ROUNDS} rounds of {LAUNCHES}:")
            for name, values in spent.items():
                print(f"  {name}: {spread(values, 1)}")
            for name in (OPENSTACK, INSTANCE):
                above = [ours - nothing for ours, nothing in zip(spent[name], spent[NOTHING], strict=True)]
                print(f"  {name} above nothing: {spread(above, 1)}")
                figures.append(
                    Figure(
                        f"hub-cpu-per-launch {name} {words}",
                        round(statistics.median(above), 1),
                        "ms",
                        LIMIT_MS,
                        f"{NOTHING}, same run (stub payload)",
                    )
                )
        report(*figures)


def start_hubs(stack: ExitStack, folder: Path) -> dict[str, BenchHub]:
    clouds = [stack.enter_context(running(folder / f"devcloud-{number}", payload="stub")) for number in range(2)]
    for cloud in clouds:
        cloud.quota(instances=-1, cores=-1, ram=-1, port=-1)
    folders = {name: folder / f"hub-{number}" for number, name in enumerate((NOTHING, OPENSTACK, INSTANCE))}
    configs = {
        NOTHING: nothing_config(stack.enter_context(stub_notebook())),
        OPENSTACK: openstack_config(clouds[0]),
        INSTANCE: instance_config(clouds[1], folders[INSTANCE], USERS),
    }
    return {name: stack.enter_context(running_hub(folders[name], config, USERS)) for name, config in configs.items()}


def options(spawner: str, user: str) -> dict[str, Any]:
    return launch_options(USERS, user)


def measure(hubs: dict[str, BenchHub], everybody: list[str], width: int) -> dict[str, list[float]]:
    """Milliseconds per first launch of an instance, one value per round and hub."""
    spent: dict[str, list[float]] = {name: [] for name in hubs}
    for number in range(ROUNDS):
        users = everybody[number * LAUNCHES : (number + 1) * LAUNCHES]
        for name, hub in hubs.items():
            before, began = hub.cpu_seconds(), time.perf_counter()
            at_once(lambda user, hub=hub, name=name: hub.launch(user, options(name, user)), users, width)
            spent[name].append(1000 * (hub.cpu_seconds() - before) / LAUNCHES)
            wall = (time.perf_counter() - began) / LAUNCHES
            print(f"  round {number + 1}, {name}: {spent[name][-1]:.1f} ms CPU, {1000 * wall:.0f} ms by the clock")
            at_once(hub.end, users, LAUNCHES)
    return spent


if __name__ == "__main__":
    main()
