"""How the agent gets into Xvnc: its password file, and RFB's handshake with a password.

ref: https://github.com/rfbproto/rfbproto/blob/master/rfbproto.rst
"""

from __future__ import annotations

import asyncio

VERSION = b"RFB 003.008\n"
VNC_AUTHENTICATION = 2
# with which every VNC server veils the passwords in its file
FILE_KEY = bytes([23, 82, 107, 6, 35, 78, 88, 7])


class RfbError(Exception):
    """The VNC server is not as it should be; a plain sentence."""


def password_file(full: bytes, view_only: bytes) -> bytes:
    """Two passwords of eight bytes each, as `tigervncpasswd` writes them."""
    return _des(FILE_KEY, full) + _des(FILE_KEY, view_only)


async def log_in(reader: asyncio.StreamReader, transport: asyncio.WriteTransport, password: bytes) -> None:
    """Everything up to the ClientInit message, before which nothing more comes: it is the hub's to send."""
    if await reader.readexactly(len(VERSION)) != VERSION:
        raise RfbError("The desktop does not speak the version of VNC that is expected.")
    transport.write(VERSION)
    offered = await reader.readexactly((await reader.readexactly(1))[0])
    if VNC_AUTHENTICATION not in offered:
        raise RfbError("The desktop takes no password now.")
    transport.write(bytes([VNC_AUTHENTICATION]))
    transport.write(_des(password, await reader.readexactly(16)))
    if await reader.readexactly(4) != bytes(4):
        raise RfbError("The desktop does not know its own password.")


def _des(key: bytes, data: bytes) -> bytes:
    """DES, each bit of the key in VNC's order: three rounds of the same key are one."""
    # imported here because it takes longer than all else in the agent's own modules
    from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
    from cryptography.hazmat.primitives.ciphers import Cipher, modes

    mirrored = bytes(int(f"{byte:08b}"[::-1], 2) for byte in key)
    encryptor = Cipher(TripleDES(mirrored * 3), modes.ECB()).encryptor()  # noqa: S305 (it is what VNC speaks)
    return encryptor.update(data) + encryptor.finalize()
