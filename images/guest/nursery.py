"""Processes that have imported JupyterLab, and the Python kernel, ahead: a notebook forked from one answers at once.

The nursery is a plain program with one thread, apart from the agent, because a process with threads or an event loop must not
fork. It imports the kernel, forks a copy of itself that will bear kernels, and then imports JupyterLab, so that kernels do not
carry along what only JupyterLab needs. What it bears belongs to the agent: a nursery that dies takes nobody along.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import os
import pwd
import random
import shutil
import signal
import site
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from . import wire

KERNEL_MODULES = (
    "ipykernel.kernelapp",
    "ipykernel.debugger",
    "IPython.core.completerlib",
    "IPython.core.debugger",
    "IPython.core.logger",
    "IPython.core.oinspect",
    "IPython.extensions.storemagic",
    "sqlite3",
    "psutil",
    "tornado.platform.asyncio",
)
# imported ahead where the image has them
NOTEBOOK_MODULES = (
    "jupyterhub.singleuser",
    "jupyterlab.labapp",
    "jupyter_server_terminals.app",
    "jupyter_lsp.serverextension",
    "notebook_shim.nbserver",
)

# modules whose classes take defaults from the environment while they are imported: the notebook imports these anew
READ_THE_ENVIRONMENT = ("jupyterhub.services.auth", "jupyterhub.singleuser")

# beginnings of the names of variables that only a freshly started interpreter honours
FIXED_AT_START = ("PYTHON", "LD_", "MALLOC_", "SSLKEYLOGFILE", "JUPYTER_", "JUPYTERLAB_", "JUPYTERHUB_METRICS", "JUPYTERHUB_XSRF")

# its own variables: as root it runs nothing that the owner has installed, and it does not preach about debuggers
FOR_THE_NURSERY = {"PYTHONNOUSERSITE": "1", "PYDEVD_DISABLE_FILE_VALIDATION": "1"}

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_NAME, PR_SET_CHILD_SUBREAPER = 1, 4, 15, 36
LOWEST_PERSONAL_UID = 1000
Life = Callable[[wire.Message, list[int]], NoReturn]
set_by_imports: dict[str, str] = {}
package_folders: dict[Path, int] = {}
_libc = ctypes.CDLL(None, use_errno=True)


def main(arguments: list[str]) -> NoReturn:
    agent, *requests = map(int, arguments)
    die_with(agent)
    leave_path()
    # an agent ignores it, and we would inherit that
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    name_process("hutch-nursery")
    notebook_requests, kernel_requests = (socket.socket(fileno=descriptor) for descriptor in requests)
    gc.disable()
    note_packages()
    import_ahead(KERNEL_MODULES)
    for name in FOR_THE_NURSERY:
        del os.environ[name]
    us = os.getpid()
    if os.fork() == 0:
        die_with(us)
        notebook_requests.close()
        from . import kernels

        serve(kernel_requests, agent, kernels.begin)
    kernel_requests.close()
    import_ahead(NOTEBOOK_MODULES)
    from . import notebook

    serve(notebook_requests, agent, notebook.begin)


def leave_path() -> None:
    """Take away the folder that ``python -m`` put in front: the owner's programs find what a new interpreter finds."""
    if sys.path[0] == str(Path.cwd()):
        del sys.path[0]


def import_ahead(names: tuple[str, ...]) -> None:
    before = dict(os.environ)
    for name in names:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    set_by_imports.update({name: value for name, value in os.environ.items() if before.get(name) != value})
    for name in [name for name in sys.modules if name.startswith(READ_THE_ENVIRONMENT)]:
        del sys.modules[name]


def serve(requests: socket.socket, agent: int, begin: Life) -> NoReturn:
    """Answer the agent until it goes away: settle an account, or fork a child that begins its life."""
    # what is here now stays shared with the children: the collector must not write to it
    gc.collect()
    gc.freeze()
    while True:
        try:
            message, descriptors = wire.receive(requests)
        except wire.Closed:
            os._exit(0)
        if message["do"] == "account":
            wire.answer(requests, message, settle_account(message["create"], message["owner"], message["home"]))
        else:
            life = run if message["do"] == "run" else begin
            fork_for_agent(requests, message, agent, partial(life, message, descriptors))
        for descriptor in descriptors:
            os.close(descriptor)


def fork_for_agent(requests: socket.socket, question: wire.Message, agent: int, live: Callable[[], NoReturn]) -> None:
    """Fork twice, so that the agent, which adopts orphans, becomes the parent; it is sent the child's pidfd."""
    between = os.fork()
    if between:
        if os.waitpid(between, 0)[1]:
            raise ChildProcessError("the agent was given no process")
        return
    try:
        us = os.getpid()
        child = os.fork()
        if child:
            wire.answer(requests, question, {"pid": child}, [os.pidfd_open(child)])
            os._exit(0)
        requests.close()
        while os.getppid() == us:
            time.sleep(0.0005)
        if os.getppid() != agent:
            os._exit(1)
        live()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def run(message: wire.Message, descriptors: list[int]) -> NoReturn:
    """A program of the owner's in the place of the fork."""
    log, *output = descriptors
    settle(message["account"], message["home"], message["environment"], os.getppid(), log)
    for stream in output:
        os.dup2(stream, 1)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.execvpe(message["command"][0], message["command"], message["environment"])  # noqa: S606


