"""Who takes part in an instance: what its owner changes, and what invitations do. The rules are `hub.access`.

Each change is an event in the instance's history, which desktops follow, and a notice to whom it concerns. Who loses a part because
the facility's records changed is the steward's (`hub.steward.following`).
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from datetime import timedelta

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session, joinedload

from . import notices
from .access import SUPPORT_ROLES, Action, Decision, Part, Person, Terms, WhenOwnerLeaves, may_act, may_become, told_of
from .configuration import Hutch
from .database.tables import EtlRejection as Rejection
from .database.tables import (
    EtlRun,
    ExperimentMember,
    Instance,
    InstanceMember,
    InstrumentScientist,
    Invitation,
    RunKind,
    Thumbnail,
    User,
    UserRole,
    now,
)
from .errors import HutchError
from .instances import record_event
from .keys import hashed
from .records import find_instance, find_person, find_place

INVITED, HELPS = (Part.VIEWER, Part.DRIVER), (Part.SUPPORT,)
LONGEST_INVITATION = timedelta(days=30)
NO_INVITATIONS = "Invitation links are switched off at this facility."
AS: dict[str, str] = {Part.DRIVER: "a driver", Part.VIEWER: "a viewer", Part.SUPPORT: "support"}
MEANS: dict[str, str] = {
    Part.DRIVER: "You see its desktop and can take mouse and keyboard; what you do there is done as {owner}'s account.",
    Part.VIEWER: "You see its desktop.",
    Part.SUPPORT: "You can help at its desktop.",
}
# in the history
POLICY = {
    "when_owner_leaves": "when the owner leaves",
    "members_enter_freely": "members come in while the owner is away",
    "thumbnails": "small pictures of the desktop",
}


class SharingRefused(HutchError):
    """The message is for people."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """Somebody whom the owner may add. why: of which team, or what of support."""

    login: str
    name: str
    why: str
    roles: tuple[str, ...]


@dataclass
class TeamAdded:
    """What became of a whole team; refused: sentences, without_login: ids of the user office."""

    added: list[str] = field(default_factory=list)
    already: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    without_login: list[str] = field(default_factory=list)


class Sharing:
    """An instance's sharing, in the hands of somebody who may share it; raises SharingRefused for others.

    To change something, make one after `take_turn`: it reads, decides and writes as one step.
    """

    def __init__(self, session: Session, instance: Instance, actor: Person, terms: Terms) -> None:
        self.session, self.instance, self.actor, self.terms = session, instance, actor, terms
        _check(may_act(actor, Action.SHARE, find_place(session, instance, actor, terms), terms))

    # --- people

    def members(self) -> list[InstanceMember]:
        """All but the owner, by name."""
        here = InstanceMember.instance_id == self.instance.id, InstanceMember.ended_at.is_(None)
        query = select(InstanceMember).join(InstanceMember.user).where(*here, InstanceMember.user_id != self.instance.owner_id)
        query = query.options(joinedload(InstanceMember.user)).order_by(User.given_name, User.family_name)
        return list(self.session.scalars(query))

    def member(self, login: str) -> InstanceMember:
        found = next((member for member in self.members() if member.user.login == login), None)
        if found is None:
            raise SharingRefused(f"{login} takes no part in it.")
        return found

    def candidates(self, search: str = "") -> list[Candidate]:
        """Who is not in yet: of the experiments' teams; of support only who is searched for."""
        here = {member.user_id for member in self.members()} | {self.instance.owner_id}
        team, scientist, role, visits = ExperimentMember, InstrumentScientist, UserRole, self.instance.experiments
        on_team = team.experiment_id.in_([visit.id for visit in visits]), team.ended_at.is_(None)
        looks_after = scientist.instrument_id.in_([visit.instrument_id for visit in visits]), scientist.ended_at.is_(None)
        helping = role.held(self.terms.at), role.role.in_(SUPPORT_ROLES)
        groups = [
            (select(User, team.experiment_id).join(team, team.user_id == User.id).where(*on_team), "team of ", INVITED),
            (select(User, scientist.instrument_id).join(scientist).where(*looks_after), "scientist of ", HELPS),
            (select(User, role.role).join(role).where(*helping), "", HELPS),
        ]
        found: dict[str, Candidate] = {}
        for query, words, roles in groups if search else groups[:1]:
            by_name = query.where(User.ended_at.is_(None)).order_by(User.given_name, User.family_name)
            for user, of in self.session.execute(by_name).tuples():
                if user.id not in here and search.casefold() in f"{user.name} {user.login}".casefold():
                    found.setdefault(user.id, Candidate(user.login, user.name, f"{words}{of}", roles))
        return list(found.values())

    def add(self, login: str, role: str, reason: str = "") -> None:
        """Somebody of the teams or of support."""
        person = self._becoming(login, role)
        if login not in {one.login for one in self.candidates(login)}:
            raise SharingRefused(f"{login} takes part already, or is neither on the team of its experiments nor of support.")
        give_part(self.session, self.instance, person, role, self.actor, reason)

    def change(self, login: str, role: str, reason: str = "") -> None:
        self.member(login)
        give_part(self.session, self.instance, self._becoming(login, role), role, self.actor, reason)

    def remove(self, login: str, reason: str = "") -> None:
        end_part(self.session, self.instance, self.member(login), self.actor, reason)

    def _becoming(self, login: str, role: str) -> Person:
        # whom nobody knows is refused in the same words as who may not
        person = find_person(self.session, login, self.terms) or Person("", login, login)
        place = find_place(self.session, self.instance, person, self.terms)
        _check(told_of(may_become(person, role, place, self.terms), person))
        return person

    def add_team(self, experiment_id: str, role: str) -> TeamAdded:
        """All of an experiment of this instance; who takes part already keeps their part."""
        if experiment_id not in {visit.id for visit in self.instance.experiments} or role not in INVITED:
            raise SharingRefused("Share it with the team of one of its own experiments, as viewers or drivers.")
        done, here = TeamAdded(without_login=self._without_login(experiment_id)), {one.user_id for one in self.members()}
        theirs = ExperimentMember.experiment_id == experiment_id, ExperimentMember.ended_at.is_(None), User.ended_at.is_(None)
        team = select(User).join(ExperimentMember, ExperimentMember.user_id == User.id).where(*theirs)
        for user in self.session.scalars(team.order_by(User.given_name, User.family_name)).all():
            if user.id in here:
                done.already.append(user.name)
            elif user.id != self.instance.owner_id:
                try:
                    person = self._becoming(user.login, role)
                except SharingRefused as refusal:
                    done.refused.append(str(refusal))
                    continue
                give_part(self.session, self.instance, person, role, self.actor, f"team of {experiment_id}")
                done.added.append(user.name)
        return done

    def _without_login(self, experiment_id: str) -> list[str]:
        """Members by the user office's last word who have no login: they are in the quarantine, and only their ids are kept."""
        whole = EtlRun.outcome == "done", EtlRun.kind.in_([RunKind.LOAD, RunKind.PUSH])
        newest = dict(self.session.execute(select(EtlRun.source, EtlRun.id).where(*whole).order_by(EtlRun.id)).tuples().all())
        left_out = select(Rejection.key).where(Rejection.run_id.in_(newest.values()))
        theirs = Rejection.record == "experiment_member", Rejection.key.startswith(f"{experiment_id},", autoescape=True)
        members = {key.split(",")[1] for key in self.session.scalars(left_out.where(*theirs))}
        people = left_out.where(Rejection.record == "user", Rejection.field == "login", Rejection.key.in_(members))
        return sorted(self.session.scalars(people))

    def note_notebook(self, login: str, shared: bool) -> None:
        """After JupyterHub has shared it, or has taken that back."""
        kind, no_longer = ("notebook-shared", "") if shared else ("notebook-unshared", "no longer ")
        message = f"{login} is {no_longer}let in to JupyterLab"
        record_event(self.session, self.instance.id, kind, actor=self.actor.login, message=message)
        text = f"What you do there is done as {self.actor.name}'s account." if shared else f"{self.actor.name} has ended it."
        subject = f"You can {no_longer}open JupyterLab of {self.instance.display_name}"
        notices.tell(self.session, self.member(login).user_id, subject, text)

    # --- policy

    def set_policy(self, when_owner_leaves: str, members_enter_freely: bool, thumbnails: bool) -> None:
        """What differs is written down."""
        if when_owner_leaves not in set(WhenOwnerLeaves):
            raise SharingRefused(f"“{when_owner_leaves}” is none of: {', '.join(WhenOwnerLeaves)}.")
        for name, value in zip(POLICY, (when_owner_leaves, members_enter_freely, thumbnails), strict=True):
            if getattr(self.instance, name) != value:
                setattr(self.instance, name, value)
                words = f"{POLICY[name]}: {value if isinstance(value, str) else 'yes' if value else 'no'}"
                record_event(self.session, self.instance.id, "policy-changed", actor=self.actor.login, message=words)
        if not thumbnails:
            self.session.execute(delete(Thumbnail).where(Thumbnail.instance_id == self.instance.id))

    # --- invitations

    def invitations(self) -> list[Invitation]:
        """Those that can still be followed, newest first."""
        good = Invitation.revoked_at.is_(None), Invitation.used_at.is_(None), Invitation.expires_at > self.terms.at
        query = select(Invitation).where(Invitation.instance_id == self.instance.id, *good)
        return list(self.session.scalars(query.order_by(Invitation.id.desc())))

    def invite(self, hutch: Hutch, role: str, one_time: bool, lifetime: timedelta) -> str:
        """Its code, which is known here and now only."""
        if not hutch.invitations:
            raise SharingRefused(NO_INVITATIONS)
        if role not in INVITED or not timedelta(0) < lifetime <= LONGEST_INVITATION:
            raise SharingRefused(f"An invitation is for a viewer or a driver, and for at most {LONGEST_INVITATION.days} days.")
        code, ends = secrets.token_urlsafe(32), self.terms.at + lifetime
        facts = {"role": role, "one_time": one_time, "created_by": self.actor.id, "created_at": self.terms.at, "expires_at": ends}
        row = Invitation(instance_id=self.instance.id, code_hash=hashed(code), **facts)
        self.session.add(row)
        self.session.flush()
        whom = "one" if one_time else "everybody who has it"
        words = f"invitation {row.id} for {whom}, {role}, until {ends:%-d %B %Y, %H:%M} UTC"
        record_event(self.session, self.instance.id, "invitation-made", actor=self.actor.login, message=words)
        return code

    def revoke_invitation(self, number: int) -> None:
        row = self.session.get(Invitation, number)
        if row is None or row.instance_id != self.instance.id:
            raise SharingRefused("There is no such invitation.")
        row.revoked_at = row.revoked_at or self.terms.at
        record_event(self.session, row.instance_id, "invitation-revoked", actor=self.actor.login, message=f"invitation {row.id}")


