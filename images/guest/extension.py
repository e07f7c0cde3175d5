"""What we add to the running Jupyter server: a line to the agent, kernels that are forked, a note of the owner's last input.

Over the line the agent hands over a new token, when the hub has taken the instance up again, so that kernels live on; it sends
people away whose access has ended; and it asks what the kernels do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import socket
import sys
from datetime import UTC, datetime
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, cast

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from jupyter_server.services.kernels.connection.channels import ZMQChannelsWebsocketConnection

from . import wire
from .visitors import Visitors

# what JupyterHub's HubOAuth takes from the environment, and what it makes of that
READ_FROM_THE_ENVIRONMENT = (
    "access_scopes",
    "api_token",
    "api_url",
    "hub_host",
    "hub_prefix",
    "login_url",
    "oauth_authorization_url",
    "oauth_redirect_uri",
    "oauth_token_url",
)

PROVISIONER = "hutch"
LAST_CELL_RUN = "hutch_last_cell_run"
LISTENING_LIMIT_SECONDS = 2.0
# what the kernel specification that ipykernel installs runs with its interpreter
LAUNCHER = ["-m", "ipykernel_launcher"]

_agent_line: socket.socket | None = None


def prepare(line: socket.socket, kennel: socket.socket) -> None:
    """Before the server starts: keep its lines, and make our provisioner known without a package's entry points."""
    global _agent_line
    _agent_line = line
    ForkingProvisioner.kennel = wire.Channel(kennel)
    entry = EntryPoint(PROVISIONER, f"{__name__}:ForkingProvisioner", KernelProvisionerFactory.GROUP_NAME)
    KernelProvisionerFactory.provisioners[PROVISIONER] = entry


def arguments() -> list[str]:
    return [
        f"--ServerApp.jpserver_extensions={__name__}=True",
        f"--ServerApp.kernel_websocket_connection_class={__name__}.WatchedConnection",
        f"--KernelProvisionerFactory.default_provisioner_name={PROVISIONER}",
        # an image decides what is installed; the list of extensions still shows it
        "--LabApp.extension_manager=readonly",
    ]


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": __name__}]


def _load_jupyter_server_extension(server: Any) -> None:
    assert _agent_line is not None
    # these files hold the token; they are for programs and browsers that look for servers on their own machine
    server.write_server_info_file = server.write_browser_open_files = lambda: None
    # once JupyterHub's extension is loaded, which has a hook of its own
    server.io_loop.add_callback(turn_off_announcements, server.web_app.settings)
    server.io_loop.add_callback(answer_agent, server, _agent_line, Visitors(server))


def turn_off_announcements(settings: dict[str, Any]) -> None:
    """An instance need not reach the internet: no question about news on the first page, and no search for newer versions."""
    before = settings["page_config_hook"]

    def hook(handler: Any, page: dict[str, Any]) -> dict[str, Any]:
        disabled = [*page.get("disabledExtensions", ()), "@jupyterlab/apputils-extension:announcements"]
        return before(handler, page) | {"disabledExtensions": disabled}

    settings["page_config_hook"] = hook


async def answer_agent(server: Any, line: socket.socket, visitors: Visitors) -> None:
    with contextlib.suppress(wire.Closed):
        while True:
            await wire.until_readable(line.fileno())
            message, _ = wire.receive(line)
            try:
                match message["do"]:
                    case "rekey":
                        rekey(server, message["environment"])
                        wire.answer(line, message, {"done": True})
                    case "send-away":
                        visitors.send_away(message["user"])
                        wire.answer(line, message, {"done": True})
                    case _:
                        wire.answer(line, message, report(server))
            except Exception:
                server.log.exception("The agent's request %s failed", message["do"])
                wire.answer(line, message, {"done": False})
    # an agent that let go of us has no way left to stop us
    os.kill(os.getpid(), signal.SIGTERM)


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
        for name in READ_FROM_THE_ENVIRONMENT:
            # forgotten, so that the default is read again
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
        for name in ("api_last_activity", "terminal_last_activity", LAST_CELL_RUN)
        if isinstance(moment := server.web_app.settings.get(name), datetime)
    ]
    return max(moments).astimezone(UTC).isoformat() if moments else None


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


class WatchedConnection(ZMQChannelsWebsocketConnection):
    """Notes when the owner last ran something; what a kernel prints by itself is no sign of them."""

    def handle_incoming_message(self, incoming_msg: Any) -> None:
        if (b"execute_request" if isinstance(incoming_msg, bytes) else "execute_request") in incoming_msg:
            self.websocket_handler.settings[LAST_CELL_RUN] = datetime.now(UTC)
        super().handle_incoming_message(incoming_msg)


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
        await self._until_it_listens()
        return self.connection_info

    async def _until_it_listens(self) -> None:
        """Let nobody connect too early: ZeroMQ tries again after 0.1 s, and what the kernel publishes meanwhile is lost."""
        if self.parent is None or self.parent.transport != "tcp":
            return
        loop = asyncio.get_running_loop()
        limit = loop.time() + LISTENING_LIMIT_SECONDS
        while loop.time() < limit and await self.poll() is None:
            try:
                # the heartbeat's port is the last that a kernel opens
                _, writer = await asyncio.open_connection(self.parent.ip, self.parent.hb_port)
            except OSError:
                await asyncio.sleep(0.005)
            else:
                writer.transport.abort()
                return
