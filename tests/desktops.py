"""A desktop whose pixels tell what was typed: a terminal fills it, and whoever types there fills that with a colour."""

from __future__ import annotations

import io

from PIL import Image
from playwright.sync_api import Page, expect
from running_hub import until

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
