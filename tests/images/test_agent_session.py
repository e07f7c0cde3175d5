"""One owner and one notebook: launched, kept, brought back, ended."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import ssl
from pathlib import Path
from typing import Any

import psutil
import pytest
from certipy import Certipy

from spawner.agent_client import AgentFailed, AgentRefused
from spawner.agent_tls import notebook_certificate

STAGES = ["account", "account", "environment", "environment", "notebook", "notebook", "ready"]


async def test_a_launch_tells_its_stages_and_ends_with_a_notebook_that_answers(guest):
    assert (await guest.status())["notebook"] == "none"
    events = await guest.push(guest.session())
    assert [event["stage"] for event in events] == STAGES
    assert events[-1] == {**events[-1], "state": "done", "kept": False}
    assert all(event["message"] and event["seconds"] >= 0 for event in events)
    async with guest.browser() as browser, browser.get("lab") as page:
        assert page.status == 200
        assert "JupyterLab" in await page.text()
    status = await guest.status()
    assert status == {**status, "version": 1, "owner": "ann", "notebook": "running", "restarts": 0}
    assert status["kernels"] == {"total": 0, "busy": 0}
    assert 0 < status["memory"]["used"] < status["memory"]["total"]
    assert 0 < status["disk"]["used"] < status["disk"]["total"]
    assert status["cpu"]["cores"] == os.cpu_count()


async def test_an_instance_has_one_owner_for_ever(guest):
    await guest.push(guest.session())
    with pytest.raises(AgentRefused, match="another account"):
        await guest.push(guest.session(owner="bob", launch="2"))
    guest.switch_off()
    guest.boot()
    assert (await guest.status())["owner"] == "ann"
    with pytest.raises(AgentRefused, match="another account"):
        await guest.push(guest.session(owner="bob", launch="3"))
    assert (await guest.push(guest.session(launch="4")))[-1]["kept"] is False


async def test_pushed_again_the_notebook_and_its_kernels_live_on_with_the_new_token(guest, start_kernel, until):
    await guest.push(guest.session())
    notebook = guest.notebook_process
    async with guest.browser() as browser:
        kernel = await start_kernel(browser)
        await kernel.run("x = 42")
    events = await guest.push(guest.session(token="token-two", launch="2"))
    guest.hub.tokens.discard("token-one")
    assert events[-1]["kept"] is True
    assert guest.notebook_process == notebook
    async with guest.browser("token-one") as browser, browser.get("api/kernels") as response:
        assert response.status == 403
    async with guest.browser("token-two") as browser:
        kernel.client = browser
        assert await kernel.run("print(x)") == "42"
        newer = await start_kernel(browser)
        assert await newer.run("import os; print(os.environ['JUPYTERHUB_API_TOKEN'])") == "token-two"


async def test_another_server_of_the_owner_gets_a_notebook_of_its_own(guest):
    await guest.push(guest.session())
    notebook = guest.notebook_process
    other = guest.session(launch="2", JUPYTERHUB_SERVICE_PREFIX="/user/ann/second/")
    assert (await guest.push(other))[-1]["kept"] is False
    assert guest.notebook_process != notebook


async def test_a_launch_goes_on_without_its_listener_and_can_be_joined(guest):
    events = guest.client.push(guest.address, guest.fingerprint, guest.session())
    assert (await anext(events))["stage"] == "account"
    await events.aclose()
    joined, joined_too = await asyncio.gather(guest.push(guest.session()), guest.push(guest.session()))
    assert joined == joined_too
    assert [event["stage"] for event in joined] == STAGES


async def test_a_killed_notebook_comes_back_with_the_same_environment(guest, start_kernel, until):
    await guest.push(guest.session(PROBE="still here"))
    first = guest.notebook_process
    async with guest.browser() as browser:
        old_kernel = int(await (await start_kernel(browser)).run("import os; print(os.getpid())"))
    first.kill()

    async def is_back():
        status = await guest.status()
        return status["notebook"] == "running" and status["restarts"] == 1

    await until(is_back, "the notebook came back")
    assert guest.notebook_process != first
    assert not psutil.pid_exists(old_kernel)
    async with guest.browser() as browser:
        kernel = await start_kernel(browser)
        assert await kernel.run("import os; print(os.environ['PROBE'])") == "still here"


async def test_a_dead_nursery_comes_back_and_takes_no_notebook_along(guest, until):
    await guest.push(guest.session())
    notebook, nurseries = guest.notebook_process, guest.processes("hutch-nursery")
    assert len(nurseries) == 2
    for nursery in nurseries:
        nursery.kill()
    await until(lambda: len(new := guest.processes("hutch-nursery")) == 2 and not set(new) & set(nurseries), "new nurseries")
    assert guest.notebook_process == notebook
    notebook.kill()
    await until(lambda: guest.notebook_process not in (None, notebook), "a notebook of the new nursery")


async def test_a_push_waits_for_a_new_nursery(guest):
    for nursery in guest.processes("hutch-nursery"):
        nursery.kill()
    assert (await guest.push(guest.session()))[-1]["stage"] == "ready"


async def nurseries_of(guest, until) -> tuple[psutil.Process, psutil.Process]:
    """The one that bears notebooks, and its child that bears the processes of kernels."""
    nurseries = await until(lambda: len(found := guest.processes("hutch-nursery")) == 2 and found, "both nurseries")
    first, second = sorted(nurseries, key=lambda nursery: nursery.ppid() != guest.process.pid)
    return first, second


async def test_a_push_succeeds_although_the_nursery_of_kernels_died_alone(guest, until, start_kernel):
    notebooks, kernels = await nurseries_of(guest, until)
    kernels.kill()
    await until(lambda: guest.processes("hutch-nursery") == [notebooks], "only the other is left")
    assert (await guest.push(guest.session()))[-1]["stage"] == "ready"
    async with guest.browser() as browser:
        assert await (await start_kernel(browser)).run("print(6 * 7)") == "42"


async def test_a_question_that_was_under_way_is_asked_again_of_a_new_nursery(guest, until):
    notebooks, kernels = await nurseries_of(guest, until)
    kernels.suspend()
    events = guest.client.push(guest.address, guest.fingerprint, guest.session())
    assert (await anext(events))["stage"] == "account"
    notebooks.kill()
    assert [event["stage"] async for event in events] == STAGES[1:]


async def test_a_restart_that_fails_is_tried_again(guest, until):
    await guest.push(guest.session())
    log = guest.state / "notebook.log"
    log.rename(guest.state / "aside.log")
    log.mkdir()
    guest.notebook_process.kill()

    async def has_failed():
        return (await guest.status())["restarts"] > 1

    async def is_back():
        return (await guest.status())["notebook"] == "running"

    await until(has_failed, "a restart failed for want of a log")
    log.rmdir()
    await until(is_back, "the notebook came back")


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param("b'nonsense'", id="not JSON"),
        pytest.param("b'[1]'", id="not an object"),
        pytest.param("b'[' * 100_000", id="nested without end"),
        pytest.param("json.dumps({'number': question['number']}).encode()", id="nothing in it"),
    ],
)
async def test_a_notebook_that_its_owner_made_answer_nonsense_is_replaced(guest, answer):
    configuration = guest.home / ".jupyter" / "jupyter_server_config.py"
    configuration.parent.mkdir(parents=True)
    configuration.write_text(
        f"import json\nfrom images.guest import wire\nwire.answer = lambda connection, question, *_: connection.send({answer})\n"
    )
    await guest.push(guest.session())
    notebook = guest.notebook_process
    assert (await guest.status())["kernels"] == {"total": 0, "busy": 0}
    assert (await guest.push(guest.session(launch="2")))[-1]["kept"] is False
    assert guest.notebook_process != notebook


async def test_nothing_outlives_the_agent(guest, start_kernel, until):
    await guest.push(guest.session())
    async with guest.browser() as browser:
        await (await start_kernel(browser)).run("1")
    names = ("hutch-nursery", "jupyterhub-sing", "hutch-kernels", "python")
    children = [process for name in names for process in guest.processes(name)]
    assert len(children) >= 5
    guest.switch_off()
    await until(lambda: not any(child.is_running() for child in children), "all are gone")


async def test_told_to_end_the_agent_ends_the_notebook_too(guest, until):
    await guest.push(guest.session())
    notebook = guest.notebook_process
    guest.process.send_signal(signal.SIGTERM)
    await until(lambda: guest.process.poll() is not None, "the agent ended")
    assert guest.process.returncode == 0
    assert not notebook.is_running()


async def test_an_ended_session_can_be_launched_again(guest):
    await guest.push(guest.session())
    await guest.client.end(guest.address, guest.fingerprint)
    assert guest.notebook_process is None
    status = await guest.status()
    assert (status["notebook"], status["owner"]) == ("none", "ann")
    assert (await guest.push(guest.session()))[-1]["kept"] is False


async def test_ending_calls_off_a_launch(guest):
    events = guest.client.push(guest.address, guest.fingerprint, guest.session())
    await anext(events)
    await guest.client.end(guest.address, guest.fingerprint)
    with pytest.raises(AgentFailed, match="called off"):
        async for _ in events:
            pass
    assert guest.notebook_process is None


async def test_a_failed_launch_says_why_and_leaves_nothing(guest):
    session = guest.session()
    with pytest.raises(AgentFailed, match="ended while it was starting") as failure:
        await guest.push({**session, "args": ["--ServerApp.port=none"]})
    assert failure.value.stage == "notebook"
    assert "port" in failure.value.detail
    assert guest.notebook_process is None
    assert (await guest.status())["notebook"] == "dead"
    assert (await guest.push({**session, "launch": "2"}))[-1]["stage"] == "ready"


async def test_files_in_the_home_survive_a_reboot(guest, start_kernel):
    await guest.push(guest.session())
    async with guest.browser() as browser:
        await (await start_kernel(browser)).run("open('result.txt', 'w').write('kept')")
    guest.switch_off()
    guest.boot()
    await guest.push(guest.session(launch="2"))
    async with guest.browser() as browser, browser.get("api/contents/result.txt") as response:
        assert (await response.json())["content"] == "kept"


async def test_the_token_is_where_the_owner_is_and_nowhere_else(guest, start_kernel):
    secret = "tell-nobody-51f0c2"
    await guest.push(guest.session(token=secret))
    await guest.push(guest.session(token=secret, launch="2"))
    async with guest.browser(secret) as browser:
        await (await start_kernel(browser)).run("1")
    files = [file for root in (guest.state, guest.home, guest.etc) for file in root.rglob("*") if file.is_file()]
    assert files
    for file in [*files, guest.output, guest.console]:
        assert secret.encode() not in file.read_bytes(), file
    names = ("hutch-nursery", "jupyterhub-sing", "hutch-kernels")
    everybody = [psutil.Process(guest.process.pid), *(process for name in names for process in guest.processes(name))]
    assert len(everybody) == 5
    for process in everybody:
        assert secret not in str(process.cmdline()), process
        assert secret not in str(process.environ()), process


async def test_a_variable_that_only_a_new_interpreter_reads_is_honoured(guest, start_kernel):
    assert (await guest.push(guest.session(PYTHONHASHSEED="0", PYTHONUTF8="1")))[-1]["stage"] == "ready"
    async with guest.browser() as browser:
        kernel = await start_kernel(browser)
        assert await kernel.run("import sys; print(sys.flags.utf8_mode, sys.flags.hash_randomization)") == "1 0"
    assert (await guest.push(guest.session(launch="2", PYTHONHASHSEED="0", PYTHONUTF8="1")))[-1]["kept"] is True


async def test_the_folder_runs_under_any_package_name(guest, tmp_path, start_kernel):
    guest.switch_off()
    shutil.copytree(guest.root / "images" / "guest", tmp_path / "opt" / "hutch_guest")
    guest.package, guest.root = "hutch_guest", tmp_path / "opt"
    guest.boot()
    assert (await guest.push(guest.session()))[-1]["stage"] == "ready"
    async with guest.browser() as browser:
        assert await (await start_kernel(browser)).run("import hutch_guest") == "ModuleNotFoundError"
    assert (await guest.push(guest.session(launch="2")))[-1]["kept"] is True


async def test_the_owner_is_the_only_one_to_use_the_notebook(guest):
    await guest.push(guest.session())
    async with guest.browser("a-token-nobody-knows") as browser, browser.get("api/contents") as response:
        assert response.status == 403


@pytest.fixture
def authorities(tmp_path: Path) -> tuple[Path, Path]:
    """JupyterHub's, and a bundle of those that are let in."""
    made = Certipy(store_dir=str(tmp_path / "authorities")).create_ca("notebooks-ca")
    return tmp_path / "authorities", Path(made["files"]["cert"])


