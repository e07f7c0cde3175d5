"""Relays with a real hub, portal, agent and Xvnc: who comes in, who is put out and when, and what is written down."""

from __future__ import annotations


def test_the_owner_sees_and_drives_their_desktop(desktops, instance, owner):
    page = desktops.opened(instance, owner).until_shown(drives=True)
    assert [(one["id"], one["part"], one["control"]) for one in page.room["people"]] == [(owner.id, "owner", True)]
    page.type()
    desktops.until_session(instance, owner, lambda row: row.keys == 2, "two keys are counted")
