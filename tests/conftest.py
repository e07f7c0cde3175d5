"""One hub of the example facility for all tests that disturb nobody else's instances."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import live_servers
import pytest
import shared_hubs
from facility_hub import FacilityHub, facility

pytest_plugins = ["pytest_spawner_contract.plugin"]

# Playwright's own needs a library that a bare machine lacks
if node := shutil.which("node"):
    os.environ.setdefault("PLAYWRIGHT_NODEJS_PATH", node)

# quick enough to be waited for; a site's own values are minutes
HURRY = """
import datetime
import hub.database.engine
import hub.queue
import hub.steward.tasks
import spawner.cloud
import spawner.reflector
hub.steward.tasks.STOP_OVERDUE = datetime.timedelta(seconds=2)
hub.queue.FIRST_PAUSE = datetime.timedelta(seconds=1)
hub.steward.tasks.AGAIN_SECONDS = 1
hub.database.engine.BUSY_TIMEOUT_SECONDS = 6
spawner.cloud.CATALOGUE_SECONDS = 0
spawner.reflector.FRESH_SECONDS = 3
c.Authenticator.auth_refresh_age = 1
c.Hutch.invitations = True
# so that a test chooses these by a person's role
c.Spawner.group_overrides = {
    "another network": {"groups": ["role-instrument-control"], "spawner_override": {"network": "nowhere"}},
    "a short boot": {"groups": ["role-it-support"], "spawner_override": {"boot_timeout_seconds": 4.0}},
}
"""


# minutes each: begun first, and right after the files that share hubs, so that no core is idle at the end
LONG = ["test_cloud_calls", "test_contract", "test_agent_kernels"]
LONG_TOO = ["test_upgrade", "test_production", "test_backup", "test_waiting", "test_sign_on", "test_internal_ssl", "test_chaos"]
LONG_TOO += ["test_removed_member", "test_model", "test_launch_places", "test_firewall", "test_serve", "test_agent_session"]
LONG_TOO += ["test_desktop", "test_desktop_page", "test_desktop_keyboard", "test_service", "test_agent_desktop", "test_relay_xvnc"]
hubs_of: dict[Path, set[str]] = {}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that share a hub follow each other; of the rest, those with many tests come first."""
    tests = Counter(item.path for item in items)
    for item in items:
        hubs_of.setdefault(item.path, set()).update({*shared_hubs.NAMES} & {*getattr(item, "fixturenames", ())})

    def place(item: pytest.Item) -> tuple[Any, ...]:
        hubs = [name not in hubs_of[item.path] for name in shared_hubs.NAMES]
        return item.path.stem not in LONG, hubs, item.path.stem not in LONG_TOO, -tests[item.path], item.path

    items.sort(key=place)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, None, None]:
    """A shared hub ends as soon as the next file does without it."""
    result = yield
    shared_hubs.end_all_but(hubs_of[nextitem.path] if nextitem else ())
    return result


def pytest_sessionfinish() -> None:
    """Also when the run was broken off."""
    shared_hubs.end_all_but(())


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """In CI everything is installed that can be: what is skipped there has failed."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI"):
        report.outcome, report.longrepr = "failed", f"skipped in CI: {report.longrepr}"
    return report


@pytest.fixture(scope="module")
def facility_hub(tmp_path_factory: pytest.TempPathFactory) -> FacilityHub:
    return shared_hubs.shared("facility_hub", lambda: facility(tmp_path_factory.mktemp("facility"), HURRY))


@pytest.fixture
def hub(facility_hub: FacilityHub) -> Iterator[FacilityHub]:
    """The shared hub; what a test orders of the cloud is over with it."""
    assert facility_hub.is_up(), f"the hub that the tests share has ended:\n{facility_hub.log_end()}"
    yield facility_hub
    facility_hub.devcloud.clear_faults()
    facility_hub.devcloud.next_boot()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[live_servers.PostgreSQL]:
    with live_servers.postgresql() as server:
        yield server


@pytest.fixture(scope="session")
def mariadb() -> Iterator[live_servers.MariaDB]:
    with live_servers.mariadb() as server:
        yield server


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[str]:
    with live_servers.rabbitmq() as url:
        yield url
