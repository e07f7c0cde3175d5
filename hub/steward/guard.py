"""What the steward does by itself is little at a time: beyond that it stops and asks, because its view may be what is wrong."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import structlog

from .. import notices
from ..facility import Facility

log = structlog.get_logger()
ALWAYS_ALLOWED = 3


@dataclass
class Guard:
    """file: an operator makes it in the state_dir to allow one pass."""

    facility: Facility
    file: str
    asked: bool = False

    @property
    def path(self) -> Path:
        return Path(self.facility.hutch.state_dir) / self.file

    def most(self, of: int) -> float:
        return max(ALWAYS_ALLOWED, self.facility.hutch.most_revoked_share * of)

    async def allows(self, count: int, of: int, words: str) -> bool:
        """Whether so many of so many are few enough, or allowed once; else the admins are told, once."""
        if count <= self.most(of) or await asyncio.to_thread(_take, self.path):
            self.asked = False
            return True
        if not self.asked:
            log.error("too much to do without asking", count=count, of=of, allow=str(self.path), words=words)
            await self.facility.ask(lambda session: notices.tell_admins(session, "The steward waits for a decision", words))
            self.asked = True
        return False


def _take(file: Path) -> bool:
    try:
        file.unlink()
    except FileNotFoundError:
        return False
    return True
