"""Python kernels forked from a process that has imported them ahead: the first cell runs a second sooner.

Each notebook has one such process, of its owner's account; kernels are its children. It declines, and they are started the ordinary
way, whenever a forked one could differ from that: other variables that only a new interpreter reads, or packages changed since.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import traceback
from typing import NoReturn

from . import nursery, wire


def begin(message: wire.Message, descriptors: list[int]) -> NoReturn:
    """The life of the process that bears one notebook's kernels: it ends with the notebook."""
    requests = socket.socket(fileno=descriptors[0])
    log = descriptors[1]
    inherited = dict(os.environ)
    nursery.settle(message["account"], message["home"], message["environment"], os.getppid(), log)
    os.close(log)
    nursery.name_process("hutch-kernels")
    # nobody waits for the kernels, their pidfd tells of their end
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        try:
            message, _ = wire.receive(requests)
        except wire.Closed:
            os._exit(0)
        if nursery.needs_fresh_interpreter(message["environment"], inherited) or nursery.packages_differ():
            wire.answer(requests, message, {"fork": False})
            continue
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            requests.close()
            live(message, parent)
        try:
            wire.answer(requests, message, {"fork": True, "pid": child}, [os.pidfd_open(child)])
        except ProcessLookupError:
            wire.answer(requests, message, {"fork": False})


def live(message: wire.Message, parent: int) -> NoReturn:
    """One kernel, as ``python -m ipykernel_launcher`` would be it."""
    try:
        nursery.settle(None, message["folder"], message["environment"], parent, log=1)
        nursery.name_process("python")
        forget_ourselves()
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


def forget_ourselves() -> None:
    """Leave the names of our modules to the owner's own."""
    top = __name__.partition(".")[0]
    for name in [name for name in sys.modules if name.partition(".")[0] == top]:
        del sys.modules[name]
