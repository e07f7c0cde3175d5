"""The rules of sharing: what somebody may be made in an instance, by its owner or by an invitation of the owner's."""

from __future__ import annotations

from dataclasses import replace

from .facts import Decision, Person, Place, Terms, ref
from .instances import Part
from .launches import may_see

# by whom owners are helped; what they may do then is the part `support`
SUPPORT_ROLES = frozenset({"instrument-scientist", "instrument-control", "it-support", "scientific-computing"})
GIVEN = (Part.VIEWER, Part.DRIVER, Part.SUPPORT)


def may_become(person: Person, part: str, place: Place, terms: Terms) -> Decision:
    """Drivers and viewers must be on all of the instance's experiments, or these open to them; support must be staff who help."""
    if part not in GIVEN:
        return Decision(False, "part-not-given", "One can be made a viewer, a driver or support, and nothing else.")
    if person.id == place.owner_id:
        return Decision(False, "owner-already", f"{person.login} is the owner.", (ref("instance", place.id),))
    if part == Part.SUPPORT:
        looks_after = {visit.instrument_id for visit in place.visits} & person.scientist_of
        grounds = person.holds(SUPPORT_ROLES) + tuple(ref("instrument_scientist", one, person.id) for one in sorted(looks_after))
        reason = "" if grounds else f"{person.login} is not of those who support users: {', '.join(sorted(SUPPORT_ROLES))}."
        return Decision(bool(grounds), "support-staff", reason, grounds or (ref("user", person.id),))
    decisions = [may_see(person, visit, terms) for visit in place.visits]
    return next((one for one in decisions if not one), Decision(True, part, records=tuple(r for d in decisions for r in d.records)))


def told_of(decision: Decision, person: Person) -> Decision:
    """A decision about a person in words for others, who learn no more than the login that they know."""
    return replace(decision, reason=decision.reason.replace("You are", f"{person.login} is", 1))
