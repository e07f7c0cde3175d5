"""An existing VISA 3 on PostgreSQL, so that its site can move over: facility records, roles, groups, quotas and plans.

What VISA shows to nobody is left out: experiments without both dates, whatever is deleted, hidden images, and the user "0", which
stands for an account that is not valid.
"""

from __future__ import annotations

from pathlib import Path

from etl.adapters.sql import Database, named_queries
from etl.frames import Extract
from hub.database.tables import FacilityRole

QUERIES = Path(__file__).with_suffix(".sql")


class Visa(Database):
    """login: SQL over `users u` for what people are called at the sign-on; cloud: the id of the cloud whose plans are read, -1 for
    the one of VISA's environment.
    """

    login: str = "u.id"
    cloud: int = -1

    def read(self) -> Extract:
        queries = named_queries(QUERIES, login=self.login.replace(":", r"\:"))
        return Extract(self.ask(queries, cloud=self.cloud, roles=[role.upper().replace("-", "_") for role in FacilityRole]))
