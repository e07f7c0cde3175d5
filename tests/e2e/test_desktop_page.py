"""The page around a desktop: what it takes and gives, how it comes back, and that no mouse is needed for it."""

from __future__ import annotations

import gzip
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import browser
import pytest
import requests
from desktop_stand_in import StandIn, shown
from playwright.sync_api import Browser, Page, expect
from running_hub import until

FIRST_LOAD_BYTES = 200 * 1024


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser.chromium() as running:
        yield running


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[StandIn, str]]:
    with shown(tmp_path_factory.mktemp("desktop")) as desktop:
        yield desktop


@pytest.fixture
def desktop(served: tuple[StandIn, str]) -> StandIn:
    return served[0]


@pytest.fixture
def page(chromium: Browser, served: tuple[StandIn, str]) -> Iterator[Page]:
    """Fails when the page complains, of its policy against foreign scripts for instance."""
    context = chromium.new_context(viewport={"width": 1000, "height": 700}, permissions=["clipboard-read", "clipboard-write"])
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(served[1])
    is_open(page)
    yield page
    context.close()
    assert complaints == []


def is_open(page: Page) -> None:
    expect(page.locator("body")).to_have_attribute("data-connection", "open", timeout=20_000)


def size(display: str) -> str:
    words = subprocess.run(["xdpyinfo", "-display", display], capture_output=True, text=True, check=True).stdout
    return words.partition("dimensions:")[2].split()[0]


def test_a_question_is_counted_down_by_the_clock_of_the_room(page: Page, desktop: StandIn) -> None:
    asked = {"id": "1", "name": "Ann", "until": "2026-11-22T12:00:20+00:00"}
    desktop.say({"do": "room", **desktop.room, "driver": None, "asking": [asked], "may": []})
    expect(page.get_by_role("button", name="Asked, yours in")).to_have_text(re.compile(r"yours in (1\d|20) s"))


def test_the_first_load_is_small(page: Page) -> None:
    loaded = page.evaluate("performance.getEntriesByType('resource').map((one) => one.name)")
    files = [name for name in loaded if "/static/" in name]
    assert any("desktop.js" in name for name in files) and not any("screen_keyboard" in name for name in files)
    assert sum(len(gzip.compress(requests.get(name, timeout=10).content)) for name in files) < FIRST_LOAD_BYTES


def test_text_goes_both_ways_by_itself_when_the_person_wants_it(page: Page, desktop: StandIn) -> None:
    page.get_by_role("button", name="Clipboard", exact=True).click()
    page.evaluate("navigator.clipboard.writeText('of the person: ä€')")
    page.get_by_label("Keep both clipboards the same").check()
    page.keyboard.press("Escape")

    def in_desktop() -> str:
        command = ["xclip", "-display", desktop.display, "-selection", "clipboard", "-o"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout

    until(lambda: in_desktop() == "of the person: ä€", "the desktop has what the person copied")
    copy = ["xclip", "-display", desktop.display, "-selection", "clipboard", "-i"]
    subprocess.run(copy, input="of the desktop: ß", text=True, check=True, stdout=subprocess.DEVNULL)
    until(lambda: page.evaluate("navigator.clipboard.readText()") == "of the desktop: ß", "the person has what was copied there")


def test_too_much_text_is_refused_with_the_limit(page: Page, desktop: StandIn) -> None:
    page.get_by_role("button", name="Clipboard", exact=True).click()
    page.get_by_label("Text", exact=True).fill("x" * (512 * 1024 + 1))
    page.get_by_role("button", name="Send to the desktop").click()
    expect(page.locator("#said")).to_contain_text("up to 512 KiB")


def test_keys_alone_lead_from_the_desktop_to_the_controls_and_back(page: Page) -> None:
    page.locator("#stage canvas").focus()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "CANVAS"
    page.keyboard.press("Control+Alt+Shift+KeyM")
    expect(page.locator("#home")).to_be_focused()
    for _ in range(2):
        page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="People")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#people")).to_be_visible()
    page.keyboard.press("Escape")
    page.locator("#skip").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.tagName") == "CANVAS"


def test_the_desktop_takes_the_size_of_the_window_and_of_a_sharp_screen(
    page: Page, desktop: StandIn, chromium: Browser, served: tuple[StandIn, str]
) -> None:
    stage = page.locator("#stage").bounding_box()
    assert stage
    until(lambda: size(desktop.display) == f"{stage['width']:.0f}x{stage['height']:.0f}", "the desktop is as large as the window")
    page.close()
    context = chromium.new_context(viewport={"width": 700, "height": 500}, device_scale_factor=2)
    sharp = context.new_page()
    sharp.goto(served[1])
    is_open(sharp)
    sharp.get_by_role("button", name="View", exact=True).click()
    sharp.get_by_label("Every pixel").check()
    until(lambda: size(desktop.display).startswith("1400x"), "the desktop has every pixel of the screen")
    canvas = sharp.locator("#stage canvas").bounding_box()
    assert canvas and canvas["width"] == pytest.approx(700, abs=1)
    context.close()


def test_a_page_that_was_cut_off_comes_back_and_shows_the_last_picture_meanwhile(page: Page, desktop: StandIn) -> None:
    desktop.say(None)
    expect(page.get_by_text("Connecting again")).to_be_visible()
    expect(page.locator(".still")).to_be_visible()
    is_open(page)
    expect(page.locator(".still")).to_have_count(0)


def test_somebody_who_was_put_out_reads_why_and_has_a_way_back(page: Page, desktop: StandIn) -> None:
    desktop.say({"do": "end", "rule": "owner-away", "text": "The owner has left."})
    expect(page.get_by_role("alert")).to_contain_text("The owner has left.")
    expect(page.get_by_role("link", name="Back to Hutch")).to_have_attribute("href", "/")
    expect(page.locator("body")).to_have_attribute("data-connection", "ended")


def test_the_keyboard_on_the_screen_types(page: Page, desktop: StandIn, tmp_path: Path) -> None:
    with (tmp_path / "heard").open("wb") as heard:
        command = ["xev", "-display", desktop.display, "-geometry", "2000x2000+0+0", "-event", "keyboard"]
        listener = subprocess.Popen(command, stdout=heard)
    page.get_by_role("button", name="Keyboard", exact=True).click()
    page.get_by_role("button", name="Keyboard on the screen").click()
    page.keyboard.press("Escape")

    def typed() -> bool:
        page.locator(".hg-button[data-skbtn=q]").click()
        return "(keysym 0x71, q)" in (tmp_path / "heard").read_text()

    until(typed, "the desktop heard a q", 20)
    listener.terminate()
    listener.wait()
