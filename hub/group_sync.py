"""JupyterHub's groups follow the facility's records without anybody signing on anew or asking for anything.

It runs inside the hub, because JupyterHub's API refuses to change groups that the authenticator manages. Each page of users is
one query of the hub's database and one, in a thread, of ours; between two users that differ, the event loop goes on.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from jupyterhub import orm
from jupyterhub.metrics import TOTAL_USERS
from jupyterhub.roles import assign_default_roles
from sqlalchemy import exists, select
from sqlalchemy.orm import Session, selectinload

from .database.tables import EtlRun, ExperimentMember, Instance, InstanceExperiment, User, now
from .facility import Facility
from .records import groups_of

PAGE = 50
LOOK_SECONDS = 1.0
# between two users, for everybody else's requests: one takes several turns of the event loop
BREATH_SECONDS = 0.01


def runs_done(session: Session) -> int:
    """Grows with each run that changed the records: the number of the newest, which is given while no other run writes."""
    return session.scalar(select(EtlRun.id).where(EtlRun.outcome == "done").order_by(EtlRun.id.desc()).limit(1)) or 0


def teams_with_instances(session: Session) -> set[str]:
    """Logins of those with whom an instance can be shared: the teams of its experiments."""
    has_instance = exists().where(
        InstanceExperiment.experiment_id == ExperimentMember.experiment_id,
        Instance.id == InstanceExperiment.instance_id,
        Instance.deleted_at.is_(None),
    )
    query = select(User.login).join(ExperimentMember, ExperimentMember.user_id == User.id).distinct()
    return set(session.scalars(query.where(has_instance, User.ended_at.is_(None), ExperimentMember.ended_at.is_(None))))


class GroupSync:
    """app: the running JupyterHub."""

    def __init__(self, app: Any, facility: Facility) -> None:
        self._app, self._facility = app, facility

    async def follow(self, every_seconds: float) -> None:
        """After each run of the ETL at once; what an admin changed, and what expired, at an interval."""
        loop = asyncio.get_running_loop()
        seen, due = -1, 0.0
        while True:
            try:
                done = await self._facility.ask(runs_done)
                if done != seen or loop.time() >= due:
                    await self.refresh()
                    seen, due = done, loop.time() + every_seconds
            except Exception:
                self._app.db.rollback()
                self._app.log.exception("The groups could not be compared with the facility's records; this is tried again")
            await asyncio.sleep(LOOK_SECONDS)

    async def refresh(self) -> None:
        await self._make_users()
        last = 0
        while page := self._page(last):
            names = [name for name, _ in page.values()]
            known = await self._facility.ask(partial(groups_of, logins=names, at=now()))
            wanted = {number: known.get(name, set()) for number, (name, held) in page.items() if held != known.get(name, set())}
            if wanted:
                await self._write(wanted)
            last = max(page)

    async def _write(self, wanted: dict[int, set[str]]) -> None:
        # loaded together and held on to: each for itself would cost the event loop twice as much
        people = select(orm.User).where(orm.User.id.in_(wanted)).options(selectinload(orm.User.groups))
        groups = select(orm.Group).where(orm.Group.name.in_(set().union(*wanted.values())))
        loaded = [self._app.db.scalars(query).all() for query in (people, groups)]
        for user in loaded[0]:
            await asyncio.sleep(BREATH_SECONDS)
            self._app.users[user].sync_groups(sorted(wanted[user.id]))

    def _page(self, last: int) -> dict[int, tuple[str, set[str]]]:
        """The next users of JupyterHub: {id: (name, groups)}."""
        some = select(orm.User.id, orm.User.name).where(orm.User.id > last).order_by(orm.User.id).limit(PAGE).subquery()
        mapping = orm.user_group_map.c
        query = (
            select(some.c.id, some.c.name, orm.Group.name)
            .outerjoin(orm.user_group_map, mapping.user_id == some.c.id)
            .outerjoin(orm.Group, orm.Group.id == mapping.group_id)
        )
        page: dict[int, tuple[str, set[str]]] = {}
        for user_id, name, group in self._app.db.execute(query):
            page.setdefault(user_id, (name, set()))[1].update([group] if group else [])
        return page

    async def _make_users(self) -> None:
        """JupyterHub shares only with users that it has, so whoever could be shared with becomes one before they sign on."""
        wanted = await self._facility.ask(teams_with_instances)
        for name in sorted(wanted - set(self._app.db.scalars(select(orm.User.name).where(orm.User.name.in_(wanted))))):
            await asyncio.sleep(BREATH_SECONDS)
            if orm.User.find(self._app.db, name):
                continue  # signed on meanwhile
            user = orm.User(name=name)
            self._app.db.add(user)
            assign_default_roles(self._app.db, entity=user)
            self._app.db.commit()
            TOTAL_USERS.inc()
