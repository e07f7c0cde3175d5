"""docs/access.md shows the tables that the code has, and names every rule."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hub import explaining
from hub.access import MAY, TASKS, WITHOUT_EXPERIMENT, Action, Part, WhenOwnerLeaves

pytestmark = pytest.mark.any_database

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "access.md").read_text()


def shown(name: str) -> list[list[str]]:
    table = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- /{name} -->", TEXT, re.DOTALL)
    assert table
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1].splitlines()]


def test_what_each_part_may_do():
    head, _, *rows = shown("parts")
    assert head == ["may", *Action]
    assert rows == [[f"`{part}`", *("yes" if action in MAY[part] else "" for action in Action)] for part in Part]


def test_the_tasks_of_staff():
    _, _, *rows = shown("tasks")
    assert rows == [[f"`{task}`", ", ".join(f"`{role}`" for role in sorted(TASKS[task]))] for task in TASKS]


def test_what_becomes_of_a_desktop_when_its_owner_leaves():
    _, _, *rows = shown("owner-leaves")
    assert [row[0] for row in rows] == [f"`{policy}`" for policy in WhenOwnerLeaves]


def rules() -> set[str]:
    """The names that are written in the code as a decision's rule."""
    code = "".join(path.read_text() for path in [*(ROOT / "hub" / "access").glob("*.py"), Path(explaining.__file__)])
    return set(re.findall(r'Decision\(\w+, "([a-z-]+)"', code)) | {
        f"unknown-{one}" for one in re.findall(r'_unknown\("(\w+)"', code)
    }


@pytest.mark.parametrize("rule", sorted(rules() - {"launch"}))
def test_every_rule_is_documented(rule):
    assert f"`{rule}`" in TEXT


def test_the_rules_were_found():
    assert {"plan-limited", "consent-needed", "unknown-user", "quota-cores"} <= rules()


def test_who_may_launch_without_an_experiment():
    assert " or ".join([", ".join(f"`{one}`" for one in sorted(WITHOUT_EXPERIMENT)[:-1]), f"`{max(WITHOUT_EXPERIMENT)}`"]) in TEXT
