"""A room: the people at one desktop, and whose turn it is to drive. No I/O; whoever calls says what time it is.

Nothing is allowed here that `hub.access` does not allow. The room knows what the rules need to be told besides the records: who
is there, whether the owner is, whom the owner sent away. Whose turn it is, it knows alone:

- The owner drives at first, and again whenever they are there and nobody else drives.
- Others ask. Where nobody drives they drive at once. Whoever drives gives or refuses; without an answer the asker may take it after
  a while, and the owner may take it at any time. Who was refused waits as long before they ask again.
- Somebody who leaves is still there for a moment, as a page that is loaded again leaves and comes back.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from ..access import Decision, Person, Place, Right, Standing, Terms, standing
from ..database.tables import SupportAccess

GRACE = timedelta(seconds=3)
ANSWER_WITHIN = timedelta(seconds=20)
SENT_AWAY_FOR = timedelta(minutes=1)
TYPES_FOR = timedelta(seconds=2)

# what the owner does about support is written down by whoever has the records
SUPPORT_VERBS = frozenset({"grant", "refuse-support", "end-support"})
VERBS = frozenset({"ask", "give", "refuse", "take", "release", "remove"})


@dataclass(slots=True)
class Guest:
    """Somebody at the desktop, with what the records say of them, in one page or several."""

    person: Person
    place: Place
    since: datetime
    connections: set[int]
    typed_at: datetime | None = None


class Room:
    def __init__(self, owner_id: str, terms: Terms) -> None:
        self.owner_id = owner_id
        self.driver: str | None = None
        self.requests: Sequence[SupportAccess] = ()  # with their users
        self._terms = terms
        self._guests: dict[str, Guest] = {}
        self._standings: dict[str, Standing] = {}
        self._kept: dict[str, datetime] = {}
        self._asking: dict[str, datetime] = {}
        self._refused: dict[str, datetime] = {}
        self._sent_away: dict[str, datetime] = {}

    # --- who is there

    def enter(self, connection: int, person: Person, place: Place, at: datetime) -> Decision:
        """Lets somebody in whom the rules let in; what the records say of them replaces what was known."""
        found = standing(person, self._there(place, at), replace(self._terms, at=at)).watch
        if found:
            guest = self._guests.setdefault(person.id, Guest(person, place, at, set()))
            guest.person, guest.place = person, place
            guest.connections.add(connection)
            self._kept.pop(person.id, None)
            self.settle(at)
        return found

    def leave(self, connection: int, at: datetime, *, may_return: bool = True) -> None:
        """may_return: nobody put them out, so they are still there for a moment."""
        for user_id, guest in list(self._guests.items()):
            if connection in guest.connections:
                guest.connections.remove(connection)
                if not guest.connections:
                    del self._guests[user_id]
                    self._kept |= {user_id: at + GRACE} if may_return else {}
        self.settle(at)

    def expect(self, user_ids: Iterable[str], driver: str | None, until: datetime) -> None:
        """Who was there when the relay ended counts as there until then; whoever drove goes on."""
        self._kept |= dict.fromkeys(user_ids, until)
        self.driver = driver if driver in self._kept else None

    def learn(self, user_id: str, person: Person, place: Place) -> None:
        """What the records say now of somebody who is there; `settle` draws the conclusions."""
        guest = self._guests[user_id]
        guest.person, guest.place = person, place

    @property
    def people(self) -> list[str]:
        return list(self._guests)

    @property
    def is_over(self) -> bool:
        return not self._guests and not self._kept

    def _there(self, place: Place, at: datetime) -> Place:
        """The place with what only the room knows."""
        inside = frozenset({*self._guests, *(one for one, until in self._kept.items() if until > at)})
        sent_away = frozenset(one for one, until in self._sent_away.items() if until > at)
        return replace(place, owner_here=self.owner_id in inside, inside=inside, sent_away=sent_away)

    # --- what the rules say, and whose turn it is

    def settle(self, at: datetime) -> None:
        """Asks the rules again about everybody, and draws the conclusions."""
        terms = replace(self._terms, at=at)
        self._standings = {one: standing(guest.person, self._there(guest.place, at), terms) for one, guest in self._guests.items()}
        self._kept = {one: until for one, until in self._kept.items() if until > at}
        self._asking = {one: until for one, until in self._asking.items() if self._may_drive(one)}
        # somebody who is expected back keeps their turn
        if self.driver not in self._kept and not self._may_drive(self.driver):
            self.driver = self.owner_id if self._may_drive(self.owner_id) else next(iter(self._asking), None)
        self._asking.pop(self.driver or "", None)

    def standing(self, user_id: str) -> Standing:
        """Of somebody who is there, as of the last `settle`."""
        return self._standings[user_id]

    def right(self, user_id: str) -> Right:
        return self._standings[user_id].right(user_id == self.driver)

    def _may_drive(self, user_id: str | None) -> bool:
        return user_id in self._standings and bool(self._standings[user_id].control)

    def may(self, user_id: str, at: datetime) -> list[str]:
        """What somebody may ask of the room now."""
        drives, owns = self.driver == user_id, self.owner_id == user_id
        can, asked = self._may_drive(user_id), self._asking.get(user_id)
        verbs = {
            "ask": can and not drives and not asked and self._refused.get(user_id, at) <= at,
            "give": drives or owns,
            "refuse": (drives or owns) and bool(self._asking),
            "take": can and not drives and (owns or (asked is not None and asked <= at)),
            "release": drives and len(self._guests) > 1,
            "remove": owns,
        }
        return [verb for verb, allowed in verbs.items() if allowed] + (sorted(SUPPORT_VERBS) if owns else [])

    def hear(self, user_id: str, message: dict[str, Any], at: datetime) -> dict[str, str]:
        """Does what somebody asks of the room, or says why not, as {to whom: sentence}. ValueError: nobody may say that."""
        verb, other = message.get("do"), message.get("to", message.get("who", ""))
        if verb not in VERBS or not isinstance(other, str):
            raise ValueError(f"{str(verb)[:20]!r} is nothing that one can ask of a room")
        self.settle(at)
        said: dict[str, str] = {}
        if verb not in self.may(user_id, at):
            said = {user_id: "You cannot do that now."}
        elif verb == "ask" and self.driver:
            self._asking[user_id] = at + ANSWER_WITHIN
        elif verb in ("ask", "take"):
            self.driver = user_id
        elif verb == "release":
            # to whoever asked first; else the owner has it again, by `settle`
            self.driver = next(iter(self._asking), None)
        elif other not in self._guests or other == user_id:
            said = {user_id: "They are not here any more."}
        else:
            said = self._about(user_id, verb, other, at)
        self.settle(at)
        return said

    def _about(self, user_id: str, verb: str, other: str, at: datetime) -> dict[str, str]:
        if verb == "remove":
            self._sent_away[other] = at + SENT_AWAY_FOR
        elif verb == "refuse":
            if self._asking.pop(other, None):
                self._refused[other] = at + ANSWER_WITHIN
                return {other: f"{self._guests[user_id].person.name} goes on driving."}
        elif not self._may_drive(other):
            return {user_id: f"{self._guests[other].person.name} may only watch."}
        else:
            self.driver = other
        return {}

    # --- what people see

    def typed(self, user_id: str, at: datetime) -> None:
        if guest := self._guests.get(user_id):
            guest.typed_at = at

    def told(self, at: datetime) -> dict[str, dict[str, Any]]:
        """The room as each person in it sees it, as JSON has it."""
        seen = {
            "do": "room",
            "people": [self._shown(one, at) for one in self._guests],
            "driver": self.driver,
            "asking": [
                {"id": one, "name": self._guests[one].person.name, "until": until.isoformat()}
                for one, until in self._asking.items()
            ],
            "locked": any(one.control.rule == "locked" for one in self._standings.values()),
            "owner_here": self.owner_id in self._guests or self.owner_id in self._kept,
        }
        told = {one: {**seen, "you": one, "may": self.may(one, at)} for one in self._guests}
        if self.owner_id in told:
            told[self.owner_id]["support"] = [_asked(one) for one in self.requests if one.until is None or one.until > at]
        return told

    def _shown(self, user_id: str, at: datetime) -> dict[str, Any]:
        guest = self._guests[user_id]
        return {
            "id": user_id,
            "name": guest.person.name,
            "part": self._standings[user_id].part,
            "control": user_id == self.driver,
            "typing": guest.typed_at is not None and at - guest.typed_at < TYPES_FOR,
            "since": guest.since.isoformat(),
        }


def _asked(row: SupportAccess) -> dict[str, Any]:
    until = row.until.isoformat() if row.until else None
    return {"request": row.id, "name": row.user.name, "reason": row.reason, "until": until, "right": row.right}
