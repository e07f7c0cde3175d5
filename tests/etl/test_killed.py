"""A run that is killed leaves the database as it was before or as it is after, never between."""

import random

import killed_load

from etl.history import undo

POINTS = 20
NEVER, ALWAYS = 10**9, 0


def told(everything):
    """Without what is another each time: numbers of runs, and when something ended or was linked."""

    def same(row):
        ended = {"ended_at": bool(row["ended_at"])} if "ended_at" in row else {}
        return {name: value for name, value in row.items() if name not in ("run_id", "linked_at")} | ended

    return {name: [same(row) for row in rows] for name, rows in everything().items() if name != "etl_change"}


def test_a_run_killed_at_random_points_leaves_all_or_nothing(office, engine, everything, rows):
    """On PostgreSQL half of the times in the way that very many rows are written."""
    url = engine.url.render_as_string(hide_password=False)
    office.put("user_roles", "user_id,role", "1,guest", "2,guest")
    office.load()
    office.put("users", "id,login,family_name,issuer,subject", "1,ann,Berg,https://sso,a", "2,bob,Okafor,,", "3,cem,Demir,,")
    office.put("experiments", "id,proposal_id,instrument_id", "P1-1,P1,D22", "P1-2,P1,ID16")
    office.put("experiment_members", "experiment_id,user_id,role", "P1-1,3,local-contact", "P1-1,1,")
    office.put("user_roles", "user_id,role", "1,guest", "3,staff")
    before, outcomes = told(everything), set()
    ways = [NEVER] if engine.dialect.name == "sqlite" else [NEVER, ALWAYS]
    for many_rows in ways:
        noted = len(rows("etl_change"))
        steps = killed_load.load(url, office.folder, many_rows=many_rows)
        after, changes = told(everything), len(rows("etl_change")) - noted
        undo(engine, rows("etl_run")[-1]["id"])
        for point in [1, steps, *random.sample(range(2, steps), POINTS // len(ways) - 2)]:
            noted, known = len(rows("etl_change")), len(rows("etl_run"))
            assert killed_load.load(url, office.folder, point, many_rows) is None
            done = len(rows("etl_run")) > known
            assert told(everything) == (after if done else before), f"step {point} of {steps}"
            assert len(rows("etl_change")) - noted == (changes if done else 0), f"step {point} of {steps}"
            outcomes.add(done)
            if done:
                undo(engine, rows("etl_run")[-1]["id"])
    assert outcomes == {True, False}
    assert office.load().objections == []
