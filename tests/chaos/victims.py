"""What is killed in a chaos run, each as a crash would, and brought back as its own keeper would."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable
from contextlib import suppress
from threading import Event

import live_servers
import psutil
from facility_hub import FacilityHub
from running_hub import until


class Victims:
    """Each kill returns when what was killed is back, or is being brought back by somebody else."""

    def __init__(self, hub: FacilityHub, chance: random.Random, postgresql: live_servers.PostgreSQL | None = None) -> None:
        self.hub, self._postgresql, self._chance = hub, postgresql, chance
        self.kinds: dict[str, Callable[[], None]] = {
            "hub": self._kill_hub,
            "proxy": self._kill_proxy,
            "steward": self._kill_steward,
            "agent": self._kill_agent,
            "cloud": self._kill_cloud,
        } | ({"database": self._kill_database} if postgresql else {})

    def _pause(self) -> None:
        """So long is it gone."""
        Event().wait(self._chance.uniform(0, 3))

    def _kill_hub(self) -> None:
        """Only the hub: its services end with it, and the hub that follows finds the proxy running."""
        assert self.hub.process
        self.hub.process.kill()
        self.hub.process.wait()
        self._pause()
        self.hub.start()

    def _kill_proxy(self) -> None:
        (pid_file,) = self.hub.folder.rglob("*proxy.pid")
        old = pid_file.read_text()
        os.kill(int(old.splitlines()[0]), signal.SIGKILL)
        until(lambda: pid_file.exists() and pid_file.read_text() not in ("", old), "the hub has started a new proxy")

    def _kill_steward(self) -> None:
        assert self.hub.process
        for process in psutil.Process(self.hub.process.pid).children():
            with suppress(psutil.NoSuchProcess):
                if "hub.steward" in process.cmdline():
                    process.kill()

    def _kill_agent(self) -> None:
        """All that runs in one server; the machine is switched off and on again later."""
        servers = [server for server in self.hub.servers() if server["status"] == "ACTIVE"]
        if not servers:
            return
        server = self._chance.choice(servers)["id"]
        with suppress(ValueError):  # it was stopped or deleted meanwhile
            self.hub.devcloud.trouble(server, "crash")
        self._pause()
        self.hub.cloud.compute.post(f"/servers/{server}/action", json={"reboot": {"type": "HARD"}}, raise_exc=False)

    def _kill_cloud(self) -> None:
        self.hub.devcloud.stop(signal.SIGKILL)
        self._pause()
        self.hub.devcloud.start()

    def _kill_database(self) -> None:
        assert self._postgresql
        self._postgresql.kill()
        self._pause()
        self._postgresql.start_again()
