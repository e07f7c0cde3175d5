"""Python kernels forked from a process that has imported them ahead: the first cell runs a second sooner.

Each notebook has one such process, of its owner's account. Kernels are its children; JupyterLab watches them through their
pidfd, and falls back to starting them the ordinary way whenever a forked one could differ from it.
"""

from __future__ import annotations

import os
import select
import signal
import site
import socket
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NoReturn, cast

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from . import nursery, wire

LAUNCHER = ["-m", "ipykernel_launcher"]
"""What the kernel specification that ipykernel installs runs with its interpreter."""


def begin(message: wire.Message, descriptors: list[int]) -> NoReturn:
    """The life of the process that bears one notebook's kernels: it ends with the notebook."""
    requests = socket.socket(fileno=descriptors[0])
    log = descriptors[1]
    nursery.settle(message["account"], message["home"], message["environment"], os.getppid(), log)
    os.close(log)
    nursery.name_process("hutch-kernels")
    # nobody waits for the kernels, their pidfd tells of their end
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    packages = stamps(package_folders())
    while True:
        try:
            message, _ = wire.receive(requests)
        except wire.Closed:
            os._exit(0)
        if stamps(packages) != packages or nursery.needs_fresh_interpreter(message["environment"], os.environ):
            wire.send(requests, {"fork": False})
            continue
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            requests.close()
            live(message, parent)
        try:
            wire.send(requests, {"fork": True, "pid": child}, [os.pidfd_open(child)])
        except ProcessLookupError:
            wire.send(requests, {"fork": False})


def live(message: wire.Message, parent: int) -> NoReturn:
    """One kernel, as ``python -m ipykernel_launcher`` would be it."""
    try:
        nursery.settle(None, message["folder"], message["environment"], parent, log=os.dup(1))
        nursery.name_process("python")
        sys.path[:] = [entry for entry in sys.path if entry != message["not_in_path"]]
        # the class read the parent's number when it was imported; the parent is another one now
        sys.argv = [sys.argv[0], *message["arguments"], f"--IPKernelApp.parent_handle={parent}"]
        from ipykernel.kernelapp import IPKernelApp

        IPKernelApp.launch_instance()
    except SystemExit as exit_:
        os._exit(exit_.code if isinstance(exit_.code, int) else 0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def package_folders() -> list[str]:
    user = site.getusersitepackages() if site.ENABLE_USER_SITE else None
    return [*(entry for entry in sys.path if entry), *([user] if user else [])]


def stamps(folders: Iterable[str]) -> dict[str, int]:
    """When packages were last installed or removed: after that an imported module may not be the installed one."""
    return {folder: Path(folder).stat().st_mtime_ns if Path(folder).is_dir() else 0 for folder in folders}


class ForkedKernel:
    """A kernel that is not our child, with as much of ``subprocess.Popen`` as LocalProvisioner uses."""

    stdin = stdout = stderr = None

    def __init__(self, pid: int, pidfd: int) -> None:
        self.pid = pid
        self.pidfd = pidfd
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self.pidfd], [], [], 0)[0]:
            # how it ended is known to its parent only
            self.returncode = -1
            os.close(self.pidfd)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            select.select([self.pidfd], [], [], timeout)
        return self.poll() or 0

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self.pidfd, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class ForkingProvisioner(LocalProvisioner):
    """Forks kernels that are plainly this interpreter's ipykernel; every other kernel is started by the base class."""

    kennel: wire.Channel | None = None

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        plain = cmd[:3] == [sys.executable, *LAUNCHER] and set(kwargs) <= {"env", "cwd", "extra_arguments", "kernel_id"}
        if self.kennel is None or not plain:
            return await super().launch_kernel(cmd, **kwargs)
        folder = str(kwargs.get("cwd") or Path.cwd())
        request = {
            "arguments": cmd[3:],
            "environment": kwargs.get("env") or dict(os.environ),
            "folder": folder,
            "not_in_path": str(Path(__file__).parents[__name__.count(".")]),
        }
        try:
            answer, descriptors = await self.kennel.ask(request)
        except wire.Closed:
            self.log.warning("The process that forks kernels is gone; this kernel is started afresh.")
            type(self).kennel = None
            answer = {"fork": False}
        if not answer["fork"]:
            return await super().launch_kernel(cmd, **kwargs)
        self.process = cast("Any", ForkedKernel(answer["pid"], descriptors[0]))
        self.pid = self.pgid = answer["pid"]
        self.cwd = folder
        return self.connection_info
