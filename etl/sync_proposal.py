"""One proposal with its sessions and teams, as user portals send it to ISPyB: its sessions and their teams are replaced.

ref: webservices/userportalsync/sync_proposal of py-ispyb, and its rules. What else is sent is not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator
from sqlalchemy import Engine, or_, select

from etl.frames import Extract, Scope
from etl.push import Row, extract_of
from hub.database.tables import Experiment, Instrument, MemberOf, User


class _Body(BaseModel):
    model_config = ConfigDict(coerce_numbers_to_str=True)
    one_of: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="after")
    def _can_be_told_apart(self) -> _Body:
        if self.one_of and not any(getattr(self, name) for name in self.one_of):
            raise ValueError(f"needs {' or '.join(self.one_of)}")
        return self


class Laboratory(_Body):
    laboratoryExtPk: str | None = None
    name: str
    city: str | None = None
    country: str | None = None

    @property
    def id(self) -> str:
        return self.laboratoryExtPk or self.name


class Person(_Body):
    one_of = ("login", "externalId")
    login: str | None = None
    externalId: str | None = None
    givenName: str | None = None
    familyName: str | None = None
    emailAddress: str | None = None
    laboratory: Laboratory | None = None
    session_options: dict[str, Any] = {}

    @property
    def role(self) -> MemberOf:
        said = str(self.session_options.get("role"))
        is_contact = said.startswith("Local Contact")
        leads = said == "Principal Investigator"
        return MemberOf.LOCAL_CONTACT if is_contact else MemberOf.PRINCIPAL_INVESTIGATOR if leads else MemberOf.MEMBER


class Session(_Body):
    one_of = ("externalId", "expSessionPk")
    externalId: str | None = None
    expSessionPk: str | None = None
    startDate: str | None = None
    endDate: str | None = None
    beamLineName: str | None = None
    persons: list[Person] = []


class Proposal(_Body):
    proposalCode: str
    proposalNumber: str
    title: str
    # the first one is the principal investigator
    persons: Annotated[list[Person], Field(min_length=1)]

    @property
    def id(self) -> str:
        return self.proposalCode + self.proposalNumber


class Sync(_Body):
    proposal: Proposal
    sessions: list[Session]

    @property
    def persons(self) -> Iterator[Person]:
        yield from self.proposal.persons
        for session in self.sessions:
            yield from session.persons


@dataclass(frozen=True, slots=True)
class Held:
    """What the database holds of what a body is about. users: by id, of this source."""

    experiments: frozenset[str]
    instruments: frozenset[str]
    users: dict[str, Row]


def held(engine: Engine, source: str, body: Sync) -> Held:
    fields = (User.id, User.login, User.given_name, User.family_name, User.email, User.orcid, User.affiliation_id)
    named = or_(User.login.in_({one.login for one in body.persons}), User.id.in_({one.externalId for one in body.persons}))
    with engine.connect() as connection:
        of_proposal = select(Experiment.id).where(Experiment.source == source, Experiment.proposal_id == body.proposal.id)
        people = connection.execute(select(*fields).where(User.source == source, named)).mappings()
        return Held(
            frozenset(connection.scalars(of_proposal)),
            frozenset(connection.scalars(select(Instrument.id).where(Instrument.ended_at.is_(None)))),
            {row["id"]: dict(row) for row in people},
        )


def to_extract(body: Sync, held: Held) -> Extract:
    """Who is known by a login keeps the id that they have; what a body leaves out of a person stays as it is held."""
    ids: dict[str | None, str] = {one.login: one.externalId for one in body.persons if one.login and one.externalId}
    ids |= {row["login"]: key for key, row in held.users.items()}

    def key(person: Person) -> str:
        return str(ids.get(person.login) or person.externalId or person.login)

    laboratories = {one.laboratory.id: one.laboratory for one in body.persons if one.laboratory}
    users: dict[str, Row] = {}
    for one in body.persons:
        said = {"login": one.login, "given_name": one.givenName, "family_name": one.familyName, "email": one.emailAddress}
        said["affiliation_id"] = one.laboratory.id if one.laboratory else None
        row = users.setdefault(key(one), dict(held.users.get(key(one), {})))
        row |= {name: value for name, value in said.items() if value}
    leader, *others = body.proposal.persons
    experiments, members = [], []
    for session in body.sessions:
        experiment = f"{body.proposal.id}-{session.externalId or session.expSessionPk}"
        times = {"starts_at": session.startDate, "ends_at": session.endDate}
        experiments.append({"id": experiment, "proposal_id": body.proposal.id, "instrument_id": session.beamLineName, **times})
        team = [(leader, MemberOf.PRINCIPAL_INVESTIGATOR), *((one, one.role) for one in [*others, *session.persons])]
        members += [{"experiment_id": experiment, "user_id": key(one), "role": role} for one, role in team]
    beamlines = {session.beamLineName for session in body.sessions} - held.instruments - {None}
    of_proposal = held.experiments | {str(row["id"]) for row in experiments}
    return extract_of(
        {
            "affiliation": [
                {"id": lab.id, "name": lab.name, "town": lab.city, "country": lab.country} for lab in laboratories.values()
            ],
            "user": [{**row, "id": key} for key, row in users.items()],
            "instrument": [{"id": name, "name": name} for name in beamlines],
            "proposal": [{"id": body.proposal.id, "title": body.proposal.title}],
            "experiment": experiments,
            "experiment_member": members,
        },
        {
            **dict.fromkeys(("affiliation", "user", "instrument", "proposal"), None),
            "experiment": Scope("proposal_id", frozenset({body.proposal.id})),
            "experiment_member": Scope("experiment_id", of_proposal),
        },
        f"sync_proposal {body.proposal.id}",
    )
