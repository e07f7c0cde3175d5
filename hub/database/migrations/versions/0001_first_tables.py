"""The first tables: facility records, catalogue, instances with their intents and history."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

name = sa.String(250)
uuid = sa.String(36)
when = sa.DateTime(timezone=True)


def required(column: str, kind: sa.types.TypeEngine, *rest: sa.ForeignKey, index: bool = False) -> sa.Column:
    return sa.Column(column, kind, *rest, nullable=False, index=index)


def key(column: str, kind: sa.types.TypeEngine, *rest: sa.ForeignKey, index: bool = False) -> sa.Column:
    return sa.Column(column, kind, *rest, primary_key=True, index=index)


def record() -> list[sa.Column]:
    """What each facility record carries."""
    return [
        required("source", name),
        sa.Column("run_id", sa.Integer(), sa.ForeignKey("etl_run.id")),
        sa.Column("ended_at", when),
    ]


def upgrade() -> None:
    op.create_table("deployment", key("id", uuid), required("minted_at", when))
    op.create_table(
        "etl_run",
        key("id", sa.Integer()),
        required("source", name),
        required("adapter", name),
        required("started_at", when),
        sa.Column("finished_at", when),
        sa.Column("outcome", name),
        required("counts", sa.JSON()),
        sa.Column("message", sa.Text()),
    )
    facility_records()
    catalogue()
    instances()


def facility_records() -> None:
    op.create_table(
        "affiliation",
        key("id", name),
        required("name", name),
        sa.Column("town", name),
        sa.Column("country", name),
        *record(),
    )
    op.create_table(
        "user",
        key("id", name),
        sa.Column("login", name, nullable=False, unique=True),
        required("given_name", name),
        required("family_name", name),
        sa.Column("email", name),
        sa.Column("orcid", name),
        sa.Column("affiliation_id", name, sa.ForeignKey("affiliation.id")),
        sa.Column("instance_quota", sa.Integer()),
        *record(),
    )
    op.create_table("instrument", key("id", name), required("name", name), sa.Column("description", sa.Text()), *record())
    op.create_table(
        "proposal",
        key("id", name),
        required("title", sa.Text()),
        sa.Column("summary", sa.Text()),
        sa.Column("url", sa.Text()),
        *record(),
    )
    op.create_table(
        "experiment",
        key("id", name),
        required("proposal_id", name, sa.ForeignKey("proposal.id"), index=True),
        required("instrument_id", name, sa.ForeignKey("instrument.id"), index=True),
        sa.Column("title", sa.Text()),
        sa.Column("starts_at", when),
        sa.Column("ends_at", when),
        *record(),
    )
    op.create_table(
        "experiment_member",
        key("experiment_id", name, sa.ForeignKey("experiment.id")),
        key("user_id", name, sa.ForeignKey("user.id"), index=True),
        required("role", name),
        *record(),
    )
    op.create_table(
        "instrument_scientist",
        key("instrument_id", name, sa.ForeignKey("instrument.id")),
        key("user_id", name, sa.ForeignKey("user.id"), index=True),
        *record(),
    )
    op.create_table(
        "user_role", key("user_id", name, sa.ForeignKey("user.id")), key("role", name), sa.Column("expires_at", when), *record()
    )


def catalogue() -> None:
    op.create_table(
        "plan",
        key("id", name),
        required("name", name),
        sa.Column("description", sa.Text()),
        required("image", name),
        required("flavor", name),
        required("cores", sa.Integer()),
        required("memory_mb", sa.Integer()),
        required("position", sa.Integer()),
        required("instruments", sa.JSON()),
        required("roles", sa.JSON()),
        *record(),
    )


def instances() -> None:
    op.create_table(
        "instance",
        key("id", uuid),
        required("owner_id", name, sa.ForeignKey("user.id"), index=True),
        required("server_name", name),
        required("display_name", name),
        required("plan_id", name, sa.ForeignKey("plan.id")),
        required("created_at", when),
        sa.Column("ends_at", when),
        sa.Column("first_ready_at", when),
        sa.Column("deleted_at", when),
        sa.Column("purge_at", when),
        sa.Column("purged_at", when),
    )
    live = sa.text("deleted_at IS NULL")
    op.create_index(
        "uq_instance_live_name", "instance", ["owner_id", "server_name"], unique=True, sqlite_where=live, postgresql_where=live
    )
    op.create_table(
        "instance_member",
        key("instance_id", uuid, sa.ForeignKey("instance.id")),
        key("user_id", name, sa.ForeignKey("user.id"), index=True),
        required("role", name),
        required("since", when),
        sa.Column("ended_at", when),
    )
    op.create_table(
        "instance_experiment",
        key("instance_id", uuid, sa.ForeignKey("instance.id")),
        key("experiment_id", name, sa.ForeignKey("experiment.id"), index=True),
    )
    op.create_table(
        "intent",
        key("id", sa.Integer()),
        required("instance_id", uuid, sa.ForeignKey("instance.id"), index=True),
        required("kind", name),
        required("actor", name),
        required("reason", sa.Text()),
        required("asked_at", when),
        sa.Column("ended_at", when),
        sa.Column("outcome", name),
        sa.Column("stage", name),
        sa.Column("message", sa.Text()),
        sa.Column("detail", sa.Text()),
    )
    op.create_table(
        "instance_event",
        key("id", sa.Integer()),
        required("instance_id", uuid, sa.ForeignKey("instance.id"), index=True),
        sa.Column("intent_id", sa.Integer(), sa.ForeignKey("intent.id"), index=True),
        required("at", when),
        required("kind", name),
        required("actor", name),
        sa.Column("seconds", sa.Double()),
        required("message", sa.Text()),
    )
    op.create_index("ix_instance_event_kind_id", "instance_event", ["kind", "id"])
