"""Runs devcloud and the hub on this machine, in the foreground, until Ctrl-C: the running half of `hutch demo`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

from rich.console import Console

from .configuration import CONFIG_VARIABLE, config_path, load, read
from .errors import HutchError

START_SECONDS = 120
Parts = list[tuple[str, subprocess.Popen[bytes]]]


class DemoError(HutchError):
    """The demo cannot start, or something that it needs has ended."""


def check_start(devcloud_port: int) -> None:
    """Raises DemoError before anything is changed: this is not a demo's deployment, or a port is taken."""
    config = read()
    hub = config["JupyterHub"]
    if not str(hub["authenticator_class"]).endswith("DemoAuthenticator"):
        raise DemoError(
            f"{config_path()} is not a demo's (its authenticator_class is a real one), so no example facility is loaded into it"
        )
    hutch = load()
    desktops = {f"desktops ({number})": hutch.desktop_port + number for number in range(hutch.desktop_relays)}
    check_ports({"portal": hutch.portal_port, "devcloud": devcloud_port, "hub's API": hub.get("hub_port", 8081), **desktops})
    end_stale_proxy(Path(hutch.state_dir) / "proxy.pid")
    proxy_api = config["ConfigurableHTTPProxy"].get("api_url", "http://127.0.0.1:8001")
    check_ports({"hub": urlsplit(hub["bind_url"]).port or 80, "proxy's API": urlsplit(proxy_api).port or 8001})


def run(console: Console, *, payload: str, devcloud_port: int) -> None:
    """Runs the demo in the foreground. Ends when interrupted, or when a part of it ends by itself."""
    file = config_path()
    os.environ[CONFIG_VARIABLE] = str(file)
    state = Path(load().state_dir)
    address = read()["JupyterHub"]["bind_url"]
    parts: Parts = []
    for ending in (signal.SIGINT, signal.SIGTERM):
        # Ctrl-C too, which a shell makes its background jobs ignore
        signal.signal(ending, signal.default_int_handler)
    try:
        devcloud = [sys.executable, "-m", "spawner.devcloud", "--state", str(state / "devcloud")]
        devcloud += ["--port", str(devcloud_port), "--payload", payload]
        with console.status("Starting devcloud, a toy cloud on this machine"):
            parts.append(("devcloud", _start(devcloud, state / "devcloud.log")))
            _wait(parts, state, f"http://127.0.0.1:{devcloud_port}/devcloud")
        console.print("[green]✓[/] devcloud, a toy cloud on this machine")
        with console.status("Starting the hub, its proxy, the portal and the steward"):
            hub = [sys.executable, "-m", "jupyterhub", "--config", str(file)]
            parts.append(("hub", _start(hub, state / "hub.log", folder=file.parent)))
            _wait(parts, state, f"{address}/hub/login")
        console.print("[green]✓[/] hub, proxy, portal and steward")
        console.print(
            f"\n  Open [bold link={address}]{address}[/] and sign in as anybody. Logs are in {state}. Ctrl-C stops it all.\n"
        )
        while True:
            _check_alive(parts, state)
            time.sleep(0.5)
    except KeyboardInterrupt:
        console.print("Stopping.")
    finally:
        _stop(parts)
        end_stale_proxy(state / "proxy.pid")


def end_stale_proxy(pid_file: Path) -> None:
    """A hub that was killed leaves its proxy behind, which would hold the port."""
    try:
        pid = int(pid_file.read_text().splitlines()[0])
        if b"configurable-http-proxy" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGTERM)
            time.sleep(0.5)
    except (OSError, ValueError, IndexError):
        return  # none


def check_ports(ports: dict[str, int]) -> None:
    """Raises DemoError naming every port that somebody else listens on."""
    taken = [f"{port} (for the {name})" for name, port in ports.items() if _listening(port)]
    if taken:
        raise DemoError(f"port {', '.join(taken)} is in use: is another demo running? Stop it, or change jupyterhub_config.py")


def _listening(port: int) -> bool:
    with suppress(OSError):
        socket.create_server(("127.0.0.1", port)).close()
        return False
    return True


def _start(command: list[str], log: Path, folder: Path | None = None) -> subprocess.Popen[bytes]:
    # a session of its own: Ctrl-C reaches only us, and we stop the parts in their order
    with log.open("ab") as file:
        return subprocess.Popen(command, cwd=folder, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)


def _wait(parts: Parts, state: Path, url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        _check_alive(parts, state)
        try:
            with urlopen(url, timeout=5):  # noqa: S310 - an address of our own
                return
        except OSError:
            time.sleep(0.1)
    raise DemoError(f"{url} did not answer within {START_SECONDS} s; see the logs in {state}")


def _check_alive(parts: Parts, state: Path) -> None:
    for name, process in parts:
        if process.poll() is not None:
            log = state / f"{name}.log"
            end = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
            raise DemoError(f"the {name} ended by itself; the end of {log} says:\n{end}")


def _stop(parts: Parts) -> None:
    """The hub first, so that it sees no cloud vanish; each gets time to end what it started."""
    for _name, process in reversed(parts):
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
