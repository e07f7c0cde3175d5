"""Fixtures, and the table: `--contract-table FILE` writes there which spawner bears which situation."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from .driver import Driver
from .hub import Hub, Server

_numbers = itertools.count(1)
BEGIN, END = "<!-- table: made by the run -->\n", "<!-- end of the table -->\n"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--contract-table", metavar="FILE", help="write which spawner bears which situation into this Markdown file")


def pytest_configure(config: pytest.Config) -> None:
    config._contract_results = {}  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def jupyterhub_process(driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    hub = Hub(tmp_path_factory.mktemp("contract-hub"), driver)
    hub.start()
    yield hub
    hub.stop()


@pytest.fixture
def jupyterhub(jupyterhub_process: Hub, driver: Driver) -> Iterator[Hub]:
    """One hub for all situations of a spawner, up at the beginning of each."""
    if not jupyterhub_process.is_up():
        jupyterhub_process.start()
    yield jupyterhub_process
    driver.restore()


@pytest.fixture
def server(jupyterhub: Hub, driver: Driver, request: pytest.FixtureRequest) -> Server:
    situation = request.node.originalname.removeprefix("test_")
    if why := driver.known_failures.get(situation):
        request.applymarker(pytest.mark.xfail(reason=why, strict=not why.startswith("sometimes")))
    user = f"user{next(_numbers)}"
    jupyterhub.api("POST", f"users/{user}").raise_for_status()
    return Server(jupyterhub, driver, user)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    driver = getattr(item, "funcargs", {}).get("driver")
    if isinstance(driver, Driver) and (call.when == "call" or not report.passed):
        results: dict[str, Any] = item.config._contract_results  # type: ignore[attr-defined]
        first, _, why = inspect.cleandoc(item.function.__doc__).partition("\n")  # type: ignore[attr-defined]
        row = results.setdefault(item.originalname, {"text": first, "why": " ".join(why.split()), "of": {}})  # type: ignore[attr-defined]
        row["of"].setdefault(driver.name, _verdict(report))
    return report


def _verdict(report: pytest.TestReport) -> tuple[str, str]:
    if hasattr(report, "wasxfail"):
        sometimes, why = report.wasxfail.startswith("sometimes"), report.wasxfail.removeprefix("sometimes: ")
        return ("fails at times" if sometimes else "fails"), why
    if report.skipped:
        return "–", str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr).removeprefix("Skipped: ")
    return ("yes", "") if report.passed else ("fails, unexpectedly", str(report.longrepr).splitlines()[-1])


def pytest_sessionfinish(session: pytest.Session) -> None:
    results = session.config._contract_results  # type: ignore[attr-defined]
    if (file := session.config.getoption("--contract-table")) and results:
        path = Path(file)
        text = path.read_text() if path.exists() else BEGIN + END
        head, tail = text.partition(BEGIN)[0], text.partition(END)[2]
        path.write_text(head + BEGIN + table(results) + END + tail)


def table(results: dict[str, Any]) -> str:
    columns = list(dict.fromkeys(name for row in results.values() for name in row["of"]))
    notes: list[str] = []

    def cell(name: str, row: dict[str, Any]) -> str:
        word, why = row["of"].get(name, ("not run", ""))
        if not why:
            return word
        note = f"{name}: {why}"
        if note not in notes:
            notes.append(note)
        return f"{word} ({notes.index(note) + 1})"

    lines = [f"| situation | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| {row['text']} | {' | '.join(cell(name, row) for name in columns)} |" for row in results.values()]
    lines += ["", *(f"{number}. {note}" for number, note in enumerate(notes, 1)), "", "Why each matters:", ""]
    return "\n".join(lines + [f"- *{row['text']}* {row['why']}" for row in results.values()]) + "\n"
