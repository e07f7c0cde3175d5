"""What a viewer's connection to a desktop lets through, and who gets which of it."""

from __future__ import annotations

from enum import Flag, auto


class Right(Flag):
    """What may pass through one connection to a desktop; fixed for as long as the connection lives."""

    VIEW = auto()
    POINTER = auto()
    KEYBOARD = auto()
    CLIPBOARD_IN = auto()
    CLIPBOARD_OUT = auto()
    RESIZE = auto()


CONTROL = Right.VIEW | Right.POINTER | Right.KEYBOARD | Right.CLIPBOARD_IN | Right.CLIPBOARD_OUT | Right.RESIZE
