"""OpenStackSpawner without a hub around it: a test starts, stops and deletes by itself what JupyterHub would."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from spawner.openstack import OpenStackSpawner


class SpawnerAlone(OpenStackSpawner):
    """Every stop is meant, and a notebook is told nothing."""

    def get_env(self) -> dict[str, str]:
        return {}

    def get_args(self) -> list[str]:
        return []

    def stop_is_meant(self) -> bool:
        return True


def spawner_alone(clouds_yaml: Path, user: str = "ann", name: str = "films", **traits: Any) -> SpawnerAlone:
    """traits: settings of the spawner."""
    person = SimpleNamespace(name=user, id=1, url=f"/user/{user}/", settings={})
    record = SimpleNamespace(name=name, display_name=name, server=None, user=person)
    settings = {
        "cloud_name": "devcloud",
        "clouds_yaml": str(clouds_yaml),
        "image": "hutch-notebook",
        "flavor": "m1.small",
        "fast_listing_seconds": 0.05,
        "slow_listing_seconds": 0.2,
        "stop_timeout_seconds": 20,
        "boot_timeout_seconds": 60,
    }
    return SpawnerAlone(user=person, orm_spawner=record, **settings | traits)
