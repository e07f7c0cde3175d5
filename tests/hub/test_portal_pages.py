"""The portal's pages, asked for as a browser without scripts does, from a real hub."""

from __future__ import annotations


def test_somebody_without_instances_is_told_what_one_is(running_hub):
    running_hub.add_person("ann", experiments={"Perovskite films under load": -1})
    page = running_hub.sign_in("ann").get("")
    assert page.status_code == 200
    assert "There is nothing here yet." in page.text
