"""devcloud's stub payload: thousands of servers without a process, that still speak the agent's protocol."""

import asyncio
import base64
import hashlib
import json
import re
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

SESSION = {"launch": "1", "owner": "ann", "env": {"JUPYTERHUB_API_TOKEN": "secret"}, "args": [], "port": 8888}


class Authority:
    """A hub's certificate authority, and certificates from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign("authority", self.key.public_key())

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    def _sign(self, name: str, public_key: Any) -> x509.Certificate:
        now = datetime.now(UTC)
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(issuer)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=name == "authority", path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )

    def client(self, name: str) -> ssl.SSLContext:
        """What a caller named so brings along."""
        key = ec.generate_private_key(ec.SECP256R1())
        path = self.folder / f"{name}.pem"
        plain = serialization.NoEncryption()
        private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        path.write_bytes(private + self._sign(name, key.public_key()).public_bytes(serialization.Encoding.PEM))
        context = anonymous()
        context.load_cert_chain(path)
        return context


def anonymous() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@pytest.fixture
def hub(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def stub(cloud: Any, boot: Any, hub: Authority) -> Callable[[], tuple[Any, str, str]]:
    """Boot a stub: the server, its address, and the fingerprint on its console."""

    def stub() -> tuple[Any, str, str]:
        content = json.dumps({"hub_ca": hub.pem, "port": 8765})
        config = {"write_files": [{"path": "/etc/hutch/agent.json", "content": content}]}
        text = base64.b64encode(b"#cloud-config\n" + yaml.safe_dump(config).encode()).decode()
        server = boot(cloud, user_data=text)
        return server, server.addresses["hutch"][0]["addr"], fingerprint_of(cloud, server)

    return stub


def fingerprint_of(cloud: Any, server: Any) -> str:
    console = cloud.compute.get_server_console_output(server)["output"]
    found = re.search(r"^HUTCH-AGENT fingerprint sha256:([0-9a-f]{64})$", console, re.MULTILINE)
    assert found, console
    return found[1]


async def call(context: ssl.SSLContext, method: str, url: str, **more: Any) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.request(method, url, ssl=context, **more) as answer:
        return answer.status, await answer.text()


async def certificate_at(context: ssl.SSLContext, address: str) -> str:
    """The fingerprint of whoever answers at the agent's port."""
    _, writer = await asyncio.open_connection(address, 8765, ssl=context)
    certificate = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.close()
    return hashlib.sha256(certificate).hexdigest()


async def test_a_session_is_staged_until_ready(stub: Any, hub: Authority) -> None:
    _, address, fingerprint = stub()
    context, url = hub.client("hutch-hub"), f"https://{address}:8765/v1"
    async with aiohttp.ClientSession() as session, session.post(f"{url}/session", json=SESSION, ssl=context) as answer:
        assert answer.headers["Content-Type"] == "application/x-ndjson"
        stages = [json.loads(line) async for line in answer.content]
    assert [(each["stage"], each["state"]) for each in stages] == [
        ("account", "started"), ("account", "done"), ("environment", "started"), ("environment", "done"),
        ("notebook", "started"), ("notebook", "done"), ("ready", "done"),
    ]  # fmt: skip
    assert stages[-1]["kept"] is False
    assert await certificate_at(context, address) == fingerprint
    _, text = await call(context, "GET", f"{url}/status")
    assert {"owner": "ann", "notebook": "running", "version": 1}.items() <= json.loads(text).items()
    _, text = await call(context, "POST", f"{url}/session", json=SESSION)
    assert json.loads(text.splitlines()[-1])["kept"] is True
    assert (await call(context, "POST", f"{url}/session", json=SESSION | {"owner": "bob"})) == (409, '{"error": "other-owner"}')
    assert (await call(context, "DELETE", f"{url}/session"))[0] == 204
    assert json.loads((await call(context, "GET", f"{url}/status"))[1])["notebook"] == "none"


