"""The whole story in a real browser, on a virtual machine of the real cloud: launch, work, share the desktop, stop, start, find the
file, delete."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from browser import chromium, delete_instance, run_cell
from desktops import (
    SESSION,
    Desk,
    baton_goes_over_and_back,
    drives,
    guest_is_removed,
    guest_only_watches,
    paint,
    share_of,
    support_asks_and_is_let_in,
)
from facility_hub import FacilityHub
from openstack.connection import Connection
from playwright.sync_api import Browser, Page, expect
from running_hub import until
from sqlalchemy import select

from hub.database.tables import Instance

CLOUDS_YAML = os.environ.get("HUTCH_TEST_CLOUD", "")
# an emulated processor on a busy machine
LAUNCH_MS = 500_000
WRITTEN = (
    "from pathlib import Path; Path('kept.txt').write_text('beam on'); session = Path.home() / '.config/hutch/desktop'; "
    f"session.parent.mkdir(parents=True); session.write_text({SESSION!r}); session.chmod(0o755); print(6 * 7)"
)
CONFIG = """
c.JupyterHub.hub_ip = "10.77.0.1"
c.ConfigurableHTTPProxy.api_url = c.ConfigurableHTTPProxy.api_url.replace("http:", "https:")
c.Hutch.delete_grace_days = 0
c.Hutch.desktop_relays = 1
c.Spawner.http_timeout = 120
c.OpenStackSpawner.cloud_name = "hutch-app"
c.OpenStackSpawner.network = "hutch"
c.OpenStackSpawner.availability_zone = "real"
c.OpenStackSpawner.boot_timeout_seconds = 400
c.OpenStackSpawner.stop_timeout_seconds = 150
c.OpenStackSpawner.fast_listing_seconds = 1
c.OpenStackSpawner.slow_listing_seconds = 5
"""


@pytest.fixture
def facility(real_cloud: Connection, firewall: Callable[[str], str], tmp_path: Path) -> Iterator[FacilityHub]:
    guarded = f"c.OpenStackSpawner.security_groups = [{firewall('10.77.0.1')!r}]\n"
    hub = FacilityHub(tmp_path, SimpleNamespace(clouds_yaml=CLOUDS_YAML), CONFIG + guarded)
    hub.plan("machine", image="base-desktop", flavor="m1.small")
    try:
        hub.start()
        yield hub
    finally:
        hub.stop()
        print(hub.log_end())


@pytest.fixture
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.mark.timeout(1500)
def test_a_real_machine_is_worked_on_and_shared(
    facility: FacilityHub, browser: Browser, real_cloud: Connection, tmp_path: Path
) -> None:
    home = f"http://localhost:{facility.port}/hub/home"
    owner, guest, support = (sign_in(browser, home, login) for login in ("dave", "bob", "frank"))
    try:
        launches(owner, home)
        with facility.session() as session:
            (instance,) = session.scalars(select(Instance.id))
        shares(owner, guest, support, Desk(instance, facility.sessions))
        stops_and_finds_the_file(owner, home)
        delete_instance(owner, home, "Films")
        expect(owner.get_by_role("heading", level=1)).to_have_text("My instances")
    except BaseException:
        for name, page in {"owner": owner, "guest": guest, "support": support}.items():
            page.screenshot(path=tmp_path / f"{name}.png")
            print(name, page.url, page.locator("body").inner_text()[:2000])
        raise
    until(lambda: not list(real_cloud.compute.servers()), "its server is gone", 200)
    until(lambda: not [one for one in real_cloud.network.ports() if one.name.startswith("hutch-")], "its port is gone", 60)


def sign_in(browser: Browser, home: str, login: str) -> Page:
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.goto(home)
    if not (button := page.locator(f"button[value={login}]")).is_visible():
        page.get_by_text("Everybody else").click()
    button.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("My instances")
    return page


def launches(page: Page, home: str) -> None:
    page.get_by_role("link", name="New instance").first.click()
    page.get_by_label("None of them").check()
    page.locator("input[name=plan][value=machine]").check()
    page.locator("#name").fill("Films")
    page.get_by_role("button", name="Launch").click()
    until_open(page)
    run_cell(page, WRITTEN, "42")

    page.goto(home)
    page.locator("article", has_text="Films").get_by_role("link", name="Desktop").click()
    drives(page)
    # the terminal takes its time on an emulated processor, and nobody listens until it is there
    until(lambda: paint(page, "green") or page.wait_for_timeout(2000) or share_of(page, "green") > 0.5, "the desktop is green", 200)


def shares(owner: Page, guest: Page, support: Page, desk: Desk) -> None:
    """The owner is staff, so that support has to ask."""
    desk.let_in("bob", "driver")
    guest_only_watches(owner, guest, desk)
    if folder := os.environ.get("HUTCH_TEST_PICTURES"):
        guest.screenshot(path=Path(folder) / "real-desktop.png")
    baton_goes_over_and_back(owner, guest)
    support_asks_and_is_let_in(owner, support, desk, "Frank")
    guest_is_removed(owner, guest, "Bob")


def stops_and_finds_the_file(page: Page, home: str) -> None:
    page.goto(home)
    page.locator("article", has_text="Films").get_by_role("button", name="Stop").click()
    expect(page.locator("main")).to_contain_text("stopped", timeout=LAUNCH_MS)
    page.locator("main").get_by_role("button", name="Start").first.click()
    until_open(page)
    expect(page.locator(".jp-DirListing-content")).to_contain_text("kept.txt", timeout=60_000)


def until_open(page: Page) -> None:
    page.wait_for_url(re.compile(r"//dave\.localhost:\d+/user/dave/[^/]+/lab"), timeout=LAUNCH_MS)
