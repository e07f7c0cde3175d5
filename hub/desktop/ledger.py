"""What a relay writes down: who was at which desktop, for how long, and how much went through. Never what.

A row is of one connection with one right; another right begins another row.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from ..database.tables import DesktopSession, EtlRun, InstanceEvent, UserGroup, UserRole
from . import relay_of

RELAY_ENDED = "relay-ended"
# how long people have to come back after a restart, as if they had never left
BACK_WITHIN = timedelta(seconds=20)
COLUMNS = ("bytes_out", "bytes_in", "keys", "pointers")
AT_THE_SAME_TIME = 100


class Newest(NamedTuple):
    """How far the records have come."""

    event: int = 0
    lately: int = 0
    run: int = 0
    expired: int = 0


def write(session: Session, rows: Sequence[DesktopSession]) -> list[int]:
    """Adds or updates the rows, in one transaction, and returns their ids. What is given stays outside of the session."""
    kept = [session.merge(row) for row in rows]
    session.flush()
    return [row.id for row in kept]


def close_open(session: Session, number: int, relays: int, at: datetime) -> dict[str, dict[str, bool]]:
    """Ends what a relay of this number left open, and says who was there just before: {instance: {user: whether they drove}}."""
    there: dict[str, dict[str, bool]] = {}
    lately = select(DesktopSession).where(or_(DesktopSession.ended_at.is_(None), DesktopSession.ended_at > at - BACK_WITHIN))
    for row in session.scalars(lately.order_by(DesktopSession.id)):
        if relay_of(row.instance_id, relays) != number:
            continue
        people = there.setdefault(row.instance_id, {})
        # the last of somebody's rows tells: they may have come back since, and left
        people.pop(row.user_id, None)
        if row.ended_at is None:
            row.ended_at, row.end_reason = at, RELAY_ENDED
        if row.end_reason == RELAY_ENDED:
            people[row.user_id] = row.control
    return there


def newest(session: Session, at: datetime) -> Newest:
    """Changes when somebody's rights may have: by an event of an instance, a run, or a part in the facility that has expired."""
    roles, groups = (select(func.count()).where(table.expires_at <= at).scalar_subquery() for table in (UserRole, UserGroup))
    last, run = (select(func.coalesce(func.max(table.id), 0)).scalar_subquery() for table in (InstanceEvent, EtlRun))
    # of two that are written at the same time, the older can come into sight after the newer
    lately = select(func.count()).where(InstanceEvent.id > last - AT_THE_SAME_TIME).scalar_subquery()
    return Newest(*session.execute(select(last, lately, run, roles + groups)).one())


def concerned(session: Session, since: Newest) -> set[str]:
    """The instances to which something happened."""
    events = select(InstanceEvent.instance_id).where(InstanceEvent.id > since.event - AT_THE_SAME_TIME)
    return set(session.scalars(events.distinct()))
