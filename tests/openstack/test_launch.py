"""The whole launch on a real OpenStack: JupyterHub, its proxy, and a virtual machine of our own image."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import socket
import ssl
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import requests
from cryptography import x509
from openstack.connection import Connection
from running_hub import RunningHub, until

from spawner.agent_client import PORT, fingerprint_from_console

CLOUDS_YAML = os.environ.get("HUTCH_TEST_CLOUD", "")
HUB_ADDRESS, STRANGER = "10.77.0.1", "10.77.0.2"
BOOT_SECONDS = 400  # an emulated processor on a busy machine
WHO_AND_WHERE = "import getpass, os, socket; print(getpass.getuser(), os.getuid() >= 1000, os.getcwd(), socket.gethostname())"
pytestmark = pytest.mark.timeout(1500)

CONFIG = f"""
c.JupyterHub.hub_ip = {HUB_ADDRESS!r}
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.JupyterHub.allow_named_servers = True
c.JupyterHub.cleanup_servers = False
c.JupyterHub.spawner_class = "spawner.openstack.OpenStackSpawner"
c.Spawner.http_timeout = 60
c.OpenStackSpawner.cloud_name = "hutch-app"
c.OpenStackSpawner.clouds_yaml = {CLOUDS_YAML!r}
c.OpenStackSpawner.image = "base-desktop"
c.OpenStackSpawner.flavor = "m1.small"
c.OpenStackSpawner.network = "hutch"
c.JupyterHub.internal_ssl = True
c.JupyterHub.trusted_alt_names = ["IP:{HUB_ADDRESS}"]
c.ConfigurableHTTPProxy.api_url = c.ConfigurableHTTPProxy.api_url.replace("http:", "https:")
c.OpenStackSpawner.availability_zone = "real"
c.OpenStackSpawner.boot_timeout_seconds = {BOOT_SECONDS}
c.OpenStackSpawner.stop_timeout_seconds = 150
"""


@pytest.fixture
def hub(real_cloud: Connection, firewall: Callable[[str], str], tmp_path: Path) -> Iterator[RunningHub]:
    hub = RunningHub(tmp_path / "hub", CONFIG + f"c.OpenStackSpawner.security_groups = [{firewall(HUB_ADDRESS)!r}]\n")
    hub.start()
    hub.add_user("ann")
    yield hub
    hub.stop()


class Notebook:
    """A running notebook, asked as a browser does: through the proxy, with a token of the hub."""

    def __init__(self, hub: RunningHub, user: str, name: str) -> None:
        self._url = f"http://localhost:{hub.port}/user/{user}/{name}/api"
        self._headers = {"Authorization": f"token {hub.token_of(user)}"}

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        answer = requests.request(method, f"{self._url}/{path}", headers=self._headers, json=body, timeout=120)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def run(self, code: str) -> str:
        """What a cell prints, in a kernel of its own."""
        kernel = self.ask("POST", "kernels", {"name": "python3"})["id"]
        try:
            return asyncio.run(self._run(kernel, code))
        finally:
            self.ask("DELETE", f"kernels/{kernel}")

    async def _run(self, kernel: str, code: str) -> str:
        session, printed = uuid.uuid4().hex, ""
        header = {"msg_id": session, "msg_type": "execute_request", "username": "", "session": session, "version": "5.3"}
        message = {"channel": "shell", "header": header, "parent_header": {}, "metadata": {}, "buffers": []}
        content = {"code": code, "silent": False, "store_history": False, "user_expressions": {}, "allow_stdin": False}
        async with (
            aiohttp.ClientSession(headers=self._headers) as client,
            client.ws_connect(f"{self._url}/kernels/{kernel}/channels?session_id={session}") as channels,
        ):
            await channels.send_json(message | {"content": content})
            async for frame in channels:
                got = json.loads(frame.data)
                if got["parent_header"].get("msg_id") != session:
                    continue
                if got["msg_type"] == "stream":
                    printed += got["content"]["text"]
                assert got["msg_type"] != "error", got["content"]
                if got["msg_type"] == "status" and got["content"]["execution_state"] == "idle":
                    break
        return printed


def launched(hub: RunningHub, name: str) -> Notebook:
    began = time.monotonic()
    assert hub.api("POST", f"users/ann/servers/{name}", json={}).status_code in (201, 202)
    stages = [event["message"] for event in hub.progress("ann", name)]
    assert hub.server("ann", name).get("ready"), f"{stages}\n{hub.log_end()}"
    print(f"\nlaunched in {time.monotonic() - began:.1f} s: {stages}")
    return Notebook(hub, "ann", name)


def mine(cloud: Connection) -> dict[str, list[str]]:
    """What the project has in the cloud: ids of servers and ports."""
    return {
        "servers": [server.id for server in cloud.compute.servers()],
        "ports": [port.id for port in cloud.network.ports() if port.project_id == cloud.current_project_id],
    }


def reaches(source: str, address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=5, source_address=(source, 0)).close()
    except OSError:
        return False
    return True


@pytest.fixture
def stranger() -> Iterator[str]:
    """Another address on the servers' network, from which nobody is let in."""
    address = ["ip", "address", "add", f"{STRANGER}/24", "dev", "hub"]
    subprocess.run(address, check=True)
    yield STRANGER
    subprocess.run([*address[:2], "del", *address[3:]], check=True)


