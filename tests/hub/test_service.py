"""A service of the hub lives no longer than the hub that started it, and says the same thing once."""

import os
import subprocess
import sys

import pytest
import structlog
from running_hub import REPOSITORY

from hub import service
from hub.errors import HutchError

BEGIN = "from hub import service; service.begin(); print('at work')"


@pytest.mark.parametrize(
    ("hub", "goes_on"),
    [pytest.param(None, True, id="its-hub-is-there"), pytest.param(1, False, id="its-hub-was-killed-before-it-looked")],
)
def test_a_service_works_only_for_the_hub_that_started_it(hub, goes_on):
    environment = {**os.environ, "HUTCH_HUB_PID": str(hub or os.getpid())}
    done = subprocess.run(
        [sys.executable, "-c", BEGIN], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
    )
    assert ("at work" in done.stdout, done.returncode == 0) == (goes_on, goes_on), done.stderr
    assert goes_on or "is gone" in done.stderr


@pytest.fixture
def said(monkeypatch) -> list[dict]:
    """What is logged from here on."""
    monkeypatch.setattr(service, "_said", {})
    lines: list[dict] = []

    def keep(_logger, _method, event):
        lines.append(event)
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[structlog.processors.add_log_level, service.say_once, keep])
    yield lines
    structlog.configure(**before)


def test_what_goes_wrong_at_every_pass_is_said_once_in_a_while(said, monkeypatch):
    log = structlog.get_logger()
    for request in range(3):
        log.warning("put off", task="purge", detail=f"request {request}")
        log.warning("put off", task="expire")
        log.info("done")
    assert [one.get("task") for one in said] == ["purge", "expire", None, None, None]
    monkeypatch.setattr(service, "AGAIN_SECONDS", 0)
    log.warning("put off", task="purge", detail="request 3")
    assert said[-1] == {"event": "put off", "task": "purge", "level": "warning", "detail": "request 3", "left_out": 2}


def test_the_second_outage_is_said_though_the_first_was_a_moment_ago(said):
    def pass_by(error=None, task="purge"):
        with service.putting_off("put off", task=task):
            if error:
                raise error

    away = HutchError("the database is away")
    pass_by(away, task="expire")
    for error in (None, away, away, None, None, away):
        pass_by(error)
    pass_by(away, task="expire")
    assert [(one["event"], one["task"]) for one in said] == [
        ("put off", "expire"),
        ("put off", "purge"),
        ("well again", "purge"),
        ("put off", "purge"),
    ]


def test_another_error_of_the_same_task_is_said(said):
    for number in (1, 1, 2):
        try:
            raise RuntimeError(number)
        except RuntimeError:
            structlog.get_logger().exception("failed", task="purge")
    assert len(said) == 2


@pytest.mark.parametrize(("kind", "is_short"), [("hub.errors.HutchError", True), ("ValueError", False)])
def test_what_ends_a_service_is_one_line_where_it_is_a_sentence(kind, is_short):
    words = f"import hub.errors; from hub import service; service.begin(); raise {kind}('the database is away')"
    environment = {**os.environ, "HUTCH_HUB_PID": str(os.getpid())}
    done = subprocess.run([sys.executable, "-c", words], cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == 1 and "the database is away" in said and ("Traceback" not in said) is is_short
