"""Keystone v3: who asks, for which project, and where the services are. Passwords, application credentials and tokens."""

import hmac
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from aiohttp import web
from cryptography.fernet import Fernet, InvalidToken

from spawner.devcloud.errors import ApiError, bad_request, forbidden, not_found, unauthenticated
from spawner.devcloud.state import State, new_id

TOKEN_SECONDS = 3600
DOMAIN = {"id": "default", "name": "Default"}
REGION = "devcloud"
NOTE = "devcloud, for demos and tests only"
SERVICES = {
    # type: (name, path of the endpoint)
    "identity": ("keystone", "/identity/v3"),
    "compute": ("nova", "/compute/v2.1"),
    "image": ("glance", "/image"),
    "network": ("neutron", "/network"),
    "block-storage": ("cinder", "/volume/v3"),
    "placement": ("placement", "/placement"),
}


@dataclass(frozen=True, slots=True)
class User:
    id: str
    name: str
    password: str
    project_id: str
    project_name: str
    roles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who a token speaks for. Without a project (an unscoped token) only Keystone listens."""

    user: User
    project_id: str | None
    methods: tuple[str, ...]
    issued: float
    expires: float

    @property
    def is_admin(self) -> bool:
        return "admin" in self.user.roles


class Keystone:
    def __init__(self, state: State, base_url: Callable[[], str]) -> None:
        self._state = state
        self._base_url = base_url
        self.users = [
            self._user("hutch", ("member", "reader")),
            self._user("other", ("member", "reader")),
            self._user("admin", ("admin", "member", "reader")),
        ]
        self.app_credential_id = state.identifier("application credential id")
        self.app_credential_secret = state.secret("application credential secret")
        # As Keystone's, tokens carry what they say and outlive a restart of the service.
        self._fernet = Fernet(state.store.setting("token key", Fernet.generate_key().decode()).encode())
        self._known: dict[str, Identity] = {}
        self._revoked: set[str] = set()

    def _user(self, name: str, roles: tuple[str, ...]) -> User:
        return User(
            id=self._state.identifier(f"user {name}").replace("-", ""),
            name=name,
            password=self._state.secret(f"password of {name}"),
            project_id=self._state.identifier(f"project {name}").replace("-", ""),
            project_name=name,
            roles=roles,
        )

    # Tokens

    def issue(
        self, user: User, project_id: str | None, methods: tuple[str, ...], expires: float | None = None
    ) -> tuple[str, Identity]:
        issued = time.time()
        claims = [user.name, project_id, methods, issued, expires or issued + TOKEN_SECONDS, new_id()]
        token = self._fernet.encrypt(json.dumps(claims).encode()).decode()
        return token, self.identify(token)

    def identify(self, token: str | None) -> Identity:
        if not token or token in self._revoked:
            raise unauthenticated()
        identity = self._known.get(token)
        if identity is None:
            try:
                name, project_id, methods, issued, expires, _ = json.loads(self._fernet.decrypt(token.encode()))
            except (InvalidToken, UnicodeError) as error:
                raise unauthenticated() from error
            user = next(user for user in self.users if user.name == name)
            identity = self._known[token] = Identity(user, project_id, tuple(methods), issued, expires)
        if identity.expires < time.time():
            del self._known[token]
            raise unauthenticated()
        return identity

    def expire_all(self) -> None:
        """Every token so far becomes worthless, as after a change of keys."""
        self._known.clear()
        self._fernet = Fernet(Fernet.generate_key())

    # Authentication

    def _find_user(self, wanted: dict[str, Any]) -> User:
        for user in self.users:
            domain = wanted.get("domain", {})
            if wanted.get("id") == user.id:
                return user
            if wanted.get("name") == user.name and DOMAIN["id"] in (domain.get("id"), (domain.get("name") or "").lower()):
                return user
        raise unauthenticated()

    def _by_password(self, method: dict[str, Any]) -> User:
        user = self._find_user(method["user"])
        if not hmac.compare_digest(user.password.encode(), str(method["user"]["password"]).encode()):
            raise unauthenticated()
        return user

    def _by_app_credential(self, method: dict[str, Any]) -> User:
        user = self.users[0]
        named = method.get("name") == "devcloud-app" and self._find_user(method["user"]) is user
        if not (named or method.get("id") == self.app_credential_id):
            raise ApiError(404, f"Could not find Application Credential: {method.get('id')}.")
        if not hmac.compare_digest(self.app_credential_secret.encode(), str(method["secret"]).encode()):
            raise unauthenticated()
        return user

    def _project(self, user: User, scope: dict[str, Any] | str | None) -> str | None:
        if scope == "unscoped":
            return None
        if not scope:
            return user.project_id
        wanted = scope.get("project") if isinstance(scope, dict) else None
        if not wanted:
            raise bad_request("devcloud knows projects only: scope to a project.")
        if wanted.get("id") == user.project_id or wanted.get("name") == user.project_name:
            return user.project_id
        raise unauthenticated()

    def authenticate(self, body: dict[str, Any]) -> tuple[str, Identity]:
        try:
            identity, scope = body["auth"]["identity"], body["auth"].get("scope")
            methods = tuple(identity["methods"])
            if methods == ("password",):
                user = self._by_password(identity["password"])
                return self.issue(user, self._project(user, scope), methods)
            if methods == ("application_credential",):
                if scope:
                    raise bad_request("Application credentials cannot request a scope.")
                user = self._by_app_credential(identity["application_credential"])
                return self.issue(user, user.project_id, methods)
            if methods == ("token",):
                before = self.identify(identity["token"]["id"])
                # Trading a token for another must not lengthen its life.
                return self.issue(before.user, self._project(before.user, scope), (*before.methods, "token"), before.expires)
        except (KeyError, TypeError, AttributeError) as error:
            raise bad_request(f"Expecting to find {error} in auth. The server could not comply with the request.") from error
        raise unauthenticated()

    # What is shown

    def catalog(self) -> list[dict[str, Any]]:
        return [
            {
                "id": self._state.identifier(f"service {type_}").replace("-", ""),
                "type": type_,
                "name": f"{name} ({NOTE})",
                "endpoints": [
                    {
                        "id": self._state.identifier(f"endpoint {type_} {interface}").replace("-", ""),
                        "interface": interface,
                        "region": REGION,
                        "region_id": REGION,
                        "url": self._base_url() + path,
                    }
                    for interface in ("public", "internal", "admin")
                ],
            }
            for type_, (name, path) in SERVICES.items()
        ]

    def describe(self, identity: Identity, catalog: bool = True) -> dict[str, Any]:
        user = identity.user
        token: dict[str, Any] = {
            "methods": list(identity.methods),
            "user": {"id": user.id, "name": user.name, "domain": DOMAIN, "password_expires_at": None},
            "audit_ids": [],
            "issued_at": precise(identity.issued),
            "expires_at": precise(identity.expires),
        }
        if identity.project_id:
            token["project"] = {"id": user.project_id, "name": user.project_name, "domain": DOMAIN}
            token["is_domain"] = False
            token["roles"] = [{"id": self._state.identifier(f"role {role}").replace("-", ""), "name": role} for role in user.roles]
            if catalog:
                token["catalog"] = self.catalog()
        if identity.methods[0] == "application_credential":
            token["application_credential"] = {"id": self.app_credential_id, "name": "devcloud-app", "restricted": True}
        return {"token": token}

    def clouds_yaml(self) -> dict[str, Any]:
        """What goes into clouds.yaml."""
        auth_url = self._base_url() + "/identity/v3"
        common = {"region_name": REGION, "identity_api_version": "3"}
        domains = {"user_domain_name": "Default", "project_domain_name": "Default"}
        clouds: dict[str, Any] = {}
        for cloud, user in zip(("devcloud", "devcloud-other", "devcloud-admin"), self.users, strict=True):
            auth = {"auth_url": auth_url, "username": user.name, "password": user.password, "project_name": user.project_name}
            clouds[cloud] = common | {"auth": auth | domains}
        credential = {
            "application_credential_id": self.app_credential_id,
            "application_credential_secret": self.app_credential_secret,
        }
        clouds["devcloud-app"] = common | {"auth_type": "v3applicationcredential", "auth": {"auth_url": auth_url} | credential}
        return {"clouds": clouds}

    # Handlers

    def routes(self) -> list[web.RouteDef]:
        prefix = "/identity/v3"
        return [
            web.get("/identity", self.versions),
            web.get("/identity/", self.versions),
            web.get(prefix, self.version),
            web.get(prefix + "/", self.version),
            web.post(prefix + "/auth/tokens", self.create_token),
            web.get(prefix + "/auth/tokens", self.validate_token),  # HEAD too
            web.delete(prefix + "/auth/tokens", self.revoke_token),
            web.get(prefix + "/auth/catalog", self.show_catalog),
            web.get(prefix + "/auth/projects", self.list_projects),
            web.get(prefix + "/projects", self.list_projects),
            web.get(prefix + "/projects/{id}", self.show_project),
        ]

    def _version(self) -> dict[str, Any]:
        return {
            "id": "v3.14",
            "status": "stable",
            "updated": "2020-04-07T00:00:00Z",
            "links": [{"rel": "self", "href": self._base_url() + "/identity/v3/"}],
            "media-types": [{"base": "application/json", "type": "application/vnd.openstack.identity-v3+json"}],
        }

    async def versions(self, request: web.Request) -> web.Response:
        return web.json_response({"versions": {"values": [self._version()]}}, status=300)

    async def version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": self._version()})

    async def create_token(self, request: web.Request) -> web.Response:
        token, identity = self.authenticate(await request.json())
        body = self.describe(identity, catalog="nocatalog" not in request.query)
        return web.json_response(body, status=201, headers={"X-Subject-Token": token, "Vary": "X-Auth-Token"})

    def _subject(self, request: web.Request) -> tuple[str, Identity]:
        asking = self.identify(request.headers.get("X-Auth-Token"))
        subject = request.headers.get("X-Subject-Token", "")
        try:
            identity = self.identify(subject)
        except ApiError as error:
            raise not_found("Could not find token.") from error
        if identity.user is not asking.user and not asking.is_admin:
            raise forbidden("You are not authorized to perform the requested action: identity:validate_token.")
        return subject, identity

    async def validate_token(self, request: web.Request) -> web.Response:
        subject, identity = self._subject(request)
        body = self.describe(identity, catalog="nocatalog" not in request.query)
        return web.json_response(body, headers={"X-Subject-Token": subject, "Vary": "X-Auth-Token"})

    async def revoke_token(self, request: web.Request) -> web.Response:
        subject, _ = self._subject(request)
        self._revoked.add(subject)
        return web.Response(status=204)

    async def show_catalog(self, request: web.Request) -> web.Response:
        self.identify(request.headers.get("X-Auth-Token"))
        return web.json_response({"catalog": self.catalog(), "links": {"self": str(request.url)}})

    def _projects(self, identity: Identity) -> list[dict[str, Any]]:
        seen = self.users if identity.is_admin else [identity.user]
        return [
            {
                "id": user.project_id,
                "name": user.project_name,
                "description": NOTE,
                "domain_id": DOMAIN["id"],
                "parent_id": DOMAIN["id"],
                "enabled": True,
                "is_domain": False,
                "tags": [],
                "options": {},
                "links": {"self": f"{self._base_url()}/identity/v3/projects/{user.project_id}"},
            }
            for user in seen
        ]

    async def list_projects(self, request: web.Request) -> web.Response:
        identity = self.identify(request.headers.get("X-Auth-Token"))
        name = request.query.get("name")
        projects = [each for each in self._projects(identity) if name in (None, each["name"])]
        return web.json_response({"projects": projects, "links": {"self": str(request.url), "next": None, "previous": None}})

    async def show_project(self, request: web.Request) -> web.Response:
        identity = self.identify(request.headers.get("X-Auth-Token"))
        wanted = request.match_info["id"]
        for project in self._projects(identity):
            if project["id"] == wanted:
                return web.json_response({"project": project})
        raise not_found(f"Could not find project: {wanted}.")


def precise(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