def shelved(hub: RunningHub, server: Any, cloud: Connection) -> None:
    began = time.monotonic()
    assert hub.api("DELETE", "users/ann/servers/films", json={"remove": False}).status_code in (202, 204)
    hub.until_idle("ann", "films", 400)
    until(lambda: cloud.compute.get_server(server.id).status == "SHELVED_OFFLOADED", "the machine is shelved", 200)
    print(f"shelved in {time.monotonic() - began:.1f} s")


def test_a_machine_is_launched_used_shelved_started_copied_and_deleted(
    hub: RunningHub, real_cloud: Connection, firewall: Callable[[str], str], stranger: str
) -> None:
    notebook = launched(hub, "films")
    [server] = real_cloud.compute.servers()
    [[address]] = [[each["addr"] for each in some] for some in server.addresses.values()]

    # the agent that was spoken to is the one that printed its fingerprint where only the cloud can read
    console = real_cloud.compute.get_server_console_output(server)["output"]
    certificate = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((address, PORT)))
    assert hashlib.sha256(certificate).hexdigest() == fingerprint_from_console(console)

    # an account of the owner's own, not the agent's
    said = notebook.run(WHO_AND_WHERE)
    assert said.split() == ["ann", "True", "/home/hutch", server.name]

    # security groups: the hub is let in, nobody else is, and to no other port
    assert [reaches(HUB_ADDRESS, address, port) for port in (PORT, 8888)] == [True, True]
    assert [reaches(stranger, address, port) for port in (PORT, 8888)] == [False, False]

    notebook.ask("PUT", "contents/result.txt", {"type": "file", "format": "text", "content": "42"})
    # a rule that changes holds for machines that run
    firewall(stranger)
    until(lambda: (reaches(HUB_ADDRESS, address, 8888), reaches(stranger, address, 8888)) == (False, True), "the rules changed")
    firewall(HUB_ADDRESS)
    until(lambda: (reaches(HUB_ADDRESS, address, 8888), reaches(stranger, address, 8888)) == (True, False), "they changed back")

    # between the proxy and the notebook is TLS, by a certificate for the machine's address, and only for those that show one
    shown = x509.load_pem_x509_certificate(ssl.get_server_certificate((address, 8888)).encode())
    names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert address in [str(name) for name in names.get_values_for_type(x509.IPAddress)]
    with pytest.raises(requests.exceptions.RequestException):
        requests.get(f"https://{address}:8888/user/ann/films/api", verify=False, timeout=60)  # noqa: S501

    # switched off and on again it is in `test_story`
    hub.stop()
    hub.config_file.write_text(hub.config_file.read_text() + 'c.OpenStackSpawner.stop_by = "shelve"\n')
    hub.start()
    hub.until_ready("ann", "films", 120)
    shelved(hub, server, real_cloud)
    notebook = launched(hub, "films")
    assert [again.id for again in real_cloud.compute.servers()] == [server.id]
    assert notebook.ask("GET", "contents/result.txt")["content"] == "42"

    copy = real_cloud.create_image_snapshot("films", server.id, wait=True, timeout=600)
    assert real_cloud.image.get_image(copy.id).status == "active"
    real_cloud.image.delete_image(copy.id)

    assert hub.api("DELETE", "users/ann/servers/films", json={"remove": True}).status_code in (202, 204)
    until(lambda: mine(real_cloud) == {"servers": [], "ports": []}, "nothing is left", 200)
