"""Gaps of the hub's event loop while the groups of 1,000 people who are signed on follow a run of the ETL.

The run takes each of them off one proposal and puts them on another, so that JupyterHub has to write a change for everybody: the
most that a run can bring. A task in the hub asks every 5 ms to be woken, as in bench_event_loop. Beside it, the same hub while it
is idle, and a run that changes nobody's groups.
"""

from __future__ import annotations

import time
from pathlib import Path

from bench_event_loop import EVERY_SECONDS, LIMIT_MS, SAMPLER, gaps_ms, tell
from common import TEAM, BenchHub, Figure, furnish, furnished_session, private_folder, report, running_hub, until
from sqlalchemy import insert, update

from hub.database.tables import EtlRun, Experiment, ExperimentMember, Proposal, now

PEOPLE = 1000
IDLE_SECONDS = 8.0
USERS = [f"u{number:04}" for number in range(PEOPLE)]
# the interval is out of the way: what is measured follows the run
CONFIG = f"""
import hub
# as hub.install sets it
c.JupyterHub.db_kwargs = {{{{"connect_args": {{{{"check_same_thread": False, "factory": hub.WalConnection}}}}}}}}
c.JupyterHub.authenticator_class = "hub.authenticator.DemoAuthenticator"
c.Hutch.state_dir = {{state_dir!r}}
c.FacilityUsers.auth_refresh_age = 3600
{SAMPLER}
"""


def main() -> None:
    with private_folder() as folder:
        furnish(folder, USERS)
        add_proposals(folder)
        with running_hub(folder / "hub", CONFIG.format(state_dir=str(folder)), USERS) as hub:
            finish_run(folder)
            until(lambda: groups(hub) == {"proposal-P-1"}, "the groups are those of the records")
            tell("idle", gaps_ms(hub, lambda: time.sleep(IDLE_SECONDS)))
            finish_run(folder)
            tell("a run that changes no groups", gaps_ms(hub, lambda: time.sleep(IDLE_SECONDS)))
            p99 = tell(f"a run that changes the groups of {PEOPLE}", gaps_ms(hub, lambda: change_everybody(folder, hub)))
    against = f"wakings every {1000 * EVERY_SECONDS:.0f} ms until {PEOPLE} people who are signed on have their new groups"
    report(Figure("event-loop-gap-p99 groups", p99, "ms", LIMIT_MS, against))


def add_proposals(folder: Path) -> None:
    """Another proposal for each team, of which nobody is a member yet."""
    with furnished_session(folder) as session:
        teams = range(0, PEOPLE, TEAM)
        session.add_all(Proposal(id=f"P-next-{start}", title="Films again") for start in teams)
        session.flush()
        session.add_all(Experiment(id=f"EX-next-{start}", proposal_id=f"P-next-{start}", instrument_id="ID16") for start in teams)


def change_everybody(folder: Path, hub: BenchHub) -> None:
    with furnished_session(folder) as session:
        session.execute(update(ExperimentMember).values(ended_at=now()))
        rows = [{"experiment_id": f"EX-next-{number // TEAM * TEAM}", "user_id": f"id-{name}"} for number, name in enumerate(USERS)]
        session.execute(insert(ExperimentMember), rows)
    finish_run(folder)
    # only the last one is asked for, and seldom: the hub's answers would be what is measured
    while groups(hub) != {f"proposal-P-next-{PEOPLE - TEAM}"}:
        time.sleep(2)


def finish_run(folder: Path) -> None:
    with furnished_session(folder) as session:
        session.add(EtlRun(source="bench", adapter="files", finished_at=now(), outcome="done"))


def groups(hub: BenchHub) -> set[str]:
    return set(hub.api("GET", f"users/{USERS[-1]}").json()["groups"])


if __name__ == "__main__":
    main()
