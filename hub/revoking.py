"""What JupyterHub shares: owners only with drivers, and a share that ends there ends in the running notebook too.

JupyterHub only takes the permission away. The notebook would believe the old one for five minutes, and for ever where a connection
is open, so its agent is told (`spawner.agent_client`). JupyterHub API: `/shares/...`, `/users/{name}/shared/...`.

Shares with groups are left out, because nobody gets in by them: JupyterHub 6.1 does not count them for tokens, and whoever comes to
a notebook comes with one (jupyterhub.scopes.get_scopes_for).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from inspect import isawaitable
from typing import Any

from jupyterhub import orm
from jupyterhub.apihandlers.shares import ServerShareAPIHandler, ServerShareCodeAPIHandler, UserShareAPIHandler, _ShareAPIHandler
from jupyterhub.scopes import parse_scopes
from tornado import web

from spawner.agent_client import AgentError

from .database.tables import now
from .sharing import may_share_notebook

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.2, 30.0
_tasks: set[asyncio.Task[None]] = set()


def send_away(spawner: Any, names: Iterable[str]) -> None:
    """Begins it, and waits for nothing. Who still has access by other means comes in again by themselves."""
    for name in names:
        task = asyncio.get_running_loop().create_task(_send_away(spawner, name))
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)


async def _send_away(spawner: Any, name: str) -> None:
    pause = FIRST_PAUSE_SECONDS
    # a notebook that is not served has nobody in it
    while spawner.active and getattr(spawner, "fingerprint", ""):
        try:
            await spawner.around.agents.send_away(spawner.address, spawner.fingerprint, name)
        except AgentError as error:
            spawner.log.warning("%s: %s is not sent away yet: %s", spawner._log_name, name, error)
        else:
            spawner.log.info("%s: %s was sent away", spawner._log_name, name)
            return
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE_SECONDS)


class _Revoking(_ShareAPIHandler):
    """Mixed in before JupyterHub's handlers by which shares end; the last names of each path are the owner and the server."""

    async def patch(self, *names: str) -> None:
        await self._watch(super().patch, names)

    async def delete(self, *names: str) -> None:
        await self._watch(super().delete, names)

    async def _watch(self, revoke: Any, names: tuple[str, ...]) -> None:
        spawner = self._lookup_spawner(*names[-2:], raise_404=False)
        before = self._guests(spawner)
        done = revoke(*names)
        if isawaitable(done):
            await done
        if gone := before - self._guests(spawner):
            send_away(self.users[spawner.user].spawners[spawner.name], gone)

    def _guests(self, spawner: orm.Spawner | None) -> set[str]:
        shares = self.db.query(orm.Share).filter_by(spawner_id=spawner.id) if spawner else ()
        return {share.user.name for share in shares if share.user}


class ServerShares(_Revoking, ServerShareAPIHandler):
    """All that is shared of a server, or some of it."""

    async def post(self, *names: str) -> None:
        """An owner shares with drivers on record only, and access only, whatever else a token of theirs could do."""
        if self.current_user and self.current_user.name == names[0]:
            wish = self.get_json_body() or {}
            guest, facility = str(wish.get("user")), self.authenticator.facility
            terms = facility.hutch.terms(now())
            decision = await facility.ask(lambda session: may_share_notebook(session, names[0], names[1], guest, terms))
            if not decision or set(wish) != {"user"}:
                raise web.HTTPError(403, decision.reason or "Only access is shared, and with one person at a time.")
            # that they know each other is on record: no user needs to be able to ask for anybody's name, no token to open servers
            asked = {f"read:users:name!user={guest}", f"access:servers!server={'/'.join(names)}"}
            self.parsed_scopes = parse_scopes(frozenset({*self.expanded_scopes, *asked}))
        await super().post(*names)


class UserShare(_Revoking, UserShareAPIHandler):
    """What is shared with one user."""


class ServerCodes(ServerShareCodeAPIHandler):
    """Whoever has JupyterHub's own codes gets in, so owners make none: the portal's invitations ask the rules."""

    async def post(self, *names: str) -> None:
        if self.current_user and self.current_user.name == names[0]:
            raise web.HTTPError(403, "Codes are not given out here. Share it from its page in the portal.")
        await super().post(*names)


HANDLERS = [
    (r"/api/shares/([^/]+)/([^/]*)", ServerShares),
    (r"/api/share-codes/([^/]+)/([^/]*)", ServerCodes),
    (r"/api/users/([^/]+)/shared/([^/]+)/([^/]*)", UserShare),
]
