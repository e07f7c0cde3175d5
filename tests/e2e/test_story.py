"""The whole story in a real browser, on the demo as `make demo` starts it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
from browser import delete_instance, run_cell
from playwright.sync_api import Browser, Page, expect

LAUNCH_MS = 90_000
WRITTEN = "from pathlib import Path; Path('kept.txt').write_text('beam on'); print(6 * 7)"


def test_a_scientist_works_in_an_instance_of_their_own(sign_in: Callable[[str], Page], demo: Any) -> None:
    ann = sign_in("ann")

    # only her own experiments
    ann.get_by_role("link", name="New instance").first.click()
    expect(ann.get_by_role("heading", level=1)).to_have_text("New instance")
    expect(ann.locator("body")).to_contain_text("MA-5012")
    bob = sign_in("bob")
    bob.get_by_role("link", name="New instance").first.click()
    shown_to_bob = set(re.findall(r"\b[A-Z]{2}-\d{4}\b", bob.locator("main").inner_text()))
    shown_to_ann = set(re.findall(r"\b[A-Z]{2}-\d{4}\b", ann.locator("main").inner_text()))
    assert shown_to_ann and shown_to_bob and not shown_to_ann & shown_to_bob

    # launches, and is taken to JupyterLab
    ann.get_by_label("Name", exact=False).last.fill("Films “α” 🧪")
    ann.get_by_role("button", name="Launch").click()
    ann.wait_for_url(re.compile(r"//ann\.localhost:\d+/user/ann/[^/]+/lab"), timeout=LAUNCH_MS)
    lab = ann.url
    run_cell(ann, WRITTEN, "42")
    expect(ann.get_by_text("official Jupyter news")).to_have_count(0)

    # nobody else sees or opens it: pages, API, direct address
    bob.goto(f"{demo.address}/hub/home")
    expect(bob.get_by_role("heading", level=1)).to_have_text("My instances")
    expect(bob.locator("main")).not_to_contain_text("Films")
    name = urlsplit(lab).path.split("/")[3]
    assert bob.goto(f"{bob.url}instances/{name}").status == 404
    assert bob.goto(lab).status == 403
    expect(bob.locator("body")).not_to_contain_text("Traceback")
    contents = lab.removesuffix("/lab").replace("ann.localhost", "127.0.0.1") + "/api/contents"
    api = requests.get(contents, headers={"Host": urlsplit(lab).netloc}, timeout=10)
    assert api.status_code in (403, 404)

    # stops, starts, and finds the file again
    ann.goto(f"{demo.address}/hub/home")
    ann.locator("article", has_text="Films").get_by_role("button", name="Stop").click()
    expect(ann.locator("main")).to_contain_text("stopped", timeout=LAUNCH_MS)
    ann.locator("main").get_by_role("button", name="Start").first.click()
    ann.wait_for_url(re.compile(r"//ann\.localhost:\d+/user/ann/[^/]+/lab"), timeout=LAUNCH_MS)
    expect(ann.locator(".jp-DirListing-content")).to_contain_text("kept.txt", timeout=60_000)

    delete_instance(ann, f"{demo.address}/hub/home", "Films")
    expect(ann.locator("main")).to_contain_text("can be restored", timeout=LAUNCH_MS)


@pytest.mark.parametrize("width", [390, 1280])
def test_where_somebody_is_from_stands_below_the_name_on_the_sign_on_page(browser: Browser, demo: Any, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(demo.address)
    person = page.get_by_role("button", name="Ann Lindqvist")
    name, home = (person.locator(part).bounding_box() for part in ("strong", ".small"))
    assert name and home
    assert name["y"] + name["height"] <= home["y"] and name["x"] == home["x"]