def accept(session: Session, hutch: Hutch, code: str, person: Person, terms: Terms) -> Instance:
    """Makes the person what an invitation says. Raises SharingRefused, with words for them."""
    row = session.scalar(select(Invitation).where(Invitation.code_hash == hashed(code.strip())))
    if not hutch.invitations:
        raise SharingRefused(NO_INVITATIONS)
    if row is None or row.instance.deleted_at is not None:
        raise SharingRefused("There is no such invitation. Check that the link is whole, or ask for a new one.")
    instance = row.instance
    owner = find_person(session, instance.owner.login, terms)
    if owner is None or not may_act(owner, Action.SHARE, find_place(session, instance, owner, terms), terms):
        raise SharingRefused(f"{instance.owner.name} may no longer share this instance.")
    _check(may_become(person, row.role, find_place(session, instance, person, terms), terms))
    member = session.get(InstanceMember, (instance.id, person.id))
    if member and member.ended_at is None:
        return instance  # a driver does not become a viewer by a link, and one for somebody else is not used up
    # of two who follow it at once, one is the first
    fresh = update(Invitation).where(Invitation.id == row.id, Invitation.used_at.is_(None))
    used = fresh.values(used_at=terms.at, used_by=person.id).returning(Invitation.id)
    if spoilt := _spoilt(row, member, terms) or (row.one_time and session.scalar(used) is None and "was used already"):
        raise SharingRefused(f"This invitation {spoilt}. Ask for a new one.")
    give_part(session, instance, person, row.role, person, f"by invitation {row.id}")
    subject = f"{person.name} takes part in {instance.display_name}"
    notices.tell(session, instance.owner_id, subject, f"They followed your invitation, and are {AS[row.role]} now.")
    return instance


