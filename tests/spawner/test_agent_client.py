"""The hub's side of the agent, against servers that are no agent."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl

import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes

from spawner.agent_client import (
    AgentClient,
    AgentFailed,
    AgentMismatch,
    AgentRefused,
    AgentUnreachable,
    fingerprint_from_console,
    stage_event,
)
from spawner.agent_tls import HubIdentity

ONE, TWO = "1" * 64, "ab" * 32
LINE = "HUTCH-AGENT fingerprint sha256:"


@pytest.mark.parametrize(
    ("console", "fingerprint"),
    [
        pytest.param("", None, id="empty"),
        pytest.param(f"[ 1.0] boot\n{LINE}{ONE}\nlogin:", ONE, id="among other lines"),
        pytest.param(f"{LINE}{ONE}\r\n", ONE, id="carriage return"),
        pytest.param(f"{LINE}{ONE}", ONE, id="without an end of line"),
        pytest.param(f"\x1b[0;32m  OK\x1b[0m {LINE}\x1b[1m{ONE}\x1b[0m\n", ONE, id="colours"),
        pytest.param(f"\x00\x07{LINE}{ONE}\x1b(B\n", ONE, id="control characters"),
        pytest.param(f"{LINE}{ONE}\n...\n{LINE}{TWO}\n", TWO, id="printed again at the next boot"),
        pytest.param(f"{LINE}{ONE}\n{LINE}{TWO[:40]}", ONE, id="the last line torn off"),
        pytest.param(f"{LINE}{TWO[:20]}\n{LINE}{ONE}\n", ONE, id="an earlier line torn off"),
        pytest.param(f"print: {ONE}\nsha256:{TWO}\n", None, id="other hashes"),
        pytest.param(f"{LINE}{'AB' * 32}\n", None, id="upper case is not ours"),
        pytest.param(f"{LINE}{ONE}f\n", None, id="too long"),
        pytest.param(f"FINGERPRINT {LINE[:-7]}{ONE}\n", None, id="another algorithm"),
    ],
)
def test_the_fingerprint_is_read_from_any_console(console, fingerprint):
    assert fingerprint_from_console(console) == fingerprint


@pytest.fixture(scope="module")
def identity(tmp_path_factory) -> HubIdentity:
    return HubIdentity(tmp_path_factory.mktemp("hub"))


class FalseAgent:
    """Serves one answer over TLS, and counts what reaches it."""

    def __init__(self, port: int, fingerprint: str, client: AgentClient) -> None:
        self.port = port
        self.fingerprint = fingerprint
        self.client = client
        self.requests = 0
        self.answer: web.Response | list[dict] = web.Response(status=500)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests += 1
        if isinstance(self.answer, web.Response):
            return self.answer
        response = web.StreamResponse()
        await response.prepare(request)
        for event in self.answer:
            await response.write(json.dumps(event).encode() + b"\n")
        if self.answer[-1]["stage"] != "ready":
            request.transport.abort()
        return response

    async def push(self) -> list[dict]:
        return [event async for event in self.client.push("127.0.0.1", self.fingerprint, {"env": {"TOKEN": "secret"}})]


@pytest.fixture
async def false_agent(identity):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # any certificate serves; the hub's own is at hand
    identity.hub_ca_pem()
    context.load_cert_chain(identity._certificate)
    fingerprint = x509.load_pem_x509_certificate(identity._certificate.read_bytes()).fingerprint(hashes.SHA256()).hex()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        agent = FalseAgent(port, fingerprint, AgentClient(identity.client_context, port=port))
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", agent.handle)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.SockSite(runner, listener, ssl_context=context).start()
        yield agent
        await runner.cleanup()


READY = {"stage": "ready", "state": "done", "seconds": 1.0, "message": "Your notebook answers.", "kept": False}
STAGE = {"stage": "notebook", "state": "started", "seconds": 0.0, "message": "Starting JupyterLab."}


async def test_stages_are_passed_on(false_agent):
    false_agent.answer = [STAGE, READY]
    assert await false_agent.push() == [STAGE, READY]


async def test_to_another_fingerprint_nothing_is_sent(false_agent):
    false_agent.answer = [READY]
    false_agent.fingerprint = ONE
    with pytest.raises(AgentMismatch, match="nothing was sent"):
        await false_agent.push()
    assert false_agent.requests == 0


async def test_a_failed_stage_is_raised_with_its_detail(false_agent):
    false_agent.answer = [STAGE, {**STAGE, "state": "failed", "message": "JupyterLab ended.", "detail": "Traceback"}, READY]
    with pytest.raises(AgentFailed, match="JupyterLab ended") as failure:
        await false_agent.push()
    assert (failure.value.stage, failure.value.detail) == ("notebook", "Traceback")


HOSTILE = {
    "an unknown stage": {**STAGE, "stage": "rm -rf"},
    "an unknown state": {**STAGE, "state": "half"},
    "no object": ["notebook"],
    "seconds as text": {**STAGE, "seconds": "0"},
    "seconds without end": {**STAGE, "seconds": float("inf")},
    "negative seconds": {**STAGE, "seconds": -1},
    "seconds beyond any float": {**STAGE, "seconds": 10**400},
    "a message that is none": {**STAGE, "message": {"a": 1}},
    "a line without end": {**STAGE, "message": "x" * 1_000_000},
}


@pytest.mark.parametrize("event", HOSTILE.values(), ids=HOSTILE)
async def test_what_the_protocol_does_not_allow_ends_the_launch(false_agent, event):
    false_agent.answer = [event, READY]
    with pytest.raises(AgentFailed, match="not understood"):
        await false_agent.push()


async def test_a_stage_that_is_told_for_ever_ends_the_launch(false_agent):
    false_agent.answer = [STAGE, STAGE, READY]
    with pytest.raises(AgentFailed, match="not understood"):
        await false_agent.push()


def test_text_from_a_guest_is_short_and_has_no_control_characters():
    event = stage_event(json.dumps({**STAGE, "message": "\x1b[2J" + "x" * 9000}).encode())
    assert event["message"].startswith(" [2Jx") and len(event["message"]) == 500


async def test_a_redirect_is_not_followed(false_agent):
    """The request carries a token, and the pin holds for one address only."""
    false_agent.answer = web.Response(status=307, headers={"Location": f"https://127.0.0.1:{false_agent.port}/elsewhere"})
    with pytest.raises(AgentRefused, match="status 307"):
        await false_agent.push()
    assert false_agent.requests == 1


async def test_a_launch_that_breaks_off_is_no_success(false_agent):
    false_agent.answer = [STAGE]
    with pytest.raises(AgentUnreachable):
        await false_agent.push()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        pytest.param(
            {"error": "other-owner", "message": "This instance belongs to another account."}, "another account", id="ours"
        ),
        pytest.param({"detail": "x"}, "status 409", id="some other JSON"),
    ],
)
async def test_a_refusal_says_why(false_agent, answer, says):
    false_agent.answer = web.json_response(answer, status=409)
    with pytest.raises(AgentRefused, match=says):
        await false_agent.push()


async def test_nobody_there_is_said_plainly(identity):
    client = AgentClient(identity.client_context, port=1)
    with pytest.raises(AgentUnreachable, match=r"127\.0\.0\.1 cannot be reached"):
        await client.status("127.0.0.1", ONE)


async def test_waiting_ends_as_soon_as_somebody_listens(identity):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        client = AgentClient(identity.client_context)
        deadline = asyncio.get_running_loop().time() + 60
        waiting = asyncio.create_task(client.wait_listening("127.0.0.1", listener.getsockname()[1], deadline))
        done, _ = await asyncio.wait({waiting}, timeout=0.1)
        assert not done
        listener.listen()
        await waiting


async def test_waiting_gives_up_at_the_deadline(identity):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        deadline = asyncio.get_running_loop().time() + 0.1
        with pytest.raises(AgentUnreachable, match="Nothing listens"):
            await AgentClient(identity.client_context).wait_listening("127.0.0.1", nobody.getsockname()[1], deadline)


@pytest.mark.parametrize(
    ("said", "lacks"),
    [({"notebook": "none"}, True), ({"notebook": "dead"}, True), ({"notebook": "running"}, False), ({}, False), (["none"], False)],
    ids=str,
)
async def test_a_notebook_is_missing_only_where_the_agent_says_so(false_agent, said, lacks):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    false_agent.answer = web.json_response(said)
    assert await false_agent.client.lacks_notebook("127.0.0.1", false_agent.fingerprint, port) is lacks


async def test_where_something_listens_or_the_agent_is_not_ours_nothing_is_missing(false_agent):
    false_agent.answer = web.json_response({"notebook": "none"})
    assert not await false_agent.client.lacks_notebook("127.0.0.1", false_agent.fingerprint, false_agent.port)
    assert false_agent.requests == 0
    assert not await false_agent.client.lacks_notebook("127.0.0.1", ONE, 1)
