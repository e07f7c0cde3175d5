"""What a browser may say to a desktop: the client's half of the RFB protocol, parsed whole and filtered by right. No sockets here.

The protocol: RFC 6143, and its living continuation, "rfbproto" (https://github.com/rfbproto/rfbproto), whose section names are
cited below. Whoever judges a stream must read it exactly as the server will, or a message can hide inside another. So:

- only whole messages are passed on, and what is not understood ends the connection;
- lengths that say one thing twice must agree. TigerVNC reads on behind the flags of an extended clipboard message, whatever
  length its header gave;
- a message that servers of different age read differently (the eighth bit of a pointer event) is passed only when one is told
  which of them this is.
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
LONGEST_FENCE = 64

# actions of the extended clipboard, in the flags that its messages begin with ("Extended Clipboard Pseudo-Encoding")
CAPS, REQUEST, PEEK, NOTIFY, PROVIDE = (1 << bit for bit in range(24, 29))
ACTIONS = 0xFF000000
FORMATS = 0x0000FFFF
TEXT = 1
TEXT_NOT_TAKEN = (CAPS | REQUEST | NOTIFY | TEXT, 0)


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
    withheld: int = 0


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

    `rights` never change: whoever gets others gets another connection. `extended_buttons` says that the server reads the long
    form of a pointer event (TigerVNC does from 1.15 on). At most one message is held, and its length is judged before its body.
    """

    def __init__(
        self, rights: Right, *, longest_clipboard: int = 1 << 20, extended_buttons: bool = False, counts: Counts | None = None
    ) -> None:
        self.rights = rights
        self.counts = counts or Counts()
        self._longest_clipboard = longest_clipboard
        self._extended_buttons = extended_buttons
        self._long_pointers = False
        self._sizes_understood = False
        self._last_pointer = b""
        self._buffer = bytearray()
        self._skip = 0
        self._readers = {
            0: (4, self._pixel_format),
            2: (4, self._encodings),
            3: (10, self._plain),
            4: (8, self._key),
            5: (6, self._pointer),
            6: (8, self._cut_text),
            150: (10, self._plain),
            248: (9, self._fence),
            250: (4, self._power),
            251: (8, self._desktop_size),
            255: (2, self._extended_key),
        }

    def feed(self, data: bytes) -> bytes:
        self.counts.bytes_in += len(data)
        self._buffer += data
        passed = []
        while (message := self._next()) is not None:
            passed.append(message)
        return b"".join(passed)

    def _next(self) -> bytes | None:
        """The next message as it is passed on, empty if it is not; None until more has come."""
        if self._skip:
            skipped = min(self._skip, len(self._buffer))
            del self._buffer[:skipped]
            self._skip -= skipped
        if not self._buffer:
            return None
        if self._buffer[0] not in self._readers:
            raise ProtocolError(f"message of unknown type {self._buffer[0]}")
        header_length, read = self._readers[self._buffer[0]]
        if len(self._buffer) < header_length:
            return None
        return read()

    def _take(self, length: int) -> bytes | None:
        if len(self._buffer) < length:
            return None
        message = bytes(self._buffer[:length])
        del self._buffer[:length]
        return message

    def _allowed(self, right: Right | None, message: bytes) -> bytes:
        if right and right in self.rights:
            return message
        self.counts.withheld += 1
        return b""

    def _plain(self) -> bytes | None:
        """FramebufferUpdateRequest (RFC 6143, 7.5.3) and EnableContinuousUpdates: what is sent, and when, is everybody's own."""
        return self._take(10)

    def _pixel_format(self) -> bytes | None:
        """SetPixelFormat (RFC 6143, 7.5.1): everybody's own. Only formats that there are."""
        message = self._take(20)
        if message and (message[4] not in (8, 16, 32) or not 0 < message[5] <= message[4]):
            raise ProtocolError(f"pixels of {message[4]} bits and depth {message[5]}")
        return message

    def _encodings(self) -> bytes | None:
        """SetEncodings (RFC 6143, 7.5.2): everybody's own, but for two that decide how later messages are read and answered.

        A server that may not hand out its clipboard is told that the browser takes extended clipboards, none of them unasked.
        It then announces text instead of sending it, and the request for it is withheld.
        """
        (number,) = struct.unpack_from(">H", self._buffer, 2)
        if number > MOST_ENCODINGS:
            raise ProtocolError(f"{number} encodings")
        if not (message := self._take(4 + 4 * number)):
            return None
        encodings = list(struct.unpack_from(f">{number}I", message, 4))
        self._long_pointers = self._extended_buttons and EXTENDED_MOUSE_BUTTONS in encodings
        self._sizes_understood = EXTENDED_DESKTOP_SIZE in encodings
        if not self._extended_buttons:
            encodings = [encoding for encoding in encodings if encoding != EXTENDED_MOUSE_BUTTONS]
        if Right.CLIPBOARD_OUT in self.rights:
            return _set_encodings(encodings)
        if EXTENDED_CLIPBOARD not in encodings:
            encodings.append(EXTENDED_CLIPBOARD)
        return _set_encodings(encodings) + _extended_clipboard(*TEXT_NOT_TAKEN)

    def _key(self) -> bytes | None:
        """KeyEvent (RFC 6143, 7.5.4)."""
        message = self._take(8)
        return message and self._typed(message, down=bool(message[1]))

    def _extended_key(self) -> bytes | None:
        """QEMU Extended Key Event Message, the only one of QEMU's that is known here."""
        if self._buffer[1] != 0:
            raise ProtocolError(f"message of QEMU of unknown type {self._buffer[1]}")
        message = self._take(12)
        return message and self._typed(message, down=bool(message[2] or message[3]))

    def _typed(self, message: bytes, down: bool) -> bytes:
        passed = self._allowed(Right.KEYBOARD, message)
        self.counts.keys += bool(passed) and down
        return passed

    def _pointer(self) -> bytes | None:
        """PointerEvent (RFC 6143, 7.5.5), also in the long form of "Extended Mouse Buttons Pseudo-Encoding".

        Servers that do not know that form take its last byte for the type of another message.
        """
        marked = bool(self._buffer[1] & 0x80)
        if marked and not self._long_pointers:
            raise ProtocolError("more mouse buttons than were agreed on")
        if not (message := self._take(6 + marked)):
            return None
        if marked and message[6] & 0xFC:
            raise ProtocolError("mouse buttons that there are not")
        passed = self._allowed(Right.POINTER, message)
        # browsers repeat themselves: only a button held down, or another place, is something that a person did
        pressed = message[1] & 0x7F or (marked and message[6])
        if passed and (pressed or message != self._last_pointer):
            self.counts.pointers += 1
        self._last_pointer = message
        return passed

    def _cut_text(self) -> bytes | None:
        """ClientCutText (RFC 6143, 7.5.6) and, where the length is negative, "Extended Clipboard Pseudo-Encoding".

        Too long a text is thrown away as it comes, and the connection goes on: people do copy such.
        """
        (length,) = struct.unpack_from(">i", self._buffer, 4)
        needed = Right.CLIPBOARD_IN if length >= 0 else Right.CLIPBOARD_IN | Right.CLIPBOARD_OUT
        if abs(length) > self._longest_clipboard or not needed & self.rights:
            self.counts.withheld += 1
            del self._buffer[:8]
            self._skip = abs(length)
            return b""
        if not (message := self._take(8 + abs(length))):
            return None
        passed = message if length >= 0 else self._extended_cut_text(message[8:])
        if passed and (length >= 0 or passed[8] & PROVIDE >> 24):
            self.counts.clipboard_bytes += abs(length)
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

    def _fence(self) -> bytes | None:
        """ClientFence: the answers by which the server measures a connection; everybody's own."""
        length = self._buffer[8]
        if length > LONGEST_FENCE:
            raise ProtocolError(f"a fence of {length} bytes")
        return self._take(9 + length)

    def _power(self) -> bytes | None:
        """xvp Client Message: turns machines off, which nobody does from within a desktop."""
        message = self._take(4)
        return message and self._allowed(None, message)

    def _desktop_size(self) -> bytes | None:
        """SetDesktopSize: a new size is everybody's.

        The answer is an encoding, and TigerVNC 1.12 crashes with all that runs on the desktop where that was not announced.
        """
        screens = self._buffer[6]
        if not 0 < screens <= MOST_SCREENS:
            raise ProtocolError(f"a desktop of {screens} screens")
        if not self._sizes_understood:
            raise ProtocolError("a new size of the desktop from a browser that does not understand sizes")
        message = self._take(8 + 16 * screens)
        return message and self._allowed(Right.RESIZE, message)


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


def _set_encodings(encodings: list[int]) -> bytes:
    return struct.pack(f">BxH{len(encodings)}I", 2, len(encodings), *encodings)


def _extended_clipboard(flags: int, rest: bytes | int = b"") -> bytes:
    body = rest if isinstance(rest, bytes) else struct.pack(">I", rest)
    return struct.pack(">B3xiI", 6, -4 - len(body), flags) + body
