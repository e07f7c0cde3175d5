-- What is read of ISPyB. What stands before the first name begins each of the queries.
--
-- A session without a number, beamline or start is a placeholder. Text is asked for as bytes, because the tables are latin1, where a
-- client that speaks UTF-8 may have left either.
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

--- affiliation
SELECT * FROM laboratory

--- user
-- where latin1 has no letter for a name, ISPyB holds `?`. Then that name is not given, and the login stands for a family name
SELECT p.personId AS id, LOWER(p.login) AS login, p.emailAddress AS email, l.id AS affiliation_id,
       CASE WHEN p.givenName NOT LIKE '%?%' THEN CAST(p.givenName AS BINARY) END AS given_name,
       CASE WHEN p.familyName NOT LIKE '%?%' THEN CAST(p.familyName AS BINARY) ELSE p.login END AS family_name
  FROM Person p LEFT JOIN laboratory l ON l.id = p.laboratoryId

--- instrument
SELECT DISTINCT beamline AS id, beamline AS name FROM visit

--- proposal
SELECT id, COALESCE(CAST(title AS BINARY), id) AS title FROM proposal

--- experiment
SELECT id, proposal_id, beamline AS instrument_id, startDate AS starts_at, endDate AS ends_at FROM visit

--- experiment_member
SELECT experiment_id, user_id, CASE WHEN role = 'Principal Investigator' THEN 'principal-investigator'
                                    WHEN role LIKE 'Local Contact%' THEN 'local-contact' ELSE 'member' END AS role
  FROM (SELECT id AS experiment_id, h.personId AS user_id, role FROM visit JOIN Session_has_Person h USING (sessionId)
        UNION ALL SELECT id, h.personId, role FROM visit JOIN ProposalHasPerson h USING (proposalId) WHERE :proposal_persons
        UNION ALL SELECT id, personId, 'Principal Investigator' FROM visit WHERE :proposal_persons) part

--- user_role
SELECT personId AS user_id, name AS role FROM UserGroup_has_Person JOIN UserGroup USING (userGroupId)
UNION SELECT personId, type
  FROM UserGroup_has_Person JOIN UserGroup_has_Permission USING (userGroupId) JOIN Permission USING (permissionId)
