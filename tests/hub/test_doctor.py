"""`hutch doctor` on real things: devcloud, an OpenID provider, a mail server; each as it should be, and each failing."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiosmtpd.controller import Controller
from databases import upgrade
from jupyterhub.app import JupyterHub
from openid_provider import SECRET, OpenIDProcess
from running_hub import REPOSITORY, free_port, until
from sqlalchemy.orm import Session

from hub import configuration, doctor, instances
from hub.authenticator import DemoAuthenticator
from hub.configuration import Hutch
from hub.database import seal
from hub.database.engine import deployment_id, open_database, sessions
from hub.database.tables import IntentKind, Outcome, Plan, User
from hub.launching import InstanceSpawner
from spawner import builders
from spawner.agent_tls import HubIdentity
from spawner.devcloud.process import DevcloudProcess, running

pytestmark = pytest.mark.any_database

MAIL_PASSWORD = "a password for mail"
WORKING = {
    "database_url": None,
    "clouds_yaml": None,
    "network": "hutch",
    "groups": [],
    "issuer": None,
    "smtp_url": "",
    "agent_port": 8765,
    "more": "",
}
CONFIG = """
c = get_config()
c.Hutch.database_url = {database_url!r}
c.Hutch.smtp_url = {smtp_url!r}
c.OpenStackSpawner.cloud_name = "devcloud"
c.OpenStackSpawner.clouds_yaml = {clouds_yaml!r}
c.OpenStackSpawner.network = {network!r}
c.OpenStackSpawner.security_groups = {groups!r}
c.OpenStackSpawner.agent_port = {agent_port!r}
issuer = {issuer!r}
if issuer:
    provider = {{"issuer": issuer, "client_id": "hutch", "client_secret_file": "secret"}}
    c.FacilityAuthenticator.providers = {{"office": provider}}
{more}
"""


@pytest.fixture(scope="module")
def devcloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevcloudProcess]:
    with running(tmp_path_factory.mktemp("devcloud"), payload="stub") as process:
        yield process


@pytest.fixture(scope="module")
def provider(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenIDProcess]:
    process = OpenIDProcess(tmp_path_factory.mktemp("provider"), "127.0.0.7", {})
    process.start(8000, "office")
    yield process
    process.stop()


@dataclass
class Deployment:
    folder: Path
    values: dict[str, Any]
    devcloud: DevcloudProcess

    def write(self, **changes: Any) -> None:
        self.values |= changes
        (self.folder / "jupyterhub_config.py").write_text(CONFIG.format(**self.values))

    async def outcome(self, title: str, **changes: Any) -> tuple[str, str]:
        """Of one check; and no outcome says a secret."""
        if changes:
            self.write(**changes)
        found = {name: (outcome, words) async for name, outcome, words in doctor.examine(doctor.Site())}
        assert list(found) == [check[0] for check in doctor.CHECKS]
        secrets = (SECRET, MAIL_PASSWORD, "database password", *self._cloud_secrets())
        assert not [secret for secret in secrets for _, words in found.values() if secret in words]
        return found[title]

    def _cloud_secrets(self) -> list[str]:
        lines = self.devcloud.clouds_yaml.read_text().splitlines()
        return [line.partition(": ")[2].strip("'\"") for line in lines if "password:" in line or "secret:" in line]

    def add(self, work: Callable[[Session], Any]) -> Any:
        with sessions(open_database(self.values["database_url"])).begin() as session:
            return work(session)


@pytest.fixture
def deployment(tmp_path, devcloud, provider, monkeypatch) -> Deployment:
    devcloud.reset()
    monkeypatch.setenv("HUTCH_CONFIG", str(tmp_path / "jupyterhub_config.py"))
    url = f"sqlite:///{tmp_path / 'hutch.sqlite'}"
    upgrade(open_database(url))
    (tmp_path / ".hutch").mkdir()
    (tmp_path / ".hutch" / "secret").write_text(SECRET)
    made = Deployment(tmp_path, WORKING | {"database_url": url, "clouds_yaml": str(devcloud.clouds_yaml)}, devcloud)
    made.write(issuer=provider.issuer)
    made.add(lambda session: session.add(plan("notebook")))
    return made


def plan(name: str, **values: Any) -> Plan:
    return Plan(id=name, **{"name": name, "image": "hutch-notebook", "flavor": "m1.small", "cores": 1, "memory_mb": 1} | values)


@contextmanager
def silent_port() -> Iterator[int]:
    """Somebody accepts connections there and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


