"""One proposal with its sessions and teams, as user portals send it to ISPyB: its sessions and their teams are replaced.

ref: webservices/userportalsync/sync_proposal of py-ispyb, and its rules. What else is sent is not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import AliasPath, BaseModel, ConfigDict, Field, model_validator
from sqlalchemy import Engine, or_, select

from etl.frames import Extract, Scope
from etl.push import Row, extract_of
from hub.database.tables import Experiment, Instrument, MemberOf, User

# what a body may leave out of a person
KEPT = {"login", "given_name", "family_name", "email", "affiliation_id"}


class _Body(BaseModel):
    model_config = ConfigDict(coerce_numbers_to_str=True)
    one_of: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="after")
    def _can_be_told_apart(self) -> _Body:
        if self.one_of and not any(getattr(self, name) for name in self.one_of):
            raise ValueError(f"needs {' or '.join(self.one_of)}")
        return self


class Person(_Body):
    one_of = ("login", "externalId")
    login: str | None = None
    externalId: str | None = None
    given_name: str | None = Field(None, alias="givenName")
    family_name: str | None = Field(None, alias="familyName")
    email: str | None = Field(None, alias="emailAddress")
    affiliation_id: str | None = Field(None, validation_alias=AliasPath("laboratory", "laboratoryExtPk"))
    laboratory: dict[str, Any] | None = None
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
    fields = (getattr(User, name) for name in ("id", "orcid", *KEPT))
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

    laboratories = {one.affiliation_id: one.laboratory or {} for one in body.persons if one.affiliation_id}
    users: dict[str, Row] = {}
    for one in body.persons:
        row = users.setdefault(key(one), dict(held.users.get(key(one), {})))
        row |= one.model_dump(include=KEPT, exclude_none=True)

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
                {"id": one, "name": lab.get("name"), "town": lab.get("city"), "country": lab.get("country")}
                for one, lab in laboratories.items()
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
