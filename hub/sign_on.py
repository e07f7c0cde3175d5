"""Single sign-on: one or several OpenID providers side by side, and the pages between the hub and them.

JupyterHub keeps one cookie and one encrypted `auth_state` per user. So a sign-on that ends (somebody signs out here or there, or
the provider does not renew it) ends in all the person's browsers; API tokens and running instances go on, as long as the
facility knows the person.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jupyterhub.crypto import CryptKeeper
from jupyterhub.handlers import BaseHandler, LogoutHandler
from jupyterhub.orm import new_token
from oauthenticator import oauth2
from tornado import web
from tornado.httputil import url_concat
from traitlets import Bool, Dict

from .authenticator import FacilityUsers
from .errors import HutchError
from .identities import Account, pinned_login, recognise
from .keys import fernet_key
from .oidc import OpenIDProvider, ProviderError

BEGIN_AGAIN = "This sign-in was begun in another window, or too long ago. Please begin again."
# of a provider that does not answer
ASK_AGAIN_SECONDS = 60


def nonce_of(verifier: str) -> str:
    """Only the browser that began has the verifier, in its cookie (OpenID Connect Core 15.5.2)."""
    return hashlib.sha256(f"nonce {verifier}".encode()).hexdigest()


class _SignOnPage(BaseHandler):
    """Its refusals lead back to the choice of providers."""

    def render_template(self, name: str, **values: Any) -> Any:
        return super().render_template("sign_on.html" if name == "error.html" else name, **values)

    def provider(self, name: str) -> OpenIDProvider:
        if name not in self.authenticator.by_name:
            raise web.HTTPError(404)
        return self.authenticator.by_name[name]

    @contextmanager
    def explaining(self, provider: OpenIDProvider) -> Iterator[None]:
        try:
            yield
        except ProviderError as error:
            self.log.error("Signing in with %s failed: %s", provider.name, error)
            words = f"Signing in with {provider.login_service} does not work just now. Try again in a few minutes"
            raise web.HTTPError(503, f"{words}{', or sign in another way' * (len(self.authenticator.by_name) > 1)}.") from error


class BeginHandler(_SignOnPage, oauth2.OAuthLoginHandler):
    """Sends the browser to a provider."""

    async def get(self, name: str) -> None:
        provider = self.provider(name)
        with self.explaining(provider):
            await provider.discover()
        verifier, challenge = self._generate_pkce_params()
        state = self._generate_state_id()
        kept = {"state_id": state, "next_url": self._get_next_url(), "code_verifier": verifier, "provider": name}
        self.set_state_cookie(oauth2._serialize_state(kept))
        asked = dict(
            provider.extra_authorize_params, response_type="code", client_id=provider.client_id, scope=" ".join(provider.scope)
        )
        asked |= {"redirect_uri": provider.oauth_callback_url, "state": state, "nonce": nonce_of(verifier)}
        asked |= {"code_challenge": challenge, "code_challenge_method": "S256"}
        self.redirect(url_concat(provider.authorize_url, asked))


class CallbackHandler(_SignOnPage, oauth2.OAuthCallbackHandler):
    """The browser comes back from a provider."""

    async def get(self, name: str) -> None:
        provider = self.provider(name)
        kept = oauth2._deserialize_state(self.get_state_cookie()) if self.get_state_cookie() else {}
        if kept.get("provider") != name or kept["state_id"] != self.get_argument("state", ""):
            raise web.HTTPError(400, BEGIN_AGAIN)
        # RFC 9207: which provider answers
        if self.get_argument("iss", provider.issuer) != provider.issuer:
            raise web.HTTPError(400, BEGIN_AGAIN)
        if error := self.get_argument("error", ""):
            self.log.warning("%s did not sign somebody in: %r", provider.name, error)
            raise web.HTTPError(403, f"{provider.login_service} did not sign you in. You can try again.")
        with self.explaining(provider):
            account, session = await provider.finish(self, nonce_of(kept["code_verifier"]))
        user = await self.login_user({"account": account, "session": session, "provider": provider})
        if user is None:
            raise web.HTTPError(403, self.authenticator.unknown("Your account"))
        self.redirect(self.get_next_url(user))


class SignOutHandler(LogoutHandler):
    """Ends the hub's session first, whatever becomes of the provider's."""

    async def default_handle_logout(self) -> None:
        user = self.current_user
        session = await user.get_auth_state() if user else None
        self._provider = self.authenticator.by_name.get(session["provider"]) if session else None
        await super().default_handle_logout()
        if user:
            await self.authenticator.end_sessions(user)

    async def render_logout_page(self) -> None:
        back = f"{self.authenticator.hub_address}login"
        if there := await self._provider.end_session_url(back) if self._provider else "":
            self.redirect(there)
        else:
            await super().render_logout_page()


class BackChannelLogoutHandler(_SignOnPage):
    """A provider says that somebody has signed out of it (OpenID Connect Back-Channel Logout 1.0)."""

    def check_xsrf_cookie(self) -> None:
        """No browser calls here: what is believed is the token's signature."""

    async def post(self, name: str) -> None:
        provider = self.provider(name)
        self.set_header("Cache-Control", "no-store")
        try:
            subject = await provider.logged_out(self.get_body_argument("logout_token", ""))
        except ProviderError as error:
            self.log.warning("%s was not heard about a sign-out: %s", name, error)
            self.set_status(400)
            self.finish({"error": "invalid_request"})
            return
        login = await self.authenticator.facility.ask(lambda session: pinned_login(session, provider.issuer, subject))
        if login and (user := self.find_user(login)):
            await self.authenticator.end_sessions(user)


