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


async def opened(identity: HubIdentity, answer: bytes, stages=None, protocol: str = DESKTOP_PROTOCOL):
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
        if answer.endswith(READY):
            asked.append(await reader.readexactly(1))
            writer.write(b"pixels")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
        client = AgentClient(identity.client_context, port=server.sockets[0].getsockname()[1])
        viewer = Pixels()
        screen = {"width": 800, "height": 600, "layout": "de"}
        say = stages.append if stages is not None else None
        await client.open_desktop("127.0.0.1", fingerprint, lambda: viewer, user="ann", control=False, on_stage=say, **screen)
        await asyncio.wait_for(viewer.ended, 5)
        assert asked == [{"user": "ann", "control": False, **screen}, b"\1"]
        return viewer.got


async def test_after_the_last_line_the_viewer_begins_and_is_sent_the_desktop(identity):
    stages: list[str] = []
    assert await opened(identity, STARTING + STARTING + READY, stages) == b"pixels"
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
        await opened(identity, answer)


async def test_an_agent_that_knows_no_desktops_is_told_from_a_broken_one(identity):
    with pytest.raises(AgentRefused, match="too old"):
        await opened(identity, b"", protocol="http/1.1")


async def test_nobody_there_is_said_so(identity):
    with pytest.raises(AgentError, match="cannot be reached"):
        await AgentClient(identity.client_context, port=1).set_layout("127.0.0.1", "0" * 64, "de")
