"""The agent's side of the nursery: starts it, asks it for notebooks, starts it again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from . import wire

log = logging.getLogger("hutch.agent")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
KEPT_VARIABLES = ("PYTHON", "LD_", "LC_", "LANG", "TZ")
PAUSE_SECONDS = 1.0
"""Between the death of a nursery and its successor."""


class Nurse:
    def __init__(self, home: Path) -> None:
        self._home = home
        self._process: subprocess.Popen[bytes] | None = None
        self._channels: dict[str, wire.Channel] = {}

    def start(self) -> None:
        """Begin the imports; whoever asks meanwhile waits for them."""
        ours = {name: wire.pair() for name in ("notebooks", "kernels")}
        theirs = [end.fileno() for _, end in ours.values()]
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.nursery", str(os.getpid()), *map(str, theirs)],
            cwd=Path(__file__).parents[__name__.count(".")],
            env=base_environment(self._home),
            pass_fds=theirs,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        for _, end in ours.values():
            end.close()
        self._channels = {name: wire.Channel(end) for name, (end, _) in ours.items()}

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def watch(self) -> None:
        """Keep one nursery alive for as long as the agent lives."""
        while True:
            assert self._process is not None
            with contextlib.suppress(ProcessLookupError):
                pidfd = os.pidfd_open(self._process.pid)
                try:
                    await wire.until_readable(pidfd)
                finally:
                    os.close(pidfd)
            log.warning("The nursery ended and is started again")
            for channel in self._channels.values():
                channel.close()
            await asyncio.sleep(PAUSE_SECONDS)
            self.start()

    async def settle_account(self, create: bool, owner: str, home: Path) -> wire.Message:
        answer, _ = await self._ask("kernels", {"do": "account", "create": create, "owner": owner, "home": str(home)})
        return answer

    async def bear(self, request: wire.Message, log_path: Path) -> tuple[int, int, wire.Channel]:
        """A new notebook: its number, its pidfd, and the line to it."""
        line, notebook_line = wire.pair()
        kennel, notebook_kennel = wire.pair()
        with notebook_line, kennel, notebook_kennel, open_log(log_path) as output:
            _, kennel_pidfd = await self._ask("kernels", {"do": "kernels", **request}, [kennel.fileno(), output.fileno()])
            # it ends when the notebook's end of its line is closed
            os.close(kennel_pidfd[0])
            descriptors = [notebook_line.fileno(), output.fileno(), notebook_kennel.fileno()]
            answer, pidfd = await self._ask("notebooks", {"do": "notebook", **request}, descriptors)
        return answer["pid"], pidfd[0], wire.Channel(line)

    async def _ask(self, whom: str, message: wire.Message, descriptors: list[int] = []) -> tuple[wire.Message, list[int]]:  # noqa: B006
        """Asked again of the successor if a nursery dies over the question."""
        while True:
            try:
                return await self._channels[whom].ask(message, descriptors)
            except (wire.Closed, OSError):
                await asyncio.sleep(PAUSE_SECONDS / 10)

    def stop(self) -> None:
        if self._process:
            self._process.kill()


def base_environment(home: Path) -> dict[str, str]:
    """What a login would set; nothing of the agent's own environment but where its interpreter finds things."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(KEPT_VARIABLES)}
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH') or PATH}"
    return {"LANG": "C.UTF-8", **kept, "PATH": path, "HOME": str(home), "SHELL": "/bin/bash"}


def open_log(path: Path) -> Any:
    return open(path, "ab", buffering=0, opener=lambda name, flags: os.open(name, flags, 0o600))
