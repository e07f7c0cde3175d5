"""The site's places for those who are not spawners: which cloud each of them is in."""

from __future__ import annotations

from collections.abc import Mapping

from traitlets.config import Config

from .cloud import Cloud
from .openstack import OpenStackSpawner
from .surroundings import cloud_key, make_cloud, unknown_place


def clouds(config: Config, *, threads: int = 4) -> dict[str, Cloud]:
    """{place: its cloud}, "" among them; places in the same cloud share one."""
    spawner = OpenStackSpawner(config=config)
    places = {place: cloud_key(spawner, place) for place in ("", *spawner.places)}
    made = {key: make_cloud(key, threads=threads) for key in set(places.values())}
    return {place: made[key] for place, key in places.items()}


def cloud_in(clouds: Mapping[str, Cloud], place: str) -> Cloud:
    """Raises CloudError for a place that the site no longer has."""
    if place not in clouds:
        raise unknown_place(place)
    return clouds[place]
