"""A short chaos run on the real API: hub, proxy, steward are killed, and services of the cloud; `tests/chaos` is the long one."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from chaos.run import CONFIG, Chaos
from chaos.victims import Victims
from facility_hub import FacilityHub, started
from openstack.connection import Connection
from running_hub import until
from stand_ins import standing_in

from tests.openstack.conftest import CLOUDS_YAML, connection

SEED = 4
ON_REAL_API = """
c.OpenStackSpawner.cloud_name = "hutch-app"
c.OpenStackSpawner.availability_zone = "fake"
c.OpenStackSpawner.boot_timeout_seconds = 90
c.OpenStackSpawner.stop_timeout_seconds = 60
c.OpenStackSpawner.fast_listing_seconds = 1
c.OpenStackSpawner.slow_listing_seconds = 2
"""
# how a service of the cloud is known by its command line
SERVICES = {"database": "mariadbd", "nova-api": "nova-api", "nova-compute": "fake_compute.py"}


class CloudVictims(Victims):
    def __init__(self, hub: FacilityHub, chance: random.Random) -> None:
        super().__init__(hub, chance)
        for name in ("agent", "cloud"):
            del self.kinds[name]
        self.kinds |= {name: partial(self._kill_service, words) for name, words in SERVICES.items()}

    def _kill_service(self, words: str) -> None:
        """With its workers; the cloud starts it again."""
        old = service(words)
        os.killpg(old, signal.SIGKILL)
        until(lambda: service(words) not in (0, old), f"{words} is started again")


def service(words: str) -> int:
    """Its first process, among the children of the cloud's own."""
    for one in psutil.Process(int((CLOUDS_YAML.parent / "pid").read_text())).children(recursive=True):
        with suppress(psutil.Error, ProcessLookupError):
            if one.pid == os.getpgid(one.pid) and words in " ".join(one.cmdline()):
                return one.pid
    return 0


@pytest.fixture
def hub(real_cloud: Connection, tmp_path: Path) -> Iterator[FacilityHub]:
    with standing_in(CLOUDS_YAML, tmp_path / "stand-ins") as (_, clouds_yaml), connection("hutch-app", clouds_yaml) as cloud:
        devcloud: Any = SimpleNamespace(clouds_yaml=clouds_yaml, connect=lambda: cloud)
        with started(FacilityHub(tmp_path / "hub", devcloud, CONFIG + ON_REAL_API)) as hub:
            yield hub


@pytest.mark.timeout(900)
def test_all_is_as_it_was_asked_for_whatever_is_killed(hub: FacilityHub) -> None:
    run = Chaos(hub, CloudVictims(hub, random.Random(SEED)), SEED, operations=8, people=3, operations_per_kill=1)  # noqa: S311
    report = run.run()
    print(report.as_table())
    assert report.right, report.as_json()
    assert report.kills.total() >= 5
