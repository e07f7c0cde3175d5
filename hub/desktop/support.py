"""Support asks the owner to be let in, with a reason; the owner lets them see or control for a time, or refuses, or ends it.

Each step is a row's column, an event in the instance's history by which relays hear of it, and a notice to the other side.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from sqlalchemy import or_, select
from sqlalchemy.orm import Session, joinedload

from ..access import Action, Decision, Person, Place, Terms, may_act
from ..database.tables import Instance, SupportAccess
from ..errors import HutchError
from ..instances import record_event
from ..notices import tell
from ..records import find_place

REASON_LENGTH = 500
MOST_MINUTES = 7 * 24 * 60
RIGHTS = ("view", "control")
# what asking the owner can help against
CAN_ASK = frozenset({"consent-needed", "consent-view"})


class SupportError(HutchError):
    """What was asked cannot be; the text is for people."""


def may_come(person: Person, place: Place, action: Action, terms: Terms) -> Decision:
    """Whether somebody may come when the owner is there; whether the owner is there, only the relay knows."""
    return may_act(person, action, replace(place, owner_here=True), terms)


def open_requests(session: Session, instance_id: str, terms: Terms) -> list[SupportAccess]:
    """Not answered yet, or granted and not over."""
    still = SupportAccess.ended_at.is_(None), or_(SupportAccess.until.is_(None), SupportAccess.until > terms.at)
    query = select(SupportAccess).where(SupportAccess.instance_id == instance_id, *still)
    return list(session.scalars(query.options(joinedload(SupportAccess.user)).order_by(SupportAccess.id)))


def ask(session: Session, instance: Instance, person: Person, reason: str, terms: Terms) -> None:
    """Raises SupportError where there is nothing to ask for, no reason, or an answer to wait for."""
    reason = " ".join(reason.split())[:REASON_LENGTH]
    place = find_place(session, instance, person, terms)
    refused = [one for action in (Action.WATCH, Action.CONTROL) if not (one := may_come(person, place, action, terms))]
    if not refused or not any(one.rule in CAN_ASK for one in refused):
        raise SupportError(refused[0].reason if refused else "You may come in without asking.")
    if not reason:
        raise SupportError("Say why: the owner reads it before they let you in.")
    if any(one.user_id == person.id and one.answered_at is None for one in open_requests(session, instance.id, terms)):
        raise SupportError("You have asked already; the owner has not answered yet.")
    session.add(SupportAccess(instance_id=instance.id, user_id=person.id, reason=reason, asked_at=terms.at))
    record_event(session, instance.id, "support-asked", actor=person.login, message=reason)
    text = f"{person.name} of support asks to see the desktop of {instance.display_name}: {reason}"
    tell(session, instance.owner_id, f"Support asks to come in to {instance.display_name}", text)


def grant(session: Session, request_id: int, owner: Person, right: str, minutes: int, terms: Terms) -> SupportAccess:
    """Also of what was granted before: another right, or more time. Raises SupportError."""
    if right not in RIGHTS or not 1 <= minutes <= MOST_MINUTES:
        raise SupportError(f"Grant {' or '.join(RIGHTS)}, for 1 to {MOST_MINUTES} minutes.")
    row = _answered(session, request_id, owner, terms)
    row.right, row.until = right, terms.at + timedelta(minutes=minutes)
    words = f"{row.user.login} may {right} for {minutes} min"
    _written(session, row, owner, "support-granted", words, f"You may {right} it for {minutes} minutes.")
    return row


def refuse(session: Session, request_id: int, owner: Person, terms: Terms) -> SupportAccess:
    return _over(session, request_id, owner, terms, "support-refused", "The owner does not let you in.")


def end(session: Session, request_id: int, owner: Person, terms: Terms) -> SupportAccess:
    return _over(session, request_id, owner, terms, "support-ended", "The owner has ended your access.")


def _over(session: Session, request_id: int, owner: Person, terms: Terms, kind: str, told: str) -> SupportAccess:
    row = _answered(session, request_id, owner, terms)
    row.ended_at = terms.at
    _written(session, row, owner, kind, row.user.login, told)
    return row


def _answered(session: Session, request_id: int, owner: Person, terms: Terms) -> SupportAccess:
    row = session.get(SupportAccess, request_id)
    # of another's instance it is not told whether there is such a request
    if row is None or row.ended_at is not None or not _owns(session, row.instance, owner, terms):
        raise SupportError("There is no such request (any more).")
    row.answered_at, row.answered_by = terms.at, owner.id
    return row


def _owns(session: Session, instance: Instance, person: Person, terms: Terms) -> bool:
    return bool(may_act(person, Action.SHARE, find_place(session, instance, person, terms), terms))


def _written(session: Session, row: SupportAccess, owner: Person, kind: str, words: str, told: str) -> None:
    record_event(session, row.instance_id, kind, actor=owner.login, message=words)
    tell(session, row.user_id, f"{row.instance.display_name} of {owner.name}", told)