def settle(account: str | None, home: str, environment: dict[str, str], parent: int, log: int) -> None:
    """Become what a login would have made of this process: own session, streams, account, environment, folder."""
    os.setsid()
    gc.enable()
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(nothing)
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # we are spared when memory runs out; what the owner runs is not
    spared = Path("/proc/self/oom_score_adj")
    if int(spared.read_text()) < 0:
        spared.write_text("0")
    if account:
        record = pwd.getpwnam(account)
        os.initgroups(account, record.pw_gid)
        os.setgid(record.pw_gid)
        os.setuid(record.pw_uid)
        # the process is now the owner's to debug and to measure, as any other of theirs; it holds no secret of ours
        _libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    # after the change of account, which would clear it
    die_with(parent)
    os.umask(0o022)
    os.environ.clear()
    os.environ.update({**set_by_imports, **environment})
    os.chdir(home)
    admit_own_packages()
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()


def settle_account(create: bool, owner: str, home: str) -> dict[str, Any]:
    """See that the owner has an account and a home; tells which account a notebook takes on, None for our own."""
    folder = Path(home)
    try:
        if not create:
            folder.mkdir(parents=True, exist_ok=True)
            return {"account": None}
        try:
            record = pwd.getpwnam(owner)
        except KeyError:
            command = ["useradd", "--home-dir", home, "--create-home", "--shell", "/bin/bash", "--user-group", "--", owner]
            subprocess.run(command, check=True, capture_output=True, text=True)
            record = pwd.getpwnam(owner)
        if record.pw_uid < LOWEST_PERSONAL_UID:
            return {"error": f"{owner} is an account of the system itself and cannot own an instance."}
        folder.mkdir(parents=True, exist_ok=True)
        shutil.chown(folder, record.pw_uid, record.pw_gid)
    except subprocess.CalledProcessError as error:
        return {"error": f"The account {owner} could not be made: {error.stderr.strip()}"}
    except OSError as error:
        return {"error": f"The home folder {home} could not be made: {error.strerror}"}
    return {"account": owner}


def own_packages() -> Path | None:
    """Where the owner's ``pip install --user`` puts things; a virtual environment has no such place."""
    return None if sys.prefix != sys.base_prefix else Path(site.getusersitepackages())


def admit_own_packages() -> None:
    """Find the owner's own packages before the image's, as a new interpreter does."""
    folder = own_packages()
    if folder is None or str(folder) in sys.path or "PYTHONNOUSERSITE" in os.environ:
        return
    before = list(sys.path)
    site.ENABLE_USER_SITE = True
    site.addusersitepackages(set(before))
    images = site.getsitepackages()
    first = next((place for place, entry in enumerate(before) if entry in images), len(before))
    sys.path[:] = [*before[:first], *sys.path[len(before) :], *before[first:]]


def note_packages() -> None:
    """Remember the state of the folders that packages are installed in: installing or removing one changes the folder's time."""
    own = own_packages()
    folders = {Path(entry) for entry in sys.path if entry.endswith("-packages")} | ({own} if own else set())
    package_folders.update({folder: _changed_at(folder) for folder in folders})


def packages_differ() -> bool:
    """Whether a new interpreter might import something else than what was imported here."""
    if any(_changed_at(folder) != then for folder, then in package_folders.items()):
        return True
    own = own_packages()
    names = {name.partition(".")[0] for name in sys.modules} if own and own.is_dir() else set()
    return own is not None and any((own / name).exists() or (own / f"{name}.py").exists() for name in names)


def _changed_at(folder: Path) -> int:
    return folder.stat().st_mtime_ns if folder.is_dir() else 0


def needs_fresh_interpreter(environment: Mapping[str, str], ours: Mapping[str, str]) -> bool:
    """Whether a variable differs that an interpreter, or a class being imported, has read before we could set it."""
    names = {name for name in {*environment, *ours} if name.startswith(FIXED_AT_START)}
    return any(environment.get(name) != ours.get(name) for name in names)


def die_with(parent: int) -> None:
    """Ask the kernel to end this process when its parent ends, however that happens."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends."""
    if _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "this system does not let a process adopt orphans")


def name_process(name: str) -> None:
    _libc.prctl(PR_SET_NAME, name.encode()[:15], 0, 0, 0)


if __name__ == "__main__":
    # under its own name, so that what is noted here is there for the modules beside it
    importlib.import_module(f"{__spec__.parent}.nursery").main(sys.argv[1:])
