"""A booted server whose payload is the guest agent: real processes on this machine, with an address of their own."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from spawner.devcloud.folder import Folder
from spawner.devcloud.state import Options
from spawner.devcloud.stub import StubAgent

PID1 = Path(__file__).with_name("pid1.py")


class Machine(Protocol):
    """What the lifecycle of a server asks of its payload."""

    async def boot(self) -> None: ...
    async def shutdown(self) -> None:
        """The power button: ask, wait for the grace, kill."""

    async def kill(self) -> None:
        """Pull the plug."""

    async def crash(self) -> None:
        """All that runs inside dies; for Nova the server stays up."""

    async def mute(self) -> None:
        """The agent answers no more."""

    async def impersonate(self) -> None:
        """Somebody else answers in place of the agent, with a certificate of his own."""


class Spares:
    """One pid1 started ahead of need, because the start of a Python is more than half of a boot."""

    def __init__(self) -> None:
        self._next: asyncio.Task[asyncio.subprocess.Process] | None = None
        self._closed = False

    def prepare(self) -> None:
        if self._next is None and not self._closed:
            self._next = asyncio.create_task(self._start())

    @staticmethod
    async def _start() -> asyncio.subprocess.Process:
        command = [sys.executable, "-I", "-S", str(PID1)]
        return await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env={}, start_new_session=True
        )

    async def take(self) -> asyncio.subprocess.Process:
        ready, self._next = self._next, None
        process = await ready if ready is not None else await self._start()
        asyncio.get_running_loop().call_later(0.05, self.prepare)
        return process if process.returncode is None else await self._start()

    async def close(self) -> None:
        self._closed = True
        if self._next is not None:
            process = await self._next
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()


class AgentMachine:
    def __init__(self, folder: Folder, address: str, options: Options, spares: Spares, powered_off: Callable[[], None]) -> None:
        self._folder = folder
        self._address = address
        self._options = options
        self._spares = spares
        self._powered_off = powered_off
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._impostor: StubAgent | None = None

    def _order(self) -> dict[str, Any]:
        folder = self._folder
        places = {"--etc": folder.etc, "--state": folder.var, "--home": folder.home, "--address": self._address}
        arguments = [str(word) for pair in places.items() for word in pair]
        # Nothing of devcloud's own environment gets in but the way to programs.
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
        return {
            "command": [*self._options.agent_command, *arguments, "--console", str(folder.console), "--account", "current"],
            "environment": {"PATH": path, "HOME": str(folder.home), "LANG": "C.UTF-8"},
            "folder": str(self._options.agent_folder),
            "console": str(folder.console),
            "grace_seconds": self._options.stop_grace_seconds,
        }

    async def boot(self) -> None:
        self._process = await self._spares.take()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(self._order()).encode() + b"\n")
        self._watch = asyncio.create_task(self._wait(self._process))

    async def _wait(self, process: asyncio.subprocess.Process) -> None:
        await process.wait()
        if process is self._process:
            self._process = None
            self._powered_off()

    async def shutdown(self) -> None:
        if self._process is not None:
            await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        if self._process is not None:
            await self._end(None)

    async def _end(self, number: int | None) -> None:
        process, self._process = self._process, None
        assert process is not None and process.stdin is not None
        if number is None:
            process.stdin.close()
        else:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)
        # pid1 keeps the grace; the second limit is for a pid1 that cannot.
        try:
            await asyncio.wait_for(process.wait(), self._options.stop_grace_seconds + 10)
        except TimeoutError:
            process.kill()
        finally:
            process.stdin.close()  # whoever cancels an orderly end gets a quick one
        if self._impostor is not None:
            await self._impostor.close()

    def _signal(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)

    async def crash(self) -> None:
        self._signal(signal.SIGUSR1)

    async def mute(self) -> None:
        self._signal(signal.SIGUSR2)

    async def impersonate(self) -> None:
        await self.crash()
        self._impostor = StubAgent(self._folder, self._address, key_name="impostor.pem")
        await self._impostor.listen(retry_seconds=5)
