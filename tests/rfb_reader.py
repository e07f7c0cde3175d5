"""How servers read what a browser's side of a desktop sends: an independent reading, with the habits of TigerVNC's.

It is made after how TigerVNC behaves, not after what the relay does, and follows it where that is odd: it does not skip what an
extended clipboard message has behind what its flags announce, but takes it for the next message.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from hub.access.desktops import Right

SET_PIXEL_FORMAT, SET_ENCODINGS, UPDATE_REQUEST, KEY, POINTER, CUT_TEXT = 0, 2, 3, 4, 5, 6
CONTINUOUS_UPDATES, FENCE, DESKTOP_SIZE, QEMU = 150, 248, 251, 255
FIXED = {SET_PIXEL_FORMAT: 20, UPDATE_REQUEST: 10, KEY: 8, CONTINUOUS_UPDATES: 10, QEMU: 12}
EVERYBODYS = {SET_PIXEL_FORMAT, SET_ENCODINGS, UPDATE_REQUEST, CONTINUOUS_UPDATES, FENCE}
NEEDED = {KEY: Right.KEYBOARD, QEMU: Right.KEYBOARD, POINTER: Right.POINTER, DESKTOP_SIZE: Right.RESIZE}
EXTENDED_MOUSE_BUTTONS = -316
EXTENDED_CLIPBOARD = 0xC0A1E5CE - (1 << 32)


class Broken(Exception):
    """The server would end the connection here."""


class Ended(Exception):
    """The stream ends within a message."""


def messages(stream: bytes, *, knows_long_pointers: bool) -> Iterator[bytes]:
    """The messages that a server finds in a stream, until it ends or breaks."""
    long_pointers = False
    while stream:
        length = _length(stream, long_pointers)
        if len(stream) < length:
            raise Ended
        message, stream = stream[:length], stream[length:]
        if message[0] == SET_ENCODINGS:
            long_pointers = knows_long_pointers and EXTENDED_MOUSE_BUTTONS in encodings(message)
        yield message


def encodings(message: bytes) -> tuple[int, ...]:
    return struct.unpack(f">{(len(message) - 4) // 4}i", message[4:])


def _length(stream: bytes, long_pointers: bool) -> int:
    padded = stream + bytes(16)
    kind = stream[0]
    if kind in FIXED:
        if kind == QEMU and padded[1] != 0:
            raise Broken
        return FIXED[kind]
    if kind == SET_ENCODINGS:
        return 4 + 4 * struct.unpack_from(">H", padded, 2)[0]
    if kind == POINTER:
        return 7 if long_pointers and padded[1] & 0x80 else 6
    if kind == FENCE:
        return 9 + padded[8]
    if kind == DESKTOP_SIZE:
        return 8 + 16 * padded[6]
    if kind == CUT_TEXT:
        return _cut_text_length(stream)
    raise Broken


def _cut_text_length(stream: bytes) -> int:
    if len(stream) < 8:
        raise Ended
    length, flags = struct.unpack_from(">iI", stream + bytes(4), 4)
    if length >= 0:
        return 8 + length
    if length > -4:
        raise Broken
    if len(stream) < 8 - length:
        raise Ended
    actions = flags & 0x1F000000
    if actions & 1 << 24:
        return 12 + 4 * (flags & 0xFFFF).bit_count()
    if actions == 1 << 28:
        return 8 - length
    if actions in (1 << 25, 1 << 26, 1 << 27):
        return 12
    raise Broken


def forbidden(stream: bytes, rights: Right, *, knows_long_pointers: bool) -> bytes | None:
    """The first message in the stream that somebody with these rights may not send."""
    try:
        for message in messages(stream, knows_long_pointers=knows_long_pointers):
            if not _may(message, rights):
                return message
    except (Broken, Ended):
        # the relay passes whole messages that servers understand, so neither may happen
        return stream
    return None


def _may(message: bytes, rights: Right) -> bool:
    if message[0] in EVERYBODYS:
        return True
    if message[0] != CUT_TEXT:
        return NEEDED[message[0]] in rights
    length, flags = struct.unpack_from(">iI", message + bytes(4), 4)
    if length >= 0 or (flags & 0x18000000 and not flags & 1 << 24):
        return Right.CLIPBOARD_IN in rights
    if flags & 1 << 24:
        # whoever may not have the clipboard asks to be told only, and to be sent nothing
        told_only = not flags & 1 << 28 and flags & 1 << 27 and not any(message[12:])
        return Right.CLIPBOARD_OUT in rights or bool(told_only)
    return Right.CLIPBOARD_OUT in rights
