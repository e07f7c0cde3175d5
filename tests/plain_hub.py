"""A hub with OpenStackSpawner and nothing of a facility, on a devcloud, for one user: ann."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from running_hub import RunningHub

from spawner.devcloud.process import DevcloudProcess

CONFIG = """
c.JupyterHub.authenticator_class = "dummy"
c.Authenticator.allow_all = True
c.JupyterHub.allow_named_servers = True
c.JupyterHub.cleanup_servers = False
c.JupyterHub.spawner_class = "spawner.openstack.OpenStackSpawner"
c.OpenStackSpawner.cloud_name = "devcloud"
c.OpenStackSpawner.clouds_yaml = {clouds_yaml!r}
c.OpenStackSpawner.image = "hutch-notebook"
c.OpenStackSpawner.flavor = "m1.small"
c.OpenStackSpawner.fast_listing_seconds = 0.2
"""


@contextmanager
def plain_hub(folder: Path, cloud: DevcloudProcess, more: str) -> Iterator[RunningHub]:
    """more: the test's own settings."""
    hub = RunningHub(folder, CONFIG.format(clouds_yaml=str(cloud.clouds_yaml)) + more)
    try:
        hub.start()
        hub.add_user("ann")
        yield hub
    finally:
        hub.stop()
