"""What browsers may say to a desktop, byte by byte."""

from __future__ import annotations

import itertools
import struct
import zlib
from functools import reduce
from operator import or_
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rfb_reader import EXTENDED_CLIPBOARD, EXTENDED_MOUSE_BUTTONS, encodings, forbidden, messages

from hub.access.desktops import CONTROL, Right
from hub.desktop.rfb import ClientStream, Handshake, ProtocolError

pytestmark = pytest.mark.any_database

NOBODYS = Right(0)
EVERYBODYS = None
TEXT, CAPS, REQUEST, PEEK, NOTIFY, PROVIDE = 1, *(1 << bit for bit in range(24, 29))


def set_encodings(*which: int) -> bytes:
    return struct.pack(f">BxH{len(which)}i", 2, len(which), *which)


def key(down: int = 1, keysym: int = 0x61) -> bytes:
    return struct.pack(">BB2xI", 4, down, keysym)


def qemu_key(down: int = 1) -> bytes:
    return struct.pack(">BBHII", 255, 0, down, 0x61, 30)


def pointer(x: int, y: int, buttons: int = 0) -> bytes:
    return struct.pack(">BBHH", 5, buttons, x, y)


def long_pointer(x: int, y: int, buttons: int) -> bytes:
    return struct.pack(">BBHHB", 5, 0x80 | buttons & 0x7F, x, y, buttons >> 7)


def cut_text(text: bytes) -> bytes:
    return struct.pack(">B3xi", 6, len(text)) + text


def clipboard(flags: int, body: bytes = b"") -> bytes:
    return struct.pack(">B3xiI", 6, -4 - len(body), flags) + body


def provide(text: bytes) -> bytes:
    return clipboard(PROVIDE | TEXT, zlib.compress(struct.pack(">I", len(text)) + text))


def flushed(data: bytes) -> bytes:
    """Packed, with more that might follow."""
    packer = zlib.compressobj()
    return packer.compress(data) + packer.flush(zlib.Z_FULL_FLUSH)


def desktop_size(width: int, height: int, screens: int = 1) -> bytes:
    screen = struct.pack(">IHHHHI", 0, 0, 0, width, height, 0)
    return struct.pack(">BxHHBx", 251, width, height, screens) + screen * screens


def fence(flags: int, payload: bytes) -> bytes:
    return struct.pack(">B3xIB", 248, flags, len(payload)) + payload


# every message that noVNC and TigerVNC's viewer send, and the right that it takes
MESSAGES = {
    "pixel format": (struct.pack(">B3xBBBBHHHBBB3x", 0, 32, 24, 0, 1, 255, 255, 255, 0, 8, 16), EVERYBODYS),
    "encodings": (set_encodings(7, 16, 1, -223, -308, -312, -313, EXTENDED_CLIPBOARD), EVERYBODYS),
    "no encodings": (set_encodings(EXTENDED_CLIPBOARD, -308), EVERYBODYS),
    "update request": (struct.pack(">BBHHHH", 3, 1, 0, 0, 1280, 800), EVERYBODYS),
    "continuous updates": (struct.pack(">BBHHHH", 150, 1, 0, 0, 1280, 800), EVERYBODYS),
    "fence": (fence(1 << 31 | 1, b"12345678"), EVERYBODYS),
    "empty fence": (fence(0, b""), EVERYBODYS),
    "key pressed": (key(), Right.KEYBOARD),
    "key released": (key(down=0), Right.KEYBOARD),
    "qemu key pressed": (qemu_key(), Right.KEYBOARD),
    "qemu key released": (qemu_key(down=0), Right.KEYBOARD),
    "pointer moved": (pointer(10, 20), Right.POINTER),
    "button pressed": (pointer(10, 20, 1), Right.POINTER),
    "wheel turned": (pointer(10, 20, 1 << 6), Right.POINTER),
    "text": (cut_text(b"copied"), Right.CLIPBOARD_IN),
    "empty text": (cut_text(b""), Right.CLIPBOARD_IN),
    "clipboard provided": (provide(b"gr\xc3\xbcn\0"), Right.CLIPBOARD_IN),
    "clipboard provided, as noVNC packs it": (
        clipboard(PROVIDE | TEXT, flushed(bytes((0, 0, 0, 4)) + b"abc\0")),
        Right.CLIPBOARD_IN,
    ),
    "clipboard announced": (clipboard(NOTIFY | TEXT), Right.CLIPBOARD_IN),
    "clipboard emptied": (clipboard(NOTIFY), Right.CLIPBOARD_IN),
    "clipboard requested": (clipboard(REQUEST | TEXT), Right.CLIPBOARD_OUT),
    "clipboard peeked at": (clipboard(PEEK), Right.CLIPBOARD_OUT),
    "clipboard abilities": (clipboard(CAPS | REQUEST | PEEK | NOTIFY | PROVIDE | TEXT, bytes(4)), Right.CLIPBOARD_OUT),
    "desktop resized": (desktop_size(1600, 900), Right.RESIZE),
    "two screens": (desktop_size(1600, 900, screens=2), Right.RESIZE),
    "power off": (bytes((250, 0, 1, 2)), NOBODYS),
}
every_message = pytest.mark.parametrize("name", MESSAGES)
WHOLE_VOCABULARY = b"".join(message for message, _ in MESSAGES.values())
ONES = [right for right in Right if right is not Right.VIEW]
SETS_OF_RIGHTS = [reduce(or_, some, Right.VIEW) for number in range(len(ONES) + 1) for some in itertools.combinations(ONES, number)]


