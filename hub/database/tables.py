"""The tables: what the facility says (records), what users may pick (catalogue), and what became of it (instances).

Facility records are filled by the ETL and never deleted: what a source no longer names gets an `ended_at`, so that each decision
can still be explained. All times are UTC and timezone-aware.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import uuid4

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, LargeBinary, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from .base import Base, Expiring, Named, Numbered, OfInstance, Record, now


class MemberOf(StrEnum):
    """A person's part in an experiment."""

    PRINCIPAL_INVESTIGATOR = "principal-investigator"
    MEMBER = "member"
    LOCAL_CONTACT = "local-contact"


class FacilityRole(StrEnum):
    ADMIN = "admin"
    STAFF = "staff"
    INSTRUMENT_SCIENTIST = "instrument-scientist"
    INSTRUMENT_CONTROL = "instrument-control"
    IT_SUPPORT = "it-support"
    SCIENTIFIC_COMPUTING = "scientific-computing"
    GUEST = "guest"


class RunKind(StrEnum):
    LOAD = "load"
    # of what changed since the run before
    DELTA = "delta"
    PUSH = "push"
    UNDO = "undo"


class IntentKind(StrEnum):
    LAUNCH = "launch"
    STOP = "stop"
    DELETE = "delete"
    RESTORE = "restore"


class Outcome(StrEnum):
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class EtlRun(Numbered, Base):
    """One load of one source, or the undoing of one.

    counts: {table: {"added", "changed", "ended", "unchanged", "rejected", "skipped"}}.

    outcome: "done", "refused" (by the guard) or "failed" (the source could not be read). A run that is killed leaves no row.
    """

    source: Mapped[str] = mapped_column(index=True)
    adapter: Mapped[str]
    kind: Mapped[str] = mapped_column(default=RunKind.LOAD)
    # the run that this one undid
    undoes: Mapped[int | None] = mapped_column(ForeignKey("etl_run.id"), default=None)
    # of a push: a batch that comes again changes nothing
    batch: Mapped[str | None] = mapped_column(default=None)
    started_at: Mapped[datetime] = mapped_column(default=now)
    finished_at: Mapped[datetime | None]
    outcome: Mapped[str | None]
    counts: Mapped[dict[str, Any]] = mapped_column(default=dict)
    message: Mapped[str | None] = mapped_column(Text)


class EtlChange(Numbered, Base):
    """What a record was before a run changed or ended it; what it added has no row here. For `hutch etl undo` and `history`."""

    run_id: Mapped[int] = mapped_column(ForeignKey("etl_run.id"), index=True)
    record: Mapped[str]
    # the record's key columns, and all its columns before the run
    key: Mapped[dict[str, Any]] = mapped_column(JSON)
    before: Mapped[dict[str, Any]] = mapped_column(JSON)


class EtlRejection(Numbered, Base):
    """The quarantine: a row that a run did not take. place: the file or query; line: the row in it, from 1."""

    run_id: Mapped[int] = mapped_column(ForeignKey("etl_run.id"), index=True)
    record: Mapped[str]
    place: Mapped[str]
    line: Mapped[int]
    key: Mapped[str] = mapped_column(default="")
    field: Mapped[str] = mapped_column(default="")
    reason: Mapped[str] = mapped_column(Text)


# --- facility records


class Affiliation(Named, Record, Base):
    name: Mapped[str]
    town: Mapped[str | None]
    country: Mapped[str | None]


class User(Named, Record, Base):
    """id is the user office's; login is the name at the sign-on and in JupyterHub."""

    login: Mapped[str] = mapped_column(unique=True)
    given_name: Mapped[str]
    family_name: Mapped[str]
    email: Mapped[str | None]
    orcid: Mapped[str | None]
    affiliation_id: Mapped[str | None] = mapped_column(ForeignKey("affiliation.id"))
    # how many instances the source allots; None = by the person's roles, -1 = without limit
    instances_allotted: Mapped[int | None] = mapped_column(default=None)
    # set by an admin, never by a run, and stronger than all else; -1 = without limit
    instance_quota: Mapped[int | None] = mapped_column(default=None)
    core_quota: Mapped[int | None] = mapped_column(default=None)
    # names and addresses were replaced at the person's wish
    forgotten_at: Mapped[datetime | None] = mapped_column(default=None)

    affiliation: Mapped[Affiliation | None] = relationship()
    roles: Mapped[list[UserRole]] = relationship(back_populates="user")

    @property
    def name(self) -> str:
        return f"{self.given_name} {self.family_name}".strip()