def _spoilt(row: Invitation, member: InstanceMember | None, terms: Terms) -> str:
    if row.revoked_at:
        return "was taken back"
    if row.expires_at <= terms.at:
        return f"ended on {row.expires_at:%-d %B %Y, %H:%M} UTC"
    # who was sent away does not come back by an old link
    sent_away = member and member.ended_at and member.ended_at > row.created_at
    return "is older than the end of your part in this instance" if sent_away else ""


# --- what both do; no rules are asked here


def give_part(session: Session, instance: Instance, person: Person, role: str, actor: Person, reason: str = "") -> None:
    """What is written down begins with the login and “is”: by that, what is kept of a person finds it."""
    member = session.get(InstanceMember, (instance.id, person.id))
    was = member.role if member and member.ended_at is None else ""
    if was == role:
        return
    since = member.since if member and was else now()
    session.merge(InstanceMember(instance_id=instance.id, user_id=person.id, role=role, since=since, ended_at=None))
    words = f"{person.login} is {'from now on' if was else 'now'} {AS[role]}"
    kind = "member-changed" if was else "member-added"
    record_event(session, instance.id, kind, actor=actor.login, message=f"{words}: {reason}" if reason else words)
    if actor.id != person.id:
        means = MEANS[role].format(owner=instance.owner.name)
        subject = f"{actor.name} made you {AS[role]} of {instance.display_name}"
        notices.tell(session, person.id, subject, f"{means} It is among “My instances”, below “Shared with you”.{_because(reason)}")


