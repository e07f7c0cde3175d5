"""A short chaos run; `make chaos` is the long one."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
from chaos.judging import Seen, wrong
from chaos.run import chaos

SEED = 4


@pytest.mark.timeout(420)
def test_all_is_as_it_was_asked_for_whatever_is_killed(tmp_path: Path) -> None:
    print(f"seed {SEED}")
    with chaos(tmp_path, SEED, operations=12) as run:
        report = run.run()
    print(report.as_table())
    assert report.right, report.as_json()
    assert report.kills.total() >= 3


NUMBER = count(1)


def intent(kind: str, outcome: str | None, message: str = "") -> SimpleNamespace:
    return SimpleNamespace(id=next(NUMBER), kind=kind, outcome=outcome, message=message)


RIGHT = {
    "runs": ([intent("launch", "done")], {"ready": True}, ["ACTIVE"], "launch"),
    "is off": ([intent("launch", "done"), intent("stop", "done")], {}, ["SHUTOFF"], "stop"),
    "failed": ([intent("launch", "failed", "There is no room.")], {}, [], "launch"),
}
WRONG = {
    "is served no longer": ([intent("launch", "done")], {}, ["ACTIVE"], "launch"),
    "runs twice": ([intent("launch", "done")], {"ready": True}, ["ACTIVE", "ACTIVE"], "launch"),
    "was stopped unasked": ([intent("launch", "done"), intent("stop", "done")], {}, ["SHUTOFF"], "launch"),
    "is not off": ([intent("stop", "done")], {}, ["ACTIVE"], "stop"),
    "was launched unasked": ([intent("stop", "done"), intent("launch", "done")], {"ready": True}, ["ACTIVE"], "stop"),
    "is still at it": ([intent("launch", None)], {"pending": "spawn"}, ["ACTIVE"], "launch"),
    "lost its server": ([intent("stop", "done")], {}, [], "stop"),
    "failed without a word": ([intent("launch", "failed")], {}, [], "launch"),
    "is not deleted": ([intent("stop", "done")], {}, ["SHUTOFF"], "delete"),
}


@pytest.mark.parametrize("case", RIGHT | WRONG)
def test_what_is_wrong_is_seen(case: str) -> None:
    intents, model, servers, asked_last = (RIGHT | WRONG)[case]
    used = case not in ("failed", "failed without a word")
    instance = SimpleNamespace(intents=intents, deleted_at=None, purged_at=None, first_ready_at=used)
    assert bool(wrong(Seen(instance, model, servers, len(servers), asked_last))) is (case in WRONG)
