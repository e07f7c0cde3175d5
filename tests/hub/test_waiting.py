"""Launches for which the cloud has no room: they wait, start by themselves in their order, and outlast restarts.

On a hub and a cloud of their own, as a cloud that is full is full for everybody.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import browser
import pytest
from conftest import HURRY
from facility_hub import FacilityHub, Visitor, facility
from playwright.sync_api import expect
from running_hub import until
from sqlalchemy import func, select

from hub import queue
from hub.capacity import rooms
from hub.database.tables import CloudRoom, InstanceEvent, LaunchWait, Notice, now

UNLIMITED = {"instances": 4000, "cores": 40000, "port": 8000, "ram": 160_000_000}


@pytest.fixture(scope="module")
def own_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FacilityHub]:
    with facility(tmp_path_factory.mktemp("waiting"), HURRY) as hub:
        yield hub


@pytest.fixture
def hub(own_hub: FacilityHub) -> Iterator[FacilityHub]:
    yield own_hub
    own_hub.devcloud.clear_faults()
    own_hub.devcloud.next_boot()
    room(own_hub, **UNLIMITED)
    own_hub.devcloud.host(VCPU=40000)
    until(lambda: not waits(own_hub), "nobody waits any more")


def room(hub: FacilityHub, **limits: int) -> None:
    """Sets the cloud's limits, and waits until the steward has read them."""
    hub.devcloud.quota(**limits)

    def seen() -> bool:
        with hub.session() as session:
            read = rooms(session).get("")
        return read is not None and all(read.limits[name][0] == limit for name, limit in limits.items())

    until(seen, f"the steward knows of {limits}")


def fill(hub: FacilityHub, **more: int) -> int:
    """No room for another instance; says how many there are."""
    count = len(hub.servers())
    room(hub, instances=count, **more)
    return count


def cores(hub: FacilityHub) -> int:
    """How many are in use."""
    return hub.cloud.compute.get("/limits").json()["limits"]["absolute"]["totalCoresUsed"]


def waits(hub: FacilityHub) -> list[queue.Waiting]:
    with hub.session() as session:
        return queue.waiting(session)


def waiting(hub: FacilityHub, visitor: Visitor, name: str = "films", **options: Any) -> str:
    """Launches what has to wait; returns what the hub answered."""
    answer = hub.launch(visitor, name, **options)
    assert answer.status_code in (202, 503), answer.text
    until(lambda: (visitor.login, name) in names(hub), f"{visitor.login}/{name} waits")
    return answer.text


def names(hub: FacilityHub) -> list[tuple[str, str]]:
    return [(one.login, one.server_name) for one in waits(hub)]


@pytest.fixture
def words(hub, browse):
    """What a page of the portal says to somebody."""
    return lambda visitor, path="": browse(hub.port, visitor.login).get(path).text


def test_who_finds_no_room_waits_and_is_launched_when_there_is_some(hub, words):
    first, second = hub.visitor(), hub.visitor()
    count = fill(hub)
    waiting(hub, first)
    answer = waiting(hub, second)
    assert "position 2 of 2" in answer and "starts by itself" in answer
    assert names(hub) == [(first.login, "films"), (second.login, "films")]
    assert hub.servers(first) == hub.servers(second) == []
    assert "position 1 of 2" in words(first) and "Position 2 of 2" in words(second, "instances/films")
    assert hub.intent(first).outcome is hub.intent(second).outcome is None
    room(hub, instances=count + 1)
    hub.until_ready(first.login, "films")
    launch = hub.until_intent(first, kind="launch", outcome="done")
    # the same intent all the way, of the one who asked
    assert launch.actor == first.login and [one.kind for one in hub.instance(first).intents] == ["launch"]
    assert names(hub) == [(second.login, "films")] and hub.servers(second) == []
    assert "position 1 of 1" in words(second)
    room(hub, instances=count + 2)
    hub.until_ready(second.login, "films")
    with hub.session() as session:
        told = session.scalars(select(Notice.subject).where(Notice.user_id == first.id)).all()
        kinds = session.scalars(select(InstanceEvent.kind).where(InstanceEvent.instance_id == hub.instance(first).id)).all()
    assert told == ["films is running"] and {"queued", "waited"} < set(kinds)