async def test_a_notebook_shows_the_certificate_of_its_launch_and_is_kept_with_it(guest, authorities):
    url = f"https://{guest.address}:{guest.notebook_port}/user/ann/"

    def session(launch: str, address: str) -> dict[str, Any]:
        tls = notebook_certificate(address, ["localhost"], *authorities)
        return guest.session(launch=launch, JUPYTERHUB_SERVICE_URL=url) | {"tls": tls}

    async def shown() -> str:
        return await asyncio.to_thread(ssl.get_server_certificate, (guest.address, guest.notebook_port))

    first = session("1", guest.address)
    assert (await guest.push(first))[-1]["kept"] is False
    assert (await shown()).split() == first["tls"]["certificate"].split()

    assert (await guest.push(session("2", guest.address)))[-1]["kept"] is True
    assert (await shown()).split() == first["tls"]["certificate"].split()

    moved = session("3", "127.0.0.9")
    assert (await guest.push(moved))[-1]["kept"] is False
    assert (await shown()).split() == moved["tls"]["certificate"].split()


@pytest.mark.parametrize("tls", [{"key": "x"}, {"key": 1, "certificate": "", "trusted": "", "address": ""}, "x"], ids=str)
async def test_certificates_that_are_not_whole_are_refused(guest, tls):
    with pytest.raises(AgentRefused, match="'tls' must hold"):
        await guest.push(guest.session() | {"tls": tls})
