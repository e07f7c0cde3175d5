"""The agent's rules that need no process."""

from __future__ import annotations

import asyncio
import os
import sys

import pytest

from images.guest import identity, nurse, nursery, session, upkeep, wire


@pytest.mark.parametrize(
    ("certificate", "known"),
    [
        pytest.param({"subject": ((("commonName", "hutch-hub"),),)}, True, id="the hub"),
        pytest.param({"subject": ((("commonName", "hutch-portal"),),)}, False, id="another name"),
        pytest.param({"subject": ((("organizationName", "hutch-hub"),),)}, False, id="the name in another place"),
        pytest.param({"subject": ((("commonName", "hutch-hub"),), (("commonName", "x"),))}, False, id="two names"),
        pytest.param({"subject": ()}, False, id="no name"),
        pytest.param({}, False, id="no certificate"),
        pytest.param(None, False, id="no TLS"),
    ],
)
def test_only_the_hub_by_name_is_served(certificate, known):
    assert identity.is_hub(certificate) is known


@pytest.mark.parametrize(
    ("given", "fresh"),
    [
        pytest.param({}, False, id="the same"),
        pytest.param({"JUPYTERHUB_API_TOKEN": "t", "MY_DATA": "/data"}, False, id="what is read when it is needed"),
        pytest.param({"PYTHONPATH": "/other"}, True, id="a search path"),
        pytest.param({"PYTHONOPTIMIZE": "1"}, True, id="an interpreter's option"),
        pytest.param({"LD_LIBRARY_PATH": "/opt/lib"}, True, id="a library path"),
        pytest.param({"JUPYTER_CONFIG_DIR": "/etc/x"}, True, id="read while jupyterlab is imported"),
        pytest.param({"JUPYTERHUB_METRICS_PREFIX": "x"}, True, id="read while jupyterhub is imported"),
    ],
)
def test_only_some_variables_need_a_fresh_interpreter(given, fresh):
    ours = {"PYTHONPATH": "/ours", "HOME": "/home/ann"}
    assert nursery.needs_fresh_interpreter({**ours, **given}, ours) is fresh


def test_a_variable_taken_away_needs_a_fresh_interpreter_too():
    assert nursery.needs_fresh_interpreter({}, {"PYTHONPATH": "/ours"})


@pytest.mark.parametrize("succeed", [pytest.param(0, id="no fork"), pytest.param(1, id="only the first fork")])
def test_a_nursery_that_cannot_fork_says_so(monkeypatch, succeed):
    ours, theirs = wire.pair()
    forks, real = iter([True] * succeed), os.fork

    def fork() -> int:
        if not next(forks, False):
            raise OSError("Cannot allocate memory")
        return real()

    monkeypatch.setattr(os, "fork", fork)
    with ours, theirs, pytest.raises(OSError, match=r"allocate|no process"):
        nursery.fork_for_agent(theirs, {wire.NUMBER: 1}, os.getpid(), lambda: os._exit(0))


@pytest.mark.parametrize(
    ("service_url", "expected"),
    [
        ("http://10.0.0.5:8888", "http://10.0.0.5:8888/user/ann/a/api"),
        ("http://0.0.0.0:8888/user/ann/a/", "http://127.0.0.1:8888/user/ann/a/api"),
        ("http://:8888", "http://127.0.0.1:8888/user/ann/a/api"),
    ],
)
def test_the_notebook_is_asked_where_it_listens(service_url, expected):
    environment = {"JUPYTERHUB_SERVICE_URL": service_url, "JUPYTERHUB_SERVICE_PREFIX": "/user/ann/a/"}
    assert session.api_url(environment) == expected


async def test_whoever_listens_late_hears_a_launch_from_its_beginning():
    launch = session.Launch("1")
    await launch.tell("account", "started", "Preparing.")
    await launch.tell("ready", "done", "Your notebook answers.")
    assert [event["stage"] async for event in launch.events()] == ["account", "ready"]


ORDER = session.Order("1", "ann", {"JUPYTERHUB_API_TOKEN": "secret"}, [], 1)


async def test_an_error_of_the_agents_own_ends_the_launch(monkeypatch, tmp_path):
    """As where an account has a number and no name."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 9)
    launch = session.Session(nurse.Nurse(tmp_path), tmp_path, tmp_path, "127.0.0.1", False).accept(ORDER)
    (event,) = [event async for event in launch.events()]
    assert (event["stage"], event["state"]) == ("account", "failed")
    assert event["detail"]


@pytest.fixture
async def watched_nurse(monkeypatch, tmp_path):
    """One that need not wait long, and cannot start anything yet."""
    monkeypatch.setattr(nurse, "PAUSE_SECONDS", 0.1)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    found = nurse.Nurse(tmp_path)
    found.start()
    watch = asyncio.create_task(found.watch())
    yield found
    watch.cancel()
    found.stop()


async def test_a_nursery_that_never_answers_fails_the_launch(watched_nurse, monkeypatch, tmp_path):
    monkeypatch.setattr(nurse, "NURSERY_LIMIT_SECONDS", 0.5)
    launch = session.Session(watched_nurse, tmp_path, tmp_path, "127.0.0.1", False).accept(ORDER)
    events = [event async for event in launch.events()]
    assert [(event["stage"], event["state"]) for event in events] == [("account", "started"), ("account", "failed")]
    assert "does not answer" in events[-1]["message"]


async def test_a_nursery_that_cannot_be_started_is_tried_again(watched_nurse, monkeypatch, caplog, until, tmp_path):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    await until(lambda: "could not be started" in caplog.text, "a start failed")
    monkeypatch.undo()
    assert await watched_nurse.settle_account(False, "ann", tmp_path / "home") is None
    assert (tmp_path / "home").is_dir()


def test_a_secret_is_not_shown_with_its_order():
    order = session.Order.parse({"launch": "1", "owner": "ann", "env": {"JUPYTERHUB_API_TOKEN": "secret"}, "args": [], "port": 1})
    assert "secret" not in repr(order)


def test_a_log_that_has_grown_is_trimmed_and_the_last_part_kept(tmp_path):
    guest = session.Session(None, tmp_path, tmp_path, "127.0.0.1", False)
    log = tmp_path / "notebook.log"
    log.write_text("x" * (upkeep.LOG_BYTES + 1))
    guest.trim_log()
    assert log.read_text() == ""
    assert (tmp_path / "notebook.log.1").stat().st_size == upkeep.LOG_BYTES + 1
