"""The few calls of JupyterHub's REST API that the portal makes, each with the token of the user for whom it is made."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp

from ..errors import HutchError
from ..service import well

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


@dataclass(frozen=True, slots=True)
class HubApi:
    """JupyterHub as one user may use it. public_host: where browsers find it, if that is not where we do."""

    session: aiohttp.ClientSession
    public_host: str
    login: str
    token: str

    async def servers(self) -> dict[str, Server]:
        """The user's servers that run, start or stop; one that is not among them does none of these."""
        try:
            model = await self._call("GET", self._user())
        except HubRefusal as refusal:
            # users may always see themselves, so it is the token that the hub no longer takes
            raise SignInNeeded from refusal
        return {name: self._described(server) for name, server in model.get("servers", {}).items()}

    async def start(self, name: str, display_name: str, options: dict[str, Any] | None = None) -> None:
        """Start a server; without options it keeps those that it had."""
        await self._call("POST", self._user("servers", name), {"display_name": display_name, "user_options": options})

    async def stop(self, name: str, *, remove: bool = False) -> None:
        """Stop a server, or a launch that is under way."""
        await self._call("DELETE", self._user("servers", name), {"remove": remove}, unknown={})

    async def progress(self, name: str) -> AsyncIterator[dict[str, Any]]:
        """The events of a launch from its beginning, until it has ended; none when nothing is starting."""
        timeout = aiohttp.ClientTimeout(total=None, sock_read=SILENCE_SECONDS)
        path = self._user("servers", name, "progress")
        try:
            async with self.session.get(path, headers=self._headers, timeout=timeout) as answer:
                if answer.status >= 400:
                    return
                async for line in answer.content:
                    if line.startswith(b"data:"):
                        yield json.loads(line.removeprefix(b"data:"))
        except (aiohttp.ClientError, TimeoutError) as error:
            raise HubUnreachable(f"The hub broke off while it told of {name}: {error}") from error

    # --- notebooks that are shared

    async def shares(self, name: str) -> set[str]:
        """With whom a server is shared."""
        model = await self._call("GET", self._shares(name), unknown={"items": []})
        return {one["user"]["name"] for one in model["items"] if one["user"]}

    async def share(self, name: str, guest: str) -> None:
        await self._call("POST", self._shares(name), {"user": guest})

    async def unshare(self, name: str, guest: str) -> None:
        """What they have open is closed (`hub.revoking`)."""
        await self._call("PATCH", self._shares(name), {"user": guest}, unknown={})

    async def leave(self, owner: str, name: str) -> None:
        """Gives back what was shared with oneself."""
        await self._call("DELETE", self._user("shared", owner, name), unknown={})

    async def shared_with(self) -> dict[tuple[str, str], Server]:
        """Others' servers that the user may open, by owner and name."""
        model = await self._call("GET", self._user("shared"))
        servers = [one["server"] for one in model["items"]]
        return {(one["user"]["name"], one["name"]): self._described(one) for one in servers}

    # --- how it is asked

    async def _call(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, unknown: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """unknown: the answer about what the hub does not know, where that is no refusal, as it is for what shall end."""
        try:
            async with self.session.request(method, path, headers=self._headers, json=body) as answer:
                text = await answer.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise HubUnreachable(f"The hub did not answer to {method} {path}: {error}") from error
        well("hub-unreachable")
        if answer.status == 404 and unknown is not None:
            return unknown
        if answer.status >= 400:
            raise HubRefusal(answer.status, _message(text, answer.status))
        return json.loads(text) if text.startswith("{") else {}

    @property
    def _headers(self) -> dict[str, str]:
        """In place of the service's own token, which the session has."""
        return {"Authorization": f"Bearer {self.token}"}

    def _user(self, *parts: str) -> str:
        return _path("users", self.login, *parts)

    def _shares(self, name: str) -> str:
        return _path("shares", self.login, name)

    def _described(self, model: dict[str, Any]) -> Server:
        return Server(
            name=model["name"],
            ready=bool(model["ready"]),
            pending=model.get("pending"),
            url=model.get("full_url") or self.public_host + model["url"],
            display_name=model.get("display_name") or model["name"],
        )


def _path(*parts: str) -> str:
    return "/".join(quote(part, safe="") for part in parts)


def _message(text: str, status: int) -> str:
    try:
        message = json.loads(text)["message"]
    except (ValueError, KeyError, TypeError):
        message = ""
    if " is pending " in message:
        # JupyterHub's own words; after it has started it looks for what runs, and meanwhile starts nothing
        return "The hub is looking at this instance just now, to find out whether it runs. Try again in half a minute."
    return message or f"The hub refused without a reason (status {status})."
