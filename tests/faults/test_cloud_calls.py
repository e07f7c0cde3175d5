"""Each call that Hutch makes of OpenStack, with each fault, through the life of an instance: launched, stopped, resumed, deleted.

Whatever happens, no server is lost, made twice, or stopped or deleted without being asked for; people get a plain sentence; and
when the fault is over, the next try succeeds. The lives run side by side, each behind a proxy of its own; a test looks at one.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from faults.proxy import ACTIONS, Fault, FaultProxy
from made_servers import make_server
from running_hub import PATIENCE_SECONDS
from sentences import is_plain
from spawner_alone import SpawnerAlone, spawner_alone

from spawner import belongings
from spawner.cloud import Cloud
from spawner.cloud_errors import CloudError
from spawner.devcloud.process import running
from spawner.launch import LaunchError
from spawner.servers import Server, instance_of

pytestmark = pytest.mark.any_database

CALLS = {
    "token": ("POST", "/auth/tokens$"),
    "list-servers": ("GET", "/servers/detail"),
    "get-server": ("GET", "/servers/[0-9a-f-]{36}$"),
    "create-server": ("POST", "/servers$"),
    "action": ("POST", "/servers/[0-9a-f-]{36}/action$"),
    "delete-server": ("DELETE", "/servers/"),
    "list-ports": ("GET", "/ports"),
    "create-port": ("POST", "/ports$"),
    "delete-port": ("DELETE", "/ports/"),
    "image": ("GET", "/image/v2/images"),
    "flavor": ("GET", "/flavors"),
    "network": ("GET", "/v2.0/networks"),
    "security-group": ("GET", "/v2.0/security-groups"),
}
TABLE = [(call, fault) for call, (method, _) in CALLS.items() for fault in ACTIONS if fault != "stale" or method == "GET"]
# what passes by itself is not told to anybody; of a conflict or of credentials that are refused the cloud means what it says
ONCE = [(call, fault) for call, fault in TABLE if fault in ("503", "429", "404-html", "reset-after", "truncated", "wrong-json")]
CASES = [(*case, None) for case in TABLE] + [(*case, 1) for case in ONCE]
AT_ONCE = 12
# quick enough to be waited for, slow enough for a busy machine
HURRY = {
    "spawner.cloud.API_TIMEOUT_SECONDS": 6.0,
    "spawner.cloud.RETRY_SECONDS": 10.0,
    "spawner.cloud.CATALOGUE_SECONDS": 0.0,
    "spawner.reflector.FRESH_SECONDS": 15.0,
    "spawner.creation.LOOK_SECONDS": 4.0,
    "spawner.belongings.GONE_WITHIN_SECONDS": 5.0,
}


class Life:
    """One instance behind a proxy, and another of the same deployment to which nothing must happen."""

    def __init__(self, proxy: FaultProxy, direct: Cloud, spawner: SpawnerAlone, fault: Fault) -> None:
        self.proxy, self.direct, self.spawner, self.fault = proxy, direct, spawner, fault
        self.wrong: list[str] = []
        self.told: list[str] = []
        self.own: set[str] = set()  # every server that the instance ever had

    def note(self, right: bool, words: str) -> None:
        if not right:
            self.wrong.append(words)

    async def live(self) -> None:
        spawner = self.spawner
        bystander, _ = await make_server(self.direct, spawner.deployment_id, str(uuid4()))
        await self._start("launch")
        (server,) = await self._servers("launched")
        # its agent may listen before the cloud has noticed that it is up
        self.note(server["status"] in ("ACTIVE", "BUILD"), f"launched, and {server['status']}")
        await self._stop()
        await self._start("resume")
        (again,) = await self._servers("resumed")
        self.note((again["id"], again["status"]) == (server["id"], "ACTIVE"), f"resumed as {again['id']} {again['status']}")
        with self:
            await self._try("delete", spawner.delete_forever())
        await belongings.remove(self.direct, spawner.deployment_id, spawner.instance_id)
        self.note(await self._servers("deleted", expected=0) == [], "servers after the deletion")
        self.note(not await self.direct.ports(spawner.instance_id, spawner.deployment_id), "ports after the deletion")
        other = await self.direct.server(bystander)
        self.note(other is not None and other["status"] == "ACTIVE", f"the other instance is {other and other['status']}")
        touched = {path.split("/servers/")[1][:36] for method, path in self.proxy.taken if _changes(method, path)}
        self.note(touched <= self.own, f"touched {touched}, of {self.own}")

    def __enter__(self) -> None:
        self.proxy.faults = [replace(self.fault)]

    def __exit__(self, *_: object) -> None:
        self.proxy.faults = []

    async def _start(self, what: str) -> None:
        with self:
            done = await self._try(what, self.spawner.start())
            self.note(await self.spawner.poll() is None or not done, f"{what}: it runs, and poll says that it does not")
            await self._servers(f"{what}, with the fault", expected=None)
        if not done:
            self.note(await self._try(f"{what} again", self.spawner.start()), f"{what} again: {self.told[-1:]}")

    async def _stop(self) -> None:
        with self:
            await self.spawner.stop()
            if self.spawner.is_off:
                (server,) = await self._servers("said to be off")
                self.note(server["status"] == "SHUTOFF", f"said to be off, and {server['status']}")
        await self.spawner.stop()
        (server,) = await self._servers("stopped")
        self.note(self.spawner.is_off and server["status"] == "SHUTOFF", f"stopped, and {server['status']}")

    async def _try(self, what: str, call: Awaitable[Any]) -> bool:
        """Whether it succeeded; if not, people were told why."""
        try:
            await call
        except (LaunchError, CloudError) as error:
            sentence = str(error.message) if isinstance(error, LaunchError) else str(error)
            self.told.append(f"{what}: {sentence}")
            self.note(is_plain(sentence), f"{what}: not a plain sentence: {sentence!r}")
            return False
        except TimeoutError:
            return False
        return True

    async def _servers(self, when: str, expected: int | None = 1) -> list[Server]:
        mine = await self._mine()
        if expected != 0 and self.fault.action == "twice":
            # the cloud may take both, until the second finds the port taken
            async with asyncio.timeout(PATIENCE_SECONDS):
                while len(mine) > 1 and any(server["status"] == "BUILD" for server in mine):
                    await asyncio.sleep(0.2)
                    mine = await self._mine()
            mine = [server for server in mine if server["status"] != "ERROR"]
        right = len(mine) <= 1 if expected is None else len(mine) == expected
        self.note(right, f"{when}: {len(mine)} servers")
        return mine

    async def _mine(self) -> list[Server]:
        listed = await self.direct.servers(self.spawner.deployment_id)
        mine = [server for server in listed if instance_of(server) == self.spawner.instance_id]
        self.own |= {server["id"] for server in mine}
        return mine


def _changes(method: str, path: str) -> bool:
    return "/servers/" in path and method in ("POST", "DELETE")


Case = tuple[str, str, int | None]


async def lives(cases: list[Case], clouds_yaml: Path, folder: Path) -> dict[Case, Life]:
    direct, some = Cloud("devcloud", clouds_yaml), asyncio.Semaphore(AT_ONCE)

    async def one(case: Case) -> Life:
        call, action, times = case
        method, path = CALLS[call]
        own = folder / f"{call}-{action}-{times}"
        own.mkdir()
        async with some, FaultProxy() as proxy:
            settings = {
                "deployment_id": str(uuid4()),
                "state_dir": str(folder),
                "security_groups": ["default"],
                "stop_timeout_seconds": 8,
                "boot_timeout_seconds": 30,
                # each listing goes through two servers that are written in Python
                "fast_listing_seconds": 0.5,
                "slow_listing_seconds": 2.0,
            }
            spawner = spawner_alone(proxy.clouds_yaml(clouds_yaml, own), **settings)
            life = Life(proxy, direct, spawner, Fault(action, method, path, times))
            try:
                async with asyncio.timeout(300):
                    await life.live()
            except Exception:
                life.wrong.append(traceback.format_exc())
            finally:
                spawner.around.reflector.close()
            return life

    return dict(zip(cases, await asyncio.gather(*map(one, cases)), strict=True))


@pytest.fixture(scope="module")
def lived(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Case, Life]]:
    """The lives of all cases that were chosen."""
    chosen = [item.callspec.params["case"] for item in request.session.items if item.fspath == request.fspath]
    with pytest.MonkeyPatch.context() as patch, running(tmp_path_factory.mktemp("devcloud"), payload="stub") as devcloud:
        for name, value in HURRY.items():
            patch.setattr(name, value)
        devcloud.quota(instances=-1, cores=-1, ram=-1, port=-1)
        yield asyncio.run(lives(chosen, devcloud.clouds_yaml, tmp_path_factory.mktemp("lives")))


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("case", CASES, ids=[f"{call} {fault}{' once' if times else ''}" for call, fault, times in CASES])
def test_nothing_is_lost_made_twice_or_touched_unasked(lived, case):
    life = lived[case]
    assert not life.wrong, "\n".join([*life.wrong, "people were told:", *life.told])
    assert life.proxy.met, "the fault came never into force"
    if case[2]:
        assert life.told == []
