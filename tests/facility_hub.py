"""A hub as a facility runs it: `hub.install`, the example facility's records, and a devcloud with stub payloads below.

People come and go within a test: `visitor` adds one whom no other test knows, so that tests can share a hub.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import requests
from databases import database_url, upgrade
from running_hub import REPOSITORY, RunningHub, free_port, until
from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from etl.adapters.files import Files
from etl.load import run
from etl.source import Source
from hub.database.engine import deployment_id, open_database, sessions
from hub.database.tables import Experiment, ExperimentMember, Instance, Intent, Plan, Proposal, User, UserRole, now
from spawner.devcloud.process import DevcloudProcess, running

T = TypeVar("T")
EXAMPLE = Path(__file__).parent.parent / "etl" / "example"
CONTACT = "the user office (users@facility.example)"

CONFIG = """
from pathlib import Path
import hub

c.Hutch.facility_name = "Example Facility"
c.Hutch.contact = {contact!r}
c.Hutch.portal_port = {portal_port}
c.Hutch.desktop_relays = 0
c.Hutch.desktop_port = {desktop_port}
c.Hutch.database_url = {database_url!r}
c.JupyterHub.db_url = {hub_database_url!r}
c.Hutch.steward_interval_seconds = 1.0
# at its start only: a listing more would take the faults that tests order for others
c.Hutch.reconcile_interval_seconds = 3600
c.Hutch.steward_port = 0
c.OpenStackSpawner.cloud_name = "devcloud"
c.OpenStackSpawner.clouds_yaml = {clouds_yaml!r}
c.OpenStackSpawner.fast_listing_seconds = 0.1
c.OpenStackSpawner.slow_listing_seconds = 0.5
c.OpenStackSpawner.stop_timeout_seconds = 20
c.Spawner.poll_interval = 1
c.Spawner.http_timeout = 10
# on a busy machine a refusal takes longer, and would be told as the progress of a launch
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 1.0, "slow_stop_timeout": 0.3}}
{more}
hub.install(c, Path({folder!r}) / "jupyterhub_config.py")
"""


@dataclass(frozen=True)
class Visitor:
    """Somebody of the facility, and the experiment that they are a member of."""

    login: str
    id: str
    experiment: str
    token: str


class FacilityHub(RunningHub):
    """A running hub, its database and its cloud."""

    _numbers = itertools.count(1)

    def __init__(self, folder: Path, devcloud: DevcloudProcess, more: str = "") -> None:
        self.devcloud, self.state = devcloud, folder / ".hutch"
        clouds_yaml = str(devcloud.clouds_yaml)
        self.state.mkdir(parents=True, mode=0o700)
        databases = {"database_url": database_url(self.state), "hub_database_url": database_url(self.state, "jupyterhub")}
        # a second relay has the port after the first's
        desktop_port, _ = free_port(), free_port()
        config = CONFIG.format(
            contact=CONTACT,
            portal_port=free_port(),
            desktop_port=desktop_port,
            clouds_yaml=clouds_yaml,
            more=more,
            folder=str(folder),
            **databases,
        )
        super().__init__(folder, config)
        self.engine = open_database(databases["database_url"])
        upgrade(self.engine)
        run(self.engine, Source(name="example"), Files(folder=EXAMPLE), allow_removals=True)
        self.sessions = sessions(self.engine)

    @contextmanager
    def session(self) -> Iterator[Session]:
        with self.sessions.begin() as session:
            yield session

    # --- people and plans

    def visitor(self, *roles: str, experiment: bool = True, quota: int | None = None, instrument: str = "ID16") -> Visitor:
        """A new person with the facility roles, in a new experiment unless it is refused to them."""
        number = next(self._numbers)
        login, visit = f"visitor{number}", f"T-{number}-1"
        with self.session() as session:
            session.add(User(id=login, login=login, given_name="Vera", family_name=f"Visitor {number}", instance_quota=quota))
            session.flush()
            session.add_all(UserRole(user_id=login, role=role) for role in roles)
            session.add(Proposal(id=f"T-{number}", title=f"Proposal {number}"))
            session.flush()
            session.add(Experiment(id=visit, proposal_id=f"T-{number}", instrument_id=instrument))
            session.flush()
            if experiment:
                session.add(ExperimentMember(experiment_id=visit, user_id=login))
        self.add_user(login)
        return Visitor(login, login, visit, self.token_of(login))

    def plan(self, name: str, **values: Any) -> str:
        """A plan that exists for one test."""
        values = {"name": name, "image": "hutch-notebook", "flavor": "m1.small", "cores": 1, "memory_mb": 1, **values}
        with self.session() as session:
            session.add(Plan(id=name, **values))
        return name

    def hutch(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """The command line, as an operator of this deployment calls it."""
        path = os.pathsep.join([os.environ["PATH"], *map(str, Path("/usr/lib/postgresql").glob("*/bin"))])
        own = {"HUTCH_CONFIG": str(self.config_file), "PYTHONPATH": str(REPOSITORY), "PATH": path, "COLUMNS": "250"}
        command = [sys.executable, "-m", "hutch", *map(str, arguments)]
        return subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True, cwd=self.folder, check=False)

    # --- what a page would ask

    def launch(
        self, visitor: Visitor, name: str = "films", plan: str = "notebook", token: str = "", **body: Any
    ) -> requests.Response:
        """As the portal does: with the user's own token."""
        body = body or {"display_name": name, "user_options": {"plan": plan, "experiments": [visitor.experiment]}}
        return self.api("POST", f"users/{visitor.login}/servers/{name}", token or visitor.token, json=body)

    def launched(self, visitor: Visitor, name: str = "films", **options: Any) -> Instance:
        answer = self.launch(visitor, name, **options)
        assert answer.status_code in (201, 202), answer.text
        self.until_ready(visitor.login, name)
        return self.instance(visitor)

    def start_again(self, visitor: Visitor, name: str = "films", token: str = "") -> requests.Response:
        return self.api("POST", f"users/{visitor.login}/servers/{name}", token or visitor.token)

    def end(self, visitor: Visitor, name: str = "films", token: str = "", *, remove: bool = False) -> requests.Response:
        """Stops or deletes, and waits until that is done."""
        answer = self.api("DELETE", f"users/{visitor.login}/servers/{name}", token or visitor.token, json={"remove": remove})
        self.until_idle(visitor.login, name)
        return answer

    def until_dropped(self, visitor: Visitor, name: str = "films") -> None:
        """JupyterHub has nothing more to do with a server that was deleted."""

        def dropped() -> bool:
            model = self.api("GET", f"users/{visitor.login}?include_stopped_servers=1").json()
            return name not in model["servers"]

        until(dropped, f"JupyterHub has dropped {visitor.login}/{name}")

    # --- what became of it

    def instances(self, visitor: Visitor) -> list[Instance]:
        """Oldest first, with their intents, events, members and experiments."""
        with self.session() as session:
            query = select(Instance).where(Instance.owner_id == visitor.id).order_by(Instance.created_at)
            loaded = (Instance.intents, Instance.events, Instance.members, Instance.experiments)
            return list(session.scalars(query.options(*map(selectinload, loaded))))

    def instance(self, visitor: Visitor) -> Instance:
        return self.instances(visitor)[-1]

    def intent(self, visitor: Visitor) -> Intent:
        """The newest one of the visitor's newest instance."""
        return self.instance(visitor).intents[-1]

    def until_intent(self, visitor: Visitor, **wanted: Any) -> Intent:
        """Waits until the newest intent has these values."""

        def found() -> Intent | None:
            known = self.instances(visitor)
            intent = known[-1].intents[-1] if known else None
            return intent if intent and all(getattr(intent, name) == value for name, value in wanted.items()) else None

        return until(found, f"the newest intent of {visitor.login} is {wanted}")

    def change(self, work: Callable[[Session], T]) -> T:
        with self.session() as session:
            return work(session)

    def end_membership(self, visitor: Visitor) -> None:
        def leave(session: Session) -> None:
            session.get_one(ExperimentMember, (visitor.experiment, visitor.id)).ended_at = now() - timedelta(seconds=1)

        self.change(leave)

    @cached_property
    def cloud(self) -> Any:
        return self.devcloud.connect()

    def servers(self, visitor: Visitor | None = None) -> list[dict[str, Any]]:
        """The cloud's servers of a visitor, or of all."""
        servers = self.cloud.compute.get("/servers/detail", microversion="2.79").json()["servers"]
        ids = {instance.id for instance in self.instances(visitor)} if visitor else None
        return [server for server in servers if ids is None or server["metadata"].get("hutch-instance") in ids]

    def operate(self, visitor: Visitor, verb: str, argument: Any = None) -> str:
        """Acts on their only server, as the cloud's operators do; returns its status when that is done."""

        def settled() -> dict[str, Any] | None:
            (one,) = self.servers(visitor)
            return one if one["OS-EXT-STS:task_state"] is None else None

        # what answers already may still be built for a moment more
        path = f"/servers/{until(settled, f'it can be told to {verb}')['id']}/action"
        answer = self.cloud.compute.post(path, json={verb: argument}, microversion="2.79")
        assert answer.status_code in (200, 202, 204), answer.text
        return str(until(settled, f"{verb} is done")["status"])

    def ports(self, visitor: Visitor | None = None) -> list[dict[str, Any]]:
        ports = self.cloud.network.get("/ports").json()["ports"]
        ids = {instance.id for instance in self.instances(visitor)} if visitor else None
        return [port for port in ports if ids is None or port["description"].split(" ")[-1] in ids]

    def orphans(self) -> list[str]:
        """Servers and ports in the cloud that belong to no instance in the database.

        The cloud is looked at first: what a launch makes meanwhile has its instance in the database before.
        """
        servers, ports = self.servers(), self.ports()
        with self.session() as session:
            known = set(session.scalars(select(Instance.id)))
        lost = [f"server {one['name']} {one['id']}" for one in servers if one["metadata"].get("hutch-instance") not in known]
        return lost + [f"port {one['name']} {one['id']}" for one in ports if one["description"].split(" ")[-1] not in known]

    @property
    def deployment(self) -> str:
        return deployment_id(self.engine)

    def page(self, path: str, browser: requests.Session | None = None, **options: Any) -> requests.Response:
        """A page as a browser gets it."""
        headers = {"Sec-Fetch-Mode": "navigate", "Accept": "text/html"}
        return (browser or requests).get(f"http://localhost:{self.port}{path}", headers=headers, timeout=30, **options)

    def sign_on(self, login: str) -> tuple[requests.Session, requests.Response]:
        """Fills in the sign-on page; the answer is not followed."""
        browser = requests.Session()
        self.page("/hub/login", browser)
        token = next(cookie.value for cookie in browser.cookies if cookie.name == "_xsrf")
        form = {"username": login, "password": "", "_xsrf": token}
        url, headers = f"http://localhost:{self.port}/hub/login", {"Sec-Fetch-Mode": "navigate"}
        return browser, browser.post(url, data=form, headers=headers, allow_redirects=False, timeout=30)


@contextmanager
def facility(folder: Path, more: str = "", payload: str = "stub") -> Iterator[FacilityHub]:
    """A facility for the length of a block; `more` are lines of its configuration before `hub.install`."""
    with running(folder / "devcloud", payload=payload) as devcloud, started(FacilityHub(folder / "hub", devcloud, more)) as hub:
        yield hub


@contextmanager
def started(hub: FacilityHub) -> Iterator[FacilityHub]:
    try:
        hub.start()
        yield hub
    finally:
        hub.stop()
        hub.engine.dispose()
