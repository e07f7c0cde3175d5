"""Who is asking: JupyterHub's OAuth, with the user's own token kept in an encrypted cookie."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlencode, urlsplit

from cryptography.fernet import Fernet, InvalidToken
from fastapi import Depends, Request
from fastapi.responses import RedirectResponse, Response
from jupyterhub.services.auth import HubOAuth
from tornado.web import HTTPError

from ..errors import HutchError
from ..keys import fernet_key
from .hub_api import ANSWER_SECONDS, HubUnreachable, SignInNeeded

COOKIE = "hutch-portal"
STATE_SECONDS = 600
# how long a token that the hub has revoked may still be believed
CACHE_SECONDS = 5


class AccessRefused(HutchError):
    """Signed in, but not allowed to use the portal."""


@dataclass(frozen=True, slots=True)
class Visitor:
    """The user who is signed in, and their own token at the hub."""

    login: str
    token: str


class Identity:
    """The portal's end of OAuth. Its state between two requests is in the browser, so that a restart loses nothing."""

    def __init__(self, key_file: Path) -> None:
        self.auth = HubOAuth(cache_max_age=CACHE_SECONDS)
        self._fernet = Fernet(fernet_key(key_file))
        public = urlsplit(os.environ.get("JUPYTERHUB_PUBLIC_URL", ""))
        self._secure = public.scheme == "https"
        # a notebook's host can set cookies for this one too, but none with the prefix. That takes the path "/", which on a
        # host shared with the hub and with notebooks would hand the cookies to all of them
        self._host_only = self._secure and public.netloc != urlsplit(self.auth.hub_host).netloc
        self._cookie = f"__Host-{COOKIE}" if self._host_only else COOKIE

    async def visitor(self, request: Request) -> Visitor:
        token = self._opened(request.cookies.get(self._cookie))
        if not token:
            raise SignInNeeded
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                user = await self.auth.user_for_token(token, sync=False)
        except (HTTPError, TimeoutError) as error:
            raise HubUnreachable(f"The hub did not say who is asking: {error}") from error
        if user is None or user["kind"] != "user":
            raise SignInNeeded
        if not self.auth.check_scopes(self.auth.access_scopes, user):
            raise AccessRefused
        return Visitor(user["name"], token)

    def send_to_sign_in(self, next_path: str) -> Response:
        """To the hub, and from there back to next_path."""
        state = secrets.token_urlsafe(16)
        verifier, challenge, method = self.auth.generate_pkce_code_challenge()
        query = urlencode({"state": state, "code_challenge": challenge, "code_challenge_method": method})
        answer = RedirectResponse(f"{self.auth.login_url}&{query}", status_code=302)
        kept = json.dumps({"state": state, "verifier": verifier, "next": next_path})
        self._keep(answer, self._state_cookie(state), kept, path=self._callback_path, max_age=STATE_SECONDS)
        return answer

    async def come_back(self, request: Request) -> Response:
        """The hub sends the browser back here, with a code for a token."""
        state, code = request.query_params.get("state", ""), request.query_params.get("code", "")
        kept = json.loads(self._opened(request.cookies.get(self._state_cookie(state)), STATE_SECONDS) or "{}")
        if not (state and code and kept.get("state") == state):
            raise SignInNeeded
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                token = await self.auth.token_for_code(code, code_verifier=kept["verifier"], sync=False)
        except (HTTPError, TimeoutError) as error:
            raise HubUnreachable(f"The hub gave no token: {error}") from error
        answer = RedirectResponse(kept["next"], status_code=302)
        self._keep(answer, self._cookie, token, path=self.auth.base_url)
        self._forget(answer, self._state_cookie(state), path=self._callback_path)
        return answer

    def sign_out(self, hub: str) -> Response:
        """Forgets the token, and goes on to the hub, which ends its session and the tokens that belong to it."""
        answer = RedirectResponse(f"{hub}logout", status_code=302)
        self._forget(answer, self._cookie, path=self.auth.base_url)
        return answer

    @property
    def _callback_path(self) -> str:
        return urlsplit(self.auth.oauth_redirect_uri).path

    def _state_cookie(self, state: str) -> str:
        """One cookie for each sign-in that is under way, as people open several pages at once."""
        return f"{self._cookie}-state-{state[:8]}"

    def _keep(self, answer: Response, name: str, value: str, *, path: str, max_age: int | None = None) -> None:
        sealed = self._fernet.encrypt(value.encode()).decode()
        answer.set_cookie(name, sealed, max_age, path=self._path(path), secure=self._secure, httponly=True, samesite="lax")

    def _forget(self, answer: Response, name: str, *, path: str) -> None:
        answer.delete_cookie(name, path=self._path(path), secure=self._secure, httponly=True, samesite="lax")

    def _path(self, path: str) -> str:
        return "/" if self._host_only else path

    def _opened(self, sealed: str | None, seconds: int | None = None) -> str:
        try:
            return self._fernet.decrypt((sealed or "").encode(), ttl=seconds).decode()
        except InvalidToken:
            return ""


async def _visitor(request: Request) -> Visitor:
    return await request.app.state.identity.visitor(request)


SignedIn = Annotated[Visitor, Depends(_visitor)]
