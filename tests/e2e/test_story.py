"""The whole story in a real browser, on the demo as `make demo` starts it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from playwright.sync_api import Browser, Page, expect, sync_playwright
from running_hub import REPOSITORY, free_port, until

CHROMIUM = shutil.which("chromium")
# no sandbox, as the tests may run as root; the rest keeps Chromium from calling home
CHROMIUM_ARGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
LAUNCH_MS = 90_000
WRITTEN = "from pathlib import Path; Path('kept.txt').write_text('beam on'); print(6 * 7)"


@dataclass
class Demo:
    address: str
    folder: Path

    def logs(self) -> str:
        return "\n".join(f"--- {log}\n{log.read_text(errors='replace')[-4000:]}" for log in sorted(self.folder.rglob("*.log")))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """`hutch demo` in a folder of its own, on free ports."""
    folder = tmp_path_factory.mktemp("demo")
    port, ports = free_port(), [free_port() for _ in range(4)]
    config = (REPOSITORY / "jupyterhub_config.py").read_text().replace('"http://localhost:8000"', f'"http://localhost:{port}"', 1)
    config = config.replace(
        "hub.install(c, folder)",
        f"""c.JupyterHub.hub_port = {ports[0]}
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{ports[1]}"
c.ConfigurableHTTPProxy.command = [{str(REPOSITORY / "node_modules/.bin/configurable-http-proxy")!r}]
c.Hutch.portal_port = {ports[2]}
hub.install(c, folder)""",
    )
    (folder / "jupyterhub_config.py").write_text(config)
    environment = {**os.environ, "HUTCH_CONFIG": str(folder / "jupyterhub_config.py"), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "hutch", "demo", "--devcloud-port", str(ports[3])]
    with (folder / "demo.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def printed_address() -> bool:
        assert process.poll() is None, (folder / "demo.log").read_text()
        return f"http://localhost:{port}" in (folder / "demo.log").read_text()

    try:
        until(printed_address, "the demo prints its address")
        yield Demo(f"http://localhost:{port}", folder)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    assert_nothing_left(folder)


def assert_nothing_left(folder: Path) -> None:
    """Ctrl-C has ended everything that the demo started."""

    def commands() -> list[str]:
        found = []
        for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                command = cmdline.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if str(folder) in command:
                found.append(command)
        return found

    until(lambda: not commands(), f"nothing of the demo runs, but: {commands()}", 10)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        if os.environ.get("CI"):
            pytest.fail("chromium is missing, and nothing is skipped in CI: apt-get install chromium")
        pytest.skip("chromium is missing: apt-get install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=CHROMIUM_ARGS)
        yield chromium
        chromium.close()


def sign_in(browser: Browser, demo: Demo, login: str) -> Page:
    page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
    page.goto(demo.address)
    button = page.locator(f"button[value={login}]")
    if not button.is_visible():
        page.get_by_text("Everybody else").click()
    button.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("My instances")
    return page


def run_cell(page: Page, code: str, answer: str) -> None:
    """A new notebook in JupyterLab, and its first cell."""
    page.locator(".jp-LauncherCard[title*='Python 3']").first.click()
    cell = page.locator(".jp-Notebook .jp-Cell").first
    cell.locator(".cm-content").click()
    page.keyboard.type(code)
    # JupyterLab takes the cell to the kernel as soon as that is there
    page.keyboard.press("Shift+Enter")
    expect(cell.locator(".jp-OutputArea-output")).to_contain_text(answer, timeout=60_000)


def test_a_scientist_works_in_an_instance_of_their_own(browser: Browser, demo: Demo) -> None:
    try:
        _story(browser, demo)
    except Exception:
        for number, page in enumerate(page for context in browser.contexts for page in context.pages):
            page.screenshot(path=demo.folder / f"failed-{number}.png")
        print(demo.logs())
        raise


def _story(browser: Browser, demo: Demo) -> None:
    ann = sign_in(browser, demo, "ann")

    # only her own experiments
    ann.get_by_role("link", name="New instance").first.click()
    expect(ann.get_by_role("heading", level=1)).to_have_text("New instance")
    expect(ann.locator("body")).to_contain_text("MA-5012")
    bob = sign_in(browser, demo, "bob")
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

    # deletes, after a confirmation that names it
    ann.goto(f"{demo.address}/hub/home")
    card = ann.locator("article", has_text="Films")
    if not card.get_by_text("Delete").first.is_visible():
        card.locator("summary").click()
    card.get_by_text("Delete").first.click()
    expect(ann.get_by_role("heading", level=1)).to_contain_text("Films")
    ann.get_by_role("button", name="Delete").click()
    expect(ann.locator("main")).to_contain_text("can be restored", timeout=LAUNCH_MS)
