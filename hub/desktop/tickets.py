"""Tickets: who was allowed in by the portal shows one to the relay, once and at once. Only a ticket's hash is kept."""

from __future__ import annotations

import secrets
from datetime import datetime, timedelta

from sqlalchemy import delete
from sqlalchemy.orm import Session

from ..database.tables import DesktopTicket
from ..keys import hashed

VALID_FOR = timedelta(seconds=20)


def issue(session: Session, instance_id: str, user_id: str, at: datetime) -> str:
    ticket = secrets.token_urlsafe(32)
    session.add(DesktopTicket(hash=hashed(ticket), instance_id=instance_id, user_id=user_id, expires_at=at + VALID_FOR))
    return ticket


def redeem(session: Session, ticket: str, instance_id: str, at: datetime) -> str | None:
    """Whose it is; None for what is no ticket, was one, or is for another instance. Whatever it is, it is none afterwards."""
    if session.get(DesktopTicket, hashed(ticket)) is None:
        # strangers who try tickets out do not make others wait to write
        return None
    used = delete(DesktopTicket).where(DesktopTicket.hash == hashed(ticket))
    row = session.execute(used.returning(DesktopTicket.instance_id, DesktopTicket.user_id, DesktopTicket.expires_at)).first()
    return row.user_id if row and row.instance_id == instance_id and row.expires_at > at else None