def end_part(session: Session, instance: Instance, member: InstanceMember, actor: Person, reason: str = "") -> None:
    """By the owner, or by themselves."""
    user, left = member.user, actor.id == member.user_id
    member.ended_at = now()
    words, kind = f"{user.login} is no longer {AS[member.role]}", "member-left" if left else "member-removed"
    record_event(session, instance.id, kind, actor=actor.login, message=f"{words}: {reason}" if reason else words)
    if left:
        subject = f"{user.name} has left {instance.display_name}"
        notices.tell(session, instance.owner_id, subject, "They take no part in it any more.")
    else:
        subject = f"You take no part in {instance.display_name} any more"
        notices.tell(session, user.id, subject, f"{actor.name} has ended it.{_because(reason)}")


def _because(reason: str) -> str:
    return f" Reason: {reason}." if reason else ""


# --- of others


def shared_with(session: Session, person_id: str) -> list[tuple[Instance, str]]:
    """Others' instances in which they take part, and as what; newest first."""
    theirs = InstanceMember.user_id == person_id, InstanceMember.ended_at.is_(None), InstanceMember.role != Part.OWNER
    query = select(Instance, InstanceMember.role).join(InstanceMember).where(*theirs, Instance.deleted_at.is_(None))
    return list(session.execute(query.order_by(InstanceMember.since.desc())).tuples())


def may_share_notebook(session: Session, owner: str, server_name: str, login: str, terms: Terms) -> Decision:
    """Whether the owner may let somebody in to the notebook. JupyterHub lets them in at any time, so they must be let come so."""
    instance = find_instance(session, owner, server_name)
    sharer, person = (find_person(session, name, terms) for name in (owner, login))
    if instance is None or sharer is None or person is None:
        return Decision(False, "unknown-instance", "There is no such instance, or nobody of that name.")
    shares = may_act(sharer, Action.SHARE, find_place(session, instance, sharer, terms), terms)
    opens = may_act(person, Action.OPEN, find_place(session, instance, person, terms), terms)
    return told_of(opens, person) if shares else shares


def _check(decision: Decision) -> None:
    if not decision:
        raise SharingRefused(decision.reason)
