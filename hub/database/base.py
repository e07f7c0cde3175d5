"""What all tables have in common: their names and types, moments in UTC, and the columns that several of them have."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import JSON, ColumnElement, DateTime, ForeignKey, MetaData, String, TypeDecorator, or_
from sqlalchemy.orm import DeclarativeBase, Mapped, declared_attr, mapped_column


class UTCDateTime(TypeDecorator[datetime]):
    """Timezone-aware in and out, UTC in the database; SQLite keeps no zone of its own."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone; use datetime.now(UTC)")
        return value.astimezone(UTC)

    def result_processor(self, dialect: Any, coltype: Any) -> Any:
        # asked of each cell: psycopg gives UTC already, as the connection's time zone is; SQLite keeps text
        if dialect.name == "postgresql":
            return None
        return lambda text: None if text is None else datetime.fromisoformat(f"{text}+00:00")


def now() -> datetime:
    return datetime.now(UTC)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {datetime: UTCDateTime, str: String(250), dict[str, Any]: JSON}  # noqa: RUF012

    @declared_attr.directive
    def __tablename__(cls) -> str:
        """Of `EtlRun`, `etl_run`."""
        return re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()


class Record:
    """What each facility record carries: where it came from, and when it ceased to be so (None = it holds)."""

    source: Mapped[str] = mapped_column(default="")
    run_id: Mapped[int | None] = mapped_column(ForeignKey("etl_run.id"), default=None)
    ended_at: Mapped[datetime | None] = mapped_column(default=None)


class Expiring(Record):
    """What is held until expires_at (None = without end)."""

    expires_at: Mapped[datetime | None]

    @classmethod
    def held(cls, at: Any) -> ColumnElement[bool]:
        """For queries: it has neither ended nor expired. The moment of its expiry is the first without it."""
        return cls.ended_at.is_(None) & or_(cls.expires_at.is_(None), cls.expires_at > at)


class Numbered:
    """Its number stands first in its table."""

    id: Mapped[int] = mapped_column(primary_key=True, sort_order=-2)


class OfInstance:
    """What there may be several of for one instance."""

    instance_id: Mapped[str] = mapped_column(ForeignKey("instance.id"), index=True, sort_order=-1)


class Named:
    """Its id is somebody else's: the user office's, or a site's."""

    id: Mapped[str] = mapped_column(primary_key=True, sort_order=-2)
