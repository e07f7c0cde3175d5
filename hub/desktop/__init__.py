"""Desktops in the browser: the relay between a browser and an instance, and the room in which people share one.

An instance's room is in one relay process, chosen by the instance's id, so that who is there needs to be known nowhere else.
"""

from __future__ import annotations

from uuid import UUID


def relay_of(instance_id: str, relays: int) -> int:
    """The number of the relay that has the instance's room. Raises ValueError for what is no instance's id."""
    return UUID(instance_id).int % relays