async def test_each_check_passes_where_all_is_as_it_should_be(deployment):
    passing = ("configuration", "database", "sign-on", "cloud login", "quotas", "images and flavors", "network")
    for title in passing:
        assert (await deployment.outcome(title))[0] == "PASS"
    assert "instances 0 of 4000" in (await deployment.outcome("quotas"))[1]


@pytest.mark.parametrize("title", ["security groups", "agents", "mail", "sign-on", "images and flavors"])
async def test_what_is_not_there_to_check_is_left_out_and_says_why(deployment, title):
    deployment.add(lambda session: session.delete(session.get_one(Plan, "notebook")))
    outcome, words = await deployment.outcome(title, issuer=None)
    assert outcome == "SKIP" and words


async def test_a_configuration_that_cannot_be_read(deployment):
    outcome, words = await deployment.outcome("configuration", more="c.Hutch.no_such_setting = 1")
    assert outcome == "FAIL" and "no_such_setting" in words
    assert await deployment.outcome("cloud login") == ("SKIP", "needs configuration")
    outcome, words = await deployment.outcome("configuration", more='c.OpenStackSpawner.agent_port = "many"')
    assert outcome == "FAIL" and "agent_port" in words


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("OpenStackSpawner.netwrok", "c.OpenStackSpawner has no setting 'netwrok'; did you mean network?"),
        ("InstanceSpawner.boot_timeout_second", "did you mean boot_timeout_seconds?"),
        ("FacilityAuthenticator.provider", "did you mean providers?"),
        ("JupyterHub.subdomain_hots", "did you mean subdomain_host?"),
        ("OpenStackSpwaner.network", "there is no c.OpenStackSpwaner; did you mean c.OpenStackSpawner?"),
    ],
)
async def test_a_setting_that_is_misspelt_is_named_with_the_one_that_was_meant(deployment, setting, said):
    outcome, words = await deployment.outcome("configuration", more=f"c.{setting} = 1")
    assert outcome == "FAIL" and said in words
    assert (await deployment.outcome("network"))[0] == "PASS"


def test_no_setting_of_a_whole_configuration_is_called_unknown(tmp_path):
    """Nor one that a class below takes, or a program that Hutch does not know."""
    of_others = "c.Spawner.network = 'n'\nc.LocalProcessSpawner.shell_cmd = ['sh']\nc.Elsewhere.thing = 1\n"
    file = tmp_path / "jupyterhub_config.py"
    file.write_text(f"{of_others}{(REPOSITORY / 'jupyterhub_config.py').read_text()}")
    classes = Hutch, JupyterHub, InstanceSpawner, DemoAuthenticator
    assert list(configuration.unknown_settings(configuration.read(file), *classes)) == []


async def test_a_state_dir_that_cannot_be_written_keeps_no_other_check_from_running(deployment):
    (deployment.folder / "file").write_text("")
    more = f"c.Hutch.state_dir = {str(deployment.folder / 'file')!r}"
    outcome, words = await deployment.outcome("configuration", more=more)
    assert outcome == "FAIL" and "nothing can be written in the state_dir" in words
    assert (await deployment.outcome("network"))[0] == "PASS"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite:///{folder}/empty.sqlite", "hutch db upgrade"),
        ("sqlite:////proc/nowhere/hutch.sqlite", "cannot make the folder"),
        (f"postgresql://hutch:database password@127.0.0.1:{free_port()}/hutch", "cannot reach"),
    ],
    ids=["empty", "nowhere", "no-server"],
)
async def test_a_database_that_cannot_be_used(deployment, url, said):
    outcome, words = await deployment.outcome("database", database_url=url.format(folder=deployment.folder))
    assert outcome == "FAIL" and said in words
    assert (await deployment.outcome("quotas"))[0] == "PASS"
    assert await deployment.outcome("images and flavors") == ("SKIP", "needs database")


