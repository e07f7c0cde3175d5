"""A desktop whose pixels tell what was typed: a terminal fills it, and whoever types there fills that with a colour."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from PIL import Image
from playwright.sync_api import Locator, Page, expect
from running_hub import until
from sqlalchemy import select

from hub.database.tables import InstanceMember, SupportAccess, User, now
from hub.instances import record_event

SHOWN_MS = 30_000
# xterm's own red, green and blue, and the escape sequences for them
COLOURS = {"red": ((205, 0, 0), 41), "green": ((0, 205, 0), 42), "blue": ((0, 0, 238), 44)}
SESSION = "#!/bin/sh\nexec xterm -geometry 400x120+0+0 -fa monospace -fs 10 -e env PS1=: sh\n"


def is_open(page: Page) -> None:
    expect(page.locator("body")).to_have_attribute("data-connection", "open", timeout=SHOWN_MS)
    # the last picture of the session before
    expect(page.locator("#stage .still")).to_have_count(0, timeout=SHOWN_MS)


def drives(page: Page) -> None:
    expect(page.locator("#driving")).to_have_text("You drive", timeout=SHOWN_MS)
    expect(page.locator("body")).to_have_attribute("data-control", "true")
    is_open(page)


def watches(page: Page) -> None:
    expect(page.locator("#driving")).to_contain_text("you watch", timeout=SHOWN_MS)
    expect(page.locator("body")).to_have_attribute("data-control", "false")
    is_open(page)


def write(page: Page, line: str) -> None:
    page.get_by_role("application").focus()
    page.keyboard.type(line)
    page.keyboard.press("Enter")


def paint(page: Page, colour: str) -> None:
    """Types what fills the terminal with a colour."""
    write(page, f"printf '\\033[{COLOURS[colour][1]}m'; clear")


def share_of(page: Page, colour: str) -> float:
    picture = Image.open(io.BytesIO(page.locator("#stage").screenshot())).convert("RGB")
    wanted = COLOURS[colour][0]
    counts = picture.getcolors(picture.width * picture.height) or []
    near = sum(count for count, rgb in counts if max(abs(one - other) for one, other in zip(rgb, wanted, strict=True)) < 12)
    return near / (picture.width * picture.height)


def sees(page: Page, colour: str) -> None:
    until(lambda: share_of(page, colour) > 0.5, f"the desktop is {colour}", 20)


# --- people at one desktop, each in a browser of their own


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


def address(page: Page, desk: Desk) -> str:
    return f"{page.url.partition('/services/portal/')[0]}/services/portal/instances/{desk.id}/desktop"


def open_desktop(page: Page, desk: Desk) -> None:
    page.goto(address(page, desk))
    is_open(page)


def ended(page: Page) -> Locator:
    expect(page.locator("body")).to_have_attribute("data-connection", "ended", timeout=SHOWN_MS)
    expect(page.get_by_role("link", name="Back to Hutch")).to_be_visible()
    return page.locator("#end-words")


def guest_only_watches(owner: Page, guest: Page, desk: Desk) -> None:
    """The guest sees what the owner types, and cannot type."""
    open_desktop(guest, desk)
    watches(guest)
    paint(owner, "red")
    sees(owner, "red")
    sees(guest, "red")
    paint(guest, "green")
    expect(owner.locator("#people li")).to_have_count(2)
    assert share_of(owner, "green") < 0.01


def baton_goes_over_and_back(owner: Page, guest: Page) -> None:
    guest.get_by_role("button", name="Ask for control").click()
    owner.locator("#asks").get_by_role("button", name="Give control").click()
    drives(guest)
    watches(owner)
    paint(guest, "green")
    sees(owner, "green")
    owner.get_by_role("button", name="Take control").click()
    drives(owner)


def support_asks_and_is_let_in(owner: Page, support: Page, desk: Desk, name: str) -> None:
    """With a reason, and for as long as the owner said."""
    support.goto(address(support, desk))
    support.get_by_label("Why do you want to come in?").fill("The stage does not move")
    support.get_by_role("button", name="Ask the owner").click()
    expect(owner.locator("#asks")).to_contain_text(name, timeout=SHOWN_MS)
    expect(owner.locator("#asks")).to_contain_text("The stage does not move")
    owner.get_by_role("button", name="Answer…").click()
    owner.get_by_label("For how many minutes").fill("1")
    owner.get_by_role("button", name="Let them in").click()
    owner.get_by_role("button", name="People").click()
    expect(owner.get_by_role("button", name="End it")).to_be_visible()
    owner.keyboard.press("Escape")
    open_desktop(support, desk)
    watches(support)
    sees(support, "green")
    desk.end_grants(name.lower())
    expect(ended(support)).not_to_be_empty()


def guest_is_removed(owner: Page, guest: Page, name: str) -> None:
    """They are out, and stay out."""
    owner.get_by_role("button", name="People").click()
    owner.locator("#people li", has_text=name).get_by_role("button", name="Remove").click()
    owner.locator("#remove").get_by_role("button", name="Remove").click()
    expect(ended(guest)).to_contain_text("sent you away")
