"""What Hutch raises when it knows what is wrong. The command line shows the message as one line and exits with 1."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class HutchError(Exception):
    """The message says what was asked, what is wrong, and what to do."""


def near(word: str, known: Iterable[str]) -> str:
    """How a sentence about a name that there is not goes on."""
    names = list(known)
    close = get_close_matches(word, names, 1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(names)}"
