"""A pass of reconciliation over 2,000 servers and over 200: how long it takes, and how many calls to the cloud it makes.

The cloud is devcloud with its stub payload, on the same machine: its own time to list so many servers is in the figure.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import structlog
from common import Figure, furnish, furnished_session, private_folder, report, spread
from made_servers import make_server

from hub import instances
from hub.configuration import Hutch
from hub.database.tables import Instance, Intent, IntentKind, Outcome, now
from hub.facility import Facility
from hub.steward.reconciling import Reconciler
from spawner.cloud import Cloud
from spawner.devcloud.process import DevcloudProcess, running

FEW, MANY = 200, 2000
STRAYS = 20
PASSES = 5
SECONDS = 2.0
# a listing has at most 1000 servers
PAGE = 1000
SERVED: dict[tuple[str, str], bool] = {}


def main() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    print("stub payload: no process runs behind a server; of the servers, 1 in 100 is on nobody's record")
    with ExitStack() as stack:
        folder = stack.enter_context(private_folder())
        devcloud = stack.enter_context(running(folder / "devcloud", payload="stub"))
        devcloud.quota(instances=-1, cores=-1, ram=-1, port=-1)
        figures = asyncio.run(measured(folder / "hub", devcloud))
    report(*figures)


async def measured(folder: Path, devcloud: DevcloudProcess) -> list[Figure]:
    furnish(folder, ["ann"])
    facility = Facility(Hutch(database_url=f"sqlite:///{folder / 'hutch.sqlite'}", state_dir=str(folder)))
    cloud = Cloud("devcloud", devcloud.clouds_yaml)
    reconciler = Reconciler(facility, {"": cloud}, what_is_served)
    begun, seen = 0, {}
    for count in (FEW, MANY):
        await make_servers(cloud, facility.deployment_id, put_on_record(folder, begun, count))
        begun = count
        seen[count] = await passes(reconciler, devcloud, count)
    (few, calls_with_few), (many, calls_with_many) = seen[FEW], seen[MANY]
    # after a full page there is always a next one
    pages = MANY // PAGE
    against = f"one pass over {MANY} servers, devcloud on the same machine (stub payload); over {FEW}: {few:.3f} s"
    growth = f"calls of a pass over {MANY} servers beyond those over {FEW}, which are {calls_with_few}, and {pages} more page(s)"
    return [
        Figure("reconcile-seconds", round(many, 3), "s", SECONDS, against),
        Figure("reconcile-calls-growth", calls_with_many - calls_with_few - pages, "calls", 0, growth),
    ]


async def what_is_served() -> dict[tuple[str, str], bool]:
    return SERVED


def put_on_record(folder: Path, first: int, last: int) -> list[str]:
    """The ids of instances that run; of one in a hundred, the record is missing."""
    ids = []
    with furnished_session(folder) as session:
        for number in range(first, last):
            if number % (MANY // STRAYS) == 0:
                ids.append(f"stray-{number}")
                continue
            options = {"display_name": "films", "plan_id": "notebook", "experiment_ids": [], "lifetime": None}
            instance = instances.create(session, owner_id="id-ann", server_name=f"films-{number}", **options)
            mark_running(instance)
            ids.append(instance.id)
            SERVED["ann", instance.server_name] = True
    return ids


def mark_running(instance: Instance) -> None:
    """Since yesterday: what was decided a moment ago is not compared yet."""
    instance.first_ready_at = now() - timedelta(days=1)
    launch = Intent(kind=IntentKind.LAUNCH, actor="ann", outcome=Outcome.DONE, ended_at=instance.first_ready_at)
    instance.intents.append(launch)


async def make_servers(cloud: Cloud, deployment_id: str, ids: list[str]) -> None:
    room = asyncio.Semaphore(8)

    async def make(instance_id: str) -> None:
        async with room:
            await make_server(cloud, deployment_id, instance_id, user_data="")

    await asyncio.gather(*(make(one) for one in ids))
    while {server["status"] for server in await cloud.servers(deployment_id)} != {"ACTIVE"}:  # noqa: ASYNC110
        await asyncio.sleep(0.5)


async def passes(reconciler: Reconciler, devcloud: DevcloudProcess, count: int) -> tuple[float, int]:
    """The median, and the calls of one pass. The first pass, which writes all findings down, is among them."""
    seconds = []
    for _ in range(PASSES):
        devcloud.clear_calls()
        began = time.perf_counter()
        found = await reconciler.run()
        seconds.append(time.perf_counter() - began)
        counts = Counter(devcloud.calls()["counts"])
        states = Counter(one.finding.state for one in found)
        assert states == {"orphan": count * STRAYS // MANY}, states
    print(f"{count} servers: {spread(seconds)} s; {counts.total()} calls a pass:")
    for call, number in counts.most_common():
        print(f"  {number}  {call}")
    return sorted(seconds)[PASSES // 2], counts.total()


if __name__ == "__main__":
    main()