class Instrument(Named, Record, Base):
    name: Mapped[str]
    description: Mapped[str | None] = mapped_column(Text)


class Proposal(Named, Record, Base):
    title: Mapped[str] = mapped_column(Text)
    summary: Mapped[str | None] = mapped_column(Text)
    url: Mapped[str | None] = mapped_column(Text)
    doi: Mapped[str | None]
    # the end of the embargo: from then on its data is open to all; None = never
    public_at: Mapped[datetime | None]


class Experiment(Named, Record, Base):
    """One visit: a proposal, an instrument, dates. A missing date is an open end."""

    proposal_id: Mapped[str] = mapped_column(ForeignKey("proposal.id"), index=True)
    instrument_id: Mapped[str] = mapped_column(ForeignKey("instrument.id"), index=True)
    title: Mapped[str | None] = mapped_column(Text)
    url: Mapped[str | None] = mapped_column(Text)
    doi: Mapped[str | None]
    starts_at: Mapped[datetime | None]
    ends_at: Mapped[datetime | None]

    proposal: Mapped[Proposal] = relationship()
    instrument: Mapped[Instrument] = relationship()
    members: Mapped[list[ExperimentMember]] = relationship()


class ExperimentMember(Record, Base):
    experiment_id: Mapped[str] = mapped_column(ForeignKey("experiment.id"), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("user.id"), primary_key=True, index=True)
    role: Mapped[str] = mapped_column(default=MemberOf.MEMBER)

    user: Mapped[User] = relationship()


class InstrumentScientist(Record, Base):
    instrument_id: Mapped[str] = mapped_column(ForeignKey("instrument.id"), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("user.id"), primary_key=True, index=True)


class UserRole(Expiring, Base):
    """A facility role."""

    user_id: Mapped[str] = mapped_column(ForeignKey("user.id"), primary_key=True)
    role: Mapped[str] = mapped_column(primary_key=True)

    user: Mapped[User] = relationship(back_populates="roles")


class UserGroup(Expiring, Base):
    """A person in a group of people, such as a school or a project."""

    user_id: Mapped[str] = mapped_column(ForeignKey("user.id"), primary_key=True)
    group: Mapped[str] = mapped_column(primary_key=True, index=True)


# --- who is who


class Identity(Base):
    """Somebody as another system knows them: the `sub` of an OIDC issuer, or a person's id in a source (issuer `source:<name>`)."""

    issuer: Mapped[str] = mapped_column(primary_key=True)
    subject: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("user.id"), index=True)
    linked_at: Mapped[datetime] = mapped_column(default=now)
    # "login", "orcid", "account" or "source", by which it was recognised, or "staff:NAME" who confirmed it
    linked_by: Mapped[str]


class IdentitySuggestion(Base):
    """Somebody whom only an e-mail address or a name connects with a user: for staff to confirm, never believed by itself."""

    issuer: Mapped[str] = mapped_column(primary_key=True)
    subject: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("user.id"), primary_key=True, index=True)
    reason: Mapped[str] = mapped_column(Text)
    since: Mapped[datetime] = mapped_column(default=now)


class Notice(Numbered, Base):
    """Something that one person is to be told, on their pages and by mail."""

    user_id: Mapped[str] = mapped_column(ForeignKey("user.id"), index=True)
    at: Mapped[datetime] = mapped_column(default=now)
    subject: Mapped[str]
    text: Mapped[str] = mapped_column(Text)
    seen_at: Mapped[datetime | None]
    # None while it waits to be sent
    mailed_at: Mapped[datetime | None]


# --- catalogue


class Plan(Named, Record, Base):
    """A Glance image and a Nova flavor (each by name or id) under one name that users pick.

    limits: who may pick it: those for whom one of the entries holds; none = everybody. An entry holds when all that it names
    holds: {"instruments": [id], "roles": [name], "groups": [name], "from": moment, "until": moment}.
    lifetimes: {role or group, or "" for everybody: days}; none = the site's.
    places: names of the site's places where it may be launched, the first that has room; none = that of the spawner's own settings.
    """

    name: Mapped[str]
    description: Mapped[str | None] = mapped_column(Text)
    image: Mapped[str]
    flavor: Mapped[str]
    cores: Mapped[int]
    memory_mb: Mapped[int]
    position: Mapped[int] = mapped_column(default=100)
    limits: Mapped[list[dict[str, Any]]] = mapped_column(JSON, default=list)
    lifetimes: Mapped[dict[str, float]] = mapped_column(JSON, default=dict)
    places: Mapped[list[str]] = mapped_column(JSON, default=list)


# --- instances

LIVE = text("deleted_at IS NULL")


