"""For LocalProcessSpawner and its kin: the things are processes of this machine."""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import psutil

from ..driver import Driver

PAYLOAD = str(Path(__file__).with_name("payload.py"))
NORMAL = [sys.executable, PAYLOAD]


class LocalProcessDriver(Driver):
    name = "SimpleLocalProcessSpawner"
    spawner_class = "simple"

    def __init__(self, folder: Path) -> None:
        self.config = f"""
c.SimpleLocalProcessSpawner.home_dir_template = {str(folder)!r}
c.LocalProcessSpawner.interrupt_timeout = 1
c.LocalProcessSpawner.term_timeout = 1
"""
        self._mark, self._frozen, self._held_until = str(folder), set[int](), 0.0

    known_failures: ClassVar = {
        "hub_is_killed_during_a_start": "sometimes: killed in the moment before its state is saved, the process is lost",
        "slow_while_the_hub_starts": "stop() ends whatever it is called for, and the hub calls it for what does not answer",
    }

    def things(self) -> dict[str, bool]:
        found = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if PAYLOAD in process.cmdline() and process.environ().get("HOME") == self._mark:
                    found[str(process.pid)] = process.status() != psutil.STATUS_ZOMBIE
        return found

    def remove_all(self) -> None:
        for thing in self.things():
            os.kill(int(thing), signal.SIGKILL)

    def options(self) -> dict[str, Any]:
        return {"cmd": NORMAL}

    def restore(self) -> None:
        for pid in self._frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._frozen.clear()

    def fail_next(self) -> dict[str, Any]:
        return {"cmd": [*NORMAL, "--fail"]}

    def hold_next(self, seconds: float) -> dict[str, Any]:
        """start() returns at once here; the hub then waits for the process to answer."""
        self._held_until = time.monotonic() + seconds
        return {"cmd": [*NORMAL, f"--wait={seconds}"]}

    def held(self) -> bool:
        return time.monotonic() < self._held_until and bool(self.things())

    def end(self, thing: str) -> None:
        os.kill(int(thing), signal.SIGKILL)

    def hang(self, thing: str) -> None:
        os.kill(int(thing), signal.SIGUSR1)

    def fail_stops(self, times: int) -> None:
        """A process that takes no notice of polite signals."""
        self._frozen = {int(thing) for thing in self.things()}
        for pid in self._frozen:
            os.kill(pid, signal.SIGSTOP)

    def hold_stops(self, seconds: float) -> None:
        self.fail_stops(1)
