-- What is read of an existing VISA 3. What stands before the first name begins each of the queries.
--
-- VISA keeps groups of people among the roles; a role of the site's own is a group too, for all that it can do is open plans.
WITH known AS (
    SELECT *, group_created_at IS NULL AND name = ANY(:roles) AS facility FROM role
), holding AS (
    SELECT id, facility, group_deleted_at, CASE WHEN facility THEN lower(replace(name, '_', '-')) ELSE name END AS name FROM known
), holder AS (
    SELECT u.user_id, h.name, h.facility, u.expires_at FROM user_role u JOIN holding h ON h.id = u.role_id
     WHERE h.group_deleted_at IS NULL AND u.user_id::text <> '0'
), dated AS (
    SELECT e.id, p.identifier AS proposal_id, instrument_id, e.title, e.url, e.doi, start_date, end_date
      FROM experiment e JOIN proposal p ON p.id = proposal_id WHERE start_date IS NOT NULL AND end_date IS NOT NULL
), firm AS (
    SELECT * FROM employer WHERE id <> 0 AND name <> ''
)

--- affiliation
SELECT id, name, town, country_code AS country FROM firm

--- user
SELECT u.id, {login} AS login, u.first_name AS given_name, u.last_name AS family_name, u.email, f.id AS affiliation_id,
       u.instance_quota AS instances_allotted
  FROM users u LEFT JOIN firm f ON f.id = u.affiliation_id WHERE u.id::text <> '0'

--- instrument
SELECT id, name FROM instrument

--- proposal
SELECT identifier AS id, COALESCE(title, identifier) AS title, summary, url, doi, public_at FROM proposal

--- experiment
SELECT id, proposal_id, instrument_id, title, url, doi, start_date AS starts_at, end_date AS ends_at FROM dated

--- experiment_member
SELECT experiment_id, user_id FROM experiment_user m JOIN dated d ON d.id = m.experiment_id WHERE user_id::text <> '0'

--- instrument_scientist
SELECT instrument_id, user_id FROM instrument_scientist WHERE user_id::text <> '0'

--- user_role
SELECT user_id, name AS role, expires_at FROM holder WHERE facility

--- user_group
SELECT user_id, name AS "group", expires_at FROM holder WHERE NOT facility

--- plan
-- Each limit is an entry of its own, because VISA is content with any of them. One whose instrument or role is gone becomes a
-- group that nobody is in. Without it the plan would be everybody's.
SELECT p.id, concat_ws(' ', i.name, i.version) || ', ' || f.name AS name, i.description, i.compute_id AS image,
       f.compute_id AS flavor, greatest(ceil(f.cpu), 1)::int AS cores, f.memory AS memory_mb,
       CASE WHEN p.preset THEN 0 ELSE 100 END AS position,
       (SELECT jsonb_agg(jsonb_build_object(
                 CASE WHEN t.id IS NOT NULL THEN 'instruments' WHEN h.facility THEN 'roles' ELSE 'groups' END,
                 jsonb_build_array(COALESCE(t.id::text, h.name, lower(l.object_type) || ' ' || l.object_id))) ORDER BY l.id)
          FROM flavour_limit l
          LEFT JOIN instrument t ON l.object_type = 'INSTRUMENT' AND t.id = l.object_id
          LEFT JOIN holding h ON l.object_type = 'ROLE' AND h.id = l.object_id WHERE l.flavour_id = f.id) AS limits,
       (SELECT jsonb_object_agg(COALESCE(h.name, ''), r.duration_minutes / 1440.0 ORDER BY r.duration_minutes)
          FROM flavour_role_lifetime r LEFT JOIN holding h ON h.id = r.role_id
         WHERE r.flavour_id = f.id AND (r.role_id IS NULL OR h.facility)) AS lifetimes
  FROM plan p JOIN image i ON i.id = p.image_id JOIN flavour f ON f.id = p.flavour_id
 WHERE p.deleted_at IS NULL AND NOT i.deleted AND i.visible AND NOT f.deleted AND :cloud = ALL(ARRAY[
       COALESCE(i.cloud_provider_configuration_id, -1), COALESCE(f.cloud_provider_configuration_id, -1)])
