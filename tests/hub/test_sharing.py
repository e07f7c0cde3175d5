"""Who may share an instance, with whom, as what; what invitations do; and what is written down of it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from databases import database_url, upgrade
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session
from traitlets.config import Config

from hub import instances
from hub.access import Person, Place, Terms, Visit, may_become
from hub.configuration import Hutch
from hub.database.engine import open_database, sessions, take_turn
from hub.database.tables import (
    EtlRejection,
    EtlRun,
    Experiment,
    ExperimentMember,
    Instance,
    InstanceEvent,
    InstanceMember,
    Instrument,
    InstrumentScientist,
    Invitation,
    Notice,
    Plan,
    Proposal,
    Thumbnail,
    User,
    UserRole,
    now,
)
from hub.records import find_person
from hub.sharing import Sharing, SharingRefused, accept, may_share_notebook, shared_with

A_DAY, A_SECOND = timedelta(days=1), timedelta(seconds=1)
NOT_ON = "You are not a member of experiment P1-1 in the user office's records."
PEOPLE = ("ann", "bob", "eve", "dan", "sue", "ian", "ida", "max")
INVITING = Hutch(config=Config(Hutch={"invitations": True}))


def terms() -> Terms:
    return INVITING.terms(now())


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = open_database(database_url(tmp_path_factory.mktemp("sharing")))
    upgrade(engine)
    with sessions(engine).begin() as session:
        furnish(session)
    yield engine
    engine.dispose()


def furnish(session: Session) -> None:
    """Ann, Bob, Eve and Dan are on P1-1, on ID16; Sue looks after ID16; Ian is on nothing; Ida helps; Max is an admin."""
    session.add_all([Instrument(id="ID16", name="Nano"), Proposal(id="P1", title="Cracks")])
    session.add(Plan(id="notebook", name="Notebook", image="i", flavor="f", cores=1, memory_mb=1))
    session.add_all(
        User(id=f"u-{one}", login=one, given_name=one.title(), family_name="Li", email=f"{one}@x.example") for one in PEOPLE
    )
    session.flush()
    session.add(Experiment(id="P1-1", proposal_id="P1", instrument_id="ID16"))
    session.flush()
    session.add_all(ExperimentMember(experiment_id="P1-1", user_id=f"u-{one}") for one in PEOPLE[:4])
    session.add(InstrumentScientist(instrument_id="ID16", user_id="u-sue"))
    session.add_all([UserRole(user_id="u-ida", role="it-support"), UserRole(user_id="u-max", role="admin")])


def films(session: Session, *experiments: str) -> Instance:
    names = {"owner_id": "u-ann", "server_name": "films", "display_name": "Films", "plan_id": "notebook"}
    return instances.create(session, **names, experiment_ids=experiments, lifetime=None)


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """What a test changes is taken back."""
    with engine.connect() as connection, Session(connection, expire_on_commit=False) as session:
        yield session
        session.rollback()


@pytest.fixture
def instance(session: Session) -> Instance:
    return films(session, "P1-1")


def person(session: Session, login: str) -> Person:
    found = find_person(session, login, terms())
    assert found
    return found


def sharing(session: Session, instance: Instance, login: str = "ann") -> Sharing:
    session.flush()
    return Sharing(session, instance, person(session, login), terms())


def member(session: Session, instance: Instance, login: str, role: str, **more) -> None:
    session.add(InstanceMember(instance_id=instance.id, user_id=f"u-{login}", role=role, **more))
    session.flush()


def parts(session: Session, instance: Instance) -> dict[str, str]:
    return {one.user.login: one.role for one in sharing(session, instance).members()}


def written(session: Session) -> list[tuple[str, str, str]]:
    """What was added to the history after the instance was made."""
    session.flush()
    rows = session.scalars(select(InstanceEvent).order_by(InstanceEvent.id))
    return [(row.kind, row.actor, row.message) for row in rows if row.kind != "created"]


def told(session: Session, login: str) -> list[str]:
    session.flush()
    rows = session.scalars(select(Notice).where(Notice.user_id == f"u-{login}").order_by(Notice.id))
    return [f"{row.subject}. {row.text}" for row in rows]


# --- who may share


@pytest.mark.parametrize(
    ("login", "part", "refusal"),
    [
        ("ann", "", None),
        ("bob", "driver", "As driver one may only see, open, watch, control."),
        ("bob", "viewer", "As viewer one may only see, watch."),
        ("ida", "support", "As support one may only see, watch, control, log."),
        ("bob", "owner", "This instance belongs to somebody else."),
        ("bob", "", "This instance belongs to somebody else."),
        ("ian", "", "This instance belongs to somebody else."),
        ("sue", "", "As instrument-scientist one may only see, watch, control, log."),
        ("max", "", "As admin one may only see, watch, control, start, stop, extend, delete, log."),
    ],
)
def test_nobody_but_the_owner_shares(session, instance, login, part, refusal):
    if part:
        member(session, instance, login, part)
    if refusal is None:
        sharing(session, instance, login).add("bob", "viewer")
    else:
        with pytest.raises(SharingRefused) as refused:
            sharing(session, instance, login)
        assert str(refused.value) == refusal


def test_an_owner_who_left_the_experiment_shares_no_more(session, instance):
    session.get_one(ExperimentMember, ("P1-1", "u-ann")).ended_at = now()
    with pytest.raises(SharingRefused, match="You are not a member of experiment P1-1"):
        sharing(session, instance)


# --- who may become what

ON = Visit("P1-1", "P1", "ID16", "Cracks", roles={"bob": "member"})
OFF, GONE = Visit("P1-2", "P1", "ID16", "Cracks"), Visit("P1-1", "P1", "ID16", "Cracks", roles={"bob": "member"}, gone=True)
OPEN = Visit("P1-2", "P1", "ID16", "Cracks", public_at=now() - A_DAY)


@pytest.mark.parametrize(
    ("who", "part", "visits", "rule", "allowed"),
    [
        ({}, "viewer", [ON], "viewer", True),
        ({}, "driver", [ON], "driver", True),
        ({}, "driver", [], "driver", True),
        ({}, "driver", [ON, OFF], "experiment-membership", False),
        ({}, "viewer", [GONE], "experiment-gone", False),
        ({}, "viewer", [OPEN], "viewer", True),
        ({}, "owner", [ON], "part-not-given", False),
        ({}, "admin", [ON], "part-not-given", False),
        ({}, "", [ON], "part-not-given", False),
        ({"id": "ann"}, "viewer", [ON], "owner-already", False),
        ({}, "support", [ON], "support-staff", False),
        ({"roles": frozenset({"it-support"})}, "support", [ON], "support-staff", True),
        ({"roles": frozenset({"it-support"})}, "driver", [OFF], "experiment-membership", False),
        ({"scientist_of": frozenset({"ID16"})}, "support", [OFF], "support-staff", True),
        ({"scientist_of": frozenset({"D22"})}, "support", [OFF], "support-staff", False),
        ({"roles": frozenset({"admin"})}, "driver", [OFF], "experiment-membership", False),
    ],
)
def test_what_somebody_may_be_made(who, part, visits, rule, allowed):
    known = {"id": "bob", "login": "bob", "name": "Bob"} | {
        key: frozenset(value) if key != "id" else value for key, value in who.items()
    }
    decision = may_become(Person(**known), part, Place("i1", "ann", visits=tuple(visits)), Terms(now(), open_data=True))
    assert (decision.rule, bool(decision)) == (rule, allowed)
    assert bool(decision.reason) is not allowed


# --- people


def test_adding_is_written_down_and_told(session, instance):
    sharing(session, instance).add("bob", "driver", "night shift")
    assert parts(session, instance) == {"bob": "driver"}
    assert written(session) == [("member-added", "ann", "bob is now a driver: night shift")]
    (notice,) = told(session, "bob")
    assert "Ann Li made you a driver of Films" in notice and "as Ann Li's account" in notice and "Reason: night shift." in notice
    assert [(one.id, role) for one, role in shared_with(session, "u-bob")] == [(instance.id, "driver")]


@pytest.mark.parametrize(
    ("login", "role", "sentence"),
    [
        ("ian", "viewer", "ian is not a member of experiment P1-1 in the user office's records."),
        ("nobody", "viewer", "nobody is not a member of experiment P1-1 in the user office's records."),
        ("bob", "owner", "One can be made a viewer, a driver or support, and nothing else."),
        ("ann", "viewer", "ann is the owner."),
        ("bob", "support", "bob is not of those who support users"),
    ],
)
def test_a_refusal_says_why_and_no_more_than_was_asked(session, instance, login, role, sentence):
    with pytest.raises(SharingRefused) as refused:
        sharing(session, instance).add(login, role)
    assert sentence in str(refused.value) and "Li" not in str(refused.value)
    assert (parts(session, instance), written(session), told(session, "ian")) == ({}, [], [])


def test_nobody_is_made_an_owner_by_a_change_either(session, instance):
    member(session, instance, "bob", "viewer")
    with pytest.raises(SharingRefused):
        sharing(session, instance).change("bob", "owner")
    with pytest.raises(SharingRefused):
        sharing(session, instance).change("ann", "viewer")
    with pytest.raises(SharingRefused):
        sharing(session, instance).remove("ann")


def test_a_change_and_a_removal_are_written_down_and_told(session, instance):
    shares = sharing(session, instance)
    for step in (lambda: shares.add("bob", "viewer"), lambda: shares.change("bob", "driver"), lambda: shares.remove("bob", "over")):
        step()
    assert parts(session, instance) == {}
    assert written(session)[1:] == [
        ("member-changed", "ann", "bob is from now on a driver"),
        ("member-removed", "ann", "bob is no longer a driver: over"),
    ]
    assert told(session, "bob")[-1] == "You take no part in Films any more. Ann Li has ended it. Reason: over."
    shares.add("bob", "viewer")
    assert parts(session, instance) == {"bob": "viewer"}


def test_of_an_instance_without_experiment_nobody_is_found_by_guessing_logins(session):
    session.add(UserRole(user_id="u-ann", role="staff"))
    session.flush()
    with pytest.raises(SharingRefused, match="neither on the team of its experiments nor of support"):
        sharing(session, films(session)).add("bob", "viewer")


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("", [("bob", "team of P1-1"), ("dan", "team of P1-1"), ("eve", "team of P1-1")]),
        ("E", [("eve", "team of P1-1"), ("sue", "scientist of ID16")]),
        ("ida", [("ida", "it-support")]),
        ("ian", []),
        ("x.example", []),
        ("Bob Li", [("bob", "team of P1-1")]),
    ],
)
def test_the_team_is_offered_support_is_found_by_name_and_nobody_else(session, instance, search, found):
    assert [(one.login, one.why) for one in sharing(session, instance).candidates(search)] == found


# --- a whole team


def test_a_whole_team_is_added_and_who_is_here_stays_what_they_are(session, instance):
    member(session, instance, "bob", "driver")
    run = EtlRun(source="o", adapter="files", outcome="done", counts={})
    session.add(run)
    session.flush()
    gone = {"run_id": run.id, "place": "x", "line": 1, "reason": "r"}
    session.add_all(
        [
            EtlRejection(record="user", key="77", field="login", **gone),
            EtlRejection(record="user", key="78", field="login", **gone),
            EtlRejection(record="experiment_member", key="P1-1,77", field="user_id", **gone),
            EtlRejection(record="experiment_member", key="P1-10,78", field="user_id", **gone),
            EtlRejection(record="experiment_member", key="P1-1,79", field="user_id", **gone),
        ]
    )
    done = sharing(session, instance).add_team("P1-1", "viewer")
    assert (done.added, done.already, done.refused, done.without_login) == (["Dan Li", "Eve Li"], ["Bob Li"], [], ["77"])
    assert parts(session, instance) == {"bob": "driver", "dan": "viewer", "eve": "viewer"}
    assert written(session)[0] == ("member-added", "ann", "dan is now a viewer: team of P1-1")
    assert sharing(session, instance).add_team("P1-1", "viewer").added == []


@pytest.mark.parametrize(("experiment", "role"), [("P1-2", "viewer"), ("P1-1", "owner"), ("P1-1", "support")])
def test_a_team_of_another_experiment_or_as_owners_is_refused(session, instance, experiment, role):
    with pytest.raises(SharingRefused):
        sharing(session, instance).add_team(experiment, role)
    assert parts(session, instance) == {}


# --- policy


def test_what_changes_of_the_policy_is_written_down_and_nothing_else(session, instance):
    sharing(session, instance).set_policy("disconnect", False, False)
    assert written(session) == []
    sharing(session, instance).set_policy("lock", True, True)
    assert [message for _, _, message in written(session)] == [
        "when the owner leaves: lock",
        "members come in while the owner is away: yes",
        "small pictures of the desktop: yes",
    ]
    with pytest.raises(SharingRefused):
        sharing(session, instance).set_policy("explode", True, True)


def test_without_small_pictures_none_is_kept(session, instance):
    sharing(session, instance).set_policy("stay", False, True)
    session.add(Thumbnail(instance_id=instance.id, picture=b"x"))
    session.flush()
    sharing(session, instance).set_policy("stay", False, False)
    assert session.get(Thumbnail, instance.id) is None


# --- invitations


def invited(session: Session, instance: Instance, role: str = "viewer", *, one_time: bool = True) -> str:
    return sharing(session, instance).invite(INVITING, role, one_time, A_DAY)


def follow(session: Session, code: str, login: str = "bob", hutch: Hutch = INVITING) -> Instance:
    session.flush()
    return accept(session, hutch, code, person(session, login), terms())


def test_of_an_invitation_only_its_hash_is_kept(session, instance):
    code = invited(session, instance, "driver")
    assert len(code) >= 43
    (row,) = session.scalars(select(Invitation))
    assert row.code_hash == hashlib.sha256(code.encode()).hexdigest()
    assert code not in "".join(message for _, _, message in written(session))
    assert follow(session, code) is instance
    assert parts(session, instance) == {"bob": "driver"}
    assert (row.used_by, row.used_at is not None) == ("u-bob", True)
    assert [kind for kind, _, _ in written(session)] == ["invitation-made", "member-added"]
    assert told(session, "ann") == ["Bob Li takes part in Films. They followed your invitation, and are a driver now."]


def change(row: Invitation, session: Session, **values) -> None:
    for name, value in values.items():
        setattr(row, name, value)


SPOILT = {
    "expired": (lambda row, s: change(row, s, expires_at=now() - A_SECOND), "This invitation ended on"),
    "revoked": (lambda row, s: change(row, s, revoked_at=now()), "This invitation was taken back."),
    "used": (lambda row, s: change(row, s, used_at=now(), used_by="u-dan"), "This invitation was used already."),
    "its role is owner": (lambda row, s: change(row, s, role="owner"), "One can be made a viewer, a driver or support"),
    "instance deleted": (lambda row, s: change(row.instance, s, deleted_at=now()), "There is no such invitation."),
    "owner left": (
        lambda _, s: change(s.get(ExperimentMember, ("P1-1", "u-ann")), s, ended_at=now()),
        "Ann Li may no longer share",
    ),
    "guest left": (lambda _, s: change(s.get(ExperimentMember, ("P1-1", "u-bob")), s, ended_at=now()), NOT_ON),
    "removed since": (
        lambda row, s: member(s, row.instance, "bob", "viewer", ended_at=now() + A_SECOND),
        "This invitation is older than the end of your part in this instance.",
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_an_invitation_that_does_not_hold_lets_nobody_in(session, instance, case):
    code = invited(session, instance)
    spoil, sentence = SPOILT[case]
    spoil(session.scalars(select(Invitation)).one(), session)
    with pytest.raises(SharingRefused) as refused:
        follow(session, code)
    assert sentence in str(refused.value)
    theirs = InstanceMember.user_id == "u-bob", InstanceMember.ended_at.is_(None)
    assert session.scalars(select(InstanceMember).where(*theirs)).all() == []


@pytest.mark.parametrize("code", ["", "x", "A" * 43])
def test_a_guessed_code_is_none(session, instance, code):
    invited(session, instance)
    with pytest.raises(SharingRefused, match="There is no such invitation"):
        follow(session, code)


def test_somebody_who_is_not_on_the_experiment_is_refused_in_the_rules_words(session, instance):
    code = invited(session, instance, one_time=False)
    with pytest.raises(SharingRefused) as refused:
        follow(session, code, "ian")
    assert str(refused.value) == NOT_ON


def test_an_invitation_for_everybody_lets_several_in_and_one_for_one_only_the_first(session, instance):
    for_all, for_one = invited(session, instance, one_time=False), invited(session, instance, "driver")
    follow(session, for_all, "bob")
    follow(session, for_all, "eve")
    follow(session, for_one, "dan")
    assert parts(session, instance) == {"bob": "viewer", "eve": "viewer", "dan": "driver"}
    session.get_one(InstanceMember, (instance.id, "u-eve")).ended_at = now() - A_DAY
    with pytest.raises(SharingRefused, match="used already"):
        follow(session, for_one, "eve")


def test_a_link_makes_no_driver_a_viewer_and_is_not_used_up_by_who_is_in_already(session, instance):
    member(session, instance, "bob", "driver")
    code = invited(session, instance)
    follow(session, code, "bob")
    follow(session, code, "eve")
    assert parts(session, instance) == {"bob": "driver", "eve": "viewer"}


def test_an_invitation_that_was_taken_back_is_no_longer_listed_and_lets_nobody_in(session, instance):
    code, shares = invited(session, instance), sharing(session, instance)
    (row,) = shares.invitations()
    shares.revoke_invitation(row.id)
    assert shares.invitations() == []
    with pytest.raises(SharingRefused, match="taken back"):
        follow(session, code)
    with pytest.raises(SharingRefused, match="no such invitation"):
        shares.revoke_invitation(row.id + 1)


@pytest.mark.parametrize(
    ("role", "lifetime"), [("owner", A_DAY), ("support", A_DAY), ("viewer", 0 * A_DAY), ("viewer", 31 * A_DAY), ("", A_DAY)]
)
def test_no_invitation_is_made_for_more_than_an_owner_may_give(session, instance, role, lifetime):
    with pytest.raises(SharingRefused):
        sharing(session, instance).invite(INVITING, role, True, lifetime)


def test_invitations_are_off_unless_a_site_wants_them(session, instance):
    code = invited(session, instance)
    with pytest.raises(SharingRefused, match="switched off"):
        sharing(session, instance).invite(Hutch(), "viewer", True, A_DAY)
    with pytest.raises(SharingRefused, match="switched off"):
        follow(session, code, hutch=Hutch())


def test_of_two_who_follow_a_link_for_one_at_once_one_is_in(engine):
    maker = sessions(engine)
    with maker.begin() as session:
        instance = films(session, "P1-1")
        code, name = invited(session, instance), instance.id

    def attempt(login: str) -> str:
        with maker.begin() as session:
            take_turn(session)
            try:
                return follow(session, code, login).id
            except SharingRefused as refusal:
                return str(refusal)

    try:
        with ThreadPoolExecutor(2) as pool:
            outcomes = sorted(pool.map(attempt, ["bob", "eve"]))
        assert outcomes == sorted([name, "This invitation was used already. Ask for a new one."])
    finally:
        with maker.begin() as session:
            session.get_one(Instance, name).deleted_at = now()


# --- notebooks


@pytest.mark.parametrize(
    ("login", "part", "freely", "reason"),
    [
        ("bob", "driver", True, ""),
        ("bob", "driver", False, "Members come in while the owner is there, or when the owner lets them."),
        ("bob", "viewer", True, "As viewer one may only see, watch."),
        ("bob", "", True, "This instance belongs to somebody else."),
        ("ida", "support", True, "As support one may only see, watch, control, log."),
        ("ian", "driver", True, "ian is not a member of experiment P1-1 in the user office's records."),
        ("nobody", "", True, "There is no such instance, or nobody of that name."),
    ],
)
def test_a_notebook_is_shared_with_drivers_who_may_come_at_any_time(session, instance, login, part, freely, reason):
    if part:
        member(session, instance, login, part)
    instance.members_enter_freely = freely
    session.flush()
    decision = may_share_notebook(session, "ann", "films", login, terms())
    assert (bool(decision), decision.reason) == (not reason, reason)
