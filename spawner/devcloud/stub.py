"""A booted server without a process: devcloud itself answers in place of agent and notebook. For load tests.

The agent half speaks the agent's protocol over TLS with a key of its own per server and asks for the hub's certificate.
The notebook half says that it is a stub, to whatever is asked of it. Nothing is ever computed here.
"""

import asyncio
import contextlib
import hashlib
import json
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from spawner.devcloud.folder import Folder

AGENT_PORT = 8765
HUB_NAME = "hutch-hub"
NOTEBOOK_HEADERS = {"X-JupyterHub-Version": "6.1.1"}
PAGE = """<!doctype html><title>stub</title><h1>A stub payload of devcloud</h1>
<p>This stands in for a notebook in tests of many servers at once. Nothing runs behind it.</p>"""
MAX_BODY_BYTES = 2**20
SESSION_TYPES: dict[str, type] = {"launch": str, "owner": str, "env": dict, "args": list, "port": int}


def make_key(path: Path, address: str) -> None:
    """An EC P-256 key and a self-signed certificate in one PEM file, as the agent makes at its first boot."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"devcloud stub {address}")])
    today = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(today - timedelta(days=1))
        .not_valid_after(today + timedelta(days=3650))
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.touch(mode=0o600)
    path.write_bytes(private + certificate.public_bytes(encoding))


def fingerprint(path: Path) -> str:
    certificate = x509.load_pem_x509_certificate(path.read_bytes())
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest()


class StubAgent:
    """Agent and notebook at one address. `key_name` is the file of the key: the impostor brings another."""

    def __init__(self, folder: Folder, address: str, key_name: str = "agent.pem") -> None:
        self._folder = folder
        self._address = address
        self._key = folder.path / key_name
        self._owner_file = folder.path / "stub-owner"
        self._servers: list[asyncio.Server] = []
        self._notebook: asyncio.Server | None = None
        self._protocols: list[web.Server] = []
        self._booted = time.monotonic()
        self._configured_port = AGENT_PORT

    @property
    def fingerprint(self) -> str:
        if not self._key.exists():
            make_key(self._key, self._address)
        return fingerprint(self._key)

    def _tls(self) -> ssl.SSLContext:
        configuration = json.loads(self._folder.agent_file.read_text())
        self._configured_port = int(configuration.get("port", AGENT_PORT))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._key)
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=configuration["hub_ca"])
        return context

    async def _serve(
        self, handler: Callable[..., Any], port: int, tls: ssl.SSLContext | None, retry_seconds: float
    ) -> asyncio.Server:
        protocol = web.Server(handler, access_log=None)
        self._protocols.append(protocol)
        deadline = time.monotonic() + retry_seconds
        while True:
            try:
                return await asyncio.get_running_loop().create_server(protocol, self._address, port, ssl=tls)
            except OSError:
                # The port may still be held by what this one replaces.
                if time.monotonic() >= deadline:
                    raise
                await asyncio.sleep(0.05)

    async def listen(self, retry_seconds: float = 1) -> None:
        _ = self.fingerprint
        tls = self._tls()
        self._servers.append(await self._serve(self._agent, self._configured_port, tls, retry_seconds))

    async def mute(self) -> None:
        """The agent's port closes; the notebook, if any, goes on."""
        while self._servers:
            self._servers.pop().close()

    async def close(self) -> None:
        await self.mute()
        self._stop_notebook()
        while self._protocols:
            # not 0, which aiohttp takes for "without end"
            await self._protocols.pop().shutdown(0.05)

    # The agent

    async def _agent(self, request: web.BaseRequest) -> web.StreamResponse:
        certificate = request.get_extra_info("peercert") or {}
        names = [value for part in certificate.get("subject", ()) for field, value in part if field == "commonName"]
        if names != [HUB_NAME]:
            return web.json_response({"error": "not-the-hub"}, status=403)
        match request.method, request.path:
            case "POST", "/v1/session":
                return await self._start_session(request)
            case "DELETE", "/v1/session":
                self._stop_notebook()
                return web.Response(status=204)
            case "DELETE", path if path.startswith("/v1/users/"):
                return web.Response(status=204)  # a stub has nothing open
            case "GET", "/v1/status":
                return web.json_response(self._status())
        return web.json_response({"error": "not-found"}, status=404)

    async def _start_session(self, request: web.BaseRequest) -> web.StreamResponse:
        if (request.content_length or 0) > MAX_BODY_BYTES:
            return web.json_response({"error": "too-large"}, status=413)
        try:
            session = json.loads(await request.content.read(MAX_BODY_BYTES))
            wrong = [name for name, kind in SESSION_TYPES.items() if not isinstance(session.get(name), kind)]
        except (ValueError, AttributeError):
            wrong = ["the body"]
        if wrong:
            return web.json_response({"error": "malformed", "fields": wrong}, status=400)
        if self.owner not in (None, session["owner"]):
            return web.json_response({"error": "other-owner"}, status=409)
        self._owner_file.write_text(session["owner"])
        answer = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await answer.prepare(request)
        started = time.monotonic()
        kept = self._notebook is not None
        for stage in ("account", "environment", "notebook"):
            await self._tell(answer, stage, "started", started)
            if stage == "notebook" and not kept:
                self._notebook = await self._serve(self._answer_as_notebook, session["port"], None, 1)
            await self._tell(answer, stage, "done", started)
        await self._tell(answer, "ready", "done", started, kept=kept)
        await answer.write_eof()
        return answer

    @staticmethod
    async def _tell(answer: web.StreamResponse, stage: str, state: str, started: float, **more: Any) -> None:
        event = {"stage": stage, "state": state, "seconds": round(time.monotonic() - started, 3), "message": "A stub of devcloud."}
        await answer.write(json.dumps(event | more).encode() + b"\n")

    def _stop_notebook(self) -> None:
        if self._notebook is not None:
            self._notebook.close()
            self._notebook = None

    @property
    def owner(self) -> str | None:
        return self._owner_file.read_text() if self._owner_file.exists() else None

    def _status(self) -> dict[str, Any]:
        return {
            "version": 1,
            "owner": self.owner,
            "notebook": "running" if self._notebook is not None else "none",
            "restarts": 0,
            "kernels": {"total": 0, "busy": 0},
            "cpu": {"cores": 1, "percent": 0.0},
            "memory": {"total": 4 * 2**30, "used": 2**28},
            "disk": {"total": 10 * 2**30, "used": 2**30},
            "last_input_at": None,
            "desktop": {"state": "none", "restarts": 0, "viewers": 0, "idle_seconds": None},
            "uptime_seconds": round(time.monotonic() - self._booted, 1),
        }

    # The notebook

    async def _answer_as_notebook(self, request: web.BaseRequest) -> web.StreamResponse:
        if "text/html" in request.headers.get("Accept", ""):
            return web.Response(text=PAGE, content_type="text/html", headers=NOTEBOOK_HEADERS)
        return web.json_response({"version": "stub"}, headers=NOTEBOOK_HEADERS)


