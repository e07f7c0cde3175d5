"""Alembic runs this; `hub.database.engine.upgrade` gives it an open connection, already in a transaction."""

from alembic import context

from hub.database.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    version_table=context.config.attributes["version_table"],
    target_metadata=Base.metadata,
    # SQLite cannot alter most things in place
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
