"""JupyterHub's own admin panel, on somebody else's instance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from playwright.sync_api import Locator, Page, TimeoutError, expect
from running_hub import until

LAUNCH_MS = 90_000


def test_an_admin_stops_starts_and_deletes_from_the_admin_panel(sign_in: Callable[[str], Page], demo: Any) -> None:
    carol = sign_in("carol")
    carol.get_by_role("link", name="New instance").first.click()
    carol.get_by_role("checkbox").first.check()
    carol.get_by_label("Name", exact=False).last.fill("Carol's steels")
    carol.get_by_role("button", name="Launch").click()
    carol.wait_for_url("**/user/carol/*/lab*", timeout=LAUNCH_MS)
    carol.goto(f"{demo.address}/hub/home")

    grace = sign_in("grace")
    press(grace, demo, "Stop Server")
    shows(grace, demo, "Start Server")
    carol.reload()
    expect(carol.locator("article", has_text="Carol's steels")).to_contain_text("stopped")

    press(grace, demo, "Start Server")
    expect(carol.locator("article", has_text="Carol's steels")).to_contain_text("running", timeout=LAUNCH_MS)

    press(grace, demo, "Stop Server")
    shows(grace, demo, "Start Server")
    press(grace, demo, "Delete Server")
    carol.reload()
    expect(carol.locator("main")).to_contain_text("can be restored", timeout=LAUNCH_MS)


def row(page: Page, demo: Any) -> Locator:
    """The row of Carol's instance, in a panel that was just loaded, as it does not follow what happens."""
    found = page.get_by_test_id("user-row-carol-carol-s-steels")

    def loaded() -> bool:
        # what it asked for while the hub was busy, it does not ask again
        page.goto(f"{demo.address}/hub/admin?name_filter=carol")
        try:
            found.wait_for(timeout=10_000)
        except TimeoutError:
            return False
        return True

    until(loaded, "the panel shows Carol's instance")
    return found


def shows(page: Page, demo: Any, button: str) -> None:
    until(lambda: row(page, demo).get_by_role("button", name=button).is_visible(), f"the panel offers: {button}")


def press(page: Page, demo: Any, button: str) -> None:
    row(page, demo).get_by_role("button", name=button).click()
