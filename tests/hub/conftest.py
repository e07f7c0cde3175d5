"""Fixtures of the hub's tests: a facility in a database, and a running hub with its portal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest
import shared_hubs
from databases import database_url, upgrade
from running_hub import PATIENCE_SECONDS, free_port
from sqlalchemy import select
from sqlalchemy.orm import Session

from hub.database.engine import open_database, sessions
from hub.database.tables import (
    Experiment,
    ExperimentMember,
    Instance,
    Instrument,
    Plan,
    Proposal,
    User,
    UserRole,
)

ROOT = Path(__file__).parents[2]
PASSWORD = "rehearsal"

CONFIG = """
from pathlib import Path

from hub.configuration import Hutch
from hub.services import USER_SCOPES, portal, portal_address

c.Hutch.state_dir = {state_dir!r}
c.Hutch.database_url = {database_url!r}
c.Hutch.portal_port = {portal_port}
c.Hutch.facility_name = "Rehearsal Facility"
c.Hutch.contact = "help@facility.example"
c.JupyterHub.bind_url = c.JupyterHub.subdomain_host = "http://localhost:{port}"
c.JupyterHub.hub_port = {hub_port}
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{proxy_port}"
c.JupyterHub.db_url = "sqlite:///{state_dir}/jupyterhub.sqlite"
c.JupyterHub.cookie_secret_file = "{state_dir}/cookie_secret"
c.ConfigurableHTTPProxy.pid_file = "{state_dir}/proxy.pid"
c.JupyterHub.cleanup_servers = False
c.JupyterHub.allow_named_servers = True
c.JupyterHub.tornado_settings = {{"slow_spawn_timeout": 1, "slow_stop_timeout": 1}}
c.JupyterHub.authenticator_class = "shared-password"
c.SharedPasswordAuthenticator.user_password = {password!r}
c.Authenticator.allow_all = True
c.JupyterHub.spawner_class = "rehearsal.RehearsalSpawner"
c.JupyterHub.extra_user_scopes = set(USER_SCOPES)
c.JupyterHub.services = [portal(Hutch(config=c), Path({config!r}))]
c.JupyterHub.template_paths = [{templates!r}]
c.JupyterHub.template_vars = {{
    "portal_url": portal_address(c.JupyterHub.subdomain_host), "contact": c.Hutch.contact, "facility_name": c.Hutch.facility_name,
}}
"""


@dataclass
class RunningHub:
    """A hub at http://localhost:<port>, with a domain per user, and what it writes in `folder`."""

    folder: Path
    port: int
    process: subprocess.Popen
    log: Path
    restart: Callable[[], None] = lambda: None

    @property
    def portal(self) -> str:
        return f"http://portal--service.localhost:{self.port}/services/portal/"

    @property
    def hub(self) -> str:
        return f"http://localhost:{self.port}/hub/"

    @property
    def release(self) -> Path:
        return self.folder / "release"

    @contextmanager
    def session(self) -> Iterator[Session]:
        engine = open_database(database_url(self.folder))
        with sessions(engine).begin() as session:
            yield session
        engine.dispose()

    @contextmanager
    def signed_in(self, login: str) -> Iterator[Browser]:
        with Browser(self) as browser:
            browser.sign_in(login)
            yield browser

    def add_person(self, login: str, *, experiments: dict[str, int] | None = None, role: str = "") -> str:
        """A person of the facility. experiments: {title: days from now at which the visit starts}, each three days long."""
        with self.session() as session:
            person = User(id=f"id-{login}", login=login, given_name=login.title(), family_name="Test")
            session.add(person)
            session.flush()
            if role:
                session.add(UserRole(user_id=person.id, role=role))
            for number, (title, days) in enumerate((experiments or {}).items()):
                starts = datetime.now(UTC) + timedelta(days=days)
                proposal = Proposal(id=f"2026-{login}-{number}", title=title)
                session.add(proposal)
                session.flush()
                experiment = Experiment(
                    id=f"{login}-{number}",
                    proposal_id=proposal.id,
                    instrument_id="ID16",
                    starts_at=starts,
                    ends_at=starts + timedelta(days=3),
                )
                session.add(experiment)
                session.flush()
                session.add(ExperimentMember(experiment_id=experiment.id, user_id=person.id))
        return login

    def instance(self, login: str, server_name: str) -> Instance | None:
        with self.session() as session:
            query = select(Instance).join(Instance.owner).where(User.login == login, Instance.server_name == server_name)
            return session.scalars(query.order_by(Instance.created_at.desc())).first()


