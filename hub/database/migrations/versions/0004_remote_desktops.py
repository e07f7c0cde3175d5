"""Remote desktops: what an owner lets others do, support's requests, invitations, tickets, sessions, thumbnails."""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

name = sa.String(250)
when = sa.DateTime(timezone=True)


def upgrade() -> None:
    policy: dict[str, tuple[Any, Any]] = {
        "when_owner_leaves": (name, "disconnect"),
        "members_enter_freely": (sa.Boolean(), sa.false()),
        "thumbnails": (sa.Boolean(), sa.false()),
    }
    with op.batch_alter_table("instance") as instance:
        for column, (kind, before) in policy.items():
            instance.add_column(sa.Column(column, kind, nullable=False, server_default=before))
    with op.batch_alter_table("instance") as instance:
        for column in policy:
            instance.alter_column(column, server_default=None)
    op.create_table(
        "support_access",
        sa.Column("id", sa.Integer(), primary_key=True),
        _instance(),
        _user("user_id", nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("asked_at", when, nullable=False),
        sa.Column("answered_at", when),
        sa.Column("right", name),
        sa.Column("until", when),
        sa.Column("ended_at", when),
        _user("answered_by"),
    )
    op.create_table(
        "invitation",
        sa.Column("id", sa.Integer(), primary_key=True),
        _instance(),
        sa.Column("code_hash", name, nullable=False),
        sa.Column("role", name, nullable=False),
        sa.Column("one_time", sa.Boolean(), nullable=False),
        _user("created_by", nullable=False),
        sa.Column("created_at", when, nullable=False),
        sa.Column("expires_at", when, nullable=False),
        sa.Column("used_at", when),
        _user("used_by"),
        sa.Column("revoked_at", when),
        sa.UniqueConstraint("code_hash", name="uq_invitation_code_hash"),
    )
    op.create_table(
        "desktop_ticket",
        sa.Column("hash", name, primary_key=True),
        _instance(),
        _user("user_id", nullable=False),
        sa.Column("expires_at", when, nullable=False),
    )
    op.create_table(
        "desktop_session",
        sa.Column("id", sa.Integer(), primary_key=True),
        _instance(),
        _user("user_id", nullable=False, index=True),
        sa.Column("part", name, nullable=False),
        sa.Column("control", sa.Boolean(), nullable=False),
        sa.Column("started_at", when, nullable=False),
        sa.Column("ended_at", when),
        sa.Column("end_reason", name, nullable=False),
        *(sa.Column(counted, sa.BigInteger(), nullable=False) for counted in ("bytes_out", "bytes_in", "keys", "pointers")),
        sa.Column("last_input_at", when),
    )
    op.create_table(
        "thumbnail",
        sa.Column("instance_id", sa.String(36), sa.ForeignKey("instance.id"), primary_key=True),
        sa.Column("taken_at", when, nullable=False),
        sa.Column("picture", sa.LargeBinary(), nullable=False),
    )


def _instance() -> sa.Column:
    return sa.Column("instance_id", sa.String(36), sa.ForeignKey("instance.id"), nullable=False, index=True)


def _user(column: str, nullable: bool = True, index: bool = False) -> sa.Column:
    return sa.Column(column, name, sa.ForeignKey("user.id"), nullable=nullable, index=index)
