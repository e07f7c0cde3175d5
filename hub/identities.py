"""Which user of the facility somebody is, of whom an OpenID provider says who they are to it.

An account at a provider is known by issuer and subject (OpenID Connect Core 5.7), and nothing else of it is stable. What first
led to a user is pinned to the account as an Identity; an e-mail address leads nowhere, and is only a suggestion to staff.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, delete, func, insert, select
from sqlalchemy.orm import Session

from .database.engine import take_turn
from .database.tables import Identity, IdentitySuggestion, User


@dataclass(frozen=True, slots=True)
class Account:
    """Somebody at a provider. login and orcid are what this provider is trusted with; empty = nothing said, or not believed."""

    issuer: str
    subject: str
    login: str = ""
    orcid: str = ""
    email: str = ""


def pinned_login(session: Session, issuer: str, subject: str) -> str:
    """Whose account this is; empty when nobody's."""
    query = select(User.login).join(Identity, Identity.user_id == User.id)
    return session.scalar(query.where(Identity.issuer == issuer, Identity.subject == subject)) or ""


def link(work: Connection | Session, issuer: str, subject: str, user_id: str, by: str) -> None:
    """Pins an account to a user, in place of whomever it led to. What was suggested of it is settled."""
    for model in (Identity, IdentitySuggestion):
        work.execute(delete(model).filter_by(issuer=issuer, subject=subject))
    work.execute(insert(Identity).values(issuer=issuer, subject=subject, user_id=user_id, linked_by=by))


def recognise(session: Session, account: Account) -> tuple[str, bool]:
    """(the user's login, or "", whether staff have a suggestion). Pins a first match: by login, else by ORCID.

    To be called in a transaction of its own.
    """
    take_turn(session)
    if login := pinned_login(session, account.issuer, account.subject):
        return login, False
    evidence = [
        ("login", account.login, User.login == account.login),
        ("orcid", account.orcid, User.orcid == account.orcid),
        ("e-mail address", account.email, func.lower(User.email) == account.email.lower()),
    ]
    for kind, claimed, condition in evidence:
        people = session.scalars(select(User).where(condition, User.ended_at.is_(None))).all() if claimed else []
        if not people:
            continue
        others = select(Identity).where(Identity.issuer == account.issuer, Identity.user_id.in_([user.id for user in people]))
        taken = session.scalars(others).first() is not None
        if kind != "e-mail address" and len(people) == 1 and not taken:
            link(session, account.issuer, account.subject, people[0].id, kind)
            return people[0].login, False
        reason = f"has the same {kind}" + (", but another account at this provider is already linked" if taken else "")
        for user in people:
            if session.get(IdentitySuggestion, (account.issuer, account.subject, user.id)) is None:
                row = IdentitySuggestion(issuer=account.issuer, subject=account.subject, user_id=user.id, reason=reason)
                session.add(row)
        return "", True
    return "", False