def test_turns_go_round_among_users(hub):
    greedy, modest = hub.visitor(quota=-1), hub.visitor()
    count = fill(hub)
    for name in ("one", "two"):
        waiting(hub, greedy, name)
    waiting(hub, modest)
    assert names(hub) == [(greedy.login, "one"), (modest.login, "films"), (greedy.login, "two")]
    room(hub, instances=count + 2)
    hub.until_ready(greedy.login, "one")
    hub.until_ready(modest.login, "films")
    assert names(hub) == [(greedy.login, "two")]


def test_who_has_an_instance_already_comes_after_who_has_none(hub):
    rich, poor = hub.visitor(quota=-1), hub.visitor()
    hub.launched(rich)
    fill(hub)
    waiting(hub, rich, "more")
    waiting(hub, poor)
    assert names(hub) == [(poor.login, "films"), (rich.login, "more")]


def test_a_large_launch_is_not_starved_by_small_ones(hub):
    """What becomes free is kept for it, though it is not enough yet."""
    large, small, bystander = hub.visitor(), hub.visitor(), hub.visitor()
    hub.launched(bystander)
    used = cores(hub)
    big = hub.plan("large", flavor="m1.large", cores=8)
    room(hub, cores=max(used, 8))
    waiting(hub, large, plan=big)
    room(hub, cores=used + 7)
    assert "launches" not in waiting(hub, small)
    room(hub, cores=used + 8)
    hub.until_ready(large.login, "films")
    assert names(hub) == [(small.login, "films")]
    room(hub, **UNLIMITED)
    hub.until_ready(small.login, "films")


def test_a_launch_that_takes_nobodys_room_does_not_wait(hub):
    blocked, free = hub.visitor(), hub.visitor()
    hub.devcloud.host(VCPU=cores(hub) + 2)
    big = hub.plan("large-host", flavor="m1.large", cores=8)
    waiting(hub, blocked, plan=big)
    hub.launched(free)
    assert names(hub) == [(blocked.login, "films")]
    hub.devcloud.host(VCPU=40000)
    # nobody told the steward, who tries now and then
    hub.until_ready(blocked.login, "films")


def test_who_waits_keeps_the_place_when_they_ask_again(hub):
    first, second = hub.visitor(), hub.visitor()
    fill(hub)
    waiting(hub, first)
    waiting(hub, second)
    answer = hub.start_again(first)
    assert answer.status_code == 503 and "position 1 of 2" in answer.text
    assert names(hub) == [(first.login, "films"), (second.login, "films")]
    assert len(hub.instance(first).intents) == 1


@pytest.mark.parametrize("what", ["stop", "delete", "stop through JupyterHub", "delete through JupyterHub"])
def test_who_leaves_the_queue_is_not_launched(hub, browse, what):
    leaver, stayer = hub.visitor(), hub.visitor()
    fill(hub)
    waiting(hub, leaver)
    waiting(hub, stayer)
    if "JupyterHub" in what:
        assert hub.end(leaver, remove=what.startswith("delete")).status_code == 204
    else:
        browser = browse(hub.port, leaver.login)
        assert "Leave the queue" in browser.get("instances/films").text
        assert browser.submit(f"instances/films/{what}").status_code == 200
    until(lambda: names(hub) == [(stayer.login, "films")], "only one waits")
    room(hub, **UNLIMITED)
    hub.until_ready(stayer.login, "films")
    assert hub.servers(leaver) == [] and not hub.server(leaver.login, "films").get("ready")
    assert hub.instance(leaver).intents[0].outcome == "cancelled"


def test_the_queue_survives_a_crash_of_the_hub_and_its_steward(hub):
    first, second = hub.visitor(), hub.visitor()
    count = fill(hub)
    waiting(hub, first)
    waiting(hub, second)
    before = [(one.intent_id, one.since) for one in waits(hub)]
    hub.kill()
    hub.start()
    assert [(one.intent_id, one.since) for one in waits(hub)] == before
    room(hub, instances=count + 1)
    hub.until_ready(first.login, "films")
    assert names(hub) == [(second.login, "films")] and len(hub.servers(first)) == 1
    room(hub, **UNLIMITED)
    hub.until_ready(second.login, "films")


def test_a_crash_in_the_middle_of_a_turn_makes_no_second_server(hub):
    visitor = hub.visitor()
    fill(hub)
    waiting(hub, visitor)
    hub.devcloud.next_boot(seconds=3)
    hub.devcloud.quota(**UNLIMITED)
    until(lambda: hub.servers(visitor), "its turn has come")
    hub.kill()
    hub.start()
    hub.until_ready(visitor.login, "films")
    hub.until_intent(visitor, kind="launch", outcome="done")
    assert len(hub.servers(visitor)) == len(hub.ports(visitor)) == 1 and not waits(hub)


