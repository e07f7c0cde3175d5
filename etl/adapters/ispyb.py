"""ISPyB, the database of beamlines for crystallography and more: people, proposals, visits, teams and staff.

Follows schema 5.2 of the Python package `ispyb`. Its two flavours differ in what numbers the visits of a proposal.
"""

from __future__ import annotations

from typing import ClassVar, Literal

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
    SELECT s.sessionId, s.proposalId, pr.personId, pr.id AS proposal_id, CONCAT(pr.id, '-', CAST({number} AS BINARY)) AS id,
           CAST(s.beamLineName AS BINARY) AS beamline, s.startDate, s.endDate
      FROM BLSession s JOIN proposal pr ON pr.proposalId = s.proposalId
     WHERE {number} IS NOT NULL AND s.beamLineName <> '' AND s.startDate > 0
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
        SELECT member.experiment_id, member.user_id,
               CASE WHEN member.role = 'Principal Investigator' THEN 'principal-investigator'
                    WHEN member.role LIKE 'Local Contact%' THEN 'local-contact' ELSE 'member' END AS role
          FROM (SELECT v.id AS experiment_id, h.personId AS user_id, h.role
                  FROM visit v JOIN Session_has_Person h ON h.sessionId = v.sessionId
                 UNION ALL
                SELECT v.id, h.personId, h.role
                  FROM visit v JOIN ProposalHasPerson h ON h.proposalId = v.proposalId WHERE :proposal_persons
                 UNION ALL
                SELECT id, personId, 'Principal Investigator' FROM visit WHERE :proposal_persons) member""",
}
_STAFF = """
    SELECT h.personId AS user_id, g.name AS role
      FROM UserGroup_has_Person h JOIN UserGroup g ON g.userGroupId = h.userGroupId
     UNION
    SELECT h.personId, p.type
      FROM UserGroup_has_Person h JOIN UserGroup_has_Permission gp ON gp.userGroupId = h.userGroupId
      JOIN Permission p ON p.permissionId = gp.permissionId"""
_NO_STAFF = "SELECT NULL AS user_id, NULL AS role FROM DUAL WHERE FALSE"


class Ispyb(Database):
    """visits: the column that numbers them; proposal_persons: whether who is on a proposal is in all its visits;
    roles: {group of people or permission in ISPyB: role in Hutch}.
    """

    name: ClassVar[str] = "ispyb"
    visits: Literal["visit_number", "externalId", "expSessionPk"] = "visit_number"
    proposal_persons: bool = False
    roles: dict[str, FacilityRole] = Field(default_factory=dict)

    def read(self) -> Extract:
        common = _COMMON.replace("{number}", _NUMBERS[self.visits])
        queries = {table: common + query for table, query in _QUERIES.items()}
        frames = self.ask({**queries, "user_role": _STAFF if self.roles else _NO_STAFF}, proposal_persons=self.proposal_persons)
        staff = frames["user_role"].filter(pl.col("role").is_in(list(self.roles))).with_columns(pl.col("role").replace(self.roles))
        return Extract({**frames, "user_role": staff})