class StubMachine:
    """A machine (see ``machine.Machine``) that is a `StubAgent` and no process."""

    def __init__(self, folder: Folder, address: str) -> None:
        self._folder = folder
        self._address = address
        self._agent: StubAgent | None = None

    async def boot(self) -> None:
        if not self._folder.agent_file.exists():
            self._folder.say("stub payload of devcloud: no /etc/hutch/agent.json in user_data, so no agent")
            return
        agent = StubAgent(self._folder, self._address)
        self._folder.say(f"HUTCH-AGENT fingerprint sha256:{agent.fingerprint}")
        try:
            await agent.listen()
        except (OSError, ValueError, KeyError) as error:
            self._folder.say(f"stub payload of devcloud: the agent cannot start: {error!r}")
            return
        self._agent = agent

    async def shutdown(self) -> None:
        agent, self._agent = self._agent, None
        if agent is not None:
            with contextlib.suppress(OSError):
                await agent.close()

    async def kill(self) -> None:
        await self.shutdown()

    async def crash(self) -> None:
        await self.shutdown()

    async def mute(self) -> None:
        if self._agent is not None:
            await self._agent.mute()

    async def impersonate(self) -> None:
        await self.shutdown()
        self._agent = StubAgent(self._folder, self._address, key_name="impostor.pem")
        await self._agent.listen()
