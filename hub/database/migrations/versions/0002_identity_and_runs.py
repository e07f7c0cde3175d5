"""Runs that can be undone, quarantine, identities, groups, notices, limits of plans with AND and OR, quotas, embargo."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

name = sa.String(250)
when = sa.DateTime(timezone=True)


def upgrade() -> None:
    runs()
    people()
    with op.batch_alter_table("proposal") as proposal:
        proposal.add_column(sa.Column("doi", name))
        proposal.add_column(sa.Column("public_at", when))
    with op.batch_alter_table("experiment") as experiment:
        experiment.add_column(sa.Column("url", sa.Text()))
        experiment.add_column(sa.Column("doi", name))
    plans()


def runs() -> None:
    with op.batch_alter_table("etl_run") as run:
        run.add_column(sa.Column("kind", name, nullable=False, server_default="load"))
        run.add_column(sa.Column("undoes", sa.Integer(), sa.ForeignKey("etl_run.id", name="fk_etl_run_undoes_etl_run")))
        run.add_column(sa.Column("batch", name))
        run.create_index("ix_etl_run_source", ["source"])
    # a default was for the rows that were there
    with op.batch_alter_table("etl_run") as run:
        run.alter_column("kind", server_default=None)
    op.create_table(
        "etl_change",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("run_id", sa.Integer(), sa.ForeignKey("etl_run.id"), nullable=False, index=True),
        sa.Column("record", name, nullable=False),
        sa.Column("key", sa.JSON(), nullable=False),
        sa.Column("before", sa.JSON(), nullable=False),
    )
    op.create_table(
        "etl_rejection",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("run_id", sa.Integer(), sa.ForeignKey("etl_run.id"), nullable=False, index=True),
        sa.Column("record", name, nullable=False),
        sa.Column("place", name, nullable=False),
        sa.Column("line", sa.Integer(), nullable=False),
        sa.Column("key", name, nullable=False),
        sa.Column("field", name, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
    )


def people() -> None:
    with op.batch_alter_table("user") as user:
        user.add_column(sa.Column("instances_allotted", sa.Integer()))
        user.add_column(sa.Column("core_quota", sa.Integer()))
        user.add_column(sa.Column("forgotten_at", when))
    op.create_table(
        "user_group",
        sa.Column("user_id", name, sa.ForeignKey("user.id"), primary_key=True),
        sa.Column("group", name, primary_key=True, index=True),
        sa.Column("expires_at", when),
        sa.Column("source", name, nullable=False),
        sa.Column("run_id", sa.Integer(), sa.ForeignKey("etl_run.id")),
        sa.Column("ended_at", when),
    )
    op.create_table(
        "identity",
        sa.Column("issuer", name, primary_key=True),
        sa.Column("subject", name, primary_key=True),
        sa.Column("user_id", name, sa.ForeignKey("user.id"), nullable=False, index=True),
        sa.Column("linked_at", when, nullable=False),
        sa.Column("linked_by", name, nullable=False),
    )
    op.create_table(
        "identity_suggestion",
        sa.Column("issuer", name, primary_key=True),
        sa.Column("subject", name, primary_key=True),
        sa.Column("user_id", name, sa.ForeignKey("user.id"), primary_key=True, index=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("since", when, nullable=False),
    )
    op.create_table(
        "notice",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("user_id", name, sa.ForeignKey("user.id"), nullable=False, index=True),
        sa.Column("at", when, nullable=False),
        sa.Column("subject", name, nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("seen_at", when),
        sa.Column("mailed_at", when),
    )


def plans() -> None:
    """What was OR-ed lists of instruments and roles becomes one entry each."""
    with op.batch_alter_table("plan") as plan:
        plan.add_column(sa.Column("limits", sa.JSON(), nullable=False, server_default="[]"))
        plan.add_column(sa.Column("lifetimes", sa.JSON(), nullable=False, server_default="{}"))
    table = sa.table("plan", sa.column("id"), *(sa.column(column, sa.JSON()) for column in ("instruments", "roles", "limits")))
    connection = op.get_bind()
    for row in connection.execute(sa.select(table)).mappings().all():
        limits = [{column: row[column]} for column in ("instruments", "roles") if row[column]]
        connection.execute(sa.update(table).where(table.c.id == row["id"]).values(limits=limits))
    with op.batch_alter_table("plan") as plan:
        plan.drop_column("instruments")
        plan.drop_column("roles")
        plan.alter_column("limits", server_default=None)
        plan.alter_column("lifetimes", server_default=None)
