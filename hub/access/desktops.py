"""What a viewer's connection to a desktop lets through, and who gets which of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Flag, auto

from .facts import Decision, Person, Place, Terms
from .instances import Action, may_act


class Right(Flag):
    """What may pass through one connection to a desktop; fixed for as long as the connection lives."""

    VIEW = auto()
    POINTER = auto()
    KEYBOARD = auto()
    CLIPBOARD_IN = auto()
    CLIPBOARD_OUT = auto()
    RESIZE = auto()


CONTROL = Right.VIEW | Right.POINTER | Right.KEYBOARD | Right.CLIPBOARD_IN | Right.CLIPBOARD_OUT | Right.RESIZE
NOTHING = Right(0)


@dataclass(frozen=True, slots=True)
class Standing:
    """What somebody may do at a desktop now. watch: why they are let in, or not; control: why they may drive when it is their turn.

    One person drives at a time. Who may drive and does not sees, and the machine's clipboard is kept from them.
    """

    watch: Decision
    control: Decision

    def right(self, drives: bool) -> Right:
        """drives: it is their turn."""
        if not self.watch:
            return NOTHING
        return CONTROL if self.control and drives else Right.VIEW

    @property
    def part(self) -> str:
        """The part as which they are here; of several, that which lets them drive."""
        decision = self.control or self.watch
        return decision.rule if decision else ""


def standing(person: Person, place: Place, terms: Terms) -> Standing:
    return Standing(*(may_act(person, action, place, terms) for action in (Action.WATCH, Action.CONTROL)))
