"""What deciding costs for the page "New instance": a person with 300 experiments, a facility with 200 plans.

From the login to what the page offers: who asks, their experiments, every plan with its limits, the quota. On SQLite, and on a
PostgreSQL of its own where Debian's package is there; around it stands a facility of 20,000 people and 60,000 memberships.
"""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from common import Figure, private_folder, report, spread
from sqlalchemy import Engine, event, insert
from sqlalchemy.orm import Session

from hub.access import may_see
from hub.configuration import Hutch
from hub.database.engine import open_database, sessions, upgrade
from hub.database.tables import (
    Experiment,
    ExperimentMember,
    Instance,
    Instrument,
    InstrumentScientist,
    Plan,
    Proposal,
    User,
    UserGroup,
    UserRole,
)
from hub.instances import launch_seconds
from hub.portal import new_instance
from hub.records import experiments_of, find_person, find_usage, plans_offered

EXPERIMENTS, PLANS, PEOPLE, ROUNDS = 300, 200, 20_000, 200
LIMIT_MS, LIMIT_QUERIES = 20.0, 6
NOW = datetime.now(UTC)
HUTCH = Hutch(quotas={"staff": {"instances": 20, "cores": 200}})


def main() -> None:
    figures = []
    with ExitStack() as stack:
        folder = stack.enter_context(private_folder())
        urls = {"SQLite": f"sqlite:///{folder / 'hutch.sqlite'}"}
        import live_servers  # of the tests, which `common` puts on the path

        try:
            urls["PostgreSQL"] = stack.enter_context(live_servers.postgresql()).new_database()
        except pytest.skip.Exception as error:
            print(f"without PostgreSQL: {error}")
        for name, url in urls.items():
            engine = open_database(url)
            upgrade(engine)
            furnish(engine)
            wall, cpu, queries = measure(engine)
            engine.dispose()
            print(f"{name}: {spread(wall, 1)} ms; CPU {spread(cpu, 1)} ms; {queries} queries")
            took, busy = (round(statistics.median(values), 2) for values in (wall, cpu))
            figures += [
                Figure(f"decisions of the new-instance page, {name}", took, "ms", LIMIT_MS, f"median of {ROUNDS}"),
                Figure(f"CPU of the decisions, {name}", busy, "ms", None, "of this process"),
                Figure(f"queries of the new-instance page, {name}", queries, "queries", LIMIT_QUERIES, "all of the page"),
            ]
    report(*figures)


def furnish(engine: Engine) -> None:
    rows: dict[Any, list[dict]] = {
        Instrument: [{"id": f"ID{number}", "name": f"Beamline {number}"} for number in range(40)],
        Proposal: [{"id": f"P{number}", "title": f"Proposal {number}"} for number in range(PEOPLE)],
        User: [{"id": str(n), "login": f"u{n}", "given_name": "U", "family_name": str(n)} for n in range(PEOPLE)],
        Experiment: [
            {
                "id": f"E{number}",
                "proposal_id": f"P{number}",
                "instrument_id": f"ID{number % 40}",
                "starts_at": NOW + timedelta(days=number % 300 - 299),
                "ends_at": NOW + timedelta(days=number % 300 - 296),
            }
            for number in range(PEOPLE)
        ],
        ExperimentMember: [
            *({"experiment_id": f"E{number}", "user_id": "0", "role": "member"} for number in range(EXPERIMENTS)),
            *(
                {"experiment_id": f"E{n}", "user_id": str(1 + (n * 7 + k) % (PEOPLE - 1)), "role": "member"}
                for n in range(PEOPLE)
                for k in range(3)
            ),
        ],
        UserRole: [{"user_id": "0", "role": "staff"}, *({"user_id": str(n), "role": "guest"} for n in range(1, PEOPLE, 4))],
        UserGroup: [{"user_id": "0", "group": f"group{number}"} for number in range(20)],
        InstrumentScientist: [{"user_id": "0", "instrument_id": f"ID{number}"} for number in range(3)],
        Plan: [plan(number) for number in range(PLANS)],
        Instance: [
            {"id": f"i{n}", "owner_id": "0", "server_name": f"s{n}", "display_name": f"S{n}", "plan_id": "plan0"} for n in range(5)
        ],
    }
    with engine.begin() as connection:
        for table, values in rows.items():
            connection.execute(insert(table), values)


def plan(number: int) -> dict[str, Any]:
    until = (NOW + timedelta(days=number - 10)).isoformat()
    limits = [
        {"instruments": [f"ID{number % 40}", f"ID{(number + 1) % 40}"], "roles": ["guest"]},
        {"groups": [f"group{number}"], "until": until},
        {"roles": ["instrument-control"]},
    ]
    size = {"cores": 4, "memory_mb": 8192, "image": "image", "flavor": "flavor"}
    return {"id": f"plan{number}", "name": f"Plan {number}", "limits": limits, "lifetimes": {"staff": 30}, **size}


def measure(engine: Engine) -> tuple[list[float], list[float], int]:
    """Milliseconds of each round by the clock and of CPU, and the queries of one."""
    counted: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *call: counted.append(call[2]))
    make, rounds = sessions(engine), []
    for number in range(ROUNDS + 5):
        counted.clear()
        began = time.perf_counter(), time.process_time()
        with make.begin() as session:
            shown = page(session)
        ended = time.perf_counter(), time.process_time()
        assert sum(len(group.visits) + group.hidden for group in shown.groups) == EXPERIMENTS
        assert len(shown.plans) == PLANS and {bool(one.may) for one in shown.plans} == {True, False}
        if number >= 5:
            rounds.append([(after - before) * 1000 for before, after in zip(began, ended, strict=True)])
    return [wall for wall, _ in rounds], [cpu for _, cpu in rounds], len(counted)


def page(session: Session) -> new_instance.Offer:
    """As the portal's route does it."""
    terms = HUTCH.terms(datetime.now(UTC))
    person = find_person(session, "u0", terms)
    assert person
    wish = new_instance.Wish(experiments=("E40",), touched=True)
    visits = [visit for visit in experiments_of(session, person.id, wish.experiments) if may_see(person, visit, terms)]
    plans, usage = plans_offered(session), find_usage(session, person.id)
    seconds = launch_seconds(session)
    return new_instance.offer(wish, person, visits, plans, usage=usage, seconds=seconds, terms=terms)


if __name__ == "__main__":
    main()
