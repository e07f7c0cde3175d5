"""Debian's Chromium without what only people need of it, as the tests run it, and what they do in it in several places."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from running_hub import PATIENCE_SECONDS

# no sandbox, as the tests may run as root; the rest keeps Chromium from calling home
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def chromium() -> Iterator[Browser]:
    """The test is skipped where there is none (which is a failure in CI)."""
    # the whole Chromium costs several times as much for the same pages
    program = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    if program is None:
        pytest.skip("the browser is missing: apt-get install chromium-headless-shell")
    expect.set_options(timeout=PATIENCE_SECONDS * 1000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS)
        yield browser
        browser.close()


def delete_instance(page: Page, home: str, title: str) -> None:
    """From its card, after a confirmation that names it."""
    page.goto(home)
    card = page.locator("article", has_text=title)
    if not card.get_by_text("Delete").first.is_visible():
        card.locator("summary").click()
    card.get_by_text("Delete").first.click()
    expect(page.get_by_role("heading", level=1)).to_contain_text(title)
    page.get_by_role("button", name="Delete").click()


def run_cell(page: Page, code: str, answer: str) -> None:
    """A new notebook in JupyterLab, and its first cell."""
    page.locator(".jp-LauncherCard[title*='Python 3']").first.click()
    # what is run before JupyterLab has settled on a kernel can be lost
    expect(page.get_by_text("| Idle")).to_be_visible(timeout=60_000)
    cell = page.locator(".jp-Notebook .jp-Cell").first
    cell.locator(".cm-content").click()
    page.keyboard.type(code)
    page.keyboard.press("Shift+Enter")
    expect(cell.locator(".jp-OutputArea-output")).to_contain_text(answer)
