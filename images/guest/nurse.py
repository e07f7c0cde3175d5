"""The agent's side of the nursery: starts it, asks it for notebooks, starts it again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import nursery, wire

log = logging.getLogger("hutch.agent")

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
KEPT_VARIABLES = ("PYTHON", "LD_", "LC_", "LANG", "TZ")
# between the death of a nursery and its successor
PAUSE_SECONDS = 1.0
ANSWER_LIMIT_SECONDS = 2.0
# for an answer of the nursery: most of it for its imports, when an image is read from a slow disk for the first time
NURSERY_LIMIT_SECONDS = 120.0


class LaunchError(Exception):
    """A stage failed; the sentence is for the owner, the detail for whoever looks after the image."""

    def __init__(self, sentence: str, detail: str = "") -> None:
        super().__init__(sentence)
        self.detail = detail


class Process:
    """A process as the agent holds it: by its pidfd, which cannot come to mean another process."""

    def __init__(self, pidfd: int) -> None:
        self._pidfd = pidfd
        self.ended = asyncio.create_task(wire.until_ended(pidfd))

    async def end(self, limit_seconds: float) -> None:
        """In its own time, or by force when the limit is over."""
        self.signal(signal.SIGTERM)
        await asyncio.wait({self.ended}, timeout=limit_seconds)
        self.signal(signal.SIGKILL)
        await asyncio.wait({self.ended})

    def signal(self, number: int) -> None:
        if not self.ended.done():
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)


class Notebook(Process):
    def __init__(self, pidfd: int, line: wire.Channel) -> None:
        super().__init__(pidfd)
        self._line = line

    async def ask(self, message: wire.Message) -> wire.Message | None:
        """Its answer, or None if it is too busy, or gone, or not itself: its owner can make it answer anything."""
        try:
            answer, _ = await asyncio.wait_for(self._line.ask(message), ANSWER_LIMIT_SECONDS)
        except Exception as error:
            log.warning("The notebook gave no answer: %r", error)
            return None
        return answer


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
            env={**base_environment(self._home), **nursery.FOR_THE_NURSERY},
            pass_fds=theirs,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        for _, end in ours.values():
            end.close()
        self._channels = {name: wire.Channel(end) for name, (end, _) in ours.items()}

    @property
    def started(self) -> bool:
        return self._process is not None

    async def watch(self) -> None:
        """Keep one nursery alive for as long as the agent lives."""
        while True:
            assert self._process is not None
            with contextlib.suppress(ProcessLookupError):
                await wire.until_ended(os.pidfd_open(self._process.pid))
            log.warning("The nursery ended and is started again")
            await asyncio.sleep(PAUSE_SECONDS)
            try:
                self.start()
            except OSError:
                log.exception("The nursery could not be started; it is tried again")

    async def settle_account(self, create: bool, owner: str, home: Path) -> str | None:
        """The account that the owner's notebook takes on, None for our own."""
        answer, _ = await self._ask("kernels", {"do": "account", "create": create, "owner": owner, "home": str(home)})
        if "error" in answer:
            raise LaunchError(answer["error"])
        return answer["account"]

    async def bear(self, request: wire.Message, log_path: Path) -> Notebook:
        """A new notebook, with a process beside it that forks its kernels."""
        line, notebook_line = wire.pair()
        kennel, notebook_kennel = wire.pair()
        try:
            with notebook_line, kennel, notebook_kennel, open_log(log_path) as output:
                message = {"do": "bear", **request}
                _, kennel_pidfd = await self._ask("kernels", message, [kennel.fileno(), output.fileno()])
                # it ends by itself when the notebook does
                os.close(kennel_pidfd[0])
                descriptors = [notebook_line.fileno(), output.fileno(), notebook_kennel.fileno()]
                _, pidfd = await self._ask("notebooks", message, descriptors)
        except BaseException:
            # a notebook that is born all the same ends when it finds its line closed
            line.close()
            raise
        return Notebook(pidfd[0], wire.Channel(line))

    async def run(
        self, account: str | None, folder: Path, environment: dict[str, str], command: list[str], *streams: int
    ) -> Process:
        """A program of the owner's, with the file descriptors that become its error stream and, if there is another, its output."""
        request = {"account": account, "home": str(folder), "environment": environment, "command": command}
        _, pidfd = await self._ask("kernels", {"do": "run", **request}, streams)
        return Process(pidfd[0])

    async def _ask(self, whom: str, message: wire.Message, descriptors: Sequence[int] = ()) -> tuple[wire.Message, list[int]]:
        """Asked again of the successor if a nursery dies over the question."""
        try:
            async with asyncio.timeout(NURSERY_LIMIT_SECONDS):
                while True:
                    channel = self._channels[whom]
                    try:
                        return await channel.ask(message, descriptors)
                    except wire.Closed:
                        # one of the two may have died alone: only both together are started again
                        if self._channels[whom] is channel:
                            self.stop()
                        await asyncio.sleep(PAUSE_SECONDS / 10)
        except TimeoutError as error:
            self.stop()
            raise LaunchError("What notebooks are started from does not answer; the instance may be short of memory.") from error

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
