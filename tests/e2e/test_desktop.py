"""A desktop and the people at it, each in a browser of their own, on the demo: all of it is real.

The owner is staff, so that support has to ask. What is on the desktop is told by its pixels: a terminal fills it, and whoever types
there fills that with a colour.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from desktops import (
    COLOURS,
    SESSION,
    Desk,
    address,
    baton_goes_over_and_back,
    drives,
    ended,
    guest_is_removed,
    guest_only_watches,
    open_desktop,
    sees,
    share_of,
    support_asks_and_is_let_in,
    watches,
    write,
)
from playwright.sync_api import Page, expect
from running_hub import until
from sqlalchemy import select

from hub.database.engine import open_database, sessions
from hub.database.tables import Instance, User

LAUNCH_MS = 90_000


@pytest.fixture
def desk(sign_in: Callable[[str], Page], demo: Any) -> Desk:
    """Dave's instance, with a terminal as its desktop."""
    dave = sign_in("dave")
    dave.get_by_role("link", name="New instance").first.click()
    dave.get_by_label("None of them").check()
    dave.get_by_label("Name", exact=False).last.fill("Shared")
    dave.get_by_role("button", name="Launch").click()
    dave.wait_for_url(re.compile(r"/user/dave/[^/]+/lab"), timeout=LAUNCH_MS)
    dave.goto(f"{demo.address}/hub/home")
    # what an owner wants as desktop is in their home before they open it
    home = max((demo.folder / ".hutch" / "devcloud" / "servers").glob("*/home"), key=lambda path: path.stat().st_ctime)
    session_file = home / ".config" / "hutch" / "desktop"
    session_file.parent.mkdir(parents=True)
    session_file.write_text(SESSION)
    session_file.chmod(0o755)
    made = sessions(open_database(f"sqlite:///{demo.folder}/.hutch/hutch.sqlite"))
    with made.begin() as session:
        return Desk(session.scalars(select(Instance.id).join(Instance.owner).where(User.login == "dave")).one(), made)


def test_people_share_a_desktop_as_its_owner_allows(sign_in: Callable[[str], Page], desk: Desk, demo: Any) -> None:
    owner, guest, support = (sign_in(login) for login in ("dave", "bob", "frank"))
    assert guest.goto(address(guest, desk)).status == 404

    desk.let_in("bob", "driver")
    open_desktop(owner, desk)
    drives(owner)
    guest_only_watches(owner, guest, desk)
    baton_goes_over_and_back(owner, guest)
    support_asks_and_is_let_in(owner, support, desk, "Frank")

    # the relay is killed, and everybody is back in the same desktop
    kill_relay(demo.folder)
    for page in (owner, guest):
        expect(page.locator("body")).to_have_attribute("data-connection", "waiting")
    drives(owner)
    watches(guest)
    sees(guest, "green")

    # whoever drives types with the layout of their own keyboard: where the US one has z, the German one has y
    write(owner, "alias y=clear")
    write(owner, f"printf '\\033[{COLOURS['blue'][1]}m'")
    owner.get_by_role("button", name="Keyboard", exact=True).click()
    owner.get_by_label("Layout of your keyboard").select_option("de")
    owner.keyboard.press("Escape")
    until(lambda: write(owner, "z") or share_of(guest, "blue") > 0.5, "the desktop has the new layout", 20)

    guest_is_removed(owner, guest, "Bob")

    # members are out when the owner has left; a page that is loaded again is no leaving
    viewer = sign_in("carol")
    desk.let_in("carol", "viewer")
    open_desktop(viewer, desk)
    owner.reload()
    drives(owner)
    watches(viewer)
    owner.goto("about:blank")
    expect(ended(viewer)).to_contain_text("owner")


def kill_relay(folder: Path) -> None:
    """The process that carries desktops, not the one that looks after it."""
    parents = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if b"hub.desktop" in (process / "cmdline").read_bytes() and str(folder).encode() in (process / "environ").read_bytes():
                parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
    (carrying,) = [pid for pid, parent in parents.items() if parent in parents]
    os.kill(carrying, signal.SIGKILL)
