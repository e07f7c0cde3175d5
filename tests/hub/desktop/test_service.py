"""Relays with a real hub, portal, agent and Xvnc: who comes in, who is put out and when, and what is written down."""

from __future__ import annotations

import hashlib
import shutil
import signal
import time
from datetime import datetime, timedelta

import pytest
from running_hub import until
from websockets.exceptions import InvalidHandshake, InvalidStatus

from hub.database.tables import (
    DesktopTicket,
    EtlRun,
    ExperimentMember,
    Instance,
    InstanceMember,
    Notice,
    SupportAccess,
    User,
    UserRole,
    now,
)
from hub.instances import record_event
from images.guest.desktop import NEEDED

MISSING = [name for name in NEEDED if not shutil.which(name)]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} is missing: tools/setup installs it, as root")

# a removal is seen at the next look at the records
AT_ONCE_SECONDS = 1.0


def test_the_owner_sees_and_drives_their_desktop(desktops, instance, owner):
    before = now()
    page = desktops.opened(instance, owner).until_shown(drives=True)
    assert [(one["id"], one["part"], one["control"]) for one in page.room["people"]] == [(owner.id, "owner", True)]
    page.type()
    page.until_room(lambda room: room["people"][0]["typing"], "the room says who types")
    desktops.until_session(instance, owner, lambda row: row.keys == 1 and row.bytes_out, "it is counted")
    row = desktops.sessions(instance, owner)[-1]
    assert (row.part, row.control, row.ended_at, row.pointers) == ("owner", True, None, 0)
    assert row.started_at > before
    page.close()
    desktops.until_session(instance, owner, lambda row: row.end_reason == "closed-1000", "its end is written down")


def test_work_at_a_desktop_counts_as_work_and_an_open_tab_does_not(desktops, instance, owner):
    def notes() -> int:
        return desktops.hub.log().count(f"/users/{owner.login}/activity (desktop-")

    page = desktops.opened(instance, owner).until_shown(drives=True)
    desktops.until_session(instance, owner, lambda row: row.ended_at is None and row.bytes_out, "the tab is written down")
    before, came = notes(), now()
    page.type()
    until(lambda: notes() > before, "the hub is told of the work")
    assert datetime.fromisoformat(desktops.hub.server(owner.login, "films")["last_activity"]) > came


# --- who comes in


def test_a_ticket_is_good_once_for_its_instance_and_while_it_is_new(desktops, instance, owner):
    url, ticket = desktops.ticket(instance, owner)
    desktops.page(url, ticket).until_shown(drives=True)
    assert desktops.page(url, ticket).until_out() == (4401, "")

    url, late = desktops.ticket(instance, owner)
    with desktops.hub.session() as session:
        row = session.get_one(DesktopTicket, hashlib.sha256(late.encode()).hexdigest())
        assert late not in row.hash and row.user_id == owner.id
        row.expires_at = now()
    assert desktops.page(url, late).until_out() == (4401, "")

    _, of_another = desktops.ticket(instance, owner)
    other = url.replace(instance.id, "12345678" + instance.id[8:])
    assert desktops.page(other, of_another).until_out() == (4401, "")
    # it was a ticket until it was shown at the wrong door
    assert desktops.page(url, of_another).until_out() == (4401, "")
    assert desktops.page(url, "x" * 43).until_out() == (4401, "")


def test_a_ticket_lets_in_whose_it_is(desktops, instance, owner):
    viewer = desktops.member(instance, "viewer")
    desktops.opened(instance, owner).until_shown(drives=True)
    page = desktops.page(*desktops.ticket(instance, viewer)).until_shown(drives=False)
    assert (page.room["you"], page.room["may"]) == (viewer.id, [])
    assert datetime.fromisoformat(page.room["at"]) <= now()


@pytest.mark.parametrize("origin", [None, "null", "http://localhost:1", "http://evil.example", "http://{user}.localhost:{port}"])
def test_a_page_of_somebody_else_opens_nothing(desktops, instance, owner, origin):
    url, ticket = desktops.ticket(instance, owner)
    named = origin and origin.format(user=owner.login, port=desktops.hub.port)
    with pytest.raises(InvalidStatus) as refused:
        desktops.page(url, ticket, named)
    assert refused.value.response.status_code == 403
    # and the ticket is still its owner's
    desktops.page(url, ticket).until_shown(drives=True)


def test_who_has_no_part_in_an_instance_gets_no_ticket(desktops, instance):
    stranger = desktops.hub.visitor()
    assert desktops.asked(instance, stranger).status_code == 404


def test_a_stopped_instance_has_no_ticket_but_a_way_to_its_start(desktops):
    visitor = desktops.hub.visitor()
    instance = desktops.hub.launched(visitor)
    desktops.hub.end(visitor)
    refused = desktops.asked(instance, visitor)
    assert (refused.status_code, refused.json()["rule"]) == (403, "stopped")
    page = desktops.browser(visitor.login).get(f"instances/{instance.id}/desktop")
    assert page.status_code == 403
    assert f'instances/{instance.server_name}">Start it' in page.text
    desktops.hub.start_again(visitor)
    desktops.hub.until_ready(visitor.login, instance.server_name)
    desktops.opened(instance, visitor).until_shown(drives=True)


