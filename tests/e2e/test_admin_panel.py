"""JupyterHub's own admin panel, on somebody else's instance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from playwright.sync_api import Locator, Page, expect

LAUNCH_MS = 90_000


def test_an_admin_stops_starts_and_deletes_from_the_admin_panel(sign_in: Callable[[str], Page], demo: Any) -> None:
    carol = sign_in("carol")
    carol.get_by_role("link", name="New instance").first.click()
    carol.get_by_label("Name", exact=False).last.fill("Carol's steels")
    carol.get_by_role("button", name="Launch").click()
    carol.wait_for_url("**/user/carol/*/lab*", timeout=LAUNCH_MS)
    carol.goto(f"{demo.address}/hub/home")

    grace = sign_in("grace")
    server(grace, demo).locator(".stop-button").click()
    expect(server(grace, demo).locator(".start-button")).to_have_text("Start Server", timeout=LAUNCH_MS)
    carol.reload()
    expect(carol.locator("article", has_text="Carol's steels")).to_contain_text("stopped")

    server(grace, demo).locator(".start-button").click()
    expect(carol.locator("article", has_text="Carol's steels")).to_contain_text("running", timeout=LAUNCH_MS)

    server(grace, demo).locator(".stop-button").click()
    expect(server(grace, demo).locator(".start-button")).to_have_text("Start Server", timeout=LAUNCH_MS)
    server(grace, demo).locator(".delete-button").click()
    carol.reload()
    expect(carol.locator("main")).to_contain_text("can be restored")


def server(page: Page, demo: Any) -> Locator:
    """The row of Carol's instance, in a panel that was just loaded."""
    page.goto(f"{demo.address}/hub/admin?name_filter=carol")
    return page.locator("tr", has_text="carols-steels")