async def test_the_notebook_says_that_it_is_a_stub(stub: Any, hub: Authority) -> None:
    _, address, _ = stub()
    await call(hub.client("hutch-hub"), "POST", f"https://{address}:8765/v1/session", json=SESSION)
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://{address}:8888/user/ann/lab/api") as answer:
            assert await answer.json() == {"version": "stub"}
            assert answer.headers["X-JupyterHub-Version"] == "6.1.1"
        async with session.get(f"http://{address}:8888/user/ann/lab", headers={"Accept": "text/html"}) as answer:
            assert "stub payload of devcloud" in await answer.text()


@pytest.mark.parametrize("caller", ["nobody", "a stranger", "another hub"])
async def test_only_the_hub_is_heard(stub: Any, hub: Authority, tmp_path: Path, caller: str) -> None:
    _, address, _ = stub()
    url = f"https://{address}:8765/v1/status"
    if caller == "a stranger":
        assert (await call(hub.client("stranger"), "GET", url))[0] == 403
        return
    context = anonymous() if caller == "nobody" else Authority(tmp_path).client("hutch-hub")
    with pytest.raises((aiohttp.ClientError, ssl.SSLError, ConnectionError)):
        await call(context, "GET", url)


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/session", {"owner": "ann"}, 400),
        ("POST", "/session", [], 400),
        ("GET", "/session", None, 404),
        ("GET", "/", None, 404),
    ],
    ids=["half a session", "no session", "wrong method", "unknown"],
)
async def test_a_wrong_call_is_refused(stub: Any, hub: Authority, method: str, path: str, body: Any, status: int) -> None:
    _, address, _ = stub()
    assert (await call(hub.client("hutch-hub"), method, f"https://{address}:8765/v1{path}", json=body))[0] == status


async def test_key_and_owner_outlive_a_stop(stub: Any, cloud: Any, hub: Authority) -> None:
    server, address, fingerprint = stub()
    context, url = hub.client("hutch-hub"), f"https://{address}:8765/v1"
    await call(context, "POST", f"{url}/session", json=SESSION)
    cloud.compute.stop_server(server)
    cloud.compute.wait_for_server(server, status="SHUTOFF", interval=0.01)
    with pytest.raises(aiohttp.ClientConnectorError):
        await call(context, "GET", f"{url}/status")
    cloud.compute.start_server(server)
    cloud.compute.wait_for_server(server, interval=0.01)
    assert fingerprint_of(cloud, server) == fingerprint
    status = json.loads((await call(context, "GET", f"{url}/status"))[1])
    assert (status["owner"], status["notebook"]) == ("ann", "none")


async def test_each_server_has_a_key_of_its_own(stub: Any) -> None:
    assert stub()[2] != stub()[2]


async def test_somebody_else_may_answer(stub: Any, hub: Authority, devcloud: Any) -> None:
    server, address, fingerprint = stub()
    devcloud.trouble(server.id, "wrong-certificate")
    context = hub.client("hutch-hub")
    assert (await call(context, "GET", f"https://{address}:8765/v1/status"))[0] == 200
    assert await certificate_at(context, address) != fingerprint


async def test_a_mute_agent_closes_its_port_and_leaves_the_notebook(stub: Any, hub: Authority, devcloud: Any) -> None:
    server, address, _ = stub()
    context = hub.client("hutch-hub")
    await call(context, "POST", f"https://{address}:8765/v1/session", json=SESSION)
    devcloud.trouble(server.id, "mute")
    with pytest.raises(aiohttp.ClientConnectorError):
        await call(context, "GET", f"https://{address}:8765/v1/status")
    async with aiohttp.ClientSession() as session, session.get(f"http://{address}:8888/") as answer:
        assert answer.status == 200


def test_a_server_without_agent_data_says_so(cloud: Any, boot: Any) -> None:
    server = boot(cloud)
    assert "no /etc/hutch/agent.json" in cloud.compute.get_server_console_output(server)["output"]