async def test_a_database_that_is_a_copy(deployment):
    database = open_database(deployment.values["database_url"])
    deployment_id(database)
    assert seal.renew(database, deployment.folder / ".hutch")
    (deployment.folder / ".hutch" / seal.FILE).write_text("another")
    outcome, words = await deployment.outcome("database")
    assert outcome == "FAIL" and "hutch db seal --keep" in words


async def test_a_provider_that_is_not_there(deployment):
    outcome, words = await deployment.outcome("sign-on", issuer=f"http://127.0.0.1:{free_port()}")
    assert outcome == "FAIL" and "does not answer as an OpenID provider" in words


async def test_a_provider_that_calls_itself_otherwise(deployment, provider):
    outcome, words = await deployment.outcome("sign-on", issuer=f"{provider.issuer}/")
    assert outcome == "FAIL" and "calls itself" in words


async def test_a_provider_whose_secret_cannot_be_read(deployment):
    (deployment.folder / ".hutch" / "secret").unlink()
    outcome, words = await deployment.outcome("sign-on")
    assert outcome == "FAIL" and "client_secret_file" in words


async def test_a_cloud_that_is_not_there(deployment):
    deployment.devcloud.fault(method="POST", path="/auth/tokens", action="status", status=401, times=None)
    outcome, words = await deployment.outcome("cloud login")
    assert outcome == "FAIL" and "does not accept Hutch's credentials" in words
    deployment.devcloud.clear_faults()
    outcome, words = await deployment.outcome("cloud login", clouds_yaml=str(deployment.folder / "nothing.yaml"))
    assert outcome == "FAIL" and "nothing.yaml" in words and "No such file" in words
    (deployment.folder / "clouds.yaml").write_text("clouds:\n  devcloud: [: {\n  password: a password for mail\n")
    outcome, words = await deployment.outcome("cloud login", clouds_yaml=str(deployment.folder / "clouds.yaml"))
    assert outcome == "FAIL" and "clouds.yaml, line 2 is not YAML" in words


async def test_of_two_clouds_the_one_that_answers_is_looked_at(deployment, monkeypatch):
    monkeypatch.setattr(doctor, "LOOK_SECONDS", 1)
    with silent_port() as port:
        text = deployment.devcloud.clouds_yaml.read_text()
        clouds = yaml.safe_load(text)["clouds"] | {
            "partner": yaml.safe_load(text.replace(deployment.devcloud.url, f"http://127.0.0.1:{port}"))["clouds"]["devcloud"]
        }
        (deployment.folder / "clouds.yaml").write_text(yaml.safe_dump({"clouds": clouds}))
        more = 'c.OpenStackSpawner.places = {"main": {}, "partner": {"cloud_name": "partner", "network": "hutch"}}'
        deployment.write(more=more, clouds_yaml=str(deployment.folder / "clouds.yaml"))
        assert (await deployment.outcome("network"))[0] == "PASS"
        outcome, words = await deployment.outcome("cloud login")
    assert outcome == "FAIL" and words.startswith("partner: no answer within 1 s;")


async def test_a_quota_that_is_used_up(deployment):
    deployment.devcloud.quota(cores=0)
    outcome, words = await deployment.outcome("quotas")
    assert outcome == "FAIL" and "nothing is left of cores" in words


async def test_every_image_and_flavor_that_is_missing_is_named(deployment):
    deployment.add(lambda session: session.add_all([plan("one", image="lost-image"), plan("two", flavor="lost-flavor")]))
    outcome, words = await deployment.outcome("images and flavors")
    assert outcome == "FAIL" and "lost-image" in words and "lost-flavor" in words
    deployment.add(lambda session: session.add(plan("three", places=["atlantis"])))
    outcome, words = await deployment.outcome("images and flavors")
    assert outcome == "FAIL" and "The place atlantis is not" in words