class Instance(Base):
    """One running environment: one named server of JupyterHub, one server in the cloud, which carries `id` in its metadata."""

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=lambda: str(uuid4()))
    owner_id: Mapped[str] = mapped_column(ForeignKey("user.id"), index=True)
    server_name: Mapped[str]
    display_name: Mapped[str]
    plan_id: Mapped[str] = mapped_column(ForeignKey("plan.id"))
    # which of the site's places has its server; written before the server is created. "" = that of the spawner's own settings
    place: Mapped[str] = mapped_column(default="")
    created_at: Mapped[datetime] = mapped_column(default=now)
    ends_at: Mapped[datetime | None]
    # first time that it was handed to its owner: before that, its disk holds nothing of the user's
    first_ready_at: Mapped[datetime | None]
    # marked for deletion; the steward deletes the server at purge_at, and notes it in purged_at
    deleted_at: Mapped[datetime | None]
    purge_at: Mapped[datetime | None]
    purged_at: Mapped[datetime | None]
    # what becomes of the others at the desktop when the owner leaves it: "disconnect", "lock" or "stay"
    when_owner_leaves: Mapped[str] = mapped_column(default="disconnect")
    # while the owner is not there too
    members_enter_freely: Mapped[bool] = mapped_column(default=False)
    thumbnails: Mapped[bool] = mapped_column(default=False)

    owner: Mapped[User] = relationship()
    plan: Mapped[Plan] = relationship()
    members: Mapped[list[InstanceMember]] = relationship()
    experiments: Mapped[list[Experiment]] = relationship(secondary="instance_experiment")
    intents: Mapped[list[Intent]] = relationship(back_populates="instance", order_by="Intent.id")
    events: Mapped[list[InstanceEvent]] = relationship(order_by="InstanceEvent.id")

    __table_args__ = (
        # a name is free again as soon as its instance is marked for deletion
        Index("uq_instance_live_name", "owner_id", "server_name", unique=True, sqlite_where=LIVE, postgresql_where=LIVE),
    )


class InstanceMember(Base):
    """role: "owner", "driver", "viewer" or "support" (hub.access.Part)."""

    instance_id: Mapped[str] = mapped_column(ForeignKey("instance.id"), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("user.id"), primary_key=True, index=True)
    role: Mapped[str]
    since: Mapped[datetime] = mapped_column(default=now)
    ended_at: Mapped[datetime | None]

    user: Mapped[User] = relationship()


class InstanceExperiment(Base):
    instance_id: Mapped[str] = mapped_column(ForeignKey("instance.id"), primary_key=True)
    experiment_id: Mapped[str] = mapped_column(ForeignKey("experiment.id"), primary_key=True, index=True)

    instance: Mapped[Instance] = relationship(overlaps="experiments")


class Intent(Numbered, OfInstance, Base):
    """What somebody wants of an instance, written before anything is asked of the cloud. The newest one is in force.

    outcome is None while it is being carried out; message is the plain sentence for people when it failed.
    """

    kind: Mapped[str]
    actor: Mapped[str]
    reason: Mapped[str] = mapped_column(Text, default="")
    asked_at: Mapped[datetime] = mapped_column(default=now)
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str | None]
    stage: Mapped[str | None]
    message: Mapped[str | None] = mapped_column(Text)
    # the cloud's own words and the end of the console log, for those who may see them
    detail: Mapped[str | None] = mapped_column(Text)

    instance: Mapped[Instance] = relationship(back_populates="intents")


class InstanceEvent(Numbered, OfInstance, Base):
    """The history of an instance; rows are only ever added."""

    intent_id: Mapped[int | None] = mapped_column(ForeignKey("intent.id"), index=True)
    at: Mapped[datetime] = mapped_column(default=now)
    kind: Mapped[str]
    actor: Mapped[str] = mapped_column(default="")
    seconds: Mapped[float | None]
    message: Mapped[str] = mapped_column(Text, default="")

    # the last launches are looked for in the history of all instances
    __table_args__ = (Index("ix_instance_event_kind_id", "kind", "id"),)


class LaunchWait(Base):
    """A launch that waits for room in the cloud: its intent stays open, and the steward posts it to the hub when its turn comes.

    reason: "quota" or "capacity". tries: how often it was posted; whoever posts it claims it by counting on.
    """

    intent_id: Mapped[int] = mapped_column(ForeignKey("intent.id"), primary_key=True)
    since: Mapped[datetime] = mapped_column(default=now)
    reason: Mapped[str] = mapped_column(Text)
    tries: Mapped[int] = mapped_column(default=0)
    tried_at: Mapped[datetime | None]

    intent: Mapped[Intent] = relationship()