def test_without_a_reading_the_first_is_tried_again_with_pauses(hub):
    """A cloud that does not tell its limits is asked by launching, one at a time."""
    first, second = hub.visitor(), hub.visitor()
    fill(hub)
    hub.devcloud.fault(method="GET", path="/limits", action="status", status=503, times=None)
    with hub.session() as session:
        session.query(CloudRoom).delete()
    waiting(hub, first)
    waiting(hub, second)
    until(lambda: waits(hub)[0].tries >= 2, "it was tried again")
    assert [one.tries for one in waits(hub)][1] == 0
    hub.devcloud.quota(**UNLIMITED)
    hub.until_ready(first.login, "films")
    hub.until_ready(second.login, "films")


def test_a_plan_larger_than_the_whole_share_does_not_wait_for_ever(hub):
    visitor = hub.visitor()
    room(hub, cores=4)
    hub.launch(visitor, plan=hub.plan("too-large", flavor="m1.large", cores=8))
    failed = hub.until_intent(visitor, kind="launch", outcome="failed")
    assert "too small" in failed.message and "needs 8" in failed.message
    assert not waits(hub)


def test_who_may_no_longer_launch_leaves_the_queue(hub):
    visitor = hub.visitor()
    fill(hub)
    waiting(hub, visitor)
    hub.end_membership(visitor)
    until(lambda: not waits(hub), "nobody waits")
    assert hub.intent(visitor).kind == "stop" and hub.servers(visitor) == []


def test_the_form_says_which_plans_cannot_start_now(hub, words):
    visitor = hub.visitor()
    assert "No room just now" not in words(visitor, "new")
    count = fill(hub)
    page = words(visitor, "new")
    assert f"{count} of {count} instances are taken" in page and "waits in the queue" in page


def test_a_page_that_is_left_open_follows_from_the_queue_to_the_notebook(hub):
    """On a phone, in the dark; nothing is wider than the screen, and the browser complains of nothing."""
    visitor, complaints = hub.visitor(), []
    fill(hub)
    with browser.chromium() as chromium:
        page = chromium.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark").new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.goto(f"http://portal--service.localhost:{hub.port}/services/portal/new")
        if not (button := page.locator(f"button[value={visitor.login}]")).is_visible():
            page.get_by_text("Everybody else").click()
        button.click()
        expect(page.get_by_role("heading", level=1)).to_have_text("New instance")
        expect(page.get_by_text("No room just now.").first).to_be_visible()
        page.get_by_role("button", name="Launch").click()
        expect(page.get_by_role("region", name="Queue")).to_contain_text("Position 1 of 1")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        expect(page.get_by_role("button", name="Leave the queue")).to_be_visible()
        hub.devcloud.quota(**UNLIMITED)
        expect(page.get_by_role("link", name="Open JupyterLab")).to_be_visible()
    assert complaints == []


def test_a_lifetime_begins_when_the_waiting_ends(hub):
    visitor = hub.visitor()
    fill(hub)
    waiting(hub, visitor)
    ends = hub.instance(visitor).ends_at
    (one,) = waits(hub)

    def earlier(session: Any) -> None:
        session.get_one(LaunchWait, one.intent_id).since = now() - timedelta(hours=5)

    hub.change(earlier)
    room(hub, **UNLIMITED)
    hub.until_ready(visitor.login, "films")
    hub.until_intent(visitor, outcome="done")
    assert hub.instance(visitor).ends_at - ends >= timedelta(hours=5)


def test_the_cloud_is_asked_the_same_few_calls_however_many_wait(hub):
    fill(hub)
    for _ in range(3):
        waiting(hub, hub.visitor())
    hub.devcloud.clear_calls()
    until(lambda: hub.devcloud.calls()["counts"].get("GET /compute/v2.1/limits", 0) >= 3, "the steward has looked three times")
    counts = hub.devcloud.calls()["counts"]
    assert "POST /compute/v2.1/servers" not in counts
    assert abs(counts["GET /compute/v2.1/flavors/detail"] - counts["GET /compute/v2.1/limits"]) <= 1
    with hub.session() as session:
        assert session.scalar(select(func.count()).select_from(CloudRoom)) == 1
