"""The notebook's process: JupyterHub's own single-user server, run in a fork of the nursery.

A fork cannot honour every variable; where one matters, the process becomes a freshly started interpreter instead.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys
import traceback
from functools import cache
from pathlib import Path
from typing import NoReturn

from . import extension, nursery, wire


def begin(message: wire.Message, descriptors: list[int]) -> NoReturn:
    """The life of one notebook, from the moment of the fork."""
    line, log, kennel = descriptors
    environment = message["environment"]
    fresh = nursery.needs_fresh_interpreter(environment, os.environ) or nursery.packages_differ()
    nursery.settle(message["account"], message["home"], environment, os.getppid(), log)
    os.close(log)
    named = _in_memory(message["tls"])
    environment |= named
    os.environ.update(named)
    if fresh:
        for descriptor in (line, kennel):
            os.set_inheritable(descriptor, True)
        os.chdir(Path(__file__).parents[__name__.count(".")])
        command = [sys.executable, "-m", __name__, message["home"], str(line), str(kennel), *message["arguments"]]
        os.execve(sys.executable, command, environment)  # noqa: S606
    live(line, kennel, message["arguments"])


def _in_memory(tls: dict[str, str]) -> dict[str, str]:
    """Key and certificates as files that are on no disk and end with this process; what it starts has only their names."""
    variables = {"key": "JUPYTERHUB_SSL_KEYFILE", "certificate": "JUPYTERHUB_SSL_CERTFILE", "trusted": "JUPYTERHUB_SSL_CLIENT_CA"}
    named = {}
    for what, variable in variables.items() if tls else ():
        descriptor = os.memfd_create(what, 0)
        os.write(descriptor, tls[what].encode())
        named[variable] = f"/proc/{os.getpid()}/fd/{descriptor}"
    return named


def live(line: int, kennel: int, arguments: list[str]) -> NoReturn:
    nursery.name_process("jupyterhub-sing")
    status = 1
    try:
        extension.prepare(socket.socket(fileno=line), socket.socket(fileno=kennel))
        # the account is the agent's choice; where that is root, as in a container, JupyterLab has no say in it
        allow = ["--allow-root"] if os.getuid() == 0 else []
        sys.argv = ["jupyterhub-singleuser", *extension.arguments(), *allow, *arguments]
        trust_only_the_hub()
        # imported here and not in the nursery: it reads the environment
        from jupyterhub.singleuser import main

        main()
        status = 0
    except SystemExit as exit_:
        status = exit_.code if isinstance(exit_.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def trust_only_the_hub() -> None:
    """Before JupyterHub's modules of a notebook are imported, which take the function along."""
    from jupyterhub import utils

    utils.make_ssl_context = hub_context


@cache
def hub_context(keyfile: str, certfile: str, cafile: str | None = None) -> ssl.SSLContext | None:
    """How the notebook asks the hub under internal_ssl, in the place of JupyterHub's function of the same arguments.

    JupyterHub's trusts the public authorities too, and reads all hundred and more of them at each request: 30 ms, and half a
    second on an emulated processor, before the first page. None of them has a say about this hub.
    """
    if not (keyfile and certfile):
        return None
    context = ssl.create_default_context(cafile=cafile)
    context.load_cert_chain(certfile, keyfile)
    return context


def start_afresh() -> NoReturn:
    """The life of one notebook in an interpreter of its own; the descriptors came through ``execve``."""
    home, line, kennel, *arguments = sys.argv[1:]
    nursery.leave_path()
    os.chdir(home)
    live(int(line), int(kennel), arguments)


if __name__ == "__main__":
    start_afresh()
