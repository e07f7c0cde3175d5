"""What people are to be told: on their pages until they have seen it, and once by mail."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from .database.tables import FacilityRole, Notice, User, UserRole, now

# what waits longer is no longer news: a site that begins to send mail does not begin with old ones
MAIL_WITHIN = timedelta(days=2)


def tell(session: Session, user_id: str, subject: str, text: str) -> None:
    session.add(Notice(user_id=user_id, subject=subject[:250], text=text))


def tell_admins(session: Session, subject: str, text: str) -> None:
    for user_id in session.scalars(select(UserRole.user_id).where(UserRole.role == FacilityRole.ADMIN, UserRole.held(now()))):
        tell(session, user_id, subject, text)


def unseen(session: Session, user_id: str) -> list[Notice]:
    """Newest first."""
    query = select(Notice).where(Notice.user_id == user_id, Notice.seen_at.is_(None))
    return list(session.scalars(query.order_by(Notice.id.desc())))


def mark_seen(session: Session, notice_id: int, user_id: str, at: datetime) -> None:
    session.execute(update(Notice).where(Notice.id == notice_id, Notice.user_id == user_id).values(seen_at=at))


def waiting(session: Session) -> list[tuple[Notice, str]]:
    """Those that are still to be mailed, oldest first, with the address; who has none reads them on their pages."""
    query = select(Notice, User.email).join(User, User.id == Notice.user_id).where(Notice.mailed_at.is_(None))
    rows = session.execute(query.where(Notice.at > now() - MAIL_WITHIN).order_by(Notice.id))
    return [(notice, address) for notice, address in rows if address]


def claim(session: Session, notice_id: int) -> bool:
    """Before it is sent, so that it is never sent twice: of two who would send it, and again after somebody was cut off."""
    query = update(Notice).where(Notice.id == notice_id, Notice.mailed_at.is_(None)).values(mailed_at=now())
    return session.scalar(query.returning(Notice.id)) is not None


def unclaim(session: Session, notice_id: int) -> None:
    """It was certainly not sent."""
    session.execute(update(Notice).where(Notice.id == notice_id).values(mailed_at=None))
