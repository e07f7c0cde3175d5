"""Who gets in, and what the agent says of itself before and after."""

from __future__ import annotations

import asyncio
import ssl
import stat

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from hub_certificates import anonymous, context_for

from spawner.agent_client import AgentClient, AgentUnreachable
from spawner.agent_tls import HubIdentity


@pytest.fixture(scope="module")
def door(shared_guest):
    """Ask with a given TLS context, no questions about the agent's identity."""

    async def ask(context: ssl.SSLContext, method: str = "GET", path: str = "/v1/status", **body) -> tuple[int, str]:
        url = f"https://{shared_guest.address}:{shared_guest.port}{path}"
        async with aiohttp.ClientSession() as client, client.request(method, url, ssl=context, **body) as response:
            return response.status, await response.text()

    return ask


async def test_no_certificate_is_refused(door):
    with pytest.raises(aiohttp.ClientConnectionError):
        await door(anonymous())


async def test_a_certificate_of_another_authority_is_refused(shared_guest, tmp_path):
    client = AgentClient(HubIdentity(tmp_path / "other").client_context, port=shared_guest.port)
    with pytest.raises(AgentUnreachable):
        await client.status(shared_guest.address, shared_guest.fingerprint)


async def test_the_right_authority_with_another_name_is_refused(door, tmp_path, hub_identity):
    status, text = await door(context_for(tmp_path, hub_identity, "hutch-portal"))
    assert status == 403
    assert "hutch-hub" in text


async def test_the_hub_is_served(door, tmp_path, hub_identity):
    assert (await door(context_for(tmp_path, hub_identity, "hutch-hub")))[0] == 200


async def test_noise_does_not_end_the_agent(shared_guest):
    for noise in (b"", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + b"\0" * 4000, b"\xff" * 100_000):
        _, writer = await asyncio.open_connection(shared_guest.address, shared_guest.port)
        writer.write(noise)
        writer.close()
    assert (await shared_guest.status())["notebook"] == "running"


GOOD = {"launch": "1", "owner": "ann", "env": {"JUPYTERHUB_API_TOKEN": "t"}, "args": [], "port": 8888}


@pytest.mark.parametrize(
    ("body", "says"),
    [
        pytest.param(b"{", "", id="not JSON"),
        pytest.param(b"[]", "JSON object", id="not an object"),
        pytest.param({**GOOD, "launch": ""}, "launch", id="no launch"),
        pytest.param({**GOOD, "owner": "../ann"}, "owner", id="owner with a path"),
        pytest.param({**GOOD, "owner": "-ann"}, "owner", id="owner like an option"),
        pytest.param({**GOOD, "owner": None}, "owner", id="no owner"),
        pytest.param({**GOOD, "env": {"A=B": "c"}}, "env", id="a name that is no name"),
        pytest.param({**GOOD, "env": {"A": 1}}, "env", id="a value that is no text"),
        pytest.param({**GOOD, "env": {"A": "x\0y"}}, "env", id="a value with a zero byte"),
        pytest.param({**GOOD, "env": {"A": "x"}}, "JUPYTERHUB_API_TOKEN", id="no token"),
        pytest.param({**GOOD, "env": {**GOOD["env"], "A": "x" * 100_000}}, "96 KiB", id="too large an environment"),
        pytest.param({**GOOD, "args": "--x"}, "args", id="arguments that are no list"),
        pytest.param({**GOOD, "port": True}, "port", id="port that is no number"),
        pytest.param({**GOOD, "port": 65536}, "port", id="port out of range"),
    ],
)
async def test_a_malformed_body_is_refused_with_a_reason(door, hub_identity, body, says):
    content = {"data": body} if isinstance(body, bytes) else {"json": body}
    status, text = await door(hub_identity.client_context(), "POST", "/v1/session", **content)
    assert status == 400
    assert says in text


async def test_a_big_body_is_refused(door, hub_identity):
    status, _ = await door(hub_identity.client_context(), "POST", "/v1/session", data=b"x" * (1024 * 1024 + 1))
    assert status == 413


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1/session", 405),
        ("POST", "/v1/status", 405),
        ("GET", "/v1/../../etc/passwd", 404),
    ],
)
async def test_nothing_else_is_served(door, hub_identity, method, path, status):
    assert (await door(hub_identity.client_context(), method, path))[0] == status


def test_the_fingerprint_is_that_of_the_served_certificate(shared_guest):
    pem = ssl.get_server_certificate((shared_guest.address, shared_guest.port))
    served = x509.load_pem_x509_certificate(pem.encode()).fingerprint(hashes.SHA256())
    assert served.hex() == shared_guest.fingerprint


def test_key_and_fingerprint_survive_a_reboot(guest):
    first, key = guest.fingerprint, (guest.state / "agent.key").read_bytes()
    guest.switch_off()
    guest.boot()
    assert guest.fingerprint == first
    assert (guest.state / "agent.key").read_bytes() == key


def test_the_key_is_private(guest):
    assert stat.S_IMODE((guest.state / "agent.key").stat().st_mode) == 0o600


def test_the_fingerprint_is_printed_before_anybody_can_connect(guest):
    for _ in range(3):
        guest.switch_off()
        guest.switch_on()
        guest.configure()
        while not guest.listens():
            pass
        assert guest.fingerprint


async def test_the_agent_waits_for_what_cloud_init_writes(guest, until):
    guest.switch_off()
    (guest.etc / "agent.json").unlink()
    guest.switch_on()
    await until(lambda: guest.processes("hutch-nursery"), "the agent started")
    assert not guest.listens()
    guest.configure()
    await until(guest.listens, "it listens")
