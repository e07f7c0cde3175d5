"""The first release. Its tables are made as `hub.database.tables` says (see `hub.database.engine`); changes come after it."""

revision = "0001"
down_revision = None
