"""A desktop and the people at it, each in a browser of their own, on the demo: all of it is real.

The owner is staff, so that support has to ask. What is on the desktop is told by its pixels: a terminal fills it, and whoever types
there fills that with a colour.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from desktops import COLOURS, SESSION, SHOWN_MS, drives, is_open, paint, sees, share_of, watches, write
from playwright.sync_api import Locator, Page, expect
from running_hub import until
from sqlalchemy import select

from hub.database.engine import open_database, sessions
from hub.database.tables import Instance, InstanceMember, SupportAccess, User, now
from hub.instances import record_event

LAUNCH_MS = 90_000


@dataclass
class Desk:
    """The instance and its records."""

    id: str
    sessions: Any

    def let_in(self, login: str, role: str) -> None:
        self._change(
            "member-added",
            lambda session, user: session.add(InstanceMember(instance_id=self.id, user_id=user.id, role=role)),
            login,
        )

    def end_grants(self, login: str) -> None:
        def shorten(session: Any, user: User) -> None:
            for row in session.scalars(select(SupportAccess).filter_by(instance_id=self.id, user_id=user.id)):
                row.until = now() + timedelta(seconds=1)

        self._change("support-shortened", shorten, login)

    def _change(self, kind: str, work: Callable[[Any, User], None], login: str) -> None:
        with self.sessions.begin() as session:
            work(session, session.scalars(select(User).filter_by(login=login)).one())
            record_event(session, self.id, kind)


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


def address(page: Page, desk: Desk) -> str:
    return f"{page.url.partition('/services/portal/')[0]}/services/portal/instances/{desk.id}/desktop"


def open_desktop(page: Page, desk: Desk) -> None:
    page.goto(address(page, desk))
    is_open(page)


def ended(page: Page) -> Locator:
    expect(page.locator("body")).to_have_attribute("data-connection", "ended", timeout=SHOWN_MS)
    expect(page.get_by_role("link", name="Back to Hutch")).to_be_visible()
    return page.locator("#end-words")


def test_people_share_a_desktop_as_its_owner_allows(sign_in: Callable[[str], Page], desk: Desk, demo: Any) -> None:
    owner, guest, support = (sign_in(login) for login in ("dave", "bob", "frank"))
    assert guest.goto(address(guest, desk)).status == 404

    # the guest sees what the owner types, and cannot type
    desk.let_in("bob", "driver")
    open_desktop(owner, desk)
    drives(owner)
    open_desktop(guest, desk)
    watches(guest)
    paint(owner, "red")
    sees(owner, "red")
    sees(guest, "red")
    paint(guest, "green")
    expect(owner.locator("#people li")).to_have_count(2)
    assert share_of(owner, "green") < 0.01

    # by the baton the guest drives, and the owner takes it back
    guest.get_by_role("button", name="Ask for control").click()
    owner.locator("#asks").get_by_role("button", name="Give control").click()
    drives(guest)
    watches(owner)
    paint(guest, "green")
    sees(owner, "green")
    owner.get_by_role("button", name="Take control").click()
    drives(owner)

    # support asks, with a reason, and is let in for as long as the owner said
    support.goto(address(support, desk))
    support.get_by_label("Why do you want to come in?").fill("Dave's stage does not move")
    support.get_by_role("button", name="Ask the owner").click()
    expect(owner.locator("#asks")).to_contain_text("Frank", timeout=SHOWN_MS)
    expect(owner.locator("#asks")).to_contain_text("Dave's stage does not move")
    owner.get_by_role("button", name="Answer…").click()
    owner.get_by_label("For how many minutes").fill("1")
    owner.get_by_role("button", name="Let them in").click()
    owner.get_by_role("button", name="People").click()
    expect(owner.get_by_role("button", name="End it")).to_be_visible()
    owner.keyboard.press("Escape")
    open_desktop(support, desk)
    watches(support)
    sees(support, "green")
    desk.end_grants("frank")
    expect(ended(support)).not_to_be_empty()

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

    # who is removed is out, and stays out
    owner.get_by_role("button", name="People").click()
    owner.locator("#people li", has_text="Bob").get_by_role("button", name="Remove").click()
    owner.locator("#remove").get_by_role("button", name="Remove").click()
    expect(ended(guest)).to_contain_text("sent you away")

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
