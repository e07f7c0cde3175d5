"""The hub's side of a desktop, against servers that are no agent: whoever is root in an instance may answer anything."""

from __future__ import annotations

import asyncio
import json
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from spawner.agent_client import DESKTOP_PROTOCOL, AgentClient, AgentError, AgentFailed, AgentRefused, AgentUnreachable
from spawner.agent_tls import HubIdentity

READY = b'{"state": "ready"}\n'
STARTING = b'{"state": "starting", "message": "Soon\\u0007."}\n'


@pytest.fixture(scope="module")
def identity(tmp_path_factory) -> HubIdentity:
    return HubIdentity(tmp_path_factory.mktemp("hub"))


class Pixels(asyncio.Protocol):
    def __init__(self) -> None:
        self.got = b""
        self.ended = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.got += data

    def connection_lost(self, error: Exception | None) -> None:
        self.ended.set_result(None)


class BufferedPixels(asyncio.BufferedProtocol):
    """Takes three bytes at a time."""

    def __init__(self) -> None:
        self.got = b""
        self.buffer = bytearray(3)
        self.ended = asyncio.get_running_loop().create_future()

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.got += self.buffer[:nbytes]

    def connection_lost(self, error: Exception | None) -> None:
        self.ended.set_result(None)


async def opened(identity: HubIdentity, answer: bytes, make, stages=None, protocol: str = DESKTOP_PROTOCOL):
    """What becomes of a viewer whose agent gives this answer and ends."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    identity.hub_ca_pem()
    # any certificate serves; the hub's own is at hand
    context.load_cert_chain(identity._certificate)
    context.set_alpn_protocols([protocol])
    fingerprint = x509.load_pem_x509_certificate(identity._certificate.read_bytes()).fingerprint(hashes.SHA256()).hex()
    asked = []

    async def serve(reader, writer) -> None:
        asked.append(json.loads(await reader.readline()))
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        client = AgentClient(identity.client_context, port=server.sockets[0].getsockname()[1])
        viewer = make()
        screen = {"width": 800, "height": 600, "layout": "de"}
        say = stages.append if stages is not None else None
        await client.open_desktop("127.0.0.1", fingerprint, lambda: viewer, user="ann", control=False, on_stage=say, **screen)
        await asyncio.wait_for(viewer.ended, 5)
        assert asked == [{"user": "ann", "control": False, **screen}]
        return viewer.got


@pytest.mark.parametrize("make", [Pixels, BufferedPixels])
async def test_what_follows_the_last_line_is_the_viewers(identity, make):
    stages: list[str] = []
    assert await opened(identity, STARTING + STARTING + READY + b"pixels\nand more", make, stages) == b"pixels\nand more"
    assert stages == ["Soon .", "Soon ."]


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        pytest.param(b"", AgentUnreachable, "cannot be reached", id="nothing"),
        pytest.param(STARTING, AgentUnreachable, "cannot be reached", id="no last line"),
        pytest.param(b'{"state": "failed", "message": "No X\\u001b[2J."}\n', AgentFailed, r"No X \[2J\.", id="failed"),
        pytest.param(b"RFB 003.008\n", AgentFailed, "not understood", id="no JSON"),
        pytest.param(b'["ready"]\n', AgentFailed, "not understood", id="no object"),
        pytest.param(b'{"state": "rm"}\n', AgentFailed, "not understood", id="an unknown state"),
        pytest.param(b'{"state": {}}\n', AgentFailed, "not understood", id="a state that is no text"),
        pytest.param(b'{"state": "starting", "message": 1}\n', AgentFailed, "not understood", id="a message that is no text"),
        pytest.param(b"[" * 60_000 + b"\n", AgentFailed, "not understood", id="nested without end"),
        pytest.param(STARTING * 1000, AgentFailed, "not understood", id="lines without end"),
        pytest.param(b"x" * 1_000_000, AgentFailed, "not understood", id="a line without end"),
    ],
)
async def test_what_the_protocol_does_not_allow_is_refused(identity, answer, error, says):
    with pytest.raises(error, match=says):
        await opened(identity, answer, Pixels)


async def test_an_agent_that_knows_no_desktops_is_told_from_a_broken_one(identity):
    with pytest.raises(AgentRefused, match="too old"):
        await opened(identity, b"", Pixels, protocol="http/1.1")


async def test_nobody_there_is_said_so(identity):
    with pytest.raises(AgentError, match="cannot be reached"):
        await AgentClient(identity.client_context, port=1).set_layout("127.0.0.1", "0" * 64, "de")
