"""The rules of an instance that exists: who takes which part in it, and what each part may do; and the tasks of staff.

Where somebody has several parts they add up. Nobody is an owner but by the instance itself: a member's row cannot say so.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum

from .facts import ADMIN, Decision, Person, Place, Terms, WhenOwnerLeaves, ref
from .launches import may_see, may_use_experiments


class Action(StrEnum):
    """What can be done with an instance."""

    SEE = "see"
    OPEN = "open"
    WATCH = "watch"
    CONTROL = "control"
    START = "start"
    STOP = "stop"
    EXTEND = "extend"
    SHARE = "share"
    DELETE = "delete"
    LOG = "log"


class Part(StrEnum):
    OWNER = "owner"
    DRIVER = "driver"
    VIEWER = "viewer"
    SUPPORT = "support"
    SCIENTIST = "instrument-scientist"
    CONTROL = "instrument-control"
    IT_SUPPORT = "it-support"
    ADMIN = "admin"


_SUPPORT = frozenset({Action.SEE, Action.WATCH, Action.CONTROL, Action.LOG})
# the notebook is opened as the owner's own account, unseen by the owner: that is never support's
MAY: dict[Part, frozenset[Action]] = {
    Part.OWNER: frozenset(Action),
    Part.DRIVER: frozenset({Action.SEE, Action.OPEN, Action.WATCH, Action.CONTROL}),
    Part.VIEWER: frozenset({Action.SEE, Action.WATCH}),
    Part.SUPPORT: _SUPPORT,
    Part.SCIENTIST: _SUPPORT,
    Part.CONTROL: _SUPPORT,
    Part.IT_SUPPORT: _SUPPORT,
    Part.ADMIN: _SUPPORT | {Action.START, Action.STOP, Action.EXTEND, Action.DELETE},
}
MEMBERS = frozenset({Part.DRIVER, Part.VIEWER})
HELPERS = frozenset(Part) - MEMBERS - {Part.OWNER}
AT_DESKTOP = frozenset({Action.WATCH, Action.CONTROL})
# what shows or changes what is inside
ENTERING = AT_DESKTOP | {Action.OPEN}
# only for those to whom the instance's experiments are theirs; a start asks the rules of a launch besides
WITH_EXPERIMENTS = ENTERING | {Action.EXTEND, Action.SHARE}


def parts_of(person: Person, place: Place, terms: Terms) -> Iterator[tuple[Part, tuple[str, ...]]]:
    """Each part that they have, with the records by which they have it."""
    if person.id == place.owner_id:
        yield Part.OWNER, (ref("instance", place.id),)
    if (member := place.members.get(person.id)) in (Part.DRIVER, Part.VIEWER, Part.SUPPORT):
        yield Part(member), (ref("instance_member", place.id, person.id),)
    here = [visit for visit in place.visits if not visit.gone]
    for visit in here:
        if visit.instrument_id in person.scientist_of:
            yield Part.SCIENTIST, (ref("instrument_scientist", visit.instrument_id, person.id), ref("experiment", visit.id))
    for role in (Part.CONTROL, Part.IT_SUPPORT, Part.ADMIN):
        near = [ref("experiment", visit.id) for visit in here if visit.is_within(terms.support_window, terms.at)]
        if (grounds := person.holds({role})) and (near or role is not Part.CONTROL):
            yield role, (*grounds, *near) if role is Part.CONTROL else grounds


def may_act(person: Person, action: Action, place: Place, terms: Terms) -> Decision:
    """What one of their parts allows is allowed."""
    decisions = [_as(part, grounds, person, action, place, terms) for part, grounds in parts_of(person, place, terms)]
    if not decisions:
        wanted = ref("instance", place.id), ref("instance_member", place.id, person.id)
        return Decision(False, "not-yours", "This instance belongs to somebody else.", wanted)
    # of several refusals, the one that says what is missing
    return next((one for one in decisions if one), None) or max(decisions, key=lambda one: one.rule != "part")


def _as(part: Part, grounds: tuple[str, ...], person: Person, action: Action, place: Place, terms: Terms) -> Decision:
    if action not in MAY[part]:
        return Decision(False, "part", f"As {part} one may only {', '.join(one for one in Action if one in MAY[part])}.", grounds)
    if part is Part.OWNER or part in MEMBERS:
        theirs = _experiments(part, person, action, place, terms)
        if not theirs:
            return theirs
    if part is not Part.OWNER and action in AT_DESKTOP and person.id in place.sent_away:
        return Decision(False, "sent-away", "The owner has sent you away from this desktop for now.", grounds)
    if part in MEMBERS and action in ENTERING:
        return _member(part, grounds, person, action, place)
    if part in HELPERS and action in ENTERING and place.owner_is_staff:
        return _helper(part, grounds, person, action, place, terms)
    return Decision(True, part, records=grounds)


def _member(part: Part, grounds: tuple[str, ...], person: Person, action: Action, place: Place) -> Decision:
    """Members come in while the owner is there; what becomes of those inside when the owner leaves is their choice."""
    allowed = Decision(True, part, records=grounds)
    if place.owner_here or place.members_enter_freely:
        return allowed
    if action in AT_DESKTOP and person.id in place.inside:
        if place.when_owner_leaves == WhenOwnerLeaves.STAY:
            return allowed
        if place.when_owner_leaves == WhenOwnerLeaves.LOCK:
            locked = Decision(False, "locked", "The owner has left: until they are back, members only see.", grounds)
            return allowed if action is Action.WATCH else locked
    return Decision(False, "owner-away", "Members come in while the owner is there, or when the owner lets them.", grounds)


def _helper(part: Part, grounds: tuple[str, ...], person: Person, action: Action, place: Place, terms: Terms) -> Decision:
    """A member of staff says whom of support they let in, and until when; whether they are there themselves does not matter."""
    consent = place.consented.get(person.id)
    if consent is None:
        return Decision(False, "consent-needed", "The owner is staff: support comes in when the owner consents.", grounds)
    grounds = (*grounds, ref("support_access", str(consent.request)))
    if consent.until <= terms.at:
        return Decision(False, "consent-needed", "The time for which the owner let you in is over.", grounds)
    if action is Action.CONTROL and consent.right != Action.CONTROL:
        return Decision(False, "consent-view", "The owner lets you see this desktop, not control it.", grounds)
    return Decision(True, part, records=grounds)


def _experiments(part: Part, person: Person, action: Action, place: Place, terms: Terms) -> Decision:
    if action not in WITH_EXPERIMENTS:
        return Decision(True, part)
    if part is Part.OWNER:
        return may_use_experiments(person, place.visits, terms)
    return next((one for visit in place.visits if not (one := may_see(person, visit, terms))), Decision(True, part))


# --- tasks of staff


class Task(StrEnum):
    """What staff do in the portal beyond their own instances."""

    EXPLAIN = "explain"
    FACILITY_DATA = "facility-data"
    CONFIRM_IDENTITY = "confirm-identity"


TASKS: dict[Task, frozenset[str]] = {
    Task.EXPLAIN: frozenset({ADMIN, "it-support", "staff"}),
    Task.FACILITY_DATA: frozenset({ADMIN, "it-support", "staff"}),
    # it decides whose account a sign-on leads to
    Task.CONFIRM_IDENTITY: frozenset({ADMIN, "it-support"}),
}


def may_run(person: Person, task: Task) -> Decision:
    grounds = person.holds(TASKS[task])
    reason = "" if grounds else f"This is for {', '.join(sorted(TASKS[task]))}."
    return Decision(bool(grounds), f"task-{task}", reason, grounds or (ref("user", person.id),))
