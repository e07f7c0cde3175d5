"""The notebook: JupyterHub's own single-user server, and a line on which the agent asks it things.

Over that line the agent hands over a new token, when the hub has taken the instance up again, so that kernels live on; and it
asks what the kernels do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
import traceback
from datetime import UTC, datetime
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, NoReturn

from . import nursery, wire

PACKAGE = __name__.rpartition(".")[0]

_agent_line: socket.socket | None = None

OWN_ARGUMENTS = [
    f"--ServerApp.jpserver_extensions={__name__}=True",
    f"--KernelProvisionerFactory.default_provisioner_name={PACKAGE}",
    # the hub's tokens guard the server; a check for newer versions or for packages on PyPI only delays the first page
    "--LabApp.extension_manager=readonly",
]


def begin(message: wire.Message, descriptors: list[int]) -> NoReturn:
    """The life of a forked notebook."""
    line, log, kennel = descriptors
    environment = message["environment"]
    fresh = nursery.needs_fresh_interpreter(environment, os.environ)
    nursery.settle(message["account"], message["home"], environment, os.getppid(), log)
    os.close(log)
    if fresh:
        for descriptor in (line, kennel):
            os.set_inheritable(descriptor, True)
        os.chdir(Path(__file__).parents[__name__.count(".")])
        command = [sys.executable, "-m", __name__, message["home"], str(line), str(kennel), *message["arguments"]]
        os.execve(sys.executable, command, environment)  # noqa: S606
    live(line, kennel, message["arguments"])


def live(line: int, kennel: int, arguments: list[str]) -> NoReturn:
    global _agent_line
    _agent_line = socket.socket(fileno=line)
    nursery.name_process("jupyterhub-singl")
    status = 1
    try:
        from .kernels import ForkingProvisioner

        ForkingProvisioner.kennel = wire.Channel(socket.socket(fileno=kennel))
        register_provisioner()
        from jupyterhub.singleuser import main

        # the account is the agent's choice; where that is root, as in a container, JupyterLab has no say in it
        allow = ["--allow-root"] if os.getuid() == 0 else []
        sys.argv = ["jupyterhub-singleuser", *OWN_ARGUMENTS, *allow, *arguments]
        main()
        status = 0
    except SystemExit as exit_:
        status = exit_.code if isinstance(exit_.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def register_provisioner() -> None:
    """Make ours known without an installed package's entry points."""
    from jupyter_client.provisioning.factory import KernelProvisionerFactory

    entry = EntryPoint(PACKAGE, f"{PACKAGE}.kernels:ForkingProvisioner", KernelProvisionerFactory.GROUP_NAME)
    KernelProvisionerFactory.provisioners[PACKAGE] = entry


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": __name__}]


def _load_jupyter_server_extension(server: Any) -> None:
    assert _agent_line is not None
    server.io_loop.add_callback(answer_agent, server, _agent_line)


async def answer_agent(server: Any, line: socket.socket) -> None:
    with contextlib.suppress(wire.Closed):
        while True:
            await wire.until_readable(line.fileno())
            message, _ = wire.receive(line)
            try:
                if message["do"] == "rekey":
                    rekey(server, message["environment"])
                    wire.send(line, {"done": True})
                else:
                    wire.send(line, report(server))
            except Exception:
                server.log.exception("The agent's request %s failed", message["do"])
                wire.send(line, {"done": False})


def rekey(server: Any, environment: dict[str, str]) -> None:
    """Take over a new token, and what may have changed with it, in everything that remembers the old one."""
    os.environ.update(environment)
    from jupyterhub.singleuser.extension import JupyterHubSingleUser

    apps = (app for apps in server.extension_manager.extension_apps.values() for app in apps)
    singleuser = [app for app in apps if isinstance(app, JupyterHubSingleUser)]
    for app in singleuser:
        app.hub_activity_url = environment.get("JUPYTERHUB_ACTIVITY_URL", app.hub_activity_url)
        app._last_activity_sent = None
    for hub_auth in [server.identity_provider.hub_auth, *(app.hub_auth for app in singleuser)]:
        hub_auth.api_token = environment["JUPYTERHUB_API_TOKEN"]
        hub_auth.api_url = environment.get("JUPYTERHUB_API_URL", hub_auth.api_url)
        for name in ("access_scopes", "oauth_client_id", "oauth_redirect_uri", "oauth_token_url", "login_url"):
            # forgotten, so that the default is read from the environment again
            hub_auth._trait_values.pop(name, None)
        hub_auth.cache.clear()


def report(server: Any) -> wire.Message:
    kernels = server.kernel_manager.list_kernels()
    return {
        "kernels": {"total": len(kernels), "busy": sum(kernel["execution_state"] == "busy" for kernel in kernels)},
        "last_input_at": _latest(server),
    }


def _latest(server: Any) -> str | None:
    """When the owner last asked for something; what a kernel prints by itself does not count."""
    moments: list[datetime] = [
        moment
        for name in ("api_last_activity", "terminal_last_activity", "last_cell_run")
        if isinstance(moment := server.web_app.settings.get(name), datetime)
    ]
    return max(moments).astimezone(UTC).isoformat() if moments else None


if __name__ == "__main__":
    home, line_, kennel_, *rest = sys.argv[1:]
    os.chdir(home)
    asyncio.set_event_loop(None)
    # the same module under its own name, as the extension manager will import it
    from importlib import import_module

    import_module(f"{__spec__.parent}.notebook").live(int(line_), int(kennel_), rest)
