"""The first process in a devcloud server: it starts the agent, and no process of the server outlives it.

Standard input is a pipe from devcloud. Its one line of JSON says what to run: command, environment, folder, console and
grace_seconds. Nothing follows: when the pipe ends, devcloud is gone or has pulled the plug, and everything is killed at once.
It adopts what its children leave behind, so that it can find every process of the server, however detached.

SIGTERM is the power button: the agent's group is asked to end, then the rest, and killed after the grace.
SIGUSR1 crashes all that runs inside and leaves the server up; SIGUSR2 freezes the agent.

An agent that ends well (status 0) has powered the server off. One that fails leaves the server up without an agent, as a
machine would be. This file uses the standard library only: it is run by a bare `python -I -S`.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

PR_SET_CHILD_SUBREAPER = 36


def children_of(pid: int) -> list[int]:
    """All living descendants of a process."""
    parents: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):  # noqa: PTH208 - pathlib takes longer to import than all the rest
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:  # noqa: PTH123
                state, parent = file.read().rpartition(b")")[2].split()[:2]
                if state != b"Z":
                    parents.setdefault(int(parent), []).append(int(name))
    found, todo = [], [pid]
    while todo:
        kin = parents.get(todo.pop(), [])
        found += kin
        todo += kin
    return found


def send(pids: list[int], number: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def read_order() -> dict[str, Any] | None:
    """What to run, or None if devcloud ended before it had anything."""
    line = b""
    while not line.endswith(b"\n"):
        part = os.read(0, 65536)
        if not part:
            return None
        line += part
    order: dict[str, Any] = json.loads(line)
    return order


def spawn(command: list[str], environment: dict[str, str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execvpe(command[0], command, environment)  # noqa: S606
    except OSError as error:
        print(f"pid1: cannot start {command[0]}: {error.strerror}", file=sys.stderr, flush=True)  # noqa: T201
    os._exit(127)


class Pid1:
    def __init__(self, order: dict[str, Any]) -> None:
        self.grace_seconds = float(order["grace_seconds"])
        self.signals: set[int] = set()
        self.agent_status: int | None = None
        self.wake_read, wake_write = os.pipe()
        os.set_blocking(self.wake_read, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, lambda number, frame: self.signals.add(number))
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        os.chdir(order["folder"])
        console = os.open(order["console"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.dup2(console, 1)
        os.dup2(console, 2)
        os.close(console)
        self.agent = spawn(order["command"], order["environment"])

    def reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self.agent:
                    self.agent_status = os.waitstatus_to_exitcode(ended[1])

    def wait(self, timeout: float | None) -> bool:
        """Wait for a signal, a child's end or the timeout. False: devcloud is gone."""
        ready = select.select([0, self.wake_read], [], [], timeout)[0]
        if self.wake_read in ready:
            os.read(self.wake_read, 512)
        self.reap()
        return 0 not in ready

    def until(self, done: Callable[[], bool], deadline: float) -> bool:
        """Whether it was done before the deadline (and before devcloud went away)."""
        while not done():
            left = deadline - time.monotonic()
            if left <= 0 or not self.wait(min(left, 0.2)):
                return False
        return True

    def kill_all(self) -> None:
        while kin := children_of(os.getpid()):
            send(kin, signal.SIGKILL)
            time.sleep(0.002)
            self.reap()

    def power_off(self) -> None:
        deadline = time.monotonic() + self.grace_seconds
        if self.agent_status is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.agent, signal.SIGTERM)
                os.killpg(self.agent, signal.SIGCONT)
            self.until(lambda: self.agent_status is not None, deadline)
        send(children_of(os.getpid()), signal.SIGTERM)
        self.until(lambda: not children_of(os.getpid()), deadline)
        self.kill_all()

    def run(self) -> None:
        reported = False
        while self.wait(None):
            if signal.SIGTERM in self.signals or self.agent_status == 0:
                return self.power_off()
            if signal.SIGUSR1 in self.signals:
                self.signals.discard(signal.SIGUSR1)
                self.kill_all()
            if signal.SIGUSR2 in self.signals and self.agent_status is None:
                self.signals.discard(signal.SIGUSR2)
                send([self.agent], signal.SIGSTOP)
            if self.agent_status is not None and not reported:
                reported = True
                print(f"pid1: the agent ended with status {self.agent_status}", file=sys.stderr, flush=True)  # noqa: T201
        return self.kill_all()


if __name__ == "__main__":
    # ref: https://man7.org/linux/man-pages/man2/pr_set_child_subreaper.2const.html
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    if (order := read_order()) is not None:
        Pid1(order).run()
