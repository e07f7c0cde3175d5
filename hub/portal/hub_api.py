"""The few calls of JupyterHub's REST API that the portal makes, each with the token of the user for whom it is made."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp

from ..errors import HutchError
from ..hub_session import hub_session

ANSWER_SECONDS = 15
# the hub sends a keep-alive line every 8 s
SILENCE_SECONDS = 30


class HubUnreachable(HutchError):
    """The hub does not answer, or not as a hub: nothing is known of what runs."""


class SignInNeeded(HutchError):
    """Nobody is signed in, or the token has ended."""


class HubRefusal(HutchError):
    """The hub answered no; the message is for people."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Server:
    """What JupyterHub says of a named server now. url: where browsers find it, with a slash at its end."""

    name: str
    ready: bool = False
    pending: str | None = None
    url: str = ""
    display_name: str = ""


class HubApi:
    """JupyterHub as one user may use it. Make it inside a running event loop, and close it."""

    def __init__(self, public_host: str) -> None:
        self._public_host = public_host
        self._session = hub_session(ANSWER_SECONDS)

    async def close(self) -> None:
        await self._session.close()

    async def servers(self, login: str, token: str) -> dict[str, Server]:
        """The user's servers that run, start or stop; one that is not among them does none of these."""
        try:
            model = await self._call("GET", f"users/{_quoted(login)}", token)
        except HubRefusal as refusal:
            # users may always see themselves, so it is the token that the hub no longer takes
            raise SignInNeeded from refusal
        return {name: self._server(server) for name, server in model.get("servers", {}).items()}

    async def start(self, login: str, token: str, name: str, display_name: str, options: dict[str, Any] | None = None) -> None:
        """Start a server; without options it keeps those that it had."""
        await self._call("POST", _server_path(login, name), token, {"display_name": display_name, "user_options": options})

    async def stop(self, login: str, token: str, name: str, *, remove: bool = False) -> None:
        """Stop a server, or a launch that is under way."""
        await self._end("DELETE", _server_path(login, name), token, {"remove": remove})

    # --- notebooks that are shared

    async def shares(self, login: str, token: str, name: str) -> set[str]:
        """With whom a server is shared."""
        try:
            model = await self._call("GET", _shares_path(login, name), token)
        except HubRefusal as refusal:
            if refusal.status != 404:
                raise
            return set()
        return {one["user"]["name"] for one in model["items"] if one["user"]}

    async def share(self, login: str, token: str, name: str, guest: str) -> None:
        await self._call("POST", _shares_path(login, name), token, {"user": guest})

    async def unshare(self, login: str, token: str, name: str, guest: str) -> None:
        """What they have open is closed (`hub.revoking`)."""
        await self._end("PATCH", _shares_path(login, name), token, {"user": guest})

    async def leave(self, login: str, token: str, owner: str, name: str) -> None:
        """Gives back what was shared with oneself."""
        await self._end("DELETE", f"users/{_quoted(login)}/shared/{_quoted(owner)}/{_quoted(name)}", token)

    async def shared_with(self, login: str, token: str) -> dict[tuple[str, str], Server]:
        """Others' servers that somebody may open, by owner and name."""
        model = await self._call("GET", f"users/{_quoted(login)}/shared", token)
        servers = [one["server"] for one in model["items"]]
        return {(one["user"]["name"], one["name"]): self._server(one) for one in servers}

    async def progress(self, login: str, token: str, name: str) -> AsyncIterator[dict[str, Any]]:
        """The events of a launch from its beginning, until it has ended; none when nothing is starting."""
        timeout = aiohttp.ClientTimeout(total=None, sock_read=SILENCE_SECONDS)
        try:
            path = f"{_server_path(login, name)}/progress"
            async with self._session.get(path, headers=_headers(token), timeout=timeout) as answer:
                if answer.status >= 400:
                    return
                async for line in answer.content:
                    if line.startswith(b"data:"):
                        yield json.loads(line.removeprefix(b"data:"))
        except (aiohttp.ClientError, TimeoutError) as error:
            raise HubUnreachable(f"The hub broke off while it told of {name}: {error}") from error

    async def _end(self, method: str, path: str, token: str, body: dict[str, Any] | None = None) -> None:
        """What the hub does not know counts as ended."""
        try:
            await self._call(method, path, token, body)
        except HubRefusal as refusal:
            if refusal.status != 404:
                raise

    async def _call(self, method: str, path: str, token: str, body: dict[str, Any] | None = None) -> Any:
        try:
            async with self._session.request(method, path, headers=_headers(token), json=body) as answer:
                text = await answer.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise HubUnreachable(f"The hub did not answer to {method} {path}: {error}") from error
        if answer.status >= 400:
            raise HubRefusal(answer.status, _message(text, answer.status))
        return json.loads(text) if text.startswith("{") else {}

    def _server(self, model: dict[str, Any]) -> Server:
        return Server(
            name=model["name"],
            ready=bool(model["ready"]),
            pending=model.get("pending"),
            url=model.get("full_url") or self._public_host + model["url"],
            display_name=model.get("display_name") or model["name"],
        )


def _headers(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def _quoted(name: str) -> str:
    return quote(name, safe="")


def _server_path(login: str, name: str) -> str:
    return f"users/{_quoted(login)}/servers/{_quoted(name)}"


def _shares_path(login: str, name: str) -> str:
    return f"shares/{_quoted(login)}/{_quoted(name)}"


def _message(text: str, status: int) -> str:
    try:
        message = json.loads(text)["message"]
    except (ValueError, KeyError, TypeError):
        message = ""
    return message or f"The hub refused without a reason (status {status})."
