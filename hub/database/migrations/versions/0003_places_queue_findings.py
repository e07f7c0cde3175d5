"""Places to launch in, launches that wait for room, what was found in the cloud, and the seal that tells a copy of the database."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

name = sa.String(250)
when = sa.DateTime(timezone=True)


def upgrade() -> None:
    with op.batch_alter_table("plan") as plan:
        plan.add_column(sa.Column("places", sa.JSON(), nullable=False, server_default="[]"))
    with op.batch_alter_table("plan") as plan:
        plan.alter_column("places", server_default=None)
    with op.batch_alter_table("instance") as instance:
        instance.add_column(sa.Column("place", name, nullable=False, server_default=""))
    with op.batch_alter_table("instance") as instance:
        instance.alter_column("place", server_default=None)
    with op.batch_alter_table("deployment") as deployment:
        deployment.add_column(sa.Column("seal", sa.String(36)))
    op.create_table(
        "launch_wait",
        sa.Column("intent_id", sa.Integer(), sa.ForeignKey("intent.id"), primary_key=True),
        sa.Column("since", when, nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("tries", sa.Integer(), nullable=False),
        sa.Column("tried_at", when),
    )
    op.create_table(
        "cloud_room",
        sa.Column("place", name, primary_key=True),
        sa.Column("at", when, nullable=False),
        sa.Column("reading", sa.JSON(), nullable=False),
    )
    op.create_table(
        "cloud_finding",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("place", name, nullable=False),
        sa.Column("kind", name, nullable=False),
        sa.Column("resource_id", name, nullable=False, index=True),
        sa.Column("state", name, nullable=False),
        sa.Column("instance_id", sa.String(36), index=True),
        sa.Column("since", when, nullable=False),
        sa.Column("seen_at", when, nullable=False),
        sa.Column("quarantined_at", when),
        sa.Column("ended_at", when),
        sa.Column("detail", sa.Text(), nullable=False),
    )