def test_a_member_without_the_owner_is_told_why(desktops, instance):
    driver = desktops.member(instance, "driver")
    assert desktops.opened(instance, driver).until_out() == (4403, "owner-away")
    desktops.change(instance, members_enter_freely=True)
    desktops.opened(instance, driver).until_shown(drives=False)


# --- who drives


def test_a_driver_asks_and_is_given_it_and_only_who_drives_types(desktops, instance, owner):
    driver = desktops.member(instance, "driver")
    hers = desktops.opened(instance, owner).until_shown(drives=True)
    his = desktops.opened(instance, driver).until_shown(drives=False)
    his.type()
    his.say("ask")
    hers.until_room(lambda room: [one["id"] for one in room["asking"]] == [driver.id], "the owner sees who asks")
    hers.say("give", to=driver.id)
    his.until_shown(drives=True)
    hers.until_shown(drives=False)
    his.type()
    rows = desktops.sessions
    until(lambda: [(row.control, row.keys) for row in rows(instance, driver)] == [(False, 0), (True, 1)], "he typed when he drove")
    assert rows(instance, driver)[0].end_reason == "right-changed"
    hers.say("take")
    hers.until_shown(drives=True)
    his.until_shown(drives=False)


def test_what_is_no_message_of_a_room_ends_the_connection(desktops, instance, owner):
    page = desktops.opened(instance, owner).until_shown(drives=True)
    page.say("fly")
    assert page.until_out() == (4400, "malformed")


# --- who is put out


def remove(desktops, instance, who, owner) -> None:
    with desktops.hub.session() as session:
        session.get_one(InstanceMember, (instance.id, who.id)).ended_at = now()
        record_event(session, instance.id, "member-removed")


def leave_experiment(desktops, instance, who, owner) -> None:
    desktops.hub.change(lambda session: _end_membership(session, instance, who))


def _end_membership(session, instance, who) -> None:
    for experiment in session.get_one(Instance, instance.id).experiments:
        session.get_one(ExperimentMember, (experiment.id, who.id)).ended_at = now()
    session.add(EtlRun(source="office", adapter="files", outcome="done"))


def send_away(desktops, instance, who, owner) -> None:
    owner.say("remove", who=who.id)


# the steward may have ended the part of who left the experiment before the relay looks
@pytest.mark.parametrize(
    ("how", "rules"),
    [(remove, {"not-yours"}), (leave_experiment, {"experiment-membership", "not-yours"}), (send_away, {"sent-away"})],
)
def test_who_loses_their_part_is_out_within_a_second(desktops, instance, owner, how, rules):
    driver = desktops.member(instance, "driver")
    hers = desktops.opened(instance, owner).until_shown(drives=True)
    page = desktops.opened(instance, driver).until_shown(drives=False)
    how(desktops, instance, driver, hers)
    began = time.monotonic()
    code, rule = page.until_out()
    assert code == 4403
    assert rule in rules
    assert time.monotonic() - began < AT_ONCE_SECONDS + 9  # of a busy machine
    desktops.until_session(instance, driver, lambda row: row.end_reason == rule, "the reason is written down")
    hers.until_room(lambda room: len(room["people"]) == 1, "the others see that")


@pytest.mark.parametrize("policy", ["disconnect", "lock", "stay"])
def test_the_owner_leaves_and_the_policy_acts(desktops, instance, owner, policy):
    desktops.change(instance, when_owner_leaves=policy)
    driver = desktops.member(instance, "driver")
    hers = desktops.opened(instance, owner).until_shown(drives=True)
    page = desktops.opened(instance, driver).until_shown(drives=False)
    hers.say("give", to=driver.id)
    page.until_shown(drives=True)
    hers.close()
    if policy == "disconnect":
        assert page.until_out() == (4403, "owner-away")
        return
    page.until_room(lambda room: not room["owner_here"], "the owner has left")
    page.until_room(lambda room: room["locked"] == (policy == "lock"), policy)
    page.until_shown(drives=policy == "stay")


def test_when_the_instance_is_deleted_nobody_is_left_inside(desktops, instance, owner):
    page = desktops.opened(instance, owner).until_shown(drives=True)
    desktops.change(instance, deleted_at=now())
    assert page.until_out() == (4403, "unknown-instance")
    assert desktops.asked(instance, owner).status_code == 404
    desktops.change(instance, deleted_at=None)


# --- support


@pytest.fixture
def staffed(desktops, instance, owner):
    """The owner is staff for the length of a test."""

    def set_staff(until_when) -> None:
        def work(session) -> None:
            row = session.get(UserRole, (owner.id, "staff")) or UserRole(user_id=owner.id, role="staff")
            row.expires_at = until_when
            session.add(row)

        desktops.hub.change(work)

    set_staff(None)
    yield instance
    set_staff(now())


