"""One OpenID provider as the hub speaks to it: what it says of itself, who it says somebody is, and whether a sign-on goes on.

Sections named here are of OpenID Connect Core 1.0 unless another standard is named. The requests are OAuthenticator's.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt
from jupyterhub.handlers import BaseHandler
from oauthenticator.generic import GenericOAuthenticator
from tornado.httpclient import HTTPClientError
from tornado.httputil import url_concat
from tornado.web import HTTPError
from traitlets import Bool, Dict, Unicode

from .authenticator import is_loopback
from .errors import HutchError, near
from .identities import Account

# what a signature may be made with: never a shared secret, never nothing (RFC 8725 section 3.1)
ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
CLOCK_SKEW_SECONDS = 60
# the keys are not read again sooner for a token of an unknown one, which anybody could send
KEYS_SECONDS = 60
# of an access token whose provider does not say
LIFETIME_SECONDS = 300
LOGOUT_EVENT = "http://schemas.openid.net/event/backchannel-logout"
DEFAULTS = {"scope": ["openid", "profile", "email"], "http_request_kwargs": {"connect_timeout": 5, "request_timeout": 10}}
CLAIMS = {"login": "", "orcid": "", "email": "email"}
ORCID = re.compile(r"\d{4}-\d{4}-\d{4}-\d{3}[\dX]")


class ProviderError(HutchError):
    """A provider does not answer, refuses (`code` is its word for why, RFC 6749 section 5.2), or says what does not hold."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class OpenIDProvider(GenericOAuthenticator):
    """An entry of c.FacilityAuthenticator.providers. OAuthenticator's settings hold too; its endpoints come by discovery."""

    issuer = Unicode(config=True, help="Name the provider by its issuer, letter by letter as its own metadata does.")
    client_secret_file = Unicode(config=True, help="Read the client's secret from this file, found from c.Hutch.state_dir.")
    claims = Dict(
        config=True,
        help="""
        Take these facts about a person from these claims: {"login": claim, "orcid": claim, "email": claim}; "" = never.

        Default: the claim `email`, and no other. Name a claim for "login" only if this provider alone gives out the facility's
        logins and nobody chooses their own; whoever has the login becomes that user. The same holds for "orcid".
        """,
    )
    end_session = Bool(True, config=True, help="Sign out of the provider too when somebody signs out of the hub, if it can.")

    def __init__(self, name: str, settings: dict[str, Any], folder: Path, **more: Any) -> None:
        _check(name, settings, self.class_trait_names(config=True))
        super().__init__(**(DEFAULTS | settings), **more)
        self.name, self.secret_file = name, folder / self.client_secret_file
        try:
            self.client_secret = self.secret_file.read_text().strip()
        except (OSError, ValueError) as error:
            raise HutchError(f"provider {name!r}: cannot read client_secret_file {self.secret_file}: {error}") from error
        self.metadata: dict[str, Any] = {}
        self._keys: list[jwt.PyJWK] = []
        self._read_at = 0.0

    @contextmanager
    def _asking(self) -> Iterator[None]:
        try:
            yield
        except HTTPClientError as error:
            code = _error_code(error)
            advice = f"; check client_id {self.client_id!r} and {self.secret_file}" if code == "invalid_client" else ""
            raise ProviderError(f"{self.issuer} answered {code or error}{advice}", code) from error
        except (OSError, ValueError, TypeError, KeyError, jwt.PyJWKSetError) as error:
            raise ProviderError(f"{self.issuer} does not answer as an OpenID provider: {error or type(error).__name__}") from error
        except HTTPError as error:
            # OAuthenticator's, and its text may hold tokens
            raise ProviderError(f"{self.issuer} sent no access token") from error

    async def discover(self) -> None:
        """Reads the endpoints and keys anew (Discovery 1.0 section 4). Raises ProviderError."""
        with self._asking():
            found = await self.httpfetch(f"{self.issuer.rstrip('/')}/.well-known/openid-configuration")
            if found["issuer"] != self.issuer:
                raise ProviderError(f"{self.issuer} calls itself {found['issuer']}: write that as its issuer, if it is meant")
            keys = jwt.PyJWKSet.from_dict(await self.httpfetch(found["jwks_uri"])).keys
            self.authorize_url, self.token_url = found["authorization_endpoint"], found["token_endpoint"]
        self.metadata, self._keys, self._read_at = found, keys, time.monotonic()
        self.userdata_url = found.get("userinfo_endpoint", "")
        methods = found.get("token_endpoint_auth_methods_supported", ["client_secret_basic"])
        self.basic_auth = "client_secret_post" not in methods

    async def verified(self, token: str, *required: str) -> dict[str, Any]:
        """The claims of a token that the provider signed for this client, and that has not expired (section 3.1.3.7)."""
        try:
            kid = jwt.get_unverified_header(token).get("kid")
            if not self._signing(kid) and time.monotonic() - self._read_at > KEYS_SECONDS:
                await self.discover()
            if not (keys := self._signing(kid)):
                raise ProviderError(f"{self.issuer} has published no key {kid!r}")
            options: Any = {"require": ["iss", "aud", "exp", "iat", *required]}
            claims = jwt.decode(
                token, keys[0], ALGORITHMS, options, audience=self.client_id, issuer=self.issuer, leeway=CLOCK_SKEW_SECONDS
            )
        except jwt.PyJWTError as error:
            raise ProviderError(f"a token of {self.issuer} does not hold: {error}") from error
        alone = claims["aud"] in (self.client_id, [self.client_id])
        if claims.get("azp", self.client_id if alone else None) != self.client_id:
            raise ProviderError(f"a token of {self.issuer} is meant for {claims['aud']}, not for {self.client_id!r} alone")
        return claims

    def _signing(self, kid: str | None) -> list[jwt.PyJWK]:
        return [key for key in self._keys if kid in (None, key.key_id) and key.public_key_use != "enc"]

    async def finish(self, handler: BaseHandler, nonce: str) -> tuple[Account, dict[str, Any]]:
        """Who has come back with a code, and what `goes_on` asks for later. Raises ProviderError."""
        if not self.metadata:
            await self.discover()
        with self._asking():
            tokens = await self.get_token_info(handler, self.build_access_tokens_request_params(handler))
            claims = await self.verified(tokens["id_token"], "sub")
            if claims.get("nonce") != nonce:
                raise ProviderError(f"a token of {self.issuer} was made for another sign-on (its nonce differs)")
            more = await self.token_to_user(tokens) if self.userdata_url else claims
            # section 5.3.2
            if more["sub"] != claims["sub"]:
                raise ProviderError(f"{self.issuer} gave the details of somebody else")
            return self._account({**more, **claims}), self._session(tokens, claims["sub"])

    def _account(self, claims: dict[str, Any]) -> Account:
        said = {fact: _text(claims.get(name)) for fact, name in {**CLAIMS, **self.claims}.items() if name}
        orcid = ORCID.search(said.get("orcid", "").upper())
        email = "" if claims.get("email_verified") is False else said.get("email", "")
        return Account(self.issuer, claims["sub"], said.get("login", "").lower(), orcid[0] if orcid else "", email)

    def _session(self, tokens: dict[str, Any], subject: str) -> dict[str, Any]:
        """What is kept of a sign-on. The access token is not: nothing more is asked in the person's name."""
        ask_at = time.time() + float(tokens.get("expires_in") or LIFETIME_SECONDS)
        return {"provider": self.name, "subject": subject, "refresh_token": tokens.get("refresh_token"), "ask_at": ask_at}

    async def goes_on(self, session: dict[str, Any]) -> dict[str, Any]:
        """The session, renewed with its refresh token (section 12). Raises ProviderError; code "invalid_grant": it has ended."""
        if not self.metadata:
            await self.discover()
        with self._asking():
            tokens = await self.get_token_info(None, self.build_refresh_token_request_params(session["refresh_token"]))
            if "id_token" in tokens and (await self.verified(tokens["id_token"], "sub"))["sub"] != session["subject"]:
                raise ProviderError(f"{self.issuer} renewed the sign-on of somebody else", "invalid_grant")
            return self._session({"refresh_token": session["refresh_token"], **tokens}, session["subject"])

    async def logged_out(self, token: str) -> str:
        """The subject whom a logout token signs out (Back-Channel Logout 1.0 section 2.6). Raises ProviderError."""
        claims = await self.verified(token, "events", "jti", "sub")
        if not isinstance(claims["events"], dict) or LOGOUT_EVENT not in claims["events"] or "nonce" in claims:
            raise ProviderError(f"{self.issuer} sent a token that is not for signing out")
        return claims["sub"]

    async def end_session_url(self, back: str) -> str:
        """Where to sign out of the provider too, coming `back`; empty when it cannot be done (RP-Initiated Logout 1.0).

        Without an id_token_hint, as that would put personal data into an address: the provider asks before it signs out.
        """
        try:
            await self.discover()
        except ProviderError as error:
            self.log.warning("Signing out of the hub only: %s", error)
            return ""
        address = self.metadata.get("end_session_endpoint", "") if self.end_session else ""
        return url_concat(address, {"client_id": self.client_id, "post_logout_redirect_uri": back}) if address else ""


