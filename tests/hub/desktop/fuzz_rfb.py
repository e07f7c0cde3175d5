"""Millions of things a browser could say, steered by coverage, none of which may reach a desktop as what is not allowed.

python tests/hub/desktop/fuzz_rfb.py [folder of inputs] -max_total_time=300 (all options are libFuzzer's)
"""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import atheris

sys.path[:0] = [str(Path(__file__).parents[3]), str(Path(__file__).parents[2])]

from rfb_reader import forbidden  # noqa: E402

with atheris.instrument_imports(include=["hub.desktop.rfb"]):
    from hub.access.desktops import Right
    from hub.desktop.rfb import ClientStream, ProtocolError

LONGEST_CLIPBOARD = 300
EVERY_RIGHT = sum(right.value for right in Right)


def one_input(data: bytes) -> None:
    """Two bytes say which rights and how long the pieces are; the rest is what the browser sends."""
    if len(data) < 3:
        return
    # half of all are viewers
    rights = Right(data[0] & EVERY_RIGHT | Right.VIEW.value) if data[0] & 0x40 else Right.VIEW
    stream = ClientStream(rights, longest_clipboard=LONGEST_CLIPBOARD)
    passed, piece = b"", data[1] % 32 + 1
    try:
        for at in range(2, len(data), piece):
            passed += stream.feed(data[at : at + piece])
            assert len(stream._buffer) <= 4 + 4 * 256 + 64 * 16, "too much is held"
    except ProtocolError:
        pass
    for knows_long_pointers in (False, True):
        found = forbidden(passed, rights, knows_long_pointers=knows_long_pointers)
        assert found is None, (rights, knows_long_pointers, found)


def seeds() -> list[bytes]:
    """One of each message to begin with: for a viewer and for somebody who may do all, whole and byte by byte."""
    extended = struct.pack(">B3xiII", 6, -8, 0x1F000001, 0)
    examples = [
        bytes((0, 0, 0, 0, 32, 24)) + bytes(14),
        struct.pack(">BxH3i", 2, 3, 7, -316, -308),
        bytes((3, 1)) + bytes(8),
        bytes((4, 1, 0, 0, 0, 0, 0, 97)),
        bytes((5, 1, 0, 9, 0, 9)),
        struct.pack(">BxHi", 2, 1, -316) + bytes((5, 0x80, 0, 9, 0, 9, 1)),
        struct.pack(">B3xi", 6, 4) + b"text",
        extended,
        struct.pack(">B3xiI", 6, -4, 0x02000001),
        bytes((150, 1)) + bytes(8),
        bytes((248, 0, 0, 0, 0, 0, 0, 1, 2, 7, 7)),
        bytes((250, 0, 1, 2)),
        struct.pack(">BxHi", 2, 1, -308) + struct.pack(">BxHHBx", 251, 640, 480, 1) + bytes(16),
        bytes((255, 0)) + bytes(10),
    ]
    return [bytes((rights, piece)) + example for rights in (0, 0x7F) for piece in (0, 31) for example in examples]


def main() -> None:
    folders = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    for folder in folders[:1]:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds()):
            Path(folder, f"seed-{number}").write_bytes(seed)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