class _OnLoopback(httpx.HTTPTransport):
    """glibc resolves no *.localhost: connect to 127.0.0.1 and keep the Host header."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        here = request.url.copy_with(host="127.0.0.1")
        return super().handle_request(httpx.Request(request.method, here, headers=request.headers, stream=request.stream))


class Browser(httpx.Client):
    """A browser without scripts: keeps cookies, follows redirects, and says where its requests come from."""

    def __init__(self, hub: RunningHub) -> None:
        super().__init__(transport=_OnLoopback(), follow_redirects=True, timeout=PATIENCE_SECONDS, base_url=hub.portal)
        self._hub = hub

    def sign_in(self, login: str) -> httpx.Response:
        page = self.get(urljoin(self._hub.hub, "login"), headers={"Sec-Fetch-Mode": "navigate"})
        token = next(cookie.value for cookie in self.cookies.jar if cookie.name == "_xsrf")
        form = {"username": login, "password": PASSWORD, "_xsrf": token}
        answer = self.post(str(page.url), data=form, headers={"Sec-Fetch-Mode": "navigate"}, follow_redirects=False)
        assert answer.status_code == 302, answer.text
        return self.get("")

    def submit(self, path: str, form: dict | None = None, **options) -> httpx.Response:
        """Send a form of the portal's own pages."""
        return self.post(path, data=form or {}, headers={"Sec-Fetch-Site": "same-origin"}, **options)


@pytest.fixture(scope="module")
def browse() -> Iterator[Callable[[int, str], Browser]]:
    """Signs somebody in at the hub of this port, which lets in everybody who says their name."""
    with ExitStack() as stack:

        def browse(port: int, login: str) -> Browser:
            hub = RunningHub(Path(), port, None, Path())  # type: ignore[arg-type]
            browser = stack.enter_context(Browser(hub))
            browser.sign_in(login)
            return browser

        yield browse


@pytest.fixture(scope="module")
def running_hub(tmp_path_factory: pytest.TempPathFactory) -> RunningHub:
    return shared_hubs.shared("running_hub", lambda: rehearsing(tmp_path_factory.mktemp("hub")))


@contextmanager
def rehearsing(folder: Path) -> Iterator[RunningHub]:
    ports = [free_port() for _ in range(4)]
    names = dict(zip(("port", "hub_port", "proxy_port", "portal_port"), ports, strict=True))
    config = folder / "jupyterhub_config.py"
    templates = str(ROOT / "hub" / "templates")
    config.write_text(
        CONFIG.format(
            state_dir=str(folder),
            database_url=database_url(folder),
            password=PASSWORD,
            templates=templates,
            config=str(config),
            **names,
        )
    )
    hub = RunningHub(folder, ports[0], None, folder / "hub.log")  # type: ignore[arg-type]
    _furnish(hub)

    def start() -> None:
        path = f"{ROOT / 'node_modules' / '.bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {
            **os.environ,
            "PATH": path,
            "PYTHONPATH": f"{ROOT}:{Path(__file__).parent}",
            "HUTCH_CONFIG": str(config),
        }
        with hub.log.open("ab") as log:
            hub.process = subprocess.Popen(
                [sys.executable, "-m", "jupyterhub", "-f", str(config)],
                cwd=folder,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        _wait_until(lambda: _answers(hub), hub)

    hub.restart = start
    start()
    yield hub
    hub.process.send_signal(signal.SIGTERM)
    hub.process.wait(30)


def _furnish(hub: RunningHub) -> None:
    """What every test takes for granted: an instrument and the plans by which a launch is steered."""
    upgrade(open_database(database_url(hub.folder)))
    with hub.session() as session:
        session.add_all([Instrument(id="ID16", name="ID16"), Instrument(id="ID11", name="ID11")])
        plans = {
            "quick": ("Notebook", 2, 8192, []),
            "held": ("X-ray desktop", 8, 32768, []),
            "fails": ("Large memory", 16, 262144, []),
            "dies": ("Old desktop", 8, 32768, []),
            "refused": ("Closed", 2, 8192, []),
            "gpu": ("GPU", 8, 65536, ["ID11"]),
        }
        for position, (name, (title, cores, memory_mb, instruments)) in enumerate(plans.items()):
            session.add(
                Plan(
                    id=name,
                    name=title,
                    image="image",
                    flavor="flavor",
                    cores=cores,
                    memory_mb=memory_mb,
                    limits=[{"instruments": instruments}] if instruments else [],
                    position=position,
                )
            )


def _answers(hub: RunningHub) -> bool:
    """A visit to the portal leads all the way to the page where one signs in."""
    try:
        with Browser(hub) as browser:
            return browser.get("").status_code == 200
    except httpx.HTTPError:
        return False


def _wait_until(condition: Callable[[], bool], hub: RunningHub) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if hub.process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"the hub did not start:\n{hub.log.read_text()[-4000:]}")
        time.sleep(0.1)
