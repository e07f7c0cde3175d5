"""ISPyB, the database of beamlines for crystallography and more: people, proposals, visits, teams and staff.

Follows schema 5.2 of the Python package `ispyb`. Its two flavours differ in what numbers the visits of a proposal.
"""

from __future__ import annotations

from typing import Literal

import polars as pl
from pydantic import Field

from etl.adapters.sql import Database
from etl.frames import Extract
from hub.database.tables import FacilityRole

# {visits: the number of a visit, null for what is none}; externalId: a big-endian number, or else as it is
_NUMBERS = {
    "visit_number": "NULLIF(s.visit_number, 0)",
    "externalId": "IF(HEX(s.externalId) LIKE '0000000000000000%', CONV(HEX(s.externalId), 16, 10), LOWER(HEX(s.externalId)))",
    "expSessionPk": "s.expSessionPk",
}

# A session without a number, beamline or start is a placeholder. Text is asked for as bytes: the tables are latin1, where a client
# that speaks UTF-8 may have left either.
_COMMON = """
WITH proposal AS (
    SELECT proposalId, personId, title, CONCAT_WS('', proposalCode, proposalNumber) AS id FROM Proposal
), visit AS (
    SELECT sessionId, proposalId, personId, p.id AS proposal_id, CONCAT(p.id, '-', CAST({number} AS BINARY)) AS id,
           CAST(beamLineName AS BINARY) AS beamline, startDate, endDate
      FROM BLSession s JOIN proposal p USING (proposalId)
     WHERE {number} IS NOT NULL AND beamLineName <> '' AND startDate > 0
), laboratory AS (
    SELECT laboratoryId AS id, CAST(name AS BINARY) AS name, CAST(city AS BINARY) AS town, CAST(country AS BINARY) AS country
      FROM Laboratory WHERE name <> ''
)
"""

# where latin1 has no letter for a name, ISPyB holds `?`: then that name is not given, and the login stands for a family name
_QUERIES = {
    "affiliation": "SELECT * FROM laboratory",
    "user": """
        SELECT p.personId AS id, LOWER(p.login) AS login, p.emailAddress AS email, l.id AS affiliation_id,
               CASE WHEN p.givenName NOT LIKE '%?%' THEN CAST(p.givenName AS BINARY) END AS given_name,
               CASE WHEN p.familyName NOT LIKE '%?%' THEN CAST(p.familyName AS BINARY) ELSE p.login END AS family_name
          FROM Person p LEFT JOIN laboratory l ON l.id = p.laboratoryId""",
    "instrument": "SELECT DISTINCT beamline AS id, beamline AS name FROM visit",
    "proposal": "SELECT id, COALESCE(CAST(title AS BINARY), id) AS title FROM proposal",
    "experiment": "SELECT id, proposal_id, beamline AS instrument_id, startDate AS starts_at, endDate AS ends_at FROM visit",
    "experiment_member": """
        SELECT experiment_id, user_id, CASE WHEN role = 'Principal Investigator' THEN 'principal-investigator'
                                            WHEN role LIKE 'Local Contact%' THEN 'local-contact' ELSE 'member' END AS role
          FROM (SELECT id AS experiment_id, h.personId AS user_id, role FROM visit JOIN Session_has_Person h USING (sessionId)
                UNION ALL SELECT id, h.personId, role FROM visit JOIN ProposalHasPerson h USING (proposalId) WHERE :proposal_persons
                UNION ALL SELECT id, personId, 'Principal Investigator' FROM visit WHERE :proposal_persons) part""",
}
_STAFF = """
    SELECT personId AS user_id, name AS role FROM UserGroup_has_Person JOIN UserGroup USING (userGroupId)
    UNION SELECT personId, type
      FROM UserGroup_has_Person JOIN UserGroup_has_Permission USING (userGroupId) JOIN Permission USING (permissionId)"""
_NO_STAFF = "SELECT NULL AS user_id, NULL AS role FROM DUAL WHERE FALSE"


class Ispyb(Database):
    """visits: the column that numbers them; proposal_persons: whether who is on a proposal is in all its visits;
    roles: {group of people or permission in ISPyB: role in Hutch}.
    """

    visits: Literal["visit_number", "externalId", "expSessionPk"] = "visit_number"
    proposal_persons: bool = False
    roles: dict[str, FacilityRole] = Field(default_factory=dict)

    def read(self) -> Extract:
        common = _COMMON.replace("{number}", _NUMBERS[self.visits])
        queries = {table: common + query for table, query in _QUERIES.items()}
        frames = self.ask({**queries, "user_role": _STAFF if self.roles else _NO_STAFF}, proposal_persons=self.proposal_persons)
        staff = frames["user_role"].filter(pl.col("role").is_in(list(self.roles)))
        return Extract({**frames, "user_role": staff.with_columns(pl.col("role").replace(self.roles))})
