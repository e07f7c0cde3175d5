"""Who signs on, and what the facility says of them.

`FacilityUsers` maps a login to the facility's user, groups and admin right, from the database as it is now; every way to sign on
is a sibling that only has to find out the login. `DemoAuthenticator` is the one for demos.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from jupyterhub.auth import Authenticator
from jupyterhub.handlers import BaseHandler
from sqlalchemy import select
from sqlalchemy.orm import selectinload
from tornado import web
from traitlets import Bool, Int

from spawner.settings import OpenStackSettings
from spawner.surroundings import sign_in

from . import records, revoking
from .acting import ActingServerHandler, ActingUserHandler
from .database.tables import User, UserRole, now
from .errors import HutchError
from .facility import Facility
from .group_sync import GroupSync

# JupyterHub's own admin right includes opening anybody's notebook and making anybody's tokens; its scope `admin:users` includes
# reading the refresh tokens of their sign-ons, and taking somebody's name. To open is the owner's to grant (see access.MAY), so
# a facility's admins get a role of ours, by their group
ADMIN_ROLE = {
    "name": "facility-admin",
    "description": "Sees and runs everybody's instances, without opening them",
    "scopes": [
        *("admin-ui", "users", "delete:users", "read:roles:users", "admin:servers"),
        *("read:groups", "list:groups", "read:hub", "read:metrics"),
    ],
    "groups": ["role-admin"],
}


class PortalHandler(BaseHandler):
    """Pages of JupyterHub whose place the portal takes: there is no unnamed server to be started from them."""

    async def get(self, *_path: str) -> None:
        self.redirect(self.settings["template_vars"]["portal_url"])

    post = get


class FacilityUsers(Authenticator):
    """A login becomes a user of JupyterHub if, and as long as, the user office knows it."""

    manage_groups = Bool(True).tag(config=True)
    # whom the facility does not know is refused in `facility_model`, with a page that says so
    allow_all = Bool(True).tag(config=True)
    auth_refresh_age = Int(30, help="Read roles and groups anew after this many seconds. Default: 30.").tag(config=True)
    # who has left the facility has left with their API tokens too
    auth_refresh_strict = Bool(True).tag(config=True)

    @property
    def facility(self) -> Facility:
        return Facility.of(self.config)

    async def facility_model(self, login: str) -> dict[str, Any] | None:
        """JupyterHub's model of a person; None when the facility does not know the login (any more)."""
        groups = (await self.facility.ask(lambda session: records.groups_of(session, [login], now()))).get(login)
        return None if groups is None else {"name": login, "admin": False, "groups": sorted(groups)}

    async def known(self, login: str) -> dict[str, Any]:
        """The same, raising 403 with whom to ask."""
        model = await self.facility_model(login)
        if model is None:
            raise web.HTTPError(403, self.unknown(login))
        return model

    def unknown(self, who: str) -> str:
        """What somebody reads whom the facility does not know."""
        hutch = self.facility.hutch
        return f"{who} is not known to the user office of {hutch.facility_name}.{hutch.whom_to_ask}"

    async def refresh_user(self, user: Any, handler: Any = None) -> bool | dict[str, Any]:
        if handler is not None:
            # JupyterHub 6.1.1 reads this when a browser's session has ended, and trips, as only requests with a token have it
            handler._token_authenticated = getattr(handler, "_token_authenticated", False)
        return await self.goes_on(user, handler) and (await self.facility_model(user.name) or False)

    async def goes_on(self, user: Any, handler: Any) -> bool:
        """Whether the sign-on itself still holds. handler: the request's, or None outside of any."""
        return True

    def delete_user(self, user: Any) -> None:
        """JupyterHub cannot delete a user whose servers run, and finds that out half-way."""
        if active := sorted(spawner.name for spawner in user.spawners.values() if spawner.active):
            raise web.HTTPError(400, f"{user.name} has instances that are not stopped. Stop {', '.join(active)} first.")
        super().delete_user(user)

    def get_handlers(self, app: Any) -> list[tuple[str, type]]:
        # opens the database: what is wrong with it is said at the hub's start, not at the first sign-on
        _ = self.facility.deployment_id
        beside = [GroupSync(app, self.facility).follow(self.auth_refresh_age)]
        if issubclass(app.spawner_class, OpenStackSettings):
            beside.append(sign_in(app.spawner_class(config=app.config)))
        self._beside = [asyncio.create_task(work) for work in beside]
        # these come before JupyterHub's own
        return [
            *revoking.HANDLERS,
            (r"/api/users/([^/]+)", ActingUserHandler),
            (r"/api/users/([^/]+)/server", ActingServerHandler),
            (r"/api/users/([^/]+)/servers/([^/]*)", ActingServerHandler),
            (r"/home", PortalHandler),
            (r"/spawn", PortalHandler),
            (r"/spawn/([^/]+)(?:/.*)?", PortalHandler),
            *super().get_handlers(app),
        ]


class DemoAuthenticator(FacilityUsers):
    """Signs anybody on as any example user, without a password: on a loopback address only."""

    def get_handlers(self, app: Any) -> list[tuple[str, type]]:
        for address in filter(None, (app.bind_url, app.subdomain_host, app.public_url)):
            refuse_beyond_loopback(address)
        return super().get_handlers(app)

    async def authenticate(self, handler: Any, data: dict[str, str]) -> dict[str, Any]:
        return await self.known(data["username"])

    def example_users(self) -> Sequence[User]:
        """Everybody, for the sign-on page."""
        held = selectinload(User.roles.and_(UserRole.held(now())))
        query = select(User).where(User.ended_at.is_(None)).order_by(User.id).options(held, selectinload(User.affiliation))
        return self.facility.ask_here(lambda session: session.scalars(query).all())


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach the URL."""
    host = urlsplit(address).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def refuse_beyond_loopback(address: str) -> None:
    """Raises HutchError unless only this machine can reach the address."""
    if not is_loopback(address):
        raise HutchError(
            f"DemoAuthenticator lets anybody in as anybody, so it does not run on {address}. "
            "Set c.JupyterHub.bind_url to http://localhost:8000, or choose a real authenticator_class."
        )
