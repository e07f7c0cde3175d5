"""A facility's hub on the real API: TLS up to the notebooks, places, the queue, reconciling.

Its servers are the fake compute's, and true agents stand in for what would run in them.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from cryptography import x509
from facility_hub import FacilityHub, Visitor, started
from made_servers import make_server
from openstack.connection import Connection
from running_hub import until
from sqlalchemy import select
from stand_ins import standing_in

from hub import queue
from hub.database.tables import CloudFinding
from hub.steward.differences import State
from spawner import builders
from spawner.cloud import Cloud
from tests.openstack.conftest import CLOUDS_YAML, connection

pytestmark = pytest.mark.timeout(600)
CONFIG = """
import datetime
import hub.queue
import hub.steward.differences
hub.queue.FIRST_PAUSE = datetime.timedelta(seconds=1)
hub.steward.differences.SETTLED = datetime.timedelta(seconds=1)
c.JupyterHub.internal_ssl = True
c.ConfigurableHTTPProxy.api_url = c.ConfigurableHTTPProxy.api_url.replace("http:", "https:")
c.Spawner.http_timeout = 60
c.Hutch.delete_grace_days = 0
c.Hutch.reconcile = "delete"
c.Hutch.quarantine_after_hours = c.Hutch.quarantine_days = 0
c.OpenStackSpawner.cloud_name = "hutch-app"
c.OpenStackSpawner.availability_zone = "fake"
c.OpenStackSpawner.places = {
    "closed": {"availability_zone": "real"}, "crowded": {"flavors": {"m1.small": "too-big"}}, "free": {}
}
c.OpenStackSpawner.fast_listing_seconds = 1
c.OpenStackSpawner.slow_listing_seconds = 5
c.OpenStackSpawner.stop_timeout_seconds = 60
"""


@pytest.fixture(scope="module")
def clouds_yaml(real_cloud: Connection, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with standing_in(CLOUDS_YAML, tmp_path_factory.mktemp("stand-ins"), "agent") as (_, clouds_yaml):
        yield clouds_yaml


@pytest.fixture(scope="module")
def admin(clouds_yaml: Path) -> Iterator[Connection]:
    with connection("admin", clouds_yaml) as admin:
        yield admin


@pytest.fixture(scope="module")
def hub(clouds_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FacilityHub]:
    with connection("hutch-app", clouds_yaml) as cloud:
        devcloud: Any = SimpleNamespace(clouds_yaml=clouds_yaml, connect=lambda: cloud)
        hub = FacilityHub(tmp_path_factory.mktemp("facility"), devcloud, CONFIG)
        hub.plan("anywhere", places=["closed", "crowded", "free"])
        hub.plan("crowded", places=["crowded"])
        with started(hub):
            yield hub


@pytest.fixture
def visitor(hub: FacilityHub) -> Iterator[Visitor]:
    """What is theirs is gone afterwards."""
    visitor = hub.visitor()
    yield visitor
    for instance in hub.instances(visitor):
        hub.end(visitor, instance.server_name, remove=True)
    until(lambda: hub.servers(visitor) == hub.ports(visitor) == [], "nothing of theirs is left")


def on(plan: str, visitor: Visitor) -> dict[str, Any]:
    return {"display_name": "films", "user_options": {"plan": plan, "experiments": [visitor.experiment]}}


# --- what operators do


def test_what_operators_do_is_said_and_a_start_goes_on_with_the_same_server(hub, visitor):
    hub.launch(visitor)
    hub.until_ready(visitor.login, "films", 200)
    (server,) = hub.servers(visitor)
    for verb, status, found, undo in (
        ("pause", "PAUSED", {"kind": "stop", "reason": "the server was found paused"}, ""),
        ("suspend", "SUSPENDED", {"kind": "stop", "reason": "the server was found suspended"}, ""),
        ("rescue", "RESCUE", {"kind": "launch", "outcome": "failed"}, "unrescue"),
    ):
        assert hub.operate(visitor, verb) == status
        hub.until_intent(visitor, **found)
        hub.until_idle(visitor.login, "films")
        if undo:
            assert hub.operate(visitor, undo) == "ACTIVE"
        assert hub.start_again(visitor).status_code in (201, 202)
        hub.until_ready(visitor.login, "films", 200)
    small = hub.cloud.compute.find_flavor("m1.tiny").id
    assert hub.operate(visitor, "resize", {"flavorRef": small}) == "VERIFY_RESIZE"
    hub.operate(visitor, "confirmResize")
    until(lambda: hub.servers(visitor)[0]["status"] == "ACTIVE", "the resize is confirmed")
    hub.until_ready(visitor.login, "films", 200)
    hub.end(visitor)
    hub.operate(visitor, "lock")
    hub.start_again(visitor)
    assert "locked in the cloud" in hub.until_intent(visitor, kind="launch", outcome="failed").message
    hub.until_idle(visitor.login, "films")
    hub.operate(visitor, "unlock")
    hub.start_again(visitor)
    hub.until_ready(visitor.login, "films", 200)
    assert [one["id"] for one in hub.servers(visitor)] == [server["id"]] and len(hub.ports(visitor)) == 1


# --- TLS


def test_two_launches_of_one_person_at_once_and_a_resume_elsewhere_have_certificates_of_their_own(hub, visitor, admin):
    for name in ("one", "two"):
        assert hub.launch(visitor, name).status_code == 202
    shown = {}
    for name in ("one", "two"):
        hub.until_ready(visitor.login, name, 200)
        shown[name] = certificate(target(hub, visitor, name))
        assert answers(hub, visitor, name)
    assert shown["one"].public_key() != shown["two"].public_key()
    assert names_in(shown["one"]) != names_in(shown["two"])

    before = address_in(target(hub, visitor, "one"))
    hub.end(visitor, "one")
    new = "10.77.0.15"
    (port,) = [port for port in hub.ports(visitor) if port["fixed_ips"][0]["ip_address"] == before]
    admin.network.update_port(port["id"], fixed_ips=[{"ip_address": new}])
    hub.start_again(visitor, "one")
    hub.until_ready(visitor.login, "one", 200)
    assert address_in(target(hub, visitor, "one")) == new
    assert new in names_in(certificate(target(hub, visitor, "one"))) and answers(hub, visitor, "one")
    assert certificate(target(hub, visitor, "two")) == shown["two"]


def target(hub: FacilityHub, visitor: Visitor, name: str) -> str:
    """Where the proxy sends what is for this server."""
    routes = hub.api("GET", "proxy").json()
    (found,) = [route["target"] for path, route in routes.items() if path.endswith(f"/user/{visitor.login}/{name}/")]
    assert found.startswith("https://")
    return found


def address_in(url: str) -> str:
    return url.removeprefix("https://").split(":")[0]


def certificate(url: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(ssl.get_server_certificate((address_in(url), 8888)).encode())


def names_in(certificate: x509.Certificate) -> list[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(name.value) for name in names]


def answers(hub: FacilityHub, visitor: Visitor, name: str) -> bool:
    """The notebook, through the proxy; to know whose token that is, it asks the hub."""
    headers = {"Host": f"{visitor.login}.localhost:{hub.port}", "Authorization": f"token {visitor.token}"}
    url = f"http://127.0.0.1:{hub.port}/user/{visitor.login}/{name}/api/status"
    return "kernels" in requests.get(url, headers=headers, timeout=60).json()


# --- places


@contextmanager
def closed(admin: Connection, host: str) -> Iterator[None]:
    """Nova says that the zone of this host, the only one there, is not available."""
    (service,) = [one for one in admin.compute.services() if (one.binary, one.host) == ("nova-compute", host)]
    admin.compute.disable_service(service)
    try:
        yield
    finally:
        admin.compute.enable_service(service)


def test_places_without_room_are_left_for_the_next_if_the_plan_allows(hub, visitor, admin):
    with closed(admin, "compute"):
        assert hub.launched(visitor, **on("anywhere", visitor)).place == "free"
    (server,), (port,) = hub.servers(visitor), hub.ports(visitor)
    assert (server["status"], port["device_id"]) == ("ACTIVE", server["id"])
    left = [place for place in ("closed", "crowded") if f"no room in place '{place}'" in hub.log()]
    assert left == ["closed", "crowded"]


def test_a_plan_for_one_place_waits_for_room_there(hub, visitor):
    hub.launch(visitor, **on("crowded", visitor))
    until(lambda: waits(hub) == [visitor.login], "it waits")
    assert hub.instance(visitor).place == "crowded"


def waits(hub: FacilityHub) -> list[str]:
    with hub.session() as session:
        return [one.login for one in queue.waiting(session)]


# --- the queue


def test_a_launch_beyond_the_quota_waits_and_goes_on_when_there_is_room(hub, visitor, admin):
    project = admin.identity.find_project("hutch").id
    until(lambda: hub.servers() == [], "the project is empty")
    admin.set_compute_quotas(project, instances=0)
    try:
        answer = hub.launch(visitor)
        until(lambda: waits(hub) == [visitor.login], f"it waits: {answer.text}")
        assert hub.servers() == hub.ports() == [] and hub.intent(visitor).outcome is None
    finally:
        admin.set_compute_quotas(project, instances=10)
    hub.until_ready(visitor.login, "films", 200)
    launch = hub.until_intent(visitor, kind="launch", outcome="done")
    assert launch.actor == visitor.login and len(hub.instance(visitor).intents) == 1 and not waits(hub)


# --- reconciling


async def test_what_differs_is_shown_then_done_and_a_foreign_server_is_neither(hub, visitor, clouds_yaml):
    hub.launched(visitor)
    (lost,) = hub.servers(visitor)
    cloud = Cloud("hutch-app", clouds_yaml)
    orphan, its_port = await make_server(cloud, hub.deployment, "nobody", zone="fake")
    left = await cloud.create_port(builders.port_request(await cloud.network_id("hutch"), "no-one", hub.deployment))
    foreign, foreign_port = await make_server(cloud, "6f1f5a3e-0000-4000-8000-000000000000", "theirs", zone="fake")
    hub.cloud.compute.delete_server(lost["id"])
    states = lambda: {server["id"]: server["status"] for server in hub.servers()}  # noqa: E731
    until(lambda: states() == {orphan: "ACTIVE", foreign: "ACTIVE"}, "two are up, one is gone")
    until(lambda: not hub.server(visitor.login, "films"), "the hub has seen that it is gone")

    told = hub.hutch("reconcile", "--dry-run")
    shown = {
        word: line for line in told.stdout.splitlines() for word in (State.ORPHAN, State.PORT_LEFT, State.LOST) if word in line
    }
    expected = {State.ORPHAN: orphan, State.PORT_LEFT: left["id"], State.LOST: hub.instance(visitor).id}
    assert {state: its in shown.get(state, "") for state, its in expected.items()} == dict.fromkeys(expected, True), told
    assert foreign not in told.stdout and set(states()) == {orphan, foreign} and findings(hub) == set()

    def passes(done: Callable[[], bool]) -> Callable[[], bool]:
        return lambda: hub.hutch("reconcile").returncode == 0 and done()

    # off first, then deleted
    until(passes(lambda: states().get(orphan) == "SHUTOFF"), "the orphan is quarantined")
    until(passes(lambda: orphan not in states()), "the orphan is deleted")
    until(passes(lambda: {left["id"], its_port["id"]}.isdisjoint(port["id"] for port in hub.ports())), "its ports are deleted")
    assert states() == {foreign: "ACTIVE"} and findings(hub) >= {(State.LOST, hub.instance(visitor).id), (State.ORPHAN, orphan)}
    assert hub.instance(visitor).deleted_at is None
    await cloud.delete_server(foreign)
    await cloud.delete_port(foreign_port["id"])
    cloud.close()


def findings(hub: FacilityHub) -> set[tuple[str, str]]:
    with hub.session() as session:
        return {(row.state, row.resource_id) for row in session.scalars(select(CloudFinding))}
