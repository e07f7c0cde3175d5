"""What Hutch raises when it knows what is wrong. The command line shows the message as one line and exits with 1."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class HutchError(Exception):
    """The message says what was asked, what is wrong, and what to do."""


def near(word: str, known: Iterable[str]) -> str:
    """How a sentence about a name that there is not goes on."""
    names = list(known)
    return nearest(word, names) or f"; known are {', '.join(names)}"


def nearest(word: str, known: Iterable[str]) -> str:
    """The same where there are too many to name them all: empty if none is like it."""
    close = get_close_matches(word, list(known), 1)
    return f"; did you mean {close[0]}?" if close else ""