# --- desktops


class SupportAccess(Numbered, OfInstance, Base):
    """Support asks to be let in, with a reason; the owner answers with a right until a moment, or refuses.

    right: "view" or "control"; None while it is not answered, or when it was refused. ended_at: refused, ended or withdrawn.
    """

    user_id: Mapped[str] = mapped_column(ForeignKey("user.id"))
    reason: Mapped[str] = mapped_column(Text)
    asked_at: Mapped[datetime] = mapped_column(default=now)
    answered_at: Mapped[datetime | None]
    right: Mapped[str | None]
    until: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    answered_by: Mapped[str | None] = mapped_column(ForeignKey("user.id"))

    user: Mapped[User] = relationship(foreign_keys=[user_id])
    instance: Mapped[Instance] = relationship()


class Invitation(Numbered, OfInstance, Base):
    """A link by which people become members: whoever is the first to follow it (one_time), or everybody until it expires."""

    # SHA-256 of the code, which is kept nowhere
    code_hash: Mapped[str] = mapped_column(unique=True)
    # driver or viewer
    role: Mapped[str]
    one_time: Mapped[bool]
    created_by: Mapped[str] = mapped_column(ForeignKey("user.id"))
    created_at: Mapped[datetime] = mapped_column(default=now)
    expires_at: Mapped[datetime]
    used_at: Mapped[datetime | None]
    used_by: Mapped[str | None] = mapped_column(ForeignKey("user.id"))
    revoked_at: Mapped[datetime | None]

    instance: Mapped[Instance] = relationship()


class DesktopTicket(OfInstance, Base):
    """Lets one person in to one desktop, once and at once. hash: SHA-256 of the ticket, which is kept nowhere."""

    hash: Mapped[str] = mapped_column(primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("user.id"))
    expires_at: Mapped[datetime]


class DesktopSession(Numbered, OfInstance, Base):
    """One person at one desktop, with one right; what they typed is counted, never kept. bytes_out: to the browser."""

    user_id: Mapped[str] = mapped_column(ForeignKey("user.id"), index=True)
    part: Mapped[str]
    control: Mapped[bool]
    started_at: Mapped[datetime] = mapped_column(default=now)
    ended_at: Mapped[datetime | None]
    end_reason: Mapped[str] = mapped_column(default="")
    bytes_out: Mapped[int] = mapped_column(BigInteger, default=0)
    bytes_in: Mapped[int] = mapped_column(BigInteger, default=0)
    keys: Mapped[int] = mapped_column(BigInteger, default=0)
    pointers: Mapped[int] = mapped_column(BigInteger, default=0)
    last_input_at: Mapped[datetime | None]


class Thumbnail(Base):
    """A small picture of an instance's desktop, where its owner wants one."""

    instance_id: Mapped[str] = mapped_column(ForeignKey("instance.id"), primary_key=True)
    taken_at: Mapped[datetime] = mapped_column(default=now)
    picture: Mapped[bytes] = mapped_column(LargeBinary)


# --- the cloud, and this deployment


class CloudRoom(Base):
    """What was free in one place of the cloud when the steward looked last; `hub.capacity` reads it."""

    place: Mapped[str] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(default=now)
    reading: Mapped[dict[str, Any]] = mapped_column(JSON)


class CloudFinding(Numbered, Base):
    """Where the cloud differs from what is on record, for as long as it does (ended_at is None)."""

    place: Mapped[str] = mapped_column(default="")
    # server, port, volume or floating-ip; resource_id is the cloud's
    kind: Mapped[str]
    resource_id: Mapped[str] = mapped_column(index=True)
    state: Mapped[str]
    # as the resource's metadata says; it need not be on record
    instance_id: Mapped[str | None] = mapped_column(String(36), index=True)
    since: Mapped[datetime] = mapped_column(default=now)
    seen_at: Mapped[datetime] = mapped_column(default=now)
    quarantined_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    detail: Mapped[str] = mapped_column(Text, default="")


class Deployment(Base):
    """One row: the id under which this Hutch marks its servers in the cloud, minted with the database.

    seal: changed before each pass that compares, with a copy in a file beside the database: where the two differ, this database
    is a copy or was restored, and the steward acts on nothing until an operator has said which of them goes on.
    """

    id: Mapped[str] = mapped_column(String(36), primary_key=True, default=lambda: str(uuid4()))
    minted_at: Mapped[datetime] = mapped_column(default=now)
    seal: Mapped[str | None] = mapped_column(String(36))
