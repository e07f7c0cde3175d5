"""Key files: what is encrypted with them stays readable over restarts, to this account only; and what is kept of tokens."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from cryptography.fernet import Fernet


def fernet_key(file: Path) -> bytes:
    """The key in the file, made by whoever comes first and readable by this account only."""
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return file.read_bytes()
    with os.fdopen(handle, "wb") as out:
        out.write(key := Fernet.generate_key())
    return key


def hashed(token: str) -> str:
    """What is kept of a token of ours: it is long and random, so that a slow hash would add nothing."""
    return hashlib.sha256(token.encode()).hexdigest()
