"""The hub's side of the agent: one mutually authenticated request that launches, a few that ask, and the way to the desktop.

The agent is known by the fingerprint it printed on its serial console. A connection whose certificate has another one is closed
before a byte of the request is sent.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import quote

import aiohttp

from .desktop_tls import DesktopTls, connect

PORT = 8765
FINGERPRINT_LINE = re.compile(r"HUTCH-AGENT fingerprint sha256:([0-9a-f]{64})(?![0-9a-f])")
ESCAPE_CODES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[@-Z\\-_])|[\x00-\x08\x0b-\x1f\x7f]")

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 10.0
LAUNCH_SECONDS = 180.0
"""The longest silence in a launch; an image that is read from a slow disk for the first time needs most of it."""
DESKTOP_SECONDS = 45.0
"""For a desktop that has to be started first."""
DESKTOP_PROTOCOL = "hutch.rfb"
CLIENT_INIT = b"\1"
"""RFB's word that the desktop is to be shared; nothing comes from it before that."""
CLOSED_SECONDS = 2.0
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.02, 0.25


class AgentError(Exception):
    """The agent did not do what was asked; the text is a plain sentence."""


class AgentUnreachable(AgentError):
    """Nobody answered, or the connection broke."""


class AgentMismatch(AgentError):
    """Somebody with another fingerprint answered; nothing was sent."""


class AgentRefused(AgentError):
    """The agent understood and will not, now or later."""


class AgentFailed(AgentError):
    """A stage of the launch failed in the instance."""

    def __init__(self, sentence: str, stage: str, detail: str) -> None:
        super().__init__(sentence)
        self.stage = stage
        self.detail = detail


STAGES = frozenset({"account", "environment", "notebook", "ready"})
STATES = frozenset({"started", "done", "failed"})
MOST_BYTES = 64 * 1024
MOST_LINES = 20
NOT_UNDERSTOOD = AgentFailed("The agent answered with something that is not understood.", "notebook", "not the agent's protocol")


def fingerprint_from_console(text: str) -> str | None:
    """The fingerprint printed last: at each boot the agent prints it again, and other programs write in between."""
    found = FINGERPRINT_LINE.findall(ESCAPE_CODES.sub("", text))
    return found[-1] if found else None