async def test_a_network_and_a_group_that_are_missing(deployment):
    outcome, words = await deployment.outcome("network", network="nowhere")
    assert outcome == "FAIL" and "no network named nowhere" in words
    outcome, words = await deployment.outcome("security groups", groups=["default", "nobody"])
    assert outcome == "FAIL" and "no security group named nobody" in words
    assert (await deployment.outcome("security groups", groups=["default"]))[0] == "PASS"
    more = 'c.Hutch.firewall = {"hub_addresses": ["10.77.0.1"], "groups": {"our-own": {}}}'
    outcome, words = await deployment.outcome("security groups", more=more)
    assert outcome == "FAIL" and "our-own" in words and "-base" in words


@pytest.fixture
def running_instance(deployment) -> dict[str, Any]:
    """On record, and its server in devcloud, whose stub listens as an agent does."""

    def add(session: Session) -> str:
        session.add(User(id="vera", login="vera", given_name="Vera", family_name="V"))
        session.flush()
        names = {"server_name": "films", "display_name": "Films", "plan_id": "notebook"}
        made = instances.create(session, owner_id="vera", experiment_ids=[], lifetime=None, **names)
        instances.conclude(session, instances.intend(session, made.id, IntentKind.LAUNCH, "vera"), Outcome.DONE)
        return made.id

    instance, cloud = deployment.add(add), deployment.devcloud.connect()
    body = builders.server_request(
        instance_id=instance,
        deployment_id=deployment_id(open_database(deployment.values["database_url"])),
        image_id=cloud.image.find_image("hutch-notebook").id,
        flavor_id="2",
        port_id="",
        user_data=builders.user_data(HubIdentity(deployment.folder / "tls").hub_ca_pem(), 8765),
    )
    body["server"]["networks"] = "auto"
    server = cloud.compute.post("/servers", json=body, microversion="2.79").json()["server"]["id"]
    return until(lambda: (seen := cloud.compute.get_server(server)).status == "ACTIVE" and seen, "the server is up")


async def test_an_agent_that_listens_and_one_that_does_not(deployment, running_instance, monkeypatch):
    outcome, words = await deployment.outcome("agents")
    assert (outcome, "accepts connections" in words) == ("PASS", True), words
    monkeypatch.setattr(doctor, "AGENT_SECONDS", 0.5)
    deployment.devcloud.trouble(running_instance.id, "mute")
    outcome, words = await deployment.outcome("agents")
    assert outcome == "FAIL" and "Nothing listens" in words


class Postbox:
    """Takes no mail at all: nothing is to be sent."""

    async def handle_DATA(self, *_: Any) -> str:
        raise AssertionError("a mail was sent")


async def test_mail_that_can_be_sent_and_mail_that_cannot(deployment):
    controller = Controller(Postbox(), hostname="localhost", port=free_port())
    controller.start()
    try:
        outcome, words = await deployment.outcome("mail", smtp_url=f"smtp://localhost:{controller.port}")
        assert outcome == "PASS" and "nothing was sent" in words
        # a password goes to nobody who cannot encrypt
        (deployment.folder / "login").write_text(f"hutch\n{MAIL_PASSWORD}\n")
        assert (await deployment.outcome("mail", more='c.Hutch.smtp_login_file = "login"'))[0] == "FAIL"
    finally:
        controller.stop()
    outcome, _ = await deployment.outcome("mail", more="")
    assert outcome == "FAIL"


async def test_each_check_has_a_time_out(deployment, monkeypatch):
    monkeypatch.setattr(doctor, "SECONDS", 0.5)
    with silent_port() as port:
        outcome, words = await deployment.outcome("mail", smtp_url=f"smtp://localhost:{port}")
    assert outcome == "FAIL" and "no answer within 0.5 s" in words


@pytest.mark.parametrize(("network", "status"), [("hutch", 0), ("nowhere", 1)])
def test_the_command_says_it_with_its_exit_status(deployment, network, status):
    deployment.write(network=network)
    done = subprocess.run([sys.executable, "-m", "hutch", "doctor"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == status, done.stdout + done.stderr
    assert "PASS database: " in done.stdout and ("FAIL network: " in done.stdout) is bool(status)


def test_every_check_says_what_to_do():
    titles = [check[0] for check in doctor.CHECKS]
    assert all(advice and {*needs} <= {*titles[:number]} for number, (_, _, needs, advice) in enumerate(doctor.CHECKS))
