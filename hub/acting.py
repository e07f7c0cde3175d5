"""JupyterHub's API by which servers end: who asked is noted, and what was asked is written down where JupyterHub would lose it."""

from __future__ import annotations

from contextvars import ContextVar
from datetime import timedelta

from jupyterhub.apihandlers.users import UserAPIHandler, UserServerAPIHandler
from jupyterhub.handlers import BaseHandler
from jupyterhub.scopes import needs_scope
from jupyterhub.spawner import Spawner
from sqlalchemy.orm import Session
from tornado import web

from . import instances, records
from .database.engine import take_turn
from .database.tables import IntentKind

# JupyterHub tells a spawner that it is to stop or go, but not who asked. Whatever a request starts sees what is set here.
_acting: ContextVar[str] = ContextVar("acting_login")
THROUGH = "through JupyterHub"


def acting_login(otherwise: str) -> str:
    """Whose request this is; `otherwise` outside of any."""
    return _acting.get(otherwise)


class _Acting(BaseHandler):
    """Notes who asks. Mixed in before the handlers of JupyterHub's API."""

    async def prepare(self) -> None:
        await super().prepare()
        if self.current_user:
            _acting.set(self.current_user.name)


class ActingUserHandler(_Acting, UserAPIHandler):
    """One user."""


class ActingServerHandler(_Acting, UserServerAPIHandler):
    """One server of a user.

    JupyterHub forgets what it deletes, also when its spawner could not write that down; so it is written down first. And it has
    nothing to stop where it serves nothing, though the launch may be waiting for room, or to be taken back.
    """

    @needs_scope("delete:servers")
    async def delete(self, user_name: str, server_name: str = "") -> None:
        facility, actor, spawner = self.authenticator.facility, acting_login(user_name), self._spawner(user_name, server_name)
        marked = False
        if (self.get_json_body() or {}).get("remove") and not (spawner and spawner.pending == "rename"):
            grace = facility.hutch.delete_grace
            marked = await facility.ask(lambda session: mark_deleted(session, user_name, server_name, actor, grace))
            if spawner:  # its owner may restore it before JupyterHub gets to the end
                spawner.deletion_is_written = True
        try:
            await super().delete(user_name, server_name)
        except web.HTTPError as error:
            if not (marked and error.status_code == 404):
                raise
            self.set_status(204)
        spawner = self._spawner(user_name, server_name)
        if spawner and not (spawner.ready or spawner.pending == "spawn" or getattr(spawner, "_stop_future", None)):
            await facility.ask(lambda session: _stop(session, user_name, server_name, actor))

    def _spawner(self, user_name: str, server_name: str) -> Spawner | None:
        user = self.find_user(user_name)
        return user.spawners[server_name] if user and server_name in user.orm_spawners else None


def mark_deleted(session: Session, login: str, server_name: str, actor: str, grace: timedelta) -> bool:
    """Whether there was something to mark."""
    instance = records.find_instance(session, login, server_name)
    if instance:
        instances.mark_deleted(session, instance, actor, THROUGH, grace)
    return instance is not None


def _stop(session: Session, login: str, server_name: str, actor: str) -> None:
    """Where no spawner writes it down."""
    take_turn(session)
    instance = records.find_instance(session, login, server_name)
    if instance and instances.is_meant_to_run(session, instance.id):
        instances.intend(session, instance.id, IntentKind.STOP, actor, THROUGH)
