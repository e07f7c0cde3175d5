"""A chaos run: people launch, stop and delete while what it all stands on is killed at random; in the end all is as they asked.

`python tests/chaos/run.py --operations 100 --seed 1 [--database postgresql]` prints the report and writes it as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from threading import Event, Lock, Thread
from typing import Any, TypeVar

if __name__ == "__main__":
    sys.path[:1] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]  # not this folder itself
    if "postgresql" in sys.argv:
        os.environ["HUTCH_TEST_DATABASE"] = "postgresql"

import databases
import requests
from chaos.judging import Seen, wrong
from chaos.victims import Victims
from facility_hub import FacilityHub, Visitor, facility
from keystoneauth1.exceptions import ClientException
from openstack.exceptions import SDKException
from sqlalchemy.exc import DBAPIError

from hub import instances
from hub.database.engine import DatabaseError
from hub.database.tables import Instance, IntentKind, Outcome

T = TypeVar("T")
OPERATION_SECONDS = 180
CONVERGE_SECONDS = 180
CONFIG = """
import datetime
import hub.queue
import hub.steward.tasks
hub.steward.tasks.STOP_OVERDUE = datetime.timedelta(seconds=2)
hub.queue.FIRST_PAUSE = datetime.timedelta(seconds=1)
hub.queue.LONGEST_PAUSE = datetime.timedelta(seconds=5)
c.Hutch.delete_grace_days = 0
c.OpenStackSpawner.boot_timeout_seconds = 20
c.ConfigurableHTTPProxy.check_running_interval = 1
"""


@dataclass
class Operation:
    """outcome: taken, or moot when there was nothing to do any more, or never when Hutch did not take it in time."""

    who: str
    kind: str
    outcome: str = "never"
    requests: int = 0
    seconds: float = 0.0
    answer: str = ""  # the hub's last


@dataclass
class Report:
    seed: int
    database: str
    operations: list[Operation] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    launches: Counter[str] = field(default_factory=Counter)
    converge_seconds: list[float] = field(default_factory=list)
    wrong: dict[str, str] = field(default_factory=dict)
    orphans: list[str] = field(default_factory=list)
    broken: str = ""  # why the run itself could not go on
    seconds: float = 0.0

    @property
    def right(self) -> bool:
        return (
            not self.broken
            and not self.wrong
            and not self.orphans
            and all(operation.outcome != "never" for operation in self.operations)
        )

    def as_json(self) -> str:
        operations = [asdict(operation) for operation in self.operations]
        return json.dumps(vars(self) | {"operations": operations, "right": self.right}, indent=1)

    def as_table(self) -> str:
        outcomes = Counter(f"{operation.kind} {operation.outcome}" for operation in self.operations)
        settled = self.converge_seconds or [0.0]
        again = sum(operation.requests > 1 for operation in self.operations)
        rows = {
            "seed, database": f"{self.seed}, {self.database}",
            "kills": _counted(self.kills),
            "operations": f"{len(self.operations)}: {_counted(outcomes)}; {again} had to be asked for again",
            "launches in the end": _counted(self.launches),
            "until all was right": f"{max(settled):.0f} s after the last operation, for half of the people {median(settled):.0f} s",
            "wrong in the end": "; ".join(f"{key}: {what}" for key, what in self.wrong.items()) or "nothing",
            "orphans": ", ".join(self.orphans) or "none",
        } | ({"broken off": self.broken} if self.broken else {})
        return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def _counted(counter: Counter[str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in sorted(counter.items())) or "none"


class Chaos:
    """people: how many; each kill lets so many of their operations go on."""

    def __init__(
        self, hub: FacilityHub, victims: Victims, seed: int, operations: int, people: int = 6, operations_per_kill: int = 3
    ) -> None:
        self.hub, self.victims, self.seed, self._operations, self._begun = hub, victims, seed, operations, 0
        self._people, self._per_kill = people, operations_per_kill
        self.report = Report(seed, "postgresql" if databases.ON_POSTGRESQL else "sqlite")
        self._lock, self._over = Lock(), Event()
        self.asked_last: dict[str, str] = {}  # by instance

    def run(self) -> Report:
        began = time.monotonic()
        people = [self.hub.visitor() for _ in range(self._people)]
        chances = [random.Random(f"{self.seed} {number}") for number in range(self._people)]
        workers = [self._thread(self._live, *one) for one in zip(people, chances, strict=True)]
        killer = self._thread(self._kill, random.Random(f"{self.seed} killer"))
        for thread in [*workers, killer]:
            thread.start()
        for worker in workers:
            worker.join()
        self._over.set()
        killer.join()
        if not self.report.broken:
            self._converge(people)
        self.report.seconds = round(time.monotonic() - began, 1)
        return self.report

    def _thread(self, work: Callable[..., None], *arguments: Any) -> Thread:
        def run() -> None:
            try:
                work(*arguments)
            except BaseException:
                self.report.broken = traceback.format_exc()
                self._over.set()

        return Thread(target=run)

    # --- people

    def _live(self, visitor: Visitor, chance: random.Random) -> None:
        while self._take_turn():
            operation = Operation(visitor.login, self._wish(visitor, chance))
            began = time.monotonic()
            self._carry_out(visitor, operation, began + OPERATION_SECONDS)
            operation.seconds = round(time.monotonic() - began, 1)
            self.report.operations.append(operation)
            if chance.random() < 0.5:
                self._see_it_through(visitor)
            else:
                Event().wait(chance.uniform(0, 1))

    def _take_turn(self) -> bool:
        """False when all operations are taken; those to come wait until enough was killed for those that were."""
        with self._lock:
            self._begun += 1
            begun = self._begun
        while (
            begun <= self._operations
            and begun > self._people + self._per_kill * self.report.kills.total()
            and not self._over.wait(0.1)
        ):
            pass
        return begun <= self._operations and not self._over.is_set()

    def _wish(self, visitor: Visitor, chance: random.Random) -> str:
        instance = self._live_instance(visitor)
        if instance is None:
            return "launch"
        return chance.choice(["stop", "stop", "delete"] if meant_to_run(instance) else ["launch", "launch", "delete"])

    def _live_instance(self, visitor: Visitor) -> Instance | None:
        live = [instance for instance in patiently(lambda: self.hub.instances(visitor)) if not instance.deleted_at]
        return live[-1] if live else None

    def _carry_out(self, visitor: Visitor, operation: Operation, deadline: float) -> None:
        """Asks, as a person would, again and again until it is written down as their wish."""
        before = self._wishes(visitor, operation.kind)
        while time.monotonic() < deadline:
            operation.requests += 1
            operation.answer = self._ask(visitor, operation.kind)
            for _ in range(10):
                if self._wishes(visitor, operation.kind) > before:
                    operation.outcome = "taken"
                    return self._remember(visitor, operation.kind)
                Event().wait(0.1)
            instance = self._live_instance(visitor)
            if operation.kind == "stop" and not (instance and meant_to_run(instance)):
                # a launch that was still under way is called off; one that failed by itself cannot be
                called_off = instance and instances.in_force(instance.intents).outcome == Outcome.CANCELLED
                operation.outcome = "taken" if called_off else "moot"
                return self._remember(visitor, "stop") if called_off else None
        return None

    def _ask(self, visitor: Visitor, kind: str) -> str:
        """What the hub says to it; whether it was taken shows in the database."""
        try:
            if kind == "launch" and self._live_instance(visitor):
                answer = self.hub.start_again(visitor)
            elif kind == "launch":
                answer = self.hub.launch(visitor)
            else:
                path = f"users/{visitor.login}/servers/films"
                answer = self.hub.api("DELETE", path, visitor.token, json={"remove": kind == "delete"})
        except requests.RequestException as error:
            return str(error)
        return f"{answer.status_code} {answer.text}"

    def _wishes(self, visitor: Visitor, kind: str) -> int:
        known = patiently(lambda: self.hub.instances(visitor))
        return sum(intent.kind == kind and intent.actor == visitor.login for instance in known for intent in instance.intents)

    def _remember(self, visitor: Visitor, kind: str) -> None:
        self.asked_last[patiently(lambda: self.hub.instances(visitor))[-1].id] = kind

    def _see_it_through(self, visitor: Visitor) -> None:
        """Most people wait for the end of what they asked for, though not for ever."""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and (instance := self._live_instance(visitor)):
            if all(intent.outcome for intent in instance.intents):
                return
            Event().wait(0.2)

    # --- trouble

    def _kill(self, chance: random.Random) -> None:
        """One after the other, in an order of chance in which each has its turn."""
        kinds: list[str] = []
        while not self._over.wait(chance.uniform(0, 2)):
            kinds = kinds or chance.sample(list(self.victims.kinds), len(self.victims.kinds))
            victim = kinds.pop()
            self.victims.kinds[victim]()
            self.report.kills[victim] += 1

    # --- the end

    def _converge(self, people: list[Visitor]) -> None:
        began = time.monotonic()
        open_still = {visitor.login: visitor for visitor in people}
        while open_still and time.monotonic() - began < CONVERGE_SECONDS:
            for visitor in list(open_still.values()):
                if not self._wrong_of(visitor):
                    del open_still[visitor.login]
                    self.report.converge_seconds.append(round(time.monotonic() - began, 1))
            Event().wait(0.2)
        # once more, all of them: what was right must have stayed so
        self.report.wrong = {key: what for visitor in people for key, what in self._wrong_of(visitor).items()}
        self.report.orphans = patiently(self.hub.orphans)
        intents = [intent for visitor in people for instance in self.hub.instances(visitor) for intent in instance.intents]
        self.report.launches = Counter(
            f"{intent.outcome} ({intent.stage}: {intent.message})" if intent.outcome == Outcome.FAILED else str(intent.outcome)
            for intent in intents
            if intent.kind == IntentKind.LAUNCH
        )

    def _wrong_of(self, visitor: Visitor) -> dict[str, str]:
        servers, ports = patiently(lambda: (self.hub.servers(visitor), self.hub.ports(visitor)))
        model = patiently(lambda: self.hub.server(visitor.login, "films"))
        shown = {key: model[key] for key in ("ready", "pending") if model.get(key)}
        found = {}
        for instance in self.hub.instances(visitor):
            mine = [server["status"] for server in servers if server["metadata"]["hutch-instance"] == instance.id]
            own_ports = sum(port["description"].endswith(instance.id) for port in ports)
            seen = Seen(instance, {} if instance.deleted_at else shown, mine, own_ports, self.asked_last.get(instance.id, ""))
            if what := wrong(seen):
                found[f"{visitor.login} {instance.id}"] = what
        return found


def meant_to_run(instance: Instance) -> bool:
    intent = instances.in_force(instance.intents)
    return bool(intent and intent.kind == IntentKind.LAUNCH and intent.outcome in (None, Outcome.DONE))


def patiently(ask: Callable[[], T]) -> T:
    """The database, the proxy and the cloud are among those killed."""
    deadline = time.monotonic() + 60
    while True:
        try:
            return ask()
        except (DBAPIError, DatabaseError, requests.RequestException, SDKException, ClientException, LookupError):
            if time.monotonic() > deadline:
                raise
            Event().wait(0.2)


@contextmanager
def chaos(folder: Path, seed: int, operations: int) -> Iterator[Chaos]:
    with facility(folder, CONFIG) as hub:
        database = databases.server() if databases.ON_POSTGRESQL else None
        yield Chaos(hub, Victims(hub, random.Random(seed), database), seed, operations)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--operations", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--folder", type=Path, default=None, help="keep logs and the report here")
    given: Any = parser.parse_args()
    folder = given.folder or Path(tempfile.mkdtemp(prefix="hutch-chaos-"))
    print(f"seed {given.seed}, {given.operations} operations on {given.database}; logs in {folder}", flush=True)
    with chaos(folder, given.seed, given.operations) as run:
        report = run.run()
    (folder / "report.json").write_text(report.as_json())
    print(report.as_table(), f"\nin {report.seconds:.0f} s; {folder / 'report.json'}")
    sys.exit(0 if report.right else 1)


if __name__ == "__main__":
    main()
