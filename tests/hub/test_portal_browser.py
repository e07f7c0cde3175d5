"""The portal in a browser, with scripts: what changes by itself, the keyboard, and what is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from itertools import count

import browser
import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect

from hub.instances import conclude, create, intend
from hub.notices import tell

pytestmark = pytest.mark.any_database

FIRST_LOAD_BYTES = 200 * 1024
NUMBERS = count()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser.chromium() as running:
        yield running


@pytest.fixture
def person(running_hub):
    return running_hub.add_person(
        f"eve{next(NUMBERS)}", experiments={"Perovskite films": -1, "Batteries at work": -1, "Old scans": -9}
    )


@pytest.fixture
def context(chromium) -> Iterator[BrowserContext]:
    context = chromium.new_context(viewport={"width": 390, "height": 844}, timezone_id="Europe/Paris")
    yield context
    context.close()


@pytest.fixture
def page(running_hub, context, person) -> Iterator[Page]:
    """Signed in, on a phone. A test fails when a page says anything on the console."""
    running_hub.release.unlink(missing_ok=True)
    page, complaints = context.new_page(), []
    page.goto(running_hub.portal)
    page.fill("input[name=username]", person)
    page.fill("input[name=password]", "rehearsal")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("My instances")
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    assert complaints == []


def stopped_instance(running_hub, person: str) -> None:
    with running_hub.session() as session:
        made = create(
            session,
            owner_id=f"id-{person}",
            server_name="films",
            display_name="Films",
            plan_id="held",
            experiment_ids=[f"{person}-0"],
            lifetime=timedelta(days=3),
        )
        conclude(session, intend(session, made.id, "stop", person), "done")


def test_a_launch_from_the_form_to_the_notebook(running_hub, page, person):
    page.get_by_role("link", name="New instance").first.click()
    page.get_by_label("Perovskite films").check()
    expect(page.get_by_label("Name", exact=False)).to_have_value("Perovskite films")
    page.get_by_label("X-ray desktop").check()
    page.get_by_role("button", name="Launch").click()
    expect(page.get_by_role("status").first).to_have_text("Booting")
    expect(page.locator(".clock")).to_have_text(re.compile(r"[1-9]\d* s"))
    running_hub.release.touch()
    page.wait_for_url(f"http://{person}.localhost:{running_hub.port}/user/{person}/perovskite-films/lab")
    page.go_back()
    expect(page.get_by_role("heading", level=1)).to_have_text("New instance"), "the way back is not a trap"


def test_a_quick_launch_goes_on_too(running_hub, page, person):
    page.goto(f"{running_hub.portal}new?experiment={person}-0")
    page.get_by_role("button", name="Launch").click()
    page.wait_for_url(f"http://{person}.localhost:{running_hub.port}/user/{person}/*/lab")


def test_a_failed_launch_is_shown_where_it_was_followed(running_hub, page, person):
    page.goto(f"{running_hub.portal}new?experiment={person}-0&plan=fails")
    page.get_by_role("button", name="Launch").click()
    expect(page.get_by_text("The server did not boot.").first).to_be_visible()
    expect(page.get_by_role("link", name="Choose another plan")).to_be_visible()


def test_a_launch_that_fails_while_it_is_followed_is_said_aloud_once(running_hub, page, person):
    page.goto(f"{running_hub.portal}new?experiment={person}-0&plan=dies")
    page.get_by_role("button", name="Launch").click()
    expect(page.get_by_role("status").first).to_have_text("Booting")
    running_hub.release.touch()
    expect(page.get_by_role("alert").get_by_text("The server did not boot.")).to_be_visible()
    page.reload()
    expect(page.get_by_text("The server did not boot.").first).to_be_visible()
    expect(page.get_by_role("alert")).to_have_count(0)


def test_the_search_filters_while_one_types_and_choices_stay(running_hub, page, person):
    page.goto(f"{running_hub.portal}new")
    page.get_by_label("Batteries at work").check()
    page.get_by_label("Search your experiments").press_sequentially("old")
    expect(page.get_by_label("Perovskite films")).to_have_count(0)
    expect(page.get_by_label("Old scans")).to_be_visible()
    expect(page.get_by_label("Batteries at work")).to_be_checked()
    assert page.evaluate("document.activeElement.id") == "search"
    expect(page.get_by_role("status")).to_have_text("2 experiments listed; 5 of 6 plans possible, Notebook is chosen")


def test_cards_follow_what_becomes_of_an_instance(running_hub, page, person):
    stopped_instance(running_hub, person)
    page.goto(running_hub.portal)
    page.get_by_role("button", name="Start Films").click()
    page.goto(running_hub.portal)
    expect(page.get_by_role("status")).to_have_text("1 launching")
    running_hub.release.touch()
    expect(page.get_by_role("link", name="Open JupyterLab of Films")).to_be_visible(timeout=15_000)


def test_everything_is_reached_by_keyboard_in_order_with_a_visible_focus(running_hub, page, person):
    page.goto(f"{running_hub.portal}new?experiment={person}-0")
    reached: list[str] = []
    while "launch" not in reached:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.innerText.trim()"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", reached[-1]
    bar = ["Skip to the content", "Hutch", "My instances", "New instance"]
    wanted = [*bar, "search", f"experiment-{person}-1", "plan-quick", "name", "launch"]
    assert [one for one in reached if one in wanted] == wanted


@pytest.mark.parametrize("path", ["", "new", "instances/films", "instances/films/delete"])
def test_pages_fit_a_phone_and_can_be_pressed(running_hub, page, person, path):
    stopped_instance(running_hub, person)
    page.goto(running_hub.portal + path)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    small = page.evaluate(
        "[...document.querySelectorAll('.btn, nav a, .choice label, .form-control')]"
        ".filter(e => e.offsetHeight && e.offsetHeight < 44).map(e => e.outerHTML)"
    )
    assert small == []
    assert page.locator("h1").count() == page.locator("main").count() == 1
    unnamed = page.evaluate("[...document.querySelectorAll('input:not([type=hidden])')].filter(e => !e.labels.length).length")
    assert unnamed == 0


def test_times_are_shown_in_the_readers_zone(running_hub, page, person):
    page.goto(f"{running_hub.portal}new")
    shown, stamp = page.evaluate("(t => [t.textContent, t.dateTime])(document.querySelector('time[data-exact]'))")
    hour = (int(stamp[11:13]) + (2 if "-07-" in stamp else 1)) % 24
    assert f"{hour:02}:" in shown


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_colour_scheme_follows_the_readers_wish(running_hub, page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.goto(running_hub.portal)
    assert page.locator("html").get_attribute("data-bs-theme") == scheme


def test_a_first_load_is_small(running_hub, chromium, page):
    sizes: list[int] = []
    session = page.context.new_cdp_session(page)
    session.send("Network.enable")
    session.send("Network.setCacheDisabled", {"cacheDisabled": True})
    session.on("Network.loadingFinished", lambda event: sizes.append(int(event["encodedDataLength"])))
    page.goto(f"{running_hub.portal}new", wait_until="networkidle")
    assert 10_000 < sum(sizes) < FIRST_LOAD_BYTES


def test_signing_out_at_the_hub_ends_the_portals_session_too(running_hub, page):
    page.goto(f"{running_hub.hub}logout")
    page.goto(running_hub.portal)
    expect(page.locator("input[name=password]")).to_be_visible()


def test_a_notice_appears_by_itself_is_read_out_and_goes_at_a_key(running_hub, page, person):
    stopped_instance(running_hub, person)
    page.goto(running_hub.portal)
    page.get_by_role("button", name="Start Films").click()
    page.goto(running_hub.portal)
    notices = page.get_by_role("region", name="Notices")
    expect(notices).to_have_attribute("aria-live", "polite")
    with running_hub.session() as session:
        tell(session, f"id-{person}", "Films was stopped", "You are no longer on the team.")
    expect(notices).to_contain_text("You are no longer on the team.")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    dismiss = page.get_by_role("button", name="Dismiss Films was stopped")
    assert dismiss.bounding_box()["height"] >= 44
    dismiss.focus()
    page.keyboard.press("Enter")
    expect(notices.get_by_role("button")).to_have_count(0)
    expect(page.get_by_role("heading", level=1)).to_have_text("My instances")