def test_support_enters_an_external_owners_desktop_at_once(desktops, instance):
    helper = desktops.hub.visitor("it-support")
    page = desktops.opened(instance, helper).until_shown(drives=False)
    page.say("ask")
    page.until_shown(drives=True)
    assert page.room["people"][0]["part"] == "it-support"


def test_support_asks_the_owner_grants_for_a_while_and_it_ends(desktops, staffed, owner):
    helper = desktops.hub.visitor("it-support")
    refused = desktops.asked(staffed, helper)
    assert (refused.status_code, refused.json()["rule"], refused.json()["ask_support"]) == (403, "consent-needed", True)
    hers = desktops.opened(staffed, owner).until_shown(drives=True)
    answer = desktops.browser(helper.login).submit(f"instances/{staffed.id}/support", {"reason": "No picture"})
    assert answer.status_code == 200
    hers.until_room(lambda room: room["support"], "the owner sees who asks, and why")
    (request,) = hers.room["support"]
    assert (request["name"], request["reason"], request["right"]) == (helper_name(desktops, helper), "No picture", None)
    hers.say("grant", request=request["request"], right="view", minutes=1)
    hers.until_room(lambda room: room["support"][0]["right"] == "view", "it is granted")
    his = desktops.opened(staffed, helper).until_shown(drives=False)
    assert "ask" not in his.room["may"]
    hers.say("grant", request=request["request"], right="control", minutes=1)
    his.until_room(lambda room: "ask" in room["may"], "he may ask to drive")

    def soon(session) -> None:
        session.get_one(SupportAccess, request["request"]).until = now() + timedelta(seconds=2)
        record_event(session, staffed.id, "support-granted")

    desktops.hub.change(soon)
    assert his.until_out() == (4403, "consent-needed")
    assert "over" in his.end["text"]
    with desktops.hub.session() as session:
        subjects = [one.user_id for one in session.query(Notice).filter(Notice.user_id.in_([owner.id, helper.id]))]
    assert {owner.id, helper.id} <= set(subjects)


def helper_name(desktops, visitor) -> str:
    with desktops.hub.session() as session:
        return session.get_one(User, visitor.id).name


def test_the_owner_answers_on_the_instances_page_and_nobody_else_does(desktops, staffed, owner):
    helper = desktops.hub.visitor("it-support")
    asking, hers = desktops.browser(helper.login), desktops.browser(owner.login)
    asking.submit(f"instances/{staffed.id}/support", {"reason": "<b>a look</b>"})
    again = asking.submit(f"instances/{staffed.id}/support", {"reason": "again"})
    assert again.status_code == 409
    with desktops.hub.session() as session:
        request = session.query(SupportAccess).filter_by(user_id=helper.id).one().id
    shown = hers.get("instances/films")
    assert "&lt;b&gt;a look&lt;/b&gt;" in shown.text
    assert f"support/{request}/grant" in shown.text
    for form in ({"right": "all", "minutes": "5"}, {"right": "view", "minutes": "0"}, {"right": "view", "minutes": "x"}, {}):
        assert hers.submit(f"support/{request}/grant", form).status_code == 409
    assert asking.submit(f"support/{request}/grant", {"right": "view", "minutes": "5"}).status_code == 409
    assert hers.submit(f"support/{request}/grant", {"right": "view", "minutes": "5"}).status_code == 200
    page = desktops.opened(staffed, helper).until_shown(drives=False)
    assert hers.submit(f"support/{request}/end").status_code == 200
    assert page.until_out() == (4403, "consent-needed")
    assert hers.submit(f"support/{request}/end").status_code == 409


# --- relays that end


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_relay_that_ends_is_started_again_and_everybody_is_back_as_they_were(desktops, instance, owner, how):
    driver = desktops.member(instance, "driver")
    hers = desktops.opened(instance, owner).until_shown(drives=True)
    his = desktops.opened(instance, driver).until_shown(drives=False)
    hers.say("give", to=driver.id)
    his.until_shown(drives=True)
    desktops.until_session(instance, driver, lambda row: row.control and row.ended_at is None, "that is written down")
    desktops.end_relays(how)
    assert his.until_out()[0] == (1012 if how == signal.SIGTERM else 1006)
    until(desktops.relays, "the hub has started it again")
    # a member before the owner: nobody was put out
    began = time.monotonic()
    his = until(lambda: come_back(desktops, instance, driver), "he is back")
    his.until_shown(drives=True)
    # JupyterHub itself looks every half a minute
    assert time.monotonic() - began < 15
    desktops.opened(instance, owner).until_shown(drives=False)
    desktops.until_session(instance, owner, lambda row: row.end_reason == "relay-ended", "its end is written down")


def come_back(desktops, instance, who):
    try:
        return desktops.opened(instance, who)
    except (InvalidHandshake, EOFError, OSError):
        return None
