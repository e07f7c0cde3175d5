"""What a browser may say to a desktop: the client's half of the RFB protocol, parsed whole and filtered by right. No sockets here.

The protocol: RFC 6143, and its living continuation, "rfbproto" (https://github.com/rfbproto/rfbproto), whose section names are
cited below. Whoever judges a stream must read it exactly as the server will, or a message can hide inside another. So:

- only whole messages are passed on, and what is not understood ends the connection;
- lengths that say one thing twice must agree. TigerVNC reads on behind the flags of an extended clipboard message, whatever
  length its header gave;
- a message that servers of different age read differently (the eighth bit of a pointer event, for more mouse buttons) is not
  passed, and servers are not told that a browser knows it.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from hub.access.desktops import Right

VERSION = b"RFB 003.008\n"
SECURITY_NONE = b"\x01\x01"  # one type is offered, and it is 1
SECURITY_OK = bytes(4)

EXTENDED_CLIPBOARD = 0xC0A1E5CE
EXTENDED_MOUSE_BUTTONS = -316 & 0xFFFFFFFF
EXTENDED_DESKTOP_SIZE = -308 & 0xFFFFFFFF

MOST_ENCODINGS = 256
MOST_SCREENS = 64

SET_PIXEL_FORMAT, SET_ENCODINGS, UPDATE_REQUEST, KEY, POINTER, CUT_TEXT = 0, 2, 3, 4, 5, 6
CONTINUOUS_UPDATES, FENCE, POWER, DESKTOP_SIZE, QEMU = 150, 248, 250, 251, 255

# the length of messages of one length, and how much of the others says how long they are
FIXED = {SET_PIXEL_FORMAT: 20, UPDATE_REQUEST: 10, KEY: 8, POINTER: 6, CONTINUOUS_UPDATES: 10, POWER: 4, QEMU: 12}
HEADERS = {SET_ENCODINGS: 4, CUT_TEXT: 8, FENCE: 9, DESKTOP_SIZE: 8}
# who may send them. Nobody turns a machine off from within a desktop
RIGHTS = {
    SET_PIXEL_FORMAT: Right.VIEW,
    UPDATE_REQUEST: Right.VIEW,
    CONTINUOUS_UPDATES: Right.VIEW,
    FENCE: Right.VIEW,
    KEY: Right.KEYBOARD,
    QEMU: Right.KEYBOARD,
    POINTER: Right.POINTER,
    DESKTOP_SIZE: Right.RESIZE,
    POWER: None,
}

# actions of the extended clipboard, in the flags that its messages begin with ("Extended Clipboard Pseudo-Encoding")
CAPS, REQUEST, PEEK, NOTIFY, PROVIDE = (1 << bit for bit in range(24, 29))
ACTIONS = 0xFF000000
FORMATS = 0x0000FFFF
TEXT = 1
TEXT_NOT_TAKEN = (CAPS | REQUEST | NOTIFY | TEXT, bytes(4))


KINDS = ("key", "pointer", "clipboard")


class ProtocolError(Exception):
    """The browser said something that this side does not understand, or that nobody may say."""


@dataclass(slots=True)
class Counts:
    """What went through a connection. Of keys and clipboard it is known how much, never what."""

    bytes_in: int = 0
    bytes_out: int = 0
    keys: int = 0
    pointers: int = 0
    clipboard_bytes: int = 0

    @property
    def inputs(self) -> tuple[int, int, int]:
        """In the order of KINDS."""
        return self.keys, self.pointers, self.clipboard_bytes


class Handshake:
    """The opening, as a server to whom this browser is known already (RFC 6143, 7.1 and 7.3.1): no security, everybody shares.

    What the browser sends goes into `feed`, and what it is answered comes out. When `done`, whatever else it had sent is `rest`,
    and the server's own bytes follow from its ServerInit on.
    """

    def __init__(self) -> None:
        self.greeting = VERSION
        self.done = False
        self.rest = b""
        self._buffer = b""
        self._steps = [(VERSION, SECURITY_NONE), (b"\x01", SECURITY_OK)]

    def feed(self, data: bytes) -> bytes:
        self._buffer += data
        answer = b""
        while self._steps and len(self._buffer) >= len(self._steps[0][0]):
            expected, reply = self._steps.pop(0)
            said, self._buffer = self._buffer[: len(expected)], self._buffer[len(expected) :]
            if said != expected:
                raise ProtocolError("the browser speaks another version of RFB, or asks for security that was not offered")
            answer += reply
        if not self._steps and self._buffer:
            # ClientInit: whether the desktop is shared is not for a browser to say
            self.done, self.rest, self._buffer = True, self._buffer[1:], b""
        return answer


class ClientStream:
    """What a browser sends after the handshake. Bytes split anywhere go into `feed`, and those to pass on come out.

    `rights` never change: whoever gets others gets another connection. At most one message is held, and its length is judged
    before its body.
    """

    def __init__(self, rights: Right, *, longest_clipboard: int = 1 << 20, counts: Counts | None = None) -> None:
        self.rights = rights
        self.counts = counts or Counts()
        self._longest_clipboard = longest_clipboard
        self._encodings: list[int] = []
        self._last_pointer = b""
        self._buffer = bytearray()
        self._skip = 0

    def feed(self, data: bytes) -> bytes:
        self.counts.bytes_in += len(data)
        self._buffer += data
        passed = []
        while message := self._next():
            passed.append(self._judged(message))
        return b"".join(passed)

    def _next(self) -> bytes:
        """The next message, if it is there whole."""
        if skipped := min(self._skip, len(self._buffer)):
            del self._buffer[:skipped]
            self._skip -= skipped
        if not self._buffer:
            return b""
        kind = self._buffer[0]
        if kind not in FIXED and kind not in HEADERS:
            raise ProtocolError(f"message of unknown type {kind}")
        if len(self._buffer) < HEADERS.get(kind, 0):
            return b""
        length = FIXED.get(kind) or self._length(kind)
        if self._skip:
            return self._next()
        if len(self._buffer) < length:
            return b""
        message = bytes(self._buffer[:length])
        del self._buffer[:length]
        return message

    def _length(self, kind: int) -> int:
        header = self._buffer
        if kind == SET_ENCODINGS:
            return 4 + 4 * _up_to(MOST_ENCODINGS, header[2] << 8 | header[3], "encodings")
        if kind == FENCE:
            return 9 + header[8]
        if kind == DESKTOP_SIZE:
            return 8 + 16 * _up_to(MOST_SCREENS, header[6], "screens")
        # CUT_TEXT: too long a text is thrown away as it comes, and the connection goes on: people do copy such
        (length,) = struct.unpack_from(">i", header, 4)
        needed = Right.CLIPBOARD_IN if length >= 0 else Right.CLIPBOARD_IN | Right.CLIPBOARD_OUT
        if abs(length) > self._longest_clipboard or not needed & self.rights:
            self._skip = 8 + abs(length)
        return 8 + abs(length)

    def _judged(self, message: bytes) -> bytes:
        """A message as it is passed on; empty if it is not.

        FramebufferUpdateRequest (RFC 6143, 7.5.3), SetPixelFormat (7.5.1), EnableContinuousUpdates and ClientFence are everybody's
        own: what is sent, when, and how a connection is measured.
        """
        kind = message[0]
        if kind == SET_ENCODINGS:
            return self._set_encodings(message)
        if kind == CUT_TEXT:
            return self._cut_text(message)
        passed = self._allowed(RIGHTS[kind], message)
        if kind in (KEY, QEMU):
            self._key(message, bool(passed))
        elif kind == POINTER:
            self._pointer(message, bool(passed))
        elif kind == DESKTOP_SIZE and EXTENDED_DESKTOP_SIZE not in self._encodings:
            # the answer to SetDesktopSize is that encoding, and TigerVNC 1.12 crashes where it was not announced
            raise ProtocolError("a new size of the desktop from a browser that does not understand sizes")
        return passed

    def _allowed(self, right: Right | None, message: bytes) -> bytes:
        return message if right and right in self.rights else b""

    def _set_encodings(self, message: bytes) -> bytes:
        """SetEncodings (RFC 6143, 7.5.2): everybody's own, but for two that decide how later messages are read and answered.

        A server that may not hand out its clipboard is told that the browser takes extended clipboards, none of them unasked.
        It then announces text instead of sending it, and the request for it is withheld.
        """
        self._encodings = list(struct.unpack_from(f">{len(message) // 4 - 1}I", message, 4))
        told = [encoding for encoding in self._encodings if encoding != EXTENDED_MOUSE_BUTTONS]
        if Right.CLIPBOARD_OUT in self.rights:
            return _encodings(told)
        return _encodings([*told, EXTENDED_CLIPBOARD]) + _extended_clipboard(*TEXT_NOT_TAKEN)

    def _key(self, message: bytes, passed: bool) -> None:
        """KeyEvent (RFC 6143, 7.5.4), and of QEMU's messages its "Extended Key Event"."""
        if message[0] == QEMU and message[1] != 0:
            raise ProtocolError(f"message of QEMU of unknown type {message[1]}")
        pressed = message[1] if message[0] == KEY else message[2] | message[3]
        self.counts.keys += passed and pressed != 0

    def _pointer(self, message: bytes, passed: bool) -> None:
        """PointerEvent (RFC 6143, 7.5.5). Browsers repeat themselves: only a button held down, or another place, is something
        that a person did.
        """
        if message[1] & 0x80:
            raise ProtocolError("more mouse buttons than were agreed on")
        self.counts.pointers += passed and bool(message[1] or message != self._last_pointer)
        self._last_pointer = message

    def _cut_text(self, message: bytes) -> bytes:
        """ClientCutText (RFC 6143, 7.5.6) and, where the length is negative, "Extended Clipboard Pseudo-Encoding"."""
        if not message[4] & 0x80:
            passed = provided = self._allowed(Right.CLIPBOARD_IN, message)
        else:
            passed = self._extended_cut_text(message[8:])
            provided = passed if passed and message[8] == PROVIDE >> 24 else b""
        self.counts.clipboard_bytes += max(0, len(provided) - 8)
        return passed

    def _extended_cut_text(self, body: bytes) -> bytes:
        if len(body) < 4:
            raise ProtocolError("a clipboard message without flags")
        (flags,) = struct.unpack_from(">I", body)
        action = flags & ACTIONS
        if action & CAPS:
            return self._clipboard_caps(flags, body)
        if action == PROVIDE:
            unpacks = _unpacks_within(self._longest_clipboard, flags, body[4:])
            return self._allowed(Right.CLIPBOARD_IN if unpacks else None, _extended_clipboard(flags, body[4:]))
        if action not in (REQUEST, PEEK, NOTIFY) or len(body) != 4:
            raise ProtocolError("a clipboard message that is not one")
        return self._allowed(Right.CLIPBOARD_IN if action == NOTIFY else Right.CLIPBOARD_OUT, _extended_clipboard(flags))

    def _clipboard_caps(self, flags: int, body: bytes) -> bytes:
        """What the browser takes: a size for each format. Who may not have the clipboard takes nothing unasked."""
        if len(body) != 4 + 4 * (flags & FORMATS).bit_count():
            raise ProtocolError("a clipboard message with sizes for other formats than it names")
        if Right.CLIPBOARD_OUT in self.rights:
            return _extended_clipboard(flags, body[4:])
        return _extended_clipboard(*TEXT_NOT_TAKEN)


def _up_to(most: int, number: int, what: str) -> int:
    if not number <= most:
        raise ProtocolError(f"{number} {what}")
    return number


def _unpacks_within(limit: int, flags: int, packed: bytes) -> bool:
    """Whether a clipboard is not too long once unpacked. It must be whole: of some others TigerVNC does not find the end."""
    try:
        unpacked, end = zlib.decompressobj().decompress(packed, limit + 1), 0
        for _ in range((flags & FORMATS).bit_count()):
            end += 4 + struct.unpack_from(">I", unpacked, end)[0]
            if end > limit:
                return False
    except (zlib.error, struct.error) as problem:
        raise ProtocolError("a clipboard that does not unpack") from problem
    if not flags & FORMATS or end != len(unpacked):
        raise ProtocolError("a clipboard of other lengths than it says")
    return True


def _encodings(encodings: list[int]) -> bytes:
    return struct.pack(f">BxH{len(encodings)}I", 2, len(encodings), *encodings)


def _extended_clipboard(flags: int, rest: bytes = b"") -> bytes:
    return struct.pack(">B3xiI", CUT_TEXT, -4 - len(rest), flags) + rest
