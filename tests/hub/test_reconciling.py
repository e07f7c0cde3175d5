"""Passes over a devcloud: what is written down, what is done and what is not, and that two Hutches see nothing of each other."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from databases import database_url, upgrade
from facility_hub import FacilityHub, facility
from made_servers import make_server
from running_hub import free_port, until
from sqlalchemy import select
from sqlalchemy.orm import Session
from structlog.testing import capture_logs
from traitlets.config import Config

from hub import instances
from hub.configuration import Hutch
from hub.database import seal
from hub.database.engine import open_database
from hub.database.tables import (
    CloudFinding,
    FacilityRole,
    Instance,
    IntentKind,
    Notice,
    Outcome,
    Plan,
    User,
    UserRole,
    now,
)
from hub.facility import Facility
from hub.steward import tasks
from hub.steward.__main__ import _show_metrics
from hub.steward.differences import Rule, State
from hub.steward.reconciling import ALLOW_FILE, QUARANTINE_TAG, Reconciler
from spawner import builders
from spawner.cloud import Cloud
from spawner.devcloud.process import DevcloudProcess, running

LONG_AGO = timedelta(days=30)


@pytest.fixture(scope="module")
def devcloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevcloudProcess]:
    with running(tmp_path_factory.mktemp("devcloud"), payload="stub") as process:
        yield process


@dataclass
class Site:
    """A facility's database, and its steward's part that reconciles. Everything on record was decided long ago."""

    facility: Facility
    devcloud: DevcloudProcess
    reconciler: Reconciler
    served: dict[tuple[str, str], bool]

    def ask(self, work: Any) -> Any:
        return self.facility.ask_here(work)

    def set(self, **settings: Any) -> None:
        for name, value in settings.items():
            setattr(self.facility.hutch, name, value)

    def instance(self, name: str = "films", kind: IntentKind = IntentKind.LAUNCH) -> str:
        """An instance on record that came up, and for which this was done last."""

        def add(session: Session) -> str:
            made = instances.create(
                session, owner_id="vera", server_name=name, display_name=name, plan_id="p", experiment_ids=[], lifetime=None
            )
            made.first_ready_at = now() - LONG_AGO
            intent = instances.intend(session, made.id, kind, "vera")
            instances.conclude(session, intent, Outcome.DONE)
            intent.asked_at = intent.ended_at = now() - LONG_AGO
            return made.id

        if kind is IntentKind.LAUNCH:
            self.served["vera", name] = True
        return self.ask(add)

    async def server(self, instance_id: str) -> dict[str, Any]:
        """As a launch makes it, and up."""
        server_id, port = await make_server(self.reconciler.clouds[""], self.facility.deployment_id, instance_id)
        return until(lambda: self._up(server_id), "the server is up") | {"port": port["id"]}

    def _up(self, server_id: str) -> dict[str, Any] | None:
        server = self.seen(server_id)
        return server if server and server["status"] == "ACTIVE" else None

    def seen(self, server_id: str) -> dict[str, Any] | None:
        answer = self.devcloud.connect().compute.get(f"/servers/{server_id}", microversion="2.79")
        return answer.json()["server"] if answer.status_code == 200 else None

    async def found(self, **options: Any) -> set[tuple[State, str]]:
        return {(one.finding.state, one.finding.resource_id) for one in await self.reconciler.run(**options)}

    def rows(self, **columns: Any) -> list[CloudFinding]:
        return self.ask(lambda session: list(session.scalars(select(CloudFinding).filter_by(**columns).order_by(CloudFinding.id))))

    def age(self, by: timedelta) -> None:
        """Every finding is that much older."""

        def move(session: Session) -> None:
            for row in session.scalars(select(CloudFinding)):
                row.since -= by
                row.quarantined_at = row.quarantined_at and row.quarantined_at - by

        self.ask(move)


def site(folder: Path, devcloud: DevcloudProcess) -> Site:
    folder.mkdir(exist_ok=True)
    url = database_url(folder)
    upgrade(open_database(url))
    facility = Facility(Hutch(config=Config(Hutch={"database_url": url, "state_dir": str(folder)})))
    served: dict[tuple[str, str], bool] = {}

    async def what_is_served() -> dict[tuple[str, str], bool]:
        return served

    def people(session: Session) -> None:
        session.add(User(id="vera", login="vera", given_name="Vera", family_name="V"))
        session.add(Plan(id="p", name="p", image="hutch-notebook", flavor="1", cores=1, memory_mb=1))
        session.flush()
        session.add(UserRole(user_id="vera", role=FacilityRole.ADMIN))

    facility.ask_here(people)
    return Site(facility, devcloud, Reconciler(facility, {"": Cloud("devcloud", devcloud.clouds_yaml)}, what_is_served), served)


@pytest.fixture
def ours(tmp_path: Path, devcloud: DevcloudProcess) -> Site:
    devcloud.reset()
    return site(tmp_path / "ours", devcloud)


async def test_what_is_as_recorded_is_no_difference(ours):
    await ours.server(ours.instance())
    assert await ours.found() == set() and ours.rows() == []


async def test_a_difference_is_written_down_for_as_long_as_it_lasts(ours):
    orphan = await ours.server("nobody")
    assert await ours.found() == {(State.ORPHAN, orphan["id"])}
    (row,) = ours.rows()
    assert (row.kind, row.state, row.instance_id, row.ended_at) == ("server", "orphan", "nobody", None)
    since, seen = row.since, row.seen_at
    await ours.found()
    (row,) = ours.rows()
    assert row.since == since and row.seen_at > seen
    ours.devcloud.trouble(orphan["id"], "forget")
    # its port is what is left
    assert await ours.found() == {(State.PORT_LEFT, orphan["port"])}
    assert [(row.kind, row.ended_at is None) for row in ours.rows()] == [("server", False), ("port", True)]


async def test_a_difference_that_comes_back_is_no_repetition_in_the_log(ours):
    await ours.server(ours.instance())
    with capture_logs() as lines:
        for served in ({}, {("vera", "films"): True}, {}):
            ours.served.clear()
            ours.served.update(served)
            await ours.found()
    first, second = [line for line in lines if line["event"] == "cloud differs"]
    assert first["resource"] == second["resource"] and first != second


async def test_a_dry_run_changes_nothing(ours):
    ours.set(reconcile="delete", quarantine_after_hours=0.0)
    orphan = await ours.server("nobody")
    (planned,) = await ours.reconciler.run(dry_run=True)
    assert planned.due is Rule.QUARANTINE and planned.finding.resource_id == orphan["id"]
    assert ours.rows() == [] and ours.seen(orphan["id"])["status"] == "ACTIVE"


async def test_by_default_it_is_only_reported(ours):
    orphan = await ours.server("nobody")
    await ours.found()
    ours.age(LONG_AGO)
    await ours.found(allow=True)
    assert ours.seen(orphan["id"])["status"] == "ACTIVE" and ours.rows()[0].quarantined_at is None


async def test_an_orphan_is_quarantined_then_deleted_and_its_port_goes_too(ours):
    ours.set(reconcile="delete")
    orphan, stays = await ours.server("nobody"), await ours.server(ours.instance())
    for _ in range(2):
        await ours.found()
        assert ours.seen(orphan["id"])["status"] == "ACTIVE", "its grace is not over"
    ours.age(timedelta(hours=1))
    await ours.found()
    until(lambda: ours.seen(orphan["id"])["status"] == "SHUTOFF", "it is off")
    assert QUARANTINE_TAG in ours.seen(orphan["id"])["tags"]
    ours.age(timedelta(days=6))
    await ours.found()
    assert ours.seen(orphan["id"]), "its quarantine is not over"
    ours.age(timedelta(days=1))
    await ours.found()
    until(lambda: ours.seen(orphan["id"]) is None, "it is deleted")
    for days in (0, 1, 7):
        ours.age(timedelta(days=days))
        await ours.found()
    assert await ours.found() == set() and [row.ended_at is None for row in ours.rows()] == [False, False]
    ports = ours.devcloud.connect().network.get("/ports").json()["ports"]
    assert [port["id"] for port in ports] == [stays["port"]] and ours.seen(stays["id"])["status"] == "ACTIVE"


async def test_a_quarantined_server_that_runs_again_is_not_deleted(ours):
    ours.set(reconcile="delete", quarantine_after_hours=0.0)
    orphan = await ours.server("nobody")
    await ours.found()
    until(lambda: ours.seen(orphan["id"])["status"] == "SHUTOFF", "it is off")
    await ours.reconciler.clouds[""].act(orphan["id"], "os-start")
    until(lambda: ours.seen(orphan["id"])["status"] == "ACTIVE", "somebody has started it")
    ours.age(LONG_AGO)
    await ours.found()
    until(lambda: ours.seen(orphan["id"])["status"] == "SHUTOFF", "it is off again")
    await ours.found()
    assert ours.seen(orphan["id"]), "and its quarantine begins anew"


async def test_what_runs_though_it_was_stopped_is_stopped_and_never_deleted(ours):
    ours.set(reconcile="delete", quarantine_after_hours=0.0)
    instance = ours.instance(kind=IntentKind.STOP)
    server = await ours.server(instance)
    assert await ours.found() == {(State.RUNNING, server["id"])}
    until(lambda: ours.seen(server["id"])["status"] == "SHUTOFF", "it is off")
    assert QUARANTINE_TAG not in ours.seen(server["id"])["tags"]
    assert await ours.found() == set()
    events = ours.ask(lambda session: [event.kind for event in session.get_one(Instance, instance).events])
    assert events[-1] == "reconcile-quarantine"


async def test_somebody_who_starts_it_meanwhile_keeps_it(ours, monkeypatch):
    """Between what was read and what is done about it."""
    ours.set(reconcile="delete", quarantine_after_hours=0.0)
    instance = ours.instance(kind=IntentKind.STOP)
    server = await ours.server(instance)
    allows = ours.reconciler.guard.allows

    async def start_meanwhile(*args: Any) -> bool:
        ours.ask(lambda session: instances.intend(session, instance, IntentKind.LAUNCH, "vera"))
        return await allows(*args)

    monkeypatch.setattr(ours.reconciler.guard, "allows", start_meanwhile)
    assert await ours.found() == {(State.RUNNING, server["id"])}
    assert ours.seen(server["id"])["status"] == "ACTIVE" and ours.rows()[0].quarantined_at is None


async def test_lost_is_only_what_the_cloud_is_certain_of(ours):
    instance = ours.instance()
    server = await ours.server(instance)
    # without its tag it is not in the listing, but its port tells of it
    connection = ours.devcloud.connect()
    connection.compute.delete(f"/servers/{server['id']}/tags/hutch-{ours.facility.deployment_id}", microversion="2.79")
    assert await ours.found() == {(State.DISAGREES, server["id"])}
    ours.devcloud.fault(method="GET", path=f"/servers/{server['id']}$", action="status", status=503, times=None)
    assert await ours.found() == set()
    assert [row.ended_at for row in ours.rows()] == [None], "what is unknown does not end either"
    ours.devcloud.clear_faults()
    ours.devcloud.trouble(server["id"], "forget")
    assert await ours.found() == {(State.LOST, instance)}

    def fail(session: Session) -> None:
        intent = instances.intend(session, instance, IntentKind.LAUNCH, "vera")
        instances.conclude(session, intent, Outcome.FAILED, message="gone")
        intent.asked_at = intent.ended_at = now() - LONG_AGO

    ours.ask(fail)
    assert await ours.found() == {(State.LOST, instance)} and len(ours.rows(state="lost")) == 1
    ours.ask(lambda session: instances.intend(session, instance, IntentKind.LAUNCH, "vera"))
    assert await ours.found() == set(), "what is being launched is not judged"


@pytest.mark.parametrize("path", ["/servers/detail", "/network/v2.0/ports"])
async def test_of_a_cloud_that_does_not_answer_nothing_begins_and_nothing_ends(ours, path):
    orphan, lost = await ours.server("nobody"), ours.instance()
    before = await ours.found()
    assert before == {(State.ORPHAN, orphan["id"]), (State.LOST, lost)}
    ours.devcloud.fault(method="GET", path=path, action="status", status=503, times=None)
    assert await ours.found() == set() and len(ours.reconciler.unread) == 1
    assert {row.ended_at for row in ours.rows()} == {None} and len(ours.rows()) == 2
    ours.devcloud.clear_faults()
    assert await ours.found() == before and len(ours.rows()) == 2


async def test_more_than_a_few_wait_for_an_operator(ours):
    ours.set(reconcile="quarantine", quarantine_after_hours=0.0)
    servers = [await ours.server(f"nobody-{number}") for number in range(4)]
    await ours.found(dry_run=True)
    assert "Nothing was done" in ours.reconciler.withheld and not ours.ask(lambda session: session.scalars(select(Notice)).all())
    for _ in range(2):
        await ours.found()
        assert "Nothing was done" in ours.reconciler.withheld
    assert {ours.seen(server["id"])["status"] for server in servers} == {"ACTIVE"}
    notices = ours.ask(lambda session: [notice.text for notice in session.scalars(select(Notice))])
    assert len(notices) == 1 and "hutch reconcile --dry-run" in notices[0], "the admin is told once"
    (Path(ours.facility.hutch.state_dir) / ALLOW_FILE).touch()
    await ours.found()
    assert not ours.reconciler.withheld
    for server in servers:
        until(lambda server=server: ours.seen(server["id"])["status"] == "SHUTOFF", "it is off")
    assert not (Path(ours.facility.hutch.state_dir) / ALLOW_FILE).exists()


async def test_what_is_found_little_by_little_is_counted_together(ours):
    """Those whose time has not come yet tell as well that something is wrong."""
    ours.set(reconcile="quarantine")
    first = await ours.server("nobody")
    await ours.found()
    ours.age(timedelta(hours=1))
    for number in range(3):
        await ours.server(f"nobody-{number}")
    await ours.found()
    assert ours.seen(first["id"])["status"] == "ACTIVE"


async def test_two_hutches_in_one_project_never_see_each_others(ours, tmp_path):
    theirs = site(tmp_path / "theirs", ours.devcloud)
    server, orphan = await theirs.server(theirs.instance()), await theirs.server("nobody")
    ours.set(reconcile="delete", quarantine_after_hours=0.0)
    assert await ours.found(allow=True) == set()
    # a copy of their database under an id of its own
    seal.decide(theirs.facility.engine, Path(theirs.facility.hutch.state_dir), new=True)
    copy = Facility(theirs.facility.hutch)
    assert copy.deployment_id != theirs.facility.deployment_id
    copy.hutch.reconcile = "delete"
    found = await Reconciler(copy, theirs.reconciler.clouds).run(allow=True)
    assert [one.finding.state for one in found] == [State.LOST]
    assert {ours.seen(one["id"])["status"] for one in (server, orphan)} == {"ACTIVE"}


async def test_volumes_and_floating_ips_are_found_by_our_mark(ours):
    marks = builders.metadata(ours.facility.deployment_id, "nobody")
    connection = ours.devcloud.connect()
    volume = connection.block_storage.post("/volumes", json={"volume": {"name": "data", "metadata": marks}}).json()["volume"]
    connection.block_storage.post("/volumes", json={"volume": {"name": "of others"}})
    body = {"floatingip": {"description": f"hutch-{ours.facility.deployment_id} nobody"}}
    address = connection.network.post("/floatingips", json=body).json()["floatingip"]
    expected = {(State.VOLUME_LEFT, volume["id"]), (State.ADDRESS_LEFT, address["id"])}
    assert await ours.found() == expected
    # unknown is not gone
    ours.devcloud.fault(method="GET", path="/volumes/detail", action="status", status=503, times=None)
    ours.devcloud.fault(method="GET", path="/floatingips", action="status", status=503, times=None)
    assert await ours.found() == set() and {row.ended_at for row in ours.rows()} == {None}
    ours.devcloud.clear_faults()
    connection.block_storage.delete(f"/volumes/{volume['id']}")
    connection.network.delete(f"/floatingips/{address['id']}")
    assert await ours.found() == set() and None not in {row.ended_at for row in ours.rows()}


async def test_what_the_hub_serves_is_compared_too(ours):
    served = await ours.server(ours.instance())
    ours.served.clear()
    ours.served["mallory", "films"] = True
    assert await ours.found() == {(State.NOT_SERVED, served["id"]), (State.STRANGER, "mallory")}
    ours.reconciler.served = None
    await ours.found()
    assert [row.ended_at for row in ours.rows()] == [None, None], "nobody asked the hub"


@pytest.mark.parametrize(("actor", "found", "taken_back"), [(instances.CLOUD, State.NOT_SERVED, 1), ("vera", State.RUNNING, 0)])
async def test_what_nobody_stopped_and_runs_again_is_taken_back_and_not_switched_off(ours, actor, found, taken_back):
    ours.set(reconcile="quarantine", quarantine_after_hours=0)
    instance = ours.instance()
    server = await ours.server(instance)
    ours.served.clear()

    def stop(session: Session) -> None:
        intent = instances.intend(session, instance, IntentKind.STOP, actor)
        instances.conclude(session, intent, Outcome.DONE)
        intent.ended_at = now() - LONG_AGO

    ours.ask(stop)
    assert await ours.found(dry_run=True) == {(found, server["id"])} and ours.ask(tasks.meant_to_run) == []
    assert await ours.found() == {(found, server["id"])}
    assert len(ours.ask(tasks.meant_to_run)) == taken_back
    if taken_back:
        assert ours.seen(server["id"])["status"] == "ACTIVE"
    else:
        until(lambda: ours.seen(server["id"])["status"] == "SHUTOFF", "it is switched off")


async def test_the_number_of_calls_does_not_grow(ours):
    for number in range(3):
        await ours.server(f"nobody-{number}")
    await ours.found()
    counts = []
    for _ in range(2):
        ours.devcloud.clear_calls()
        await ours.found()
        counts.append(ours.devcloud.calls()["total"])
        for number in range(10):
            await ours.server(f"another-{number}")
    assert counts[0] == counts[1] == 5


async def test_a_cloud_without_routers_has_no_floating_ips(ours):
    ours.devcloud.fault(method="GET", path="/extensions", action="status", status=404, times=None)
    ours.devcloud.fault(method="GET", path="/floatingips", action="status", status=404, times=None)
    orphan = await ours.server("nobody")
    assert await ours.found() == {(State.ORPHAN, orphan["id"])} and not ours.reconciler.unread


async def test_admins_are_told_once_however_many_clouds_there_are(ours):
    ours.set(reconcile="quarantine", quarantine_after_hours=0.0)
    for number in range(4):
        await ours.server(f"nobody-{number}")
    # the same project by another way: none of its servers is in the place that is on record
    another = Cloud("devcloud", ours.devcloud.clouds_yaml)
    ours.reconciler.clouds = {"": ours.reconciler.clouds[""], "east": another}
    for _ in range(3):
        await ours.found()
    assert len(ours.ask(lambda session: list(session.scalars(select(Notice))))) == 1
    assert {row.place for row in ours.rows()} == {"", "east"}


async def test_the_metrics_say_what_was_found(ours):
    orphan = await ours.server("nobody")
    assert await ours.found() == {(State.ORPHAN, orphan["id"])}
    port = free_port()
    _show_metrics(port)
    shown = (await asyncio.to_thread(requests.get, f"http://127.0.0.1:{port}/metrics", timeout=10)).text
    assert 'hutch_cloud_findings{state="orphan"} 1.0' in shown and 'hutch_cloud_findings{state="lost"} 0.0' in shown
    # what has the port already does not stop the steward
    _show_metrics(port)


def test_the_command_line_shows_a_running_deployment_and_does_a_pass(hub: FacilityHub):
    until(lambda: (hub.state / seal.FILE).exists(), "the steward has begun its first pass")
    visitor = hub.visitor()
    hub.launched(visitor)
    (server,) = hub.servers(visitor)
    stray = {"hutch-deployment": hub.deployment, "hutch-instance": "nobody"}
    body = {"name": "hutch-stray", "imageRef": server["image"]["id"], "flavorRef": "2", "networks": "auto", "metadata": stray}
    body["tags"] = [f"hutch-{hub.deployment}"]
    made = hub.cloud.compute.post("/servers", json={"server": body}, microversion="2.79").json()["server"]["id"]
    try:
        shown = hub.hutch("reconcile", "--dry-run")
        assert shown.returncode == 0, shown.stderr
        assert made in shown.stdout and State.ORPHAN.sentence in " ".join(shown.stdout.split())
        assert server["id"] not in shown.stdout and not _rows(hub, made)
        assert hub.hutch("reconcile").returncode == 0 and _rows(hub, made) == ["orphan"]
        hub.devcloud.fault(method="GET", path="/network/v2.0/ports", action="status", status=403, times=None)
        refused = hub.hutch("reconcile")
        assert refused.returncode == 1 and "refused to list the network ports" in refused.stderr
        assert "as the records say" not in refused.stdout
    finally:
        hub.devcloud.clear_faults()
        # with the port that the cloud made for it
        hub.cloud.compute.delete_server(made)
    until(lambda: not hub.orphans(), "nothing of it is left")


COMPARING = """
import datetime
import hub.steward.differences
hub.steward.differences.SETTLED = datetime.timedelta(seconds=1)
c.Hutch.reconcile_interval_seconds = 0.2
c.Hutch.delete_grace_days = 0
c.Hutch.reconcile = "delete"
c.Hutch.quarantine_after_hours = c.Hutch.quarantine_days = 0
"""


def test_an_ordinary_life_is_no_difference(tmp_path):
    """Compared several times a second, with no grace at all."""
    with facility(tmp_path, COMPARING) as hub:
        visitor = hub.visitor()
        hub.launched(visitor)
        hub.end(visitor)
        hub.start_again(visitor)
        hub.until_ready(visitor.login, "films")
        hub.end(visitor, remove=True)
        until(lambda: hub.instance(visitor).purged_at, "the instance is purged")
        assert not hub.servers() and not hub.ports()
        with hub.session() as session:
            assert [(row.state, row.detail) for row in session.scalars(select(CloudFinding))] == []
        other = hub.visitor()
        hub.launched(other)
        (server,) = hub.servers(other)
        hub.devcloud.trouble(server["id"], "forget")
        until(lambda: _rows(hub, hub.instance(other).id) == ["lost"], "it is found to be lost")


def _rows(hub: FacilityHub, resource_id: str) -> list[str]:
    with hub.session() as session:
        return list(session.scalars(select(CloudFinding.state).where(CloudFinding.resource_id == resource_id)))