def _check(name: str, settings: dict[str, Any], known: list[str]) -> None:
    """Raises HutchError unless the settings are whole and only such as are known."""
    if unknown := [key for key in settings if key not in known]:
        raise HutchError(f"provider {name!r} has no setting {unknown[0]!r}{near(unknown[0], known)}")
    if missing := [key for key in ("issuer", "client_id", "client_secret_file") if not settings.get(key)]:
        raise HutchError(f"provider {name!r} needs {', '.join(missing)}: see docs/sign-on.md")
    if strange := sorted(set(settings.get("claims", {})) - set(CLAIMS)):
        raise HutchError(f"provider {name!r} maps {', '.join(strange)}: claims are for {', '.join(CLAIMS)}")
    if urlsplit(settings["issuer"]).scheme != "https" and not is_loopback(settings["issuer"]):
        raise HutchError(f"provider {name!r} is at {settings['issuer']}: an issuer begins with https://")


def _error_code(error: HTTPClientError) -> str:
    try:
        return str(json.loads(error.response.body)["error"]) if error.response else ""
    except (ValueError, TypeError, KeyError):
        return ""


def _text(value: Any) -> str:
    """A claim's text; of a list only if it has one, as proxies send."""
    [value] = value if isinstance(value, list) and len(value) == 1 else [value]
    return value.strip() if isinstance(value, str) else ""
