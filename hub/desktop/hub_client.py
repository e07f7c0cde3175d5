"""What a relay asks of JupyterHub, with its own token: where an instance's agent is, and that work at a desktop counts as work."""

from __future__ import annotations

from datetime import datetime
from urllib.parse import quote

import aiohttp

from ..errors import HutchError


class NotRunning(HutchError):
    """There is no desktop to connect to; the text is for people."""


# an instance's agent: its address, and the fingerprint that the cloud's console showed
Where = tuple[str, str]


async def where(hub: aiohttp.ClientSession, login: str, server_name: str) -> Where:
    """Raises NotRunning."""
    try:
        async with hub.get(f"users/{quote(login, safe='')}") as answer:
            user = await answer.json() if answer.status == 200 else {}
    except (aiohttp.ClientError, TimeoutError) as error:
        raise NotRunning("The hub does not answer; it may be restarting.") from error
    server = user.get("servers", {}).get(server_name, {})
    state = server.get("state") or {}
    if not server.get("ready") or not state.get("address") or not state.get("fingerprint"):
        raise NotRunning("The instance does not run.")
    return state["address"], state["fingerprint"]


async def note_activity(hub: aiohttp.ClientSession, login: str, server_name: str, at: datetime) -> None:
    body = {"servers": {server_name: {"last_activity": at.isoformat()}}}
    async with hub.post(f"users/{quote(login, safe='')}/activity", json=body) as answer:
        answer.raise_for_status()
