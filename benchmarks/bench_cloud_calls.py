"""What a launch asks of the cloud, beside the listing that all share; and how often that is asked for, with one instance and many.

The cloud is devcloud with its stub payload; it counts the calls itself.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack

from common import (
    Figure,
    at_once,
    instance_config,
    launch_options,
    openstack_config,
    private_folder,
    report,
    running_hub,
)

from spawner.devcloud.process import DevcloudProcess, running

LAUNCHES = 10
MANY = 200
LIMIT = 4
LISTING = "GET /compute/v2.1/servers/detail"
# short, so that a minute is enough; the proportion to the defaults (10 s and 30 s) is kept
LISTING_SECONDS, POLL_SECONDS, WATCHED_SECONDS = 1.0, 3, 30.0
OFTEN = f"""
c.OpenStackSpawner.slow_listing_seconds = {LISTING_SECONDS}
c.OpenStackSpawner.fast_listing_seconds = {LISTING_SECONDS}
c.Spawner.poll_interval = {POLL_SECONDS}
"""
USERS = [f"u{number}" for number in range(MANY)]


def main() -> None:
    print("stub payload: devcloud answers in place of agent and notebook")
    figures = []
    for spawner in ("OpenStackSpawner", "InstanceSpawner"):
        with ExitStack() as stack:
            folder = stack.enter_context(private_folder())
            devcloud = stack.enter_context(running(folder / "devcloud", payload="stub"))
            devcloud.quota(instances=-1, cores=-1, ram=-1, port=-1)
            facility = spawner == "InstanceSpawner"
            config = instance_config(devcloud, folder / "hub", USERS) if facility else openstack_config(devcloud)
            hub = stack.enter_context(running_hub(folder / "hub", config + OFTEN, USERS))

            def launch(user: str, hub=hub, facility=facility) -> None:
                hub.launch(user, launch_options(USERS, user) if facility else {})

            first_launch(spawner, devcloud, launch)
            with_one = per_minute(devcloud) if facility else Counter()
            figures.append(calls_per_launch(spawner, devcloud, launch))
            if facility:
                at_once(launch, USERS[LAUNCHES + 1 :], 10)
                figures.append(growth(with_one, per_minute(devcloud)))
    report(*figures)


def first_launch(spawner: str, devcloud: DevcloudProcess, launch: Callable[[str], None]) -> None:
    devcloud.clear_calls()
    launch(USERS[0])
    print(f"{spawner}, the first launch of a hub (credentials, catalogue and versions too):")
    show(counts(devcloud), 1)


def calls_per_launch(spawner: str, devcloud: DevcloudProcess, launch: Callable[[str], None]) -> Figure:
    devcloud.clear_calls()
    for user in USERS[1 : LAUNCHES + 1]:
        launch(user)
    seen = counts(devcloud)
    print(f"{spawner}, each of {LAUNCHES} further launches:")
    show(seen, LAUNCHES)
    beyond = (seen.total() - seen[LISTING]) / LAUNCHES
    return Figure(f"cloud-calls-per-launch {spawner}", beyond, "calls", LIMIT, "beyond the shared listing (stub payload)")


def growth(with_one: Counter[str], with_many: Counter[str]) -> Figure:
    for words, rate in (("1 instance", with_one), (f"{MANY} instances", with_many)):
        print(f"{words}: {rate[LISTING]} listings and {rate.total() - rate[LISTING]} other calls per minute")
    against = f"calls per minute with {MANY} instances to those with 1, nothing changing (stub payload)"
    return Figure("cloud-calls-rate", round(with_many.total() / with_one.total(), 3), "ratio", 1.1, against)


def per_minute(devcloud: DevcloudProcess) -> Counter[str]:
    time.sleep(2 * LISTING_SECONDS)
    devcloud.clear_calls()
    time.sleep(WATCHED_SECONDS)
    return Counter({call: round(number * 60 / WATCHED_SECONDS) for call, number in counts(devcloud).items()})


def counts(devcloud: DevcloudProcess) -> Counter[str]:
    return Counter(devcloud.calls()["counts"])


def show(seen: Counter[str], launches: int) -> None:
    for call, number in seen.most_common():
        print(f"  {number / launches:5.1f}  {call}{' (shared)' if call == LISTING else ''}")


if __name__ == "__main__":
    main()
