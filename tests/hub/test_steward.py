"""What the steward does by itself: it deletes what is due and nothing else, finishes stops, and tries again with pauses."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import psutil
import pytest
from databases import upgrade
from facility_hub import FacilityHub, Visitor
from running_hub import until
from sqlalchemy import select
from structlog.testing import capture_logs

from hub import instances
from hub.configuration import Hutch
from hub.database.engine import DatabaseError, open_database
from hub.database.tables import Instance, Intent, IntentKind, Notice, Outcome, now
from hub.facility import Facility
from hub.queue import LONGEST_PAUSE
from hub.steward.__main__ import Steward
from hub.steward.tasks import Pauses

NOW = datetime(2026, 3, 10, 12, tzinfo=UTC)


def deleted(hub: FacilityHub) -> tuple[Visitor, Instance]:
    """Somebody, and their instance that was marked for deletion."""
    visitor = hub.visitor()
    hub.launched(visitor)
    hub.end(visitor, remove=True)
    hub.until_dropped(visitor)
    return visitor, hub.instance(visitor)


def make_due(hub: FacilityHub, instance: Instance) -> None:
    def move(session: Any) -> None:
        session.get_one(Instance, instance.id).purge_at = now() - timedelta(seconds=1)

    hub.change(move)


def test_what_is_due_is_deleted_and_nothing_else(hub):
    (due, instance), (later, _), bystander = deleted(hub), deleted(hub), hub.visitor()
    hub.launched(bystander)
    foreign = foreign_twin(hub, instance)
    make_due(hub, instance)
    until(lambda: hub.instance(due).purged_at, "the instance is purged")
    assert (hub.intent(due).kind, hub.intent(due).outcome) == ("delete", "done")
    assert hub.servers(bystander) and hub.ports(bystander)
    assert [(len(hub.servers(later)), len(hub.ports(later))), hub.instance(later).purged_at] == [(1, 1), None]
    # what is left of this instance's id is the other deployment's
    assert [server["id"] for server in hub.servers(due)] == [foreign["server"]]
    assert [port["id"] for port in hub.cloud.network.get(f"/ports?name=hutch-{instance.id[:8]}").json()["ports"]] == [
        foreign["port"]
    ]
    hub.devcloud.trouble(foreign["server"], "forget")
    hub.cloud.network.delete(f"/ports/{foreign['port']}")


def foreign_twin(hub: FacilityHub, instance: Instance) -> dict[str, str]:
    """A server and a port of another deployment in the same project, as a hub on a copied database makes them: the same names."""
    name, cloud = f"hutch-{instance.id[:8]}", hub.cloud
    network = cloud.network.find_network("hutch")
    body = {"network_id": network.id, "name": name, "description": f"hutch-another {instance.id}"}
    port = cloud.network.post("/ports", json={"port": body}).json()["port"]["id"]
    image, flavor = cloud.image.find_image("hutch-notebook").id, cloud.compute.find_flavor("m1.small").id
    server = {"name": name, "imageRef": image, "flavorRef": flavor, "networks": [{"port": port}]}
    server["metadata"] = {"hutch-deployment": "another", "hutch-instance": instance.id}
    server["tags"] = ["hutch-another", f"hutch-{hub.deployment}"]
    made = cloud.compute.post("/servers", json={"server": server}, microversion="2.79").json()["server"]["id"]
    return {"port": port, "server": made}


@pytest.mark.parametrize("call", ["servers/detail", "DELETE server", "DELETE port"])
def test_a_purge_that_the_cloud_fails_is_repeated(hub, call):
    visitor, instance = deleted(hub)
    method, path = {
        "servers/detail": ("GET", "/servers/detail"),
        "DELETE server": ("DELETE", "/servers/"),
        "DELETE port": ("DELETE", "/ports/"),
    }[call]
    hub.devcloud.fault(method=method, path=path, action="status", status=503, times=2)
    make_due(hub, instance)
    until(lambda: hub.instance(visitor).purged_at, "the instance is purged")
    assert hub.servers(visitor) == hub.ports(visitor) == []


def test_a_server_that_will_not_go_keeps_no_other_from_being_purged(hub):
    (stuck, first), (other, second) = deleted(hub), deleted(hub)
    (server,) = hub.servers(stuck)
    # it is taken as done, and nothing is
    fault = {"method": "DELETE", "path": f"/servers/{server['id']}", "action": "status", "status": 404}
    hub.devcloud.fault(**fault, times=None)
    make_due(hub, first)
    make_due(hub, second)
    until(lambda: hub.instance(other).purged_at, "the other one is purged")
    assert hub.instance(stuck).purged_at is None and hub.servers(stuck)
    hub.devcloud.trouble(server["id"], "forget")
    until(lambda: hub.instance(stuck).purged_at, "what is gone by now is purged")


def test_an_instance_without_anything_in_the_cloud_is_purged(hub):
    visitor, instance = deleted(hub)
    (server,), (port,) = hub.servers(visitor), hub.ports(visitor)
    hub.devcloud.trouble(server["id"], "forget")
    hub.cloud.network.delete(f"/ports/{port['id']}")
    make_due(hub, instance)
    until(lambda: hub.instance(visitor).purged_at, "the instance is purged")


def test_an_instance_that_was_restored_stays_and_starts(hub):
    visitor, instance = deleted(hub)
    hub.change(lambda session: instances.restore(session, session.get_one(Instance, instance.id), visitor.login, None))
    other, due = deleted(hub)
    make_due(hub, due)
    until(lambda: hub.instance(other).purged_at, "the steward has passed by")
    assert len(hub.servers(visitor)) == 1
    # JupyterHub has dropped what it knew of it; the records have not
    assert hub.start_again(visitor).status_code in (201, 202)
    hub.until_ready(visitor.login, "films")
    assert [one.id for one in hub.instances(visitor)] == [instance.id] and len(hub.servers(visitor)) == 1


def test_a_stop_that_cannot_be_done_holds_up_no_other(hub):
    stuck, other = hub.visitor(), hub.visitor()
    for visitor in (stuck, other):
        hub.launched(visitor)
    (server,) = hub.servers(stuck)
    hub.devcloud.fault(method="POST", path=f"/servers/{server['id']}/action", action="status", status=409, times=None)
    for visitor in (stuck, other):
        instance = hub.instance(visitor)
        hub.change(lambda session, id=instance.id: instances.intend(session, id, IntentKind.STOP, "somebody"))
    hub.until_intent(other, kind="stop", outcome="done")
    assert hub.intent(stuck).outcome is None
    hub.devcloud.clear_faults()
    hub.until_intent(stuck, kind="stop", outcome="done")


def test_the_steward_lets_a_launch_that_failed_be(hub):
    visitor = hub.visitor()
    hub.devcloud.next_boot(error="libvirt: no.")
    hub.launch(visitor)
    hub.until_intent(visitor, kind="launch", outcome="failed")
    other, due = deleted(hub)
    make_due(hub, due)
    until(lambda: hub.instance(other).purged_at, "the steward has passed by")
    assert len(hub.instance(visitor).intents) == 1


@pytest.mark.parametrize("error", [DatabaseError("cannot reach it"), OSError("cannot reach it")], ids=["database", "disk"])
async def test_what_is_away_is_said_in_a_sentence(tmp_path, error):
    url = f"sqlite:///{tmp_path / 'hutch.sqlite'}"
    upgrade(open_database(url))
    steward, tried = Steward(Facility(Hutch(database_url=url, state_dir=str(tmp_path))), clouds={}, hub=None), asyncio.Event()

    async def task() -> None:
        tried.set()
        raise error

    with capture_logs() as lines:
        work = asyncio.create_task(steward.repeat(task, 3600))
        await tried.wait()
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    assert [(one["event"], one["error"], "exc_info" in one) for one in lines] == [("put off", "cannot reach it", False)]


# --- pauses between tries


def test_tries_have_growing_pauses_with_a_limit():
    readoption, at, tries = Pauses(), NOW, []
    while len(tries) < 200:
        if readoption.due("one", at):
            tries.append(at)
        at += timedelta(seconds=10)
    pauses = [later - earlier for earlier, later in pairwise(tries)]
    assert pauses == sorted(pauses) and pauses[0] <= timedelta(seconds=20) and pauses[-1] == LONGEST_PAUSE


def test_each_instance_has_pauses_of_its_own_until_it_is_back():
    readoption = Pauses()
    assert readoption.due("one", NOW) and readoption.due("two", NOW)
    assert not readoption.due("one", NOW)
    readoption.back("one")
    assert readoption.due("one", NOW) and not readoption.due("two", NOW)


# --- lifetimes


def test_a_lifetime_that_is_over_stops_and_marks_the_instance(hub):
    visitor, other = hub.visitor(), hub.visitor()
    hub.launched(visitor)
    hub.launched(other)
    instance = hub.instance(visitor)

    def end(session: Any) -> None:
        session.get_one(Instance, instance.id).ends_at = now() - timedelta(seconds=1)

    hub.change(end)
    until(lambda: hub.instance(visitor).deleted_at, "the instance is marked")
    until(lambda: hub.servers(visitor)[0]["status"] == "SHUTOFF", "its server is off")
    assert (hub.intent(visitor).actor, hub.intent(visitor).reason) == ("steward", "its lifetime is over")
    # it can be restored, and nobody else's is touched
    assert hub.instance(visitor).purge_at > now() and hub.servers(visitor)
    assert hub.instance(other).deleted_at is None


# --- what is taken back, and what is not


def lose(hub: FacilityHub, visitor: Visitor, *, and_the_team: bool = False) -> None:
    """The hub is made to believe that it stopped the instance, though nobody wants that: as when it had restarted meanwhile."""
    instance = hub.instance(visitor)
    hub.end(visitor, token=hub.token)
    if and_the_team:
        hub.end_membership(visitor)

    def forget(session: Any) -> None:
        stop = session.get_one(Instance, instance.id).intents[-1]
        assert stop.kind == IntentKind.STOP
        # a stop that was called off counts as none
        stop.outcome = Outcome.CANCELLED

    hub.change(forget)


def test_an_instance_that_nobody_stopped_is_taken_back(hub):
    visitor = hub.visitor()
    hub.launched(visitor)
    lose(hub, visitor)
    hub.until_ready(visitor.login, "films")
    launch = hub.until_intent(visitor, kind="launch", outcome="done")
    assert launch.actor == "steward" and len(hub.servers(visitor)) == 1


def test_an_instance_that_the_rules_refuse_meanwhile_is_not_taken_back_but_stopped(hub):
    visitor = hub.visitor()
    hub.launched(visitor)
    lose(hub, visitor, and_the_team=True)
    stop = hub.until_intent(visitor, kind="stop", outcome="done")
    # by the rules of a launch, or because the steward saw it first
    assert stop.actor == "steward" and ("not a member" in stop.reason or "no longer on the team" in stop.reason)
    assert hub.servers(visitor)[0]["status"] == "SHUTOFF"


async def test_what_was_kept_long_enough_goes(hub):
    visitor = hub.visitor()
    with hub.session() as session:
        session.add_all(
            Notice(user_id=visitor.id, subject=subject, text="-", at=now() - timedelta(days=days), mailed_at=now())
            for subject, days in (("old", 100), ("young", 10))
        )
    facility = Facility(Hutch(database_url=hub.engine.url.render_as_string(hide_password=False)))
    await Steward(facility, clouds={}, hub=None).prune()
    with hub.session() as session:
        assert session.scalars(select(Notice.subject).where(Notice.user_id == visitor.id)).all() == ["young"]


def test_an_instance_that_was_rebooted_has_its_notebook_again_by_itself(hub):
    visitor = hub.visitor()
    hub.launched(visitor)
    server, *_ = hub.servers(visitor)
    hub.cloud.compute.post(f"/servers/{server['id']}/action", json={"reboot": {"type": "HARD"}}, microversion="2.79")
    until(lambda: len(hub.instance(visitor).intents) > 1, "it is launched once more")
    assert hub.until_intent(visitor, kind="launch", outcome="done").actor == "steward"
    hub.until_ready(visitor.login, "films")
    assert [one["id"] for one in hub.servers(visitor)] == [server["id"]]


def test_a_launch_that_is_done_though_its_hub_could_not_write_that_down_is_concluded(hub):
    visitor = hub.visitor()
    hub.launched(visitor)
    launch = hub.intent(visitor)
    hub.change(lambda session: setattr(session.get_one(Intent, launch.id), "outcome", None))
    assert hub.until_intent(visitor, outcome="done").id == launch.id
    assert hub.server(visitor.login, "films")["ready"]


def stewards(hub: FacilityHub) -> list[psutil.Process]:
    """Those that the hub started."""
    assert hub.process
    below = psutil.Process(hub.process.pid).children()
    return [one for one in below if one.status() != psutil.STATUS_ZOMBIE and "hub.steward" in one.cmdline()]


@pytest.mark.any_database
def test_of_two_stewards_one_acts_and_the_other_takes_over_when_it_dies(hub, tmp_path):
    waits = "another steward is at work"
    (first,) = until(lambda: stewards(hub), "the hub has started its steward")
    with (tmp_path / "log").open("w") as log:
        own = {**first.environ(), "HUTCH_HUB_PID": str(os.getpid())}
        second = subprocess.Popen([sys.executable, "-m", "hub.steward"], env=own, cwd=hub.folder, stdout=log, stderr=log)
    try:
        until(lambda: waits in (tmp_path / "log").read_text() or second.poll() is not None, "the second one waits")
        first.kill()
        _, instance = deleted(hub)
        make_due(hub, instance)
        until(lambda: f"instance={instance.id}" in (tmp_path / "log").read_text(), "the second one has purged the instance")
        assert (tmp_path / "log").read_text().count(waits) == 1
        until(lambda: waits in hub.log(), "the hub's own, started again, waits as well")
    finally:
        second.kill()
        second.wait()
    until(lambda: "the other steward has ended" in hub.log(), "the hub's own goes on")
