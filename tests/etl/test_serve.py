"""The service as a process: scheduled runs, what goes wrong with them, the mail that says so, and what Prometheus reads."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from databases import database_url, upgrade
from etl_service import EtlService
from running_hub import free_port, until
from sqlalchemy import insert

from etl.serve import Service, serve
from hub.configuration import ConfigurationError, Hutch
from hub.database.engine import open_database
from hub.database.tables import EtlRun

FACILITY = {
    "users": "id,login,family_name\nNAME-1,NAME-1,Lindqvist\n",
    "instruments": "id,name\nNAME-I,Nano\n",
    "proposals": "id,title\nNAME-P,Cracks\n",
    "experiments": "id,proposal_id,instrument_id\nNAME-E,NAME-P,NAME-I\n",
    "experiment_members": "experiment_id,user_id,role\nNAME-E,NAME-1,member\n",
}
NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
# not in the runs that it starts
HURRY = """
import sys
if "serve" in sys.argv:
    import etl.serve
    etl.serve.LOOK_SECONDS = 0.1
"""


class Mailbox:
    """A real SMTP server and what came to it."""

    def __init__(self) -> None:
        self.mails: list[EmailMessage] = []
        self.port = free_port()
        self._controller = Controller(self, hostname="127.0.0.1", port=self.port)

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        self.mails.append(message_from_bytes(envelope.content, policy=policy.default))  # type: ignore[arg-type]
        return "250 taken"

    def about(self, words: str) -> list[str]:
        return [mail.get_content() for mail in self.mails if words in mail["Subject"]]

    def __enter__(self) -> Mailbox:
        self._controller.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._controller.stop()


@pytest.fixture(scope="module")
def mailbox() -> Iterator[Mailbox]:
    with Mailbox() as mailbox:
        yield mailbox


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, mailbox: Mailbox) -> Iterator[EtlService]:
    """One for all tests; each has sources of its own."""
    mail = f"c.Hutch.smtp_url = 'smtp://127.0.0.1:{mailbox.port}'\nc.Hutch.admin_mail = 'admins@facility.example'"
    service = EtlService(tmp_path_factory.mktemp("served"), mail + HURRY)
    with service.running():
        yield service


@pytest.fixture
def source(service: EtlService) -> Iterator[Callable[..., Path]]:
    """Makes a source of files with a small facility of its own, and takes it away after the test."""
    made = []

    def make(name: str, every_minutes: float = 60) -> Path:
        folder = service.sources / name
        folder.mkdir()
        for table, lines in FACILITY.items():
            (folder / f"{table}.csv").write_text(lines.replace("NAME", name))
        made.append(folder)
        service.source(name, f'adapter = "files"\nevery_minutes = {every_minutes}\n[settings]\nfolder = "{name}"')
        return folder

    yield make
    for folder in made:
        folder.with_suffix(".toml").unlink()


def children(process: subprocess.Popen[bytes]) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def block(folder: Path) -> None:
    """Whoever reads users.csv from now on waits for ever."""
    (folder / "users.csv").unlink()
    os.mkfifo(folder / "users.csv")


def test_sources_run_when_they_are_due_and_never_twice_at_once(service, source):
    source("hourly")
    source("often", 0.0001)
    service.source("by-hand")
    until(lambda: len(service.runs("often")) >= 2 and service.runs("hourly"), "it ran twice")
    runs = service.runs("often")
    assert [run["outcome"] for run in runs] == ["done"] * len(runs)
    assert all(before["finished_at"] <= after["started_at"] for before, after in pairwise(runs))
    assert (len(service.runs("hourly")), service.runs("by-hand")) == (1, [])


def test_trouble_is_mailed_once_and_so_is_its_end(service, source, mailbox):
    folder = source("broken", 0.0001)
    (folder / "users.csv").rename(folder / "users.away")
    until(lambda: len([run for run in service.runs("broken") if run["outcome"] == "failed"]) >= 2, "it failed twice")
    (folder / "users.away").rename(folder / "users.csv")
    until(lambda: mailbox.about("broken is loaded again"), "the end is mailed")
    mails = mailbox.about("broken was not loaded")
    assert len(mails) == 1
    assert "users.csv missing" in mails[0]
    (folder / "users.csv").rename(folder / "users.away")
    until(lambda: len(mailbox.about("broken was not loaded")) == 2, "the second time is mailed too")
    assert service.log.read_text().count('event="not loaded" what=broken') == 2


def test_a_refused_run_is_mailed(service, source, mailbox):
    folder = source("emptied", 0.0001)
    until(lambda: service.runs("emptied"), "it is loaded")
    (folder / "experiment_members.csv").write_text("experiment_id,user_id,role\n")
    [mail] = until(lambda: mailbox.about("emptied was not loaded"), "the refusal is mailed")
    assert "experiment_member: all 1 records would end" in mail


def test_a_refused_push_is_mailed(service, mailbox):
    service.source("pushed")
    with service.client(token=service.hutch("etl", "token", "pushed")) as client:
        for batch, rows in (("1", [{"id": "P", "title": "Cracks"}]), ("2", [])):
            answer = client.post("/v1/batches/pushed", json={"batch": batch, "tables": {"proposal": rows}})
    assert answer.status_code == 409
    assert "all 1 records would end" in mailbox.about("a push to pushed was not loaded")[0]
    assert {mail["To"] for mail in mailbox.mails} == {"admins@facility.example"}


def test_a_run_that_is_killed_is_mailed_and_stops_nothing_else(service, source, mailbox):
    block(source("stuck"))
    [child] = until(lambda: children(service.process), "the run is at work")
    source("beside")
    until(lambda: service.runs("beside"), "another source is loaded meanwhile")
    os.kill(child, signal.SIGKILL)
    [mail] = until(lambda: mailbox.about("stuck was not loaded"), "it is mailed")
    assert "status -9" in mail
    assert service.runs("stuck") == []


def test_a_source_that_is_written_wrong_stops_no_other(service, source):
    service.source("wrong", 'adapter = "telepathy"')
    source("right")
    until(lambda: service.runs("right"), "the right one is loaded")
    assert "telepathy" in service.log.read_text()
    (service.sources / "wrong.toml").unlink()


def test_metrics_tell_how_fresh_a_source_is_and_name_nobody(service, source):
    folder = source("measured")
    with (folder / "users.csv").open("a") as users:
        users.write("99,UPPER,Unmistakable\n")
    until(lambda: service.runs("measured"), "it is loaded")
    text = service.get("/metrics").text
    found = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if not line.startswith("#")}
    assert 0 <= found['hutch_etl_freshness_seconds{kind="load",source="measured"}'] < 60
    assert found['hutch_etl_runs_total{kind="load",outcome="done",source="measured"}'] == 1
    assert found['hutch_etl_rows{change="added",kind="load",source="measured",table="experiment"}'] == 1
    assert found['hutch_etl_rows{change="rejected",kind="load",source="measured",table="user"}'] == 1
    assert found['hutch_etl_duration_seconds{kind="load",source="measured"}'] > 0
    assert service.get("/health").json()["fresh_seconds"]["measured (load)"] < 60
    people = {row[name] for row in service.rows("user") for name in ("id", "login", "family_name")}
    assert not [name for name in {*people, "UPPER", "Unmistakable"} if f'"{name}"' in text]


def test_a_run_ends_with_the_service(tmp_path):
    service = EtlService(tmp_path, HURRY)
    (service.sources / "stuck").mkdir()
    for table, lines in FACILITY.items():
        (service.sources / f"stuck/{table}.csv").write_text(lines)
    block(service.sources / "stuck")
    service.source("stuck", 'adapter = "files"\nevery_minutes = 1\n[settings]\nfolder = "stuck"')
    with service.running():
        [child] = until(lambda: children(service.process), "the run is at work")
        service.process.terminate()
        assert service.process.wait(30) in (0, -signal.SIGTERM)
        until(lambda: not Path(f"/proc/{child}").exists(), "the run has ended")


@pytest.mark.parametrize(
    ("minutes_ago", "every_minutes", "due"),
    [
        pytest.param(None, 60, True, id="never-run"),
        pytest.param(59, 60, False, id="not-yet"),
        pytest.param(60, 60, True, id="to-the-minute"),
        pytest.param(600, 60, True, id="overdue"),
        pytest.param(600, None, False, id="only-by-hand"),
    ],
)
def test_what_is_due_follows_from_the_last_run(tmp_path, minutes_ago, every_minutes, due):
    engine = open_database(database_url(tmp_path))
    upgrade(engine)
    (tmp_path / "office.toml").write_text('adapter = "push"' + (f"\nevery_minutes = {every_minutes}" if every_minutes else ""))
    if minutes_ago is not None:
        began = NOW - timedelta(minutes=minutes_ago)
        later = {"source": "office", "adapter": "push", "kind": "load", "started_at": NOW, "outcome": "done"}
        with engine.begin() as connection:
            connection.execute(insert(EtlRun), [{**later, "started_at": began, "outcome": "failed"}, {**later, "kind": "push"}])
    assert list(Service(Hutch(sources_dir=str(tmp_path)), engine).due(NOW)) == (["office"] if due else [])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        pytest.param({"etl_url": "http://0.0.0.0:1"}, "make it https", id="others-without-tls"),
        pytest.param({"etl_url": "https://127.0.0.1:1"}, "needs an etl_certificate", id="no-certificate"),
        pytest.param(
            {"etl_url": "https://127.0.0.1:1", "etl_certificate": "nowhere.pem"}, "cannot be used", id="missing-certificate"
        ),
    ],
)
def test_a_setting_that_cannot_work_is_said(tmp_path, monkeypatch, settings, said):
    url = database_url(tmp_path)
    upgrade(open_database(url))
    monkeypatch.setattr("hub.service.begin", lambda: None)
    with pytest.raises(ConfigurationError, match=said):
        serve(Hutch(database_url=url, **settings))