class FacilityAuthenticator(FacilityUsers):
    """Signs people on with the facility's OpenID providers."""

    enable_auth_state = Bool(True).tag(config=True)
    providers = Dict(
        help="""
        Offer these OpenID providers on the sign-on page, in this order: {name: {setting: value}}.

        The settings are those of OpenIDProvider. The name is part of the addresses that a provider must know of the hub. An
        example is in docs/sign-on.md.
        """
    ).tag(config=True)

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        folder = Path(self.facility.hutch.state_dir)
        self.by_name = {name: OpenIDProvider(name, settings, folder, parent=self) for name, settings in self.providers.items()}
        if not self.by_name:
            raise HutchError("FacilityAuthenticator has no providers: set c.FacilityAuthenticator.providers, see docs/sign-on.md")
        self.hub_address = ""
        self._asking: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        # a file, so that no process inherits the key with its environment
        keeper = CryptKeeper.instance()
        keeper.keys = keeper.keys or [fernet_key(folder / "auth-state-key")]

    def get_handlers(self, app: Any) -> list[tuple[str, type]]:
        self.hub_address = (app.subdomain_host or app.public_url or app.bind_url).rstrip("/") + app.hub_prefix
        for provider in self.by_name.values():
            provider.oauth_callback_url = f"{self.hub_address}sign-on/{provider.name}/callback"
        return [
            (r"/sign-on/([^/]+)", BeginHandler),
            (r"/sign-on/([^/]+)/callback", CallbackHandler),
            (r"/sign-on/([^/]+)/logout", BackChannelLogoutHandler),
            (r"/logout", SignOutHandler),
            *super().get_handlers(app),
        ]

    def login_url(self, base_url: str) -> str:
        """Where `auto_login` leads: past the choice, when there is one provider."""
        return f"{base_url}sign-on/{next(iter(self.by_name))}" if len(self.by_name) == 1 else super().login_url(base_url)

    async def authenticate(self, handler: BaseHandler, data: dict[str, Any]) -> dict[str, Any]:
        account = data.get("account")
        # a form that somebody made up holds only text
        if not isinstance(account, Account):
            raise web.HTTPError(400, "Please choose how to sign in.")
        login = await self.facility.ask(lambda session: pinned_login(session, account.issuer, account.subject))
        suggested = False
        if not login:
            login, suggested = await self.facility.ask(lambda session: recognise(session, account))
        if not login:
            self.log.warning("%s of %s is nobody here (suggested to staff: %s)", account.subject, account.issuer, suggested)
            raise web.HTTPError(403, self._stranger(data["provider"].login_service, suggested))
        return await self.known(login) | {"auth_state": data["session"]}

    def _stranger(self, service: str, suggested: bool) -> str:
        if not suggested:
            return self.unknown(f"Your account ({service})")
        hutch = self.facility.hutch
        return (
            f"Your account ({service}) is not linked to you yet. Its login or e-mail address is that of somebody whom the user "
            f"office of {hutch.facility_name} knows, which is no proof that it is you. It is noted for the staff, and you can sign "
            f"in with it once they have confirmed it.{hutch.whom_to_ask}"
        )

    async def refresh_user(self, user: Any, handler: Any = None) -> bool | dict[str, Any]:
        model = await super().refresh_user(user, handler)
        if isinstance(model, dict) and sorted(model["groups"]) == sorted(group.name for group in user.groups):
            # JupyterHub would write the auth_state that it has read, over one that was renewed meanwhile
            return True
        return model

    async def goes_on(self, user: Any, handler: Any) -> bool:
        # one at a time: a refresh token that is used twice ends the session
        async with self._asking[user.name]:
            return await self._goes_on(user, handler)

    async def _goes_on(self, user: Any, handler: Any) -> bool:
        session = await user.get_auth_state()
        if session is None:
            # signed out: their API tokens and instances go on
            return getattr(handler, "_token_authenticated", True)
        provider = self.by_name.get(session["provider"])
        if provider and (not session["refresh_token"] or time.time() < session["ask_at"]):
            return True
        try:
            if provider is None:
                raise ProviderError(f"{session['provider']!r} is no provider any more", "invalid_grant")
            renewed = await provider.goes_on(session)
        except ProviderError as error:
            self.log.warning("The sign-on of %s was not renewed: %s", user.name, error)
            if error.code == "invalid_grant":
                await self.end_sessions(user)
                return False
            # that it does not answer says nothing about the person
            renewed = session | {"ask_at": time.time() + ASK_AGAIN_SECONDS}
        await user.save_auth_state(renewed)
        return True

    async def end_sessions(self, user: Any) -> None:
        """Signs a person out of all their browsers, and of the notebooks and pages open in them."""
        user.orm_user.cookie_id = new_token()
        for token in list(user.orm_user.api_tokens):
            if token.session_id:
                user.db.delete(token)
        await user.save_auth_state(None)