def said(stream: ClientStream, *parts: bytes) -> bytes:
    return b"".join(stream.feed(part) for part in parts)


def stream_of(rights: Right, **options: Any) -> ClientStream:
    """One whose browser has said already that it understands sizes."""
    stream = ClientStream(rights, **options)
    stream.feed(set_encodings(-308))
    return stream


@every_message
def test_a_controller_may_send_it_wherever_it_is_split(name: str) -> None:
    message, right = MESSAGES[name]
    for cut in range(len(message)):
        passed = said(stream_of(CONTROL), message[:cut], message[cut:])
        assert passed == (b"" if right is NOBODYS else message), f"split at {cut}"


@every_message
def test_a_viewer_gets_no_input_through_wherever_it_is_split(name: str) -> None:
    message, right = MESSAGES[name]
    for cut in range(len(message)):
        passed = said(stream_of(Right.VIEW), message[:cut], message[cut:])
        assert forbidden(passed, Right.VIEW, knows_long_pointers=False) is None
        assert bool(passed) == (right is EVERYBODYS), f"split at {cut}"


@every_message
@pytest.mark.parametrize("missing", ONES, ids=lambda right: right.name)
def test_each_right_is_needed_for_what_it_names_and_for_nothing_else(name: str, missing: Right) -> None:
    message, right = MESSAGES[name]
    passed = stream_of(CONTROL & ~missing).feed(message)
    if right is missing or right is NOBODYS:
        assert passed == b"" or name == "clipboard abilities"
    elif right is not EVERYBODYS:
        assert passed == message


@pytest.mark.parametrize("rights", SETS_OF_RIGHTS, ids=str)
def test_of_all_there_is_to_say_only_what_is_allowed_passes(rights: Right) -> None:
    whole = stream_of(rights).feed(WHOLE_VOCABULARY)
    assert forbidden(whole, rights, knows_long_pointers=False) is None
    by_bytes = said(stream_of(rights), *(WHOLE_VOCABULARY[at : at + 1] for at in range(len(WHOLE_VOCABULARY))))
    assert by_bytes == whole


def test_a_message_is_passed_on_whole_or_not_yet() -> None:
    """TigerVNC takes a SetDesktopSize of which only the type has come for read, and what follows for other messages."""
    message = desktop_size(1600, 900)
    stream = stream_of(CONTROL)
    assert said(stream, *(message[at : at + 1] for at in range(len(message) - 1))) == b""
    assert stream.feed(message[-1:]) == message


# --- what is not understood


