"""A room: who is there, whose turn it is, what follows when somebody comes, goes, asks or does not answer. No I/O, no waiting."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.access import Consent, Person, Place, Right, Terms, Visit
from hub.access.desktops import CONTROL, NOTHING
from hub.database.tables import SupportAccess, User
from hub.desktop.room import ANSWER_WITHIN, GRACE, SENT_AWAY_FOR, TYPES_FOR, VERBS, Room

pytestmark = pytest.mark.any_database

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
A_SECOND, A_MOMENT = timedelta(seconds=1), timedelta(milliseconds=1)
MEMBERS = {"bob": "driver", "dan": "driver", "eve": "viewer"}
STAFF = frozenset({"it-support"})


def place_of(who: str, **facts) -> Place:
    visit = Visit("P1-1", "P1", "ID16", "Cracks", roles={who: "member"})
    return Place("i1", "ann", members={who: MEMBERS[who]} if who in MEMBERS else {}, visits=(visit,), **facts)


class Play:
    """A room with a clock. Each person is one connection, unless they say otherwise."""

    def __init__(self, **facts) -> None:
        self.room, self.at, self.facts = Room("ann", Terms(NOON)), NOON, facts
        self.numbers: dict[str, int] = {}

    def person(self, who: str) -> Person:
        return Person(who, who, who.title(), STAFF if who == "sue" else frozenset())

    def enter(self, *people: str, number: int = 0):
        for who in people:
            self.numbers[who] = number or len(self.numbers) + 1
            decision = self.room.enter(self.numbers[who], self.person(who), place_of(who, **self.facts), self.at)
        return decision

    def leave(self, *people: str) -> None:
        for who in people:
            self.room.leave(self.numbers[who], self.at)

    def wait(self, time: timedelta) -> None:
        self.at += time
        self.room.settle(self.at)

    def learn(self, who: str, **facts) -> None:
        self.room.learn(who, self.person(who), place_of(who, **self.facts | facts))
        self.room.settle(self.at)

    def say(self, who: str, do: str, other: str = "") -> list[tuple[str, str]]:
        said = self.room.hear(who, {"do": do, **({"to": other} if other else {})}, self.at)
        return list(said.items())

    def may(self, who: str) -> list[str]:
        return self.room.may(who, self.at)

    @property
    def rights(self) -> dict[str, str]:
        return {who: {CONTROL: "drives", Right.VIEW: "sees", NOTHING: "out"}[self.room.right(who)] for who in self.room.people}


@pytest.fixture
def play() -> Play:
    play = Play()
    play.enter("ann", "bob", "eve")
    return play


def test_the_owner_drives_and_the_others_see(play):
    assert play.rights == {"ann": "drives", "bob": "sees", "eve": "sees"}


def test_members_come_when_the_owner_is_there():
    play = Play()
    assert play.enter("bob").rule == "owner-away"
    play.enter("ann")
    assert play.enter("bob")


# --- whose turn it is: what is done in order, and who drives then

TURNS = {
    "nobody asks": ([], "ann"),
    "who asks waits": ([("bob", "ask")], "ann"),
    "who asks is given it": ([("bob", "ask"), ("ann", "give", "bob")], "bob"),
    "who did not ask is given it too": ([("ann", "give", "bob")], "bob"),
    "a viewer is not given it": ([("ann", "give", "eve")], "ann"),
    "a viewer cannot ask": ([("eve", "ask"), ("ann", "give", "eve")], "ann"),
    "somebody who is not there is not given it": ([("ann", "give", "dan")], "ann"),
    "who asks is refused": ([("bob", "ask"), ("ann", "refuse", "bob")], "ann"),
    "who asks cannot take it at once": ([("bob", "ask"), ("bob", "take")], "ann"),
    "who asks cannot take it a moment too early": ([("bob", "ask"), ANSWER_WITHIN - A_MOMENT, ("bob", "take")], "ann"),
    "who asks takes it without an answer": ([("bob", "ask"), ANSWER_WITHIN, ("bob", "take")], "bob"),
    "who was refused cannot take it": ([("bob", "ask"), ("ann", "refuse", "bob"), ANSWER_WITHIN, ("bob", "take")], "ann"),
    "who did not ask cannot take it": ([ANSWER_WITHIN, ("bob", "take")], "ann"),
    "the owner takes it back at once": ([("ann", "give", "bob"), ("ann", "take")], "ann"),
    "who drives lets go, and the owner has it": ([("ann", "give", "bob"), ("bob", "release")], "ann"),
    "the owner lets go, and keeps it": ([("ann", "release")], "ann"),
    "the owner lets go for who asked": ([("bob", "ask"), ("ann", "release")], "bob"),
    "the owner gives on what somebody else has": ([("ann", "give", "bob"), ("bob", "ask"), ("ann", "give", "bob")], "bob"),
    "who does not drive does not give": ([("bob", "give", "bob")], "ann"),
    "who drives leaves for good": ([("ann", "give", "bob"), ("bob", "leaves"), GRACE], "ann"),
    "who drives loads the page again": ([("ann", "give", "bob"), ("bob", "leaves"), A_SECOND, ("bob", "comes")], "bob"),
    "the owner leaves": ([("ann", "leaves"), GRACE], None),
    "the owner loads the page again": ([("ann", "leaves"), GRACE - A_MOMENT, ("ann", "comes")], "ann"),
    "who is sent away drives no more": ([("ann", "give", "bob"), ("ann", "remove", "bob")], "ann"),
    "a member does not send away": ([("ann", "give", "bob"), ("eve", "remove", "bob")], "bob"),
    "the owner is not sent away": ([("bob", "remove", "ann")], "ann"),
}


@pytest.mark.parametrize("case", TURNS)
def test_whose_turn_it_is(play, case):
    done, driver = TURNS[case]
    for step in done:
        if isinstance(step, timedelta):
            play.wait(step)
        elif step[1] in ("leaves", "comes"):
            (play.leave if step[1] == "leaves" else play.enter)(step[0])
        else:
            play.say(*step)
    assert play.room.driver == driver
    assert [who for who, right in play.rights.items() if right == "drives"] == [driver] * (driver in play.room.people)


def test_what_cannot_be_is_said(play):
    assert play.say("bob", "take") == [("bob", "You cannot do that now.")]
    assert play.say("ann", "give", "eve") == [("ann", "Eve may only watch.")]
    assert play.say("ann", "give", "dan") == [("ann", "They are not here any more.")]


def test_who_is_refused_hears_of_it_and_waits_before_they_ask_again(play):
    play.say("bob", "ask")
    assert play.say("ann", "refuse", "bob") == [("bob", "Ann goes on driving.")]
    assert "ask" not in play.may("bob")
    play.wait(ANSWER_WITHIN)
    assert "ask" in play.may("bob")


@pytest.mark.parametrize(
    "message",
    [{}, {"do": None}, {"do": "grant"}, {"do": "fly"}, {"do": ["ask"]}, {"do": "give", "to": 1}, {"do": "remove", "who": []}],
)
def test_what_nobody_may_say_is_an_error(play, message):
    with pytest.raises((ValueError, TypeError)):
        play.room.hear("ann", message, play.at)


def test_each_is_told_what_they_may_do(play):
    assert play.may("ann") == ["give", "release", "remove", "end-support", "grant", "refuse-support"]
    assert (play.may("bob"), play.may("eve")) == (["ask"], [])
    play.say("bob", "ask")
    assert ("refuse" in play.may("ann"), play.may("bob")) == (True, [])
    play.wait(ANSWER_WITHIN)
    assert play.may("bob") == ["take"]


# --- the owner leaves: what becomes of who was inside

LEFT = {
    ("disconnect", False): {"bob": "out", "eve": "out"},
    ("lock", False): {"bob": "sees", "eve": "sees"},
    ("stay", False): {"bob": "drives", "eve": "sees"},
    ("disconnect", True): {"bob": "drives", "eve": "sees"},
    ("lock", True): {"bob": "drives", "eve": "sees"},
    ("stay", True): {"bob": "drives", "eve": "sees"},
}


@pytest.mark.parametrize(("policy", "freely"), LEFT)
def test_the_owner_leaves_somebody_who_drives(policy, freely):
    play = Play(when_owner_leaves=policy, members_enter_freely=freely)
    play.enter("ann", "bob", "eve")
    play.say("ann", "give", "bob")
    play.leave("ann")
    play.wait(GRACE - A_MOMENT)
    assert play.rights == {"bob": "drives", "eve": "sees"}
    play.wait(A_MOMENT)
    assert play.rights == LEFT[policy, freely]
    assert bool(play.enter("dan")) is freely


def test_a_locked_room_is_open_again_when_the_owner_is_back():
    play = Play(when_owner_leaves="lock")
    play.enter("ann", "bob")
    play.leave("ann")
    play.wait(GRACE)
    told = play.room.told(play.at)["bob"]
    assert (told["locked"], told["owner_here"], told["driver"], told["may"]) == (True, False, None, [])
    play.enter("ann")
    assert (play.room.told(play.at)["bob"]["locked"], play.rights) == (False, {"bob": "sees", "ann": "drives"})


def test_who_loads_a_locked_room_again_is_still_inside():
    play = Play(when_owner_leaves="lock")
    play.enter("ann", "bob")
    play.leave("ann")
    play.wait(GRACE)
    play.leave("bob")
    play.wait(A_SECOND)
    assert play.enter("bob")
    play.leave("bob")
    play.wait(GRACE)
    assert play.enter("bob").rule == "owner-away"


def test_who_was_put_out_is_out_at_once():
    play = Play(when_owner_leaves="stay")
    play.enter("ann", "bob")
    play.leave("ann")
    play.wait(GRACE)
    play.room.leave(play.numbers["bob"], play.at, may_return=False)
    assert play.enter("bob").rule == "owner-away"


def test_one_person_with_two_pages_is_one_person_until_both_are_closed(play):
    play.enter("bob", number=77)
    assert list(play.rights) == ["ann", "bob", "eve"]
    play.leave("bob")
    play.wait(GRACE)
    assert "bob" in play.rights
    play.room.leave(2, play.at)
    assert "bob" not in play.rights


def test_who_is_sent_away_may_come_back_after_a_while(play):
    play.say("ann", "remove", "bob")
    assert play.rights["bob"] == "out"
    assert play.room.standing("bob").watch.rule == "sent-away"
    play.room.leave(2, play.at, may_return=False)
    assert play.enter("bob").rule == "sent-away"
    play.wait(SENT_AWAY_FOR)
    assert play.enter("bob")


# --- support

SUPPORT = [("external", None, "drives"), ("staff", None, "refused"), ("staff", "view", "sees"), ("staff", "control", "drives")]


@pytest.mark.parametrize(("owner", "granted", "becomes"), SUPPORT)
def test_support_with_the_owner_away(owner, granted, becomes):
    consented = {"sue": Consent(granted, NOON + A_SECOND, 1)} if granted else {}
    play = Play(owner_is_staff=owner == "staff", consented=consented)
    decision = play.enter("sue")
    assert bool(decision) is (becomes != "refused")
    if decision:
        play.say("sue", "ask")
        assert play.rights == {"sue": becomes}
        play.wait(A_SECOND)
        assert play.rights == {"sue": "out" if granted else "drives"}


def test_support_is_at_the_desktop_while_the_owner_lets_them():
    play = Play(owner_is_staff=True)
    play.enter("ann")
    play.facts["consented"] = {"sue": Consent("control", NOON + 60 * A_SECOND, 1)}
    play.enter("sue")
    play.say("ann", "give", "sue")
    assert play.rights == {"ann": "sees", "sue": "drives"}
    play.learn("sue", consented={"sue": Consent("view", NOON + 60 * A_SECOND, 1)})
    assert play.rights == {"ann": "drives", "sue": "sees"}
    play.learn("sue", consented={})
    assert play.rights["sue"] == "out"


def test_only_the_owner_is_told_of_support_and_only_while_there_is_something_to_decide(play):
    of_sue = {"user": User(given_name="Sue", family_name=""), "reason": "no picture"}
    asked, granted = SupportAccess(id=1, **of_sue), SupportAccess(id=2, **of_sue, right="view", until=NOON + A_SECOND)
    play.room.requests = (asked, granted)
    told = play.room.told(play.at)
    assert [one["request"] for one in told["ann"]["support"]] == [1, 2]
    assert "support" not in told["bob"]
    play.wait(A_SECOND)
    left = {"request": 1, "name": "Sue", "reason": "no picture", "until": None, "right": None}
    assert play.room.told(play.at)["ann"]["support"] == [left]


# --- what people see, and restarts


def test_what_each_sees(play):
    play.say("bob", "ask")
    play.room.typed("ann", play.at)
    told = play.room.told(play.at)["bob"]
    assert (told["you"], told["driver"], told["locked"], told["owner_here"]) == ("bob", "ann", False, True)
    assert told["asking"] == [{"id": "bob", "name": "Bob", "until": (NOON + ANSWER_WITHIN).isoformat()}]
    assert told["people"][0] == {
        "id": "ann",
        "name": "Ann",
        "part": "owner",
        "control": True,
        "typing": True,
        "since": NOON.isoformat(),
    }
    play.wait(TYPES_FOR)
    assert not play.room.told(play.at)["bob"]["people"][0]["typing"]


@pytest.mark.parametrize("first", ["ann", "bob"])
def test_after_a_restart_everybody_is_back_and_who_drove_drives(first):
    play = Play()
    play.room.expect(["ann", "bob"], "bob", NOON + 20 * A_SECOND)
    play.enter(first)
    play.wait(10 * A_SECOND)
    play.enter("bob" if first == "ann" else "ann")
    assert play.rights == {"ann": "sees", "bob": "drives"}


def test_after_a_restart_the_owner_who_does_not_come_back_has_left():
    play = Play()
    play.room.expect(["ann", "bob"], "ann", NOON + 20 * A_SECOND)
    assert play.enter("bob")
    play.wait(20 * A_SECOND)
    assert play.rights == {"bob": "out"}


def test_a_room_is_over_when_nobody_is_there_or_expected_back():
    play = Play()
    play.enter("ann")
    play.leave("ann")
    assert not play.room.is_over
    play.wait(GRACE)
    assert play.room.is_over


# --- whatever happens

people = st.sampled_from(["ann", "bob", "dan", "eve", "sue", "mallory"])
steps = st.one_of(
    st.tuples(st.just("enter"), people),
    st.tuples(st.just("leave"), people),
    st.tuples(st.sampled_from(sorted(VERBS)), people, people),
    st.tuples(st.just("wait"), st.integers(0, 25)),
)


@given(
    st.lists(steps, max_size=30),
    st.sampled_from(["disconnect", "lock", "stay"]),
    st.booleans(),
    st.booleans(),
)
def test_at_most_one_drives_and_only_who_may(done, policy, freely, staff):
    play = Play(when_owner_leaves=policy, members_enter_freely=freely, owner_is_staff=staff)
    for do, *who in done:
        if do == "wait":
            play.wait(who[0] * A_SECOND)
        elif do == "enter":
            play.enter(who[0])
        elif who[0] in play.room.people:
            play.leave(who[0]) if do == "leave" else play.say(who[0], do, who[1])
        play.room.settle(play.at)
        rights = play.rights
        assert list(rights.values()).count("drives") <= 1
        assert "mallory" not in rights
        assert rights.get("eve") != "drives"
        assert not staff or "sue" not in rights
        assert "ann" not in rights or play.room.driver is not None
