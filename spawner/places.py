"""The site's places for those who are not spawners: which cloud each of them is in."""

from __future__ import annotations

from traitlets.config import Config

from .cloud import Cloud
from .openstack import OpenStackSpawner
from .surroundings import cloud_key, make_cloud


def clouds(config: Config, *, threads: int = 4) -> dict[str, Cloud]:
    """{place: its cloud}, "" among them; places in the same cloud share one."""
    spawner = OpenStackSpawner(config=config)
    made: dict[tuple[str, str, str], Cloud] = {}
    places = {place: cloud_key(spawner, place) for place in ("", *spawner.places)}
    return {place: made.setdefault(key, make_cloud(key, threads=threads)) for place, key in places.items()}