MALFORMED = {
    "of an unknown type": b"\x63",
    "a historic colour map": bytes((1, 0, 0, 0, 0, 1)) + bytes(6),
    "another message of QEMU": bytes((255, 1)) + bytes(10),
    "too many encodings": struct.pack(">BxH", 2, 257),
    "a size, and sizes not understood": desktop_size(640, 480),
    "a size, and sizes no longer understood": set_encodings(-308) + set_encodings(7) + desktop_size(640, 480),
    "255 screens": struct.pack(">BxHHBx", 251, 640, 480, 255),
    "more buttons, not agreed on": long_pointer(1, 1, 1 << 7),
    "a clipboard without flags": struct.pack(">B3xi", 6, -2) + bytes(2),
    "a clipboard of two actions": clipboard(REQUEST | NOTIFY | TEXT),
    "a clipboard of no action": clipboard(TEXT),
    "a key behind a request": clipboard(REQUEST | TEXT, key()),
    "a key behind an announcement": clipboard(NOTIFY | TEXT, key()),
    "a key behind a peek": clipboard(PEEK, key()),
    "a key behind abilities": clipboard(CAPS | PROVIDE | TEXT, bytes(4) + key()),
    "abilities cut short": clipboard(CAPS | PROVIDE | TEXT),
    "a clipboard of nothing": clipboard(PROVIDE, zlib.compress(b"")),
    "a clipboard without its length": clipboard(PROVIDE | TEXT, zlib.compress(b"\0\0")),
    "a clipboard shorter than it says": clipboard(PROVIDE | TEXT, zlib.compress(bytes((0, 0, 0, 9)) + b"short")),
    "a clipboard longer than it says": clipboard(PROVIDE | TEXT, zlib.compress(bytes((0, 0, 0, 1)) + b"long")),
    "a clipboard that does not unpack": clipboard(PROVIDE | TEXT, b"not zlib"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_not_understood_ends_the_connection(name: str) -> None:
    with pytest.raises(ProtocolError):
        ClientStream(CONTROL).feed(MALFORMED[name] + bytes(64))


@pytest.mark.parametrize("name", [name for name in MALFORMED if "behind" in name])
def test_a_server_would_have_found_the_key_behind_the_message(name: str) -> None:
    """What this guards against is real: the reading that servers do finds a key press there."""
    assert key() in list(messages(MALFORMED[name], knows_long_pointers=False))


# --- the clipboard


@pytest.mark.parametrize("rights", [Right.VIEW, CONTROL], ids=["viewer", "controller"])
def test_a_text_that_is_too_long_is_thrown_away_as_it_comes(rights: Right) -> None:
    stream = ClientStream(rights, longest_clipboard=1000)
    update = MESSAGES["update request"][0]
    for sent in (cut_text(bytes(5_000_000)), clipboard(PROVIDE | TEXT, bytes(5_000_000))):
        passed = b""
        for at in range(0, len(sent), 50_000):
            passed += stream.feed(sent[at : at + 50_000])
            assert len(stream._buffer) <= 1000
        assert passed + stream.feed(update) == update
    assert stream.counts.clipboard_bytes == 0


def test_a_text_that_unpacks_to_too_much_is_withheld() -> None:
    packed = provide(bytes(5_000_000))
    assert len(packed) < 10_000
    assert ClientStream(CONTROL, longest_clipboard=10_000).feed(packed) == b""


def test_no_header_makes_it_wait_for_more_than_it_takes() -> None:
    stream = ClientStream(CONTROL, longest_clipboard=1000)
    stream.feed(struct.pack(">B3xi", 6, -(1 << 31)))
    for _ in range(100):
        assert stream.feed(bytes(100_000)) == b""
        assert len(stream._buffer) == 0


def test_who_may_not_have_the_clipboard_is_only_told_of_it() -> None:
    stream = ClientStream(CONTROL & ~Right.CLIPBOARD_OUT)
    # a browser that says nothing of extended clipboards would be sent plain text at once
    asked, told = messages(stream.feed(set_encodings(7, 16)), knows_long_pointers=False)
    assert encodings(asked) == (7, 16, EXTENDED_CLIPBOARD)
    taken = clipboard(CAPS | REQUEST | NOTIFY | TEXT, bytes(4))
    assert told == taken
    takes_much = clipboard(CAPS | REQUEST | NOTIFY | PROVIDE | TEXT, struct.pack(">I", 1 << 20))
    assert stream.feed(takes_much) == taken


# --- mouse buttons


def test_servers_that_do_not_read_long_pointers_are_not_told_of_them() -> None:
    passed = ClientStream(CONTROL).feed(set_encodings(7, EXTENDED_MOUSE_BUTTONS, 16))
    assert passed == set_encodings(7, 16)


# --- counting


def test_what_a_person_does_is_counted_and_what_a_browser_repeats_is_not() -> None:
    stream = ClientStream(CONTROL)
    stream.feed(key() + key(down=0) + qemu_key() + qemu_key(down=0))
    stream.feed(pointer(1, 1) + pointer(1, 1) + pointer(2, 1) + pointer(2, 1, 1) + pointer(2, 1, 1) + pointer(2, 1))
    stream.feed(cut_text(b"12345"))
    assert (stream.counts.keys, stream.counts.pointers, stream.counts.clipboard_bytes) == (2, 5, 5)


def test_what_is_withheld_counts_as_nobodys_input() -> None:
    stream = ClientStream(Right.VIEW)
    stream.feed(key() + pointer(1, 1, 1) + cut_text(b"12345"))
    assert (stream.counts.keys, stream.counts.pointers, stream.counts.clipboard_bytes) == (0, 0, 0)
    assert stream.counts.bytes_in == 8 + 6 + 13


# --- the handshake

OPENING = b"RFB 003.008\n" + b"\x01" + b"\x01"


def test_the_handshake_wherever_it_is_split() -> None:
    for cut in range(len(OPENING)):
        handshake = Handshake()
        answers = handshake.feed(OPENING[:cut]) + handshake.feed(OPENING[cut:] + b"more")
        assert (answers, handshake.done, handshake.rest) == (b"\x01\x01" + bytes(4), True, b"more")


@pytest.mark.parametrize("opening", [b"RFB 003.003\n", b"GET / HTTP/1.1\r\n", b"RFB 003.008\n\x02"])
def test_another_opening_ends_the_connection(opening: bytes) -> None:
    with pytest.raises(ProtocolError):
        Handshake().feed(opening)


# --- anything


vocabulary = st.sampled_from([message for message, _ in MESSAGES.values()] + list(MALFORMED.values()))
invented = st.builds(
    lambda kind, rest: bytes((kind,)) + rest, st.sampled_from([0, 2, 3, 4, 5, 6, 150, 248, 250, 251, 255]), st.binary()
)
clipboards = st.builds(clipboard, st.integers(0, 0xFFFFFFFF), st.one_of(st.binary(max_size=40), st.just(key())))


def damaged(message: bytes, at: int, value: int) -> bytes:
    at %= len(message)
    return message[:at] + bytes((value,)) + message[at + 1 :]


anything = st.lists(
    st.one_of(vocabulary, invented, clipboards, st.binary(), st.builds(damaged, vocabulary, st.integers(0), st.integers(0, 255))),
    max_size=12,
).map(b"".join)


@settings(max_examples=300, deadline=None)
@given(anything, st.sampled_from(SETS_OF_RIGHTS), st.lists(st.integers(0, 200), max_size=8))
@example(set_encodings(EXTENDED_MOUSE_BUTTONS) + long_pointer(1, 1, 1), CONTROL, [5])
def test_whatever_is_said_servers_find_nothing_in_it_that_is_not_allowed(sent: bytes, rights: Right, cuts: list[int]) -> None:
    stream = ClientStream(rights, longest_clipboard=500)
    places = sorted({0, *(cut for cut in cuts if cut < len(sent)), len(sent)})
    passed = b""
    try:
        for start, end in itertools.pairwise(places):
            passed += stream.feed(sent[start:end])
            assert len(stream._buffer) <= 1100
    except ProtocolError:
        pass
    for knows_long_pointers in (False, True):
        assert forbidden(passed, rights, knows_long_pointers=knows_long_pointers) is None
