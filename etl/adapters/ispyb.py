"""ISPyB, the database of beamlines for crystallography and more: people, proposals, visits, teams and staff.

Follows schema 5.2 of the Python package `ispyb`. Its two flavours differ in what numbers the visits of a proposal.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import polars as pl
from pydantic import Field

from etl.adapters.sql import Database, named_queries
from etl.frames import Extract
from hub.database.tables import FacilityRole

# {visits: the number of a visit, null for what is none}; externalId: a big-endian number, or else as it is
_NUMBERS = {
    "visit_number": "NULLIF(s.visit_number, 0)",
    "externalId": "IF(HEX(s.externalId) LIKE '0000000000000000%', CONV(HEX(s.externalId), 16, 10), LOWER(HEX(s.externalId)))",
    "expSessionPk": "s.expSessionPk",
}

QUERIES = Path(__file__).with_suffix(".sql")
_NO_STAFF = "SELECT NULL AS user_id, NULL AS role FROM DUAL WHERE FALSE"


class Ispyb(Database):
    """visits: the column that numbers them; proposal_persons: whether who is on a proposal is in all its visits;
    roles: {group of people or permission in ISPyB: role in Hutch}.
    """

    visits: Literal["visit_number", "externalId", "expSessionPk"] = "visit_number"
    proposal_persons: bool = False
    roles: dict[str, FacilityRole] = Field(default_factory=dict)

    def read(self) -> Extract:
        queries = named_queries(QUERIES, number=_NUMBERS[self.visits])
        frames = self.ask(queries if self.roles else {**queries, "user_role": _NO_STAFF}, proposal_persons=self.proposal_persons)
        staff = frames["user_role"].filter(pl.col("role").is_in(list(self.roles)))
        return Extract({**frames, "user_role": staff.with_columns(pl.col("role").replace(self.roles))})
