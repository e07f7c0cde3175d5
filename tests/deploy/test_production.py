"""The shipped files together: notebooks over TLS, for each person on a host of their own, and a hub's restart cuts nobody off."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import browser
import pytest
import requests
from playwright.sync_api import Page, TimeoutError, expect
from running_hub import until

pytestmark = [pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")]
sys.path.append(str(Path(__file__).parent))

from production import HOST, Production, production  # noqa: E402


@pytest.fixture(scope="module")
def site(tmp_path_factory, postgresql) -> Iterator[Production]:
    with production(tmp_path_factory.mktemp("production"), postgresql) as site:
        yield site


@pytest.fixture(scope="module")
def lab(site) -> Iterator[Page]:
    """Ann has signed on with the facility's provider, and works in JupyterLab."""
    site.provider.set_account("account-of-ann", preferred_username="ann")
    with browser.chromium() as chromium:
        page = chromium.new_context(ignore_https_errors=True, viewport={"width": 1280, "height": 900}).new_page()
        page.on("requestfailed", lambda request: print("failed:", request.url, request.failure))
        page.goto(site.address)
        if not page.locator("input[name=login]").is_visible():
            page.get_by_role("link", name="Example Facility").click()
        page.fill("input[name=login]", "account-of-ann")
        page.fill("input[name=password]", "any")
        page.get_by_role("button", name="Sign-in").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("My instances", timeout=30_000)
        page.get_by_role("link", name="New instance").first.click()
        page.get_by_role("button", name="Launch").click()
        page.wait_for_url(re.compile(rf"https://ann\.{HOST}:\d+/user/ann/[^/]+/lab"), timeout=90_000)
        until(lambda: has_a_kernel(page), "JupyterLab has a kernel", 180)
        yield page


def has_a_kernel(page: Page) -> bool:
    """Opens a new notebook. A browser drops what it loads when this machine gets or loses a network interface."""
    page.goto(page.url.partition("/lab")[0] + "/lab?reset")
    try:
        page.locator(".jp-LauncherCard[title*='Python 3']").first.click()
        page.get_by_text("| Idle").wait_for(timeout=60_000)
    except TimeoutError:
        return False
    return True


def run_code(page: Page, code: str, answer: str) -> None:
    """In the last cell of the notebook that is open."""
    cell = page.locator(".jp-Notebook .jp-Cell").last
    cell.locator(".cm-content").click()
    page.keyboard.type(code)
    page.keyboard.press("Shift+Enter")
    expect(page.locator(".jp-OutputArea-output").last).to_contain_text(answer, timeout=60_000)


def test_plain_http_is_sent_to_https_and_browsers_keep_to_it(site):
    sent = requests.get(
        f"http://127.0.0.1:{site.ports['http']}/hub/home?x=1", headers={"Host": f"ann.{HOST}"}, allow_redirects=False, timeout=10
    )
    assert (sent.status_code, sent.headers["Location"]) == (301, f"https://ann.{HOST}/hub/home?x=1")
    for host in (HOST, f"ann.{HOST}"):
        assert "includeSubDomains" in site.get("/hub/health", host).headers["Strict-Transport-Security"]


def test_the_proxy_is_told_what_to_do_by_the_hub_only(site):
    routes = f"http://127.0.0.1:{site.ports['proxy_api']}/api/routes"
    assert requests.get(routes, timeout=10).status_code == 403
    token = (site.etc / "proxy-token").read_text()
    assert requests.get(routes, headers={"Authorization": f"token {token}"}, timeout=10).status_code == 200


def test_the_proxy_shows_its_metrics_on_this_machine(site):
    shown = requests.get(f"http://127.0.0.1:{site.ports['proxy_metrics']}/metrics", timeout=10)
    assert shown.ok and "requests" in shown.text


def test_a_notebook_runs_and_what_signs_on_is_sent_by_https_only(site, lab):
    run_code(lab, "print(6 * 7)", "42")
    cookies = lab.context.cookies()
    ours = [cookie for cookie in cookies if cookie["domain"].endswith(HOST)]
    assert {cookie["domain"].lstrip(".") for cookie in ours} >= {HOST, f"ann.{HOST}"}
    # a notebook's own _xsrf cookie signs nobody on
    assert {(cookie["domain"], cookie["name"]) for cookie in ours if not cookie["secure"]} <= {(f"ann.{HOST}", "_xsrf")}


def test_a_large_file_is_uploaded(site, lab):
    size = 20 * 1024 * 1024
    answer = lab.evaluate(
        """async size => {
            const base = location.pathname.replace(/lab.*/, ''), xsrf = document.cookie.match(/_xsrf=([^;]*)/)[1];
            const body = JSON.stringify({type: 'file', format: 'text', content: 'x'.repeat(size)});
            const put = await fetch(`${base}api/contents/large.txt`, {method: 'PUT', body, headers: {'X-XSRFToken': xsrf}});
            return [put.status, (await put.json()).size];
        }""",
        size,
    )
    assert answer == [201, size]


def test_a_notebook_goes_on_while_the_hub_is_down_and_after_it_is_back(site, lab):
    run_code(lab, "kept = 'from before'; print('ready')", "ready")
    site.stop_hub()
    assert site.get("/hub/health").status_code in (502, 503)
    run_code(lab, "print(kept + ', without a hub')", "from before, without a hub")
    site.start_hub()
    run_code(lab, "print(kept + ', with a new one')", "from before, with a new one")
    lab.goto(f"{site.address}/hub/home")
    expect(lab.get_by_role("heading", level=1)).to_have_text("My instances")
    expect(lab.locator("main")).to_contain_text("running")
