"""The demo as `make demo` starts it, and a real browser."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import shared_hubs
from browser import chromium
from playwright.sync_api import Browser, Page, expect
from running_hub import REPOSITORY, free_port, until


@dataclass
class Demo:
    address: str
    folder: Path

    def logs(self) -> str:
        return "\n".join(f"--- {log}\n{log.read_text(errors='replace')[-4000:]}" for log in sorted(self.folder.rglob("*.log")))


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    return shared_hubs.shared("demo", lambda: demonstration(tmp_path_factory.mktemp("demo")))


@contextmanager
def demonstration(folder: Path) -> Iterator[Demo]:
    """`hutch demo` in a folder of its own, on free ports."""
    port, ports = free_port(), [free_port() for _ in range(5)]
    config = (REPOSITORY / "jupyterhub_config.py").read_text().replace('"http://localhost:8000"', f'"http://localhost:{port}"', 1)
    config = config.replace(
        "hub.install(c, Path(__file__))",
        f"""c.JupyterHub.hub_port = {ports[0]}
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{ports[1]}"
c.ConfigurableHTTPProxy.command = [{str(REPOSITORY / "node_modules/.bin/configurable-http-proxy")!r}]
c.Hutch.portal_port = {ports[2]}
c.Hutch.desktop_port = {ports[4]}
hub.install(c, Path(__file__))""",
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

    until(lambda: not commands(), f"nothing of the demo runs, but: {commands()}")


# for one test: Playwright's loop would stand in the way of tests that bring their own
@pytest.fixture
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def sign_in(browser: Browser, demo: Demo, request: pytest.FixtureRequest) -> Iterator[Callable[[str], Page]]:
    """Signs a user on in a browser of their own; when the test fails, shows what everybody saw."""
    pages: dict[str, Page] = {}

    def sign_in(login: str) -> Page:
        pages[login] = page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
        page.goto(demo.address)
        button = page.locator(f"button[value={login}]")
        if not button.is_visible():
            page.get_by_text("Everybody else").click()
        button.click()
        expect(page.get_by_role("heading", level=1)).to_have_text("My instances")
        return page

    failed_before = request.session.testsfailed
    yield sign_in
    if request.session.testsfailed > failed_before:
        for login, page in pages.items():
            page.screenshot(path=demo.folder / f"failed-{login}.png")
        print(demo.logs())
    for page in pages.values():
        page.context.close()