class AgentClient:
    """Talks to every agent of a deployment with the hub's one certificate.

    ``context`` is asked for at each connection, so that a renewed certificate is used without a restart.
    """

    def __init__(self, context: Callable[..., ssl.SSLContext], port: int = PORT) -> None:
        self._context = context
        self._port = port

    async def push(self, address: str, fingerprint: str, session: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
        """Launch, and pass on each stage as it happens; the last one is ``ready``, or AgentFailed is raised.

        Whoever is root in the instance may answer anything: only what the protocol allows is passed on, and each stage once.
        """
        told: set[tuple[str, str]] = set()
        async with self._request("POST", "session", address, fingerprint, _LAUNCH, json=session) as response:
            async for line in _lines(response):
                event = stage_event(line)
                if event["state"] == "failed":
                    raise AgentFailed(event["message"], event["stage"], event["detail"])
                if (event["stage"], event["state"]) in told:
                    raise NOT_UNDERSTOOD
                told.add((event["stage"], event["state"]))
                yield event
        if ("ready", "done") not in told:
            raise AgentUnreachable(f"The connection to the agent at {address} broke during the launch.")

    async def status(self, address: str, fingerprint: str) -> dict[str, Any]:
        async with self._request("GET", "status", address, fingerprint, _SHORT) as response:
            return json.loads(await response.content.read(MOST_BYTES))

    async def answers(self, address: str, fingerprint: str) -> bool:
        """Whether this very agent is there."""
        try:
            return bool(await self.status(address, fingerprint))
        except (AgentError, ValueError):
            return False

    async def lacks_notebook(self, address: str, fingerprint: str, port: int) -> bool:
        """Certain: nothing listens at the notebook's port, and the agent says that it has none, as after a reboot."""
        try:
            await _connect(address, port, CLOSED_SECONDS)
        except ConnectionRefusedError:
            try:
                return (await self.status(address, fingerprint))["notebook"] in ("none", "dead")
            except (AgentError, ValueError, LookupError, TypeError):
                return False
        except (OSError, TimeoutError):
            return False
        return False

    async def end(self, address: str, fingerprint: str) -> None:
        """Stop the notebook; the instance keeps running and keeps its owner."""
        async with self._request("DELETE", "session", address, fingerprint, _SHORT):
            pass

    async def send_away(self, address: str, fingerprint: str, user: str) -> None:
        """Close what this user of the hub, who lost their access, has open in the notebook."""
        async with self._request("DELETE", f"users/{quote(user, safe='')}", address, fingerprint, _SHORT):
            pass

    async def open_desktop(
        self,
        address: str,
        fingerprint: str,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        *,
        user: str,
        control: bool,
        width: int,
        height: int,
        layout: str,
        on_stage: Callable[[str], None] | None = None,
    ) -> asyncio.Transport:
        """A connection to the desktop for this user, from RFB's ServerInit message on; `on_stage` hears what it waits for."""
        asked = {"user": user, "control": control, "width": width, "height": height, "layout": layout}
        transport = await self._ask_desktop(address, fingerprint, asked, on_stage)
        if transport.is_closing():
            raise AgentUnreachable(f"The agent at {address} closed the connection to the desktop.")
        protocol = protocol_factory()
        transport.set_protocol(protocol)
        transport.write(CLIENT_INIT)
        protocol.connection_made(transport)
        return transport

    async def set_layout(self, address: str, fingerprint: str, layout: str) -> None:
        """Change the keyboard's layout on a running desktop."""
        (await self._ask_desktop(address, fingerprint, {"layout": layout})).abort()

    async def _ask_desktop(
        self, address: str, fingerprint: str, asked: dict[str, Any], on_stage: Callable[[str], None] | None = None
    ) -> asyncio.Transport:
        context, reader = self._context(DESKTOP_PROTOCOL), asyncio.StreamReader(limit=MOST_BYTES)
        transport: DesktopTls | None = None
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                transport = await connect(context, address, self._port, asyncio.StreamReaderProtocol(reader))
            if hashlib.sha256(transport.tls.getpeercert(binary_form=True) or b"").hexdigest() != fingerprint:
                raise _mismatch(address)
            if transport.tls.selected_alpn_protocol() != DESKTOP_PROTOCOL:
                raise AgentRefused("The agent in this instance is too old to show a desktop.")
            transport.write(json.dumps(asked).encode() + b"\n")
            async with asyncio.timeout(DESKTOP_SECONDS):
                await _until_ready(reader, on_stage)
        except BaseException as error:
            if transport:
                transport.abort()
            if isinstance(error, OSError):
                raise AgentUnreachable(f"The agent at {address} cannot be reached.") from error
            raise
        return transport

    async def wait_listening(self, address: str, port: int, deadline: float) -> None:
        """Try plain connections until one is accepted; ``deadline`` is a time of the running loop's clock."""
        await wait_listening(address, port, deadline)

    @asynccontextmanager
    async def _request(
        self, method: str, what: str, address: str, fingerprint: str, limits: aiohttp.ClientTimeout, **body: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        url = f"https://{address}:{self._port}/v1/{what}"
        # aiohttp pins on the connector and takes the client certificate from the request: so one connector for each agent
        pinned = aiohttp.Fingerprint(bytes.fromhex(fingerprint))
        # there is no name to be resolved, and the default resolver is dear to make
        connector = aiohttp.TCPConnector(ssl=pinned, force_close=True, resolver=aiohttp.ThreadedResolver())
        jar = aiohttp.DummyCookieJar()  # a cookie would be for nobody
        try:
            async with (
                # nothing is unpacked and no redirect followed: a small answer could be huge, and lead anywhere
                aiohttp.ClientSession(connector=connector, timeout=limits, auto_decompress=False, cookie_jar=jar) as client,
                client.request(method, url, ssl=self._context(), allow_redirects=False, **body) as response,
            ):
                if response.status not in (200, 204):
                    raise AgentRefused(await _reason(response, address))
                yield response
        except aiohttp.ServerFingerprintMismatch as error:
            raise _mismatch(address) from error
        except aiohttp.ServerDisconnectedError as error:
            raise AgentUnreachable(
                f"The agent at {address} closed the connection: it is ending, or it was booted for another hub's certificate."
            ) from error
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise AgentUnreachable(f"The agent at {address} cannot be reached.") from error


async def _until_ready(reader: asyncio.StreamReader, on_stage: Callable[[str], None] | None) -> None:
    for _ in range(MOST_LINES):
        try:
            line = await reader.readline()
        except ValueError as error:  # a line without end
            raise NOT_UNDERSTOOD from error
        if not line:
            raise ConnectionResetError
        state, message = desktop_event(line)
        if state == "ready":
            return
        if state == "failed":
            raise AgentFailed(message, "desktop", "")
        if on_stage:
            on_stage(message)
    raise NOT_UNDERSTOOD


def desktop_event(line: bytes) -> tuple[str, str]:
    """One line of a desktop's beginning: its state and a sentence. Raises AgentFailed for what the protocol does not allow."""
    try:
        event = json.loads(line)
        state, message = event["state"], _plain(event.get("message", ""))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise NOT_UNDERSTOOD from error
    if state not in ("starting", "ready", "failed"):
        raise NOT_UNDERSTOOD
    return state, message


def _mismatch(address: str) -> AgentMismatch:
    return AgentMismatch(f"Whoever answers at {address} is not the agent whose fingerprint was on the console; nothing was sent.")


async def wait_listening(address: str, port: int, deadline: float) -> None:
    """Try plain connections, with pauses that grow, until one is accepted."""
    loop = asyncio.get_running_loop()
    pause = FIRST_PAUSE_SECONDS
    while (left := deadline - loop.time()) > 0:
        with suppress(OSError, TimeoutError):
            return await _connect(address, port, left)
        await asyncio.sleep(min(pause, max(deadline - loop.time(), 0)))
        pause = min(pause * 1.5, LONGEST_PAUSE_SECONDS)
    raise AgentUnreachable(f"Nothing listens at {address}, port {port}.")


async def _connect(address: str, port: int, within_seconds: float) -> None:
    # bare sockets: there are many tries, by many launches at once, and streams are dear to make
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as tried:
        tried.setblocking(False)
        async with asyncio.timeout(within_seconds):
            await asyncio.get_running_loop().sock_connect(tried, (address, port))


async def _reason(response: aiohttp.ClientResponse, address: str) -> str:
    try:
        return _plain(json.loads(await response.content.read(MOST_BYTES))["message"])
    except (aiohttp.ClientError, ValueError, KeyError, TypeError):
        return f"The agent at {address} refused the request with status {response.status}."


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    try:
        async for line in response.content:
            yield line
    except (ValueError, aiohttp.http_exceptions.BadHttpMessage) as error:  # a line without end, broken chunks
        raise NOT_UNDERSTOOD from error


def stage_event(line: bytes) -> dict[str, Any]:
    """One line of a launch: stage, state, message, seconds; detail if it failed, kept at its end. Raises AgentFailed otherwise."""
    try:
        event = json.loads(line)
        stage, state, seconds = event["stage"], event["state"], event.get("seconds")
        if stage not in STAGES or state not in STATES or not (seconds is None or (math.isfinite(seconds) and seconds >= 0)):
            raise NOT_UNDERSTOOD
        known = {"stage": stage, "state": state, "seconds": seconds, "message": _plain(event.get("message", ""))}
        if state == "failed":
            known["detail"] = _plain(event.get("detail", ""), MOST_BYTES)
        if stage == "ready":
            known["kept"] = event.get("kept") is True
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise NOT_UNDERSTOOD from error
    return known


def _plain(text: str, most: int = 500) -> str:
    """Text from a guest for logs and pages: no control characters but line ends, and not without end."""
    return re.sub(r"[\x00-\x09\x0b-\x1f\x7f]", " ", text[:most])


_LAUNCH = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=LAUNCH_SECONDS)
_SHORT = aiohttp.ClientTimeout(total=ANSWER_SECONDS, sock_connect=CONNECT_SECONDS)
